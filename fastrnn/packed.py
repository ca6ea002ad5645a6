"""Stacked layers: their weights, packed for the kernels once, and every way to run them.

Arrays here are time-major and already checked, as a `Call` needs them. The states of a stack are one (L*D, B, H) array
per state of the cell, for L layers in D directions, in PyTorch's order: layer by layer, and in each layer by direction.
Parameters, calls and saved data have the same order.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend, BackwardCall, Call, ForwardResult, Gradients, Prepared, empty
from fastrnn.cells import Cell
from fastrnn.merges import MERGES
from fastrnn.types import Array, Arrays
from fastrnn.unchanged import Watched
from fastrnn.weight_dtypes import WEIGHT_DTYPES

#: parameters of one layer and direction, by their names in a `Call`
Part = dict[str, Array]

#: (L*D, B, H) for each state of the cell, or None if absent
States = Sequence[Array | None]

#: the kind of a call: the shape of x, and threads
Kind = tuple[tuple[int, ...], int]


class Masks(NamedTuple):
    """Random masks that regularise one call in training."""

    U: Array | None = None  #: multiplied with U elementwise
    e: Arrays = ()  #: (T, B, H), extra inputs of the tape's cell, after those of the stack's cell


@dataclass
class Tape:
    """Options and saved data of a training forward."""

    backend: Backend
    #: (T, B, features) for each layer but the top: dropout masks of its y; empty without dropout
    masks: Sequence[Array] = ()
    checkpoint: int | None = None  #: as in `Call`; so is `clean`
    cell: Cell | None = None  #: runs in place of the stack's cell, with the same weights and states
    drawn: Sequence[Masks] = ()  #: one per call, or empty
    clean: bool = False
    calls: list[Call] = field(default_factory=list)
    saved: list[Any] = field(default_factory=list)
    final: list[Arrays] = field(default_factory=list)  #: for every call, one (B, H) per state
    #: called with the arguments of each layer's backward, from the top layer down
    watch: Callable[[list[BackwardCall]], None] = lambda asked: None

    def add(self, calls: list[Call], results: list[ForwardResult]) -> None:
        self.calls += calls
        self.saved += [result.saved for result in results]
        self.final += [result.final for result in results]


class StackGradients(NamedTuple):
    """Result of a backward; gradients shaped like their arguments."""

    dx: Array
    dinit: Arrays | None  #: None if there was no initial state
    dparts: list[Part]
    de: Arrays  #: (T, B, H) for each extra input


class Kept(NamedTuple):
    """An inference call described to the kernels once, valid until the stack changes."""

    kind: Kind
    packed: list[Any]  #: its parameters, packed for its backend and instruction set
    run: Prepared | None  #: None until a second call of the same kind


class Packing(NamedTuple):
    """Packed parameters, and the arrays that they were made from."""

    arrays: Sequence[Array | None]
    watched: Watched
    packed: Any

    def current(self, arrays: Sequence[Array | None]) -> bool:
        same = arrays is self.arrays or all(map(operator.is_, arrays, self.arrays))
        return same and self.watched.unchanged()


class Packings:
    """Parameters packed for each backend and layout.

    ``pack(backend, layout, old)`` packs them; it overwrites `old` unless that is None. `arrays` are those to compare
    with what was packed.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Packing] = {}
        self._streamed: set[tuple[str, str]] = set()  # keys used by streams

    def get(
        self,
        backend: Backend,
        pack: Callable[[Backend, str, Any], Any],
        arrays: Sequence[Array | None],
        changed: Callable[[], None],
        streamed: bool = False,
    ) -> Any:
        """Return the parameters packed for a backend, after calling `changed`, which calls `update`, if they changed.

        Those of a stream are overwritten by every `update`.
        """
        key = backend.name, backend.layout()
        if streamed:  # before packing, so that an update in another thread overwrites the result and does not drop it
            self._streamed.add(key)
        found = self._found.get(key)
        if found is not None and not found.current(arrays):
            changed()
            found = self._found.get(key)
        if found is None:  # another thread may have packed first: use its result, which updates overwrite
            found = self._found.setdefault(key, packing(pack, backend, key[1], arrays))
        return found.packed

    def update(self, pack: Callable[[Backend, str, Any], Any], arrays: Sequence[Array | None]) -> None:
        """Repack what streams use, and drop the rest."""
        for key, old in list(self._found.items()):
            if key in self._streamed:
                self._found[key] = packing(pack, backends.load(key[0]), key[1], arrays, old.packed)
            else:
                self._found.pop(key, None)


def packing(
    pack: Callable[[Backend, str, Any], Any],
    backend: Backend,
    layout: str,
    arrays: Sequence[Array | None],
    old: Any = None,
) -> Packing:
    watched = Watched([a for a in arrays if a is not None])  # before packing, so that concurrent writes are changes
    return Packing(arrays, watched, pack(backend, layout, old))


class PackedStack:
    """L layers in D directions.

    Parameters
    ----------
    cell : Cell
    parts : list of dict
        W (G*H, I), U (G*H, H), R (P, H) if h is projected, and the cell's other parameters, of each layer and
        direction. They are not copied: call `invalidate` after changing them. Calls with a tape read them directly.
        The stack itself puts an `Int8Matrix` in place of each matrix if `weight_dtype` says so.
    directions : tuple of bool
        Whether each direction runs in reverse.
    merge : key of MERGES
        How the outputs of two directions are combined.
    weight_dtype : key of WEIGHT_DTYPES, optional
        Round W, U and R to it, and pack them as such.
    inference : Cell, optional
        Runs in place of the cell without a tape, with the same weights, states and inputs.
    watched : bool
        Whether inference compares the parameters with what was packed, as `Watched` does.
    """

    def __init__(
        self,
        cell: Cell,
        parts: list[Part],
        directions: tuple[bool, ...],
        *,
        merge: str | None = "concat",
        weight_dtype: str | None = None,
        inference: Cell | None = None,
        watched: bool = False,
    ) -> None:
        self.inference = inference or cell
        self.cell, self.parts, self.directions = cell, parts, directions
        self.merge, self.weight_dtype, self._watched = merge, weight_dtype, watched
        self.num_layers = len(parts) // len(directions)
        self.input_size, self.hidden_size = parts[0]["W"].shape[1], parts[0]["W"].shape[0] // cell.G
        #: Units of each state, the first of which is the output.
        self.widths = (self.hidden_size,) * len(cell.states)
        if "R" in parts[0]:
            self.widths = (len(parts[0]["R"]), *self.widths[1:])
        self.dtype = parts[0]["W"].dtype
        self._packings = Packings()
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
        reads_previous: bool = False,
        tape: Tape | None = None,
        e: Arrays = (),
        fixed: tuple[bool, ...] = (),
    ) -> Call:
        """Return the call of layer and direction number i, with initial states (B, H); for training with a tape."""
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
            weight_dtype=self.weight_dtype,
            reads_previous=reads_previous,
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
        """Return y, merged, and the final states; in training, save what backward needs in the tape.

        Every layer and direction gets the same extra inputs.

        With `batch_first` y is (B, T, ...) in memory, but its shape is time-major. The calls are ragged if x is (N, I).
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
                    reads_previous=len(calls) > d,
                    tape=tape,
                    e=e,
                    fixed=fixed,
                )
                calls.append(call)
            if D > 1 or masks or top:  # other layers run in one backend call
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
        """Return every gradient, given those of `forward`'s outputs, each of which may be None."""
        D = len(self.directions)
        found: list[Gradients] = []
        for first in range(len(self.parts) - D, -1, -D):
            own = range(first, first + D)
            dys = [dy] * D
            if D > 1 and dy is not None:
                dys = list(MERGES[self.merge].backward(dy, *[tape.calls[i].output() for i in own]))
            dstates = [tuple([None if d is None else d[i] for d in dfinal]) for i in own]
            asked = [BackwardCall(tape.calls[i], tape.saved[i], *ds) for i, *ds in zip(own, dys, dstates, strict=True)]
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
        """Approximate number of floats per row that one step needs."""
        floats: int = self.input_size + 8 * self.hidden_size * self.num_layers
        return floats

    def stage(self, backend: Backend, B: int, threads: int) -> list[Call]:
        """Return the calls of one step of B sequences; one direction only.

        They keep the instruction set in use, and follow the parameters through every `invalidate`.
        """
        packed = self._packings.get(backend, self._pack, self._arrays, self.invalidate, streamed=True)
        between = [stand_in(1, B, self.widths[0], self.dtype)] * (self.num_layers - 1)
        xs = [stand_in(1, B, self.input_size, self.dtype), *between]
        return [self.call(i, x, packed=packed[i], threads=threads) for i, x in enumerate(xs)]

    def prepared(self, kind: Kind) -> Prepared | None:
        """Return the prepared call of this kind, if there is one and the parameters have not changed since."""
        kept = self._kept
        return kept.run if kept is not None and kept.kind == kind and kept.packed is self.packed()[1] else None

    def prepare(self, kind: Kind, batch_first: bool, every_step: bool) -> None:
        """Record an inference call without lengths and resets; the second of a kind is prepared.

        x is (T, I), (T, B, I), or (B, T, I) if `batch_first`; unless `every_step`, y is only the last h. Bidirectional
        stacks are not prepared.
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
            calls = [
                self.call(i, x, packed=packed[i], y=y, threads=threads, reads_previous=i > 0) for i, x in enumerate(xs)
            ]
            self._kept = kept._replace(run=backend.prepared(calls, shape, batch_first, every_step))

    def packed(self) -> tuple[Backend, list[Any]]:
        """Return the backend in use and each layer and direction's parameters packed for it."""
        backend = backends.of(self.inference)
        return backend, self._packings.get(backend, self._pack, self._arrays, self.invalidate)

    def _pack(self, backend: Backend, layout: str, packed: list[Any] | None) -> list[Any]:
        packed = packed or [None] * len(self.parts)
        shapes = [(0, 1, part["W"].shape[1]) for part in self.parts]
        calls = [self.call(i, np.empty(shape, self.dtype)) for i, shape in enumerate(shapes)]
        return [backend.pack(call, layout, old) for call, old in zip(calls, packed, strict=True)]

    def invalidate(self) -> None:
        """Repack the parameters after they were changed in place. Existing steppers use the new ones."""
        if self.weight_dtype is not None:
            rounded = WEIGHT_DTYPES[self.weight_dtype]
            for part in self.parts:
                for key in part.keys() & {"W", "U", "R"}:  # only the matrices are worth rounding
                    part[key] = rounded(part[key])
        own = [a for part in self.parts for a in part.values() if isinstance(a, np.ndarray)]
        self._arrays = own if self._watched else []
        self._packings.update(self._pack, self._arrays)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packings": Packings(), "_kept": None}


def joined(states: Sequence[Any]) -> Arrays:
    """Stack the states of all calls: (L*D, B, H) for each state."""
    if len(states) == 1:
        return tuple([s[None] for s in states[0]])
    return tuple([np.stack(s) for s in zip(*states, strict=True)])


def stand_in(T: int, B: int, features: int, dtype: Any) -> Array:
    """Return a (T, B, features) placeholder that has the memory of one row."""
    return np.lib.stride_tricks.as_strided(np.zeros(features, dtype), (T, B, features), (0, 0, dtype.itemsize))
