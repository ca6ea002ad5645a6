"""Narrow formats of weight matrices, for inference: how weights are rounded to them, and what int8 products compute.

bfloat16 matrices stay float32 arrays, of values that the format can hold; only the kernels' copies are stored in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fastrnn.types import Array

#: The largest integer of a weight, and of an element of a vector that is multiplied with weights.
MOST_CODE, MOST_INPUT = 127, 32767

#: Rows and vectors without a larger element count as zeros.
NOTHING = np.float32(1e-30)

#: The longest row whose exact sums fit the kernels' integers.
LONGEST_ROW = 1 << 16


def bfloat16(a: Array) -> Array:
    """Round float32 to the nearest bfloat16, ties to even, in place; return the array."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    a[...] = np.where(np.isnan(a), a, rounded.view(np.float32))
    return a


@dataclass(frozen=True, eq=False, slots=True)
class Int8Matrix:
    """A float32 matrix stored as int8 integers and a scale for each row, NaN for a row that was not finite.

    ``np.asarray`` makes it an array, ``m[...] = a`` rounds another array into it, and ``a @ m.T`` is the kernels'
    product, as `int8_dot` says.
    """

    codes: Array  #: (rows, n) int8
    scales: Array  #: (rows, 1) float32

    #: of the matrix that this one stands for
    dtype = np.dtype(np.float32)

    __array_ufunc__ = None  # an array's @ leaves the product to __rmatmul__

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.codes.shape
        return shape

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def T(self) -> Self:
        return type(self)(self.codes.T, self.scales.T)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Self:
        return type(self)(self.codes[rows], self.scales[rows])

    def __setitem__(self, all_of_it: Any, a: Array) -> None:
        self.codes[all_of_it], self.scales[all_of_it] = int8_codes(a)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return (self.codes * self.scales).astype(dtype or self.dtype, copy=False)

    def __rmatmul__(self, a: Array) -> Array:
        return int8_dot(a, self)


def int8(a: Array | Int8Matrix) -> Int8Matrix:
    """Round each row of a float32 matrix to integers times the row's scale."""
    return a if isinstance(a, Int8Matrix) else Int8Matrix(*int8_codes(a))


def dequantized(a: Array | Int8Matrix) -> Array:
    """Return an array as it is, and an `Int8Matrix` as a read-only float32 array."""
    if isinstance(a, Int8Matrix):
        a = np.asarray(a)
        a.flags.writeable = False
    return a


def int8_codes(a: Array) -> tuple[Array, Array]:
    """Return the (rows, n) int8 integers of a float32 matrix and its (rows, 1) scales, NaN where a row is not finite.

    The scale is the row's largest absolute value over 127, rounded up to 17 significant bits: so every integer times
    the scale is a float32 exactly, and rounding twice changes nothing.
    """
    largest = np.abs(a).max(axis=1, keepdims=True, initial=0)
    up = ((largest / np.float32(MOST_CODE)).view(np.uint32) + np.uint32(127)) & np.uint32(0xFFFFFF80)
    scales = np.where(largest < NOTHING, np.float32(0), up.view(np.float32))
    scales = np.where(np.isfinite(largest), scales, np.float32(np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        codes = np.where(scales > 0, np.rint(a / scales), np.float32(0)).astype(np.int8)
    return codes, scales


def int8_dot(a: Array, b: Int8Matrix) -> Array:
    """Return a @ b as the kernels compute it, for a (rows, n), and b (n, columns) with a scale for each column.

    Each row of a is rounded to 16-bit integers times its largest absolute value over 32767. The sum of the products of
    integers is exact (here as float64), rounded to float32 once, and multiplied with the scales of both.
    """
    largest = np.abs(a).max(axis=1, keepdims=True, initial=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(largest < NOTHING, np.float32(0), np.float32(MOST_INPUT) / largest)
        steps = np.where(largest < NOTHING, np.float32(0), largest / np.float32(MOST_INPUT))
        integers = np.where(np.isfinite(largest), np.rint(a * inverse), np.float32(np.nan))
    sums = (integers.astype(np.float64) @ b.codes.astype(np.float64)).astype(np.float32)
    result: Array = sums * (b.scales * steps)
    return result


#: Name -> a function that takes a float32 matrix and returns it rounded, as a `PackedStack` stores it.
WEIGHT_DTYPES: dict[str, Callable[[Array], Any]] = {"bfloat16": bfloat16, "int8": int8}
