"""What PyTorch, Keras and ONNX call recurrent layers and what is in them; the one place that knows.

Families of cells, gates, options and functions go by our names, those of `fastrnn.cells`. A gate has one letter: an
LSTM's i, f, g (Keras' and ONNX's c), o; a GRU's r, z and n (their h); the RNN's only one h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastrnn.cells import Array, Cell, find, members


@dataclass(frozen=True)
class Framework:
    """What one framework has."""

    name: str
    classes: Mapping[str, str]  #: family of cells -> its class, or its operator
    gates: Mapping[str, str]  #: family -> its gates, first to last
    peepholes: str = ""  #: first to last
    merges: Mapping[Any, Any] = field(default_factory=dict)  #: its word or operator -> our `merge`
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  #: option -> what it has of it, if not all
    mask_each: bool = False  #: whether its recurrent dropout draws a mask for each gate, where ours has one for all
    factories: bool = False  #: whether cells of the factories `lstm_with`, ... of `fastrnn.catalogue` count, too

    @property
    def families(self) -> dict[str, str]:
        """Class or operator -> family of cells."""
        return {kind: family for family, kind in self.classes.items()}


#: What acts within a layer in training.
REGULARISERS = dict.fromkeys(("recurrent_dropout", "weight_drop"), (0.0,))

#: Its orders are ours.
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

#: What it has of a layer in a model, where something may be done with what a module gives.
PYTORCH_IN_MODELS = replace(
    PYTORCH, only={name: had for name, had in PYTORCH.only.items() if name not in ("return_sequences", "merge")}
)

#: What a cell's functions are called among its options: of gates, of the candidate and of the output.
ACTIVATIONS = ("activation", "gate", "candidate", "output")

#: Functions inside of recurrent layers that Keras has as well.
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
        **dict.fromkeys(ACTIVATIONS, KERAS_FUNCTIONS),
        "peephole": (False,),
        "clip": (None,),
        "input_forget": (False,),
        "proj_size": (0,),
    }
    | REGULARISERS,
    mask_each=True,
    factories=True,
)

#: A function's name in ONNX, and its alpha and beta as far as it has them.
Function = tuple[str, tuple[float, ...]]

#: Functions inside of recurrent layers that ONNX has as well.
FUNCTIONS: dict[str, Function] = {
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
    only={"proj_size": (0,)} | dict.fromkeys(ACTIVATIONS, tuple(FUNCTIONS)),
    merges={"ReduceSum": "sum", "ReduceMean": "average", "ReduceProd": "mul"},
    factories=True,
)


def reordered(a: Array, source: Sequence[str], target: Sequence[str], axis: int = 0) -> Array:
    """With the equal parts that are stacked along an axis, a name each, in another order: a new array.

    Examples
    --------
    >>> import numpy as np
    >>> reordered(np.array([1, 2, 3, 4]), "ifgo", ONNX.gates["lstm"])
    array([1, 4, 2, 3])
    """
    parts = dict(zip(source, np.split(a, len(source), axis), strict=True))
    return np.concatenate([parts[name] for name in target], axis)


# --- PyTorch

#: A module's `mode` -> its family of cells, and the `activation` that it says; `fastrnn.torch` has more of them.
MODES = {f"RNN_{cell.options['activation'].upper()}": ("rnn", cell.options["activation"]) for cell in members("rnn")}
MODES |= {"GRU": ("gru", None), "LSTM": ("lstm", None)}


# --- Keras

#: The layer of any cell, and cell -> the layer that has it.
KERAS_RNN = "RNN"
KERAS_CELLS = {f"{kind}Cell": kind for kind in KERAS.families}

#: Keras 1 and 2 had layers for graphics cards alone, whose weights are laid out another way: the layer, with options,
#: that takes them over.
CUDNN: dict[str, tuple[str, dict[str, bool]]] = {"CuDNNGRU": ("GRU", {"reset_after": True}), "CuDNNLSTM": ("LSTM", {})}


#: Keras 1 had three arrays for each gate, W, U and b, and the gates in this order: family of cells -> its gates.
KERAS_1_GATES = {"gru": "zrn", "lstm": "igfo"}


def keras_activation(name: Any) -> Any:
    """Keras' word for a function of ours; `checks.activation` knows the way back."""
    return "linear" if name == "identity" else name


#: What Keras 1 and 2 meant by a word that means another function now -> our word for it.
KERAS_2 = {"hard_sigmoid": "hard_sigmoid_keras2"}

#: Family of cells -> the options of its layer that are functions, and what they may be of a layer that was read.
KERAS_FUNCTION_OPTIONS: dict[str, tuple[str, ...]] = {"rnn": ("activation",)}
KERAS_FUNCTION_OPTIONS |= dict.fromkeys(("gru", "lstm"), ("activation", "recurrent_activation"))
KERAS_ACTIVATIONS = (*map(keras_activation, KERAS_FUNCTIONS), "swish", *KERAS_2.values())


def keras_cell(
    family: str, *, activation: str = "tanh", recurrent_activation: str = "sigmoid", reset_after: bool = False
) -> Cell:
    """The cell of a layer of these options: a built-in one where there is one."""
    own, gate = "identity" if activation == "linear" else activation, recurrent_activation
    if gate == "sigmoid" and own in [cell.options.get("activation", "tanh") for cell in members(family)]:
        return find(family, activation=own, reset_after=reset_after, peephole=False)
    from fastrnn import catalogue  # here, because it takes long to import

    make: dict[str, Callable[[], Cell]] = {
        "rnn": lambda: catalogue.rnn_with(own),
        "gru": lambda: catalogue.gru_with(gate, own, reset_after=reset_after),
        "lstm": lambda: catalogue.lstm_with(gate, own, own),
    }
    return make[family]()


def keras_options(cell: Cell) -> dict[str, Any]:
    """Those that choose the cell of a layer; an LSTM's `candidate` is its `output`, too."""
    words = {"candidate": "activation", "gate": "recurrent_activation"}
    words |= {name: name for name in ("activation", "reset_after")}
    return {words[name]: keras_activation(value) for name, value in cell.options.items() if name in words}


def two_biases(cell: Cell) -> bool:
    """Whether Keras has both, (2, G*H), or their sum, (G*H,)."""
    return bool(cell.options.get("reset_after"))


# --- ONNX

#: Inputs of a node, first to last, of which only an LSTM's has the last two; those of weights, and those of data.
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
WEIGHTS = ("W", "R", "B", "P")
DATA = ("X", "sequence_lens", "initial_h", "initial_c")

COMMON = {"activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout"}
ATTRIBUTES = {"rnn": COMMON, "gru": COMMON | {"linear_before_reset"}, "lstm": COMMON | {"input_forget"}}

#: The functions of gates and candidate when the node does not say.
DEFAULTS = {"rnn": ("Tanh",), "gru": ("Sigmoid", "Tanh"), "lstm": ("Sigmoid", "Tanh", "Tanh")}


def onnx_functions(cell: Cell) -> tuple[Function, ...]:
    """Of one direction."""
    chosen = [cell.options[name] for name in ACTIVATIONS if name in cell.options]
    return tuple(FUNCTIONS[name] for name in chosen) or tuple((name, ()) for name in DEFAULTS[cell.family])


def onnx_attributes(cell: Cell, H: int, directions: int) -> dict[str, Any]:
    """The attributes of a node of one of our cells that differ from their defaults."""
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
    """What the functions of a direction may be, in small letters, and the `activation` of our cell that has them."""
    return {
        tuple((name.lower(), numbers) for name, numbers in onnx_functions(cell)): cell.options.get("activation")
        for cell in members(family)
    }


def spelled(functions: Sequence[Function], directions: int) -> tuple[tuple[Any, ...], ...]:
    """Attributes `activations`, `activation_alpha` and `activation_beta` of a node."""
    alpha, beta = (tuple(n for _, numbers in functions for n in numbers[i : i + 1]) for i in (0, 1))
    return tuple(name for name, _ in functions) * directions, alpha * directions, beta * directions


# --- others

#: Haiku's orders; of Flax and Equinox they are PyTorch's.
HAIKU_GATES = {"gru": "zrn", "lstm": "igfo"}

#: RTNeural's type of a layer -> Keras' class; its arrays are Keras' too.
RTNEURAL = {
    "lstm": "LSTM",
    "gru": "GRU",
    "dense": "Dense",
    "time-distributed-dense": "Dense",
    "activation": "Activation",
}

#: Neural Amp Modeler's architecture -> family of cells; it is trained in PyTorch.
NAM = {"LSTM": "lstm"}


# --- by hand

#: Family of cells -> what people call a gate, "" being no name at all -> the gate.
BY_HAND = {
    "rnn": {"": "h"},
    "gru": {"r": "r", "z": "z", "n": "n", "h": "n", "": "n"},
    "lstm": {"i": "i", "f": "f", "g": "g", "c": "g", "o": "o"},
}
