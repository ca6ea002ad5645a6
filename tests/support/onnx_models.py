"""Small ONNX models, and comparison of a session with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastrnn import backends
from support.conversions import by_runtime
from support.problems import Arrays
from support.tolerance import FLOAT32, assert_close

H, I = 5, 4

#: shapes of the weights of `written`
SHAPES = {"W": (1, 4 * H, I), "R": (1, 4 * H, H), "V": (1, 3 * H, H), "S": (1, 3 * H, H), "K": (I, I)}


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> Arrays:
    """Random constants of these shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def model(
    onnx: Any, nodes: list[Any], x: tuple[Any, ...], outputs: dict[str, int], constants: Arrays, **more: Any
) -> Any:
    """Return a model from "x" of this shape to outputs of these ranks; all float32."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, rank in outputs.items()],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    opset = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8, **more)


def convolution_lstm_dense(onnx: Any) -> Any:
    """x (B, 3, T) -> Conv -> Relu -> (T, B, 8) -> LSTM -> last state -> Gemm -> Softmax."""
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "kernel", "shift"], ["convolved"], pads=[1, 1]),
        node("Relu", ["convolved"], ["positive"]),
        node("Transpose", ["positive"], ["sequence"], perm=[2, 0, 1]),
        node("LSTM", ["sequence", "W", "R", "B"], ["", "h"], hidden_size=6, name="memory"),
        node("Squeeze", ["h", "first"], ["last"]),
        node("Gemm", ["last", "D", "d"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["p"]),
    ]
    constants = weights(kernel=(8, 3, 3), shift=(8,), W=(1, 24, 8), R=(1, 24, 6), B=(1, 48), D=(5, 6), d=(5,))
    return model(onnx, nodes, ("N", 3, "T"), {"p": 2, "h": 3}, constants | {"first": np.array([0])})


def by_name(session: Any, inputs: Arrays) -> Arrays:
    names = [one.name for one in session.get_outputs()]
    return {name: np.asarray(a) for name, a in zip(names, session.run(None, inputs), strict=True)}


def agree(session: Any, model: Any, inputs: Arrays) -> Arrays:
    """Check that a session gives ONNX Runtime's results for the whole model."""
    import onnxruntime

    got, expected = by_name(session, inputs), by_runtime(onnxruntime, model, inputs)
    assert {name: a.shape for name, a in got.items()} == {name: a.shape for name, a in expected.items()}
    assert_close(got, expected, FLOAT32)
    return got


def packed_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which every call is added whose weights are packed from now on."""
    packed: list[Any] = []
    backend = backends.current()
    pack = backend.pack
    monkeypatch.setattr(backend, "pack", lambda call, *rest: packed.append(call) or pack(call, *rest))
    return packed


def sequences(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([50, seed]).standard_normal(shape).astype(np.float32)


def written(onnx: Any, inputs: str, outputs: str, body: str, **more: np.ndarray) -> Any:
    """Return a model from ONNX's text format, with some of the weights in SHAPES and these constants."""
    rng = np.random.default_rng(3)
    header = '<ir_version: 8, opset_import: ["" : 14, "com.microsoft" : 1], producer_name: "tests", model_version: 3>'
    model = onnx.parser.parse_model(f"{header} whole ({inputs}) => ({outputs}) {{ {body} }}")
    constants = {name: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in SHAPES.items()} | more
    read = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    made = [onnx.numpy_helper.from_array(a, name) for name, a in constants.items() if name in read]
    model.graph.initializer.extend(made)
    return model


def one_node(onnx: Any, kind: str = "LSTM", inputs: dict[str, Any] | None = None, **attributes: Any) -> Any:
    """Return a model of one node, float32, I = 3 and H = 2, whose inputs are constants if given as arrays."""
    rng = np.random.default_rng(0)
    D, G = 1 + (attributes.get("direction") == "bidirectional"), {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    arrays: dict[str, Any] = {
        "W": rng.standard_normal((D, G * 2, 3), np.float32),
        "R": rng.standard_normal((D, G * 2, 2), np.float32),
        "B": rng.standard_normal((D, G * 4), np.float32),
    } | (inputs or {})
    order = ("W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    helper, kinds = onnx.helper, onnx.TensorProto
    names = ["X", *[name if arrays.get(name) is not None else "" for name in order]]
    node = helper.make_node(kind, names, ["Y", "Y_h"], name="the_node", **{"hidden_size": 2} | attributes)
    free = [helper.make_tensor_value_info(n, kinds.FLOAT, None) for n, a in arrays.items() if isinstance(a, str)]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", kinds.FLOAT, ["T", "B", 3]), *free],
        [helper.make_tensor_value_info(name, kinds.FLOAT, None) for name in ("Y", "Y_h")],
        [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items() if isinstance(a, np.ndarray)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
