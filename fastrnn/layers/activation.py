"""Elementwise functions, and softmax, as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.cells import Array, relu, sigmoid, tanh
from fastrnn.checks import floating_array
from fastrnn.layers.base import Stateless


def softmax(a: Array) -> Array:
    """exp(a) over its sum along the last axis, by exponentials of at most 1: it cannot overflow; of none, none."""
    e: Array = np.exp(a - a.max(axis=-1, keepdims=True, initial=-np.inf))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def softmax_backward(ds: Array, s: Array) -> Array:
    """da of s = softmax(a), by s itself."""
    da: Array = s * (ds - (ds * s).sum(axis=-1, keepdims=True))
    return da


class Function(NamedTuple):
    """f(a), and f_backward(df, f(a)): both by the function's own result."""

    f: Callable[[Array], Array]
    backward: Callable[[Array, Array], Array]


FUNCTIONS = {
    "identity": Function(lambda a: a, lambda d, a: d),
    "sigmoid": Function(sigmoid, lambda d, s: d * s * (1 - s)),
    "tanh": Function(tanh, lambda d, t: d * (1 - t) * (1 + t)),
    "relu": Function(relu, lambda d, r: np.where(r <= 0, np.zeros_like(d), d)),
    "softmax": Function(softmax, softmax_backward),
}


class Activation(Stateless):
    """A function of every element, or softmax along the last axis.

    Parameters
    ----------
    activation : {"identity", "sigmoid", "tanh", "relu", "softmax"}
        "linear" is another name of "identity".

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> relu = fastrnn.Activation("relu")
    >>> y, _, cache = relu.forward(np.array([-1.0, 0.0, 2.0]), training=True)
    >>> y, relu.backward(np.ones(3), cache).dx
    (array([0., 0., 2.]), array([0., 0., 1.]))
    """

    def __init__(self, activation: str) -> None:
        self.activation = checks.activation("activation", activation, FUNCTIONS)

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        y = FUNCTIONS[self.activation].f(floating_array("x", x))
        return y, {} if self.activation == "identity" else {"y": y}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return FUNCTIONS[self.activation].backward(dy, kept.get("y", dy)), {}

    def __repr__(self) -> str:
        return f"Activation({self.activation!r})"
