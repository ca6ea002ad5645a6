"""Errors of `fastrnn.onnx.Session`: invalid model arguments, invalid ONNX models, and wrong inputs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.onnx_models import convolution_lstm_dense

pytestmark = pytest.mark.usefixtures("runtime")


def test_a_model_is_a_path_bytes_or_a_modelproto(ours: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a path, bytes or an onnx\.ModelProto, got int"):
        ours.Session(3)
    with pytest.raises(ValueError, match="rest: expected one of onnxruntime, reference, got 'torch'"):
        ours.Session(b"", rest="torch")


def test_bytes_of_something_else_are_refused(ours: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a model")
    with pytest.raises(ValueError, match="model: the byte string is not an ONNX model"):
        ours.Session(b"a model", rest="reference")
    with pytest.raises(ValueError, match=r"model: .*text is not an ONNX model"):
        ours.Session(tmp_path / "text", rest="reference")
    (tmp_path / "empty").touch()
    for nothing, name in ((b"", "the byte string"), (tmp_path / "empty", ".*empty")):
        with pytest.raises(ValueError, match=rf"model: {name} is not an ONNX model \(it has no graph\)"):
            ours.Session(nothing, rest="reference")


def rename(names: Any, i: int, name: str) -> None:
    names[i] = name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: rename(g.node[3].input, 1, "w"), "LSTM node 'memory' reads 'w', which nothing before it provides"),
        (lambda g: rename(g.node[1].input, 0, "p"), "Relu node 'positive' reads 'p', which nothing before it provides"),
        (lambda g: setattr(g.output[0], "name", "q"), "model: no node computes its output 'q'"),
        (lambda g: setattr(g.output[0], "name", ""), "model: no node computes its output ''"),
        (lambda g: g.input.append(g.input[0]), "model: expected inputs with unique names, got several named 'x'"),
        (
            lambda g: setattr(g.input.add(name="z").type.tensor_type, "elem_type", 99),
            "model: 'z': expected an ONNX element type, got 99",
        ),
        (lambda g: setattr(g.initializer[2], "raw_data", b"123"), "constant 'W': "),
        (lambda g: setattr(g.initializer[2], "data_type", 99), "constant 'W': 99"),
        (lambda g: setattr(g.node[0], "domain", "strange"), "model: onnx.shape_inference rejects it: "),
        (lambda g: setattr(g.node[0], "domain", "own"), "model: onnx.reference rejects it: .*Conv"),
    ],
)
def test_models_that_are_not_onnx_are_refused(change: Any, message: str, onnx: Any, ours: Any) -> None:
    whole = convolution_lstm_dense(onnx)
    change(whole.graph)
    with pytest.raises(ValueError, match=message):
        ours.Session(whole, rest="reference")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: rename(n.input, 2, ""), "node: expected inputs X, W, R and of B, "),
        (lambda n: n.input.extend(["", "", "", "", "x"]), "node: expected inputs X, W, R and of B, "),
        (lambda n: n.output.extend(["c", "d"]), r"node: expected at most 3 outputs, got \['', 'h', 'c', 'd'\]"),
        (lambda n: setattr(n.attribute.add(), "name", "layout"), "layout: expected INT, got UNDEFINED"),
        (lambda n: setattr(n.attribute.add(), "name", "strange"), "strange: LSTM has no such attribute"),
    ],
)
def test_nodes_that_are_not_onnx_are_refused(change: Any, message: str, onnx: Any, ours: Any) -> None:
    node = convolution_lstm_dense(onnx).graph.node[3]
    change(node)
    with pytest.raises(ValueError, match=message):
        ours.runs_in_kernels(node)


def test_a_branch_cannot_read_a_later_name(onnx: Any, ours: Any) -> None:
    model = convolution_lstm_dense(onnx)
    attribute = model.graph.node[1].attribute.add()
    attribute.name, attribute.type = "branch", onnx.AttributeProto.GRAPH
    attribute.g.CopyFrom(onnx.helper.make_graph(list(model.graph.node)[5:], "branch", [], list(model.graph.output)))
    with pytest.raises(ValueError, match=r"Relu node 'positive' reads '.*', which nothing before it provides"):
        ours.Session(model, rest="reference")


def test_wrong_arguments_of_a_run_are_refused(onnx: Any, ours: Any) -> None:
    whole = convolution_lstm_dense(onnx)
    session = ours.Session(whole, rest="reference")
    for names in (True, 1, "y"):
        with pytest.raises(TypeError, match=r"^output_names: expected a list of names, or None, got "):
            session.run(names, {})
    for inputs in (None, [1], np.ones(3)):
        with pytest.raises(TypeError, match=r"^input_feed: expected a dict of arrays by name, got "):
            session.run(None, inputs)
    name, shape = session.get_inputs()[0].name, [n if isinstance(n, int) else 1 for n in session.get_inputs()[0].shape]
    message = rf"^input_feed: {name}: expected dtype float32, as the model says, got float64"
    with pytest.raises(TypeError, match=message):
        session.run(None, {name: np.ones(shape)})
    for rest in (None, 1, np.array(["reference"] * 2)):
        with pytest.raises(ValueError, match=r"^rest: expected one of onnxruntime, reference, got "):
            ours.Session(whole, rest=rest)
    for node in (None, "GRU", 1):
        with pytest.raises(TypeError, match=r"^node: expected an onnx\.NodeProto, got "):
            ours.runs_in_kernels(node)
