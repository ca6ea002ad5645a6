"""ONNX Runtime and OpenVINO, on one ONNX model of one node. Inference only."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, ClassVar

import numpy as np

from fastrnn.bench.peer import ALL, FAMILIES, NONE, Peer, Work
from fastrnn.bench.problem import Problem
from fastrnn.cells import Array

#: Which of our gates (r z n; i f g o) and peepholes (i f o) ONNX has first, second, ... (z r h; i o f c; i o f).
GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
PEEPHOLES = (0, 2, 1)


def reordered(array: Array, order: tuple[int, ...]) -> Array:
    """With its gates, stacked along the first axis, in another order, and ONNX's axis of directions before them."""
    return np.concatenate([np.split(array, len(order))[k] for k in order])[None]


def initializers(problem: Problem) -> dict[str, Array]:
    """The weights under ONNX's names and in its order."""
    order = GATES[FAMILIES[problem.cell][0]]
    weights = {
        "W": reordered(problem.W, order),
        "R": reordered(problem.U, order),
        "B": np.hstack([reordered(bias, order) for bias in (problem.b, problem.b_rec)]),
    }
    return weights if problem.p is None else weights | {"P": reordered(problem.p, PEEPHOLES)}


def model(problem: Problem) -> bytes:
    """A model from X (T, B, I), and where there are any `sequence_lens` (B,), to Y (T, 1, B, H)."""
    onnx: Any = importlib.import_module("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    family, options = FAMILIES[problem.cell]
    attributes: dict[str, Any] = {"hidden_size": problem.U.shape[1]}
    if "reset_after" in options:
        attributes["linear_before_reset"] = int(options["reset_after"])
    weights = initializers(problem)
    inputs = [helper.make_tensor_value_info("X", kinds.FLOAT, problem.x.shape)]
    if problem.lengths is not None:
        inputs.append(helper.make_tensor_value_info("sequence_lens", kinds.INT32, problem.lengths.shape))
    # A node's inputs go by position: an absent one in the middle has an empty name.
    names = ["X", "W", "R", "B", "sequence_lens" if problem.lengths is not None else "", "", "", "P"]
    names = names if problem.p is not None else names[:5]
    T, B, H = problem.dy.shape
    graph = helper.make_graph(
        [helper.make_node(family.upper(), names, ["Y"], **attributes)],
        problem.cell,
        inputs,
        [helper.make_tensor_value_info("Y", kinds.FLOAT, (T, 1, B, H))],
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
        return Work(lambda: session.run(None, inputs)[0], lambda y: {"y": y[:, 0]})


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

        return Work(call, lambda y: {"y": y[:, 0].copy()})
