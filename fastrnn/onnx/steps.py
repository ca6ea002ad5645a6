"""ONNX's RNN, GRU and LSTM with any activations, clipped and with coupled gates, as cells.

References
----------
.. [1] ONNX, "Operators": RNN, GRU, LSTM, https://onnx.ai/onnx/operators.
.. [2] K. Greff, R. K. Srivastava, J. Koutnik, B. R. Steunebrink, J. Schmidhuber, "LSTM: a search space odyssey", 2015:
   coupled input and forget gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from fastrnn.cells import Cell, abs, clip, exp, minimum, relu, sigmoid, softplus, tanh, where


class Kind(NamedTuple):
    """An activation as ONNX names it; its function takes a, then as many of alpha and beta as it has defaults."""

    function: Callable[..., Any]
    defaults: tuple[float, ...] = ()


#: By name in small letters, as ONNX Runtime reads them too. Affine with its defaults is the identity.
ACTIVATIONS = {
    "relu": Kind(relu),
    "tanh": Kind(tanh),
    "sigmoid": Kind(sigmoid),
    "affine": Kind(lambda a, alpha, beta: alpha * a + beta, (1.0, 0.0)),
    "leakyrelu": Kind(lambda a, alpha: where(a < 0, alpha * a, a), (0.01,)),
    "thresholdedrelu": Kind(lambda a, alpha: where(a < alpha, 0, a), (1.0,)),
    "scaledtanh": Kind(lambda a, alpha, beta: alpha * tanh(beta * a), (1.0, 1.0)),
    "hardsigmoid": Kind(lambda a, alpha, beta: clip(alpha * a + beta, 0, 1), (0.2, 0.5)),
    "elu": Kind(lambda a, alpha: where(a < 0, alpha * (exp(minimum(a, 0)) - 1), a), (1.0,)),
    "softsign": Kind(lambda a: a / (1 + abs(a))),
    "softplus": Kind(softplus),
}


class Chosen(NamedTuple):
    """One activation of a node, with the alpha and beta that it takes."""

    name: str
    arguments: tuple[float, ...] = ()

    def __call__(self, a: Any, bound: float | None = None) -> Any:
        """f(a); of what lies beyond +-bound, that of +-bound."""
        return ACTIVATIONS[self.name].function(a if bound is None else clip(a, -bound, bound), *self.arguments)


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


@cache
def rnn(functions: tuple[Chosen, ...], clip: float | None, *_: bool) -> Cell:
    (f,) = functions

    def onnx_rnn(x: Any, U: Any, s: Any) -> Any:
        return f(x.h + U.h @ s.h, clip)

    return Cell(onnx_rnn, "h", "h")


@cache
def gru(functions: tuple[Chosen, ...], clip: float | None, linear_before_reset: bool, *_: bool) -> Cell:
    f, g = functions

    def onnx_gru(x: Any, U: Any, s: Any) -> Any:
        r = f(x.r + U.r @ s.h, clip)
        z = f(x.z + U.z @ s.h, clip)
        n = g(x.n + (r * (U.n @ s.h) if linear_before_reset else U.n @ (r * s.h)), clip)
        return (1 - z) * n + z * s.h

    return Cell(onnx_gru, "rzn", "h")


@cache
def lstm(
    functions: tuple[Chosen, ...], clip: float | None, _: bool, input_forget: bool, peephole: bool
) -> Cell:
    """With `input_forget` what is forgotten makes room for what comes in: there is no gate f, which is 1 - i."""
    f, g, h = functions

    def onnx_lstm(x: Any, U: Any, s: Any, p: Any = None) -> Any:
        def gate(g: str, c: Any) -> Any:
            a = getattr(x, g) + getattr(U, g) @ s.h
            return f(a + getattr(p, g) * c if peephole else a, clip)

        i = gate("i", s.c)
        c = (1 - i if input_forget else gate("f", s.c)) * s.c + i * g(x.g + U.g @ s.h, clip)
        return gate("o", c) * h(c), c

    gates = "igo" if input_forget else "ifgo"
    return Cell(onnx_lstm, gates, "hc", tuple(gates.replace("g", "")) if peephole else ())


#: Family of built-in cells -> what makes another, of a node's functions, clip, linear_before_reset, input_forget and
#: whether it has peepholes.
CELLS = {"rnn": rnn, "gru": gru, "lstm": lstm}
