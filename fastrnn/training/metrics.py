"""Metrics: numbers to watch, which add up exactly over batches. Shapes and lengths are those of `losses`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrnn.checks import finite
from fastrnn.training.arguments import by_name
from fastrnn.training.targets import valid_rows


class Metric(ABC):
    """A mean as a total and a count, so that those of several batches add up."""

    @abstractmethod
    def __call__(self, prediction: Any, target: Any, lengths: Any = None) -> tuple[float, int]:
        """Their quotient is the metric of this batch.

        Parameters
        ----------
        prediction, target, lengths
            As for `Loss.gradient`.

        Returns
        -------
        total : float
        count : int
            0 where no step is valid.

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

    def __call__(self, prediction: Any, target: Any, lengths: Any = None) -> tuple[float, int]:
        rows = valid_rows(prediction, target, lengths, classes=2)
        p, t = rows.prediction, rows.target
        if p.shape[1] == 1:
            found, wanted = p[:, 0] > self.threshold, t.reshape(-1) > 0.5
        else:
            found, wanted = p.argmax(axis=1), t if t.ndim == 1 else t.argmax(axis=1)
        return float(np.count_nonzero(found == wanted)), len(p)


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

    def __call__(self, prediction: Any, target: Any, lengths: Any = None) -> tuple[float, int]:
        rows = valid_rows(prediction, target, lengths)
        right = (rows.prediction > self.threshold) == (rows.target > 0.5)
        return float(np.count_nonzero(right)), right.size


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

    def __call__(self, prediction: Any, target: Any, lengths: Any = None) -> tuple[float, int]:
        rows = valid_rows(prediction, target, lengths)
        errors = np.abs(rows.prediction - rows.target)
        return float(errors.sum(dtype=np.float64)), errors.size


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "binary_accuracy": BinaryAccuracy,
    "mae": MeanAbsoluteError,
}


def metric(which: str | Metric) -> Metric:
    """The metric of this name, "accuracy", "binary_accuracy" or "mae"; a `Metric` is itself.

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
    return by_name("metrics", which, Metric, METRICS)


def metric_name(metric: Any) -> str:
    """As `compile` would take it, or the class's own."""
    kinds = {kind: name for name, kind in METRICS.items()}
    return kinds.get(type(metric), type(metric).__name__)
