"""`fastrnn.onnx.Session`: whole models, compared with ONNX Runtime or ONNX's reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.onnx_models import agree, convolution_lstm_dense, model, packed_calls, sequences, weights

RESTS = ("onnxruntime", "reference")


pytestmark = pytest.mark.usefixtures("runtime")


def stacked_grus(onnx: Any, directly: bool = True) -> Any:
    """Return two bidirectional GRUs; weights are constants, or computed in the graph as by PyTorch's exporter."""
    node = onnx.helper.make_node
    nodes, constants = [], {"joined": np.array([0, 0, -1])}
    for layer, (I, x) in enumerate(((4, "x"), (10, "y0"))):
        W, R, B = f"W{layer}", f"R{layer}", f"B{layer}"
        constants |= weights(layer, **{W: (2, 15, I), R: (2, 15, 5), B: (2, 30)})
        if not directly:
            constants |= {f"{W}_{d}": constants[W][d] for d in (0, 1)}
            del constants[W]
            nodes += [node("Unsqueeze", [f"{W}_{d}", "zero"], [f"{W}_{d}_wide"]) for d in (0, 1)]
            nodes += [node("Concat", [f"{W}_0_wide", f"{W}_1_wide"], [W], axis=0)]
        settings = {"direction": "bidirectional", "hidden_size": 5, "linear_before_reset": 1}
        nodes.append(node("GRU", [x, W, R, B], [f"raw{layer}", f"h{layer}"], **settings))
        nodes.append(node("Transpose", [f"raw{layer}"], [f"turned{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(node("Reshape", [f"turned{layer}", "joined"], [f"y{layer}"]))
    constants |= {} if directly else {"zero": np.array([0])}
    return model(onnx, nodes, ("T", "B", 4), {"y1": 3, "h0": 3, "h1": 3}, constants)


@pytest.mark.parametrize("rest", RESTS)
def test_nodes_around_a_recurrent_one_run_in_the_rest(rest: str, onnx: Any, ours: Any, tmp_path: Path) -> None:
    whole = convolution_lstm_dense(onnx)
    onnx.save(whole, tmp_path / "model.onnx")
    session = ours.Session(tmp_path / "model.onnx", rest=rest, threads=1)
    assert session.nodes == [ours.Placed("memory", "LSTM", "kernels", "")]
    assert (session.input_names, session.output_names) == (["x"], ["p", "h"])
    agree(session, whole, {"x": sequences(7, 3, 11)})
    agree(ours.Session(whole.SerializeToString(), rest=rest), whole, {"x": sequences(2, 3, 4)})


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("directly", [True, False])
def test_stacked_grus_run_in_kernels(directly: bool, rest: str, onnx: Any, ours: Any) -> None:
    whole = stacked_grus(onnx, directly)
    session = ours.Session(whole, rest=rest)
    assert [placed.where for placed in session.nodes] == ["kernels", "kernels"]
    agree(session, whole, {"x": sequences(9, 3, 4)})


@pytest.mark.parametrize("directly", [True, False])
def test_weights_are_packed_once(directly: bool, onnx: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ours.Session(stacked_grus(onnx, directly), rest="reference")
    packed = packed_calls(monkeypatch)
    for _ in range(3):
        session.run(["h1"], {"x": sequences(3, 2, 4)})
    assert len(packed) == 4  # two layers, two directions


def test_a_run_returns_the_requested_outputs(onnx: Any, ours: Any) -> None:
    session = ours.Session(stacked_grus(onnx))
    x = sequences(3, 2, 4)
    y, h0, h1 = session.run(None, {"x": x})
    for got, expected in zip(session.run(["h1", "y1"], {"x": x}), (h1, y), strict=True):
        assert np.array_equal(got, expected)
    assert h0.shape == (2, 2, 5)


@pytest.mark.parametrize(
    ("outputs", "inputs", "message"),
    [
        (["y0"], {"x": 1}, r"output_names: expected some of \['y1', 'h0', 'h1'\], got 'y0'"),
        (None, {}, "input_feed: expected x, missing 'x'"),
        (None, {"x": 1, "z": 2}, "input_feed: expected x, got 'z'"),
        (None, {"x": 1, "W0": 2}, "input_feed: expected x, got 'W0'"),
    ],
)
def test_unknown_names_raise_an_error(outputs: Any, inputs: Any, message: str, onnx: Any, ours: Any) -> None:
    with pytest.raises(ValueError, match=message):
        ours.Session(stacked_grus(onnx), rest="reference").run(outputs, inputs)


def test_an_initializer_that_is_an_input(onnx: Any, ours: Any) -> None:
    """Its value may be given in a run, so it is not treated as a constant."""
    whole = convolution_lstm_dense(onnx)
    kind = onnx.TensorProto.FLOAT
    whole.graph.input.append(onnx.helper.make_tensor_value_info("R", kind, (1, 24, 6)))
    session, x = ours.Session(whole), sequences(2, 3, 4)
    agree(session, whole, {"x": x})
    R = np.zeros((1, 24, 6), np.float32)
    changed = convolution_lstm_dense(onnx)
    index = [tensor.name for tensor in changed.graph.initializer].index("R")
    changed.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(R, "R"))
    found = session.run(None, {"x": x, "R": R}), ours.Session(changed).run(None, {"x": x})
    for got, expected in zip(*found, strict=True):
        assert np.array_equal(got, expected)


def test_before_ir_4_every_constant_is_an_input(onnx: Any, ours: Any) -> None:
    whole = convolution_lstm_dense(onnx)
    for tensor in whole.graph.initializer:
        kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        whole.graph.input.append(kind)
    whole.ir_version = 3
    session = ours.Session(whole)
    assert session.input_names == ["x"]
    with pytest.raises(ValueError, match="input_feed: expected x, got 'R'"):
        session.run(None, {"x": sequences(2, 3, 4), "R": sequences(1, 24, 6)})
    agree(session, whole, {"x": sequences(2, 3, 4)})


def conditional(onnx: Any) -> Any:
    """Return a GRU followed by one of two branches: an RNN over the value before the If, or that value."""
    helper, node, kind = onnx.helper, onnx.helper.make_node, onnx.TensorProto.FLOAT
    result = [helper.make_tensor_value_info("chosen", kind, [None] * 3)]
    inner = node("RNN", ["g", "W1", "R1"], ["", "chosen"], hidden_size=5, name="inner")
    then = helper.make_graph([inner], "then", [], result)
    other = [helper.make_tensor_value_info("kept", kind, [None] * 3)]
    otherwise = helper.make_graph([node("Identity", ["h"], ["kept"])], "otherwise", [], other)
    nodes = [
        node("GRU", ["x", "W", "R"], ["raw", "h"], hidden_size=5, clip=0.4, name="outer"),
        node("Squeeze", ["raw", "axis"], ["g"]),
        node("ReduceSum", ["h"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node("If", ["positive"], ["z"], then_branch=then, else_branch=otherwise, name="which"),
    ]
    constants = weights(W=(1, 15, 4), R=(1, 15, 5), W1=(1, 5, 5), R1=(1, 5, 5))
    constants |= {"axis": np.array([1]), "zero": np.float32(0)}
    return model(onnx, nodes, ("T", "B", 4), {"z": 3}, constants)


@pytest.mark.parametrize("rest", RESTS)
def test_nodes_inside_a_branch_run_in_kernels(rest: str, onnx: Any, ours: Any) -> None:
    """They read values from outside."""
    whole = conditional(onnx)
    session = ours.Session(whole, rest=rest)
    assert session.nodes == [("outer", "GRU", "kernels", ""), ("inner", "RNN", "kernels", "")]
    x = sequences(6, 2, 4)
    sums = set()
    for signed in (x, -x):
        agree(session, whole, {"x": signed})
        sums.add(session.run(None, {"x": signed})[0].sum())
    assert len(sums) == 2


def test_nodes_inside_a_function_run_in_the_rest(onnx: Any, ours: Any) -> None:
    helper, node = onnx.helper, onnx.helper.make_node
    inner = node("RNN", ["a", "V", "S"], ["", "b"], hidden_size=5, name="inner")
    function = helper.make_function("own", "Memory", ["a", "V", "S"], ["b"], [inner], [helper.make_opsetid("", 14)])
    nodes = [
        node("GRU", ["x", "W", "R"], ["raw"], hidden_size=5, linear_before_reset=1),
        node("Squeeze", ["raw", "axis"], ["g"]),
        node("Memory", ["g", "W1", "R1"], ["z"], domain="own"),
    ]
    constants = weights(W=(1, 15, 4), R=(1, 15, 5), W1=(1, 5, 5), R1=(1, 5, 5)) | {"axis": np.array([1])}
    whole = model(onnx, nodes, ("T", "B", 4), {"z": 3}, constants, functions=[function])
    session = ours.Session(whole)
    assert session.nodes == [("raw", "GRU", "kernels", ""), ("inner", "RNN", "onnxruntime", "inside function Memory")]
    agree(session, whole, {"x": sequences(6, 2, 4)})


def test_a_newer_node_runs_in_the_rest(onnx: Any, ours: Any) -> None:
    """The engine of the rest may support a newer ONNX."""
    whole = convolution_lstm_dense(onnx)
    node = next(node for node in whole.graph.node if node.op_type == "LSTM")
    node.attribute.append(onnx.helper.make_attribute("speed", 2))
    (placed,) = ours.Session(whole, rest="reference").nodes
    assert placed == ("memory", "LSTM", "reference", "speed: LSTM has no such attribute here (ONNX 7 and later)")


def test_constants_are_part_of_their_reader(onnx: Any, ours: Any) -> None:
    """Also a constant that is defined before a recurrent node and read after it."""
    node = onnx.helper.make_node
    nodes = [
        node("Constant", [], ["five"], value=onnx.numpy_helper.from_array(np.float32(5))),
        node("Constant", [], ["axis"], value=onnx.numpy_helper.from_array(np.array([1]))),
        node("Neg", ["x"], ["negative"]),
        node("GRU", ["negative", "W", "R"], ["raw"], hidden_size=5),
        node("Squeeze", ["raw", "axis"], ["y"]),
        node("Mul", ["y", "five"], ["z"]),
    ]
    whole = model(onnx, nodes, ("T", "B", 4), {"z": 3}, weights(W=(1, 15, 4), R=(1, 15, 5)))
    session = ours.Session(whole)
    assert [step.outputs for step in session._steps if hasattr(step, "outputs")] == [["negative"], ["z"]]
    agree(session, whole, {"x": sequences(6, 2, 4)})
