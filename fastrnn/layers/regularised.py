"""Recurrent dropout, zoneout and weight drop, of any cell.

The first two are in the equations of another cell, which is given the masks as extra inputs; so the kernels run them,
and gradients are derived as of every cell. Weight drop is a mask of U.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastrnn.cells import Array, Cell, where
from fastrnn.layers.dropout import mask
from fastrnn.packed import Masks


class Regularised:
    """What a layer of this cell runs and draws, whose options `layers.LSTM` describes; zoneout is a rate a state."""

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
        self.training = masked(cell, recurrent_dropout > 0, zoned) if recurrent_dropout or zoned else cell

    def draw(self, U: Array | None, sizes: tuple[int, int, int], rng: Any, dtype: np.dtype[Any]) -> Masks:
        """The masks of one layer and direction, of T steps, B sequences and H units."""
        one_of_U = mask(U.shape, self.weight_drop, rng, dtype) if self.weight_drop and U is not None else None
        e = []
        if self.recurrent_dropout:
            e.append(np.broadcast_to(mask(sizes[1:], self.recurrent_dropout, rng, dtype), sizes))
        e += [mask(sizes, rate, rng, dtype) for rate in self.zoneout if rate]
        return Masks(one_of_U, tuple(e))


@dataclass
class Dropped:
    """U.g, a product with which is one of what is left of its operand."""

    matrix: Any
    mask: Any

    def __matmul__(self, operand: Any) -> Any:
        return self.matrix @ (self.mask * operand)


@cache
def masked(cell: Cell, dropped: bool, zoned: tuple[str, ...]) -> Cell:
    """The cell with a mask of U's operands if `dropped`, and one of each state that is `zoned`, 0 where it stays."""
    dropping = free("mask", cell)
    zones = {state: free(f"zone_{state}", cell) for state in zoned}

    def equations(x: Any, U: Any, s: Any, *given: Any) -> tuple[Any, ...]:
        e = given[-1]  # and the first is p, if the cell has parameters
        if dropped:
            U = SimpleNamespace(**{gate: Dropped(getattr(U, gate), getattr(e, dropping)) for gate in cell.products})
        after = zip(cell.states, cell.equations(x, U, s, given[0], e), strict=True)
        return tuple([where(getattr(e, zones[n]) > 0, a, getattr(s, n)) if n in zones else a for n, a in after])

    inputs = (*cell.inputs, *[dropping] * dropped, *zones.values())
    return derived(cell, "masked", equations, inputs, partial(masked, cell, dropped, zoned))


@cache
def averaged(cell: Cell, zoneout: tuple[float, ...]) -> Cell:
    """The cell whose states are what zoneout at these rates makes of them on average."""
    rates = dict(zip(cell.states, zoneout, strict=True))

    def equations(x: Any, U: Any, s: Any, *given: Any) -> tuple[Any, ...]:
        given = given or (None,)  # p and e, of which the cell may have one or none
        after = zip(cell.states, cell.equations(x, U, s, given[0], given[-1]), strict=True)
        return tuple([rates[n] * getattr(s, n) + (1 - rates[n]) * a if rates[n] else a for n, a in after])

    return derived(cell, "averaged", equations, cell.inputs, partial(averaged, cell, zoneout))


def free(name: str, cell: Cell) -> str:
    """A name that no input of the cell has."""
    while name in cell.inputs:
        name += "_"
    return name


def derived(cell: Cell, kind: str, equations: Any, inputs: tuple[str, ...], maker: Any) -> Cell:
    equations.__name__ = f"{cell.name}_{kind}"
    made = Cell(equations, cell.gates, cell.states, cell.parameters, inputs, options=cell.options)
    made.maker = maker
    return made
