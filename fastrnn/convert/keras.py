"""Keras' layers and models. `keras_files` finds configurations and weights, `keras_layers` says what they mean."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import boolean
from fastrnn.convert import keras_files
from fastrnn.convert.gates import reordered
from fastrnn.convert.keras_layers import FAMILIES, MERGES, converted
from fastrnn.convert.stack import Arrays, cell_of, parts_of, recurrent, refuse
from fastrnn.layers import Activation, Dense, Dropout, Embedding, Layer
from fastrnn.layers.recurrent import Recurrent
from fastrnn.run import family
from fastrnn.training import Sequential


def from_keras(model_or_path: Any, *, inference: bool = False) -> Layer:
    """A layer, or a `Sequential`, with the weights and options of Keras'.

    Files are read with h5py alone: neither Keras nor TensorFlow need be installed. Models are Sequential, or functional
    and one chain of layers, of SimpleRNN, GRU, LSTM, Bidirectional, Dense, TimeDistributed, Embedding, Dropout,
    Activation. Recurrent layers become ``batch_first``, and have one bias where Keras has one (``bias="input"``).

    Parameters
    ----------
    model_or_path : path, or a keras.Model or keras.Layer that is built
        A file `.keras`, or an older `.h5` of a whole model.
    inference : bool
        Leave out what acts in training alone and has no counterpart: regularizers, constraints, ``trainable=False``,
        and dropout inside recurrent layers. Else they are refused.

    Returns
    -------
    Layer
        A `Sequential` for a model.

    Raises
    ------
    TypeError
        For another object, or weights that are neither float32 nor float64.
    ValueError
        For a layer or an option that has no counterpart; the message names the layer, the option and its value. Also
        for a file that Keras did not write.
    ImportError
        If h5py is not installed, and a file is given.

    Examples
    --------
    >>> import fastrnn
    >>> model = fastrnn.from_keras("model.keras")  # doctest: +SKIP
    """
    boolean("inference", inference)
    if isinstance(model_or_path, str | os.PathLike):
        pieces = keras_files.read(model_or_path)
    elif not hasattr(model_or_path, "get_config") or not hasattr(model_or_path, "get_weights"):
        raise TypeError(
            f"model_or_path: expected a path, or a Keras model or layer, got {type(model_or_path).__name__}"
        )
    elif hasattr(model_or_path, "layers"):
        pieces = keras_files.of_model(model_or_path)
    else:
        piece = keras_files.of_layer(model_or_path)
        layer = converted(piece, inference)
        if layer is None:
            raise ValueError(f"{piece.title}: has no counterpart of its own")
        return layer
    layers = [layer for piece in pieces if (layer := converted(piece, inference)) is not None]
    if not layers:
        raise ValueError("model_or_path: expected at least one layer, got a model without")
    return Sequential(layers)


def to_keras(layer: Any) -> Any:
    """A Keras layer or model with the weights and options of a layer or a `Sequential`.

    Keras has the batch first, (B, T, I), whatever the layer has. But for a GRU with ``reset_after`` it has one bias,
    which is the sum of both where a layer has two.

    Parameters
    ----------
    layer : Layer
        One of fastrnn's own.

    Returns
    -------
    keras.Layer
        A keras.Sequential for a `Sequential`, and for a recurrent layer of ``num_layers`` of more than 1.

    Raises
    ------
    TypeError
        For another layer.
    ValueError
        For what Keras does not have: peepholes, bfloat16 weights, an embedding's ``padding_idx``. The message names it.
    ImportError
        If Keras is not installed; it uses the backend that it is set to.

    Examples
    --------
    >>> import fastrnn
    >>> model = fastrnn.to_keras(fastrnn.LSTM(3, 4))  # doctest: +SKIP
    """
    keras = importlib.import_module("keras")
    if not isinstance(layer, Sequential) and getattr(layer, "num_layers", 1) == 1:
        (made,) = made_layers(keras, layer)
        return made
    model = keras.Sequential(made_layers(keras, layer))
    if (shape := Sequential([layer]).input_shape)[-1] is not None or len(shape) == 2:
        model.build(shape)
    return model


def made_layers(keras: Any, layer: Layer) -> list[Any]:
    """Keras' layers for one of ours, with their weights."""
    if isinstance(layer, Sequential):
        return [made for one in layer.layers for made in made_layers(keras, one)]
    if isinstance(layer, Recurrent):
        return made_stack(keras, recurrent(layer, "Keras"))
    if isinstance(layer, Dense):
        made = keras.layers.Dense(
            layer.output_size,
            layer.activation or "linear",
            use_bias=layer.bias is not None,
            dtype=str(layer.dtype),
        )
        values = [layer.weight.T, *([] if layer.bias is None else [layer.bias])]
        return [filled(made, (None, layer.input_size), values)]
    if isinstance(layer, Embedding):
        refuse(layer, "Keras", "padding_idx", layer.padding_idx, None)
        made = keras.layers.Embedding(layer.num_embeddings, layer.embedding_dim, dtype=str(layer.dtype))
        return [filled(made, (None, None), [layer.weight])]
    if isinstance(layer, Dropout):
        return [keras.layers.Dropout(layer.rate)]
    if isinstance(layer, Activation):
        return [keras.layers.Activation(layer.activation)]
    raise TypeError(f"layer: expected one of fastrnn's, got {type(layer).__name__}")


def made_stack(keras: Any, layer: Recurrent) -> list[Any]:
    """A layer of Keras' for each of the stack, and what is between them."""
    cell = cell_of(layer)
    refuse(layer, "Keras", "peephole", layer._cell.peepholes, False)
    kind = {name: ours for ours, name in FAMILIES.items()}[family(cell)]
    chosen = cell.removeprefix("rnn_")
    by_family: dict[str, dict[str, Any]] = {
        "lstm": {},
        "gru": {"reset_after": cell == "gru_after"},
        "rnn": {"activation": "linear" if chosen == "identity" else chosen},
    }
    options = by_family[family(cell)] | {"use_bias": bool(layer.bias), "dtype": str(layer.dtype)}
    ways, made = len(layer._ways), []
    for i, I in enumerate(layer._input_sizes()):
        top = i == layer.num_layers - 1
        one = getattr(keras.layers, kind)(
            layer.hidden_size, return_sequences=layer.return_sequences or not top, **options
        )
        if layer.bidirectional:
            mode = {ours: name for name, ours in MERGES.items()}[layer.merge]
            one = keras.layers.Bidirectional(one, merge_mode=mode, dtype=str(layer.dtype))
        values = [a for own in parts_of(layer)[i * ways : (i + 1) * ways] for a in keras_weights(own, cell)]
        made.append(filled(one, (None, None, I), values))
        if layer.dropout and not top:
            made.append(keras.layers.Dropout(layer.dropout))
    return made


def keras_weights(own: Arrays, cell: str) -> list[Array]:
    """Kernel, recurrent kernel and bias of one direction."""
    arrays = [own["W"].T, own["U"].T]
    if "b" in own:
        b_rec = own.get("b_rec", np.zeros_like(own["b"]))
        both = np.stack([own["b"], b_rec])
        arrays.append(both if cell == "gru_after" else own["b"] + b_rec if "b_rec" in own else own["b"])
    return [reordered(a, family(cell), "fastrnn", "keras", axis=-1) for a in arrays]


def filled(layer: Any, shape: tuple[int | None, ...], values: list[Array]) -> Any:
    layer.build(shape)
    layer.set_weights(values)
    return layer
