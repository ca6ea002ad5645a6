"""Layers stacked on one another: their weights, packed for the kernels once, and every way to run them.

Arrays alone, time-major and as a `Call` wants them: what a user gave has been checked above. States of the whole stack
are one (L*D, B, H) array for each state of the cell, L layers in D directions, in PyTorch's order of them: layer by
layer, and in each the directions. So stand parameters, calls and what is kept of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend, Backward, Call, Forward, Gradients, Prepared, empty
from fastrnn.cells import Array, Arrays, Cell
from fastrnn.merges import MERGES

#: parameters of one layer and direction, by their names in a `Call`
Part = dict[str, Array]

#: (L*D, B, H) for each state of the cell, or None where nothing is known of it
States = Sequence[Array | None]

#: what calls of one kind have in common: the shape of x, and threads
Kind = tuple[tuple[int, ...], int]


class Masks(NamedTuple):
    """What one call is regularised by in training."""

    U: Array | None = None  #: what U is multiplied with, shaped like it
    e: Arrays = ()  #: (T, B, H), extra inputs of the tape's cell after those of the stack's


@dataclass
class Tape:
    """What a training forward is told and keeps."""

    backend: Backend
    #: (T, B, features) for each layer but the top: what its y is multiplied with. None without dropout
    masks: Sequence[Array] = ()
    checkpoint: int | None = None  #: as a `Call` has it, and so has `clean`
    cell: Cell | None = None  #: what runs in place of the stack's cell, whose weights and states it has
    drawn: Sequence[Masks] = ()  #: of every call, if not empty
    clean: bool = False
    calls: list[Call] = field(default_factory=list)
    saved: list[Any] = field(default_factory=list)
    final: list[Arrays] = field(default_factory=list)  #: one (B, H) for each state, of every call
    #: takes what the backward of each layer's directions is asked, as it comes down the stack
    watch: Callable[[list[Backward]], None] = lambda asked: None

    def add(self, calls: list[Call], results: list[Forward]) -> None:
        self.calls += calls
        self.saved += [result.saved for result in results]
        self.final += [result.final for result in results]


class StackGradients(NamedTuple):
    """What a backward gives, shaped like what it belongs to."""

    dx: Array
    dinit: Arrays | None  #: None where there was no initial state
    dparts: list[Part]
    de: Arrays  #: (T, B, H) for each extra input


class Kept(NamedTuple):
    """A call of inference that was described to the kernels once, for as long as nothing of it changes."""

    kind: Kind
    packed: list[Any]  #: the parameters that it reads, packed for the backend and instruction set that it runs on
    run: Prepared | None  #: None until the same kind of call comes again


class PackedStack:
    """L layers in D directions.

    Parameters
    ----------
    cell : Cell
    parts : list of dict
        W (G*H, I), U (G*H, H), R (P, H) where h is projected, and what else the cell takes, of each layer and
        direction. They are not copied: whoever changes them says so by `invalidate`, and a call that was given a tape
        reads them as they are.
    directions : tuple of bool
        Whether each of them runs in reverse.
    merge : key of MERGES
        What becomes of two directions' outputs.
    bf16 : bool
        Round W and U to bfloat16, in place, and pack them as such.
    inference : Cell, optional
        What runs in place of the cell where there is no tape, with the same weights, states and inputs.
    """

    def __init__(
        self,
        cell: Cell,
        parts: list[Part],
        directions: tuple[bool, ...],
        *,
        merge: str | None = "concat",
        bf16: bool = False,
        inference: Cell | None = None,
    ) -> None:
        self.inference = inference or cell
        self.cell, self.parts, self.directions = cell, parts, directions
        self.merge, self.bf16 = merge, bf16
        self.num_layers = len(parts) // len(directions)
        self.input_size, self.hidden_size = parts[0]["W"].shape[1], parts[0]["W"].shape[0] // cell.G
        #: Units of each state, the first of which is the output.
        self.widths = (self.hidden_size,) * len(cell.states)
        if "R" in parts[0]:
            self.widths = (len(parts[0]["R"]), *self.widths[1:])
        self.dtype = parts[0]["W"].dtype
        self._packed: dict[tuple[str, str], list[Any]] = {}
        self._streamed: set[tuple[str, str]] = set()
        self._kept: Kept | None = None
        self.invalidate()

    def call(
        self,
        i: int,
        x: Array,
        init: tuple[Array | None, ...] | None = None,
        *,
        packed: Any = None,
        y: Array | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        threads: int = 1,
        follows: bool = False,
        tape: Tape | None = None,
        e: Arrays = (),
        fixed: tuple[bool, ...] = (),
    ) -> Call:
        """The call of layer and direction number i, whose initial states are (B, H); a training one with a tape."""
        parameters: dict[str, Any] = self.parts[i]
        if tape is not None and tape.drawn:
            drawn = tape.drawn[i]
            e, fixed = (*e, *drawn.e), (*fixed, *[False] * len(drawn.e))
            if drawn.U is not None:
                parameters = parameters | {"U": parameters["U"] * drawn.U}
        return Call(
            cell=self.inference if tape is None else tape.cell or self.cell,
            x=x,
            init=init or (None,) * len(self.cell.states),
            lengths=lengths,
            resets=resets,
            reverse=self.directions[i % len(self.directions)],
            training=tape is not None,
            checkpoint=None if tape is None else tape.checkpoint,
            threads=threads,
            packed=packed,
            y=y,
            bf16=self.bf16,
            follows=follows,
            clean=tape is not None and tape.clean,
            e=e,
            fixed=fixed,
            **parameters,
        )

    def forward(
        self,
        x: Array,
        init: Arrays | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        *,
        threads: int = 1,
        batch_first: bool = False,
        tape: Tape | None = None,
        e: Arrays = (),
        fixed: tuple[bool, ...] = (),
    ) -> tuple[Any, Arrays]:
        """y, merged, and the final states; in training the tape takes what backward needs.

        Every layer and direction gets the same extra inputs.

        With `batch_first` y is (B, T, ...) in memory, and still time-major. An x (N, I) makes the calls ragged.
        """
        backend, packed = self.packed() if tape is None else (tape.backend, [None] * len(self.parts))
        masks = () if tape is None else tape.masks
        D, H = len(self.directions), self.widths[0]
        final: list[Arrays] = []
        calls: list[Call] = []
        for layer in range(self.num_layers):
            top = layer == self.num_layers - 1
            y: Any = empty(x, D * H, batch_first and top)
            for d in range(D):
                i = layer * D + d
                own = None if init is None else tuple([s[i] for s in init])
                part = y[..., d * H : (d + 1) * H] if D > 1 else y
                call = self.call(
                    i,
                    x,
                    own,
                    packed=packed[i],
                    y=part,
                    lengths=lengths,
                    resets=resets,
                    threads=threads,
                    follows=len(calls) > d,
                    tape=tape,
                    e=e,
                    fixed=fixed,
                )
                calls.append(call)
            if D > 1 or masks or top:  # other layers go up together
                results = backend.forward(calls)
                final += [result.final for result in results]
                if tape is not None:
                    tape.add(calls, results)
                calls = []
            if D > 1 and self.merge != "concat":
                y = MERGES[self.merge].forward(y[..., :H], y[..., H:])
            x = y if top or not masks else y * masks[layer]
        return x, joined(final)

    def backward(self, tape: Tape, dy: Any, dfinal: States) -> StackGradients:
        """Every gradient, from those of what `forward` gave, each of which may be None."""
        D = len(self.directions)
        found: list[Gradients] = []
        for first in range(len(self.parts) - D, -1, -D):
            own = range(first, first + D)
            dys = [dy] * D
            if D > 1 and dy is not None:
                dys = list(MERGES[self.merge].backward(dy, *[tape.calls[i].output() for i in own]))
            dstates = [tuple([None if d is None else d[i] for d in dfinal]) for i in own]
            asked = [Backward(tape.calls[i], tape.saved[i], *ds) for i, *ds in zip(own, dys, dstates, strict=True)]
            tape.watch(asked)
            grads = tape.backend.backward(asked)
            found = grads + found
            dy = grads[0].dx if D == 1 else grads[0].dx + grads[1].dx
            if first and tape.masks:
                dy = dy * tape.masks[first // D - 1]
        dinit = None if tape.calls[0].init[0] is None else joined([g.dinit for g in found])
        given = [g.de[: len(self.cell.inputs)] for g in found]  # masks have no gradient
        de = tuple([functools.reduce(np.add, parts) for parts in zip(*given, strict=True)])
        pairs = zip(self.parts, found, strict=True)
        dparts = [{key: getattr(g, f"d{key}") for key in part} for part, g in pairs]
        for dpart, drawn in zip(dparts, tape.drawn, strict=False):
            if drawn.U is not None:
                dpart["U"] *= drawn.U
        return StackGradients(dy, dinit, dparts, de)

    @property
    def floats(self) -> int:
        """Numbers, roughly, that a step holds of each row."""
        floats: int = self.input_size + 8 * self.hidden_size * self.num_layers
        return floats

    def stage(self, backend: Backend, B: int, threads: int) -> list[Call]:
        """What one step of B sequences runs; of one direction.

        It stays with the instruction set in use, and with the parameters through every `invalidate`.
        """
        packed = self.packed(backend)[1]
        self._streamed.add((backend.name, backend.layout()))
        between = [stand_in(1, B, self.widths[0], self.dtype)] * (self.num_layers - 1)
        xs = [stand_in(1, B, self.input_size, self.dtype), *between]
        return [self.call(i, x, packed=packed[i], threads=threads) for i, x in enumerate(xs)]

    def prepared(self, kind: Kind) -> Prepared | None:
        """What runs a call of this kind at once, if `prepare` has seen it, and the parameters are the same since."""
        kept = self._kept
        return kept.run if kept is not None and kept.kind == kind and kept.packed is self.packed()[1] else None

    def prepare(self, kind: Kind, batch_first: bool, every_step: bool) -> None:
        """Notice a call of inference without lengths and resets; the second of a kind is described to the kernels.

        x is (T, I), (T, B, I), or (B, T, I) if `batch_first`; unless `every_step`, y is the last h alone. What has two
        directions is not described.
        """
        if len(self.directions) > 1:
            return
        backend, packed = self.packed()
        kept = self._kept
        if kept is None or kept.kind != kind or kept.packed is not packed:
            self._kept = Kept(kind, packed, None)
        elif kept.run is None:
            shape, threads = kind
            batch_first = batch_first and len(shape) == 3
            T, B = (shape[0], 1) if len(shape) == 2 else (shape[1], shape[0]) if batch_first else shape[:2]
            y = stand_in(T, B, self.widths[0], self.dtype)
            xs = [stand_in(T, B, self.input_size, self.dtype)] + [y] * (self.num_layers - 1)
            calls = [self.call(i, x, packed=packed[i], y=y, threads=threads, follows=i > 0) for i, x in enumerate(xs)]
            self._kept = kept._replace(run=backend.prepared(calls, shape, batch_first, every_step))

    def packed(self, backend: Backend | None = None) -> tuple[Backend, list[Any]]:
        """The backend, that in use if it is None, and the parameters of each layer and direction packed for it."""
        backend = backend or backends.of(self.inference)
        key = (backend.name, backend.layout())
        packed = self._packed.get(key)
        if packed is None:
            # A thread that packed at the same time may have come first: `invalidate` must find what is used.
            packed = self._packed.setdefault(key, self._pack(backend, key[1], [None] * len(self.parts)))
        return backend, packed

    def _pack(self, backend: Backend, layout: str, packed: list[Any]) -> list[Any]:
        shapes = [(0, 1, part["W"].shape[1]) for part in self.parts]
        calls = [self.call(i, np.empty(shape, self.dtype)) for i, shape in enumerate(shapes)]
        return [backend.pack(call, layout, old) for call, old in zip(calls, packed, strict=True)]

    def invalidate(self) -> None:
        """The parameters were changed in place. Steppers go on with the new ones."""
        if self.bf16:
            for part in self.parts:
                for key in part.keys() & {"W", "U", "R"}:  # only the matrices are worth rounding
                    part[key][...] = bfloat16(part[key])
        for backend, layout in list(self._packed):
            if (backend, layout) in self._streamed:
                self._pack(backends.load(backend), layout, self._packed[backend, layout])
            else:
                self._packed.pop((backend, layout), None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}, "_streamed": set(), "_kept": None}


def joined(states: Sequence[Any]) -> Arrays:
    """(L*D, B, H) for each state, from what each call has of them."""
    if len(states) == 1:
        return tuple([s[None] for s in states[0]])
    return tuple([np.stack(s) for s in zip(*states, strict=True)])


def stand_in(T: int, B: int, features: int, dtype: Any) -> Array:
    """A (T, B, features) array that takes the memory of one row."""
    return np.lib.stride_tricks.as_strided(np.zeros(features, dtype), (T, B, features), (0, 0, dtype.itemsize))


def bfloat16(a: Array) -> Array:
    """float32 rounded to the nearest value that bfloat16 has, ties to even; still as float32."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(a), a, rounded.view(np.float32))
