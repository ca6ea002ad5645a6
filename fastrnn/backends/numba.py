"""The Numba backend: the NumPy backend's loop over the reference's own steps, compiled.

No formula is written twice. `compiled` takes a function of `cells` and rebuilds it with every function that it calls
compiled in the same way; only `dot` is replaced, because Numba's own `@` needs SciPy.
"""

from __future__ import annotations

import dis
from collections.abc import Sequence
from functools import cache
from types import CellType, FunctionType
from typing import Any

import numba
import numpy as np

from fastrnn import cells
from fastrnn.backends.numpy import Steps, from_bytes, layout, pack, prepared, scan, scan_backward, to_bytes
from fastrnn.call import Backward, Call, Forward, Gradients, Stepper
from fastrnn.cells import CELLS, Array

__all__ = ["backward", "forward", "from_bytes", "layout", "name", "pack", "prepared", "stepper", "to_bytes"]

name = "numba"

types: Any = numba.types  # numba has no type stubs


def forward(calls: Sequence[Call]) -> list[Forward]:
    return [scan(call, step(call.cell, call.x.dtype)) for call in calls]


def stepper(calls: Sequence[Call]) -> Stepper:
    return Steps(forward, calls)


def backward(calls: Sequence[Backward]) -> list[Gradients]:
    keys = ((back.call.cell, back.call.x.dtype) for back in calls)
    return [scan_backward(back, step(*key), step_backward(*key)) for back, key in zip(calls, keys, strict=True)]


# Sums may be taken in any order, so that they run in vector registers; NaN and infinity keep their meaning.
@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def dot(a: Array, b: Array) -> Array:  # pragma: no cover - runs as machine code, which coverage.py cannot see
    """a @ b, with the innermost loop along the axis in which b is contiguous."""
    m, n, k = a.shape[0], b.shape[1], a.shape[1]
    out = np.zeros((m, n), a.dtype)
    if b.strides[0] == b.itemsize:
        for i in range(m):
            for j in range(n):
                total = out[i, j]
                for s in range(k):
                    total += a[i, s] * b[s, j]
                out[i, j] = total
    else:
        for i in range(m):
            for s in range(k):
                for j in range(n):
                    out[i, j] += a[i, s] * b[s, j]
    return out


def rebuilt(function: Any) -> FunctionType:
    """The function with all that it calls compiled."""

    def swapped(value: Any) -> Any:
        return compiled(value) if isinstance(value, FunctionType) else value

    used = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
    scope = {key: swapped(value) for key, value in function.__globals__.items() if key in used}
    closure = tuple(CellType(swapped(cell.cell_contents)) for cell in function.__closure__ or ())
    return FunctionType(function.__code__, scope, function.__name__, None, closure)


@cache
def compiled(function: FunctionType) -> Any:
    return dot if function is cells.dot else numba.njit(nogil=True)(rebuilt(function))


@cache
def step(cell: str, dtype: np.dtype[Any]) -> Any:
    """The cell's step, compiled once for read-only arrays, as which Numba takes any that are C-contiguous."""
    return numba.njit(arguments(cell, dtype), nogil=True)(rebuilt(CELLS[cell].step))


@cache
def step_backward(cell: str, dtype: np.dtype[Any]) -> Any:
    """The cell's step_backward, likewise."""
    x, state, weights = arguments(cell, dtype)
    saved = step(cell, dtype).nopython_signatures[0].return_type[1]
    return numba.njit((state, x, state, saved, weights), nogil=True)(rebuilt(CELLS[cell].step_backward))


def arguments(cell: str, dtype: np.dtype[Any]) -> tuple[Any, Any, Any]:
    """The types of x, state and weights."""
    vector, matrix = (types.Array(numba.from_dtype(dtype), ndim, "C", readonly=True) for ndim in (1, 2))
    weights = (matrix, matrix, vector, vector) + (vector,) * CELLS[cell].peepholes
    return matrix, types.UniTuple(matrix, len(CELLS[cell].states)), types.Tuple(weights)
