"""What the functional interface returns: named tuples, and the cache that goes from a forward to its backward.

Shapes are those of the arguments; `batch_first` and unbatched calls get theirs. All numbers are dimensionless.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.call import Backend, Call
from fastrnn.cells import Array


class Kept(NamedTuple):
    """What a backward needs."""

    backend: Backend
    call: Call
    saved: Any
    unbatched: bool


class Cache:
    """What a training forward keeps for its backward: opaque, and bound to the backend that made it.

    It refers to the arrays that the call was given, without a copy: leave them unchanged until the backward is done,
    which looks at some elements of each and refuses (ValueError) if those are others.
    """

    __slots__ = ("kept",)

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def __repr__(self) -> str:
        call, backend = self.kept.call, self.kept.backend
        T, B, I, H = call.sizes
        return f"<Cache of {call.cell.name}, T={T} B={B} I={I} H={H}, {call.x.dtype}, {backend.name}>"


class RNNResult(NamedTuple):
    """What `rnn_forward` returns."""

    y: Array  #: (T, B, H) hidden state of every step, exactly 0 past a sequence's length
    h_n: Array  #: (B, H) state after each sequence's last valid step in the direction of travel
    cache: Cache | None  #: with training=True


class GRUResult(RNNResult):
    """What `gru_forward` returns."""

    __slots__ = ()


class LSTMResult(NamedTuple):
    """What `lstm_forward` returns."""

    y: Array  #: (T, B, H) hidden state of every step, exactly 0 past a sequence's length
    h_n: Array  #: (B, H) state after each sequence's last valid step in the direction of travel
    c_n: Array  #: (B, H) cell state, likewise
    cache: Cache | None  #: with training=True
    c: Array | None  #: (T, B, H) cell state of every step, exactly 0 past a length; with return_cells=True


class RNNGrads(NamedTuple):
    """What `rnn_backward` returns: gradients shaped like the arguments, None for absent ones."""

    dx: Array
    dW: Array
    dU: Array
    db: Array | None
    db_rec: Array | None
    dh0: Array | None


class GRUGrads(RNNGrads):
    """What `gru_backward` returns: gradients shaped like the arguments, None for absent ones."""

    __slots__ = ()


class LSTMGrads(NamedTuple):
    """What `lstm_backward` returns: gradients shaped like the arguments, None for absent ones."""

    dx: Array
    dW: Array
    dU: Array
    db: Array | None
    db_rec: Array | None
    dp: Array | None
    dh0: Array | None
    dc0: Array | None
