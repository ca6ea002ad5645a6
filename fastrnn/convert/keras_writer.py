"""Convert layers and models to Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastrnn import layers
from fastrnn.cells import Cell
from fastrnn.checks import titled
from fastrnn.convert.stack import Arrays, kind_of, recurrent, refuse, unstacked
from fastrnn.extras import needed
from fastrnn.frameworks import KERAS, keras_activation, keras_options, reordered, two_biases
from fastrnn.layers import Layer
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training import Sequential
from fastrnn.types import Array


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
        For features that Keras lacks: peepholes, `proj_size`, heads, `weight_dtype`, zoneout, weight drop,
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


def made_dense(keras: Any, layer: layers.Dense) -> list[Any]:
    options = {"use_bias": layer.bias is not None, "dtype": str(layer.dtype)}
    made = keras.layers.Dense(layer.output_size, keras_activation(layer.activation), **options)
    values = [layer.weight.T, *([] if layer.bias is None else [layer.bias])]
    return [filled(made, (None, layer.input_size), values)]


def made_embedding(keras: Any, layer: layers.Embedding) -> list[Any]:
    refuse(layer, KERAS, "padding_idx", layer.padding_idx, None)
    made = keras.layers.Embedding(layer.num_embeddings, layer.embedding_dim, dtype=str(layer.dtype))
    return [filled(made, (None, None), [layer.weight])]


def made_normalization(keras: Any, layer: layers.LayerNormalization) -> list[Any]:
    options = {"center": layer.bias is not None, "scale": layer.weight is not None, "dtype": str(layer.dtype)}
    made = keras.layers.LayerNormalization(epsilon=layer.epsilon, **options)
    return [filled(made, (None, layer.input_size), list(layer.parameters().values()))]


def no_last_step(keras: Any, layer: layers.LastStep) -> NoReturn:
    raise ValueError("layer: Keras has no LastStep; use return_sequences=False in the recurrent layer instead")


#: class of a layer -> the function that makes its Keras layers
MAKERS: dict[type[Layer], Callable[[Any, Any], list[Any]]] = {
    Recurrent: lambda keras, layer: made_stack(keras, recurrent(layer, KERAS)),
    layers.Dense: made_dense,
    layers.Embedding: made_embedding,
    layers.Dropout: lambda keras, layer: [keras.layers.Dropout(layer.rate)],
    layers.LayerNormalization: made_normalization,
    layers.RepeatVector: lambda keras, layer: [keras.layers.RepeatVector(layer.n)],
    layers.GlobalAveragePooling1D: lambda keras, layer: [keras.layers.GlobalAveragePooling1D()],
    layers.GlobalMaxPooling1D: lambda keras, layer: [keras.layers.GlobalMaxPooling1D()],
    layers.LastStep: no_last_step,
    layers.Activation: lambda keras, layer: [keras.layers.Activation(keras_activation(layer.activation))],
}
