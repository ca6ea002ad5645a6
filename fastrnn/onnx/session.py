"""A model of which fastrnn runs the recurrent nodes, and something else the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fastrnn.checks import among, checked_threads
from fastrnn.convert.onnx_graph import array_of, is_recurrent
from fastrnn.frameworks import DATA, WEIGHTS
from fastrnn.onnx.graph import (
    Engine,
    Whole,
    constant_nodes,
    crossing,
    engine,
    expect_made,
    hidden,
    loaded,
    reads,
    title,
)
from fastrnn.onnx.node import Recurrent, Weights

RESTS = ("onnxruntime", "reference")

Values = dict[str, Any]


class Placed(NamedTuple):
    """Where a recurrent node runs."""

    name: str  #: the node's, or that of its first output
    op: str  #: RNN, GRU or LSTM
    where: str  #: "kernels" or "numpy", both fastrnn's, or what runs the rest
    why: str  #: it is not the kernels; "" if it is


class Session:
    """Run a model: RNN, GRU and LSTM nodes on fastrnn, the rest on ONNX Runtime or on ONNX's reference evaluator.

    The graph is cut, in the order of its nodes, where a recurrent node stands; what lies between two of them is a
    session of its own. Weights that are constant, or made of constants, are brought into fastrnn's order and packed
    once. Recurrent nodes inside If, Loop, Scan or a function stay with the rest, and so do those of float16.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        Up to ONNX's 2 GB, and with its weights inside or beside it.
    rest : {"onnxruntime", "reference"}
        What runs the other nodes.
    threads : int, optional
        At most this many, here and in ONNX Runtime; each one's own choice when absent.

    Attributes
    ----------
    nodes : list of Placed
        Every recurrent node of the model: ``name``, ``op``, ``where`` it runs ("kernels", "numpy" for fastrnn's loop
        in NumPy, or the rest's name) and ``why``, if not in the kernels.
    input_names, output_names : list of str
        The inputs that a run needs, and the outputs that it gives.

    Raises
    ------
    TypeError, ValueError
        For what is not a model, for another `rest`, and where the type of a value between two parts is not known.
    ImportError
        Where onnx or onnxruntime is not installed.

    Examples
    --------
    >>> import numpy as np, fastrnn.onnx
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> nodes = [
    ...     helper.make_node("Relu", ["x"], ["r"]),
    ...     helper.make_node("LSTM", ["r", "W", "R"], ["", "h"], name="memory"),
    ... ]
    >>> rng = np.random.default_rng(0)
    >>> weights = {"W": rng.standard_normal((1, 16, 3)), "R": rng.standard_normal((1, 16, 4))}
    >>> weights = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()]
    >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("T", "B", 3))
    >>> h = helper.make_tensor_value_info("h", TensorProto.FLOAT, (1, "B", 4))
    >>> graph = helper.make_graph(nodes, "example", [x], [h], weights)
    >>> opset = [helper.make_opsetid("", 14)]
    >>> session = fastrnn.onnx.Session(helper.make_model(graph, opset_imports=opset), rest="reference")
    >>> session.nodes
    [Placed(name='memory', op='LSTM', where='kernels', why='')]
    >>> (h,) = session.run(None, {"x": np.ones((5, 2, 3), np.float32)})
    >>> h.shape
    (1, 2, 4)
    """

    def __init__(self, model: Any, rest: str = "onnxruntime", *, threads: int | None = None) -> None:
        if not among(rest, RESTS):
            raise ValueError(f"rest: expected one of {', '.join(RESTS)}, got {rest!r}")
        self._rest, self._threads = rest, None if threads is None else checked_threads(threads)
        model = loaded(model)
        expect_made(model.graph)
        nodes, tensors = list(model.graph.node), {tensor.name: tensor for tensor in model.graph.initializer}
        inputs = [value.name for value in model.graph.input]
        self.input_names = [name for name in inputs if name not in tensors]
        self._needed = frozenset(self.input_names)
        self.output_names = [value.name for value in model.graph.output]
        # An initializer that is an input as well is a default; before IR 4 it was the way to write a constant.
        self._optional = {name for name in inputs if name in tensors and model.ir_version >= 4}
        whole = Whole(model, {name: tensor for name, tensor in tensors.items() if name not in self._optional})
        own = self._placed(whole, nodes)

        kept = self._optional.union(self.output_names, *(node.inputs.values() for node in own.values()))
        self._values = {name: array_of(tensors[name]) for name in kept & tensors.keys()}
        weights = {value for node in own.values() for name, value in node.inputs.items() if name in WEIGHTS}
        made = constant_nodes(nodes, whole.constants, weights | crossing(nodes, own))
        for part in self._parts(whole, made, {}, nodes):
            part.run(self._values)
            whole.add_constants({name: self._values[name] for name in part.outputs})
        done = {id(node) for node in made}
        self._steps = self._parts(whole, [node for node in nodes if id(node) not in done], own, nodes)

    def run(self, output_names: Sequence[str] | None, inputs: Values) -> list[Any]:
        """Run the model.

        Parameters
        ----------
        output_names : list of str, or None
            Which outputs, in which order; None is all of them.
        inputs : dict of arrays
            By name.

        Returns
        -------
        list of arrays

        Raises
        ------
        TypeError, ValueError
            For an output or an input that the model does not have, one that is missing, and for what a node refuses.
        """
        if not isinstance(inputs, dict):
            raise TypeError(f"inputs: expected a dict of arrays by name, got {type(inputs).__name__}")
        if output_names is not None and not isinstance(output_names, list | tuple):
            raise TypeError(f"output_names: expected a list of names, or None, got {output_names!r:.80}")
        wanted = self.output_names if output_names is None else list(output_names)
        if strange := [name for name in wanted if name not in self.output_names]:
            raise ValueError(f"output_names: expected some of {self.output_names}, got {strange[0]!r}")
        if inputs.keys() != self._needed:
            self._check_names(inputs)
        values = self._values | inputs
        for step in self._steps:
            step.run(values)
        return [values[name] for name in wanted]

    def _check_names(self, inputs: Values) -> None:
        if strange := sorted(inputs.keys() - self._optional - self._needed):
            raise ValueError(f"inputs: expected {', '.join(self.input_names)}, got {strange[0]!r}")
        if missing := [name for name in self.input_names if name not in inputs]:
            raise ValueError(f"inputs: expected {', '.join(self.input_names)}, without {missing[0]!r}")

    def _placed(self, whole: Whole, nodes: list[Any]) -> dict[int, Recurrent]:
        """The nodes that fastrnn runs, by their id; `nodes` of the session says why not the others."""
        own: dict[int, Recurrent] = {}
        self.nodes: list[Placed] = []
        for node in nodes:
            if not is_recurrent(node):
                continue
            try:
                read = Recurrent(node)
                if (dtype := whole.dtype(read.inputs["X"])) not in (None, "float32", "float64"):
                    raise ValueError(f"X: {dtype}")
            except ValueError as refused:
                self.nodes.append(Placed(title(node), node.op_type, self._rest, str(refused)))
            else:
                own[id(node)] = read
                self.nodes.append(Placed(title(node), read.op, "numpy" if read.why else "kernels", read.why))
        self.nodes += [Placed(title(node), node.op_type, self._rest, where) for node, where in hidden(whole.model)]
        return own

    def _parts(self, whole: Whole, nodes: list[Any], own: dict[int, Recurrent], every: list[Any]) -> list[Any]:
        """The nodes as steps of a run: each of fastrnn's own, and between them parts for the rest."""
        steps: list[Any] = []
        for mine, group in itertools.groupby(nodes, lambda node: id(node) in own):
            together = list(group)
            if mine:
                steps += [_Own(own[id(node)], whole.constants, self._values, self._threads) for node in together]
                continue
            inside = {id(node) for node in together}
            wanted = set(self.output_names).union(*(reads(node) for node in every if id(node) not in inside))
            outputs = [name for node in together for name in node.output if name in wanted]
            if outputs:
                part, inputs = whole.part(together, outputs)
                steps.append(_Part(engine(self._rest, part, self._threads), inputs, outputs))
        return steps


class _Part:
    """Nodes that the rest runs."""

    def __init__(self, engine: Engine, inputs: list[str], outputs: list[str]) -> None:
        self._engine, self._inputs, self.outputs = engine, inputs, outputs

    def run(self, values: Values) -> None:
        made = self._engine(self.outputs, {name: values[name] for name in self._inputs})
        values.update(zip(self.outputs, made, strict=True))


class _Own:
    """A node that fastrnn runs; what it reads of the constants is in `values` already."""

    def __init__(self, node: Recurrent, constants: Values, values: Values, threads: int | None) -> None:
        self._node, self._threads = node, threads
        fixed = all(node.inputs[name] in constants for name in WEIGHTS if name in node.inputs)
        self._weights = Weights(node, *self._named(WEIGHTS, values), keep=True) if fixed else None

    def _named(self, names: Iterable[str], values: Values) -> list[Any]:
        """What the node has for these inputs; None where it has none."""
        inputs = self._node.inputs
        return [values[inputs[name]] if name in inputs else None for name in names]

    def run(self, values: Values) -> None:
        weights = self._weights or Weights(self._node, *self._named(WEIGHTS, values))
        results = self._node.run(*self._named(DATA, values), weights=weights, threads=self._threads)
        values.update((name, a) for name, a in zip(self._node.outputs, results, strict=False) if name)
