"""ONNX's RNN, GRU and LSTM nodes."""

from __future__ import annotations

from typing import Any

from fastrnn.layers.recurrent import Recurrent


def from_onnx(path_or_model: Any, node: str | None = None) -> Recurrent:
    """A layer with the weights of a model's recurrent nodes.

    >>> # to come
    """
    raise NotImplementedError


def to_onnx(layer: Any, *, lengths: bool = False, state: bool = False) -> Any:
    """A model (onnx.ModelProto) that computes what the layer does.

    >>> # to come
    """
    raise NotImplementedError
