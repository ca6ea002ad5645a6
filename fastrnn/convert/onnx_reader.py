"""Read ONNX: open models, and parse constants, attributes, and RNN, GRU and LSTM nodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Cell, find, members
from fastrnn.checks import expect_dtype, expect_shape, floating_array, floats
from fastrnn.convert.stack import Arrays
from fastrnn.extras import needed
from fastrnn.frameworks import (
    ATTRIBUTES,
    DEFAULTS,
    INPUTS,
    ONNX,
    ONNX_ACTIVATIONS,
    Function,
    onnx_activations,
    reordered,
)
from fastrnn.types import Array

#: attribute -> its type
KINDS = {
    **dict.fromkeys(("axis", "keepdims", "layout", "hidden_size", "linear_before_reset", "input_forget"), "INT"),
    "num_scan_inputs": "INT",
    **dict.fromkeys(("axes", "perm"), "INTS"),
    **{f"scan_{which}put_{key}": "INTS" for which in ("in", "out") for key in ("axes", "directions")},
    **dict.fromkeys(("clip", "ratio"), "FLOAT"),
    **dict.fromkeys(("activation_alpha", "activation_beta"), "FLOATS"),
    **{"activations": "STRINGS", "direction": "STRING", "value": "TENSOR"},
}

#: Whether each direction runs in reverse.
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

FOREIGN = "{} is an operator of {}, not of ONNX"


def opened(argument: str, model: Any) -> Any:
    """Return a ModelProto from one, from a path, or from the bytes of a file."""
    onnx = needed("onnx", "onnx")
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, bytes):
        return parsed(f"{argument}: the byte string", onnx.load_model_from_string, model)
    if isinstance(model, str | os.PathLike):
        return parsed(f"{argument}: {os.fspath(model)}", onnx.load, os.fspath(model))
    raise TypeError(f"{argument}: expected a path, bytes or an onnx.ModelProto, got {type(model).__name__}")


def parsed(whose: str, read: Callable[[Any], Any], source: Any) -> Any:
    """Return the model that `read` of onnx parses from the source."""
    try:
        model = read(source)
    except needed("google.protobuf.message", "onnx").DecodeError as error:
        raise ValueError(f"{whose} is not an ONNX model ({error})") from error
    if not model.HasField("graph"):
        raise ValueError(f"{whose} is not an ONNX model (it has no graph)")
    return model


def opset_of(model: Any) -> int:
    return max([s.version for s in model.opset_import if s.domain in ("", "ai.onnx")], default=1)


def array_of(tensor: Any) -> Array:
    """Return a constant; raise ValueError if its data does not match its declaration."""
    onnx = needed("onnx", "onnx")
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, onnx.checker.ValidationError) as error:
        raise ValueError(f"model: constant {tensor.name!r}: {error}") from error


def attributes_of(node: Any) -> dict[str, Any]:
    """Return attributes by name; raise ValueError if one in `KINDS` has another type."""
    onnx = needed("onnx", "onnx")
    found: dict[str, Any] = {}
    for a in node.attribute:
        kind = onnx.AttributeProto.AttributeType.Name(a.type)
        if a.ref_attr_name or kind != KINDS.get(a.name, kind):
            got = f"a reference to {a.ref_attr_name!r}" if a.ref_attr_name else kind
            raise ValueError(f"{a.name}: expected {KINDS.get(a.name, 'a value')}, got {got}")
        found[a.name] = onnx.helper.get_attribute_value(a)
    return found


def subgraphs(node: Any) -> list[Any]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def name_of(node: Any) -> str:
    """A node's name, or else its first output's."""
    return str(node.name or next((name for name in node.output if name), ""))


def title(node: Any) -> str:
    return f"{node.op_type} node {name_of(node)!r}"


def text(value: bytes) -> str:
    return value.decode(errors="replace")


def is_recurrent(node: Any) -> bool:
    return node.op_type in ONNX.families and node.domain in ("", "ai.onnx")


def is_foreign(node: Any) -> bool:
    """Return whether it is a recurrent layer of another operator set, such as a quantized one."""
    return node.domain not in ("", "ai.onnx") and any(kind in node.op_type for kind in ONNX.families)


def without_recurrent(nodes: Iterable[Any]) -> str:
    """Explain why there is no RNN, GRU or LSTM node among these, or return ""."""
    read: Counter[str] = Counter()
    for node in nodes:
        if is_foreign(node):
            return f"; {FOREIGN.format(node.op_type, node.domain)}, so use the model before that conversion"
        if node.op_type in ("MatMul", "Gemm"):
            read.update(node.input[1:2])
        elif node.op_type in ("Loop", "Scan"):
            return f"; {title(node)} has the cell as separate operators: pass the module to from_torch or from_gates"
    name, times = read.most_common(1)[0] if read else ("", 0)
    if times < 2:
        return ""
    return (
        f"; the exporter unrolled the loop over time: {name!r} is multiplied {times} times. PyTorch's does that to "
        "nn.RNN; torch.onnx.export(..., dynamo=False) writes an RNN node, and from_torch accepts the module itself"
    )


class Direction(NamedTuple):
    """One direction of a node."""

    reverse: bool
    functions: tuple[Function, ...]  #: activations, with names in lower case


class RecurrentNode:
    """A parsed RNN, GRU or LSTM node.

    Raises ValueError for attributes that the operator does not have (except `ignored` ones), and for invalid values of
    its attributes.
    """

    def __init__(self, node: Any, ignored: Collection[str] = ()) -> None:
        self.op = str(node.op_type)
        if not is_recurrent(node):
            known = ", ".join(ONNX.families)
            raise ValueError(f"node: expected one of {known}, got {node.domain or 'ai.onnx'}.{self.op}")
        self.family = ONNX.families[self.op]
        self.states = members(self.family)[0].states
        names = INPUTS if len(self.states) == 2 else INPUTS[:-2]
        #: names of values in the graph: inputs by their name in the operator; outputs in order, "" if absent
        self.inputs = {name: str(value) for name, value in zip(names, node.input, strict=False) if value}
        self.outputs = tuple(node.output)
        if not self.inputs.keys() >= {"X", "W", "R"} or any(node.input[len(names) :]):
            raise ValueError(f"node: expected inputs X, W, R and of {', '.join(names[3:])}, got {list(node.input)}")
        if len(self.outputs) > (most := 1 + len(self.states)):
            raise ValueError(f"node: expected at most {most} outputs, got {list(self.outputs)}")
        given = attributes_of(node)
        if unknown := given.keys() - ATTRIBUTES[self.family] - set(ignored):
            raise ValueError(f"{min(map(str, unknown))}: {self.op} has no such attribute here (ONNX 7 and later)")
        direction = text(given.get("direction", b"forward"))
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
        self.batch_first = self._switch(given, "layout")
        self.linear_before_reset = self._switch(given, "linear_before_reset")
        self.input_forget = self._switch(given, "input_forget")
        self.clip: float | None = given.get("clip")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: expected a positive number, got {self.clip}")
        self.hidden_size: int | None = given.get("hidden_size")
        self.directions = self._directions(DIRECTIONS[direction], given)

    def unusual(self, direction: Direction) -> dict[str, Any]:
        """Return the attributes with values that no built-in cell has."""
        found: dict[str, Any] = {}
        if direction.functions not in onnx_activations(self.family):
            found["activations"] = direction.functions
        if self.clip is not None:
            found["clip"] = self.clip
        return found | ({"input_forget": 1} if self.input_forget else {})

    def builtin_cell(self, direction: Direction, peephole: bool) -> Cell:
        """Return the built-in cell of a direction without `unusual` attributes."""
        activation = onnx_activations(self.family)[direction.functions]
        return find(self.family, activation=activation, reset_after=self.linear_before_reset, peephole=peephole)

    def checked_weights(self, W: Any, R: Any, B: Any = None, P: Any = None) -> Arrays:
        """Return the weights that the node has, with their axis of directions; raise ValueError for a wrong shape."""
        D, G = len(self.directions), len(ONNX.gates[self.family])
        GH = "H" if G == 1 else f"{G}*H"
        W, R = floating_array("W", W), floating_array("R", R)
        H = R.shape[-1] if R.ndim == 3 else 0
        if H < 1 or self.hidden_size not in (None, H):
            wanted = f"hidden_size = {self.hidden_size}" if self.hidden_size else "H >= 1"
            raise ValueError(f"R: expected shape (D, {GH}, H) with {wanted}, got {R.shape}")
        expect_shape("R", expect_dtype("R", R, W.dtype, "that of W"), f"(D, {GH}, H)", (D, G * H, H))
        found = {"W": expect_shape("W", W, f"(D, {GH}, I)", (D, G * H, W.shape[-1] if W.ndim else 0)), "R": R}
        if B is not None:
            found["B"] = floats("B", B, f"(D, {2 * G}*H)", (D, 2 * G * H), W.dtype, "that of W")
        if P is not None:
            found["P"] = floats("P", P, "(D, 3*H)", (D, 3 * H), W.dtype, "that of W")
        return found

    def part(self, weights: Arrays, d: int, cell: Cell) -> Arrays:
        """Convert the `checked_weights` of a direction to W, U, b, b_rec, p of the cell."""
        own = {name: a[d] for name, a in weights.items()}
        found = {"W": own["W"], "U": own["R"]}
        if "B" in own:
            found["b"], found["b_rec"] = np.split(own["B"], 2)
        found = {key: reordered(a, ONNX.gates[self.family], cell.gates) for key, a in found.items()}
        return found | ({"p": reordered(own["P"], ONNX.peepholes, cell.parameters)} if "P" in own else {})

    @staticmethod
    def _switch(given: dict[str, Any], name: str) -> bool:
        if given.get(name, 0) not in (0, 1):
            raise ValueError(f"{name}: expected 0 or 1, got {given[name]}")
        return bool(given.get(name, 0))

    def _directions(self, reverses: Sequence[bool], given: dict[str, Any]) -> list[Direction]:
        each = len(DEFAULTS[self.family])
        names = [text(name) for name in given.get("activations", [])]
        names = names or [*DEFAULTS[self.family] * len(reverses)]
        if each == len(reverses) == 1:
            names = names[:1]  # ONNX's own default for an RNN is a pair
        if len(names) != each * len(reverses):
            raise ValueError(f"activations: expected {each * len(reverses)} names, got {len(names)}: {names}")
        functions = functions_of(names, given.get("activation_alpha", []), given.get("activation_beta", []))
        return [Direction(reverse, functions[d * each : (d + 1) * each]) for d, reverse in enumerate(reverses)]


def functions_of(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> tuple[Function, ...]:
    """Return activations; each consumes the next alpha and beta that it takes, then defaults apply.

    Raises ValueError for a name unknown to ONNX, and for surplus alphas or betas.
    """
    left, found = (list(alphas), list(betas)), list[Function]()
    for name in names:
        defaults = ONNX_ACTIVATIONS.get(name.lower())
        if defaults is None:
            raise ValueError(f"activations: expected names of {', '.join(ONNX_ACTIVATIONS)}, got {name!r}")
        numbers = [own.pop(0) if own else default for own, default in zip(left, defaults, strict=False)]
        found.append((name.lower(), tuple(numbers)))
    for attribute, over in zip(("activation_alpha", "activation_beta"), left, strict=True):
        if over:
            raise ValueError(f"{attribute}: {', '.join(names)} take {len(over)} fewer")
    return tuple(found)
