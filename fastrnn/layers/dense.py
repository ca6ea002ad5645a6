"""A matrix, a bias and a function on the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.cells import Array
from fastrnn.checks import as_array, boolean, expect_dtype, expect_room, floating, generator, size
from fastrnn.initializers import GlorotUniform, Initializer, RandomUniform, Zeros, chosen, initial
from fastrnn.layers.activation import FUNCTIONS
from fastrnn.layers.base import Shape, Stateless, checked_shape


class Dense(Stateless):
    """``y = activation(x W' + b)`` on the last axis, so on every step of a sequence alike.

    Parameters
    ----------
    input_size, output_size : int
        Last axes of x and y.
    activation : {"identity", "sigmoid", "tanh", "relu", "softmax"}
        "linear" and None are other names of "identity".
    bias : bool
        Whether there is a bias.
    dtype : float32 or float64
        Of the weights, inputs and outputs.
    initializer : {"torch", "keras"} or dict
        "torch" is uniform within 1 / sqrt(input_size); "keras" has Glorot-uniform weights and a bias of 0; a dict
        holds one of `fastrnn.initializers` for "weight", "bias" or both.
    rng : int or numpy.random.Generator, optional
        For the initial weights.

    Attributes
    ----------
    weight : (output_size, input_size) array
    bias : (output_size,) array or None

    Raises
    ------
    TypeError, ValueError
        For an argument that is not one of these; the message names it.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> dense = fastrnn.Dense(3, 2, "softmax", rng=0)
    >>> y, _, cache = dense.forward(np.ones((5, 4, 3), np.float32), training=True)  # (T, B, F), (B, T, F) or (B, F)
    >>> dx, _, grads = dense.backward(np.ones_like(y), cache)
    >>> y.shape, dx.shape, grads["weight"].shape
    ((5, 4, 2), (5, 4, 3), (2, 3))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        activation: str | None = "identity",
        *,
        bias: bool = True,
        dtype: Any = np.float32,
        initializer: Any = "torch",
        rng: Any = None,
    ) -> None:
        self.input_size, self.output_size = size("input_size", input_size), size("output_size", output_size)
        sizes = self.input_size, self.output_size
        expect_room("output_size", "input_size, output_size", sizes, *sizes)
        self.activation = checks.activation("activation", "identity" if activation is None else activation, FUNCTIONS)
        boolean("bias", bias)
        self.dtype = floating(dtype)
        shapes = {"weight": (self.output_size, self.input_size)} | ({"bias": (self.output_size,)} if bias else {})
        torch: dict[str, Initializer] = dict.fromkeys(shapes, RandomUniform(1 / np.sqrt(self.input_size)))
        start = chosen(initializer, {"torch": torch, "keras": {"weight": GlorotUniform(), "bias": Zeros()}})
        rng = generator(rng)
        new = {name: initial(start[name], name, shape, rng, self.dtype) for name, shape in shapes.items()}
        self.weight, self.bias = new["weight"], new.get("bias")

    def parameters(self) -> dict[str, Array]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def output_shape(self, shape: Shape) -> Shape:
        shape = checked_shape(shape)
        self._expect_features(shape)
        return (*shape[:-1], self.output_size)

    def _expect_features(self, shape: Shape) -> None:
        if not shape or shape[-1] != self.input_size:
            raise ValueError(f"x: expected shape (..., {self.input_size}), got {shape}")

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        x = expect_dtype("x", as_array("x", x), self.dtype, "the layer's")
        self._expect_features(x.shape)
        bias = self.dtype.type(0) if self.bias is None else self.bias
        y = FUNCTIONS[self.activation].f(flat(x) @ self.weight.T + bias).reshape(*x.shape[:-1], self.output_size)
        kept = {"x": x, "weight": self.weight}
        return y, kept if self.activation == "identity" else kept | {"y": y}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        x, y = kept["x"], kept.get("y", dy)
        da = FUNCTIONS[self.activation].backward(flat(dy), flat(y))
        grads = {"weight": da.T @ flat(x)} | ({} if self.bias is None else {"bias": da.sum(axis=0)})
        return (da @ kept["weight"]).reshape(x.shape), grads

    def __repr__(self) -> str:
        activation = "" if self.activation == "identity" else f", {self.activation!r}"
        bias = "" if self.bias is not None else ", bias=False"
        return f"Dense({self.input_size}, {self.output_size}{activation}{bias}, dtype={self.dtype})"


def flat(a: Array) -> Array:
    """(n, features): one product for all steps and sequences."""
    return a.reshape(-1, a.shape[-1])
