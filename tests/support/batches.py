"""Random predictions and targets, for the tests of losses and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.training.losses import BinaryCrossentropy, CategoricalCrossentropy, Loss, MeanSquaredError
from fastrnn.training.metrics import Accuracy, BinaryAccuracy, MeanAbsoluteError, Metric
from support.models import K

LOSSES: dict[str, Loss] = {
    "mse": MeanSquaredError(),
    "bce": BinaryCrossentropy(),
    "bce_logits": BinaryCrossentropy(from_logits=True),
    "cce": CategoricalCrossentropy(),
    "cce_logits": CategoricalCrossentropy(from_logits=True),
}

METRICS: dict[str, Metric] = {"accuracy": Accuracy(), "binary": BinaryAccuracy(), "mae": MeanAbsoluteError()}

#: (T, B, K), around the widths of vectors; and (B, K)
SIZES = ((1, 1, 1), (7, 3, 1), (15, 17, 3), (33, 7, 31), (3, 97, 17), (5, 3), (33, 97))


def softmax(a: np.ndarray) -> np.ndarray:
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def batch(name: str, shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction for the loss of this name, and a soft target of the same shape that does not sum to 1."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, *shape))
    prediction = {"bce": 1 / (1 + np.exp(-a)), "cce": softmax(a) * 0.9 + 0.05}.get(name, 3 * a)
    target = {"m": b, "b": 1 / (1 + np.exp(-3 * b)), "c": 0.9 * softmax(b)}[name[0]]
    return prediction.astype(dtype), target.astype(dtype)


def ragged(T: int, B: int, seed: int = 0) -> np.ndarray:
    """Return lengths in any order, including T and 0 if B allows."""
    rng = np.random.default_rng(seed)
    lengths: np.ndarray = rng.permutation(np.r_[T, 0, rng.integers(0, T + 1, B)][:B])
    return lengths


def padding(T: int, lengths: np.ndarray) -> np.ndarray:
    """Return a mask (T, B) of the steps past the lengths."""
    past: np.ndarray = np.arange(T)[:, None] >= lengths
    return past


def one_hot(c: np.ndarray) -> np.ndarray:
    return np.eye(K)[c]


def differences(f: Callable[[np.ndarray], float], p: np.ndarray, size: float = 1e-5) -> np.ndarray:
    """Central differences of f with respect to every element of p."""
    found = np.empty_like(p)
    for i in np.ndindex(*p.shape):
        step = np.zeros_like(p)
        step[i] = size
        found[i] = (f(p + step) - f(p - step)) / (2 * size)
    return found
