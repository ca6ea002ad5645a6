"""Metrics, as totals and counts that add up over batches. Shapes, lengths and weights are as in `losses`."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrnn.checks import by_name, finite
from fastrnn.training.targets import numbers, valid_rows
from fastrnn.types import Array


class Metric(ABC):
    """A weighted mean as a total and a count, which add up over batches."""

    @abstractmethod
    def __call__(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[float, float]:
        """Compute the total and the count of this batch; the metric is their quotient.

        Parameters
        ----------
        prediction, target, lengths, weights
            As for `Loss.gradient`.

        Returns
        -------
        total : float
        count : float
            The sum of the weights, or the number of values without weights; 0 if nothing counts.

        Raises
        ------
        TypeError, ValueError
            As `Loss.gradient`.
        """


@dataclass(frozen=True)
class Accuracy(Metric):
    """The fraction of valid steps whose class is correct.

    The class is the argmax of K numbers, in the prediction and in a target of the same shape; a target may also be
    integer classes, (T, B) or (B,). With K = 1 the classes are 0 and 1, and a prediction above `threshold` means 1.

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
    """The fraction of valid elements on the correct side of the threshold: each of several labels counts separately.

    Parameters
    ----------
    threshold : float
        A prediction above it means 1: 0.5 for probabilities, 0 for logits.

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
    """The mean of a user's function ``f(y_true, y_pred)``, as in Keras and scikit-learn.

    f gets the N steps that count, y_true (N, K) or (N,) classes and y_pred (N, K), and returns one number per step,
    (N,), or per element, (N, K); or a single number, the mean of this batch, which cannot be weighted.
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
            raise ValueError(f"metrics: {name}: expected one number, or one per step or element, {got}")
        if values.ndim:
            return rows.sums(values)
        if rows.counted(np.empty(n)) is not None:
            raise ValueError(f"metrics: {name}: one number per batch cannot be weighted; return one per step")
        return float(values) * n, n


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "binary_accuracy": BinaryAccuracy,
    "mae": MeanAbsoluteError,
}


def metric(which: str | Metric | Callable[[Array, Array], Any]) -> Metric:
    """Return the metric of this name, a given `Metric`, or one that wraps a function."""
    if inspect.isroutine(which) or isinstance(which, functools.partial):
        return Function(which)
    if not isinstance(which, str | Metric):
        names = ", ".join(map(repr, METRICS))
        raise TypeError(f"metrics: expected a Metric, a function f(y_true, y_pred), or one of {names}, got {which!r}")
    return by_name("metrics", which, Metric, METRICS)


def metric_name(metric: Any) -> str:
    """Return the name that `compile` accepts, or else that of the class or the function."""
    if isinstance(metric, Function):
        f = metric.f.func if isinstance(metric.f, functools.partial) else metric.f
        return str(getattr(f, "__name__", type(f).__name__))
    kinds = {kind: name for name, kind in METRICS.items()}
    return kinds.get(type(metric), type(metric).__name__)
