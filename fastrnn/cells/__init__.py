"""The built-in cells, written as equations, and the functions used in equations.

These are the textbook equations. NumPy runs them directly, for any dtype, including complex, so complex-step
differentiation is accurate to machine precision. The kernels, their backward and the other backends are derived from
them.

`x.g` is W_g x[t] + b_g, `U.g @ v` is U_g v + b_rec_g, `s` holds the states before the step; see `fastrnn.cell`.

References
----------
.. [1] J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
.. [2] F. A. Gers, J. Schmidhuber, F. Cummins, "Learning to forget: continual prediction with LSTM", Neural
   Computation 12, 2000.
.. [3] F. A. Gers, N. N. Schraudolph, J. Schmidhuber, "Learning precise timing with LSTM recurrent networks",
   JMLR 3, 2002.
.. [4] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
   translation", EMNLP 2014, eq. 5-8.
.. [5] J. Chung, C. Gulcehre, K. Cho, Y. Bengio, "Empirical evaluation of gated recurrent neural networks on sequence
   modeling", 2014. The reset after the product is cuDNN's variant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from fastrnn.cells.definition import Cell, CellError
from fastrnn.cells.functions import (
    abs,
    clip,
    cos,
    exp,
    hard_sigmoid,
    hard_sigmoid_keras2,
    log,
    log1p,
    maximum,
    mean,
    minimum,
    relu,
    sigmoid,
    sin,
    softplus,
    sqrt,
    tanh,
    where,
)

__all__ = [
    "CELLS",
    "Cell",
    "CellError",
    "abs",
    "clip",
    "cos",
    "exp",
    "hard_sigmoid",
    "hard_sigmoid_keras2",
    "log",
    "log1p",
    "maximum",
    "mean",
    "minimum",
    "relu",
    "sigmoid",
    "sin",
    "softplus",
    "sqrt",
    "tanh",
    "where",
]

#: Built-in cells by name, in the order of the C core.
CELLS: dict[str, Cell] = {}


def builtin(
    family: str, gates: str, states: str, parameters: tuple[str, ...] = (), **options: Any
) -> Callable[[Callable[..., Any]], Cell]:
    """Like `fastrnn.cell`, for a built-in cell."""

    def decorate(function: Callable[..., Any]) -> Cell:
        cell = CELLS[function.__name__] = Cell(function, gates, states, parameters, (), family, options)
        return cell

    return decorate


def members(family: str) -> list[Cell]:
    return [cell for cell in CELLS.values() if cell.family == family]


@cache
def find(family: str, **options: Any) -> Cell:
    """Return the built-in cell that matches the most options; options of other families are ignored."""
    found = [cell for cell in members(family) if cell.options.items() <= options.items()]
    if not found:
        raise ValueError(f"cell: no built-in {family} has the options {options}")
    return max(found, key=lambda cell: len(cell.options))


@builtin("rnn", gates="h", states="h", activation="tanh")
def rnn_tanh(x: Any, U: Any, s: Any) -> Any:
    """The vanilla RNN [1]_."""
    return tanh(x.h + U.h @ s.h)


@builtin("rnn", gates="h", states="h", activation="relu")
def rnn_relu(x: Any, U: Any, s: Any) -> Any:
    """The vanilla RNN with relu."""
    return relu(x.h + U.h @ s.h)


@builtin("rnn", gates="h", states="h", activation="sigmoid")
def rnn_sigmoid(x: Any, U: Any, s: Any) -> Any:
    """The vanilla RNN with sigmoid."""
    return sigmoid(x.h + U.h @ s.h)


@builtin("rnn", gates="h", states="h", activation="identity")
def rnn_identity(x: Any, U: Any, s: Any) -> Any:
    """The linear RNN."""
    return x.h + U.h @ s.h


@builtin("lstm", gates="ifgo", states="hc")
def lstm(x: Any, U: Any, s: Any) -> Any:
    """The LSTM with a forget gate [2]_."""
    i = sigmoid(x.i + U.i @ s.h)
    f = sigmoid(x.f + U.f @ s.h)
    g = tanh(x.g + U.g @ s.h)
    c = f * s.c + i * g
    return sigmoid(x.o + U.o @ s.h) * tanh(c), c


@builtin("lstm", gates="ifgo", states="hc", parameters=("i", "f", "o"), peephole=True)
def lstm_peephole(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The LSTM with peepholes [3]_."""
    f = sigmoid(x.f + U.f @ s.h + p.f * s.c)
    i = sigmoid(x.i + U.i @ s.h + p.i * s.c)
    g = tanh(x.g + U.g @ s.h)
    c = f * s.c + i * g
    return sigmoid(x.o + U.o @ s.h + p.o * c) * tanh(c), c


@builtin("gru", gates="rzn", states="h", reset_after=True)
def gru_after(x: Any, U: Any, s: Any) -> Any:
    """The GRU that resets after the product [5]_, as in PyTorch, cuDNN and Keras since version 2."""
    r = sigmoid(x.r + U.r @ s.h)
    z = sigmoid(x.z + U.z @ s.h)
    n = tanh(x.n + r * (U.n @ s.h))
    return (1 - z) * n + z * s.h


@builtin("gru", gates="rzn", states="h", reset_after=False)
def gru_before(x: Any, U: Any, s: Any) -> Any:
    """The GRU of the paper [4]_, which resets before the product."""
    r = sigmoid(x.r + U.r @ s.h)
    z = sigmoid(x.z + U.z @ s.h)
    n = tanh(x.n + U.n @ (r * s.h))
    return (1 - z) * n + z * s.h
