"""Recurrent dropout, zoneout and weight drop for any cell: the first two use the cells of `fastrnn.cells.regularised`,
weight drop a mask of U.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.cells.regularised import averaged, masked
from fastrnn.layers.dropout import mask
from fastrnn.packed import Masks
from fastrnn.types import Array


class Regularised:
    """Cells and masks of a regularised layer; `layers.LSTM` documents the options. `zoneout` is one rate per state."""

    def __init__(self, cell: Cell, recurrent_dropout: float, zoneout: tuple[float, ...], weight_drop: float) -> None:
        for name, rate in (("recurrent_dropout", recurrent_dropout), ("weight_drop", weight_drop)):
            if rate and not cell.products:
                raise ValueError(f"{name}: cell {cell.name} has no product with U; expected 0.0, got {rate}")
        if len(zoneout) != len(cell.states):
            states = ", ".join(cell.states)
            raise ValueError(f"zoneout: expected a number, or one for each of the states {states}, got {zoneout}")
        self.recurrent_dropout, self.zoneout, self.weight_drop = recurrent_dropout, zoneout, weight_drop
        zoned = tuple([state for state, rate in zip(cell.states, zoneout, strict=True) if rate])
        self.draws = bool(recurrent_dropout or zoned or weight_drop)
        self.inference = averaged(cell, zoneout) if zoned else cell
        masks = ("mask",) * len(cell.products) if recurrent_dropout else ()  # one for all gates
        self.training = masked(cell, masks, zoned) if masks or zoned else cell

    def draw(self, U: Array | None, sizes: tuple[int, int, int], rng: Any, dtype: np.dtype[Any]) -> Masks:
        """Draw the masks of one layer and direction, for T steps, B sequences and H units."""
        one_of_U = mask(U.shape, self.weight_drop, rng, dtype) if self.weight_drop and U is not None else None
        e = []
        if self.recurrent_dropout:
            e.append(np.broadcast_to(mask(sizes[1:], self.recurrent_dropout, rng, dtype), sizes))
        e += [mask(sizes, rate, rng, dtype) for rate in self.zoneout if rate]
        return Masks(one_of_U, tuple(e))
