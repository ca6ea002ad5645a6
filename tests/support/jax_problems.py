"""Problems computed by `fastrnn.jax` and by `lax.scan`, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from support.problems import PUBLIC, Arrays, Problem, make, random_options

OUTPUTS = ("y", "h_n", "c_n")
SIZES = (6, 4, 3, 5)


@contextlib.contextmanager
def in_float64(jax: Any) -> Iterator[Any]:
    """Use JAX with 64 bits."""
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", False)


def problem(cell: str, seed: int = 0, sizes: tuple[int, int, int, int] = SIZES, **chosen: Any) -> Problem:
    """Return a problem with random options of JAX, except those given."""
    options = random_options(cell, sizes[0], np.random.default_rng(seed))
    for name in ("batch_first", "checkpoint", "return_cells"):
        options.pop(name, None)
    return make(cell, sizes, seed=seed, **options | chosen)


def by_fastrnn(ours: Any, given: Problem) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function from arrays by name to outputs by name."""
    family, _, chosen = PUBLIC[given.cell]

    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(OUTPUTS, getattr(ours, family)(**arrays, **chosen, **given.options), strict=False))

    return run


def by_scan(jax: Any, given: Problem) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same, written as JAX users would."""
    jnp, sigmoid = jax.numpy, jax.nn.sigmoid
    family, _, chosen = PUBLIC[given.cell]
    activations = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": sigmoid, "identity": lambda a: a}

    def step(w: dict[str, Any], a: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        h, U, b = state[0], w["U"], w.get("b_rec", 0)
        if family == "rnn":
            return (activations[chosen["activation"]](a + h @ U.T + b),)
        if family == "lstm":
            c, (p_i, p_f, p_o) = state[1], jnp.split(w["p"], 3) if "p" in w else (0, 0, 0)
            i, f, g, o = jnp.split(a + h @ U.T + b, 4, axis=1)
            c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * jnp.tanh(g)
            return sigmoid(o + p_o * c) * jnp.tanh(c), c
        a_r, a_z, a_n = jnp.split(a, 3, axis=1)
        u_r, u_z, u_n = jnp.split(h @ U.T + b, 3, axis=1)
        r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
        H = h.shape[1]
        before = (r * h) @ U[2 * H :].T + jnp.broadcast_to(b, 3 * H)[2 * H :]
        n = jnp.tanh(a_n + (r * u_n if chosen["reset_after"] else before))
        return ((1 - z) * n + z * h,)

    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        x, (T, B, _), H = arrays["x"], arrays["x"].shape, arrays["U"].shape[1]
        valid = jnp.arange(T)[:, None] < jnp.broadcast_to(arrays.get("lengths", T), B)
        resets = arrays.get("resets", jnp.zeros((T, B), bool))
        names = ("h0", "c0") if family == "lstm" else ("h0",)
        start = tuple(arrays.get(name, jnp.zeros((B, H), x.dtype)) for name in names)

        def one(state: tuple[Any, ...], now: tuple[Any, Any, Any]) -> tuple[tuple[Any, ...], Any]:
            a, here, reset = now
            fresh = tuple(jnp.where(reset[:, None], 0, s) for s in state)
            after = step(arrays, a, fresh)
            state = tuple(jnp.where(here[:, None], new, old) for new, old in zip(after, state, strict=True))
            return state, jnp.where(here[:, None], state[0], 0)

        inputs = x @ arrays["W"].T + arrays.get("b", 0)
        reverse = given.options.get("reverse", False)
        final, y = jax.lax.scan(one, start, (inputs, valid, resets), reverse=reverse)
        return dict(zip(OUTPUTS, (y, *final), strict=False))

    return run


def split(given: Problem) -> tuple[Arrays, Arrays]:
    """Separate the arrays that have a gradient from the others."""
    real = {name: a for name, a in given.inputs.items() if a.dtype.kind == "f"}
    return real, {name: a for name, a in given.inputs.items() if name not in real}
