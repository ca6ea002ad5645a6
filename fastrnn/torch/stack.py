"""A stack of layers on arrays that are someone else's: what stands between tensors and the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend
from fastrnn.cells import CELLS, Array, Arrays
from fastrnn.checks import rows
from fastrnn.packed import PackedStack, Tape


class Setting(NamedTuple):
    """What sizes of weights do not say."""

    cell: str  #: a name in `cells.CELLS`
    bias: bool
    bidirectional: bool
    batch_first: bool

    @property
    def keys(self) -> list[str]:
        """Parameters of each layer and direction, by their names in a call."""
        biases = ("b", "b_rec") if self.bias else ()
        return ["W", "U", *biases, *(("p",) if CELLS[self.cell].peepholes else ())]

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional


class Kept(NamedTuple):
    """What a training forward keeps for its backward, beside its arguments, as plain arrays."""

    inner: list[Array]  #: (T, B, D*H), what each layer but the first reads
    saved: list[Array]  #: bytes of each layer and direction
    key: str  #: the backend's name and its layout's: only their backward can read `saved`


class Stack:
    """Layers of these parameters: (G*H, I), (G*H, H), ... of each layer and direction in PyTorch's order.

    x is (T, B, I), or (B, T, I) with `batch_first`, here and below; states are one (L*D, B, H) array for each of the
    cell's; masks are what each layer's y but the last's is multiplied with, (T, B, D*H), or none.

    Attributes
    ----------
    in_place : bool
        Whether the parameters are read where they are, so that their changes are seen.
    addresses : list of int
        Of the parameters.
    """

    def __init__(self, setting: Setting, parameters: Sequence[Array]) -> None:
        keys, directions = setting.keys, (False, True)[: setting.directions]
        own = [np.ascontiguousarray(a) for a in parameters]
        self.in_place = all([a is b for a, b in zip(own, parameters, strict=True)])
        self.addresses = [a.__array_interface__["data"][0] for a in parameters]
        self.batch_first = setting.batch_first
        parts = [dict(zip(keys, own[i : i + len(keys)], strict=True)) for i in range(0, len(own), len(keys))]
        self.layers = PackedStack(CELLS[setting.cell], parts, directions)

    def infer(self, x: Array, init: Sequence[Array], lengths: Array | None, threads: int) -> Arrays:
        """y and each final state, by weights that are packed once."""
        return self._run(x, init, lengths, threads, None)

    def train(
        self,
        x: Array,
        init: Sequence[Array],
        lengths: Array | None,
        masks: Sequence[Array],
        threads: int,
        clean: bool = False,
    ) -> tuple[Arrays, Kept]:
        """The same, by weights that change every time, with dropout between layers, and what `back` needs.

        With `clean` no byte of that is left undefined.
        """
        tape = Tape(backends.current(), masks, clean=clean)
        outputs = self._run(x, init, lengths, threads, tape)
        D = len(self.layers.directions)
        inner, saved = [call.x for call in tape.calls[D::D]], [tape.backend.to_bytes(s) for s in tape.saved]
        return outputs, Kept(inner, saved, key(tape.backend))

    def _run(
        self, x: Array, init: Sequence[Array], lengths: Array | None, threads: int, tape: Tape | None
    ) -> Arrays:
        x, states = self._time_major(x), contiguous(init)
        y, final = self.layers.forward(
            x, states, lengths, threads=threads, batch_first=self.batch_first, tape=tape
        )
        return self._turned(y), *final

    def back(
        self,
        x: Array,
        init: Sequence[Array],
        lengths: Array | None,
        masks: Sequence[Array],
        kept: Kept,
        dy: Array | None,
        dfinal: Sequence[Array | None],
        threads: int,
    ) -> list[Array]:
        """dx, that of each initial state, and that of each parameter."""
        backend, layout = keyed(kept.key)
        tape = Tape(backend, masks, saved=[backend.from_bytes(memory, layout) for memory in kept.saved])
        read, states, D = [self._time_major(x), *kept.inner], contiguous(init), len(self.layers.directions)
        for i in range(len(self.layers.parts)):
            own = None if states is None else tuple([s[i] for s in states])
            tape.calls.append(self.layers.call(i, read[i // D], own, lengths=lengths, threads=threads, tape=tape))
        dy = None if dy is None else self._time_major(dy)
        dstates = [None if d is None else np.ascontiguousarray(d) for d in dfinal]
        dx, dinit, dparts = self.layers.backward(tape, dy, dstates)
        return [self._turned(dx), *(dinit or ()), *[d for part in dparts for d in part.values()]]

    def _turned(self, a: Array) -> Array:
        return a.swapaxes(0, 1) if self.batch_first else a

    def _time_major(self, a: Array) -> Array:
        """As the kernels read it."""
        return rows(self._turned(a))


def contiguous(init: Sequence[Array]) -> Arrays | None:
    return tuple([np.ascontiguousarray(s) for s in init]) if init else None


def key(backend: Backend) -> str:
    return f"{backend.name} {backend.layout()}"


def keyed(key: str) -> tuple[Backend, str]:
    name, _, layout = key.partition(" ")
    return backends.load(name), layout
