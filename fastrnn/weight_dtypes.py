"""Narrow formats of weight matrices, for inference: how weights are rounded to them, and what int8 products compute.

Matrices stay float32 arrays, of values that the format can hold; only the kernels' copies are stored in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastrnn.types import Array

#: The largest integer of a weight, and of an element of a vector that is multiplied with weights.
MOST_CODE, MOST_INPUT = 127, 32767

#: Rows and vectors without a larger element count as zeros.
NOTHING = np.float32(1e-30)

#: The longest row whose exact sums fit the kernels' integers.
LONGEST_ROW = 1 << 16


def bfloat16(a: Array) -> Array:
    """Round float32 to the nearest bfloat16, ties to even; the result is float32."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(a), a, rounded.view(np.float32))


def int8(a: Array) -> Array:
    """Round each row of a float32 matrix to integers times the row's scale; the result is float32.

    A row with NaN or infinity is returned as it is.
    """
    codes, scales = int8_codes(a)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(scales), codes * scales, a)


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


def int8_dot(a: Array, b: Array) -> Array:
    """Return a @ b as the kernels compute it with int8 weights, for a (rows, n) and b (n, columns).

    Each row of a is rounded to 16-bit integers times its largest absolute value over 32767. The sum of the products of
    integers is exact (here as float64), rounded to float32 once, and multiplied with the scales of both.
    """
    codes, scales = int8_codes(np.ascontiguousarray(b.T))
    largest = np.abs(a).max(axis=1, keepdims=True, initial=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(largest < NOTHING, np.float32(0), np.float32(MOST_INPUT) / largest)
        steps = np.where(largest < NOTHING, np.float32(0), largest / np.float32(MOST_INPUT))
        integers = np.where(np.isfinite(largest), np.rint(a * inverse), np.float32(np.nan))
    sums = (integers.astype(np.float64) @ codes.T.astype(np.float64)).astype(np.float32)
    result: Array = sums * (scales.T * steps)
    return result


def product(weight_dtype: str | None, dot: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Return the product with weights of this format, where `dot` is that of float32 ones."""
    return int8_dot if weight_dtype == "int8" else dot


#: Name -> a function that rounds float32 matrices to it.
WEIGHT_DTYPES = {"bfloat16": bfloat16, "int8": int8}
