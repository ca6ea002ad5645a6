"""The graph of an ONNX model: constants, how recurrent nodes are stacked, and their parts of a layer."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.checks import titled
from fastrnn.convert.onnx_reader import RecurrentNode, array_of, attributes_of, is_recurrent, opset_of, subgraphs, title
from fastrnn.convert.stack import Arrays, Parts
from fastrnn.extras import needed
from fastrnn.frameworks import ONNX, WEIGHTS, spelled
from fastrnn.types import Array

#: operators with which exporters assemble constants
PUTS_TOGETHER = {
    *("Cast", "Concat", "Constant", "DequantizeLinear", "Flatten", "Gather", "Identity", "Mul"),
    *("Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}

#: upper limit of the size of an assembled constant, as a multiple of the model's constants: a chain of nodes that each
#: double their input would exhaust memory
SHARED = 16

#: upper limit on the nodes between one layer and the next
MANY = 8

#: values of T and B at which a shape computed from a node's Y is evaluated
SIZES = ((2, 3), (5, 4))

HINT = "fastrnn.onnx runs the model unchanged"


@dataclass
class Link:
    """The connection between a node and the recurrent one whose Y it reads."""

    below: Any
    merge: str | None  #: merge of two directions
    rate: float  #: dropout rate


class Graph:
    """A model's nodes and constants, including those of its subgraphs."""

    def __init__(self, model: Any) -> None:
        self.opset = opset_of(model)
        self.constants: Arrays = {}
        self.outputs: set[str] = set()
        self.producers: dict[str, Any] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        self.nodes: list[Any] = []
        self._shapes: dict[str, Any] = {}
        graphs = [model.graph]
        for graph in graphs:
            self.outputs |= {value.name for value in graph.output}
            self.constants |= {t.name: array_of(t) for t in graph.initializer}
            self._add_shapes(graph)
            for node in graph.node:
                self._add(node)
                graphs += subgraphs(node)
        self.most = SHARED * sum(a.size for a in self.constants.values())

    def _add(self, node: Any) -> None:
        self.nodes.append(node)
        for name in node.output:
            self.producers[name] = node
        for name in set(node.input):
            self.consumers[name].append(node)
        if node.op_type == "Constant" and node.output and (value := self.attributes(node).get("value")) is not None:
            self.constants[node.output[0]] = array_of(value)

    def attributes(self, node: Any) -> dict[str, Any]:
        with titled(title(node)):
            return attributes_of(node)

    def constant(self, node: Any, i: int) -> Array | None:
        """Return the node's i-th input if it is a constant, or computed from constants only; else None."""
        return self.value(node.input[i]) if i < len(node.input) else None

    def value(self, name: str, given: Arrays | None = None) -> Array | None:
        """Return a value by name if it is a constant, or computed from constants and `given`; else None."""
        known = self.constants if given is None else self.constants | given
        for node in [] if name in known else self._made_by(name, known, fixed=given is None):
            known |= self._results(node, known)
        return known.get(name)

    def _made_by(self, name: str, known: Arrays, fixed: bool) -> list[Any]:
        """Return the nodes that compute it from known values, in order; empty if it depends on anything else.

        If sizes are `fixed`, those that the model states are known.
        """
        made: dict[int, Any] = {}
        names = [name]
        while names:
            one = names.pop()
            if not one or one in known:
                continue
            node = self.producers.get(one)
            if node is None or node.op_type not in PUTS_TOGETHER or node.domain not in ("", "ai.onnx"):
                return []
            if fixed and node.op_type == "Shape" and (sizes := self._stated(node)) is not None:
                known[one] = sizes
            elif id(node) not in made:  # in a cyclic graph it is visited again
                made[id(node)] = node
                names += node.input
        return [node for node in self.nodes if id(node) in made]

    def _stated(self, node: Any) -> Array | None:
        """Return the result of a Shape node, if the model states these sizes of its input."""
        if node.input[0] not in self._shapes:
            return None
        of_axis, given = self._shapes[node.input[0]], self.attributes(node)
        sizes = [one.dim_value if one.HasField("dim_value") else None for one in of_axis]
        sizes = sizes[given.get("start", 0) : given.get("end")]
        return None if None in sizes else np.array(sizes, np.int64)

    def _add_shapes(self, graph: Any) -> None:
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.tensor_type.HasField("shape"):
                self._shapes[value.name] = value.type.tensor_type.shape.dim

    def _results(self, node: Any, known: Arrays) -> Arrays:
        """Compute a node's results from known values with onnx's reference evaluator."""
        onnx, reference = needed("onnx", "onnx"), needed("onnx.reference", "onnx")
        helper, given = onnx.helper, [name for name in dict.fromkeys(node.input) if name]
        made = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        try:
            constants = {name: known[name] for name in given}  # KeyError: cyclic nodes
            if (size := self._numbers(node, known)) > self.most:
                raise ValueError(f"{size} numbers, but the model has {self.most // SHARED}")
            tensors = [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()]
            graph = helper.make_graph([node], "constant", [], made, tensors)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
            results = reference.ReferenceEvaluator(model).run(None, {})
        except Exception as error:  # onnx does not document which errors a bad node raises
            raise ValueError(f"{title(node)}: cannot compute a constant from {given} ({error!r})") from error
        return {value.name: np.asarray(a) for value, a in zip(made, results, strict=True)}

    def _numbers(self, node: Any, known: Arrays) -> int:
        """Return an upper limit of the size of a `PUTS_TOGETHER` node's result."""
        inputs = [known[name] for name in node.input if name]
        if node.op_type == "Mul":
            return math.prod(np.broadcast_shapes(*(a.shape for a in inputs)))
        if node.op_type == "Gather":
            data, indices = inputs
            return int(indices.size * (data.size // max(1, data.shape[self.attributes(node).get("axis", 0)])))
        return sum(a.size for a in inputs)

    def integers(self, node: Any, attribute: str) -> list[int] | None:
        """Return integers that are the second input in newer operators and an attribute in older ones."""
        value = self.constant(node, 1)
        if value is None:
            return self.attributes(node).get(attribute)
        return value.reshape(-1).tolist() if value.dtype.kind == "i" else None

    def link(self, node: Any) -> Link | None:
        """Return the link to the recurrent node directly below, or None."""
        path, name, rate = list[Any](), node.input[0], 0.0
        while (one := self.producers.get(name)) is not None and not is_recurrent(one) and len(path) <= MANY:
            if one.op_type == "Dropout":
                rate = self.rate(one)
            path.append(one)
            name = one.input[0] if one.input else ""
        if one is None or name != one.output[0] or not is_recurrent(one):
            return None
        joining = [step for step in path[::-1] if step.op_type not in ("Dropout", "Identity")]
        found = self.joined(joining, one)
        return None if found is None else Link(one, found[0], rate)

    def rate(self, node: Any) -> float:
        ratio = self.constant(node, 1)
        if ratio is None:
            return float(self.attributes(node).get("ratio", 0.5))
        if ratio.size != 1 or ratio.dtype.kind != "f":
            raise ValueError(f"{title(node)}: ratio: expected a number, got {ratio.dtype} of shape {ratio.shape}")
        return float(ratio.reshape(()))

    def joined(self, path: list[Any], below: Any, last: bool = False) -> tuple[str | None] | None:
        """Return in a tuple the merge with which these nodes take the axis of directions away, or None.

        They read the four axes of Y of the node below, or the three of its Y_h if `last`.
        """
        batch_first = recurrent_node(below).batch_first
        axis = direction_axis(batch_first, last)
        axes, swap = (3, [1, 0, 2]) if last else (4, [0, 2, 1, 3])
        kinds = [node.op_type for node in path]
        if kinds == ["Squeeze"] and self.integers(path[0], "axes") in ([axis], [axis - axes]):
            return (None,)
        if kinds in (["Transpose", "Reshape"], ["Reshape"]):
            turned = len(path) == 2 and self.attributes(path[0]).get("perm") == swap
            return ("concat",) if turned != batch_first and self._flattens(path[-1], below, last) else None
        merge = self.reduction(path[0], axis) if len(path) == 1 else None
        return (merge,) if merge else None

    def _flattens(self, reshape: Any, below: Any, last: bool) -> bool:
        """Return whether the node reshapes the outputs of D directions to (., ., D*H), or (., D*H) if `last`."""
        shape = self.integers(reshape, "shape")
        if last:
            return len(shape or []) == 2
        R = self.constant(below, 2)
        if R is None or R.ndim != 3 or len(reshape.input) < 2:
            return False
        wide = R.shape[0] * R.shape[2]
        if shape is not None:
            return len(shape) == 3 and (shape[2] == wide or shape == [0, 0, -1])
        shapes = [self._shape_at(reshape, below, *sizes, R) for sizes in SIZES]
        if not all(len(one) == 3 and one[2] in (wide, -1) for one in shapes):
            return False
        first, second = shapes
        axes = zip(first[:2], second[:2], *SIZES, strict=True)
        return all((a, b) == (at_a, at_b) or a == b for a, b, at_a, at_b in axes)

    def _shape_at(self, reshape: Any, below: Any, n: int, m: int, R: Array) -> list[int]:
        """Return the shape that the node computes from the Y below, when the first axes of the result are n and m."""
        D, _, H = R.shape
        Y = np.zeros((n, m, D, H) if recurrent_node(below).batch_first else (n, D, m, H), R.dtype)
        shape = self.value(reshape.input[1], {below.output[0]: Y})
        return [] if shape is None or shape.ndim != 1 else shape.tolist()

    def reduction(self, node: Any, axis: int) -> str | None:
        """Return the merge that corresponds to a reduction over this axis, or None."""
        if node.op_type not in ONNX.merges or self.attributes(node).get("keepdims", 1):
            return None
        return ONNX.merges[node.op_type] if self.integers(node, "axes") == [axis] else None

    def index(self, node: Any, axis: int) -> int | None:
        """Return the index that the node selects from this axis, or None if it does something else."""
        which = self.constant(node, 1)
        picks = node.op_type == "Gather" and self.attributes(node).get("axis", 0) == axis
        return int(which) if picks and which is not None and which.ndim == 0 else None

    def turned(self, node: Any) -> bool:
        """Return whether X is the transpose of a batch-first value."""
        before = self.producers.get(node.input[0])
        return before is not None and before.op_type == "Transpose" and self.attributes(before).get("perm") == [1, 0, 2]


def direction_axis(batch_first: bool, last: bool) -> int:
    """Return the axis of the directions of Y, or of Y_h if `last`."""
    return batch_first + (not last)


def recurrent_node(node: Any) -> RecurrentNode:
    """Parse a recurrent node; begin messages with its title."""
    with titled(title(node)):
        return RecurrentNode(node, ignored=("output_sequence",))


def options_of(node: Any) -> tuple[Cell, bool, bool]:
    """Return the node's cell, whether it is bidirectional and batch-first; raise ValueError for other options."""
    read = recurrent_node(node)
    first, *others = read.directions
    with titled(title(node)):
        if first.reverse:
            raise ValueError(
                f"direction: expected 'forward' or 'bidirectional', got 'reverse'; {HINT}, and lstm_forward(..., "
                "reverse=True) and its siblings run a reverse direction"
            )
        unusual = read.unusual(first)
        if "activations" in unusual or any(other.functions != first.functions for other in others):
            names, alpha, beta = map(list, spelled([f for own in read.directions for f in own.functions], 1))
            raise ValueError(
                f"activations: {names} with alpha {alpha} and beta {beta} are not supported by fastrnn's layers; {HINT}"
            )
        for name, value in unusual.items():
            raise ValueError(f"{name}: {value!r} is not supported by fastrnn's layers; {HINT}")
    return read.builtin_cell(first, "P" in read.inputs), bool(others), read.batch_first


def parts_of_node(graph: Graph, node: Any, cell: Cell) -> Parts:
    """Return W, U, b, b_rec, p of each direction."""
    read, given = recurrent_node(node), dict[str, Array]()
    with titled(title(node)):
        for name, made in read.inputs.items():
            value = graph.value(made)
            if name in WEIGHTS:
                if value is None:
                    raise ValueError(f"{name}: expected a constant, got the result {made!r}")
                given[name] = value
            elif name != "X" and value is not None and (name == "sequence_lens" or value.any()):
                raise ValueError(f"{name}: a layer cannot store it as a constant; pass it in the call")
        weights = read.checked_weights(**given)
        return [read.part(weights, d, cell) for d in range(len(read.directions))]
