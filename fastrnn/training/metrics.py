"""Metrics: numbers to watch, which add up exactly over batches. Shapes, lengths and weights are those of `losses`."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import finite
from fastrnn.training.arguments import by_name
from fastrnn.training.targets import numbers, valid_rows


class Metric(ABC):
    """A weighted mean as a total and a count, so that those of several batches add up."""

    @abstractmethod
    def __call__(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[float, float]:
        """Their quotient is the metric of this batch.

        Parameters
        ----------
        prediction, target, lengths, weights
            As for `Loss.gradient`.

        Returns
        -------
        total : float
        count : float
            The sum of the weights, or how many there are; 0 where nothing counts.

        Raises
        ------
        TypeError, ValueError
            As `Loss.gradient`.
        """


@dataclass(frozen=True)
class Accuracy(Metric):
    """The part of the valid steps whose class is right.

    The class is the largest of K numbers, in a target of the same shape too; a target may also be integer classes,
    (T, B) or (B,). With K = 1 the classes are 0 and 1, and a prediction above `threshold` says 1.

    Parameters
    ----------
    threshold : float
        For K = 1: 0.5 for probabilities, 0 for logits.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import Accuracy
    >>> Accuracy()(np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]]), np.array([1, 0, 0]))
    (2.0, 3)
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        finite("threshold", self.threshold)

    def __call__(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[float, float]:
        rows = valid_rows(prediction, target, lengths, weights, classes=2)
        p, t = rows.prediction, rows.target
        if p.shape[1] == 1:
            found, wanted = p[:, 0] > self.threshold, t.reshape(-1) > 0.5
        else:
            found, wanted = p.argmax(axis=1), t if t.ndim == 1 else t.argmax(axis=1)
        return rows.sums(found == wanted)


@dataclass(frozen=True)
class BinaryAccuracy(Metric):
    """The part of all valid elements that are on the right side: of several labels a step, each for itself.

    Parameters
    ----------
    threshold : float
        A prediction above it says 1: 0.5 for probabilities, 0 for logits.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import BinaryAccuracy
    >>> BinaryAccuracy()(np.array([[0.9, 0.8, 0.1]]), np.array([[1.0, 0.0, 0.0]]))
    (2.0, 3)
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        finite("threshold", self.threshold)

    def __call__(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[float, float]:
        rows = valid_rows(prediction, target, lengths, weights)
        return rows.sums((rows.prediction > self.threshold) == (rows.target > 0.5))


@dataclass(frozen=True)
class MeanAbsoluteError(Metric):
    """The mean of ``|prediction - target|`` over all valid elements.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import MeanAbsoluteError
    >>> MeanAbsoluteError()(np.array([[1.0, 4.0]]), np.array([[1.0, 2.0]]))
    (2.0, 2)
    """

    def __call__(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[float, float]:
        rows = valid_rows(prediction, target, lengths, weights)
        return rows.sums(np.abs(rows.prediction - rows.target))


@dataclass(frozen=True)
class Function(Metric):
    """The mean of what a function says of each step, ``f(y_true, y_pred)`` as in Keras and scikit-learn.

    It gets the N steps that count, y_true (N, K) or (N,) classes and y_pred (N, K), and returns a number for each,
    (N,), or for each element, (N, K); or one number, which is taken for the mean of this batch, and has no weights.
    """

    f: Callable[[Array, Array], Any]

    def __call__(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[float, float]:
        rows = valid_rows(prediction, target, lengths, weights, classes=2)
        if not len(rows.prediction):
            return 0.0, 0
        name, n = metric_name(self), len(rows.prediction)
        values = numbers(f"metrics: {name}", self.f(rows.target, rows.prediction))
        if values.ndim and values.shape not in ((n,), rows.prediction.shape):
            got = f"got shape {values.shape} for {n} steps"
            raise ValueError(f"metrics: {name}: expected one number, one for each step or each element, {got}")
        if values.ndim:
            return rows.sums(values)
        if rows.counted(np.empty(n)) is not None:
            raise ValueError(f"metrics: {name}: one number a batch cannot be weighted; return one for each step")
        return float(values) * n, n


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "binary_accuracy": BinaryAccuracy,
    "mae": MeanAbsoluteError,
}


def metric(which: str | Metric | Callable[[Array, Array], Any]) -> Metric:
    """The metric of this name, "accuracy", "binary_accuracy" or "mae"; a `Metric` is itself, and of a function.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> from fastrnn.training import metrics
    >>> metrics.metric("mae")
    MeanAbsoluteError()
    """
    if inspect.isroutine(which) or isinstance(which, functools.partial):
        return Function(which)
    if not isinstance(which, str | Metric):
        names = ", ".join(map(repr, METRICS))
        raise TypeError(f"metrics: expected a Metric, a function f(y_true, y_pred), or one of {names}, got {which!r}")
    return by_name("metrics", which, Metric, METRICS)


def metric_name(metric: Any) -> str:
    """As `compile` would take it, or the class's own, or the function's."""
    if isinstance(metric, Function):
        f = metric.f.func if isinstance(metric.f, functools.partial) else metric.f
        return str(getattr(f, "__name__", type(f).__name__))
    kinds = {kind: name for name, kind in METRICS.items()}
    return kinds.get(type(metric), type(metric).__name__)
