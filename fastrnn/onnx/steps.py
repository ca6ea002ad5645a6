"""One step of ONNX's RNN, GRU and LSTM with any activations and coupled gates, for what the kernels do not have.

The steps are those of `fastrnn.cells` with the activations left open, and `backends.numpy.scan` runs them over time,
so lengths, directions and initial states are the NumPy backend's own.

References
----------
.. [1] ONNX, "Operators": RNN, GRU, LSTM, https://onnx.ai/onnx/operators.
.. [2] K. Greff, R. K. Srivastava, J. Koutnik, B. R. Steunebrink, J. Schmidhuber, "LSTM: a search space odyssey", 2015:
   coupled input and forget gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Array, Arrays, identity, linear, one, quarters, relu, sigmoid, tanh, thirds

Function = Callable[[Array], Array]
Step = Callable[[Array, Arrays, Arrays], Any]


class Kind(NamedTuple):
    """An activation as ONNX names it; its function takes a, then as many of alpha and beta as it has defaults."""

    function: Callable[..., Array]
    defaults: tuple[float, ...] = ()


#: By name in small letters, as ONNX Runtime reads them too. Affine with its defaults is the identity.
ACTIVATIONS = {
    "relu": Kind(relu),
    "tanh": Kind(tanh),
    "sigmoid": Kind(sigmoid),
    "affine": Kind(lambda a, alpha, beta: alpha * a + beta, (1.0, 0.0)),
    "leakyrelu": Kind(lambda a, alpha: np.where(a < 0, alpha * a, a), (0.01,)),
    "thresholdedrelu": Kind(lambda a, alpha: np.where(a < alpha, np.zeros_like(a), a), (1.0,)),
    "scaledtanh": Kind(lambda a, alpha, beta: alpha * np.tanh(beta * a), (1.0, 1.0)),
    "hardsigmoid": Kind(lambda a, alpha, beta: np.clip(alpha * a + beta, 0, 1), (0.2, 0.5)),
    "elu": Kind(lambda a, alpha: np.where(a < 0, alpha * np.expm1(np.minimum(a, 0)), a), (1.0,)),
    "softsign": Kind(lambda a: a / (1 + np.abs(a))),
    "softplus": Kind(lambda a: np.logaddexp(0, a)),
}


class Chosen(NamedTuple):
    """One activation of a node, with the alpha and beta that it takes."""

    name: str
    arguments: tuple[float, ...] = ()

    @property
    def function(self) -> Function:
        function, arguments = ACTIVATIONS[self.name].function, self.arguments
        if self.name == "affine" and arguments == (1.0, 0.0):
            return identity
        return lambda a: function(a, *arguments)


def chosen(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Chosen]:
    """The activations of a node; each consumes the next alpha and beta that it takes, and then there are defaults.

    Raises ValueError for a name that ONNX does not have, and for an alpha or beta that no activation takes.
    """
    left = list(alphas), list(betas)
    found = []
    for name in names:
        kind = ACTIVATIONS.get(name.lower())
        if kind is None:
            raise ValueError(f"activations: expected names of {', '.join(ACTIVATIONS)}, got {name!r}")
        arguments = [own.pop(0) if own else default for own, default in zip(left, kind.defaults, strict=False)]
        found.append(Chosen(name.lower(), tuple(arguments)))
    for attribute, over in zip(("activation_alpha", "activation_beta"), left, strict=True):
        if over:
            raise ValueError(f"{attribute}: {', '.join(names)} take {len(over)} fewer")
    return found


def clipped(f: Function, clip: float | None) -> Function:
    """f of what lies beyond +-clip is that of +-clip."""
    return f if clip is None else lambda a: f(np.clip(a, -clip, clip))


def rnn(f: Function) -> Step:
    def step(x: Array, state: Arrays, weights: Arrays) -> Any:
        (h,) = state
        W, U, b, b_rec = weights
        return (f(linear(x, W, b) + linear(h, U, b_rec)),), ()

    return step


def gru(f: Function, g: Function, *, linear_before_reset: bool) -> Step:
    def step(x: Array, state: Arrays, weights: Arrays) -> Any:
        (h,) = state
        W, U, b, b_rec = weights
        H = h.shape[1]
        r, z, n = thirds(linear(x, W, b))
        u = linear(h, U[: 2 * H], b_rec[: 2 * H])
        r, z = f(r + u[:, :H]), f(z + u[:, H:])
        U_n, b_n = U[2 * H :], b_rec[2 * H :]
        n = g(n + (r * linear(h, U_n, b_n) if linear_before_reset else linear(r * h, U_n, b_n)))
        return ((one - z) * n + z * h,), ()

    return step


def lstm(f: Function, g: Function, h: Function, *, input_forget: bool) -> Step:
    """With `input_forget` what is forgotten makes room for what comes in: the forget gate is 1 - i."""

    def step(x: Array, state: Arrays, weights: Arrays) -> Any:
        h_prev, c = state
        W, U, b, b_rec, *p = weights
        p_i, p_f, p_o = thirds(p[0]) if p else (0, 0, 0)
        a_i, a_f, a_g, a_o = quarters(linear(x, W, b) + linear(h_prev, U, b_rec))
        i = f(a_i + p_i * c)
        c = (one - i if input_forget else f(a_f + p_f * c)) * c + i * g(a_g)
        return (f(a_o + p_o * c) * h(c), c), ()

    return step
