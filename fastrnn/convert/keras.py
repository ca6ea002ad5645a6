"""Read Keras layers and models: each layer is a `Piece`, a class with a configuration and weights.

`keras_config` reads configurations and `keras_weights` weights; `keras_layers` converts a piece, `keras_options` checks
its options; `keras_weights_only` reads files without configurations; `keras_writer` converts to Keras.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from fastrnn.checks import boolean, named_cell
from fastrnn.convert import keras_weights_only
from fastrnn.convert.keras_config import Config, Piece, as_meant, chain, is_model, layers_of, name, plain, version
from fastrnn.convert.keras_hdf5 import expect_groups, item, member, opened
from fastrnn.convert.keras_layers import check_masks, converted
from fastrnn.convert.keras_options import Taken
from fastrnn.convert.keras_weights import Live, Named, Numbered, Store
from fastrnn.layers import Layer
from fastrnn.training import Sequential

BARE = (
    "expected a .keras file, or the .h5 file of a whole model. From a file of weights, load_keras_weights(path) of "
    'a Sequential loads all, and from_keras(path, cell="lstm", layer="its name") one layer; in Keras, '
    'model.load_weights(path) and model.save("model.keras") make a whole one'
)


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
    for option, value in (("inference", inference), ("lengths", lengths), ("state", state)):
        boolean(option, value)
    if not isinstance(layer, str | None):
        raise TypeError(f"layer: expected the name of a layer, got {layer!r:.80}")
    if cell is not None:
        if not isinstance(model_or_path, str | os.PathLike):
            raise TypeError(f"cell: needs the path of a weights file, got {type(model_or_path).__name__}")
        return keras_weights_only.one_layer(model_or_path, named_cell(cell), layer)
    taken = Taken(inference, lengths, state)
    whole = layer is None
    if isinstance(model_or_path, str | os.PathLike):
        pieces = read(model_or_path, layer)
    elif not hasattr(model_or_path, "get_config") or not hasattr(model_or_path, "get_weights"):
        raise TypeError(
            f"model_or_path: expected a path, or a Keras model or layer, got {type(model_or_path).__name__}"
        )
    elif hasattr(model_or_path, "layers"):
        pieces = of_model(model_or_path, layer)
    elif layer is not None:
        raise ValueError(f"layer: expected None if model_or_path is a layer, got {layer!r:.80}")
    else:
        pieces, whole = [of_layer(model_or_path)], False
    layers = [one for piece in pieces for one in converted(piece, taken)]
    if lengths:
        check_masks(pieces)
    if not layers and not whole:
        raise ValueError(f"{pieces[0].title}: does not correspond to a layer")
    if not layers:
        raise ValueError("model_or_path: expected at least one layer, got a model without layers")
    return layers[0] if not whole and len(layers) == 1 else Sequential(layers)


def read(path: str | os.PathLike[str], layer: str | None) -> list[Piece]:
    """Read all layers of a model's file, or the one named `layer`."""
    with opened(path, "model") as (file, archive):
        expect_groups(file)
        if archive is not None:
            made = json.loads(member(archive, "metadata.json")) if "metadata.json" in archive.namelist() else {}
            model = as_meant(json.loads(member(archive, "config.json")), made.get("keras_version", "3"))
            return pieces_of(model, Numbered(file), layer)
        if "model_config" not in file.attrs:
            raise ValueError(f"path: {os.fspath(path)} does not hold a model; {BARE}")
        model = as_meant(json.loads(file.attrs["model_config"]), file.attrs.get("keras_version", "1"))
        return pieces_of(model, Named(item(file, "model_weights")), layer)


def of_model(model: Any, layer: str | None) -> list[Piece]:
    """Return all layers of an in-memory model, or the one named `layer`."""
    kind = "Sequential" if any(base.__name__ == "Sequential" for base in type(model).__mro__) else "Functional"
    try:
        config = as_meant(plain(model), version(model))
    except NotImplementedError:
        config = {}
    if not isinstance(config, dict) or "layers" not in config:
        raise TypeError(f"model_or_path: expected a Sequential or functional model, got {type(model).__name__}")
    return pieces_of({"class_name": kind, "config": config}, Live(model), layer)


def of_layer(layer: Any) -> Piece:
    return Piece(type(layer).__name__, as_meant(plain(layer), version(layer)), Live(layer).arrays({}))


def pieces_of(model: Config, store: Store, wanted: str | None) -> list[Piece]:
    """Return the layers in the order of application, or only the wanted one, anywhere in the model."""
    found = list(each_layer(model, store, chained=wanted is None))
    if wanted is not None:
        known = ", ".join(repr(name(one)) for one, _ in found)
        found = [(one, own) for one, own in found if name(one) == wanted]
        if len(found) != 1:
            raise ValueError(f"layer: expected one of {known}, got {wanted!r}, which matches {len(found)}")
    return [Piece(one["class_name"], one["config"], own.arrays(one)) for one, own in found]


def each_layer(model: Config, store: Store, chained: bool) -> Iterator[tuple[Config, Store]]:
    """Yield all layers with the stores of their weights: if `chained` in the order of application, else as listed."""
    layers = layers_of(model)
    stores = {id(one): own for one, own in zip(layers, store.parts(layers), strict=True)}
    for one in chain(model["config"]) if chained and model["class_name"] != "Sequential" else layers:
        if is_model(one):
            yield from each_layer(one, stores[id(one)], chained)
        else:
            yield one, stores[id(one)]
