"""JAX: `lax.scan` under `jit`, with the input product outside the loop, as its users write it."""

from __future__ import annotations

import functools
import importlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.types import Array

from .cells import Cell, Steps
from .peer import Peer, Work
from .problem import Problem


def lstm(nn: Any, x: Any, U: Any, s: Any) -> Any:
    c = nn.sigmoid(x.f + U.f @ s.h) * s.c + nn.sigmoid(x.i + U.i @ s.h) * nn.tanh(x.g + U.g @ s.h)
    return nn.sigmoid(x.o + U.o @ s.h) * nn.tanh(c), c


def lstm_peephole(nn: Any, x: Any, U: Any, s: Any, p: Any) -> Any:
    i, f = nn.sigmoid(x.i + U.i @ s.h + p.i * s.c), nn.sigmoid(x.f + U.f @ s.h + p.f * s.c)
    c = f * s.c + i * nn.tanh(x.g + U.g @ s.h)
    return nn.sigmoid(x.o + U.o @ s.h + p.o * c) * nn.tanh(c), c


def gru_after(nn: Any, x: Any, U: Any, s: Any) -> Any:
    r, z = nn.sigmoid(x.r + U.r @ s.h), nn.sigmoid(x.z + U.z @ s.h)
    return (1 - z) * nn.tanh(x.n + r * (U.n @ s.h)) + z * s.h


def gru_before(nn: Any, x: Any, U: Any, s: Any) -> Any:
    r, z = nn.sigmoid(x.r + U.r @ s.h), nn.sigmoid(x.z + U.z @ s.h)
    return (1 - z) * nn.tanh(x.n + U.n @ (r * s.h)) + z * s.h


def rnn_tanh(nn: Any, x: Any, U: Any, s: Any) -> Any:
    return nn.tanh(x.h + U.h @ s.h)


#: fastrnn's cells, written independently; a user's cell has its own equations
EQUATIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (lstm, lstm_peephole, gru_after, gru_before, rnn_tanh)
}


class JAX(Peer):
    """Inference, and training by `vjp` inside one compiled function."""

    title, package = "JAX", "jax"

    @classmethod
    def offers(cls, cell: Cell, training: bool, lengths: bool) -> bool:
        return (cell.own is not None or cell.name in EQUATIONS) and not lengths

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.jax: Any = importlib.import_module("jax")

    def prepare(self, problem: Problem, training: bool) -> Work:
        """Compile four variants and keep the fastest; each is twice as fast as another at some point."""
        ways = itertools.product((False, True), repeat=2)
        return min((self.compiled(problem, training, *way) for way in ways), key=self.seconds)

    @staticmethod
    def seconds(work: Work) -> float:
        """Return a rough time of a call: the minimum of some."""
        work.call()
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            work.call()
            taken.append(time.perf_counter() - start)
        return min(taken)

    def compiled(self, problem: Problem, training: bool, transposed: bool, apart: bool) -> Work:
        """Compile a variant: U is transposed before the loop or by the product; gates are split before the loop or
        inside.
        """
        jax = self.jax
        forward = self.stack(problem, transposed, apart)

        def train(arguments: Any, dy: Any) -> Any:
            y, back = jax.vjp(forward, arguments)
            return y, back(dy)[0]

        arguments = jax.device_put({"x": problem.x, "weights": problem.weights, "e": problem.e})
        given = (arguments, jax.device_put(problem.dy)) if training else (arguments,)
        run = jax.jit(train if training else forward)

        def collect(result: Any) -> dict[str, Array]:
            if not training:
                return {"y": np.asarray(result)}
            y, gradients = result
            return {"y": np.asarray(y)} | {
                f"d{name}": np.asarray(d) for name, d in problem._replace(**gradients).inputs.items()
            }

        return Work(lambda: jax.block_until_ready(run(*given)), collect)

    def stack(self, problem: Problem, transposed: bool, apart: bool) -> Callable[[dict[str, Any]], Any]:
        """Return y (T, B, D*H) from x, the weights of every layer and direction, and extra inputs."""
        D = problem.sizes.directions
        one = self.sequence(problem, transposed, apart)

        def forward(arguments: dict[str, Any]) -> Any:
            y, e = arguments["x"], arguments["e"]
            for layer in range(problem.sizes.layers):
                ways = arguments["weights"][layer * D : (layer + 1) * D]
                sides = [one(y, ways[0], e)] + [one(y[::-1], w, e)[::-1] for w in ways[1:]]
                y = self.jax.numpy.concatenate(sides, axis=2)
            return y

        return forward

    def sequence(self, problem: Problem, transposed: bool, apart: bool) -> Callable[..., Any]:
        """Return y (T, B, H) of one layer and direction."""
        jax, jnp, cell = self.jax, self.jax.numpy, problem.cell
        equations = cell.own.equations if cell.own else functools.partial(EQUATIONS[cell.name], jax.nn)
        steps = Steps(cell, equations, lambda: jnp.zeros((1, 1)))
        start = (np.zeros((problem.sizes.B, problem.sizes.H), np.float32),) * len(cell.states)

        def product(group: list[str], u: Any, b_rec: Any) -> Callable[[Any], Any]:
            v = u.T
            return lambda h: jnp.split((h @ v if transposed else h @ u.T) + b_rec, len(group), axis=1)

        def gates(a: Any) -> Any:
            return jnp.split(a, len(cell.gates), axis=-1)

        def forward(x: Any, w: dict[str, Any], e: dict[str, Any]) -> Any:
            by_U = [product(group, *part) for group, part in zip(steps.groups, steps.parts(w), strict=True)]
            p = jnp.split(w["p"], len(cell.parameters)) if cell.parameters else []

            def one(state: Any, now: Any) -> Any:
                a, e = now
                state = steps.step(a if apart else gates(a), state, by_U, p, e)
                return state, state[0]

            a = x @ w["W"].T + w["b"]
            return jax.lax.scan(one, start, (gates(a) if apart else a, [e[name] for name in cell.inputs]))[1]

        return forward
