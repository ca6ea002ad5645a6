"""Split a model into steps: the nodes that fastrnn runs, and between them the parts that another engine runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from fastrnn.convert.onnx_reader import FOREIGN, array_of, is_foreign, is_recurrent, name_of, opset_of
from fastrnn.frameworks import DATA, WEIGHTS
from fastrnn.onnx.bodies import CONTROL, SINCE, Values
from fastrnn.onnx.graph import Whole, constant_nodes, crossing, expect_made, hidden, reads, within
from fastrnn.onnx.node import Recurrent, Weights
from fastrnn.onnx.rest import Engine, Rest


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
            if inside and node.domain in ("", "ai.onnx") and opset_of(whole.model) >= SINCE.get(node.op_type, math.inf):
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
        """Decide where recurrent nodes in the bodies of a node run; if all in the rest, so does the node."""
        control = CONTROL[node.op_type](node, whole, partial(Program, rest=self._rest, threads=self._threads))
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


def in_functions(model: Any, rest: Rest) -> list[Placed]:
    """Recurrent nodes inside a model's functions, which stay with the rest."""
    found = [(node, where) for f in model.functions for node, where in within(f.node, f"inside function {f.name}")]
    return [Placed(name_of(node), node.op_type, rest.name, where) for node, where in found]
