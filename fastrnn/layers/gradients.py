"""Sparse gradients of embedding tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fastrnn.types import Array


@dataclass(frozen=True, eq=False)
class RowGradient:
    """A gradient (n, E) that is 0 except in some rows; an optimizer step costs time proportional to these.

    ``np.asarray`` converts it to a dense array.

    Parameters
    ----------
    rows : (R,) integers
        Indices of the nonzero rows, unique and ascending.
    values : (R, E) array
        The gradient in these rows.
    shape : (n, E)
        Shape of the table.

    Raises
    ------
    TypeError, ValueError
        If rows are not integers, not ascending or out of range, or values have the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.layers import RowGradient
    >>> np.asarray(RowGradient(np.array([0, 2]), np.ones((2, 3)), (4, 3)))[:, 0]
    array([1., 0., 1., 0.])
    """

    rows: Array
    values: Array
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        for name, a in (("rows", self.rows), ("values", self.values)):
            if not isinstance(a, np.ndarray):
                raise TypeError(f"{name}: expected an array, got {type(a).__name__}")
        if self.rows.dtype.kind not in "iu":
            raise TypeError(f"rows: expected integers, got {self.rows.dtype}")
        n, E = self.shape
        if self.rows.ndim != 1 or (self.rows[1:] <= self.rows[:-1]).any():
            raise ValueError("rows: expected distinct row indices in ascending order")
        if len(self.rows) and not 0 <= self.rows[0] <= self.rows[-1] < n:
            raise ValueError(f"rows: expected each in 0..{n - 1}, got {self.rows[0]}..{self.rows[-1]}")
        if self.values.shape != (len(self.rows), E):
            raise ValueError(f"values: expected shape (R, E) = {(len(self.rows), E)}, got {self.values.shape}")

    @classmethod
    def summed(cls, numbers: Array, values: Array, shape: tuple[int, int]) -> Self:
        """Sum values (M, E) of M rows, which may repeat."""
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        first = np.ones(len(ordered), np.bool_)
        first[1:] = ordered[1:] != ordered[:-1]
        starts = np.flatnonzero(first)
        total = np.add.reduceat(values[order], starts, axis=0) if len(starts) else values
        return cls(ordered[starts], total, shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def without(self, row: int) -> RowGradient:
        """Return the gradient with this row set to 0."""
        others = self.rows != row
        return self if others.all() else RowGradient(self.rows[others], self.values[others], self.shape)

    def __add__(self, other: RowGradient) -> RowGradient:
        """Return the sum, with the rows of both."""
        rows, values = np.concatenate([self.rows, other.rows]), np.concatenate([self.values, other.values])
        return RowGradient.summed(rows, values, self.shape)

    def __truediv__(self, number: float) -> RowGradient:
        return RowGradient(self.rows, self.values / number, self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy: the dense array is always a new one; expected True or None, got False")
        whole = np.zeros(self.shape, self.dtype if dtype is None else dtype)
        whole[self.rows] = self.values
        return whole
