"""Losses and their gradients, masked by sequence lengths and weights.

A prediction is (T, B, K), T steps of B sequences with K numbers each, or (B, K), one step of each; float32 or float64,
dimensionless. The loss is the mean over the valid steps, weighted as PyTorch's CrossEntropyLoss:
``sum(w * loss) / sum(w)``. Values past the lengths or of weight 0 are ignored, may be NaN, and have gradient 0. A NaN
target is missing and does not count either: only that element in elementwise losses, else the whole step. Computed in
the prediction's dtype and summed in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastrnn.cells import sigmoid
from fastrnn.checks import boolean
from fastrnn.training.targets import Rows, expect_targets, in_range, valid_rows, weighted_sums
from fastrnn.types import Array


class Judged(NamedTuple):
    """Loss and gradient of a batch."""

    loss: float  #: 0 if nothing counts
    weight: float  #: sum of the weights
    rows: Rows
    derivative: Array  #: (N, K)

    @property
    def gradient(self) -> Array:
        """Gradient of the loss, with the shape and dtype of the prediction."""
        return self.rows.spread(self.derivative)


class Loss(ABC):
    """A weighted mean over the valid steps of a batch; a subclass only needs to define `terms`."""

    #: the target may be integer classes, (T, B) or (B,)
    classes: ClassVar[bool] = False

    #: the target is probabilities, in 0..1
    probabilities: ClassVar[bool] = False

    @abstractmethod
    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """Compute the losses to average, and the derivative of their sum.

        Parameters
        ----------
        prediction : (N, K) array
            The valid steps of all sequences.
        target : (N, K) array of the same dtype, or (N,) integers if `classes`

        Returns
        -------
        losses : (N, K) or (N,) array
        derivative : (N, K) array
            A new array.
        """

    def __call__(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> float:
        """Compute the loss only; arguments and errors are those of `gradient`."""
        return self.judge(prediction, target, lengths, weights).loss

    def gradient(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[float, Array]:
        """Compute the loss and its gradient with respect to the prediction.

        Parameters
        ----------
        prediction : (T, B, K) or (B, K) array
            float32 or float64.
        target : array of the same shape and dtype
            For `CategoricalCrossentropy` also integer classes, (T, B) or (B,). NaN marks a missing target, which does
            not count.
        lengths : (B,) integers, optional
            Valid steps of each sequence, 0..T in any order; only with (T, B, K).
        weights : (T, B) or (B,) array, optional
            Weights of the steps, at least 0: the loss is ``sum(w * loss) / sum(w)``.

        Returns
        -------
        loss : float
            0 if nothing counts.
        gradient : array with the shape and dtype of the prediction
            Exactly 0 for elements that do not count.

        Raises
        ------
        TypeError, ValueError
            For a non-array, a wrong dtype or shape, or a class or probability out of range; the message names the
            argument.
        """
        judged = self.judge(prediction, target, lengths, weights)
        return judged.loss, judged.gradient

    def expect_targets(
        self, name: str, y: Array, shape: tuple[int, ...], dtype: np.dtype[Any], weights: Array | None = None
    ) -> None:
        """Check the targets of all samples as `gradient` would, before the first step.

        Override this if `gradient` accepts other targets.

        Parameters
        ----------
        name : str
            Name of y in messages.
        y : array
        shape : (N, T, K) or (N, K)
            Shape of the predictions of these samples.
        dtype : dtype
            Dtype of the predictions.
        weights : (N, T) or (N,) array, optional
            Targets of weight 0 are not checked.

        Raises
        ------
        TypeError, ValueError
            For common mistakes the message suggests what to pass in place of y.
        """
        expect_targets(name, y, shape, dtype, self.classes, weights)
        if self.probabilities:
            in_range(name, y if weights is None else y[weights > 0], 1, "probabilities")

    def judge(self, prediction: Any, target: Any, lengths: Any = None, weights: Any = None) -> Judged:
        """Compute the loss, its weight and its gradient; arguments and errors are those of `gradient`.

        Returns
        -------
        Judged
            ``loss``; ``weight``, the sum of the weights, with which the means of several batches combine into that of
            all; and ``gradient``.
        """
        rows = valid_rows(prediction, target, lengths, weights, classes=0 if self.classes else None)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are results, and propagate
            losses, derivative = self.terms(rows.prediction, rows.target)
            counted = rows.counted(losses)
            total, weight = weighted_sums(losses, counted)
            if counted is not None:
                counted = counted if counted.ndim == 2 else counted[:, None]
                derivative = np.where(counted > 0, counted * derivative, 0)
            derivative /= weight or 1
            return Judged(total / (weight or 1), weight, rows, derivative)


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """The mean of ``(prediction - target)^2`` over all valid elements.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import MeanSquaredError
    >>> loss, gradient = MeanSquaredError().gradient(np.array([[1.0, 4.0]]), np.array([[1.0, 2.0]]))
    >>> loss, gradient
    (2.0, array([[0., 2.]]))
    """

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        return error * error, 2 * error


@dataclass(frozen=True)
class BinaryCrossentropy(Loss):
    """The mean of ``-t log p - (1 - t) log(1 - p)`` over all valid elements, for targets t in 0..1.

    Parameters
    ----------
    from_logits : bool
        The prediction is a, and ``p = sigmoid(a)``: exact for every a, so the better choice for training. Otherwise
        the prediction is p, clipped to eps..1-eps, eps being that of its dtype; where it is clipped, the gradient is 0.

    Notes
    -----
    From logits the loss is ``log(1 + exp(-|a|)) + max(a, 0) - t a`` and its derivative ``sigmoid(a) - t``, see
    Bishop [1]_, eq. 4.90 and 4.91.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", 2006.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import BinaryCrossentropy
    >>> loss, gradient = BinaryCrossentropy(from_logits=True).gradient(np.array([[0.0, 1e4]]), np.ones((1, 2)))
    >>> round(loss, 4), gradient.ravel().tolist()
    (0.3466, [-0.25, 0.0])
    """

    from_logits: bool = False

    probabilities: ClassVar[bool] = True

    def __post_init__(self) -> None:
        boolean("from_logits", self.from_logits)

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        in_range("target", target, 1, "probabilities")
        if self.from_logits:
            # The brackets are 0 for a correct prediction, so the small term is not added to a large one.
            losses = np.log1p(np.exp(-np.abs(prediction))) + (np.maximum(prediction, 0) - target * prediction)
            return losses, sigmoid(prediction) - target
        p = clipped(prediction)
        losses = -target * np.log(p) - (1 - target) * np.log1p(-p)
        return losses, unless_clipped(prediction, p, (p - target) / (p * (1 - p)))


@dataclass(frozen=True)
class CategoricalCrossentropy(Loss):
    """The mean of ``-sum_k t_k log p_k`` over all valid steps.

    A target is integer classes, (T, B) or (B,), or a distribution t over the K classes in the shape of the prediction.

    Parameters
    ----------
    from_logits : bool
        The prediction is a, and ``p = softmax(a)``: exact for every a, so the better choice for training. Otherwise
        the prediction is p, clipped to eps..1-eps, eps being that of its dtype; where it is clipped, the gradient is 0.

    Notes
    -----
    From logits the derivative is ``p_k sum(t) - t_k``, see Bishop [1]_, eq. 4.108 and 4.109.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", 2006.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import CategoricalCrossentropy
    >>> loss, gradient = CategoricalCrossentropy(from_logits=True).gradient(np.array([[3.0, 3.0]]), np.array([1]))
    >>> round(loss, 4), gradient
    (0.6931, array([[ 0.5, -0.5]]))
    """

    from_logits: bool = False

    classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        boolean("from_logits", self.from_logits)

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        if target.ndim == 1:
            t = np.zeros_like(prediction)
            t[np.arange(len(t)), target] = 1
        else:
            t = target
            in_range("target", t, 1, "probabilities")
        if self.from_logits:
            a = prediction - prediction.max(axis=1, keepdims=True)
            log_p = a - np.log(np.exp(a).sum(axis=1, keepdims=True))
            return -(t * log_p).sum(axis=1), np.exp(log_p) * t.sum(axis=1, keepdims=True) - t
        p = clipped(prediction)
        return -(t * np.log(p)).sum(axis=1), unless_clipped(prediction, p, -t / p)


def clipped(probabilities: Array) -> Array:
    """Clip to eps..1-eps, so that logarithms are finite."""
    in_range("prediction", probabilities, 1, "probabilities (from_logits=True takes any number)")
    eps = np.finfo(probabilities.dtype).eps
    return np.clip(probabilities, eps, 1 - eps)


def unless_clipped(prediction: Array, p: Array, derivative: Array) -> Array:
    """Return the derivative, 0 where p, the clipped prediction, differs from the prediction; NaN is kept."""
    return np.where((p < prediction) | (p > prediction), 0, derivative)


LOSSES: dict[str, Callable[[], Loss]] = {
    "mse": MeanSquaredError,
    "binary_crossentropy": BinaryCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
}
