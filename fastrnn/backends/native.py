"""The compiled backend: C kernels for each instruction set, in the top-level extension module `_fastrnn`.

Raises ImportError on import where the extension was not built.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import _fastrnn
from fastrnn import checks
from fastrnn.backends import usable_cpus
from fastrnn.call import Backward, Call, DenseCall, Forward, Gradients, Prepared, Sessions, Stage, Stepper
from fastrnn.cells import Cell
from fastrnn.unchanged import changed

name = "native"

_compiled_in = {digest: index for digest, (index, _, _) in _fastrnn.cells().items()}
_isas = _fastrnn.isas()
_isa = next(reversed(_isas))
_fastrnn.set_cpus(usable_cpus())


#: What the compiler is told of an instruction set; others are what their names say.
_CPUS = {"x86-64-v4-bf16": "x86-64-v4", "neon": "generic", "portable": "generic"}


def _compiler() -> Any:
    """`cells.machine`, imported when a cell first needs it: its imports take a seventh of fastrnn's own."""
    return importlib.import_module("fastrnn.cells.machine")


def runs(cell: Cell) -> bool:
    """Whether the kernels have this cell, or a compiler for it."""
    return cell.digest in _compiled_in or _compiler().available()


@functools.cache
def _code(cell: Cell, itemsize: int, isa: str) -> _fastrnn.AnyCell:
    """A cell as the core takes it: its index, or its machine code."""
    if cell.digest in _compiled_in:
        return _compiled_in[cell.digest]
    vector_bytes, fused = _fastrnn.vector(_isas[isa])
    machine = _compiler()
    made = machine.Code(cell.program, machine.Machine(8 * itemsize, vector_bytes, fused), _CPUS.get(isa, isa))
    return _fastrnn.Compiled(_isas[isa], itemsize, cell.program.shape(), made.forward, made.backward, made)


def _in_order(call: Call) -> Call:
    """With U and b_rec in the order of the phases, in which the core wants them; the same call but for rare cells."""
    order = call.cell.order
    if order is None:
        return call
    return call._replace(U=_taken(call.U, order), b_rec=_taken(call.b_rec, order))


def _taken(a: np.ndarray | None, order: Sequence[int]) -> np.ndarray | None:
    """These of the products that are stacked along the first axis."""
    if a is None:
        return None
    return a.reshape(len(order), -1)[list(order)].reshape(a.shape)


def _cell(call: Call, isa: str) -> _fastrnn.AnyCell:
    return _code(call.cell, call.x.itemsize, isa)


def isa_names() -> tuple[str, ...]:
    """The instruction sets that this machine runs, slowest first."""
    return tuple(_isas)


def current_isa() -> str:
    return _isa


def set_isa(name: str) -> None:
    global _isa
    _isa = name


def headers() -> str:
    """The C that files of `fastrnn.to_c` begin with: vectors, functions and products, as in the kernels."""
    return _fastrnn.headers


def build_info() -> dict[str, str]:
    return {"compiler": _fastrnn.compiler}


#: Scratch up to this size is kept per thread from call to call: fresh pages cost as much as the work on them.
_SCRATCH_LIMIT = 64 << 20


class _Scratch(threading.local):
    """Work areas, each in the hands of one call: a signal's handler may make another in the middle of it."""

    kept: np.ndarray | None = None

    def take(self, n: int) -> np.ndarray:
        """At least n uninitialised bytes."""
        memory, self.kept = self.kept, None
        return np.empty(n, np.uint8) if memory is None or memory.size < n else memory

    def give(self, memory: np.ndarray) -> None:
        if memory.size <= _SCRATCH_LIMIT:
            self.kept = memory


_scratch = _Scratch()


#: Of what training forwards left and backward is done with, this much is kept for the next ones, likewise.
_SPARE_LIMIT = 256 << 20
_spare: list[np.ndarray] = []
_spare_lock = threading.RLock()  # a __del__ may come in the middle of anything


def _after_fork() -> None:
    """Another thread may have held the lock at a fork, and there is none in the child to let go of it."""
    global _spare_lock
    _spare_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Saved:
    """What a training forward leaves to backward, laid out for the instruction set that left it."""

    __slots__ = ("_room", "isa", "memory", "seen")

    seen: list[int | None]

    def __init__(self, isa: str, room: np.ndarray, n: int) -> None:
        self.isa, self._room, self.memory = isa, room, room[:n]

    def expect_unchanged(self, call: Call) -> None:
        now = _fastrnn.glance(call.arrays())
        if now != self.seen:
            names = call.cell.arguments
            raise changed(next(name for name, a, b in zip(names, now, self.seen, strict=True) if a != b))

    def __del__(self) -> None:
        with _spare_lock:
            _spare.append(self._room)
            while sum(memory.size for memory in _spare) > _SPARE_LIMIT:
                del _spare[0]


def _memory(n: int) -> np.ndarray:
    """n bytes or some more for a `_Saved`."""
    with _spare_lock:
        fits = [i for i, memory in enumerate(_spare) if n <= memory.size <= 2 * n]
        return _spare.pop(fits[-1]) if fits else _aligned(n)


#: What the kernels align to; see FRNN_ALIGN in fastrnn.h.
_ALIGN = 64


def _astray(memory: np.ndarray) -> int:
    """Bytes from an aligned address to where an array begins."""
    address: int = memory.__array_interface__["data"][0]
    return address % _ALIGN


def _aligned(n: int) -> np.ndarray:
    """n uninitialised bytes. The kernels begin at an aligned address, which then is the first in copies as well."""
    room = np.empty(n + _ALIGN, np.uint8)
    start = -_astray(room) % _ALIGN
    return room[start : start + n]


class _Lent(np.ndarray):
    """The bytes of a `_Saved`, which lives as long as any view of them."""

    saved: _Saved


class _Borrowed(NamedTuple):
    """What backward reads of a `_Saved`, where the bytes are another's."""

    isa: str
    memory: np.ndarray

    def expect_unchanged(self, call: Call) -> None:
        """Who keeps the bytes keeps the arguments, and knows whether they were changed."""


def to_bytes(saved: _Saved) -> np.ndarray:
    lent = saved.memory.view(_Lent)
    lent.saved = saved
    return lent


def from_bytes(memory: np.ndarray, layout: str) -> _Borrowed:
    if _astray(memory):
        given, memory = memory, _aligned(memory.size)
        memory[:] = given
    return _Borrowed(layout, memory)


def forward(calls: Sequence[Call]) -> list[Forward]:
    isa = _isa
    results, jobs = [], []
    for call in calls:
        cell = _cell(call, isa)
        B, widths = call.sizes[1], call.widths
        saved = None
        if call.training:
            if call.clean:
                P, rows = 0 if call.R is None else len(call.R), math.prod(call.x.shape[:-1])
                n = room(call.cell, call.x.dtype, call.sizes[3], P, rows, B)
            else:
                n = _fastrnn.saved_bytes(_isas[isa], cell, call)
            saved = _Saved(isa, _memory(n), n)
            if call.clean:
                saved.memory[:] = 0
        result = Forward(
            call.output(),
            tuple([np.empty((B, width), call.x.dtype) for width in widths]),
            tuple([call.empty(width) if call.return_states else None for width in widths[1:]]),
            saved,
        )
        results.append(result)
        jobs.append((cell, _in_order(call), (result.y, *result.states), result.final, saved and saved.memory))
    _fastrnn.forward(_isas[isa], jobs, _scratch)
    for call, result in zip(calls, results, strict=True):
        if result.saved:
            result.saved.seen = _fastrnn.glance(call.arrays())  # not before: x may be the y of another call
    return results


def layout() -> str:
    return _isa


def xla_handlers() -> dict[str, object]:
    """What XLA calls, in capsules: "forward" and "backward"; src/xla.h has their arguments."""
    return _fastrnn.xla_handlers()


def saved_bytes(call: Call, isa: str) -> int:
    """Room for what a training forward leaves, whatever the lengths."""
    return _fastrnn.saved_bytes(_isas[isa], _cell(call, isa), call)


def room(cell: Cell, dtype: np.dtype, H: int, P: int, rows: Any, B: Any) -> Any:
    """Upper bound of the bytes that a training forward saves, for any lengths.

    Rows are those of all steps together, T * B or a ragged call's; B is the number of sequences, P 0 or the width of R.
    A compiler asks before there is a call, which `saved_bytes` needs; rows and B may be its symbols.
    """
    step, row, once = _room(cell, dtype, H, P, _isa)
    return rows * step + B * row + once


@functools.cache
def _room(cell: Cell, dtype: np.dtype, H: int, P: int, isa: str) -> tuple[int, int, int]:
    """For each row of each step, for each row, and for where arrays begin: rows are all as long as each other."""

    def measured(T: int, B: int) -> int:
        call = Call(
            cell,
            np.broadcast_to(np.zeros(1, dtype), (T, B, 1)),
            np.zeros((cell.G * H, 1), dtype),
            (None,) * len(cell.states),
            U=np.zeros((len(cell.products) * H, P or H), dtype) if cell.products else None,
            p=np.zeros(len(cell.parameters) * H, dtype) if cell.parameters else None,
            R=np.zeros((P, H), dtype) if P else None,
            training=True,
        )
        return saved_bytes(call, isa)

    n = _ALIGN  # of whatever lies on end as aligned as the first
    all_rows = measured(n, n)
    step = (measured(2 * n, n) - all_rows) // n**2
    row = (measured(n, 2 * n) - all_rows) // n - n * step
    return step, row, all_rows - n**2 * step - n * row + 2 * _ALIGN


def numbers(cell: Cell, itemsize: int, isa: str) -> tuple[int, int]:
    """By which programs of XLA know them."""
    return _xla_key(cell, itemsize, isa), _isas[isa]


@functools.cache
def _xla_key(cell: Cell, itemsize: int, isa: str) -> int:
    code = _code(cell, itemsize, isa)
    if isinstance(code, int):
        return code
    code.known_to_xla()
    return code.key


def pack(call: Call, layout: str, packed: np.ndarray | None = None) -> np.ndarray:
    isa, cell = _isas[layout], _cell(call, layout)
    call = _in_order(call)
    if packed is None:
        packed = np.empty(_fastrnn.packed_bytes(isa, cell, call), np.uint8)
    _fastrnn.pack(isa, cell, call, packed)
    return packed


def dense(call: DenseCall) -> np.ndarray:
    y = np.empty((len(call.x), call.features), call.x.dtype)
    _fastrnn.dense(_isas[_isa], call, y, _scratch)
    return y


def pack_dense(call: DenseCall, layout: str, packed: np.ndarray | None = None) -> np.ndarray:
    isa = _isas[layout]
    if packed is None:
        packed = np.empty(_fastrnn.dense_packed_bytes(isa, call), np.uint8)
    _fastrnn.pack_dense(isa, call, packed)
    return packed


def _stages(stages: Sequence[Stage], table: np.ndarray | None) -> _fastrnn.Stages:
    parts: list[list[_fastrnn.Job] | DenseCall] = []
    for stage in stages:
        if isinstance(stage, list):
            absent = (None,) * len(stage[0].init)
            parts.append([(_cell(call, _isa), call, (None,), absent, None) for call in stage])
        else:
            parts.append(stage)
    return _fastrnn.Stages(_isas[_isa], parts, table, _Scratch(), checks, np.empty)


def stepper(
    stages: Sequence[Stage],
    table: np.ndarray | None,
    states: Sequence[np.ndarray],
    B: int,
    flat: Callable[[Any], Any],
) -> Stepper:
    return _fastrnn.Stepper(_stages(stages, table), states, B, flat)


def sessions(
    stages: Sequence[Stage], table: np.ndarray | None, stores: Sequence[np.ndarray], capacity: int
) -> Sessions:
    return _fastrnn.Sessions(_stages(stages, table), stores, capacity, _scratch)


def prepared(calls: Sequence[Call], x_shape: tuple[int, ...], batch_first: bool, every_step: bool) -> Prepared:
    jobs: list[_fastrnn.Job] = []
    for call in calls:
        final = tuple([np.empty((call.sizes[1], width), call.x.dtype) for width in call.widths])
        jobs.append((_cell(call, _isa), call, (call.y,), final, None))
    return _fastrnn.Prepared(_isas[_isa], jobs, _scratch, np.empty, x_shape, batch_first, every_step)


def backward(calls: Sequence[Backward]) -> list[Gradients]:
    for back in calls:
        back.saved.expect_unchanged(back.call)
    results = [_empty_gradients(back.call) for back in calls]
    jobs = [
        (_cell(call, saved.isa), _in_order(call), saved.memory, (dy, *dstates), dfinal, grads)
        for (call, saved, dy, dfinal, dstates), grads in zip(calls, results, strict=True)
    ]
    _fastrnn.backward(_isas[calls[0].saved.isa], jobs, _scratch)
    return [_in_order_again(back.call.cell, grads) for back, grads in zip(calls, results, strict=True)]


def _in_order_again(cell: Cell, grads: Gradients) -> Gradients:
    order = cell.order
    if order is None:
        return grads
    again = np.argsort(order).tolist()
    return grads._replace(dU=_taken(grads.dU, again), db_rec=_taken(grads.db_rec, again))


def _empty_gradients(call: Call) -> Gradients:
    def like(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.empty(array.shape, array.dtype)

    return Gradients(
        dx=call.empty(call.sizes[2]),
        dW=np.empty(call.W.shape, call.W.dtype),
        dU=like(call.U),
        db=like(call.b),
        db_rec=like(call.b_rec),
        dp=like(call.p),
        dinit=tuple([like(state) for state in call.init]),
        de=tuple([call.empty(call.sizes[3]) for _ in call.e]),
        dR=like(call.R),
    )


def activation(name: str, x: np.ndarray) -> np.ndarray:
    """sigmoid or tanh of a contiguous float array, as the kernels of the current instruction set compute it."""
    y = np.empty_like(x)
    _fastrnn.activation(_isas[_isa], name, x, y)
    return y
