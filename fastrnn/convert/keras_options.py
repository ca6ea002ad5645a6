"""Check the options of Keras layers and the shapes of their weights.

A Keras option that is not listed here raises an error unless it is off, so that none is silently ignored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.convert.keras_config import Config, Piece
from fastrnn.types import Array

#: Options that do not affect a layer's results once it has weights, and options that are read elsewhere.
HARMLESS = {
    *("name", "dtype", "seed", "build_config", "batch_shape", "batch_input_shape", "input_length"),
    *("unroll", "implementation", "return_state", "unit_forget_bias", "zero_output_for_mask", "use_cudnn"),
    *("kernel_initializer", "recurrent_initializer", "bias_initializer", "embeddings_initializer"),
    *("units", "use_bias", "return_sequences", "reset_after", "input_dim", "output_dim", "rate"),
    *("merge_mode", "layer", "backward_layer", "cell"),
    *("n", "epsilon", "scale", "center", "gamma_initializer", "beta_initializer"),
}

#: Dropout of x and of h with the same mask for all steps but one per gate, which our layers lack.
DROPOUTS = ("dropout", "recurrent_dropout")

#: Options that only act in training, and their values when off.
TRAINING: dict[str, Any] = dict.fromkeys(DROPOUTS, 0)
TRAINING |= dict.fromkeys(
    [
        f"{what}_{how}"
        for what in ("kernel", "recurrent", "bias", "embeddings", "gamma", "beta")
        for how in ("regularizer", "constraint")
    ]
    + ["activity_regularizer"]
)

#: Options that belong to the layer in Keras and to the call in fastrnn.
LENGTHS = "lengths=True drops it; pass lengths= in calls instead, for sequences padded at the end"
STATE = "state=True drops it; pass state= in calls instead"
CALLED = {"mask_zero": ("lengths", LENGTHS), "stateful": ("state", STATE)}

BACKWARDS = (
    "use lstm_forward(..., reverse=True) or its siblings for a reverse direction, where y[t] belongs to x[t]; Keras "
    "returns the steps in the order of processing, last first, which is y[:, ::-1]"
)
ONE_MASK = (
    ". fastrnn's recurrent_dropout uses one mask for all gates, Keras one per gate: drop it, and make the layer with "
    "recurrent_dropout= and these weights if that is acceptable"
)
OWN = "use fastrnn.cell and fastrnn.Recurrent for a cell with any equations"
ALONE = "use layer= to convert only one layer of a model"


class Taken(NamedTuple):
    """What to drop from a model."""

    inference: bool = False  #: options that only act in training
    lengths: bool = False  #: masking
    state: bool = False  #: statefulness


def expect(piece: Piece, taken: Taken, **expected: tuple[Any, ...]) -> Config:
    """Return the configuration; raise ValueError unless every option is as expected, harmless, or off."""
    for key, value in piece.config.items():
        if key in expected:
            if not any(value is one or (type(value) is type(one) and value == one) for one in expected[key]):
                wanted = " or ".join(map(repr, expected[key]))
                hint = f"; {BACKWARDS}" if key == "go_backwards" and value is True else ""
                hint = f"; {OWN}" if "go_backwards" in expected and key.endswith("activation") else hint
                raise ValueError(f"{piece.title}: {key}: expected {wanted}, got {value!r:.80}{hint}")
        elif key == "trainable":
            flag(piece, key, True)
        elif key in TRAINING:
            if not taken.inference and value != TRAINING[key]:
                hint = "; fastrnn.keras trains with it" if key in DROPOUTS else ""
                hint += ONE_MASK if key == "recurrent_dropout" else ""
                raise ValueError(
                    f"{piece.title}: {key}: expected {TRAINING[key]!r}, got {value!r:.80}; "
                    f"inference=True drops options that only act in training{hint}"
                )
        elif key in CALLED:
            left_out, hint = CALLED[key]
            if value and not getattr(taken, left_out):
                raise ValueError(f"{piece.title}: {key}: {value!r:.80} is not supported; {hint}")
        elif key not in HARMLESS and value not in (None, False, 0):
            raise ValueError(f"{piece.title}: {key}: {value!r:.80} is not supported")
    dtype = policy(piece.config.get("dtype"))
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"{piece.title}: dtype: expected 'float32' or 'float64', got {dtype!r:.80}")
    return piece.config


def policy(dtype: Any) -> Any:
    """Return the name of a dtype or of a dtype policy."""
    return dtype["config"].get("name") if isinstance(dtype, dict) and isinstance(dtype.get("config"), dict) else dtype


def weights(piece: Piece, *shapes: tuple[str, tuple[int | None, ...]]) -> list[Array]:
    """Return the layer's weights; raise ValueError unless they have these shapes, where None is any size."""
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
