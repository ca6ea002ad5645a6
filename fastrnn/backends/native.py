"""The compiled backend: C kernels for each instruction set, in the top-level extension module `_fastrnn`.

Raises ImportError on import where the extension was not built.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

import _fastrnn
from fastrnn.call import Call, Forward, Gradients, Stepper
from fastrnn.checks import stepped

name = "native"

_cells = _fastrnn.cells()
_isas = _fastrnn.isas()
_isa = next(reversed(_isas))


def isa_names() -> tuple[str, ...]:
    """The instruction sets that this machine runs, slowest first."""
    return tuple(_isas)


def current_isa() -> str:
    return _isa


def set_isa(name: str) -> None:
    global _isa
    if name not in _isas:
        raise ValueError(f"isa: expected one of {', '.join(_isas)}, got {name!r}")
    _isa = name


def build_info() -> dict[str, str]:
    return {"compiler": _fastrnn.compiler}


#: Scratch up to this size is kept per thread from call to call: fresh pages cost as much as the work on them.
_SCRATCH_LIMIT = 64 << 20
_kept = threading.local()


def _scratch(n: int) -> np.ndarray:
    """At least n uninitialised bytes, this thread's until its next call."""
    buffer = getattr(_kept, "scratch", None)
    if buffer is None or buffer.size < n:
        buffer = np.empty(n, np.uint8)
        if n <= _SCRATCH_LIMIT:
            _kept.scratch = buffer
    return buffer


def forward(calls: Sequence[Call]) -> list[Forward]:
    isa = _isa
    results = [_results(call, isa) for call in calls]
    jobs = [(_cells[c.cell][0], c, r.y, r.final, r.c, r.saved) for c, r in zip(calls, results, strict=True)]
    _fastrnn.forward(_isas[isa], jobs, _scratch)
    # What was kept is laid out for the instruction set that kept it.
    return [r if r.saved is None else r._replace(saved=(isa, r.saved)) for r in results]


def _results(call: Call, isa: str) -> Forward:
    """Arrays for what a call returns."""
    _, B, _, H = call.sizes
    saved = None
    if call.training:
        saved = np.empty(_fastrnn.saved_bytes(_isas[isa], _cells[call.cell][0], call), np.uint8)
    return Forward(
        y=call.output(),
        final=tuple([np.empty((B, H), call.x.dtype) for _ in call.init]),
        c=call.empty(H) if call.return_cells else None,
        saved=saved,
    )


def layout() -> str:
    return _isa


def pack(call: Call, packed: np.ndarray | None = None) -> np.ndarray:
    cell = _cells[call.cell][0]
    if packed is None:
        packed = np.empty(_fastrnn.packed_bytes(_isas[_isa], cell, call), np.uint8)
    _fastrnn.pack(_isas[_isa], cell, call, packed)
    return packed


def stepper(calls: Sequence[Call]) -> Stepper:
    jobs = [
        (_cells[call.cell][0], call, call.y, tuple(s for s in call.init if s is not None), None, None) for call in calls
    ]
    return _fastrnn.Stepper(_isas[_isa], jobs, lambda n: np.empty(n, np.uint8), stepped, np.empty)


def backward(
    call: Call,
    saved: tuple[str, np.ndarray],
    dy: np.ndarray | None,
    dfinal: tuple[np.ndarray | None, ...],
    dc: np.ndarray | None,
) -> Gradients:
    isa, kept = saved

    def like(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.empty(array.shape, array.dtype)

    grads = Gradients(
        dx=call.empty(call.sizes[2]),
        dW=np.empty(call.W.shape, call.W.dtype),
        dU=np.empty(call.U.shape, call.U.dtype),
        db=like(call.b),
        db_rec=like(call.b_rec),
        dp=like(call.p),
        dinit=tuple(like(state) for state in call.init),
    )
    _fastrnn.backward(_isas[isa], _cells[call.cell][0], call, _scratch, kept, dy, dfinal, dc, grads)
    return grads


def activation(name: str, x: np.ndarray) -> np.ndarray:
    """sigmoid or tanh of a contiguous float array, as the kernels of the current instruction set compute it."""
    y = np.empty_like(x)
    _fastrnn.activation(_isas[_isa], name, x, y)
    return y
