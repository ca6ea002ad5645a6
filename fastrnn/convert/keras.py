"""Keras' layers and models: x is (B, T, I), a kernel (I, G*H), and its GRU has z first.

`keras_files` finds a model's configuration and weights; here is what they mean. An option of Keras' that is not named
here is refused unless it is off, so that nothing is accepted and then ignored.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.cells import CELLS, Array
from fastrnn.checks import boolean
from fastrnn.convert import keras_files
from fastrnn.convert.gates import reordered
from fastrnn.convert.keras_files import Config, Piece
from fastrnn.convert.stack import Arrays, assembled, cell_of, parts_of, recurrent, refuse
from fastrnn.layers import Activation, Dense, Dropout, Embedding, Layer
from fastrnn.layers.activation import FUNCTIONS
from fastrnn.layers.recurrent import Recurrent
from fastrnn.run import ACTIVATIONS, family
from fastrnn.training import Sequential

FAMILIES = {"SimpleRNN": "rnn", "GRU": "gru", "LSTM": "lstm"}

MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "average", None: None}

#: Options that change nothing of what a layer computes once it has its weights, and those that are read elsewhere.
HARMLESS = {
    *("name", "dtype", "seed", "build_config", "batch_shape", "batch_input_shape", "input_length"),
    *("unroll", "implementation", "return_state", "unit_forget_bias", "zero_output_for_mask", "use_cudnn"),
    *("kernel_initializer", "recurrent_initializer", "bias_initializer", "embeddings_initializer"),
    *("units", "use_bias", "return_sequences", "reset_after", "input_dim", "output_dim", "rate"),
    *("merge_mode", "layer", "backward_layer"),
}

#: Options that act in training alone, and what they are when they do not.
TRAINING: dict[str, Any] = {"trainable": True} | dict.fromkeys(("dropout", "recurrent_dropout"), 0)
TRAINING |= dict.fromkeys(
    [f"{what}_{how}" for what in ("kernel", "recurrent", "bias", "embeddings") for how in ("regularizer", "constraint")]
    + ["activity_regularizer"]
)

LENGTHS = "fastrnn masks by lengths= in the call: take the masking out of the model"


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
    >>> layer = fastrnn.from_keras(keras.layers.GRU(4))  # doctest: +SKIP
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


def converted(piece: Piece, inference: bool) -> Layer | None:
    """Our layer; None for one that does nothing."""
    kinds: dict[str, Callable[[Piece, bool], Layer]] = {
        **dict.fromkeys(FAMILIES, one_direction),
        "Bidirectional": two_directions,
        "TimeDistributed": time_distributed,
        "Dense": dense,
        "Embedding": embedding,
        "Dropout": dropout,
        "Activation": activation,
    }
    if piece.kind == "InputLayer":
        return None
    if piece.kind not in kinds:
        hint = LENGTHS if piece.kind == "Masking" else f"expected one of {', '.join(kinds)}"
        raise ValueError(f"{piece.title}: has no counterpart; {hint}")
    return kinds[piece.kind](piece, inference)


def expect(piece: Piece, inference: bool, **expected: tuple[Any, ...]) -> Config:
    """The configuration, if every option has an expected value, or is harmless, or off."""
    for key, value in piece.config.items():
        if key in expected:
            if not any(value is one or (type(value) is type(one) and value == one) for one in expected[key]):
                wanted = " or ".join(map(repr, expected[key]))
                raise ValueError(f"{piece.title}: {key}: expected {wanted}, got {value!r:.80}")
        elif key in TRAINING:
            if not inference and value != TRAINING[key]:
                raise ValueError(
                    f"{piece.title}: {key}: expected {TRAINING[key]!r}, got {value!r:.80}; "
                    "inference=True leaves out what acts in training alone"
                )
        elif key not in HARMLESS and value not in (None, False, 0):
            hint = f"; {LENGTHS}" if key == "mask_zero" else ""
            raise ValueError(f"{piece.title}: {key}: {value!r:.80} has no counterpart{hint}")
    dtype = policy(piece.config.get("dtype"))
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"{piece.title}: dtype: expected 'float32' or 'float64', got {dtype!r:.80}")
    return piece.config


def policy(dtype: Any) -> Any:
    """The name of what Keras computes in."""
    return dtype["config"].get("name") if isinstance(dtype, dict) and isinstance(dtype.get("config"), dict) else dtype


def weights(piece: Piece, *shapes: tuple[str, tuple[int | None, ...]]) -> list[Array]:
    """The layer's weights, if they have these names' shapes, in which None stands for any size."""
    if len(piece.weights) != len(shapes):
        names = ", ".join(name for name, _ in shapes) or "no weights"
        raise ValueError(f"{piece.title}: expected {names}, got {len(piece.weights)} arrays; is the layer built?")
    for a, (name, shape) in zip(piece.weights, shapes, strict=True):
        if len(a.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, a.shape, strict=True)):
            wanted = str(shape).replace("None", "I")
            raise ValueError(f"{piece.title}: {name}: expected shape {wanted}, got {a.shape}")
    return piece.weights


def size(piece: Piece, key: str) -> int:
    value = piece.config.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{piece.title}: {key}: expected a positive integer, got {value!r:.80}")
    return value


def flag(piece: Piece, key: str, default: bool) -> bool:
    value = piece.config.get(key, default)
    if type(value) is not bool:
        raise ValueError(f"{piece.title}: {key}: expected True or False, got {value!r:.80}")
    return value


def one_direction(piece: Piece, inference: bool) -> Recurrent:
    cell, options = checked_cell(piece, inference, backwards=False)
    return assembled(piece.title, cell, [parts(piece, cell)], False, **options)


def two_directions(piece: Piece, inference: bool) -> Recurrent:
    expect(piece, inference)
    merge = piece.config.get("merge_mode", "concat")
    if not isinstance(merge, str | None) or merge not in MERGES:
        raise ValueError(f"{piece.title}: merge_mode: expected one of {', '.join(map(repr, MERGES))}, got {merge!r}")
    half = len(piece.weights) // 2
    forward = keras_files.inner(piece, "layer", piece.weights[:half])
    cell, options = checked_cell(forward, inference, backwards=False)
    backward = forward._replace(weights=piece.weights[half:])
    if piece.config.get("backward_layer") is not None:
        backward = keras_files.inner(piece, "backward_layer", piece.weights[half:])
        if (other := checked_cell(backward, inference, backwards=True)) != (cell, options):
            raise ValueError(f"{backward.title}: expected the options of {forward.title}, {cell, options}, got {other}")
    both = [parts(forward, cell), parts(backward, cell)]
    return assembled(piece.title, cell, both, True, merge=MERGES[merge], **options)


def checked_cell(piece: Piece, inference: bool, backwards: bool) -> tuple[str, dict[str, Any]]:
    """The name of our cell, and the layer's options."""
    if piece.kind not in FAMILIES:
        raise ValueError(f"{piece.title}: expected one of {', '.join(FAMILIES)}")
    plain: tuple[Any, ...] = ("tanh",)
    if piece.kind == "SimpleRNN":
        plain = tuple("linear" if name == "identity" else name for name in ACTIVATIONS)
    config = expect(piece, inference, activation=plain, recurrent_activation=("sigmoid",), go_backwards=(backwards,))
    chosen = config.get("activation", "tanh")
    after = flag(piece, "reset_after", False)  # what it was before Keras had the option
    cell = {
        "lstm": "lstm",
        "gru": "gru_after" if after else "gru_before",
        "rnn": f"rnn_{'identity' if chosen == 'linear' else chosen}",
    }[FAMILIES[piece.kind]]
    return cell, {"batch_first": True, "return_sequences": flag(piece, "return_sequences", False)}


def parts(piece: Piece, cell: str) -> Arrays:
    """W, U, b, b_rec of one direction."""
    H, kind = size(piece, "units"), family(cell)
    GH = CELLS[cell].G * H
    bias = [("bias", (2, GH) if cell == "gru_after" else (GH,))] if flag(piece, "use_bias", True) else []
    arrays = weights(piece, ("kernel", (None, GH)), ("recurrent_kernel", (H, GH)), *bias)
    W, U, *b = [reordered(a, kind, "keras", "fastrnn", axis=-1) for a in arrays]
    biases = np.atleast_2d(*b) if b else []
    return {"W": W.T, "U": U.T} | dict(zip(("b", "b_rec"), biases, strict=False))


def time_distributed(piece: Piece, inference: bool) -> Layer:
    """Our layers without a state are that anyway."""
    expect(piece, inference)
    inner = keras_files.inner(piece, "layer", piece.weights)
    if inner.kind not in ("Dense", "Activation", "Dropout"):
        raise ValueError(f"{inner.title}: has no counterpart in a TimeDistributed; expected Dense")
    layer = converted(inner, inference)
    assert layer is not None
    return layer


def dense(piece: Piece, inference: bool) -> Dense:
    config = expect(piece, inference, activation=tuple(FUNCTIONS))
    units, bias = size(piece, "units"), flag(piece, "use_bias", True)
    kernel, *b = weights(piece, ("kernel", (None, units)), *([("bias", (units,))] if bias else []))
    chosen = config.get("activation", "linear")
    layer = Dense(len(kernel), units, None if chosen == "linear" else chosen, bias=bias, dtype=kernel.dtype, rng=0)
    layer.load_state_dict({"weight": kernel.T} | ({"bias": b[0]} if bias else {}))
    return layer


def embedding(piece: Piece, inference: bool) -> Embedding:
    expect(piece, inference)
    n, E = size(piece, "input_dim"), size(piece, "output_dim")
    (table,) = weights(piece, ("embeddings", (n, E)))
    layer = Embedding(n, E, dtype=table.dtype, rng=0)
    layer.load_state_dict({"weight": table})
    return layer


def dropout(piece: Piece, inference: bool) -> Dropout:
    expect(piece, inference)
    rate = piece.config.get("rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"{piece.title}: rate: expected a number in [0, 1), got {rate!r:.80}")
    return Dropout(rate)


def activation(piece: Piece, inference: bool) -> Activation:
    return Activation(expect(piece, inference, activation=tuple(FUNCTIONS)).get("activation", ""))


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
