"""The engines that run the other nodes of a model, and infer their types."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastrnn.extras import needed

onnx = needed("onnx", "onnx")

#: (names of outputs, inputs by name, onnxruntime.RunOptions or None) -> outputs.
Engine = Callable[[list[str], dict[str, Any], Any], list[Any]]

CPU = "CPUExecutionProvider"


class Reference:
    """ONNX's reference evaluator, which needs no types; a `Runtime` has the same attributes and methods."""

    name = "reference"
    providers: Sequence[str] = (CPU,)  #: named as in ONNX Runtime

    def engine(self, model: Any) -> Engine:
        """Prepare a model to run."""
        reference = needed("onnx.reference", "onnx")
        try:
            evaluator = reference.ReferenceEvaluator(model)
        except Exception as error:  # onnx.reference has no exception class of its own
            raise ValueError(f"model: onnx.reference rejects it: {error}") from error
        return lambda outputs, inputs, _: list(evaluator.run(outputs, inputs))

    def types(self, model: Any, names: Iterable[str]) -> dict[str, Any]:
        """Return the TypeProtos of these values of a model, as far as known."""
        return {}


class Runtime:
    """ONNX Runtime with these onnxruntime.SessionOptions and providers."""

    name = "onnxruntime"

    def __init__(self, options: Any, providers: Sequence[Any] | None, threads: int | None) -> None:
        try:
            self._runtime: Any = importlib.import_module("onnxruntime")
        except ModuleNotFoundError as error:
            raise ImportError(
                'onnxruntime is not installed; pip install onnxruntime, or pass rest="reference"'
            ) from error
        if options is not None and not isinstance(options, self._runtime.SessionOptions):
            raise TypeError(f"sess_options: expected onnxruntime.SessionOptions, got {options!r:.80}")
        self._options = self._runtime.SessionOptions() if options is None else options
        if threads is not None:
            self._options.intra_op_num_threads = threads
        wanted = [CPU] if providers is None else [one if isinstance(one, str) else one[0] for one in providers]
        there = self._runtime.get_available_providers()
        #: the CPU if no other is available, as ONNX Runtime does
        self.providers: Sequence[str] = [one for one in wanted if one in there] or [CPU]
        self._given = [CPU] if providers is None else providers

    def engine(self, model: Any) -> Engine:
        session = self._session(model)
        return lambda outputs, inputs, options: list(session.run(outputs, inputs, options))

    def types(self, model: Any, names: Iterable[str]) -> dict[str, Any]:
        asked = onnx.ModelProto()
        asked.CopyFrom(model)
        asked.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
        session = self._session(asked)
        return {one.name: type_of(one.type) for one in session.get_outputs()}

    def _session(self, model: Any) -> Any:
        return self._runtime.InferenceSession(model.SerializeToString(), self._options, providers=self._given)


#: An engine that can run any node.
Rest = Reference | Runtime


def type_of(text: str) -> Any:
    """Parse a type as ONNX Runtime writes it, such as "tensor(float)", into a TypeProto.

    Examples
    --------
    >>> type_of("seq(tensor(int64))").sequence_type.elem_type.tensor_type.elem_type
    7
    """
    match = re.fullmatch(r"(tensor|seq|optional)\((.*)\)", text)
    if match is None:
        raise ValueError(f"model: cannot pass a value of type {text} between two parts of the model")
    kind, inner = match.groups()
    if kind == "tensor":
        return onnx.helper.make_tensor_type_proto(onnx.TensorProto.DataType.Value(inner.upper()), None)
    make = {"seq": onnx.helper.make_sequence_type_proto, "optional": onnx.helper.make_optional_type_proto}
    return make[kind](type_of(inner))


def text_of(type_proto: Any, name: str) -> str:
    """The inverse of `type_of`; `name` is the value's, for the ValueError about an unknown element type."""
    kind = type_proto.WhichOneof("value")
    if kind == "tensor_type":
        number, known = type_proto.tensor_type.elem_type, onnx.TensorProto.DataType
        if number not in known.values():
            raise ValueError(f"model: {name!r}: expected an ONNX element type, got {number}")
        return f"tensor({known.Name(number).lower()})"
    if kind == "sequence_type":
        return f"seq({text_of(type_proto.sequence_type.elem_type, name)})"
    if kind == "optional_type":
        return f"optional({text_of(type_proto.optional_type.elem_type, name)})"
    return str(kind)
