"""JAX: `lax.scan` under `jit`, the input product taken out of the loop, as its users write it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastrnn.cells import Array

from .peer import ALL, Peer, Work
from .problem import Problem

#: Each multiplies a state by U, or by its part: a reset-before GRU's candidate has a product of its own.
Products = list[Callable[[Any], Any]]
#: From the input's share of the gates at a step (B, G*H), the state and the parameters to the next state, h first.
Step = Callable[[Any, tuple[Any, ...], dict[str, Any], Products], tuple[Any, ...]]


def steps(jax: Any) -> dict[str, Step]:
    """A step of each cell; b is in the input's share already."""
    jnp, sigmoid, tanh = jax.numpy, jax.nn.sigmoid, jax.numpy.tanh

    def lstm(a: Any, state: tuple[Any, ...], w: dict[str, Any], by_U: Products) -> tuple[Any, ...]:
        h, c = state
        i, f, g, o = jnp.split(a + by_U[0](h) + w["b_rec"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    def lstm_peephole(a: Any, state: tuple[Any, ...], w: dict[str, Any], by_U: Products) -> tuple[Any, ...]:
        h, c = state
        p_i, p_f, p_o = jnp.split(w["p"], 3)
        i, f, g, o = jnp.split(a + by_U[0](h) + w["b_rec"], 4, axis=1)
        c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
        return sigmoid(o + p_o * c) * tanh(c), c

    def gru_after(a: Any, state: tuple[Any, ...], w: dict[str, Any], by_U: Products) -> tuple[Any, ...]:
        (h,) = state
        a_r, a_z, a_n = jnp.split(a, 3, axis=1)
        u_r, u_z, u_n = jnp.split(by_U[0](h) + w["b_rec"], 3, axis=1)
        z = sigmoid(a_z + u_z)
        return ((1 - z) * tanh(a_n + sigmoid(a_r + u_r) * u_n) + z * h,)

    def gru_before(a: Any, state: tuple[Any, ...], w: dict[str, Any], by_U: Products) -> tuple[Any, ...]:
        (h,) = state
        H = h.shape[1]
        a_rz, a_n = jnp.split(a + w["b_rec"], [2 * H], axis=1)
        r, z = jnp.split(sigmoid(a_rz + by_U[0](h)), 2, axis=1)
        return ((1 - z) * tanh(a_n + by_U[1](r * h)) + z * h,)

    def rnn_tanh(a: Any, state: tuple[Any, ...], w: dict[str, Any], by_U: Products) -> tuple[Any, ...]:
        return (tanh(a + by_U[0](state[0]) + w["b_rec"]),)

    return {f.__name__: f for f in (lstm, lstm_peephole, gru_after, gru_before, rnn_tanh)}


class JAX(Peer):
    """Inference, and training by `vjp` inside one compiled function."""

    title, package, lengths = "JAX", "jax", False
    cells: ClassVar = {"forward": ALL, "training": ALL}

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.jax: Any = importlib.import_module("jax")
        self.steps = steps(self.jax)

    def prepare(self, problem: Problem, training: bool) -> Work:
        """The faster of two ways to write the product with U: which one it is hangs on the sizes."""
        works = [self.compiled(problem, training, transposed) for transposed in (False, True)]
        return min(works, key=self.seconds)

    @staticmethod
    def seconds(work: Work) -> float:
        """A rough time of a call, the least of some."""
        work.call()
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            work.call()
            taken.append(time.perf_counter() - start)
        return min(taken)

    def compiled(self, problem: Problem, training: bool, transposed: bool) -> Work:
        jax = self.jax
        forward = self.stack(problem, transposed)

        def train(arguments: Any, dy: Any) -> Any:
            y, back = jax.vjp(forward, arguments)
            return y, back(dy)[0]

        arguments = jax.device_put({"x": problem.x, "weights": problem.weights})
        given = (arguments, jax.device_put(problem.dy)) if training else (arguments,)
        run = jax.jit(train if training else forward)

        def collect(result: Any) -> dict[str, Array]:
            if not training:
                return {"y": np.asarray(result)}
            y, gradients = result
            given = {"x": gradients["x"]} | problem._replace(weights=gradients["weights"]).parameters
            return {"y": np.asarray(y)} | {f"d{name}": np.asarray(d) for name, d in given.items()}

        return Work(lambda: jax.block_until_ready(run(*given)), collect)

    def stack(self, problem: Problem, transposed: bool) -> Callable[[dict[str, Any]], Any]:
        """y (T, B, D*H) from x and the weights of every layer and direction."""
        D = problem.sizes.directions
        one = self.sequence(problem, transposed)

        def forward(arguments: dict[str, Any]) -> Any:
            y = arguments["x"]
            for layer in range(problem.sizes.layers):
                ways = arguments["weights"][layer * D : (layer + 1) * D]
                sides = [one(y, ways[0])] + [one(y[::-1], w)[::-1] for w in ways[1:]]
                y = self.jax.numpy.concatenate(sides, axis=2)
            return y

        return forward

    def sequence(self, problem: Problem, transposed: bool) -> Callable[[Any, dict[str, Any]], Any]:
        """y (T, B, H) of one layer and direction; U is transposed before the loop or by the product in it."""
        jax, step = self.jax, self.steps[problem.cell]
        B, H = problem.sizes.B, problem.sizes.H
        zeros = np.zeros((B, H), np.float32)
        start = (zeros, zeros) if problem.cell.startswith("lstm") else (zeros,)

        def product(u: Any) -> Callable[[Any], Any]:
            v = u.T
            return (lambda h: h @ v) if transposed else (lambda h: h @ u.T)

        def forward(x: Any, w: dict[str, Any]) -> Any:
            parts = jax.numpy.split(w["U"], [2 * H]) if problem.cell == "gru_before" else [w["U"]]
            by_U = [product(u) for u in parts]

            def one(state: tuple[Any, ...], a: Any) -> tuple[tuple[Any, ...], Any]:
                state = step(a, state, w, by_U)
                return state, state[0]

            return jax.lax.scan(one, start, x @ w["W"].T + w["b"])[1]

        return forward
