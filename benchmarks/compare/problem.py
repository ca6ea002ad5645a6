"""The same layers and data for every implementation, from one seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.types import Array

from .cells import Cell, find
from .grid import POINTS, Sizes, drawn_lengths


class Problem(NamedTuple):
    """A stack of layers in float32, gates in PyTorch's order, and the gradient that training starts from.

    It has G gates, of which P have a product with U. The tests' problems (tests/support/problems.py) are single calls
    with all options; these have only features of every library, including stacks and directions.
    """

    cell: Cell
    sizes: Sizes
    x: Array  #: (T, B, I)
    #: W (G*H, I), U (P*H, H), b (G*H,), b_rec (P*H,) and for parameters p, layer by layer, each one's directions
    weights: list[dict[str, Array]]
    e: dict[str, Array]  #: extra inputs, each (T, B, H)
    lengths: Array | None  #: (B,) int64, or None where all sequences have T steps
    dy: Array  #: (T, B, H) or (T, B, 2*H), 0 past a sequence's length

    @property
    def suffixes(self) -> list[str]:
        """Return the suffixes of the names of each `weights`, as in PyTorch."""
        ways = ("", "_reverse")[: self.sizes.directions]
        return [f"_l{layer}{way}" for layer in range(self.sizes.layers) for way in ways]

    @property
    def parameters(self) -> dict[str, Array]:
        """Return all weights by name: W_l0, U_l0, ..."""
        pairs = zip(self.suffixes, self.weights, strict=True)
        return {name + suffix: array for suffix, weights in pairs for name, array in weights.items()}

    @property
    def inputs(self) -> dict[str, Array]:
        """Return everything that is differentiated: x, the weights and extra inputs."""
        return {"x": self.x} | self.parameters | {f"e_{name}": array for name, array in self.e.items()}


def make(cell: str, point: str) -> Problem:
    """Return the problem at a point of the grid."""
    return draw(cell, POINTS[point], drawn_lengths(point))


def draw(name: str, sizes: Sizes, lengths: Array | None = None) -> Problem:
    """Draw weights uniform in +-1/sqrt(H), as in PyTorch; x and dy normal; extra inputs uniform in 0..1."""
    cell = find(name)
    T, B, I, H = sizes[:4]
    G, P = len(cell.gates), len(cell.products)
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        weights: Array = (rng.uniform(-1, 1, shape) / np.sqrt(H)).astype(np.float32)
        return weights

    def one(I: int) -> dict[str, Array]:
        named = {"W": weight(G * H, I), "U": weight(P * H, H), "b": weight(G * H), "b_rec": weight(P * H)}
        named["p"] = weight(len(cell.parameters) * H)
        return {name: array for name, array in named.items() if array.size}

    x = rng.standard_normal((T, B, I), np.float32)
    dy = rng.standard_normal((T, B, H * sizes.directions), np.float32)
    if lengths is not None:
        dy *= (np.arange(T)[:, None] < lengths)[:, :, None]
    weights = [one(I) for I in sizes.inputs for _ in range(sizes.directions)]
    return Problem(cell, sizes, x, weights, {e: rng.random((T, B, H), np.float32) for e in cell.inputs}, lengths, dy)


def layers(problem: Problem) -> fastrnn.Recurrent:
    """Return fastrnn's layers with the problem's weights."""
    sizes = problem.sizes
    layer = fastrnn.Recurrent(
        CELLS[problem.cell.name], sizes.I, sizes.H, sizes.layers, bidirectional=sizes.directions == 2
    )
    named = zip(layer.parameters(), problem.parameters.values(), strict=True)
    layer.load_state_dict(dict(named))
    return layer
