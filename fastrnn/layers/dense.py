"""The dense (fully connected) layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import backends, checks
from fastrnn.call import Backend, DenseCall
from fastrnn.checks import as_array, boolean, expect_dtype, expect_room, floating, generator, rows, size
from fastrnn.functions import FUNCTIONS
from fastrnn.initializers import GlorotUniform, Initializer, RandomUniform, Zeros, chosen, initial
from fastrnn.layers.base import Shape, Stateless, checked_shape, expect_features
from fastrnn.one_step import Form, OneStep
from fastrnn.packed import Packings, stand_in
from fastrnn.types import Array


class Dense(Stateless):
    """``y = activation(x W' + b)`` on the last axis, so for every step of a sequence.

    Parameters
    ----------
    input_size, output_size : int
        Last axes of x and y.
    activation : {"identity", "sigmoid", "tanh", "relu", "softmax"}
        "linear" and None are aliases of "identity".
    bias : bool
        Whether there is a bias.
    dtype : float32 or float64
        Dtype of the weights, inputs and outputs.
    initializer : {"torch", "keras"} or dict
        "torch" is uniform within 1 / sqrt(input_size); "keras" has Glorot-uniform weights and a bias of 0; a dict
        maps "weight", "bias" or both to one of `fastrnn.initializers`.
    rng : int or numpy.random.Generator, optional
        For the initial weights.

    Attributes
    ----------
    weight : (output_size, input_size) array
    bias : (output_size,) array or None

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

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
        self._packings = Packings()

    def parameters(self) -> dict[str, Array]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def output_shape(self, shape: Shape) -> Shape:
        shape = checked_shape(shape)
        expect_features(shape, self.input_size)
        return (*shape[:-1], self.output_size)

    def _run(self, x: Any, training: bool, rng: Any, threads: int | None) -> tuple[Array, dict[str, Array]]:
        x = expect_dtype("x", as_array("x", x), self.dtype, "the layer's")
        expect_features(x.shape, self.input_size)
        backend, call = backends.current(), self._call(rows(flat(x)), backends.thread_count(threads))
        if not training:  # training changes the weights before they are used again
            call = call._replace(packed=self._packed(backend))
        y = backend.dense(call).reshape(*x.shape[:-1], self.output_size)
        kept = {"x": x, "weight": self.weight}
        return y, kept if self.activation == "identity" else kept | {"y": y}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        x, y = kept["x"], kept.get("y", dy)
        da = FUNCTIONS[self.activation].backward(flat(dy), flat(y))
        grads = {"weight": da.T @ flat(x)} | ({} if self.bias is None else {"bias": da.sum(axis=0)})
        return (da @ kept["weight"]).reshape(x.shape), grads

    def _call(self, x: Array, threads: int = 1) -> DenseCall:
        return DenseCall(self.activation, x, np.ascontiguousarray(self.weight), self.bias, threads)

    def changed(self) -> None:
        """Repack the parameters after they were changed in place. Open streams use the new ones."""
        self._packings.update(self._pack, (self.weight, self.bias))

    def _packed(self, backend: Backend, streamed: bool = False) -> Any:
        """Return the packed parameters for a backend, repacked if a change shows."""
        return self._packings.get(backend, self._pack, (self.weight, self.bias), self.changed, streamed)

    def _pack(self, backend: Backend, layout: str, packed: Any) -> Any:
        return backend.pack_dense(self._call(stand_in(1, 0, self.input_size, self.dtype)[0]), layout, packed)

    def add_steps(self, step: OneStep) -> Form:
        step.add(self, self.output_size)
        return None

    @property
    def floats(self) -> int:
        """Floats per row that one step needs."""
        return self.input_size + self.output_size

    def stage(self, backend: Backend, B: int, threads: int) -> DenseCall:
        """Return the call for one step of B rows; its packed weights are updated by every `changed`."""
        packed = self._packed(backend, streamed=True)
        return self._call(stand_in(1, B, self.input_size, self.dtype)[0], threads)._replace(packed=packed)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packings": Packings()}

    def __repr__(self) -> str:
        activation = "" if self.activation == "identity" else f", {self.activation!r}"
        bias = "" if self.bias is not None else ", bias=False"
        return f"Dense({self.input_size}, {self.output_size}{activation}{bias}, dtype={self.dtype})"


def flat(a: Array) -> Array:
    """Reshape to (n, features), for one product over all steps and sequences."""
    return a.reshape(-1, a.shape[-1])
