"""Names and conventions of recurrent layers in PyTorch, Keras and ONNX, in one place.

Cell families, gates, options and functions have fastrnn's names, those of `fastrnn.cells`. Gates are single letters:
an LSTM's i, f, g (c in Keras and ONNX), o; a GRU's r, z, n (h there); the RNN's only gate, h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastrnn.cells import Cell, find, members
from fastrnn.types import Array


@dataclass(frozen=True)
class Framework:
    """Recurrent layers of one framework."""

    name: str
    classes: Mapping[str, str]  #: family of cells -> class or operator
    gates: Mapping[str, str]  #: family -> gates in order
    peepholes: str = ""  #: gates with peepholes, in order
    merges: Mapping[Any, Any] = field(default_factory=dict)  #: its name or operator -> our `merge`
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  #: option -> the values it supports, if not all
    mask_each: bool = False  #: whether its recurrent dropout draws one mask per gate; ours draws one for all
    factories: bool = False  #: whether cells from `fastrnn.catalogue.lstm_with`, ... are supported

    @property
    def families(self) -> dict[str, str]:
        """Class or operator -> family of cells."""
        return {kind: family for family, kind in self.classes.items()}


#: Options that regularise within a layer in training.
REGULARISERS = dict.fromkeys(("recurrent_dropout", "weight_drop"), (0.0,))

#: Same gate orders as fastrnn.
PYTORCH = Framework(
    "PyTorch",
    classes={"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"},
    gates={"rnn": "h", "gru": "rzn", "lstm": "ifgo"},
    only={
        "activation": ("tanh", "relu"),
        "reset_after": (True,),
        "peephole": (False,),
        "return_sequences": (True,),
        "merge": ("concat",),
    }
    | REGULARISERS,
)

#: Like `PYTORCH`, but in a model, where a module's outputs can be processed further.
PYTORCH_IN_MODELS = replace(
    PYTORCH, only={name: had for name, had in PYTORCH.only.items() if name not in ("return_sequences", "merge")}
)

#: Names of the options that are activations: of gates, the candidate and the output.
ACTIVATION_OPTIONS = ("activation", "gate", "candidate", "output")

#: Activations of recurrent layers that Keras supports.
KERAS_FUNCTIONS = (
    *("tanh", "relu", "sigmoid", "hard_sigmoid", "identity", "softsign", "softplus", "elu", "selu", "silu"),
    "exponential",
)

KERAS = Framework(
    "Keras",
    classes={"rnn": "SimpleRNN", "gru": "GRU", "lstm": "LSTM"},
    gates={"rnn": "h", "gru": "zrn", "lstm": "ifgo"},
    merges={"concat": "concat", "sum": "sum", "mul": "mul", "ave": "average", None: None},
    only={
        **dict.fromkeys(ACTIVATION_OPTIONS, KERAS_FUNCTIONS),
        "peephole": (False,),
        "clip": (None,),
        "input_forget": (False,),
        "proj_size": (0,),
    }
    | REGULARISERS,
    mask_each=True,
    factories=True,
)

#: A function's name in ONNX, and its alpha and beta if any.
Function = tuple[str, tuple[float, ...]]

#: Activations of recurrent layers that ONNX supports.
ONNX_FUNCTIONS: dict[str, Function] = {
    "tanh": ("Tanh", ()),
    "relu": ("Relu", ()),
    "sigmoid": ("Sigmoid", ()),
    "identity": ("Affine", (1.0, 0.0)),  # alpha a + beta
    "hard_sigmoid": ("HardSigmoid", (1 / 6, 0.5)),
    "hard_sigmoid_keras2": ("HardSigmoid", (0.2, 0.5)),
    "softsign": ("Softsign", ()),
    "softplus": ("Softplus", ()),
    "elu": ("Elu", (1.0,)),
}

ONNX = Framework(
    "ONNX",
    classes={"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"},
    gates={"rnn": "h", "gru": "zrn", "lstm": "iofg"},
    peepholes="iof",
    only={"proj_size": (0,)} | dict.fromkeys(ACTIVATION_OPTIONS, tuple(ONNX_FUNCTIONS)),
    merges={"ReduceSum": "sum", "ReduceMean": "average", "ReduceProd": "mul"},
    factories=True,
)


def reordered(a: Array, source: Sequence[str], target: Sequence[str], axis: int = 0) -> Array:
    """Return a new array with the named equal parts along an axis in another order.

    Examples
    --------
    >>> import numpy as np
    >>> reordered(np.array([1, 2, 3, 4]), "ifgo", ONNX.gates["lstm"])
    array([1, 4, 2, 3])
    """
    parts = dict(zip(source, np.split(a, len(source), axis), strict=True))
    return np.concatenate([parts[name] for name in target], axis)


# --- PyTorch

#: A module's `mode` -> its family of cells and its `activation`; `fastrnn.torch` adds more.
MODES = {f"RNN_{cell.options['activation'].upper()}": ("rnn", cell.options["activation"]) for cell in members("rnn")}
MODES |= {"GRU": ("gru", None), "LSTM": ("lstm", None)}


# --- Keras

#: The layer for any cell, and cell -> its own layer.
KERAS_RNN = "RNN"
KERAS_CELLS = {f"{kind}Cell": kind for kind in KERAS.families}

#: GPU-only layers of Keras 1 and 2, with a different weight layout -> the layer, with options, that replaces them.
CUDNN: dict[str, tuple[str, dict[str, bool]]] = {"CuDNNGRU": ("GRU", {"reset_after": True}), "CuDNNLSTM": ("LSTM", {})}


#: Family of cells -> gate order in Keras 1, which had three arrays per gate, W, U and b.
KERAS_1_GATES = {"gru": "zrn", "lstm": "igfo"}


def keras_activation(name: Any) -> Any:
    """Return Keras' name of one of our activations; `checks.activation` is the inverse."""
    return "linear" if name == "identity" else name


#: Activation names that meant another function in Keras 1 and 2 -> our name of that function.
KERAS_2 = {"hard_sigmoid": "hard_sigmoid_keras2"}

#: Family of cells -> the activation options of its layer; and their allowed values in a layer that is read.
KERAS_FUNCTION_OPTIONS: dict[str, tuple[str, ...]] = {"rnn": ("activation",)}
KERAS_FUNCTION_OPTIONS |= dict.fromkeys(("gru", "lstm"), ("activation", "recurrent_activation"))
KERAS_ACTIVATIONS = (*map(keras_activation, KERAS_FUNCTIONS), "swish", *KERAS_2.values())


def keras_cell(
    family: str, *, activation: str = "tanh", recurrent_activation: str = "sigmoid", reset_after: bool = False
) -> Cell:
    """Return the cell of a layer with these options, a built-in one if possible."""
    own, gate = "identity" if activation == "linear" else activation, recurrent_activation
    if gate == "sigmoid" and own in [cell.options.get("activation", "tanh") for cell in members(family)]:
        return find(family, activation=own, reset_after=reset_after, peephole=False)
    from fastrnn import catalogue  # here, because it is slow to import

    make: dict[str, Callable[[], Cell]] = {
        "rnn": lambda: catalogue.rnn_with(own),
        "gru": lambda: catalogue.gru_with(gate, own, reset_after=reset_after),
        "lstm": lambda: catalogue.lstm_with(gate, own, own),
    }
    return make[family]()


def keras_options(cell: Cell) -> dict[str, Any]:
    """Return the layer options that select the cell; an LSTM's `candidate` is also its `output`."""
    words = {"candidate": "activation", "gate": "recurrent_activation"}
    words |= {name: name for name in ("activation", "reset_after")}
    return {words[name]: keras_activation(value) for name, value in cell.options.items() if name in words}


def two_biases(cell: Cell) -> bool:
    """Return whether Keras stores both biases, (2, G*H), and not their sum, (G*H,)."""
    return bool(cell.options.get("reset_after"))


# --- ONNX

#: Inputs of a node in order (the last two only for LSTMs); which are weights, and which data.
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
WEIGHTS = ("W", "R", "B", "P")
DATA = ("X", "sequence_lens", "initial_h", "initial_c")

COMMON = {"activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout"}
ATTRIBUTES = {"rnn": COMMON, "gru": COMMON | {"linear_before_reset"}, "lstm": COMMON | {"input_forget"}}

#: ONNX's activations, in lower case (ONNX Runtime ignores case) -> the default alpha and beta, if it takes them. Affine
#: with its defaults is the identity.
ONNX_ACTIVATIONS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("relu", "tanh", "sigmoid", "softsign", "softplus"), ()),
    **{"affine": (1.0, 0.0), "leakyrelu": (0.01,), "thresholdedrelu": (1.0,), "scaledtanh": (1.0, 1.0)},
    **{"hardsigmoid": (0.2, 0.5), "elu": (1.0,)},
}

#: Default activations of gates and candidate.
DEFAULTS = {"rnn": ("Tanh",), "gru": ("Sigmoid", "Tanh"), "lstm": ("Sigmoid", "Tanh", "Tanh")}


def onnx_functions(cell: Cell) -> tuple[Function, ...]:
    """Return the activations of one direction."""
    chosen = [cell.options[name] for name in ACTIVATION_OPTIONS if name in cell.options]
    return tuple(ONNX_FUNCTIONS[name] for name in chosen) or tuple((name, ()) for name in DEFAULTS[cell.family])


def onnx_attributes(cell: Cell, H: int, directions: int) -> dict[str, Any]:
    """Return the non-default attributes of the node for one of our cells."""
    found: dict[str, Any] = {"hidden_size": H}
    if directions == 2:
        found["direction"] = "bidirectional"
    if "reset_after" in cell.options:
        found["linear_before_reset"] = int(cell.options["reset_after"])
    if (clip := cell.options.get("clip")) is not None:
        found["clip"] = clip
    if cell.options.get("input_forget"):
        found["input_forget"] = 1
    functions = onnx_functions(cell)
    if tuple(name for name, _ in functions) != DEFAULTS[cell.family]:
        told = zip(("activations", "activation_alpha", "activation_beta"), spelled(functions, directions), strict=True)
        found |= {name: values for name, values in told if values}
    return found


def onnx_activations(family: str) -> dict[tuple[Function, ...], str | None]:
    """Map the supported activations of a direction, in lower case, to the `activation` of our cell that has them."""
    return {
        tuple((name.lower(), numbers) for name, numbers in onnx_functions(cell)): cell.options.get("activation")
        for cell in members(family)
    }


def spelled(functions: Sequence[Function], directions: int) -> tuple[tuple[Any, ...], ...]:
    """Return a node's attributes `activations`, `activation_alpha` and `activation_beta`."""
    alpha, beta = (tuple(n for _, numbers in functions for n in numbers[i : i + 1]) for i in (0, 1))
    return tuple(name for name, _ in functions) * directions, alpha * directions, beta * directions


# --- others

#: Haiku's gate orders; Flax and Equinox have PyTorch's.
HAIKU_GATES = {"gru": "zrn", "lstm": "igfo"}

#: RTNeural's layer type -> Keras' class; the arrays are Keras' too.
RTNEURAL = {
    "lstm": "LSTM",
    "gru": "GRU",
    "dense": "Dense",
    "time-distributed-dense": "Dense",
    "activation": "Activation",
}

#: Neural Amp Modeler's architecture -> family of cells; models are trained in PyTorch.
NAM = {"LSTM": "lstm"}


# --- by hand

#: Family of cells -> common names of a gate ("" is no name) -> the gate.
BY_HAND = {
    "rnn": {"": "h"},
    "gru": {"r": "r", "z": "z", "n": "n", "h": "n", "": "n"},
    "lstm": {"i": "i", "f": "f", "g": "g", "c": "g", "o": "o"},
}
