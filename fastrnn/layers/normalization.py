"""Layer normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend, DenseCall
from fastrnn.checks import as_array, boolean, expect_dtype, finite, floating, rows, size
from fastrnn.functions import mean_product, normalized
from fastrnn.layers.base import Shape, Stateless, checked_shape, expect_features
from fastrnn.layers.dense import flat
from fastrnn.one_step import Form, OneStep
from fastrnn.packed import stand_in
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
        y = backends.current().dense(self._call(rows(flat(x)))).reshape(x.shape)
        return y, {"x": x} | ({} if self.weight is None else {"weight": self.weight})

    def _call(self, x: Array) -> DenseCall:
        return DenseCall("normalize", x, epsilon=self.epsilon, scale=self.weight, shift=self.bias)

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        with np.errstate(all="ignore"):  # infinity and NaN propagate
            n, r = normalized(kept["x"], self.epsilon)
        sums = {"weight": np.einsum("ij,ij->j", flat(dy), flat(n)), "bias": flat(dy).sum(axis=0)}
        dn: Array = dy * kept.get("weight", 1)
        mean, along = dn.mean(axis=-1, keepdims=True), mean_product(dn, n)
        dn -= mean  # in place: new memory for large arrays takes longer than the arithmetic
        n *= along
        dn -= n
        dn *= r
        return dn, {name: sums[name] for name in self.parameters()}

    def add_steps(self, step: OneStep) -> Form:
        step.add(self, self.input_size)
        return None

    @property
    def floats(self) -> int:
        """Floats per row that one step needs."""
        return self.input_size

    def stage(self, backend: Backend, B: int, threads: int) -> DenseCall:
        """Return the call for one step of B rows, which reads the parameters in place."""
        return self._call(stand_in(1, B, self.input_size, self.dtype)[0])

    def __repr__(self) -> str:
        parts = "".join([f", {name}=False" for name, p in (("scale", self.weight), ("center", self.bias)) if p is None])
        return f"LayerNormalization({self.input_size}, {self.epsilon:g}{parts}, dtype={self.dtype})"
