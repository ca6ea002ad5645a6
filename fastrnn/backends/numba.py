"""The Numba backend: the NumPy backend's loop over time with the step's loops compiled.

It compiles the same source that NumPy runs, so no formula is duplicated; only `dot` is replaced, because Numba's own
`@` needs SciPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numba
import numpy as np

from fastrnn.backends import numpy as by_numpy
from fastrnn.backends.numpy import ForwardStepper, OneByOne, scan, scan_backward
from fastrnn.call import BackwardCall, Call, ForwardResult, Gradients
from fastrnn.cells import Cell
from fastrnn.cells.program import Loop
from fastrnn.cells.python import compiled
from fastrnn.cells.reference import Reference
from fastrnn.types import Array
from fastrnn.weight_dtypes import Int8Matrix, int8_dot

name = "numba"

# The same as the NumPy backend's.
dense, pack, pack_dense, prepared = by_numpy.dense, by_numpy.pack, by_numpy.pack_dense, by_numpy.prepared
layout, room, to_bytes, from_bytes = by_numpy.layout, by_numpy.room, by_numpy.to_bytes, by_numpy.from_bytes


types: Any = numba.types  # numba has no type stubs


def forward(calls: Sequence[Call]) -> list[ForwardResult]:
    return [scan(call, reference(call.cell, call.x.dtype)) for call in calls]


stepper, sessions = partial(ForwardStepper, forward), partial(OneByOne, forward)


def backward(calls: Sequence[BackwardCall]) -> list[Gradients]:
    return [scan_backward(back, reference(back.call.cell, back.call.x.dtype)) for back in calls]


# Allow reordering of sums, for vectorisation; NaN and infinity keep their semantics.
@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def matmul(a: Array, b: Array) -> Array:  # pragma: no cover - runs as machine code, which coverage.py cannot see
    """Return a @ b, with the innermost loop along b's contiguous axis."""
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


def dot(a: Array, b: Array | Int8Matrix) -> Array:
    return int8_dot(a, b) if isinstance(b, Int8Matrix) else matmul(a, b)


@cache
def elementwise(function: Callable[..., Any]) -> Any:
    """Compile a function of `cells.functions` for every type it is called with; Numba has NumPy's own."""
    return function if isinstance(function, np.ufunc) else numba.njit(nogil=True)(function)


@cache
def reference(cell: Cell, dtype: np.dtype[Any]) -> Reference:
    """Return the cell's step for this dtype, each loop compiled once, for read-only arrays: Numba accepts any
    C-contiguous array as such."""
    vector, matrix = (types.Array(numba.from_dtype(dtype), ndim, "C", readonly=True) for ndim in (1, 2))

    def machine_code(loop: Loop) -> Any:
        function = compiled(loop, cell.names, dtype, elementwise)
        arguments = [vector if place.array == "p" else matrix for place in loop.loads.values()]
        return numba.njit(tuple(arguments), nogil=True)(function)

    return Reference(cell.program, machine_code, dot)
