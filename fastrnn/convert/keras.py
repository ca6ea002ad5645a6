"""Keras' layers and models."""

from __future__ import annotations

from typing import Any

from fastrnn.layers import Layer


def from_keras(model_or_path: Any, *, inference: bool = False) -> Layer:
    """A layer, or a `Sequential`, with the weights and options of Keras'.

    >>> # to come
    """
    raise NotImplementedError


def to_keras(layer: Any) -> Any:
    """A Keras layer or model with the weights and options of a layer or `Sequential`.

    >>> # to come
    """
    raise NotImplementedError
