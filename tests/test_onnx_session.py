"""`fastrnn.onnx.Session`: whole models, against ONNX Runtime or ONNX's reference evaluator running all of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import by_runtime
from support.problems import Arrays
from support.tolerance import assert_close, assert_same_bits

RESTS = ("onnxruntime", "reference")


@pytest.fixture(scope="module")
def onnx(oracle: Callable[[str], Any]) -> Any:
    oracle("onnxruntime")
    return oracle("onnx")


@pytest.fixture(scope="module")
def ours(onnx: Any) -> Any:
    import fastrnn.onnx

    return fastrnn.onnx


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def model(
    onnx: Any, nodes: list[Any], x: tuple[Any, ...], outputs: dict[str, int], constants: Arrays, **more: Any
) -> Any:
    """From "x" of this shape to outputs of these ranks; all float32."""
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


def stacked_grus(onnx: Any, directly: bool = True) -> Any:
    """Two bidirectional GRUs; weights as they are, or put together in the graph as PyTorch's exporter did."""
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


def agree(whole: Any, x: np.ndarray, session: Any) -> None:
    """With ONNX Runtime on the whole model."""
    import onnxruntime

    expected = by_runtime(onnxruntime, whole, {"x": x})
    got = dict(zip(session.output_names, session.run(None, {"x": x}), strict=True))
    assert_close(got, expected, 2e-6)


def sequences(*shape: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rest", RESTS)
def test_convolution_lstm_dense(rest: str, onnx: Any, ours: Any, tmp_path: Path) -> None:
    whole = convolution_lstm_dense(onnx)
    onnx.save(whole, tmp_path / "model.onnx")
    session = ours.Session(tmp_path / "model.onnx", rest=rest, threads=1)
    assert session.nodes == [ours.Placed("memory", "LSTM", "kernels", "")]
    assert (session.input_names, session.output_names) == (["x"], ["p", "h"])
    agree(whole, sequences(7, 3, 11), session)
    agree(whole, sequences(2, 3, 4), ours.Session(whole.SerializeToString(), rest=rest))


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("directly", [True, False])
def test_stacked_bidirectional_grus(directly: bool, rest: str, onnx: Any, ours: Any) -> None:
    whole = stacked_grus(onnx, directly)
    session = ours.Session(whole, rest=rest)
    assert [placed.where for placed in session.nodes] == ["kernels", "kernels"]
    agree(whole, sequences(9, 3, 4), session)


@pytest.mark.parametrize("directly", [True, False])
def test_weights_are_made_and_packed_once(
    directly: bool, onnx: Any, ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrnn import backends

    session = ours.Session(stacked_grus(onnx, directly), rest="reference")
    packed, backend = [], backends.current()
    pack = backend.pack
    monkeypatch.setattr(backend, "pack", lambda call, *rest: packed.append(call) or pack(call, *rest))
    for _ in range(3):
        session.run(["h1"], {"x": sequences(3, 2, 4)})
    assert len(packed) == 4  # two layers, two directions


def test_outputs_by_name(onnx: Any, ours: Any) -> None:
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
def test_names_that_are_not_there(outputs: Any, inputs: Any, message: str, onnx: Any, ours: Any) -> None:
    with pytest.raises(ValueError, match=message):
        ours.Session(stacked_grus(onnx), rest="reference").run(outputs, inputs)


def test_what_is_no_model(ours: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a path, bytes or an onnx\.ModelProto, got int"):
        ours.Session(3)
    with pytest.raises(ValueError, match="rest: expected one of onnxruntime, reference, got 'torch'"):
        ours.Session(b"", rest="torch")


def test_bytes_of_something_else(ours: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a model")
    with pytest.raises(ValueError, match="model: the byte string is not an ONNX model"):
        ours.Session(b"a model", rest="reference")
    with pytest.raises(ValueError, match=r"model: .*text is not an ONNX model"):
        ours.Session(tmp_path / "text", rest="reference")


def renamed(names: Any, i: int, name: str) -> None:
    names[i] = name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: renamed(g.node[3].input, 1, "w"),
            "LSTM node 'memory' reads 'w', which nothing before it provides",
        ),
        (
            lambda g: renamed(g.node[1].input, 0, "p"),
            "Relu node 'positive' reads 'p', which nothing before it provides",
        ),
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
def test_what_is_not_onnx(change: Any, message: str, onnx: Any, ours: Any) -> None:
    whole = convolution_lstm_dense(onnx)
    change(whole.graph)
    with pytest.raises(ValueError, match=message):
        ours.Session(whole, rest="reference")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: renamed(n.input, 2, ""), "node: expected inputs X, W, R and of B, "),
        (lambda n: n.input.extend(["", "", "", "", "x"]), "node: expected inputs X, W, R and of B, "),
        (lambda n: n.output.extend(["c", "d"]), r"node: expected at most 3 outputs, got \['', 'h', 'c', 'd'\]"),
        (lambda n: setattr(n.attribute.add(), "name", "layout"), "layout: expected INT, got UNDEFINED"),
        (lambda n: setattr(n.attribute.add(), "name", "strange"), "strange: LSTM has no such attribute"),
    ],
)
def test_nodes_that_are_not_onnx(change: Any, message: str, onnx: Any, ours: Any) -> None:
    node = convolution_lstm_dense(onnx).graph.node[3]
    change(node)
    with pytest.raises(ValueError, match=message):
        ours.runs_in_kernels(node)


def test_default_inputs(onnx: Any, ours: Any) -> None:
    """An initializer that is an input too can be given; it is not taken for a constant."""
    whole = convolution_lstm_dense(onnx)
    kind = onnx.TensorProto.FLOAT
    whole.graph.input.append(onnx.helper.make_tensor_value_info("R", kind, (1, 24, 6)))
    session, x = ours.Session(whole), sequences(2, 3, 4)
    agree(whole, x, session)
    R = np.zeros((1, 24, 6), np.float32)
    changed = convolution_lstm_dense(onnx)
    index = [tensor.name for tensor in changed.graph.initializer].index("R")
    changed.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(R, "R"))
    for got, expected in zip(
        session.run(None, {"x": x, "R": R}), ours.Session(changed).run(None, {"x": x}), strict=True
    ):
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
    agree(whole, sequences(2, 3, 4), session)


def conditional(onnx: Any) -> Any:
    """A GRU, then one of two branches: an RNN over what came before the If, or that itself."""
    helper, node, kind = onnx.helper, onnx.helper.make_node, onnx.TensorProto.FLOAT
    result = [helper.make_tensor_value_info("chosen", kind, [None] * 3)]
    then = helper.make_graph(
        [node("RNN", ["g", "W1", "R1"], ["", "chosen"], hidden_size=5, name="inner")], "then", [], result
    )
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
def test_nodes_inside_a_branch(rest: str, onnx: Any, ours: Any) -> None:
    """They run here; values from outside reach them."""
    whole = conditional(onnx)
    session = ours.Session(whole, rest=rest)
    assert session.nodes == [("outer", "GRU", "kernels", ""), ("inner", "RNN", "kernels", "")]
    x = sequences(6, 2, 4)
    sums = set()
    for signed in (x, -x):
        agree(whole, signed, session)
        sums.add(session.run(None, {"x": signed})[0].sum())
    assert len(sums) == 2


def test_names_inside_a_branch_that_are_made_outside(onnx: Any, ours: Any) -> None:
    model = convolution_lstm_dense(onnx)
    attribute = model.graph.node[1].attribute.add()
    attribute.name, attribute.type = "branch", onnx.AttributeProto.GRAPH
    attribute.g.CopyFrom(onnx.helper.make_graph(list(model.graph.node)[5:], "branch", [], list(model.graph.output)))
    with pytest.raises(ValueError, match=r"Relu node 'positive' reads '.*', which nothing before it provides"):
        ours.Session(model, rest="reference")


def test_nodes_inside_a_function(onnx: Any, ours: Any) -> None:
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
    agree(whole, sequences(6, 2, 4), session)


def test_a_node_that_is_refused(onnx: Any, ours: Any) -> None:
    """Of a later ONNX, say: the rest may know it."""
    whole = convolution_lstm_dense(onnx)
    node = next(node for node in whole.graph.node if node.op_type == "LSTM")
    node.attribute.append(onnx.helper.make_attribute("speed", 2))
    (placed,) = ours.Session(whole, rest="reference").nodes
    assert placed == ("memory", "LSTM", "reference", "speed: LSTM has no such attribute here (ONNX 7 and later)")


def test_what_is_no_run(onnx: Any, ours: Any) -> None:
    whole = convolution_lstm_dense(onnx)
    session = ours.Session(whole, rest="reference")
    for names in (True, 1, "y"):
        with pytest.raises(TypeError, match=r"^output_names: expected a list of names, or None, got "):
            session.run(names, {})
    for inputs in (None, [1], np.ones(3)):
        with pytest.raises(TypeError, match=r"^input_feed: expected a dict of arrays by name, got "):
            session.run(None, inputs)
    for rest in (None, 1, np.array(["reference"] * 2)):
        with pytest.raises(ValueError, match=r"^rest: expected one of onnxruntime, reference, got "):
            ours.Session(whole, rest=rest)
    for node in (None, "GRU", 1):
        with pytest.raises(TypeError, match=r"^node: expected an onnx\.NodeProto, got "):
            ours.runs_in_kernels(node)


def streamed(onnx: Any, op: str, layout: int, direction: str = "forward") -> Any:
    """x and the state in, Y and the state out, with constant weights: a model that is run step by step."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    G, states = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], ["h", "c"] if op == "LSTM" else ["h"]
    outputs = {"Y": 4} | {f"{s}_n": 3 for s in states}
    attributes = {"hidden_size": 5, "layout": layout, "direction": direction}
    node = helper.make_node(op, ["x", "W", "R", "B", "", *states], list(outputs), **attributes)
    constants = weights(W=(1, G * 5, 4), R=(1, G * 5, 5), B=(1, G * 10))
    whole = model(onnx, [node], (None, None, 4), outputs, constants)
    whole.graph.input.extend([helper.make_tensor_value_info(s, kind, (None, None, 5)) for s in states])
    return whole


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_one_step_at_a_time(op: str, layout: int, onnx: Any, ours: Any, native: str) -> None:
    """The bits of the whole sequence, for one batch after another; the states that are given stay as they are."""
    session = ours.Session(streamed(onnx, op, layout), rest="reference")
    names = session.input_names[1:]
    for B in (3, 1, 3):
        x = sequences(6, B, 4)
        state = {name: sequences(1, B, 5) for name in names}
        x, state = (x.swapaxes(0, 1), {n: s.swapaxes(0, 1) for n, s in state.items()}) if layout else (x, state)
        Y, *final = session.run(None, {"x": x} | state)
        steps = []
        for t in range(6):
            given = {name: s.copy() for name, s in state.items()}
            y, *after = session.run(None, {"x": x[:, t : t + 1] if layout else x[t : t + 1]} | given)
            assert_same_bits(given, {name: s.copy() for name, s in state.items()})
            state = dict(zip(names, after, strict=True))
            steps.append(y)
        got = {"Y": np.concatenate(steps, axis=layout)} | state
        assert_same_bits(got, {"Y": np.ascontiguousarray(Y)} | dict(zip(names, final, strict=True)))


def test_one_step_of_a_reverse_node(onnx: Any, ours: Any) -> None:
    """It is a step like another; without states, it starts from zeros."""
    whole = streamed(onnx, "LSTM", 0, "reverse")
    del whole.graph.input[1:], whole.graph.node[0].input[5:]
    session, x = ours.Session(whole), sequences(1, 2, 4)
    agree(whole, x, session)
    first, again = ({str(i): a for i, a in enumerate(session.run(None, {"x": x}))} for _ in range(2))
    assert_same_bits(again, first)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("T", [1, 6])
def test_a_node_is_described_once(T: int, layout: int, onnx: Any, native: str) -> None:
    """From the third run on inputs of one shape on: the same bits, with states and without."""
    from fastrnn.frameworks import WEIGHTS
    from fastrnn.onnx.node import Recurrent, Weights

    whole = streamed(onnx, "LSTM", layout)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    node = Recurrent(whole.graph.node[0])
    given = [constants.get(node.inputs.get(name)) for name in WEIGHTS]
    x, h, c = sequences(T, 3, 4), sequences(1, 3, 5), sequences(1, 3, 5)
    x, h, c = (a.swapaxes(0, 1) if layout else a for a in (x, h, c))
    for states in ((h, c), (None, None), (h, None)):
        weights = Weights(node, *given, keep=True)
        first, *later = [node.run(x, None, *states, weights=weights, threads=1) for _ in range(3)]
        assert weights.again is not None
        assert weights.again.prepared((x.shape, 1)) is not None
        for results in later:
            assert [a.shape for a in results] == [a.shape for a in first]
            assert all(a.tobytes() == b.tobytes() for a, b in zip(results, first, strict=True))


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_one_step_that_some_sequences_do_not_have(op: str, onnx: Any, ours: Any) -> None:
    """As of two steps, of which nobody has the second."""
    whole = streamed(onnx, op, 0)
    whole.graph.input.append(onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT32, (None,)))
    whole.graph.node[0].input[4] = "n"
    session = ours.Session(whole, rest="reference")
    state = {name: sequences(1, 3, 5) for name in session.input_names[1:] if name != "n"}
    x, n = sequences(2, 3, 4), np.array([1, 0, 1], np.int32)
    two, one = (session.run(None, {"x": x[:T], "n": n} | state) for T in (2, 1))
    assert_same_bits({str(i): a for i, a in enumerate(one)}, {str(i): a for i, a in enumerate([two[0][:1], *two[1:]])})


def test_steps_in_several_threads(onnx: Any, ours: Any) -> None:
    session = ours.Session(streamed(onnx, "GRU", 0), rest="reference", threads=1)
    x, h = sequences(4, 2, 4), sequences(1, 2, 5)

    def stepped(_: int) -> Arrays:
        state = h
        for t in range(len(x)):
            _, state = session.run(None, {"x": x[t : t + 1], "h": state})
        return {"h": state}

    expected = stepped(0)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(stepped, range(400)):
            assert_same_bits(got, expected)


def test_constants_do_not_travel(onnx: Any, ours: Any) -> None:
    """A constant that is made before a recurrent node and read after it is part of what reads it."""
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
    agree(whole, sequences(6, 2, 4), session)
