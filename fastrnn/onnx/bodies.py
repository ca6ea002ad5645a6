"""Run If, Loop and Scan nodes whose bodies contain recurrent nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import numpy as np

from fastrnn.convert.onnx_reader import attributes_of, subgraphs, title
from fastrnn.extras import needed
from fastrnn.onnx.graph import Whole, without_shape

onnx = needed("onnx", "onnx")

Values = dict[str, Any]

#: Makes the `Program` of a model.
Make = Callable[[Any], Any]


class _Body:
    """A subgraph of a node, as a program that also reads values of the enclosing graph."""

    def __init__(self, graph: Any, inputs: list[Any], whole: Whole, program: Make) -> None:
        model, self._read = whole.body(graph, inputs)
        self.program = program(model)

    def run(self, given: Values, around: Values, options: Any) -> list[Any]:
        """Run the body and return its outputs, in order."""
        values = self.program.run(given | {name: around[name] for name in self._read}, options)
        return [values[name] for name in self.program.outputs]


class _If:
    """An If node: its condition selects which of two bodies runs."""

    def __init__(self, node: Any, whole: Whole, program: Make) -> None:
        graphs = {a.name: a.g for a in node.attribute}
        self._condition, self._outputs = node.input[0], list(node.output)
        bodies = [_Body(graphs[name], [], whole, program) for name in ("then_branch", "else_branch")]
        self._then, self._else = bodies
        self.programs = [body.program for body in bodies]

    def run(self, values: Values, options: Any) -> None:
        body = self._then if truth(values[self._condition]) else self._else
        values.update(zip(self._outputs, body.run({}, values, options), strict=True))


class _Loop:
    """A Loop node: takes the trip count, a condition and carried values; returns carried values and stacked outputs.

    Its body takes the iteration number, the condition and the carried values, and returns the next condition, the
    carried values, and the values to stack.
    """

    def __init__(self, node: Any, whole: Whole, program: Make) -> None:
        (graph,) = [a.g for a in node.attribute if a.name == "body"]
        self._turns, self._condition, *self._carried = [*node.input, "", ""][: max(2, len(node.input))]
        self._outputs, n = list(node.output), len(self._carried)
        self._names = [value.name for value in graph.input]
        if len(self._names) != 2 + n or len(graph.output) < 1 + n:
            raise ValueError(f"model: {title(node)}: expected a body of {2 + n} inputs, got {self._names}")
        self._rank = len(graph.input[0].type.tensor_type.shape.dim)  # some exporters count in arrays of shape (1,)
        fixed = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
        kinds = [onnx.helper.make_tensor_type_proto(kind, None) for kind in fixed]
        kinds += [whole.type_of(name) for name in self._carried]
        self._body = _Body(graph, typed(graph.input, kinds), whole, program)
        self.programs = [self._body.program]
        self._empty = [empty(value) for value in self._body.program.results[1 + n :]]

    def run(self, values: Values, options: Any) -> None:
        turns = int(np.asarray(values[self._turns]).item()) if self._turns else None
        going = truth(values[self._condition]) if self._condition else True
        carried, rows = [values[name] for name in self._carried], list[list[Any]]()
        for i in itertools.count() if turns is None else range(turns):
            if not going:
                break
            given = [np.full((1,) * self._rank, i), np.array(going), *carried]
            next_going, *made = self._body.run(dict(zip(self._names, given, strict=True)), values, options)
            going, carried = truth(next_going), made[: len(carried)]
            rows.append(made[len(carried) :])
        carried, stacked = ended(carried, rows, self._empty)
        values.update((name, a) for name, a in zip(self._outputs, carried + stacked, strict=False) if name)


class _Scan:
    """A Scan node: takes states and sequences; returns final states and stacked outputs.

    Its body takes the states and one element of each sequence, and returns the next states, and the values to stack.
    """

    def __init__(self, node: Any, whole: Whole, program: Make) -> None:
        given, names = attributes_of(node), list(node.input)
        graph, M, self._title = subgraphs(node)[0], given.get("num_scan_inputs", 0), title(node)
        N = len(names) - M
        K = len(graph.output) - N
        self._states, self._sequences, self._outputs = names[:N], names[N:], list(node.output)
        self._names = [value.name for value in graph.input]
        self._from = [given.get(f"scan_input_{key}", [0] * M) for key in ("axes", "directions")]
        self._to = [given.get(f"scan_output_{key}", [0] * K) for key in ("axes", "directions")]
        if M < 1 or [len(self._names), *map(len, self._from + self._to)] != [len(names), M, M, K, K]:
            raise ValueError(
                f"model: {self._title}: expected a body of {len(names)} inputs, got {self._names}, and axes and "
                f"directions of {M} sequences and {K} stacked outputs, got {self._from} and {self._to}"
            )
        self._body = _Body(graph, typed(graph.input, map(whole.type_of, names)), whole, program)
        self.programs = [self._body.program]
        self._empty = [empty(value) for value in self._body.program.results[N:]]

    def run(self, values: Values, options: Any) -> None:
        states = [values[name] for name in self._states]
        given = [np.asarray(values[name]) for name in self._sequences]
        sequences = [backwards(np.moveaxis(a, axis, 0), back) for a, axis, back in zip(given, *self._from, strict=True)]
        if len({len(a) for a in sequences}) > 1:
            raise ValueError(f"{self._title}: expected sequences of one length, got {[len(a) for a in sequences]}")
        rows = list[list[Any]]()
        for elements in zip(*sequences, strict=True):
            taken = [*states, *map(np.asarray, elements)]
            made = self._body.run(dict(zip(self._names, taken, strict=True)), values, options)
            states = made[: len(states)]
            rows.append(made[len(states) :])
        states, stacked = ended(states, rows, self._empty)
        stacked = [np.moveaxis(backwards(a, back), 0, axis) for a, axis, back in zip(stacked, *self._to, strict=True)]
        values.update((name, a) for name, a in zip(self._outputs, states + stacked, strict=False) if name)


def ended(carried: list[Any], rows: list[list[Any]], none: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return the carried values and, stacked, the other outputs of each iteration, `none` without any iteration."""
    if not rows:
        return [copy(value) for value in carried], none  # copies, because the caller may write to the results
    return carried, list(map(np.stack, zip(*rows, strict=True)))


def backwards(a: Any, back: int) -> Any:
    return a[::-1] if back else a


#: The nodes whose bodies are entered, and since which opset: an older Scan has an axis of batches.
CONTROL: dict[str, type[_If] | type[_Loop] | type[_Scan]] = {"If": _If, "Loop": _Loop, "Scan": _Scan}
SINCE = {"If": 1, "Loop": 1, "Scan": 9}


def typed(inputs: Iterable[Any], kinds: Iterable[Any]) -> list[Any]:
    """Return a body's inputs without shapes; `kinds` are the types of those that state none, None if unknown."""
    own = [(v.name, v.type if v.type.WhichOneof("value") else kind) for v, kind in zip(inputs, kinds, strict=True)]
    return [
        onnx.ValueInfoProto(name=name) if kind is None else onnx.helper.make_value_info(name, without_shape(kind))
        for name, kind in own
    ]


def truth(condition: Any) -> bool:
    return bool(np.asarray(condition).item())


def empty(value: Any) -> Any:
    """The stacked output of a Loop or a Scan without iterations: unstated sizes are 0, as in ONNX Runtime."""
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type or 1)
    return np.zeros((0, *(one.dim_value for one in kind.shape.dim)), dtype)
