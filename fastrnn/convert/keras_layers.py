"""What Keras' layers mean here: x is (B, T, I), a kernel (I, G*H), and its GRU has z first.

An option of Keras' that is not named here is refused unless it is off, so that nothing is accepted and then ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.cells import CELLS, Array
from fastrnn.convert import keras_files
from fastrnn.convert.gates import reordered
from fastrnn.convert.keras_files import Config, Piece
from fastrnn.convert.stack import Arrays, assembled
from fastrnn.layers import Activation, Dense, Dropout, Embedding, Layer
from fastrnn.layers.activation import FUNCTIONS
from fastrnn.layers.recurrent import Recurrent
from fastrnn.run import ACTIVATIONS, family

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
