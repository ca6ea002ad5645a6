"""Copies of models whose recurrent layers store their weights in fewer bits."""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np

from fastrnn.convert.stack import expect_layer
from fastrnn.layers.base import Layer
from fastrnn.layers.options import options_of
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training import Sequential

Model = TypeVar("Model", bound=Layer)


def quantize(model: Model, weight_dtype: str = "int8") -> Model:
    """Return a copy of a layer or model whose recurrent layers have weights of another dtype, for inference.

    Parameters
    ----------
    model : Layer
        A float32 layer of fastrnn, or a `Sequential`. Other layers than recurrent ones are copied as they are.
    weight_dtype : "int8" or "bfloat16"
        As for the layers; see `layers.LSTM`.

    Returns
    -------
    Layer
        Of the same class. The arguments of `Sequential.compile` are not copied.

    Raises
    ------
    TypeError
        If `model` is not a layer of fastrnn.
    ValueError
        For another `weight_dtype`, or a layer that does not support it; the message names the option.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> model = fastrnn.Sequential([fastrnn.LSTM(3, 64, rng=0), fastrnn.Dense(64, 2, rng=1)])
    >>> small = fastrnn.quantize(model)
    >>> x = np.ones((2, 5, 3), np.float32)
    >>> bool(np.abs(small(x) - model(x)).max() < 0.01)
    True
    """
    expect_layer("model", model)
    if isinstance(model, Sequential):
        whole = Sequential([quantize(layer, weight_dtype) for layer in model.layers])
        whole.trainable = model.trainable
        return whole  # type: ignore[return-value]  # a Model that is a Sequential
    if not isinstance(model, Recurrent):
        return copy.deepcopy(model)
    parts = [{key: np.array(a) for key, a in part.items()} for part in model.stack.parts]
    layer = type(model).from_parts(model.stack.cell, parts, **options_of(model) | {"weight_dtype": weight_dtype})
    layer.trainable = model.trainable
    return layer
