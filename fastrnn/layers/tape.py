"""What a stack of recurrent layers keeps in training, and the way back down the stack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrnn.call import Backend, Backward, Call, Forward, Gradients
from fastrnn.cells import Array, Arrays
from fastrnn.layers import dropout
from fastrnn.layers.options import Merge

#: one (B, H) for each state of the cell, or None where nothing is known of it
States = tuple[Array | None, ...]

#: whether the caller's arrays are unbatched, and whether they are batch-first
Layout = tuple[bool, bool]


@dataclass
class Tape:
    """Calls stand in PyTorch's order: layer by layer, and in each the directions."""

    backend: Backend
    merge: Merge | None  #: of two directions
    rate: float  #: of dropout between layers
    rng: np.random.Generator | None  #: of dropout, if there is any
    layout: Layout
    calls: list[Call] = field(default_factory=list)
    saved: list[Any] = field(default_factory=list)
    final: list[Arrays] = field(default_factory=list)
    masks: list[Array] = field(default_factory=list)  #: (T, B, features) for each layer that drops out, from below

    @property
    def directions(self) -> int:
        return 1 if self.merge is None else 2

    def add(self, calls: list[Call], results: list[Forward]) -> None:
        self.calls += calls
        self.saved += [result.saved for result in results]
        self.final += [result.final for result in results]

    def dropped(self, y: Array) -> Array:
        """y with some values dropped out."""
        self.masks.append(dropout.mask(y.shape, self.rate, self.rng, y.dtype))
        return y * self.masks[-1]

    def parted(self, dy: Any, directions: list[Array]) -> list[Array | None]:
        """The gradient of what the directions gave, from that of what became of it."""
        if dy is None or self.merge is None:
            return [dy] * self.directions
        return list(self.merge.backward(dy, *directions))

    def backward(self, dys: list[Array | None], dfinal: list[States]) -> list[Gradients]:
        """Every call's gradients, from those of the top's directions and of every call's final states.

        The dx of the first layer's calls is the caller's to add up.
        """
        D = self.directions
        found: list[Gradients] = []
        for first in range(len(self.calls) - D, -1, -D):
            own = slice(first, first + D)
            given = zip(self.calls[own], self.saved[own], dys, dfinal[own], strict=True)
            grads = self.backend.backward([Backward(*one) for one in given])
            found = grads + found
            if first:
                dx = total([g.dx for g in grads])
                if self.masks:
                    dx = dx * self.masks[first // D - 1]
                dys = self.parted(dx, [call.output() for call in self.calls[first - D : first]])
        return found


def total(gradients: list[Array]) -> Array:
    """The gradient of what one direction reads, or both."""
    return gradients[0] if len(gradients) == 1 else gradients[0] + gradients[1]


def added(a: Array | None, b: Array | None) -> Array | None:
    """The sum of two gradients, None being 0."""
    if a is None or b is None:
        given = b if a is None else a
        return None if given is None else np.ascontiguousarray(given)
    return a + b
