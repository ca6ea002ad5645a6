"""The same layers and data for every implementation, from one seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastrnn.cells import Array

from .grid import CELLS, POINTS, Sizes, drawn_lengths


class Problem(NamedTuple):
    """A stack of layers in float32, gates in PyTorch's order, and the gradient that training starts from."""

    cell: str
    sizes: Sizes
    x: Array  #: (T, B, I)
    #: W (G*H, I), U (G*H, H), b (G*H,), b_rec (G*H,) and for peepholes p (3*H,), layer by layer, each one's directions
    weights: list[dict[str, Array]]
    lengths: Array | None  #: (B,) int64, or None where all sequences have T steps
    dy: Array  #: (T, B, H) or (T, B, 2*H), 0 past a sequence's length

    @property
    def suffixes(self) -> list[str]:
        """What the names of each `weights` end in, as PyTorch has it."""
        ways = ("", "_reverse")[: self.sizes.directions]
        return [f"_l{layer}{way}" for layer in range(self.sizes.layers) for way in ways]

    @property
    def parameters(self) -> dict[str, Array]:
        """All weights by name: W_l0, U_l0, ..."""
        pairs = zip(self.suffixes, self.weights, strict=True)
        return {name + suffix: array for suffix, weights in pairs for name, array in weights.items()}


def make(cell: str, point: str) -> Problem:
    """The problem at a point of the grid."""
    return draw(cell, POINTS[point], drawn_lengths(point))


def draw(cell: str, sizes: Sizes, lengths: Array | None = None) -> Problem:
    """Weights uniform in +-1/sqrt(H), as PyTorch begins; x and dy normal."""
    T, B, I, H = sizes[:4]
    G = CELLS[cell]
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        weights: Array = (rng.uniform(-1, 1, shape) / np.sqrt(H)).astype(np.float32)
        return weights

    def one(I: int) -> dict[str, Array]:
        named = {"W": weight(G * H, I), "U": weight(G * H, H), "b": weight(G * H), "b_rec": weight(G * H)}
        return named | ({"p": weight(3 * H)} if cell == "lstm_peephole" else {})

    x = rng.standard_normal((T, B, I), np.float32)
    dy = rng.standard_normal((T, B, H * sizes.directions), np.float32)
    if lengths is not None:
        dy *= (np.arange(T)[:, None] < lengths)[:, :, None]
    return Problem(cell, sizes, x, [one(I) for I in sizes.inputs for _ in range(sizes.directions)], lengths, dy)
