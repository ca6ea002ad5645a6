"""Clip gradients in place, so that one exploding gradient does not undo the training.

References
----------
.. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn.checks import expect_mapping, finite, floating_array
from fastrnn.layers.gradients import RowGradient
from fastrnn.types import Array


def clip_by_norm(grads: Mapping[str, Array | RowGradient], limit: float) -> float:
    """Scale all gradients by one factor so that their joint L2 norm is at most `limit`.

    After Pascanu et al. [1]_, algorithm 1, with PyTorch's factor ``min(1, limit / (norm + 1e-6))``.

    Parameters
    ----------
    grads : mapping of names to arrays or `fastrnn.layers.RowGradient`
        Gradients, changed in place.
    limit : float
        Above 0.

    Returns
    -------
    float
        The norm before clipping; NaN or infinite if a gradient is.

    Raises
    ------
    TypeError, ValueError
        If the limit is not a positive number, or a gradient is not a writable array.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import clip_by_norm
    >>> grads = {"W": np.array([[3.0]]), "b": np.array([4.0])}
    >>> clip_by_norm(grads, 1.0)
    5.0
    >>> grads["b"].round(4)
    array([0.8])
    """
    limit, arrays = finite("limit", limit, above=0), writable(grads)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN propagate into the gradients
        norm = math.sqrt(sum(sum_of_squares(g) for g in arrays))
        factor = limit / (norm + 1e-6)
        if not factor >= 1:
            for g in arrays:
                g *= factor
    return norm


def gradient(name: str, g: Any) -> Array | RowGradient:
    return g if isinstance(g, RowGradient) else floating_array(f"grads {name!r}", g)


def writable(grads: Mapping[str, Array | RowGradient]) -> list[Array]:
    """Return the arrays to clip; of a RowGradient, its values (its other rows are 0)."""
    expect_mapping("grads", grads)
    arrays = []
    for name, given in grads.items():
        g = gradient(name, given)
        arrays.append(g.values if isinstance(g, RowGradient) else g)
        if not arrays[-1].flags.writeable:
            raise ValueError(f"grads {name!r}: expected a writable array, because clipping changes it in place")
    return arrays


def sum_of_squares(g: Array) -> float:
    """Return the sum of squares, in float64 because float32 overflows at gradients of 1e19."""
    flat = g.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def clip_by_value(grads: Mapping[str, Array | RowGradient], limit: float) -> None:
    """Clip every element of every gradient to -limit..limit.

    Parameters
    ----------
    grads : mapping of names to arrays or `fastrnn.layers.RowGradient`
        Gradients, changed in place.
    limit : float
        Above 0.

    Raises
    ------
    TypeError, ValueError
        If the limit is not a positive number, or a gradient is not a writable array.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import clip_by_value
    >>> grads = {"b": np.array([-3.0, 0.5])}
    >>> clip_by_value(grads, 1.0)
    >>> grads["b"]
    array([-1. ,  0.5])
    """
    limit = finite("limit", limit, above=0)
    for g in writable(grads):
        np.clip(g, -limit, limit, out=g)
