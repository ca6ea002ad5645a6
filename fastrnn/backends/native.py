"""The compiled backend: C kernels for each instruction set, in the top-level extension module `_fastrnn`.

Importing it raises ImportError if the extension was not built.
"""

from __future__ import annotations

import functools
import importlib
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import _fastrnn
from fastrnn import checks
from fastrnn.backends import usable_cpus
from fastrnn.call import BackwardCall, Call, DenseCall, ForwardResult, Gradients, Prepared, Sessions, Stage, Stepper
from fastrnn.cells import Cell
from fastrnn.memory import ALIGN, BYTE, Loan, address, aligned, empty, room_for
from fastrnn.unchanged import changed

name = "native"

_compiled_in = {digest: index for digest, (index, _, _) in _fastrnn.cells().items()}
_isas = _fastrnn.isas()
_isa = next(reversed(_isas))
_fastrnn.set_cpus(usable_cpus())


#: Instruction set -> LLVM CPU name, where they differ.
_CPUS = {"x86-64-v4-bf16": "x86-64-v4", "neon": "generic", "portable": "generic"}


@functools.cache
def _compiler() -> Any:
    """Return `cells.machine`, imported lazily: its imports take a seventh of fastrnn's import time."""
    return importlib.import_module("fastrnn.cells.machine")


def runs(cell: Cell) -> bool:
    """Return whether the kernels include this cell or can compile it."""
    return cell.digest in _compiled_in or _compiler().available()


@functools.cache
def _code(cell: Cell, itemsize: int, isa: str, unfused: bool = False) -> _fastrnn.AnyCell:
    """Return a cell as the core takes it: its index, or its machine code, maybe without fused multiply-adds."""
    if cell.digest in _compiled_in:
        return _compiled_in[cell.digest]
    vector_bytes, fused = _fastrnn.vector(_isas[isa])
    machine = _compiler()
    target = machine.Machine(8 * itemsize, vector_bytes, fused and not unfused)
    made = machine.Code(cell.program, target, _CPUS.get(isa, isa))
    return _fastrnn.Compiled(_isas[isa], itemsize, unfused, cell.program.shape(), made.forward, made.backward, made)


def _in_order(call: Call) -> Call:
    """Return the call with U and b_rec in the order of the phases, as the core needs; most cells need no change, and
    packed weights have been in that order."""
    order = call.cell.order
    if order is None or (call.packed is not None and not call.training):
        return call
    return call._replace(U=_taken(call.U, order), b_rec=_taken(call.b_rec, order))


def _taken(a: np.ndarray | None, order: Sequence[int]) -> np.ndarray | None:
    """Reorder the products stacked along the first axis."""
    if a is None:
        return None
    return a.reshape(len(order), -1)[list(order)].reshape(a.shape)


def _cell(call: Call, isa: str) -> _fastrnn.AnyCell:
    return _code(call.cell, call.x.itemsize, isa, call.weight_dtype == "int8")


def isa_names() -> tuple[str, ...]:
    """Return the instruction sets that this machine supports, slowest first."""
    return tuple(_isas)


def current_isa() -> str:
    return _isa


def set_isa(name: str) -> None:
    global _isa
    _isa = name


def headers(*, int8: bool) -> str:
    """Return the C at the start of files from `fastrnn.to_c`: vectors, functions and products, as in the kernels."""
    return _fastrnn.headers + (_fastrnn.int8_headers if int8 else "")


def build_info() -> dict[str, str]:
    return {"compiler": _fastrnn.compiler}


#: Scratch up to this size is reused per thread: page faults on fresh memory cost as much as the computation.
_SCRATCH_LIMIT = 64 << 20


class _Scratch(threading.local):
    """Scratch memory, exclusive to one call: a signal handler may make another call in the middle of it."""

    kept: np.ndarray | None = None

    def take(self, n: int) -> np.ndarray:
        """Return at least n uninitialised bytes."""
        memory, self.kept = self.kept, None
        return np.empty(n, np.uint8) if memory is None or memory.size < n else memory

    def give(self, memory: np.ndarray) -> None:
        if memory.size <= _SCRATCH_LIMIT:
            self.kept = memory


_scratch = _Scratch()


class _Saved:
    """Data that a training forward saves for backward, laid out for its instruction set."""

    __slots__ = ("isa", "loan", "memory", "seen")

    seen: list[int | None]

    def __init__(self, isa: str, n: int) -> None:
        self.isa, self.loan = isa, Loan(room_for(n), (n,), BYTE)
        self.memory = self.loan.room.memory[:n]

    def expect_unchanged(self, call: Call) -> None:
        now = _fastrnn.fingerprints(call.arrays())
        if now != self.seen:
            names = call.cell.arguments
            raise changed(next(name for name, a, b in zip(names, now, self.seen, strict=True) if a != b))


class _Borrowed(NamedTuple):
    """The saved data for backward when a framework owns the bytes."""

    isa: str
    memory: np.ndarray

    def expect_unchanged(self, call: Call) -> None:
        """No check: the framework that owns the bytes tracks its own arguments."""


def to_bytes(saved: _Saved) -> np.ndarray:
    return np.asarray(saved.loan)


def from_bytes(memory: np.ndarray, layout: str) -> _Borrowed:
    if address(memory) % ALIGN:
        given, memory = memory, aligned(memory.size)
        memory[:] = given
    return _Borrowed(layout, memory)


def forward(calls: Sequence[Call]) -> list[ForwardResult]:
    isa = _isa
    results, jobs = [], []
    for call in calls:
        cell = _cell(call, isa)
        (_, B, _, H), widths = call.sizes, call.widths
        saved = None
        if call.training:
            if call.clean or (call.lengths is None and call.checkpoint is None):
                P, rows = 0 if call.R is None else len(call.R), math.prod(call.x.shape[:-1])
                n = room(call.cell, call.x.dtype, H, P, rows, B)  # takes a fifth of the time of the other
            else:
                n = _fastrnn.saved_bytes(_isas[isa], cell, call)
            saved = _Saved(isa, n)
            if call.clean:
                saved.memory[:] = 0
        y = call.empty(widths[0]) if call.y is None else call.y
        dtype, others = call.x.dtype, widths[1:]
        final = tuple([np.empty((B, width), dtype) for width in widths])
        states = tuple([call.empty(width) for width in others]) if call.return_states else (None,) * len(others)
        results.append(ForwardResult(y, final, states, saved))
        jobs.append((cell, _in_order(call), (y, *states), final, saved and saved.memory))
    _fastrnn.forward(_isas[isa], jobs, _scratch)
    for call, result in zip(calls, results, strict=True):
        if result.saved:
            result.saved.seen = _fastrnn.fingerprints(call.arrays())  # after the calls: x may be another call's y
    return results


def layout() -> str:
    return _isa


def xla_handlers() -> dict[str, object]:
    """Return XLA's handlers "forward" and "backward" as capsules; src/xla.h documents their arguments."""
    return _fastrnn.xla_handlers()


def saved_bytes(call: Call, isa: str) -> int:
    """Return the number of bytes that a training forward saves at most, for any lengths."""
    return _fastrnn.saved_bytes(_isas[isa], _cell(call, isa), call)


def room(cell: Cell, dtype: np.dtype, H: int, P: int, rows: Any, B: Any) -> Any:
    """Return an upper bound of the bytes that a training forward saves, for any lengths.

    `rows` counts those of all steps, T * B or N of a ragged call; B is the number of sequences, P the rows of R or 0.
    Compilers need it before there is a call for `saved_bytes`; rows and B may be symbolic.
    """
    step, row, once = _room(cell, dtype, H, P, _isa)
    return rows * step + B * row + once


@functools.cache
def _room(cell: Cell, dtype: np.dtype, H: int, P: int, isa: str) -> tuple[int, int, int]:
    """Return the bytes per row and step, per row, and the constant rest; linear, because all rows have equal size."""

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

    n = ALIGN  # a multiple of the alignment, so that padding does not vary
    all_rows = measured(n, n)
    step = (measured(2 * n, n) - all_rows) // n**2
    row = (measured(n, 2 * n) - all_rows) // n - n * step
    return step, row, all_rows - n**2 * step - n * row + 2 * ALIGN


def numbers(cell: Cell, itemsize: int, isa: str) -> tuple[int, int]:
    """Return the numbers of the cell and the instruction set in XLA programs."""
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
    U, R = [None if a is None else np.asarray(a) for a in (call.U, call.R)]
    call = _in_order(call._replace(W=np.asarray(call.W), U=U, R=R))
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
    stages: Sequence[Stage], table: np.ndarray | None, states: Sequence[np.ndarray], B: int, flat: Callable[[Any], Any]
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
    return _fastrnn.Prepared(_isas[_isa], jobs, _scratch, empty, x_shape, batch_first, every_step)


def backward(calls: Sequence[BackwardCall]) -> list[Gradients]:
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
    dtype = call.x.dtype
    dW, dU, db, db_rec, dp, dR = [None if a is None else empty(a.shape, dtype) for a in call.weights]
    assert dW is not None
    dinit = tuple([None if state is None else np.empty(state.shape, dtype) for state in call.init])
    _, _, I, H = call.sizes
    return Gradients(call.empty(I), dW, dU, db, db_rec, dp, dinit, tuple([call.empty(H) for _ in call.e]), dR)
