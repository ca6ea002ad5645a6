"""Analyse a model in order to run some of its nodes in fastrnn and the others elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import Any

from fastrnn.convert.onnx_reader import is_foreign, is_recurrent, name_of, subgraphs, title
from fastrnn.extras import needed
from fastrnn.onnx.rest import Rest

onnx = needed("onnx", "onnx")

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def reads(node: Any) -> set[str]:
    """Names of the values that a node reads, including those inside its subgraphs: names are unique in a model."""
    names = set(node.input)
    for graph in subgraphs(node):
        names |= {output.name for output in graph.output}.union(*(reads(inner) for inner in graph.node))
    return names - {""}


def hidden(node: Any) -> Iterator[tuple[Any, str]]:
    """Yield the recurrent nodes inside a node's subgraphs, with their location."""
    for graph in subgraphs(node):
        yield from within(graph.node, f"inside {node.op_type} {name_of(node)}")


def within(nodes: Iterable[Any], where: str) -> Iterator[tuple[Any, str]]:
    """Yield the recurrent nodes among these and inside them, with their location."""
    for node in nodes:
        if is_recurrent(node) or is_foreign(node):
            yield node, where
        yield from hidden(node)


def constant_nodes(nodes: Iterable[Any], constants: Iterable[str], wanted: Iterable[str]) -> list[Any]:
    """The nodes, in order, that compute the wanted values from constants only."""
    known, found = set(constants), []
    for node in nodes:
        if node.op_type not in RANDOM and not is_recurrent(node) and reads(node) <= known:
            known.update(node.output)
            found.append(node)
    missing, kept = set(wanted), []
    for node in reversed(found):
        if missing & set(node.output):
            missing |= reads(node)
            kept.append(node)
    return kept[::-1]


def expect_made(graph: Any) -> None:
    """Raise ValueError unless input names are unique and every value is computed before it is read.

    Names of values in subgraphs differ from those of the graph itself.
    """
    if twice := [name for name, n in Counter(value.name for value in graph.input).items() if n > 1]:
        raise ValueError(f"model: expected inputs with unique names, got several named {twice[0]!r}")
    made = {"", *(value.name for value in [*graph.input, *graph.initializer])}
    names = made.union(*(node.output for node in graph.node))
    for node in graph.node:
        if strange := sorted((set(node.input) | reads(node) & names) - made, key=str):
            raise ValueError(f"model: {title(node)} reads {strange[0]!r}, which nothing before it provides")
        made.update(node.output)
    if strange := [value.name for value in graph.output if not value.name or value.name not in made]:
        raise ValueError(f"model: no node computes its output {strange[0]!r}")


def crossing(nodes: Iterable[Any], own: Container[int]) -> set[str]:
    """Names of values made in one part and read in another; each node with an id in `own` is a part by itself."""
    made: dict[str, int] = {}
    crossed: set[str] = set()
    part, after_own = 0, False
    for node in nodes:
        mine = id(node) in own
        part += mine or after_own
        after_own = mine
        crossed |= {name for name in reads(node) if made.get(name, part) != part}
        made |= dict.fromkeys(node.output, part)
    return crossed


class Whole:
    """A model to be cut into parts; `constants` are its TensorProtos by name."""

    def __init__(self, model: Any, constants: dict[str, Any], rest: Rest) -> None:
        self.model, self.constants, self._rest = model, constants, rest
        graph = model.graph
        given = {value.name for value in [*graph.input, *graph.initializer]}
        made = set().union(*(node.output for node in graph.node))
        self.known = given | made - {""}
        self._types: dict[str, Any] = {}
        try:
            inferred = onnx.shape_inference.infer_shapes(model).graph
        except (onnx.shape_inference.InferenceError, ValueError) as error:
            raise ValueError(f"model: onnx.shape_inference rejects it: {error}") from error
        for value in [*inferred.value_info, *inferred.output]:
            if value.type.WhichOneof("value"):
                self._types[value.name] = without_shape(value.type)  # exporters sometimes write wrong shapes
        self._types |= {value.name: value.type for value in graph.input}
        self._unknown = made - self._types.keys() - {""}
        self._results = {value.name: value for value in inferred.output}

    def type_of(self, name: str) -> Any:
        """A TypeProto, or None if neither ONNX nor the engine of the rest knows the type."""
        if name in self._unknown:
            self._types |= self._rest.types(self.model, self._unknown)
            self._unknown = set()
        return self._types.get(name)

    def dtype(self, name: str) -> str | None:
        """The NumPy dtype of a tensor by name, or None if unknown."""
        helper, constant = onnx.helper, self.constants.get(name)
        kind = None if constant is not None else self.type_of(name)
        number = constant.data_type if constant is not None else 0 if kind is None else kind.tensor_type.elem_type
        if number not in helper.get_all_tensor_dtypes():
            return None if number == 0 else f"type {number}"
        return str(helper.tensor_dtype_to_np_dtype(number))

    def add_constants(self, arrays: dict[str, Any]) -> None:
        self.constants |= {name: onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()}

    def part(self, nodes: list[Any], outputs: list[str]) -> tuple[Any, list[str]]:
        """Return a model of some of the nodes with the constants that they read, and the names of its inputs."""
        return self._model(nodes, [self.value(name) for name in outputs], [], [])

    def body(self, graph: Any, inputs: list[Any]) -> tuple[Any, list[str]]:
        """Return a model of a subgraph with its own inputs, and the names of the values that it reads from here."""
        return self._model(list(graph.node), list(graph.output), inputs, list(graph.initializer))

    def _model(self, nodes: list[Any], outputs: list[Any], own: list[Any], stored: list[Any]) -> tuple[Any, list[str]]:
        asked = {value.name for value in outputs}.union(*(reads(node) for node in nodes)) & self.known
        here = {value.name for value in [*own, *stored]}
        read = sorted(asked.difference(here, *(node.output for node in nodes)))
        inputs = [name for name in read if name not in self.constants]
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            own + [self.value(name) for name in inputs],
            outputs,
            stored + [self.constants[name] for name in read if name in self.constants],
        )
        model, of_whole = onnx.helper.make_model(graph, opset_imports=self.model.opset_import), self.model
        model.ir_version = of_whole.ir_version
        model.functions.extend(of_whole.functions)
        return model, inputs

    def result(self, value: Any) -> Any:
        """The most complete ValueInfoProto known for an output."""
        known = [self._results.get(value.name, value), value, self.value(value.name)]
        return next((one for one in known if one.type.WhichOneof("value")), value)

    def value(self, name: str) -> Any:
        """A ValueInfoProto, without a type if that is unknown."""
        kind = self.type_of(name)
        return onnx.ValueInfoProto(name=name) if kind is None else onnx.helper.make_value_info(name, kind)


def without_shape(kind: Any) -> Any:
    """A copy of a TypeProto, without the shape if it is a tensor's."""
    copy = onnx.TypeProto()
    copy.CopyFrom(kind)
    if copy.HasField("tensor_type"):
        copy.tensor_type.ClearField("shape")
    return copy
