"""What must be known of a model to run some of its nodes here and the others elsewhere."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from fastrnn.convert.onnx_graph import is_recurrent, parsed
from fastrnn.extras import needed

#: What runs the nodes that fastrnn does not: outputs by name, from inputs by name.
Engine = Callable[[list[str], dict[str, Any]], list[Any]]

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def loaded(model: Any) -> Any:
    """A ModelProto, from one, from a path, or from the bytes of a file."""
    onnx = needed("onnx", "onnx")
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, bytes):
        return parsed("model: what is given", onnx.load_model_from_string, model)
    if isinstance(model, str | os.PathLike):
        return parsed(f"model: {os.fspath(model)}", onnx.load, os.fspath(model))
    raise TypeError(f"model: expected a path, bytes or an onnx.ModelProto, got {type(model).__name__}")


def subgraphs(node: Any) -> list[Any]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def reads(node: Any) -> set[str]:
    """Names of values that it reads, its subgraphs' own included: no two values of a model have the same."""
    names = set(node.input)
    for graph in subgraphs(node):
        names |= {output.name for output in graph.output}.union(*(reads(inner) for inner in graph.node))
    return names - {""}


def hidden(model: Any) -> Iterator[tuple[Any, str]]:
    """Recurrent nodes that are not in the graph itself, and where they are."""

    def inside(nodes: Iterable[Any], where: str) -> Iterator[tuple[Any, str]]:
        for node in nodes:
            if where and is_recurrent(node):
                yield node, f"inside {where}"
            for graph in subgraphs(node):
                yield from inside(graph.node, f"{node.op_type} {title(node)}")

    yield from inside(model.graph.node, "")
    for function in model.functions:
        yield from inside(function.node, f"function {function.name}")


def title(node: Any) -> str:
    """A node's name, or that of its first output."""
    return str(node.name or next((name for name in node.output if name), ""))


def constant_nodes(nodes: Iterable[Any], constants: Iterable[str], wanted: Iterable[str]) -> list[Any]:
    """The nodes, in order, that make the wanted values of constants alone."""
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
    """A ValueError, unless everything that is read is made before; subgraphs have no names of the graph's own."""
    made = {"", *(value.name for value in [*graph.input, *graph.initializer])}
    names = made.union(*(node.output for node in graph.node))
    for node in graph.node:
        if strange := sorted((set(node.input) | reads(node) & names) - made, key=str):
            whose = f"model: {node.op_type} {title(node)!r}"
            raise ValueError(f"{whose} reads {strange[0]!r}, which nothing before it makes")
        made.update(node.output)
    if strange := [value.name for value in graph.output if not value.name or value.name not in made]:
        raise ValueError(f"model: nothing makes its output {strange[0]!r}")


def crossing(nodes: Iterable[Any], own: Container[int]) -> set[str]:
    """What is made in one part and read in another, where the nodes of these ids are parts of their own."""
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
    """A model that is cut into parts; `constants` are its TensorProtos by name."""

    def __init__(self, model: Any, constants: dict[str, Any]) -> None:
        self.model, self.constants = model, constants
        onnx, graph = needed("onnx", "onnx"), model.graph
        given = {value.name for value in [*graph.input, *graph.initializer]}
        self._known = given.union(*(node.output for node in graph.node)) - {""}
        self._types: dict[str, Any] = {}
        try:
            inferred = onnx.shape_inference.infer_shapes(model).graph
        except (onnx.shape_inference.InferenceError, ValueError) as error:
            raise ValueError(f"model: onnx.shape_inference refuses it: {error}") from error
        for value in [*inferred.value_info, *inferred.output]:
            self._types[value.name] = type_of_value = onnx.TypeProto()
            type_of_value.CopyFrom(value.type)
            if value.type.HasField("tensor_type"):
                type_of_value.tensor_type.ClearField("shape")  # exporters are known to leave wrong ones
        self._types |= {value.name: value.type for value in graph.input}

    def dtype(self, name: str) -> str | None:
        """Of a tensor, as NumPy calls it, as far as it is known."""
        helper, kind = needed("onnx.helper", "onnx"), self._types.get(name)
        constant = self.constants.get(name)
        number = constant.data_type if constant is not None else 0 if kind is None else kind.tensor_type.elem_type
        if number not in helper.get_all_tensor_dtypes():
            return None if number == 0 else f"type {number}"
        return str(helper.tensor_dtype_to_np_dtype(number))

    def add_constants(self, arrays: dict[str, Any]) -> None:
        from_array = needed("onnx.numpy_helper", "onnx").from_array
        self.constants |= {name: from_array(a, name) for name, a in arrays.items()}

    def part(self, nodes: list[Any], outputs: list[str]) -> tuple[Any, list[str]]:
        """A model of some of the nodes, with the constants that they read, and the names of its inputs.

        Raises ValueError where the type of an input or an output is not known.
        """
        helper = needed("onnx.helper", "onnx")
        asked = set().union(*(reads(node) for node in nodes)) & self._known
        read = sorted(asked.difference(*(node.output for node in nodes)))
        inputs = [name for name in read if name not in self.constants]
        if unknown := [name for name in (*inputs, *outputs) if name not in self._types]:
            raise ValueError(f"model: onnx.shape_inference does not find the type of {unknown[0]!r}")
        graph = helper.make_graph(
            nodes,
            "part",
            [helper.make_value_info(name, self._types[name]) for name in inputs],
            [helper.make_value_info(name, self._types[name]) for name in outputs],
            [self.constants[name] for name in read if name in self.constants],
        )
        model, of_whole = helper.make_model(graph, opset_imports=self.model.opset_import), self.model
        model.ir_version = of_whole.ir_version
        model.functions.extend(of_whole.functions)
        return model, inputs


def engine(rest: str, model: Any, threads: int | None) -> Engine:
    """`rest` on a model."""
    if rest == "reference":
        evaluator = needed("onnx.reference", "onnx").ReferenceEvaluator(model)
        return lambda outputs, inputs: list(evaluator.run(outputs, inputs))
    try:
        runtime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise ImportError('onnxruntime is not installed; pip install it, or give rest="reference"') from error
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda outputs, inputs: list(session.run(outputs, inputs))
