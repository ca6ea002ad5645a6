"""Predictions beside their targets: checked, and without what lies past a sequence's length."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import as_array, checked_lengths, describe, expect_dtype, expect_shape, floating_array


class Rows(NamedTuple):
    """The N valid steps of all sequences, one after the other."""

    prediction: Array  #: (N, K)
    target: Array  #: (N, K), or (N,) integer classes
    shape: tuple[int, ...]  #: of the prediction as it came
    valid: Array | None  #: (T, B) booleans; None where every step is

    def spread(self, rows: Array) -> Array:
        """(N, K) laid out like the prediction again, 0 past the lengths."""
        if self.valid is None:
            return rows.reshape(self.shape)
        a: Array = np.zeros(self.shape, rows.dtype)
        a[self.valid] = rows
        return a


def valid_rows(prediction: Any, target: Any, lengths: Any, classes: int | None = None) -> Rows:
    """The valid steps; integer targets are classes, allowed with `classes`: at least so many of them, else K."""
    prediction = floating_array("prediction", prediction)
    if prediction.ndim not in (2, 3):
        raise ValueError(f"prediction: expected shape (T, B, K) or (B, K), got {prediction.shape}")
    meaning = "T, B" if prediction.ndim == 3 else "B"
    steps, K = prediction.shape[:-1], prediction.shape[-1]
    if K < 1:
        raise ValueError(f"prediction: expected at least 1 number a step (K >= 1), got shape {prediction.shape}")

    target = as_array("target", target)
    integer = classes is not None and target.dtype.kind in "iu"
    if integer:
        expect_shape("target", target, f"({meaning}{',' if meaning == 'B' else ''})", steps)
    else:
        whose = "the same as prediction" + ("" if classes is None else ", or integer classes")
        expect_dtype("target", target, prediction.dtype, whose)
        expect_shape("target", target, f"({meaning}, K)", prediction.shape)

    valid = None
    if lengths is not None:
        if prediction.ndim != 3:
            raise ValueError(f"lengths: only for a prediction of shape (T, B, K), got {prediction.shape}")
        valid = np.arange(steps[0])[:, None] < checked_lengths(lengths, steps[0], steps[1], unbatched=False)
    rows = target.shape[len(steps) :]
    p = prediction.reshape(-1, K) if valid is None else prediction[valid]
    t = target.reshape(-1, *rows) if valid is None else target[valid]
    if integer and classes is not None:
        in_range("target", t, 0, max(classes, K) - 1, "classes")
    return Rows(p, t, prediction.shape, valid)


def in_range(name: str, a: Array, least: float, most: float, what: str) -> None:
    """What is not NaN lies within `least` and `most`."""
    wrong = (a < least) | (a > most)
    if wrong.any():
        raise ValueError(f"{name}: expected {what} in {least}..{most}, got {a[wrong][0]}")


def expect_targets(name: str, y: Array, shape: tuple[int, ...], dtype: np.dtype[Any], classes: bool) -> None:
    """That y goes with predictions of this shape, (N, T, K) or (N, K), and dtype, or, with `classes`, is classes."""
    steps, K = shape[:-1], shape[-1]
    if classes and y.dtype.kind in "iu" and y.shape == steps:
        in_range(name, y, 0, K - 1, "classes")
    elif (y.shape, y.dtype) != (shape, dtype):
        meaning = "N, T" if len(steps) == 2 else "N"
        expected = f"{dtype} of shape ({meaning}, K) = {shape}"
        if classes:
            expected += f", or integer classes of shape ({meaning}{',' if meaning == 'N' else ''}) = {steps}"
        kind = TypeError if y.shape == shape or (classes and y.shape == steps) else ValueError
        hint = instead(y, shape, dtype, classes)
        raise kind(f"{name}: expected {expected}, got {describe(y.dtype)} of shape {y.shape}{hint and '; ' + hint}")


def instead(y: Array, shape: tuple[int, ...], dtype: np.dtype[Any], classes: bool) -> str:
    """What the usual mistakes want in place of y."""
    steps, K = shape[:-1], shape[-1]
    colons = ", ".join(":" for _ in steps)
    if classes and y.shape == steps:
        return "classes are integers: y.astype(int)"
    if classes and K > 1 and y.shape == (*steps, 1):
        return f"classes have no axis of their own: y[{colons}, 0]" + (".astype(int)" if y.dtype.kind == "f" else "")
    cast = "" if y.dtype == dtype else f".astype(np.{dtype})"
    if y.shape == shape:
        return f"y{cast}"
    if y.shape == steps and K == 1:
        return f"y[{colons}, None]{cast}"
    if y.shape == steps and y.dtype.kind in "iu":
        return 'integer classes go with the loss "categorical_crossentropy"'
    return ""
