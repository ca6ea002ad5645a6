"""Elementwise functions and softmax as a layer."""

from __future__ import annotations

from typing import Any

from fastrnn import backends, checks
from fastrnn.call import DenseCall
from fastrnn.checks import floating_array, rows
from fastrnn.functions import FUNCTIONS
from fastrnn.layers.base import Stateless
from fastrnn.one_step import Form, OneStep, RowFunction
from fastrnn.types import Array


class Activation(Stateless):
    """An elementwise function, or softmax along the last axis.

    Parameters
    ----------
    activation : {"identity", "sigmoid", "tanh", "relu", "softmax"}
        "linear" is an alias of "identity".

    Raises
    ------
    ValueError
        If the name is unknown.

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
        x = floating_array("x", x)
        if self.activation == "identity" or not x.size:
            return x, {} if self.activation == "identity" else {"y": x}
        row = x.shape[-1] if self.activation == "softmax" and x.ndim else x.size
        y = backends.current().dense(DenseCall(self.activation, rows(x.reshape(-1, row)))).reshape(x.shape)
        return y, {"y": y}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return FUNCTIONS[self.activation].backward(dy, kept.get("y", dy)), {}

    def add_steps(self, step: OneStep) -> Form:
        if self.activation != "identity":
            step.add(RowFunction(self.activation, step.features, step), step.features)
        return None

    def __repr__(self) -> str:
        return f"Activation({self.activation!r})"
