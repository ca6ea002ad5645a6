"""The cells that can be compared: fastrnn's by name, a user's as "module:name"."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import CELLS

#: the default cells: without the RNN's other activations, which cost the same
USUAL = [name for name in CELLS if not name.startswith("rnn_") or name == "rnn_tanh"]


class Cell(NamedTuple):
    """A cell's properties that a problem and the peers need."""

    name: str
    gates: tuple[str, ...]
    products: tuple[str, ...]  #: the gates with a part of U
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    family: str  #: the prefix of fastrnn's functions, and of layers of other libraries
    options: dict[str, Any]  #: the option that selects it in its family
    own: Any = None  #: the object that `fastrnn.cell` made from a user's equations


def find(name: str) -> Cell:
    """Return the cell; raise KeyError, ImportError or AttributeError if there is none."""
    module, _, attribute = name.rpartition(":")
    cell = getattr(importlib.import_module(module), attribute) if module else CELLS[name]
    names = (cell.gates, cell.products, cell.states, cell.parameters, cell.inputs)
    return Cell(name, *names, cell.family, cell.options, cell if module else None)


class Factor(NamedTuple):
    """`U.g`."""

    gate: str
    product: Callable[[str, Any], Any]

    def __matmul__(self, v: Any) -> Any:
        return self.product(self.gate, v)


class Steps:
    """A cell's equations on a framework's arrays, as its users would write them: with as few products as possible.

    Gates whose parts of U multiply the same array share a product. A first call of the equations, on arrays from
    `array` (a new one each time), determines which. `equations` are as `fastrnn.cell` takes them.
    """

    def __init__(self, cell: Cell, equations: Callable[..., Any], array: Callable[[], Any]) -> None:
        self.cell, self.equations = cell, equations
        seen: dict[int, tuple[Any, list[str]]] = {}

        def note(gate: str, v: Any) -> Any:
            seen.setdefault(id(v), (v, []))[1].append(gate)  # keep v alive, because its id identifies it
            return array()

        x, state, p, e = ([array() for _ in names] for names in (cell.gates, cell.states, cell.parameters, cell.inputs))
        self._call(note, x, state, p, e)
        self.groups = [sorted(gates, key=cell.products.index) for _, gates in seen.values()]

    def _call(self, product: Callable[[str, Any], Any], *arrays: Any) -> tuple[Any, ...]:
        names = (self.cell.gates, self.cell.states, self.cell.parameters, self.cell.inputs)
        x, s, *others = (SimpleNamespace(**dict(zip(*pair, strict=True))) for pair in zip(names, arrays, strict=True))
        given = [one for one in others if vars(one)]
        U = SimpleNamespace(**{gate: Factor(gate, product) for gate in self.cell.products})
        found = self.equations(x, U, s, *given)
        return found if isinstance(found, tuple) else (found,)

    def parts(self, w: dict[str, Any]) -> list[tuple[Any, Any]]:
        """Return each group's rows of U (n*H, H) and b_rec (n*H,)."""
        H = len(w["W"]) // len(self.cell.gates)
        rows = [np.hstack([np.arange(H) + H * self.cell.products.index(gate) for gate in g]) for g in self.groups]
        # contiguous rows are a slice, which copies nothing
        at = [slice(r[0], r[-1] + 1) if r[-1] - r[0] + 1 == len(r) else r for r in rows]
        return [(w["U"][some], w["b_rec"][some]) for some in at]

    def step(self, x: Any, state: Any, by_U: list[Callable[[Any], Any]], p: Any, e: Any) -> tuple[Any, ...]:
        """Return the next states from arrays (B, H) of each gate, state, parameter and extra input.

        ``by_U[k](v)`` is the k-th group's U v + b_rec, gate by gate.
        """
        made: dict[str, Any] = {}

        def product(gate: str, v: Any) -> Any:
            if gate not in made:
                k = next(k for k, group in enumerate(self.groups) if gate in group)
                made.update(zip(self.groups[k], by_U[k](v), strict=True))
            return made[gate]

        return self._call(product, x, state, p, e)
