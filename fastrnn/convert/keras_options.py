"""Options of Keras' layers, and the shapes of their weights, checked.

An option of Keras' that is not named here is refused unless it is off, so that nothing is accepted and then ignored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.cells import Array
from fastrnn.convert.keras_files import Piece
from fastrnn.convert.keras_weights import Config

#: Options that change nothing of what a layer computes once it has its weights, and those that are read elsewhere.
HARMLESS = {
    *("name", "dtype", "seed", "build_config", "batch_shape", "batch_input_shape", "input_length"),
    *("unroll", "implementation", "return_state", "unit_forget_bias", "zero_output_for_mask", "use_cudnn"),
    *("kernel_initializer", "recurrent_initializer", "bias_initializer", "embeddings_initializer"),
    *("units", "use_bias", "return_sequences", "reset_after", "input_dim", "output_dim", "rate"),
    *("merge_mode", "layer", "backward_layer", "cell"),
    *("n", "epsilon", "scale", "center", "gamma_initializer", "beta_initializer"),
}

#: Of x and of h, by masks that are the same for all steps, and others for each gate: no layer of ours has such.
DROPOUTS = ("dropout", "recurrent_dropout")

#: Options that act in training alone, and what they are when they do not.
TRAINING: dict[str, Any] = dict.fromkeys(DROPOUTS, 0)
TRAINING |= dict.fromkeys(
    [
        f"{what}_{how}"
        for what in ("kernel", "recurrent", "bias", "embeddings", "gamma", "beta")
        for how in ("regularizer", "constraint")
    ]
    + ["activity_regularizer"]
)

#: What Keras has in a layer, and fastrnn in the call of one.
LENGTHS = "lengths=True leaves it out, and calls take lengths= in its place, of sequences padded at their end"
STATE = "state=True leaves it out, and calls take state= in its place"
CALLED = {"mask_zero": ("lengths", LENGTHS), "stateful": ("state", STATE)}

BACKWARDS = (
    "lstm_forward(..., reverse=True) and its like have one direction backwards, where y[t] stays beside x[t]: Keras "
    "gives the steps in the order in which it read them, last first, which is y[:, ::-1]"
)
ONE_MASK = (
    ". Layers of fastrnn have a recurrent_dropout with one mask for all gates, and Keras draws one for each: leave "
    "it out, and make the layer with recurrent_dropout= and these weights if that is as good"
)
OWN = "fastrnn.cell makes a cell of any equations, for fastrnn.Recurrent"
ALONE = "layer= takes one layer of a model alone"


class Taken(NamedTuple):
    """What is left out of a model."""

    inference: bool = False  #: what acts in training alone
    lengths: bool = False  #: masking
    state: bool = False  #: statefulness


def expect(piece: Piece, taken: Taken, **expected: tuple[Any, ...]) -> Config:
    """The configuration, if every option has an expected value, or is harmless, or off."""
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
                    f"inference=True leaves out what acts in training alone{hint}"
                )
        elif key in CALLED:
            left_out, hint = CALLED[key]
            if value and not getattr(taken, left_out):
                raise ValueError(f"{piece.title}: {key}: {value!r:.80} has no counterpart; {hint}")
        elif key not in HARMLESS and value not in (None, False, 0):
            raise ValueError(f"{piece.title}: {key}: {value!r:.80} has no counterpart")
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
