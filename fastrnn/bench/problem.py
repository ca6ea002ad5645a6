"""The same layer and data for every implementation, from one seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastrnn.bench.grid import CELLS, POINTS, drawn_lengths
from fastrnn.cells import Array


class Problem(NamedTuple):
    """One layer in float32, gates in PyTorch's order, and the gradient that training starts from."""

    cell: str
    x: Array  #: (T, B, I)
    W: Array  #: (G*H, I)
    U: Array  #: (G*H, H)
    b: Array  #: (G*H,)
    b_rec: Array  #: (G*H,)
    p: Array | None  #: (3*H,), for peepholes
    lengths: Array | None  #: (B,) int64, or None where all sequences have T steps
    dy: Array  #: (T, B, H), 0 past a sequence's length

    @property
    def parameters(self) -> dict[str, Array]:
        """W, U, b, b_rec and, where there are peepholes, p."""
        named = {"W": self.W, "U": self.U, "b": self.b, "b_rec": self.b_rec, "p": self.p}
        return {name: array for name, array in named.items() if array is not None}


def make(cell: str, point: str) -> Problem:
    """The problem at a point of the grid."""
    return draw(cell, POINTS[point], drawn_lengths(point))


def draw(cell: str, sizes: tuple[int, int, int, int], lengths: Array | None = None) -> Problem:
    """Weights uniform in +-1/sqrt(H), as PyTorch begins; x and dy normal."""
    T, B, I, H = sizes
    G = CELLS[cell]
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        weights: Array = (rng.uniform(-1, 1, shape) / np.sqrt(H)).astype(np.float32)
        return weights

    x = rng.standard_normal((T, B, I), np.float32)
    dy = rng.standard_normal((T, B, H), np.float32)
    if lengths is not None:
        dy *= (np.arange(T)[:, None] < lengths)[:, :, None]
    return Problem(
        cell,
        x,
        W=weight(G * H, I),
        U=weight(G * H, H),
        b=weight(G * H),
        b_rec=weight(G * H),
        p=weight(3 * H) if cell == "lstm_peephole" else None,
        lengths=lengths,
        dy=dy,
    )
