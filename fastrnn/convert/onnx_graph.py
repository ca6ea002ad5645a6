"""Read the recurrent nodes of an ONNX graph: weights, attributes, and how they are stacked."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrnn.cells import Array, Cell, find
from fastrnn.convert.stack import Arrays, Parts
from fastrnn.extras import needed
from fastrnn.frameworks import DEFAULTS, INPUTS, ONNX, WEIGHTS, onnx_activations, reordered, spelled

#: attribute -> its type
KINDS = {
    **dict.fromkeys(("axis", "keepdims", "layout", "hidden_size", "linear_before_reset", "input_forget"), "INT"),
    **dict.fromkeys(("axes", "perm"), "INTS"),
    **dict.fromkeys(("clip", "ratio"), "FLOAT"),
    **dict.fromkeys(("activation_alpha", "activation_beta"), "FLOATS"),
    **{"activations": "STRINGS", "direction": "STRING", "value": "TENSOR"},
}

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

FOREIGN = "{} is an operator of {}, not of ONNX"

HINT = "fastrnn.onnx runs the model unchanged"


def parsed(whose: str, read: Callable[[Any], Any], source: Any) -> Any:
    """Return the model that `read` of onnx parses from the source."""
    try:
        return read(source)
    except needed("google.protobuf.message", "onnx").DecodeError as error:
        raise ValueError(f"{whose} is not an ONNX model ({error})") from error


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


def text(value: bytes) -> str:
    return value.decode(errors="replace")


def is_recurrent(node: Any) -> bool:
    return node.op_type in ONNX.families and node.domain in ("", "ai.onnx")


def is_foreign(node: Any) -> bool:
    """Return whether it is a recurrent layer of another operator set, such as a quantized one."""
    return node.domain not in ("", "ai.onnx") and any(kind in node.op_type for kind in ONNX.families)


@dataclass
class Link:
    """The connection between a node and the recurrent one whose Y it reads."""

    below: Any
    merge: str | None  #: merge of two directions
    rate: float  #: dropout rate


class Graph:
    """A model's nodes and constants, including those of its subgraphs."""

    def __init__(self, model: Any) -> None:
        self.opset = max([s.version for s in model.opset_import if s.domain in ("", "ai.onnx")], default=1)
        self.constants: Arrays = {}
        self.outputs: set[str] = set()
        self.producers: dict[str, Any] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        self.nodes: list[Any] = []
        self._shapes: dict[str, Any] = {}
        for graph in self._graphs(model.graph):
            self.outputs |= {value.name for value in graph.output}
            self.constants |= {t.name: array_of(t) for t in graph.initializer}
            self._add_shapes(graph)
            for node in graph.node:
                self._add(node)
        self.most = SHARED * sum(a.size for a in self.constants.values())

    def _graphs(self, graph: Any) -> Iterator[Any]:
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                    yield from self._graphs(inner)

    def _add(self, node: Any) -> None:
        self.nodes.append(node)
        for name in node.output:
            self.producers[name] = node
        for name in set(node.input):
            self.consumers[name].append(node)
        if node.op_type == "Constant" and node.output and (value := self.attributes(node).get("value")) is not None:
            self.constants[node.output[0]] = array_of(value)

    def attributes(self, node: Any) -> dict[str, Any]:
        try:
            return attributes_of(node)
        except ValueError as error:
            raise ValueError(f"{title(node)}: {error}") from error

    def constant(self, node: Any, i: int) -> Array | None:
        """Return the node's i-th input if it is a constant, or computed from constants only; else None."""
        return self._value(node.input[i]) if i < len(node.input) else None

    def _value(self, name: str, given: Arrays | None = None) -> Array | None:
        """Return a value that is a constant, or computed from constants and `given`; else None."""
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
        layout = self.attributes(below).get("layout", 0)
        axis = direction_axis(layout, last)
        axes, swap = (3, [1, 0, 2]) if last else (4, [0, 2, 1, 3])
        kinds = [node.op_type for node in path]
        if kinds == ["Squeeze"] and self.integers(path[0], "axes") in ([axis], [axis - axes]):
            return (None,)
        if kinds in (["Transpose", "Reshape"], ["Reshape"]):
            turned = len(path) == 2 and self.attributes(path[0]).get("perm") == swap
            return ("concat",) if turned == (not layout) and self._flattens(path[-1], below, last) else None
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
        (D, _, H), layout = R.shape, self.attributes(below).get("layout", 0)
        Y = np.zeros((n, m, D, H) if layout else (n, D, m, H), R.dtype)
        shape = self._value(reshape.input[1], {below.output[0]: Y})
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


def direction_axis(layout: int, last: bool) -> int:
    """Return the axis of the directions of Y, or of Y_h if `last`."""
    return bool(layout) + (not last)


def title(node: Any) -> str:
    return f"{node.op_type} node {node.name or ', '.join(node.output)!r}"


def expect_inputs(node: Any) -> None:
    """Raise ValueError unless a recurrent node has its inputs."""
    if len(node.input) < 3 or not all(node.input[:3]):
        raise ValueError(f"{title(node)}: expected inputs X, W and R, got {list(node.input)}")


def options_of(graph: Graph, node: Any) -> tuple[Cell, bool, int]:
    """Return the node's cell, whether it is bidirectional, and its layout; raise ValueError for other options."""
    family, given = ONNX.families[node.op_type], graph.attributes(node)
    direction, layout = text(given.pop("direction", b"forward")), given.pop("layout", 0)
    if direction not in ("forward", "bidirectional"):
        raise ValueError(
            f"{title(node)}: direction: expected 'forward' or 'bidirectional', got {direction!r}; {HINT}, and "
            "lstm_forward(..., reverse=True) and its siblings run a reverse direction"
        )
    D = 1 + (direction == "bidirectional")
    names = [text(name) for name in given.pop("activations", [])] or DEFAULTS[family] * D
    alpha, beta = (tuple(map(float, given.pop(f"activation_{which}", []))) for which in ("alpha", "beta"))
    told = tuple(name.lower() for name in names), alpha, beta
    known = {spelled(functions, D): activation for functions, activation in onnx_activations(family).items()}
    if told not in known:
        raise ValueError(
            f"{title(node)}: activations: {[*told[0]]} with alpha {[*alpha]} and beta {[*beta]} are not supported by "
            f"fastrnn's layers; {HINT}"
        )
    after, peephole = bool(given.pop("linear_before_reset", 0)), any(node.input[INPUTS.index("P") :])
    cell = find(family, activation=known[told], reset_after=after, peephole=peephole)
    for name, value in given.items():
        if name not in ("hidden_size", "output_sequence") and not (name == "input_forget" and value == 0):
            raise ValueError(f"{title(node)}: {name}: {value!r} is not supported by fastrnn's layers; {HINT}")
    return cell, D == 2, layout


def parts_of_node(graph: Graph, node: Any, cell: Cell, D: int) -> Parts:
    """Return W, U, b, b_rec, p of each direction."""
    G, arrays = cell.G, dict[str, Array]()
    for i, name in enumerate(INPUTS[1:], start=1):
        if i >= len(node.input) or not node.input[i]:
            continue
        value = graph.constant(node, i)
        if name in WEIGHTS:
            if value is None:
                raise ValueError(f"{title(node)}: {name}: expected a constant, got the result {node.input[i]!r}")
            arrays[name] = value
        elif value is not None and (name == "sequence_lens" or value.any()):
            raise ValueError(f"{title(node)}: {name}: a layer cannot store it as a constant; pass it in the call")
    H = arrays["R"].shape[-1] if "R" in arrays and arrays["R"].ndim else 0
    shapes = {"W": (D, G * H, None), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
    for name, a in arrays.items():
        wanted = tuple([a.shape[-1:] and a.shape[-1] if n is None else n for n in shapes[name]])
        if a.shape != wanted:
            raise ValueError(f"{title(node)}: {name}: expected shape {wanted}, got {a.shape}")
    return [part({name: a[d] for name, a in arrays.items()}, ONNX.gates[cell.family], cell) for d in range(D)]


def part(arrays: Arrays, gates: str, cell: Cell) -> Arrays:
    """Convert a direction's W, R, B (optional) and P (optional), in this order of gates, to W, U, b, b_rec, p."""
    found = {"W": arrays["W"], "U": arrays["R"]}
    if "B" in arrays:
        found["b"], found["b_rec"] = np.split(arrays["B"], 2)
    found = {key: reordered(a, gates, cell.gates) for key, a in found.items()}
    return found | ({"p": reordered(arrays["P"], ONNX.peepholes, cell.parameters)} if "P" in arrays else {})
