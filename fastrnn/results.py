"""Results of the functional interface: named tuples, and the cache passed from a forward to its backward.

Shapes below are time-major; results have the layout of the arguments. All numbers are dimensionless.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.call import Backend, Call
from fastrnn.checks import Layout
from fastrnn.types import Array


class Kept(NamedTuple):
    """Data that a backward needs."""

    backend: Backend
    call: Call
    saved: Any
    layout: Layout


class Cache:
    """Opaque data that a training forward saves for its backward; bound to the backend that made it.

    It refers to the call's arrays without copying them: do not change them before the backward, which compares a
    sample of elements of each and raises ValueError if any has changed.
    """

    __slots__ = ("kept",)

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def __repr__(self) -> str:
        call, backend = self.kept.call, self.kept.backend
        T, B, I, H = call.sizes
        return f"<Cache of {call.cell.name}, T={T} B={B} I={I} H={H}, {call.x.dtype}, {backend.name}>"


class RNNResult(NamedTuple):
    """Result of `rnn_forward`."""

    y: Array  #: (T, B, H) hidden state of every step, exactly 0 past a sequence's length
    h_n: Array  #: (B, H) state after each sequence's last valid step in the direction of travel
    cache: Cache | None  #: with training=True


class GRUResult(RNNResult):
    """Result of `gru_forward`."""

    __slots__ = ()


class LSTMResult(NamedTuple):
    """Result of `lstm_forward`."""

    y: Array  #: (T, B, H) hidden state of every step, exactly 0 past a sequence's length
    h_n: Array  #: (B, H) state after each sequence's last valid step in the direction of travel
    c_n: Array  #: (B, H) cell state, likewise
    cache: Cache | None  #: with training=True
    c: Array | None  #: (T, B, H) cell state of every step, exactly 0 past a length; with return_cells=True


class RNNGrads(NamedTuple):
    """Result of `rnn_backward`: gradients shaped like the arguments, None for absent ones."""

    dx: Array
    dW: Array
    dU: Array
    db: Array | None
    db_rec: Array | None
    dh0: Array | None


class GRUGrads(RNNGrads):
    """Result of `gru_backward`: gradients shaped like the arguments, None for absent ones."""

    __slots__ = ()


class LSTMGrads(NamedTuple):
    """Result of `lstm_backward`: gradients shaped like the arguments, None for absent ones."""

    dx: Array
    dW: Array
    dU: Array
    db: Array | None
    db_rec: Array | None
    dp: Array | None
    dh0: Array | None
    dc0: Array | None
