"""The contract between the public functions and the backends.

Data flows one way: `functional` takes what the user gave, `checks` turns it into a `Call`, a backend computes it.
A backend may rely on everything said here and need not check anything again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Call:
    """One checked recurrence: T steps, B sequences, I inputs, H hidden units, G gates, one dtype throughout.

    Every array is aligned, in native byte order and free of shared memory with any output. The last axis of `x`
    and of `resets` may be followed through any strides by the others (a batch-first input is a transposed view);
    the last axis itself is contiguous. All other arrays are C-contiguous.
    """

    cell: str  #: a name in `cells.CELLS`
    x: np.ndarray  #: (T, B, I)
    W: np.ndarray  #: (G*H, I)
    U: np.ndarray  #: (G*H, H)
    b: np.ndarray | None  #: (G*H,)
    b_rec: np.ndarray | None  #: (G*H,)
    p: np.ndarray | None  #: (3*H,), a peephole LSTM's only
    init: tuple[np.ndarray | None, ...]  #: one (B, H) per state of the cell: (h0,) or (h0, c0); None is zeros
    lengths: np.ndarray | None  #: (B,) int64, each in 0..T
    resets: np.ndarray | None  #: (T, B) bool
    reverse: bool
    batch_first: bool  #: lay y, c and dx out as (B, T, ...) in memory; shapes here stay time-major
    training: bool
    checkpoint: int | None  #: keep the state of every k-th step only; None keeps what backward needs of every step
    return_cells: bool
    threads: int  #: at least 1; an upper bound

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, B, I, H."""
        T, B, I = self.x.shape
        return T, B, I, self.U.shape[1]

    def empty(self, features: int) -> np.ndarray:
        """An uninitialised (T, B, features) output in the caller's memory order."""
        T, B, _ = self.x.shape
        if self.batch_first:
            return np.empty((B, T, features), self.x.dtype).transpose(1, 0, 2)
        return np.empty((T, B, features), self.x.dtype)


class Forward(NamedTuple):
    """What a backend's forward returns."""

    y: np.ndarray  #: (T, B, H), 0 past a sequence's length
    final: tuple[np.ndarray, ...]  #: one (B, H) per state
    c: np.ndarray | None  #: (T, B, H), only with `return_cells`
    saved: Any  #: what its own backward needs, None unless `training`


class Gradients(NamedTuple):
    """What a backend's backward returns; None for what the call did not have."""

    dx: np.ndarray  #: (T, B, I)
    dW: np.ndarray
    dU: np.ndarray
    db: np.ndarray | None
    db_rec: np.ndarray | None
    dp: np.ndarray | None
    dinit: tuple[np.ndarray | None, ...]  #: one (B, H) per state


class Backend(Protocol):
    """A module with these two functions and `name` is a backend; see `backends`."""

    name: str

    def forward(self, call: Call) -> Forward: ...

    def backward(
        self,
        call: Call,
        saved: Any,
        dy: np.ndarray | None,  # (T, B, H), last axis contiguous
        dfinal: tuple[np.ndarray | None, ...],  # one (B, H) per state
        dc: np.ndarray | None,  # (T, B, H), last axis contiguous
    ) -> Gradients: ...
