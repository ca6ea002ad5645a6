"""ONNX Runtime and OpenVINO, on one ONNX model, a node for each layer. Inference only."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, ClassVar

import numpy as np

from fastrnn.cells import Array
from fastrnn.convert.onnx import node_weights

from .peer import ALL, FAMILIES, NONE, Peer, Work
from .problem import Problem


def initializers(problem: Problem, layer: int) -> dict[str, Array]:
    """One layer's weights in ONNX's order, with its axis of directions before them, under its names and the layer's."""
    D = problem.sizes.directions
    named = node_weights(problem.weights[layer * D : (layer + 1) * D], FAMILIES[problem.cell][0])
    return {f"{name}{layer}": array for name, array in named.items()}


def nodes(problem: Problem, helper: Any) -> list[Any]:
    """Each layer's node, from X or what lies below, and what makes (T, B, D*H) of its (T, D, B, H)."""
    family, options = FAMILIES[problem.cell]
    attributes: dict[str, Any] = {"hidden_size": problem.sizes.H}
    if "reset_after" in options:
        attributes["linear_before_reset"] = int(options["reset_after"])
    if problem.sizes.directions == 2:
        attributes["direction"] = "bidirectional"
    made, x = [], "X"
    for layer in range(problem.sizes.layers):
        # A node's inputs go by position: an absent one in the middle has an empty name.
        names = [x, f"W{layer}", f"R{layer}", f"B{layer}", "sequence_lens" if problem.lengths is not None else ""]
        names += ["", "", f"P{layer}"] if "p" in problem.weights[0] else []
        made.append(helper.make_node(family.upper(), names, [f"by_direction{layer}"], **attributes))
        made.append(helper.make_node("Transpose", [f"by_direction{layer}"], [f"by_row{layer}"], perm=(0, 2, 1, 3)))
        x = "Y" if layer == problem.sizes.layers - 1 else f"y{layer}"
        made.append(helper.make_node("Reshape", [f"by_row{layer}", "joined"], [x]))
    return made


def model(problem: Problem) -> bytes:
    """A model from X (T, B, I), and where there are any `sequence_lens` (B,), to Y (T, B, D*H)."""
    onnx: Any = importlib.import_module("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    weights = {"joined": np.array([0, 0, -1])}
    for layer in range(problem.sizes.layers):
        weights |= initializers(problem, layer)
    inputs = [helper.make_tensor_value_info("X", kinds.FLOAT, problem.x.shape)]
    if problem.lengths is not None:
        inputs.append(helper.make_tensor_value_info("sequence_lens", kinds.INT32, problem.lengths.shape))
    graph = helper.make_graph(
        nodes(problem, helper),
        problem.cell,
        inputs,
        [helper.make_tensor_value_info("Y", kinds.FLOAT, problem.dy.shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 14)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


class OnnxPeer(Peer):
    """What runs the model; `package` alone is not enough to be `installed`."""

    @classmethod
    def installed(cls) -> bool:
        return super().installed() and importlib.util.find_spec("onnx") is not None

    @staticmethod
    def inputs(problem: Problem) -> dict[str, Array]:
        lengths = {} if problem.lengths is None else {"sequence_lens": problem.lengths.astype(np.int32)}
        return {"X": problem.x} | lengths


class ONNXRuntime(OnnxPeer):
    """ONNX Runtime's CPU provider; weights are packed when the session is made."""

    title, package = "ONNX Runtime", "onnxruntime"
    cells: ClassVar = {"forward": ALL, "training": NONE}

    def prepare(self, problem: Problem, training: bool) -> Work:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = runtime.InferenceSession(model(problem), options, providers=["CPUExecutionProvider"])
        inputs = self.inputs(problem)
        return Work(lambda: session.run(None, inputs)[0], lambda y: {"y": y})


class OpenVINO(OnnxPeer):
    """OpenVINO's CPU plug-in for latency, in float32 (its own choice may be bfloat16)."""

    title, package = "OpenVINO", "openvino"
    cells: ClassVar = {"forward": ALL - {"lstm_peephole"}, "training": NONE}  # it reads the peepholes and ignores them

    def prepare(self, problem: Problem, training: bool) -> Work:
        core = importlib.import_module("openvino").Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(core.read_model(model(problem)), "CPU", settings).create_infer_request()
        for name, array in self.inputs(problem).items():
            request.get_tensor(name).data[...] = array

        def call() -> Array:
            request.infer()
            return np.asarray(request.get_output_tensor().data)

        return Work(call, lambda y: {"y": y.copy()})
