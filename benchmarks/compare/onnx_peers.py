"""ONNX Runtime and OpenVINO, on one ONNX model, a node for each layer. Inference only."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np

import fastrnn
from fastrnn.types import Array

from .cells import Cell
from .peer import Peer, Work
from .problem import Problem, layers


def model(problem: Problem) -> bytes:
    """Export the layer, with inputs of fixed shapes and y as the only output."""
    made = fastrnn.to_onnx(layers(problem), lengths=problem.lengths is not None)
    del made.graph.output[1:]
    for value, array in zip(made.graph.input, inputs(problem).values(), strict=True):
        for dimension, size in zip(value.type.tensor_type.shape.dim, array.shape, strict=True):
            dimension.dim_value = size
    return bytes(made.SerializeToString())


def inputs(problem: Problem) -> dict[str, Array]:
    lengths = {} if problem.lengths is None else {"sequence_lens": problem.lengths.astype(np.int32)}
    return {"x": problem.x} | lengths


class OnnxPeer(Peer):
    """A runtime; being importable as `package` is not enough to be `installed`."""

    @classmethod
    def installed(cls) -> bool:
        return super().installed() and importlib.util.find_spec("onnx") is not None

    @classmethod
    def offers(cls, cell: Cell, training: bool, lengths: bool) -> bool:
        return cell.own is None and not training


class ONNXRuntime(OnnxPeer):
    """ONNX Runtime's CPU provider; a session packs the weights when it is created."""

    title, package = "ONNX Runtime", "onnxruntime"

    def prepare(self, problem: Problem, training: bool) -> Work:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = runtime.InferenceSession(model(problem), options, providers=["CPUExecutionProvider"])
        given = inputs(problem)
        return Work(lambda: session.run(None, given)[0], lambda y: {"y": y})


class OpenVINO(OnnxPeer):
    """OpenVINO's CPU plug-in, optimized for latency, in float32 (its default may be bfloat16)."""

    title, package = "OpenVINO", "openvino"

    @classmethod
    def offers(cls, cell: Cell, training: bool, lengths: bool) -> bool:
        # it reads peepholes and ignores them, and lacks the activation "Affine"
        known = not cell.parameters and cell.name != "rnn_identity"
        return super().offers(cell, training, lengths) and known

    def prepare(self, problem: Problem, training: bool) -> Work:
        core = importlib.import_module("openvino").Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(core.read_model(model(problem)), "CPU", settings).create_infer_request()
        for name, array in inputs(problem).items():
            request.get_tensor(name).data[...] = array

        def call() -> Array:
            request.infer()
            return np.asarray(request.get_output_tensor().data)

        return Work(call, lambda y: {"y": y.copy()})
