"""The dropout layer and its masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.checks import floating_array, fraction, generator
from fastrnn.layers.base import Stateless
from fastrnn.one_step import Form, OneStep
from fastrnn.types import Array


def mask(shape: tuple[int, ...], rate: float, rng: Any, dtype: np.dtype[Any]) -> Array:
    """Draw a mask: 0 with probability `rate`, else 1 / (1 - rate), which preserves the expectation."""
    kept = generator(rng).random(shape, np.float32) >= rate
    scaled: Array = kept * dtype.type(1 / (1 - rate))
    return scaled


class Dropout(Stateless):
    """In training, set values to 0 with probability `rate` and scale the others by 1 / (1 - rate); after [1]_.

    Parameters
    ----------
    rate : float
        In [0, 1), dimensionless.

    Raises
    ------
    TypeError, ValueError
        If `rate` is not such a number.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> dropout = fastrnn.Dropout(0.5)
    >>> dropout(np.ones(3))
    array([1., 1., 1.])
    >>> y, _, cache = dropout.forward(np.ones(1000), training=True, rng=0)
    >>> np.unique(y), np.array_equal(dropout.backward(np.ones(1000), cache).dx, y)
    (array([0., 2.]), True)
    """

    def __init__(self, rate: float) -> None:
        self.rate = fraction("rate", rate)

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        x = floating_array("x", x)
        if not training:
            return x, {}
        kept = mask(x.shape, self.rate, rng, x.dtype)
        return x * kept, {"mask": kept}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return dy * kept["mask"], {}

    def add_steps(self, step: OneStep) -> Form:
        return None

    def __repr__(self) -> str:
        return f"Dropout({self.rate})"
