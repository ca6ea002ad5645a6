"""A stack of layers on arrays that are someone else's: what stands between tensors and the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend, Call
from fastrnn.cells import CELLS, Array, Arrays
from fastrnn.checks import rows
from fastrnn.layers.options import MERGES
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.tape import Tape, total
from fastrnn.layers.weights import NAMES


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
        return ["W", "U", *biases, *(("p",) if CELLS[self.cell].parameters else ())]

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional


@dataclass
class MaskedTape(Tape):
    """A tape whose dropout is drawn elsewhere."""

    given: Sequence[Array] = field(default_factory=list)  #: for each layer that drops out, from below

    def dropped(self, y: Array) -> Array:
        self.masks.append(self.given[len(self.masks)])
        return y * self.masks[-1]


class Kept(NamedTuple):
    """What a training forward keeps for its backward, beside its arguments, as plain arrays."""

    inner: list[Array]  #: (T, B, D*H), what each layer but the first reads
    saved: list[Array]  #: bytes of each layer and direction
    key: str  #: the backend's name and its layout's: only their backward can read `saved`


class Stack(Recurrent):
    """Layers of these parameters: (G*H, I), (G*H, H), ... of each layer and direction in PyTorch's order.

    x is (T, B, I), or (B, T, I) with `batch_first`, here and below; states are one (L*D, B, H) array for each of the
    cell's; masks are what each layer's y but the last's is multiplied with, (T, B, D*H), or none.
    """

    def __init__(self, setting: Setting, parameters: Sequence[Array]) -> None:
        keys = setting.keys
        own = [np.ascontiguousarray(a) for a in parameters]
        #: whether the parameters are read where they are, so that their changes are seen
        self.in_place = all([a is b for a, b in zip(own, parameters, strict=True)])
        self.addresses = [a.__array_interface__["data"][0] for a in parameters]
        self._cell = CELLS[setting.cell]
        self._packed, self._streamed = {}, set()
        self._weights = [
            dict.fromkeys(NAMES) | dict(zip(keys, own[i : i + len(keys)], strict=True))
            for i in range(0, len(own), len(keys))
        ]
        self._grads = [f"d{key}" for key in keys]
        self.bias, self.bidirectional, self.batch_first = setting.bias, setting.bidirectional, setting.batch_first
        self.input_size, self.hidden_size = own[0].shape[1], own[1].shape[1]
        self.num_layers = len(self._weights) // setting.directions
        self.dtype = own[0].dtype

    def infer(self, x: Array, init: Sequence[Array], lengths: Array | None, threads: int) -> Arrays:
        """y and each final state, by weights that are packed once."""
        x, states, layout = self._read(x, init)
        options = {"lengths": lengths, "threads": threads}
        y, final = self._given(self._run(x, states, options, layout), layout)
        return (y, *final) if isinstance(final, tuple) else (y, final)

    def train(
        self, x: Array, init: Sequence[Array], lengths: Array | None, masks: Sequence[Array], threads: int
    ) -> tuple[Arrays, Kept]:
        """The same, by weights that change every time, with dropout between layers, and what `back` needs."""
        x, states, layout = self._read(x, init)
        backend = backends.current()
        tape = MaskedTape(backend, self._merge, bool(masks), None, layout, given=masks)
        options = {"lengths": lengths, "threads": threads, "training": True}
        y, final = self._given(self._run(x, states, options, layout, tape), layout)
        D = tape.directions
        kept = Kept([call.x for call in tape.calls[D::D]], [backend.to_bytes(s) for s in tape.saved], key(backend))
        return ((y, *final) if isinstance(final, tuple) else (y, final)), kept

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
        x, states, layout = self._read(x, init)
        backend, isa = keyed(kept.key)
        tape = Tape(backend, self._merge, bool(masks), None, layout, masks=list(masks))
        tape.saved = [backend.from_bytes(memory, isa) for memory in kept.saved]
        D = tape.directions
        for i in range(len(self._weights)):
            read = kept.inner[i // D - 1] if i >= D else x
            state = None if states is None else tuple([s[i] for s in states])
            tape.calls.append(self._call(i, read, state, lengths=lengths, threads=threads, training=True))
        if dy is not None:
            dy = rows(dy.swapaxes(0, 1) if layout[1] else dy)
        finals = [None if d is None else np.ascontiguousarray(d) for d in dfinal]
        each = [tuple([None if d is None else d[i] for d in finals]) for i in range(len(tape.calls))]
        dys = [dy] if D == 1 else tape.parted(dy, [call.output() for call in tape.calls[-D:]])
        grads = tape.backward(dys, each)
        dx = total([g.dx for g in grads[:D]])
        dinit = [np.stack(ds) for ds in zip(*[g.dinit for g in grads], strict=True)] if init else []
        return [
            dx.swapaxes(0, 1) if layout[1] else dx,
            *dinit,
            *[getattr(g, name) for g in grads for name in self._grads],
        ]

    @property
    def _merge(self) -> Any:
        return MERGES["concat"] if self.bidirectional else None

    def _read(self, x: Array, init: Sequence[Array]) -> tuple[Array, Arrays | None, tuple[bool, bool]]:
        """x, time-major, and the states, as the kernels read them; and how the caller lays things out."""
        states = tuple([np.ascontiguousarray(s) for s in init]) if init else None
        return rows(x.swapaxes(0, 1) if self.batch_first else x), states, (False, self.batch_first)


class CleanStack(Stack):
    """One whose training leaves no byte of what it keeps undefined."""

    def _call(self, *arguments: Any, **options: Any) -> Call:
        return super()._call(*arguments, **options)._replace(clean=True)


def key(backend: Backend) -> str:
    return f"{backend.name} {backend.layout()}"


def keyed(key: str) -> tuple[Backend, str]:
    name, _, layout = key.partition(" ")
    return backends.load(name), layout
