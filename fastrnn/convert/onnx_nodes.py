"""Build an ONNX graph for an opset: nodes, constants, inputs and outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastrnn.checks import integer
from fastrnn.convert.stack import Arrays
from fastrnn.types import Array

#: supported opsets, and the default, in which reductions take their axes as an input
OPSETS, OPSET = range(11, 27), 18

#: operator -> an attribute, and the opset since which it is the second input
MOVED = {
    "Dropout": ("ratio", 12),
    "Split": ("split", 13),
    **dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze"), ("axes", 13)),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceProd"), ("axes", 18)),
}


def checked_opset(onnx: Any, opset: Any) -> int:
    found, newest = integer("opset", opset, "an integer"), min(OPSETS[-1], onnx.defs.onnx_opset_version())
    if not OPSETS[0] <= found <= newest:
        raise ValueError(f"opset: expected {OPSETS[0]} to {newest}, got {found}")
    return found


#: the size of an axis, or the name of a dynamic one
Axis = int | str


class Value(NamedTuple):
    """The value passed from one layer to the next."""

    name: str
    steps: Axis | None  #: the time axis, if it has one
    time_major: bool = False


class Nodes:
    """Nodes, constants, inputs and outputs of a model under construction."""

    def __init__(self, onnx: Any, opset: int, batch: Axis, lengths: str = "", states: bool = False) -> None:
        self._onnx, self._opset = onnx, opset
        self.batch = batch  #: of x
        self.lengths = lengths  #: the name of their input, or "" if there are none, or they no longer apply
        self.each_step, self.each_length, self.mask = "", "", ""  #: of x with lengths: (T,), (B, 1), and (B, T)
        self.given, self.kept = states, states  #: whether initial states are inputs, and final ones outputs
        self.final: dict[str, list[Any]] = {}  #: final states and their shapes
        self.name = "model"
        self.dtype, self.integers = np.dtype(np.float32), False  #: of all layers, and whether x are indices
        self._nodes: list[Any] = []
        self._constants: Arrays = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def model(self) -> Any:
        helper = self._onnx.helper
        constants = [self._onnx.numpy_helper.from_array(a, name) for name, a in self._constants.items()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, constants)
        opsets = [helper.make_opsetid("", self._opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))

    def add(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its first output."""
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def add_moved(self, kind: str, x: str, told: str, value: Any, *outputs: str, **attributes: Any) -> str:
        """Add a `MOVED` operator: the value is an input named `told`, or an attribute."""
        attribute, since = MOVED[kind]
        if self._opset >= since:
            return self.add(kind, [x, self.constant(told, np.array(value))], *outputs, **attributes)
        return self.add(kind, [x], *outputs, **attributes | {attribute: value})

    def constant(self, name: str, value: Array) -> str:
        self._constants[name] = value
        return name

    def input(self, name: str, dtype: Any, shape: list[Any]) -> str:
        self._inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, made: str, name: str, dtype: Any, shape: list[Any]) -> None:
        """Make an input, or a value that no node reads, an output under another name."""
        if made in [value.name for value in self._inputs]:
            self.add("Identity", [made], name)
        for node in self._nodes:
            node.output[:] = [name if one == made else one for one in node.output]
        self._outputs.append(self._value(name, dtype, shape))

    def turned(self, x: Value, time_major: bool) -> Value:
        """Return x in this layout."""
        if x.steps is None or x.time_major == time_major:
            return x
        return Value(self.add("Transpose", [x.name], f"{x.name}_turned", perm=(1, 0, 2)), x.steps, time_major)

    def _value(self, name: str, dtype: Any, shape: list[Any]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self.kind(dtype), shape)

    def kind(self, dtype: Any) -> int:
        """Return ONNX's number for a dtype."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
