"""Layer normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.checks import as_array, boolean, expect_dtype, finite, floating, size
from fastrnn.layers.base import Shape, Stateless, checked_shape, expect_features
from fastrnn.types import Array


class LayerNormalization(Stateless):
    """``y = weight * (x - mean) / sqrt(variance + epsilon) + bias`` on the last axis [1]_, like torch.nn.LayerNorm.

    The mean and the (biased) variance are taken over the F features of each step of each sequence.

    Parameters
    ----------
    input_size : int
        F.
    epsilon : float
        At least 0; PyTorch's default is 1e-5, Keras' 1e-3.
    scale, center : bool
        Whether there is a weight, and whether there is a bias.
    dtype : float32 or float64
        Dtype of the parameters, inputs and outputs.

    Attributes
    ----------
    weight : (F,) array of ones, or None
    bias : (F,) array of zeros, or None

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016, eq. 3 and 4.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> fastrnn.LayerNormalization(2, dtype=np.float64)(np.array([[1.0, 3.0], [5.0, 5.0]])).round(3)
    array([[-1.,  1.],
           [ 0.,  0.]])
    """

    def __init__(
        self,
        input_size: int,
        epsilon: float = 1e-5,
        *,
        scale: bool = True,
        center: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.input_size, self.epsilon = size("input_size", input_size), finite("epsilon", epsilon, 0.0)
        boolean("scale", scale)
        boolean("center", center)
        self.dtype = floating(dtype)
        self.weight = np.ones(self.input_size, self.dtype) if scale else None
        self.bias = np.zeros(self.input_size, self.dtype) if center else None

    def parameters(self) -> dict[str, Array]:
        return {name: p for name, p in (("weight", self.weight), ("bias", self.bias)) if p is not None}

    def output_shape(self, shape: Shape) -> Shape:
        shape = checked_shape(shape)
        expect_features(shape, self.input_size)
        return shape

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        x = expect_dtype("x", as_array("x", x), self.dtype, "the layer's")
        expect_features(x.shape, self.input_size)
        with np.errstate(all="ignore"):  # infinity and NaN propagate
            centred = x - x.mean(axis=-1, keepdims=True)
            r = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + self.dtype.type(self.epsilon))
            n = centred * r
            y = n if self.weight is None else n * self.weight
            y = y if self.bias is None else y + self.bias
        return y, {"n": n, "r": r} | ({} if self.weight is None else {"weight": self.weight})

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        n, r = kept["n"], kept["r"]
        dn = dy * kept["weight"] if "weight" in kept else dy
        dx: Array = r * (dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True))
        every = tuple(range(dy.ndim - 1))
        sums = {"weight": (dy * n).sum(axis=every), "bias": dy.sum(axis=every)}
        return dx, {name: sums[name] for name in self.parameters()}

    def __repr__(self) -> str:
        parts = "".join([f", {name}=False" for name, p in (("scale", self.weight), ("center", self.bias)) if p is None])
        return f"LayerNormalization({self.input_size}, {self.epsilon:g}{parts}, dtype={self.dtype})"
