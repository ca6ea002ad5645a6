"""Convert a whole ONNX model to a `Sequential`, if its nodes form a chain of supported layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fastrnn.convert.onnx_graph import HINT, Graph, options_of, parts_of_node
from fastrnn.convert.onnx_layers import OPERATORS
from fastrnn.convert.onnx_reader import array_of, is_recurrent, title
from fastrnn.convert.stack import assembled, dense_of, loaded
from fastrnn.frameworks import INPUTS
from fastrnn.layers import Activation, Dense, Dropout, Embedding, Layer
from fastrnn.training import Sequential
from fastrnn.types import Array

#: operator -> our function
FUNCTIONS = {kind: name for name, (kind, _) in OPERATORS.items()}


#: operators that select or rearrange values
PARTS = ("Identity", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def chain_of(graph: Graph, model: Any) -> Sequential:
    """Convert every node from the input to the output; raise ValueError for the first unsupported one."""
    outputs = [value.name for value in model.graph.output]
    if len(outputs) != 1:
        got = ", ".join(map(str, outputs)) or "none"
        raise ValueError(f"whole: expected a model with one output, got {got}; whole=False reads only recurrent nodes")
    inputs = {value.name for value in model.graph.input} - graph.constants.keys()
    return Sequential(Reader(graph, path(graph, outputs[0], inputs)).layers())


def path(graph: Graph, name: str, inputs: set[str]) -> list[tuple[Any, int]]:
    """Return each node from an input on, with the index of its input that the one before computes."""
    found: list[tuple[Any, int]] = []
    while name not in inputs:
        node = graph.producers.get(name)
        if node is None or len(found) > len(graph.nodes):
            raise ValueError(f"whole: no node computes {name!r}, or it depends on itself")
        computed = [i for i, one in enumerate(node.input) if one and graph.constant(node, i) is None]
        if is_recurrent(node):
            expect_given(graph, node, inputs)
            computed = computed[:1]
        if len(computed) != 1:
            refuse(node, f"it reads {len(computed)} computed values")
        found.append((node, computed[0]))
        name = node.input[computed[0]]
    return found[::-1]


def expect_given(graph: Graph, node: Any, inputs: set[str]) -> None:
    """Raise ValueError unless lengths and initial states are model inputs, or the states are zeros."""
    for name, value in zip(INPUTS[4:7], node.input[4:7], strict=False):
        if not value:
            continue
        while (made := graph.producers.get(value)) is not None and made.op_type in PARTS:
            value = made.input[0]
        if made is not None and value not in graph.constants and not (name != "sequence_lens" and is_zero(graph, made)):
            refuse(node, f"its {name} is computed")


def is_zero(graph: Graph, node: Any) -> bool:
    if node.op_type == "Expand":
        value = graph.constant(node, 0)
        return value is not None and not value.any()
    value = graph.attributes(node).get("value")
    return node.op_type == "ConstantOfShape" and (value is None or not array_of(value).any())


def refuse(node: Any, why: str) -> NoReturn:
    raise ValueError(
        f"whole: {title(node)}: not a layer of a Sequential ({why}); whole=False reads only recurrent nodes, and {HINT}"
    )


class Reader:
    """Convert the nodes of a path one by one to layers."""

    def __init__(self, graph: Graph, nodes: list[tuple[Any, int]]) -> None:
        self._graph, self._left = graph, nodes
        self._layers: list[Layer] = []
        self._stepwise = True  #: whether there is a time axis
        self._time_major: bool | None = None  #: known after the first recurrent node

    def layers(self) -> list[Layer]:
        while self._left:
            node, place = self._left.pop(0)
            if is_recurrent(node):
                self._recurrent(node)
            elif node.domain in ("", "ai.onnx") and node.op_type in READERS:
                READERS[node.op_type](self, node, place)
            else:
                refuse(node, f"expected one of {', '.join(READERS)}")
        return self._layers

    def _recurrent(self, node: Any) -> None:
        graph, before = self._graph, self._left
        cell, bidirectional, batch_first = options_of(node)
        if not self._stepwise or self._time_major not in (None, not batch_first):
            refuse(node, "its X does not have the time axis where it should be")
        D, self._time_major = 1 + bidirectional, not batch_first
        read = before[0][0].input[before[0][1]] if before else ""
        last = read != node.output[0]
        if last and read not in node.output[1:2]:
            refuse(node, "the model reads neither its Y nor its Y_h")
        merge = self._joined(node, D, last)
        without_lengths = not any(node.input[4:5])
        if not last and D == 1 and without_lengths and self._last_step():
            last = True
        self._stepwise = not last
        options: dict[str, Any] = {"return_sequences": not last, "batch_first": not self._time_major}
        options |= {"merge": merge} if bidirectional else {}
        parts = parts_of_node(graph, node, cell)
        self._layers.append(assembled(title(node), cell, parts, bidirectional, **options))

    def _joined(self, node: Any, D: int, last: bool) -> str | None:
        """Consume the nodes that join the directions and their units into one axis; return the merge."""
        ahead = [one for one, _ in self._left[:2]]
        for n in range(1, len(ahead) + 1):
            if (found := self._graph.joined(ahead[:n], node, last)) and (found[0] is None) == (D == 1):
                del self._left[:n]
                return found[0]
        refuse(node, "the nodes that join its directions are not recognised")

    def _last_step(self) -> bool:
        """Consume the nodes that select the last step of one direction, if they are next."""
        n = 1 if self._left and self._turns(self._left[0][0]) else 0
        time = 0 if self._time_major != bool(n) else 1
        if len(self._left) <= n or self._graph.index(self._left[n][0], time) != -1:
            return False
        del self._left[: n + 1]
        return True

    def _turns(self, node: Any) -> bool:
        return node.op_type == "Transpose" and self._graph.attributes(node).get("perm") in ([1, 0, 2], [1, 0])

    def transpose(self, node: Any, place: int) -> None:
        if not self._stepwise or not self._turns(node):
            refuse(node, "expected a swap of the time and batch axes")
        if self._time_major is not None:
            self._time_major = not self._time_major

    def rows(self, node: Any, place: int) -> None:
        table = self._graph.constant(node, 0)
        if place != 1 or table is None or table.ndim != 2 or self._graph.attributes(node).get("axis", 0) != 0:
            refuse(node, "expected the rows of a table")
        if self._layers:
            refuse(node, "expected it before every other layer")
        self._layers.append(loaded(Embedding(*table.shape, dtype=table.dtype, rng=0), {"weight": table}))

    def product(self, node: Any, place: int) -> None:
        weight = self._graph.constant(node, 1)
        given = self._graph.attributes(node)
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        if place != 0 or weight is None or weight.ndim != 2 or not plain:
            refuse(node, "expected a product with one constant matrix")
        bias = self._graph.constant(node, 2)
        self._dense(node, weight if given.get("transB", 0) else weight.T, bias)

    def _dense(self, node: Any, weight: Array, bias: Array | None) -> None:
        if bias is not None and bias.size != len(weight):
            refuse(node, "expected a bias for each output")
        self._layers.append(dense_of(weight, None if bias is None else bias.reshape(-1)))

    def sum(self, node: Any, place: int) -> None:
        """Add a bias to the preceding product."""
        below, bias = self._layers[-1] if self._layers else None, self._graph.constant(node, 1 - place)
        if not isinstance(below, Dense) or below.bias is not None or below.activation != "identity":
            refuse(node, "expected only directly after a product")
        self._layers.pop()
        self._dense(node, below.weight, bias)

    def activation(self, node: Any, place: int) -> None:
        """Add an activation, to a preceding `Dense` if it has none."""
        name, rank = FUNCTIONS[node.op_type], 3 if self._stepwise else 2
        if name == "softmax":
            axis = self._graph.attributes(node).get("axis", -1 if self._graph.opset >= 13 else 1)
            if axis not in (-1, rank - 1):
                refuse(node, f"expected the last axis, got {axis}")
        below = self._layers[-1] if self._layers else None
        if isinstance(below, Dense) and below.activation == "identity":
            self._layers[-1] = dense_of(below.weight, below.bias, name)
        else:
            self._layers.append(Activation(name))

    def dropout(self, node: Any, place: int) -> None:
        self._layers.append(Dropout(self._graph.rate(node)))

    def nothing(self, node: Any, place: int) -> None:
        """Skip an identity."""


#: operator that is not recurrent -> its reader
READERS: dict[str, Callable[[Reader, Any, int], None]] = {
    "Transpose": Reader.transpose,
    "Gather": Reader.rows,
    "MatMul": Reader.product,
    "Gemm": Reader.product,
    "Add": Reader.sum,
    **dict.fromkeys(FUNCTIONS, Reader.activation),
    "Dropout": Reader.dropout,
    "Identity": Reader.nothing,
}
