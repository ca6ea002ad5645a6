"""Pair predictions with targets: check and weight them, and drop what does not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastrnn.checks import (
    as_array,
    checked_lengths,
    count,
    describe,
    expect_dtype,
    expect_shape,
    finite,
    floating_array,
    integer,
)
from fastrnn.types import Array


class Rows(NamedTuple):
    """The N steps that count, concatenated over sequences: those within the lengths and of weight above 0."""

    prediction: Array  #: (N, K)
    target: Array  #: (N, K), or (N,) integer classes
    weights: Array | None  #: (N,) in the prediction's dtype; None if all are 1
    shape: tuple[int, ...]  #: original shape of the prediction
    valid: Array | None  #: (T, B) or (B,) booleans; None if every step counts

    def counted(self, values: Array) -> Array | None:
        """Return the weights of values (N,) or (N, K): 0 where the target is NaN; None if all are 1."""
        weights = self.weights
        if weights is not None and values.ndim == 2:
            weights = np.broadcast_to(weights[:, None], values.shape)
        missing = np.isnan(self.target) if self.target.dtype.kind == "f" else None
        if missing is None or not missing.any():
            return weights
        there = ~(missing if values.ndim == 2 else missing.any(axis=1))
        return there.astype(self.prediction.dtype) if weights is None else weights * there

    def sums(self, values: Array) -> tuple[float, float]:
        """Return `weighted_sums` of these values."""
        return weighted_sums(values, self.counted(values))

    def spread(self, rows: Array) -> Array:
        """Scatter (N, K) back into the shape of the prediction, 0 for steps that do not count."""
        if self.valid is None:
            return rows.reshape(self.shape)
        a: Array = np.zeros(self.shape, rows.dtype)
        a[self.valid] = rows
        return a


def weighted_sums(values: Array, weights: Array | None) -> tuple[float, float]:
    """Return the weighted sum of values and the sum of their weights, in float64."""
    if weights is None:
        return float(values.sum(dtype=np.float64)), values.size
    weighted = np.where(weights > 0, weights * values, 0)
    return float(weighted.sum(dtype=np.float64)), float(weights.sum(dtype=np.float64))


def valid_rows(prediction: Any, target: Any, lengths: Any, weights: Any, classes: int | None = None) -> Rows:
    """Return the steps that count; integer targets in 0..max(classes, K)-1 are allowed unless `classes` is None."""
    prediction = floating_array("prediction", prediction)
    if prediction.ndim not in (2, 3):
        raise ValueError(f"prediction: expected shape (T, B, K) or (B, K), got {prediction.shape}")
    meaning = "T, B" if prediction.ndim == 3 else "B"
    steps, K = prediction.shape[:-1], prediction.shape[-1]
    if K < 1:
        raise ValueError(f"prediction: expected at least 1 number per step (K >= 1), got shape {prediction.shape}")

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
            raise ValueError(f"lengths: needs a prediction of shape (T, B, K), got {prediction.shape}")
        valid = np.arange(steps[0])[:, None] < checked_lengths(lengths, steps[0], steps[1])
    if weights is not None:
        weights = numbers("weights", weights)
        expect_shape("weights", weights, f"({meaning}{',' if meaning == 'B' else ''})", steps)
        expect_weights("weights", weights if valid is None else weights[valid])
        counts = weights > 0 if valid is None else valid & (weights > 0)
        valid = None if counts.all() else counts
    rows = target.shape[len(steps) :]
    p = prediction.reshape(-1, K) if valid is None else prediction[valid]
    t = target.reshape(-1, *rows) if valid is None else target[valid]
    w = None
    if weights is not None:
        w = (weights.reshape(-1) if valid is None else weights[valid]).astype(p.dtype)
    if integer and classes is not None:
        in_range("target", t, max(classes, K) - 1, "classes")
    return Rows(p, t, w, prediction.shape, valid)


class ClassWeights(NamedTuple):
    """Weights of targets by class."""

    table: Array | None = None  #: the weight of each class; the last entry, 1, is for all others
    ignore_index: int | None = None  #: the class that does not count

    def weights(self, y: Array, given: Array | None, steps: int) -> Array | None:
        """Return the given weights times the class weights, for y with this many leading axes; None if all are 1."""
        integers = y.dtype.kind in "iu"
        if self.table is not None:
            c = y if integers else (y[..., 0] > 0.5).astype(int) if y.shape[-1:] == (1,) else y.argmax(axis=-1)
            w = self.table[np.clip(c, 0, len(self.table) - 1)]
            given = w if given is None else given * w
        if integers and y.ndim == steps and self.ignore_index is not None and (out := y == self.ignore_index).any():
            given = np.where(out, 0.0, 1.0 if given is None else given)
        return given

    def expect_of(self, K: int, classes: bool, probabilities: bool) -> None:
        """Raise ValueError if a loss with such targets and K numbers per step lacks these classes."""
        if self.table is None:
            return
        if not classes and not (probabilities and K == 1):
            raise ValueError(
                "class_weight: expected a loss with one class per target, categorical_crossentropy, "
                "or binary_crossentropy with K = 1; use sample_weight for other losses"
            )
        if (most := len(self.table) - 2) >= max(K, 2):
            raise ValueError(f"class_weight: expected classes in 0..{max(K, 2) - 1}, got {most}")


def checked_class_weights(class_weight: Any, ignore_index: Any) -> ClassWeights:
    """Return the class weights of `fit`, checked."""
    if ignore_index is not None:
        ignore_index = integer("ignore_index", ignore_index, "an integer or None")
    if class_weight is None:
        return ClassWeights(None, ignore_index)
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"class_weight: expected a dict from classes to weights, got {class_weight!r:.80}")
    weights = {count("class_weight", c): finite(f"class_weight[{c}]", w, 0) for c, w in class_weight.items()}
    table = np.ones(max(weights, default=-1) + 2)
    table[list(weights)] = list(weights.values())
    return ClassWeights(table, ignore_index)


def numbers(name: str, a: Any) -> Array:
    """Convert numbers or booleans to a float32 or float64 array."""
    a = as_array(name, a, sequence=True)
    if a.dtype.kind not in "fiub" or a.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected numbers, got {describe(a.dtype)}")
    found: Array = a if a.dtype in (np.float32, np.float64) else a.astype(np.float64)
    return found


def expect_weights(name: str, weights: Array) -> None:
    wrong = ~((weights >= 0) & (weights < np.inf))
    if wrong.any():
        raise ValueError(f"{name}: expected finite numbers of at least 0, got {weights[wrong][0]}")


def in_range(name: str, a: Array, most: float, what: str) -> None:
    """Raise ValueError unless all values lie in 0..`most`; NaN is ignored."""
    wrong = (a < 0) | (a > most)
    if wrong.any():
        first = a[wrong][0]
        hint = f"; to ignore it, pass ignore_index={first}" if what == "classes" and first < 0 else ""
        raise ValueError(f"{name}: expected {what} in 0..{most}, got {first}{hint}")


def expect_targets(
    name: str, y: Array, shape: tuple[int, ...], dtype: np.dtype[Any], classes: bool, weights: Array | None = None
) -> None:
    """Raise unless y matches predictions of this shape, (N, T, K) or (N, K), and dtype, or is classes if allowed."""
    steps, K = shape[:-1], shape[-1]
    if classes and y.dtype.kind in "iu" and y.shape == steps:
        in_range(name, y if weights is None else y[weights > 0], K - 1, "classes")
    elif (y.shape, y.dtype) != (shape, dtype):
        meaning = "N, T" if len(steps) == 2 else "N"
        expected = f"{dtype} of shape ({meaning}, K) = {shape}"
        if classes:
            expected += f", or integer classes of shape ({meaning}{',' if meaning == 'N' else ''}) = {steps}"
        kind = TypeError if y.shape == shape or (classes and y.shape == steps) else ValueError
        hint = suggestion(y, shape, dtype, classes)
        raise kind(f"{name}: expected {expected}, got {describe(y.dtype)} of shape {y.shape}{hint and '; ' + hint}")


def suggestion(y: Array, shape: tuple[int, ...], dtype: np.dtype[Any], classes: bool) -> str:
    """Suggest what to pass in place of y, for common mistakes."""
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
        return 'for integer classes use the loss "categorical_crossentropy"'
    return ""
