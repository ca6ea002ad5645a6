"""Convert Keras layers and models, from and to fastrnn.

`keras_files` finds configurations and `keras_weights` weights; `keras_layers` and `keras_cells` convert them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastrnn.cells import Array, Cell
from fastrnn.checks import boolean, named_cell
from fastrnn.convert import keras_bare, keras_files
from fastrnn.convert.keras_layers import check_masks, converted
from fastrnn.convert.keras_options import Taken
from fastrnn.convert.stack import Arrays, kind_of, recurrent, refuse, titled, unstacked
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
    """Make a layer or a `Sequential` with the weights and options of a Keras layer or model.

    Reading files needs only h5py, neither Keras nor TensorFlow. Models must be Sequential, or functional with a single
    chain of layers, and may be nested. Supported layers are SimpleRNN, GRU, LSTM (also as an RNN of cells, and as
    CuDNNGRU, CuDNNLSTM), Bidirectional, Dense, TimeDistributed, Embedding, Dropout, Activation, ReLU, Softmax,
    LayerNormalization, RepeatVector, GlobalAveragePooling1D, GlobalMaxPooling1D. Recurrent layers become
    ``batch_first``, with one bias if Keras has one (``bias="input"``); those with activations that no built-in cell has
    become a `Recurrent` with a cell of `fastrnn.catalogue`.

    Parameters
    ----------
    model_or_path : path, or a built keras.Model or keras.Layer
        A `.keras` file, or an older `.h5` file of a whole model, by Keras 3 or 2.
    layer : str, optional
        Convert only the layer of this name; the rest of the model is ignored.
    cell : {"lstm", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity"}, optional
        The cell of the recurrent layer in a file of ``save_weights``, which holds only weights; `layer` names the layer
        if there are several. The GRU of Keras 2 and 3 is "gru_after". ``return_sequences`` and `merge` then have
        fastrnn's defaults. `Sequential.load_keras_weights` loads the weights of a whole model.
    inference : bool
        Drop unsupported options that only affect training: regularizers, constraints, noise, dropout of whole features,
        and dropout inside recurrent layers (except a SimpleRNN's ``recurrent_dropout``, which is supported). By default
        they raise an error.
    lengths : bool
        Drop Masking layers and ``mask_zero``; pass ``lengths=`` in calls instead. Results are the same for sequences
        padded only at the end; past the lengths a model's y is 0. By default they raise an error.
    state : bool
        Drop ``stateful=True``; pass ``state=`` in calls of the layers and keep the state that they return. By default
        it raises an error.

    Returns
    -------
    Layer
        A `Sequential` for a model.

    Raises
    ------
    TypeError
        For another object, or weights that are neither float32 nor float64.
    ValueError
        For an unsupported layer or option; the message names the layer, the option and its value. Also for a file that
        Keras did not write.
    ImportError
        If a file is given and h5py is not installed.

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
            raise TypeError(f"cell: needs the path of a weights file, got {type(model_or_path).__name__}")
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
        raise ValueError(f"layer: expected None if model_or_path is a layer, got {layer!r:.80}")
    else:
        pieces, whole = [keras_files.of_layer(model_or_path)], False
    layers = [one for piece in pieces for one in converted(piece, taken)]
    if lengths:
        check_masks(pieces)
    if not layers and not whole:
        raise ValueError(f"{pieces[0].title}: does not correspond to a layer")
    if not layers:
        raise ValueError("model_or_path: expected at least one layer, got a model without layers")
    return layers[0] if not whole and len(layers) == 1 else Sequential(layers)


def to_keras(layer: Any) -> Any:
    """Make a Keras layer or model with the weights and options of a layer or a `Sequential`.

    The Keras layer is batch-first, (B, T, I), whatever the layer's ``batch_first``. It has one bias, the sum of both if
    the layer has two, except a GRU with ``reset_after``.

    Parameters
    ----------
    layer : Layer
        A layer of fastrnn.

    Returns
    -------
    keras.Layer
        A keras.Sequential for a `Sequential`, and for a recurrent layer with ``num_layers`` above 1.

    Raises
    ------
    TypeError
        For another layer.
    ValueError
        For features that Keras lacks: peepholes, `proj_size`, bfloat16 weights, zoneout, weight drop,
        `recurrent_dropout` with one mask for several gates, an embedding's ``padding_idx``, and cells other than
        Keras' and their variants with other activations in `fastrnn.catalogue`. The message names it.
    ImportError
        If Keras is not installed. Keras uses its configured backend.

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
    """Return the Keras layers for one of ours, with its weights, and frozen if it is."""
    made = counterparts(keras, layer)
    for one in made if not layer.trainable else ():
        one.trainable = False
    return made


def counterparts(keras: Any, layer: Layer) -> list[Any]:
    """Return the Keras layers for one of ours, with its weights."""
    if isinstance(layer, Sequential):
        return [made for one in layer.layers for made in made_layers(keras, one)]
    with titled("layer"):
        kind = kind_of(layer, MAKERS)
    return MAKERS[kind](keras, layer)


def made_stack(keras: Any, layer: Recurrent) -> list[Any]:
    """Return one Keras layer for each of the stack, with dropout between them."""
    cell = layer.stack.cell
    if "output" in cell.options:
        refuse(layer, KERAS, "output", cell.options["output"], cell.options["candidate"])
    options = keras_options(cell) | {"use_bias": bool(layer.bias), "dtype": str(layer.dtype)}
    options["recurrent_dropout"] = layer.recurrent_dropout
    made = []
    for own in unstacked(layer):
        if not isinstance(own, Recurrent):
            made += counterparts(keras, own)
            continue
        kind = getattr(keras.layers, KERAS.classes[cell.family])
        one = kind(layer.hidden_size, return_sequences=own.return_sequences, **options)
        if layer.bidirectional:
            mode = {ours: name for name, ours in KERAS.merges.items()}[layer.merge]
            one = keras.layers.Bidirectional(one, merge_mode=mode, dtype=str(layer.dtype))
        values = [a for way in own.stack.parts for a in keras_weights(way, cell)]
        made.append(filled(one, (None, None, own.input_size), values))
    return made


def keras_weights(own: Arrays, cell: Cell) -> list[Array]:
    """Return kernel, recurrent kernel and bias of one direction."""
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


def made_dense(keras: Any, layer: Dense) -> list[Any]:
    options = {"use_bias": layer.bias is not None, "dtype": str(layer.dtype)}
    made = keras.layers.Dense(layer.output_size, keras_activation(layer.activation), **options)
    values = [layer.weight.T, *([] if layer.bias is None else [layer.bias])]
    return [filled(made, (None, layer.input_size), values)]


def made_embedding(keras: Any, layer: Embedding) -> list[Any]:
    refuse(layer, KERAS, "padding_idx", layer.padding_idx, None)
    made = keras.layers.Embedding(layer.num_embeddings, layer.embedding_dim, dtype=str(layer.dtype))
    return [filled(made, (None, None), [layer.weight])]


def made_normalization(keras: Any, layer: LayerNormalization) -> list[Any]:
    options = {"center": layer.bias is not None, "scale": layer.weight is not None, "dtype": str(layer.dtype)}
    made = keras.layers.LayerNormalization(epsilon=layer.epsilon, **options)
    return [filled(made, (None, layer.input_size), list(layer.parameters().values()))]


def no_last_step(keras: Any, layer: LastStep) -> NoReturn:
    raise ValueError("layer: Keras has no LastStep; use return_sequences=False in the recurrent layer instead")


#: class of a layer -> the function that makes its Keras layers
MAKERS: dict[type[Layer], Callable[[Any, Any], list[Any]]] = {
    Recurrent: lambda keras, layer: made_stack(keras, recurrent(layer, KERAS)),
    Dense: made_dense,
    Embedding: made_embedding,
    Dropout: lambda keras, layer: [keras.layers.Dropout(layer.rate)],
    LayerNormalization: made_normalization,
    RepeatVector: lambda keras, layer: [keras.layers.RepeatVector(layer.n)],
    GlobalAveragePooling1D: lambda keras, layer: [keras.layers.GlobalAveragePooling1D()],
    GlobalMaxPooling1D: lambda keras, layer: [keras.layers.GlobalMaxPooling1D()],
    LastStep: no_last_step,
    Activation: lambda keras, layer: [keras.layers.Activation(keras_activation(layer.activation))],
}
