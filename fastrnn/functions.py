"""Activations of dense layers: textbook forms, and gradients computed from their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastrnn.cells import relu, sigmoid, tanh
from fastrnn.types import Array


def softmax(a: Array) -> Array:
    """exp(a) / sum(exp(a)) along the last axis, which may be empty; the maximum is subtracted to avoid overflow."""
    e: Array = np.exp(a - a.max(axis=-1, keepdims=True, initial=-np.inf))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def softmax_backward(ds: Array, s: Array) -> Array:
    """Return da for s = softmax(a), computed from s."""
    da: Array = s * (ds - (ds * s).sum(axis=-1, keepdims=True))
    return da


def normalized(a: Array, epsilon: float) -> tuple[Array, Array]:
    """Return n = (a - mean) r with r = 1 / sqrt(variance + epsilon), along the last axis; and r, for the gradient."""
    n: Array = a - a.mean(axis=-1, keepdims=True)
    r = 1 / np.sqrt(mean_product(n, n) + a.dtype.type(epsilon))
    n *= r
    return n, r


def mean_product(a: Array, b: Array) -> Array:
    """Return the mean of a * b along the last axis, which it keeps with length 1."""
    product: Array = np.einsum("...i,...i->...", a, b)[..., None]
    product /= a.shape[-1]
    return product


class Function(NamedTuple):
    """f(a), and its gradient backward(df, f(a)), which takes the output."""

    f: Callable[[Array], Array]
    backward: Callable[[Array, Array], Array]


FUNCTIONS = {
    "identity": Function(lambda a: a, lambda d, a: d),
    "sigmoid": Function(sigmoid, lambda d, s: d * s * (1 - s)),
    "tanh": Function(tanh, lambda d, t: d * (1 - t) * (1 + t)),
    "relu": Function(relu, lambda d, r: np.where(r <= 0, np.zeros_like(d), d)),
    "softmax": Function(softmax, softmax_backward),
}
