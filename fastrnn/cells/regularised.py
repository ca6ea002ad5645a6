"""Cells with regularisation in training, whose masks are extra inputs.

So they run in the kernels, and their gradients are derived like any cell's. `fastrnn.layers` and Keras draw the masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from fastrnn.cells import where
from fastrnn.cells.definition import Cell


@dataclass
class Dropped:
    """U.g with a mask applied to its operand."""

    matrix: Any
    mask: Any

    def __matmul__(self, operand: Any) -> Any:
        return self.matrix @ (self.mask * operand)


@cache
def masked(cell: Cell, masks: tuple[str, ...], zoned: tuple[str, ...] = ()) -> Cell:
    """Return the cell with masks of U's operands, and a mask of each `zoned` state, 0 where it keeps its value.

    `masks` names the mask of each product, names may repeat; it is empty without masks.
    """
    names = {mask: free(mask, cell) for mask in masks}
    dropping = dict(zip(cell.products, [names[mask] for mask in masks], strict=bool(masks)))
    zones = {state: free(f"zone_{state}", cell) for state in zoned}

    def equations(x: Any, U: Any, s: Any, *given: Any) -> tuple[Any, ...]:
        e = given[-1]  # given[0] is p, if the cell has parameters
        if dropping:
            U = SimpleNamespace(**{g: Dropped(getattr(U, g), getattr(e, mask)) for g, mask in dropping.items()})
        after = zip(cell.states, cell.equations(x, U, s, given[0], e), strict=True)
        return tuple([where(getattr(e, zones[n]) > 0, a, getattr(s, n)) if n in zones else a for n, a in after])

    inputs = (*cell.inputs, *names.values(), *zones.values())
    return derived(cell, "masked", equations, inputs, partial(masked, cell, masks, zoned))


@cache
def averaged(cell: Cell, zoneout: tuple[float, ...]) -> Cell:
    """Return the cell whose states are their expectations under zoneout at these rates."""
    rates = dict(zip(cell.states, zoneout, strict=True))

    def equations(x: Any, U: Any, s: Any, *given: Any) -> tuple[Any, ...]:
        given = given or (None,)  # p and e, if the cell has them
        after = zip(cell.states, cell.equations(x, U, s, given[0], given[-1]), strict=True)
        return tuple([rates[n] * getattr(s, n) + (1 - rates[n]) * a if rates[n] else a for n, a in after])

    return derived(cell, "averaged", equations, cell.inputs, partial(averaged, cell, zoneout))


def free(name: str, cell: Cell) -> str:
    """Return a name that no input of the cell has."""
    while name in cell.inputs:
        name += "_"
    return name


def derived(cell: Cell, kind: str, equations: Any, inputs: tuple[str, ...], maker: Any) -> Cell:
    equations.__name__ = f"{cell.name}_{kind}"
    made = Cell(equations, cell.gates, cell.states, cell.parameters, inputs, options=cell.options)
    made.maker = maker
    return made
