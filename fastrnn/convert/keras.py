"""Keras' layers and models.

`keras_files` finds configurations and `keras_weights` weights; `keras_layers` and `keras_cells` say what they mean.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastrnn.cells import Array, Cell
from fastrnn.checks import boolean, named_cell
from fastrnn.convert import keras_bare, keras_files
from fastrnn.convert.keras_layers import check_masks, converted
from fastrnn.convert.keras_options import Taken
from fastrnn.convert.stack import Arrays, recurrent, refuse
from fastrnn.extras import needed
from fastrnn.frameworks import KERAS, keras_activation, keras_options, reordered, two_biases
from fastrnn.layers import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    LastStep,
    Layer,
    LayerNormalization,
    RepeatVector,
)
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training import Sequential


def from_keras(
    model_or_path: Any,
    *,
    layer: str | None = None,
    cell: str | None = None,
    inference: bool = False,
    lengths: bool = False,
    state: bool = False,
) -> Layer:
    """A layer, or a `Sequential`, with the weights and options of Keras'.

    Files are read with h5py alone: neither Keras nor TensorFlow need be installed. Models are Sequential, or functional
    and one chain of layers, and may stand inside one another; what is in them is SimpleRNN, GRU, LSTM (also as an RNN
    of cells, and as CuDNNGRU, CuDNNLSTM), Bidirectional, Dense, TimeDistributed, Embedding, Dropout, Activation, ReLU,
    Softmax, LayerNormalization, RepeatVector, GlobalAveragePooling1D, GlobalMaxPooling1D. Recurrent layers become
    ``batch_first``, and have one bias where Keras has one (``bias="input"``); those with functions that no built-in
    cell has become a `Recurrent` of a cell of `fastrnn.catalogue`.

    Parameters
    ----------
    model_or_path : path, or a keras.Model or keras.Layer that is built
        A file `.keras`, or an older `.h5` of a whole model, by Keras 3 or 2.
    layer : str, optional
        The name of one layer of the model, which alone is meant, whatever else the model has.
    cell : {"lstm", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity"}, optional
        For a file of weights alone, of ``save_weights``, which does not say it: that of the recurrent layer, which
        `layer` names where there are several. The GRU of Keras 2 and 3 is "gru_after". ``return_sequences`` and `merge`
        are fastrnn's defaults then. `Sequential.load_keras_weights` takes the weights of a whole model.
    inference : bool
        Leave out what acts in training alone and has no counterpart: regularizers, constraints, noise, dropout of whole
        features, and dropout inside recurrent layers, but for a SimpleRNN's ``recurrent_dropout``, which the layer has.
        Else they are refused.
    lengths : bool
        Leave out Masking layers and ``mask_zero``: you give ``lengths=`` in calls. For sequences that are padded at
        their end, and have no masked step before, it is the same up to there; past that a model's y is 0. Else they
        are refused.
    state : bool
        Leave out ``stateful=True``: you give ``state=`` in calls of the layers, and keep what they return. Else it is
        refused.

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
    >>> lstm = fastrnn.from_keras("model.keras", layer="lstm_1")  # doctest: +SKIP
    """
    for name, value in (("inference", inference), ("lengths", lengths), ("state", state)):
        boolean(name, value)
    if not isinstance(layer, str | None):
        raise TypeError(f"layer: expected the name of a layer, got {layer!r:.80}")
    if cell is not None:
        if not isinstance(model_or_path, str | os.PathLike):
            raise TypeError(f"cell: expected it for the path of a file of weights, got {type(model_or_path).__name__}")
        return keras_bare.one_layer(model_or_path, named_cell(cell), layer)
    taken = Taken(inference, lengths, state)
    whole = layer is None
    if isinstance(model_or_path, str | os.PathLike):
        pieces = keras_files.read(model_or_path, layer)
    elif not hasattr(model_or_path, "get_config") or not hasattr(model_or_path, "get_weights"):
        raise TypeError(
            f"model_or_path: expected a path, or a Keras model or layer, got {type(model_or_path).__name__}"
        )
    elif hasattr(model_or_path, "layers"):
        pieces = keras_files.of_model(model_or_path, layer)
    elif layer is not None:
        raise ValueError(f"layer: expected None beside a layer, got {layer!r:.80}")
    else:
        pieces, whole = [keras_files.of_layer(model_or_path)], False
    layers = [one for piece in pieces for one in converted(piece, taken)]
    if lengths:
        check_masks(pieces)
    if not layers and not whole:
        raise ValueError(f"{pieces[0].title}: has no counterpart of its own")
    if not layers:
        raise ValueError("model_or_path: expected at least one layer, got a model without")
    return layers[0] if not whole and len(layers) == 1 else Sequential(layers)


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
        For what Keras does not have: peepholes, `proj_size`, bfloat16 weights, zoneout, weight drop,
        `recurrent_dropout` with one mask for several gates, an embedding's ``padding_idx``, other cells than its own
        and those of `fastrnn.catalogue` that are its own with other activations. The message names it.
    ImportError
        If Keras is not installed; it uses the backend that it is set to.

    Examples
    --------
    >>> import fastrnn
    >>> model = fastrnn.to_keras(fastrnn.LSTM(3, 4))  # doctest: +SKIP
    """
    keras = needed("keras", "keras")
    if not isinstance(layer, Sequential) and getattr(layer, "num_layers", 1) == 1:
        (made,) = made_layers(keras, layer)
        return made
    model = keras.Sequential(made_layers(keras, layer))
    if (shape := Sequential([layer]).input_shape)[-1] is not None or len(shape) == 2:
        model.build(shape)
    return model


def made_layers(keras: Any, layer: Layer) -> list[Any]:
    """Keras' layers for one of ours, with their weights, frozen as it is."""
    made = counterparts(keras, layer)
    for one in made if not layer.trainable else ():
        one.trainable = False
    return made


def counterparts(keras: Any, layer: Layer) -> list[Any]:
    """Keras' layers for one of ours, with their weights."""
    if isinstance(layer, Sequential):
        return [made for one in layer.layers for made in made_layers(keras, one)]
    if isinstance(layer, Recurrent):
        return made_stack(keras, recurrent(layer, KERAS))
    if isinstance(layer, Dense):
        made = keras.layers.Dense(
            layer.output_size,
            keras_activation(layer.activation),
            use_bias=layer.bias is not None,
            dtype=str(layer.dtype),
        )
        values = [layer.weight.T, *([] if layer.bias is None else [layer.bias])]
        return [filled(made, (None, layer.input_size), values)]
    if isinstance(layer, Embedding):
        refuse(layer, KERAS, "padding_idx", layer.padding_idx, None)
        made = keras.layers.Embedding(layer.num_embeddings, layer.embedding_dim, dtype=str(layer.dtype))
        return [filled(made, (None, None), [layer.weight])]
    if isinstance(layer, Dropout):
        return [keras.layers.Dropout(layer.rate)]
    if isinstance(layer, LayerNormalization):
        options = {"center": layer.bias is not None, "scale": layer.weight is not None, "dtype": str(layer.dtype)}
        made = keras.layers.LayerNormalization(epsilon=layer.epsilon, **options)
        return [filled(made, (None, layer.input_size), list(layer.parameters().values()))]
    if isinstance(layer, RepeatVector):
        return [keras.layers.RepeatVector(layer.n)]
    if isinstance(layer, GlobalAveragePooling1D | GlobalMaxPooling1D):
        return [getattr(keras.layers, type(layer).__name__)()]
    if isinstance(layer, LastStep):
        raise ValueError("layer: Keras has no LastStep; a recurrent layer with return_sequences=False has one")
    if isinstance(layer, Activation):
        return [keras.layers.Activation(keras_activation(layer.activation))]
    raise TypeError(f"layer: expected one of fastrnn's, got {type(layer).__name__}")


def made_stack(keras: Any, layer: Recurrent) -> list[Any]:
    """A layer of Keras' for each of the stack, and what is between them."""
    cell = layer.stack.cell
    if "output" in cell.options:
        refuse(layer, KERAS, "output", cell.options["output"], cell.options["candidate"])
    options = keras_options(cell) | {"use_bias": bool(layer.bias), "dtype": str(layer.dtype)}
    parts, D, made = layer.stack.parts, 1 + layer.bidirectional, []
    for i in range(layer.num_layers):
        own, top = parts[i * D : (i + 1) * D], i == layer.num_layers - 1
        one = getattr(keras.layers, KERAS.classes[cell.family])(
            layer.hidden_size,
            return_sequences=layer.return_sequences or not top,
            recurrent_dropout=layer.recurrent_dropout,
            **options,
        )
        if layer.bidirectional:
            mode = {ours: name for name, ours in KERAS.merges.items()}[layer.merge]
            one = keras.layers.Bidirectional(one, merge_mode=mode, dtype=str(layer.dtype))
        values = [a for way in own for a in keras_weights(way, cell)]
        made.append(filled(one, (None, None, own[0]["W"].shape[1]), values))
        if layer.dropout and not top:
            made.append(keras.layers.Dropout(layer.dropout))
    return made


def keras_weights(own: Arrays, cell: Cell) -> list[Array]:
    """Kernel, recurrent kernel and bias of one direction."""
    arrays = [own["W"].T, own["U"].T]
    if "b" in own:
        b_rec = own.get("b_rec", np.zeros_like(own["b"]))
        both = np.stack([own["b"], b_rec])
        arrays.append(both if two_biases(cell) else own["b"] + b_rec if "b_rec" in own else own["b"])
    return [reordered(a, cell.gates, KERAS.gates[cell.family], axis=-1) for a in arrays]


def filled(layer: Any, shape: tuple[int | None, ...], values: list[Array]) -> Any:
    layer.build(shape)
    layer.set_weights(values)
    return layer
