"""Split a model into steps: the nodes that fastrnn runs, and between them the parts that another engine runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from fastrnn.convert.onnx_reader import FOREIGN, array_of, is_foreign, is_recurrent, name_of, title
from fastrnn.extras import needed
from fastrnn.frameworks import DATA, WEIGHTS
from fastrnn.onnx.graph import (
    Whole,
    constant_nodes,
    crossing,
    expect_made,
    hidden,
    reads,
    within,
    without_shape,
)
from fastrnn.onnx.node import Recurrent, Weights
from fastrnn.onnx.rest import Engine, Rest

Values = dict[str, Any]


class Placed(NamedTuple):
    """Where a recurrent node runs."""

    name: str  #: the node's name, or else its first output's
    op: str  #: RNN, GRU or LSTM, or the operator's name in another domain than ONNX's
    where: str  #: "kernels" or "numpy" (both fastrnn's), or the engine of the rest
    why: str  #: why it does not run in the kernels; "" if it does


class Program:
    """A model, cut before and after each node that fastrnn runs, in the order of its nodes.

    Attributes
    ----------
    inputs, optional, outputs : collections of str
        Names of the required inputs, the optional inputs, and the outputs.
    results : list of ValueInfoProto
        Types and shapes of the outputs, as far as known.
    nodes : list of Placed
    steps : list
        Each has ``run(values, options)``, which adds its results to the dict `values`.
    """

    def __init__(self, model: Any, rest: Rest, threads: int | None) -> None:
        self._rest, self._threads = rest, threads
        expect_made(model.graph)
        nodes, tensors = list(model.graph.node), {tensor.name: tensor for tensor in model.graph.initializer}
        inputs = [value.name for value in model.graph.input]
        self.inputs = [name for name in inputs if name not in tensors]
        self.outputs = [value.name for value in model.graph.output]
        # An initializer that is also an input is a default value; before IR 4 every constant was written that way.
        self.optional = {name for name in inputs if name in tensors and model.ir_version >= 4}
        whole = Whole(model, {name: tensor for name, tensor in tensors.items() if name not in self.optional}, rest)
        placed: dict[int, list[Placed]] = {}
        own: dict[int, Any] = {}
        for node in nodes:
            placed[id(node)] = self._place(node, whole, own)
        read = set().union(*(reads(node) for node in nodes if id(node) in own))
        kept = self.optional.union(self.outputs, read)
        self._values = {name: array_of(tensors[name]) for name in kept & tensors.keys()}
        wanted = {node.inputs[name] for node in own.values() if node for name in WEIGHTS if name in node.inputs}
        wanted |= set().union(*(reads(node) for node in nodes if own.get(id(node), True) is None))
        made = constant_nodes(nodes, whole.constants, wanted | crossing(nodes, own))
        for part in self._parts(made, whole, {}, nodes):
            part.run(self._values, None)
            whole.add_constants({name: self._values[name] for name in part.outputs})
        for node in nodes:
            if id(node) in own and own[id(node)] is None:
                placed[id(node)] = self._enter(node, whole, own)
        self.nodes = [one for node in nodes for one in placed[id(node)]]
        done = {id(node) for node in made}
        self.steps = self._parts([node for node in nodes if id(node) not in done], whole, own, nodes)
        self.results = [whole.result(value) for value in model.graph.output]

    def run(self, given: Values, options: Any) -> Values:
        """Run all steps and return all values by name."""
        values = self._values | given
        for step in self.steps:
            step.run(values, options)
        return values

    def _place(self, node: Any, whole: Whole, own: dict[int, Any]) -> list[Placed]:
        """Decide where a node and those inside it run; add it to `own` if fastrnn runs it (None: bodies to enter)."""
        if is_foreign(node):
            return [Placed(name_of(node), node.op_type, self._rest.name, FOREIGN.format(node.op_type, node.domain))]
        if not is_recurrent(node):
            inside = [Placed(name_of(one), one.op_type, self._rest.name, where) for one, where in hidden(node)]
            if inside and node.op_type in CONTROL and node.domain in ("", "ai.onnx"):
                own[id(node)] = None
            return inside
        try:
            read = Recurrent(node)
            if (dtype := whole.dtype(read.inputs["X"])) not in (None, "float32", "float64"):
                raise ValueError(f"X: {dtype}")
        except ValueError as refused:
            return [Placed(name_of(node), node.op_type, self._rest.name, str(refused))]
        own[id(node)] = read
        return [Placed(name_of(node), read.op, "numpy" if read.why else "kernels", read.why)]

    def _enter(self, node: Any, whole: Whole, own: dict[int, Any]) -> list[Placed]:
        """Decide where recurrent nodes in the bodies of an If or a Loop run; if all in the rest, so does the node."""
        control = CONTROL[node.op_type](node, whole, self._rest, self._threads)
        placed = [one for program in control.programs for one in program.nodes]
        if all(one.where == self._rest.name for one in placed):
            del own[id(node)]
        else:
            own[id(node)] = control
        return placed

    def _parts(self, nodes: list[Any], whole: Whole, own: dict[int, Any], every: list[Any]) -> list[Any]:
        """Turn nodes into steps: one for each node that fastrnn runs, and between them parts for the rest."""
        steps: list[Any] = []
        for mine, group in itertools.groupby(nodes, lambda node: id(node) in own):
            together = list(group)
            if mine:
                found = [own[id(node)] for node in together]
                steps += [self._own(one, whole) if isinstance(one, Recurrent) else one for one in found]
                continue
            inside = {id(node) for node in together}
            wanted = set(self.outputs).union(*(reads(node) for node in every if id(node) not in inside))
            outputs = [name for node in together for name in node.output if name in wanted]
            if outputs:
                part, inputs = whole.part(together, outputs)
                steps.append(_Part(self._rest.engine(part), inputs, outputs))
        return steps

    def _own(self, node: Recurrent, whole: Whole) -> _Own:
        return _Own(node, whole.constants, self._values, self._threads)


class _Part:
    """Consecutive nodes that the rest runs."""

    def __init__(self, engine: Engine, inputs: list[str], outputs: list[str]) -> None:
        self._engine, self._inputs, self.outputs = engine, inputs, outputs

    def run(self, values: Values, options: Any) -> None:
        made = self._engine(self.outputs, {name: values[name] for name in self._inputs}, options)
        values.update(zip(self.outputs, made, strict=True))


class _Own:
    """A node that fastrnn runs; `values` already holds the constants that it reads."""

    def __init__(self, node: Recurrent, constants: Values, values: Values, threads: int | None) -> None:
        self._node, self._threads = node, threads
        fixed = all(node.inputs[name] in constants for name in WEIGHTS if name in node.inputs)
        self._weights = Weights(node, *self._named(WEIGHTS, values), keep=True) if fixed else None

    def _named(self, names: Iterable[str], values: Values) -> list[Any]:
        """The node's values for these inputs; None for absent ones."""
        inputs = self._node.inputs
        return [values[inputs[name]] if name in inputs else None for name in names]

    def run(self, values: Values, options: Any) -> None:
        weights = self._weights or Weights(self._node, *self._named(WEIGHTS, values))
        results = self._node.run(*self._named(DATA, values), weights=weights, threads=self._threads)
        values.update((name, a) for name, a in zip(self._node.outputs, results, strict=False) if name)


class _Body:
    """A subgraph of a node, as a program that also reads values of the enclosing graph."""

    def __init__(self, graph: Any, inputs: list[Any], whole: Whole, rest: Rest, threads: int | None) -> None:
        model, self._read = whole.body(graph, inputs)
        self.program = Program(model, rest, threads)

    def run(self, given: Values, around: Values, options: Any) -> list[Any]:
        """Run the body and return its outputs, in order."""
        values = self.program.run(given | {name: around[name] for name in self._read}, options)
        return [values[name] for name in self.program.outputs]


class _If:
    """An If node: its condition selects which of two bodies runs."""

    def __init__(self, node: Any, whole: Whole, rest: Rest, threads: int | None) -> None:
        graphs = {a.name: a.g for a in node.attribute}
        self._condition, self._outputs = node.input[0], list(node.output)
        bodies = [_Body(graphs[name], [], whole, rest, threads) for name in ("then_branch", "else_branch")]
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

    def __init__(self, node: Any, whole: Whole, rest: Rest, threads: int | None) -> None:
        onnx = needed("onnx", "onnx")
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
        own = [v.type if v.type.WhichOneof("value") else k for v, k in zip(graph.input, kinds, strict=True)]
        inputs = [
            onnx.ValueInfoProto(name=name) if kind is None else onnx.helper.make_value_info(name, without_shape(kind))
            for name, kind in zip(self._names, own, strict=True)
        ]
        self._body = _Body(graph, inputs, whole, rest, threads)
        self.programs = [self._body.program]
        self._empty = [empty(value) for value in self._body.program.results[1 + n :]]

    def run(self, values: Values, options: Any) -> None:
        turns = int(np.asarray(values[self._turns]).item()) if self._turns else None
        going = truth(values[self._condition]) if self._condition else True
        first = carried = [values[name] for name in self._carried]
        stacks = [list[Any]() for _ in self._empty]
        for i in itertools.count() if turns is None else range(turns):
            if not going:
                break
            given = [np.full((1,) * self._rank, i), np.array(going), *carried]
            next_going, *made = self._body.run(dict(zip(self._names, given, strict=True)), values, options)
            going, carried = truth(next_going), made[: len(carried)]
            for stack, one in zip(stacks, made[len(carried) :], strict=True):
                stack.append(one)
        if carried is first:  # no iteration ran; copy because the caller may write to the results
            carried = [copy(value) for value in first]
        stacked = [np.stack(stack) if stack else none for stack, none in zip(stacks, self._empty, strict=True)]
        values.update((name, a) for name, a in zip(self._outputs, carried + stacked, strict=False) if name)


#: The nodes whose bodies are entered.
CONTROL: dict[str, type[_If] | type[_Loop]] = {"If": _If, "Loop": _Loop}


def truth(condition: Any) -> bool:
    return bool(np.asarray(condition).item())


def empty(value: Any) -> Any:
    """The stacked output of a Loop without iterations: unstated sizes are 0, as in ONNX Runtime."""
    kind = value.type.tensor_type
    dtype = needed("onnx.helper", "onnx").tensor_dtype_to_np_dtype(kind.elem_type or 1)
    return np.zeros((0, *(one.dim_value for one in kind.shape.dim)), dtype)


def in_functions(model: Any, rest: Rest) -> list[Placed]:
    """Recurrent nodes inside a model's functions, which stay with the rest."""
    found = [(node, where) for f in model.functions for node, where in within(f.node, f"inside function {f.name}")]
    return [Placed(name_of(node), node.op_type, rest.name, where) for node, where in found]
