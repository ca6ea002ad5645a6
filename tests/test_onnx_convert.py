"""Weights from and to ONNX: its checker and its runtime, or in float64 its reference evaluator, on what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, by_runtime, drawn, given, settings, written
from support.stacks import named, states
from support.tolerance import assert_close, assert_same_bits

import fastrnn


@pytest.fixture(scope="module")
def runtime(oracle: Callable[[str], Any]) -> Any:
    return oracle("onnxruntime")


def computed(runtime: Any, model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {"y_forward": "y0", "y_backward": "y1"}
    return {renamed.get(name, name): a for name, a in by_runtime(runtime, model, inputs).items()}


def weights(onnx: Any, model: Any) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("given_states", [False, True])
@pytest.mark.parametrize("seed", MANY)
def test_there_and_back(seed: int, given_states: bool, onnx: Any, runtime: Any, tmp_path: Path) -> None:
    layer = drawn(seed, dtype=np.float32)
    options = {"lengths": given_states, "state": given_states}
    model = fastrnn.to_onnx(layer, **options)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    back = fastrnn.from_onnx(tmp_path / "model.onnx")
    two_biases = {"bias": True if layer.bias == "input" else layer.bias}
    assert settings(back) == settings(layer) | two_biases
    own, second = layer.parameters(), {n for n in back.parameters() if n.startswith("bias_hh")}
    assert_same_bits({name: a for name, a in back.parameters().items() if name in own}, own)
    assert layer.bias is True or not any(back.parameters()[name].any() for name in second)
    assert fastrnn.to_onnx(back, **options).SerializeToString() == model.SerializeToString()

    x, inputs = given(layer, seed), {}
    state, lengths = None, None
    if given_states:
        D = 1 + layer.bidirectional
        start = states(layer.stack.cell.name, layer.num_layers * D, 3, layer.hidden_size)
        inputs = dict(zip(("h0", "c0"), start, strict=False)) | {"sequence_lens": np.array([6, 1, 4], np.int32)}
        state, lengths = start if len(start) == 2 else start[0], [6, 1, 4]
    assert_close(named(*back(x, state, lengths)), computed(runtime, model, {"x": x} | inputs), 2e-6)


def test_an_update_gate_that_writes(onnx: Any, runtime: Any) -> None:
    gru, x, y = written()
    model = fastrnn.to_onnx(gru)
    assert_close({"y": computed(runtime, model, {"x": x})["y"]}, {"y": y}, 2e-6)
    own = gru.parameters()
    assert_same_bits({name: fastrnn.from_onnx(model).parameters()[name] for name in own}, own)


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh"])
def test_float64(cell: str, oracle: Callable[[str], Any], onnx: Any) -> None:
    layer = drawn(3, (cell,), dtype=np.float64, num_layers=1, bidirectional=False)
    model = fastrnn.to_onnx(layer)
    onnx.checker.check_model(model, full_check=True)
    x = given(layer)
    names = [one.name for one in model.graph.output]
    found = dict(zip(names, oracle("onnx.reference").ReferenceEvaluator(model).run(None, {"x": x}), strict=True))
    assert_close(named(*layer(x)), found)
    assert_same_bits(fastrnn.from_onnx(model).parameters(), fastrnn.from_onnx(fastrnn.to_onnx(layer)).parameters())


def one_node(onnx: Any, kind: str = "LSTM", inputs: dict[str, Any] | None = None, **attributes: Any) -> Any:
    """A model of one node, float32, I = 3 and H = 2, whose inputs are constants where they are arrays."""
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


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_node_there_and_back(kind: str, direction: str, bias: bool, onnx: Any) -> None:
    inputs = {} if bias else {"B": None}
    if kind == "LSTM":
        D = 1 + (direction == "bidirectional")
        inputs["P"] = np.random.default_rng(1).standard_normal((D, 6), np.float32)
    model = one_node(onnx, kind, inputs, direction=direction)
    layer = fastrnn.from_onnx(model)
    assert layer.bias is bias
    wanted = {f"{name}0": a for name, a in weights(onnx, model).items()}
    got = weights(onnx, fastrnn.to_onnx(layer))
    assert_same_bits({name: a for name, a in got.items() if name in wanted}, wanted)


def test_weights_put_together_from_constants(onnx: Any) -> None:
    """As PyTorch's exporter did: gates in another order are cut out, joined, and given the axis of directions."""
    node, whole = onnx.helper.make_node, fastrnn.LSTM(3, 2, rng=0)
    expected = weights(onnx, fastrnn.to_onnx(whole))
    model = one_node(onnx)
    del model.graph.initializer[:]
    constants = {"axis": np.array([0])}
    nodes = []
    for name in ("W", "R", "B"):
        a = expected[f"{name}0"][0]
        constants[f"{name}_turned"] = np.concatenate([a[2:8], a[:2], a[8:]])
        pieces = [("a", 6, 8), ("b", 0, 6)] + ([("c", 8, 16)] if name == "B" else [])
        for piece, *cuts in pieces:
            constants |= {f"{name}_{piece}_{i}": np.array([cut]) for i, cut in enumerate(cuts)}
            inputs = [f"{name}_turned", f"{name}_{piece}_0", f"{name}_{piece}_1", "axis"]
            nodes.append(node("Slice", inputs, [f"{name}_{piece}"]))
        nodes.append(node("Concat", [f"{name}_{piece}" for piece, *_ in pieces], [f"{name}_flat"], axis=0))
        nodes.append(node("Unsqueeze", [f"{name}_flat", "axis"], [name]))
    model.graph.initializer.extend([onnx.numpy_helper.from_array(a, name) for name, a in constants.items()])
    for one in reversed(nodes):
        model.graph.node.insert(0, one)
    assert_same_bits(fastrnn.from_onnx(model).parameters(), whole.parameters())
    model.graph.input.append(onnx.helper.make_tensor_value_info("free", onnx.TensorProto.FLOAT, [8, 3]))
    model.graph.node[0].input[0] = "free"
    with pytest.raises(ValueError, match="W: expected a constant, got the result 'W'"):
        fastrnn.from_onnx(model)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Concat", ["W40"], "W40")], r"Concat node 'W40': cannot compute a constant from \['W40'\]"),
        ([("Concat", ["W1"], "W40"), ("Identity", ["W40"], "W1")], "Concat node 'W40': "),
        ([("Concat", [f"W{i}", f"W{i}"], f"W{i + 1}") for i in range(40)], "Concat node 'W[0-9]+': .* numbers, but"),
        ([("Gather", ["W0", "many"], "W40")], "Gather node 'W40': .*216000 numbers, but the model has 9057"),
        ([("Gather", ["W0", "far"], "W40")], "Gather node 'W40': cannot compute .*IndexError"),
        ([("Cast", [], "W40")], r"Cast node 'W40': cannot compute a constant from \[\]"),
    ],
)
def test_constants_that_cannot_be_put_together(nodes: list[Any], message: str, onnx: Any) -> None:
    """They go round, grow until no memory holds them, or are wrong."""
    model = one_node(onnx)
    model.graph.initializer[0].name, model.graph.node[0].input[1] = "W0", "W40"
    constants = {"many": np.zeros(9000, np.int64), "far": np.array([9])}
    model.graph.initializer.extend([onnx.numpy_helper.from_array(a, name) for name, a in constants.items()])
    for kind, inputs, output in nodes[::-1]:
        model.graph.node.insert(0, onnx.helper.make_node(kind, inputs, [output], axis=0))
    with pytest.raises(ValueError, match=message):
        fastrnn.from_onnx(model)


def in_two_branches(onnx: Any, other: dict[str, np.ndarray]) -> Any:
    """An If that runs the node with or without a state, with the same weights, or other ones in the second branch."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    model = one_node(onnx)
    (lstm,) = model.graph.node
    lstm.output[:] = ["", "Y_h"]
    constants = weights(onnx, model) | other
    second = helper.make_node("LSTM", ["X", *(f"{n}2" if n in other else n for n in "WRB"), "", "h", "h"], ["", "Y_h2"])
    second.name = "the_other"
    branches = [
        helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[1], kind, None)])
        for name, node in (("then", lstm), ("otherwise", second))
    ]
    chosen = helper.make_node("If", ["fresh"], ["last"], then_branch=branches[0], else_branch=branches[1])
    inputs = [*model.graph.input, helper.make_tensor_value_info("fresh", onnx.TensorProto.BOOL, [])]
    inputs.append(helper.make_tensor_value_info("h", kind, [1, "B", 2]))
    named = [onnx.numpy_helper.from_array(a, name) for name, a in weights(onnx, model).items()]
    named += [onnx.numpy_helper.from_array(constants[name], f"{name}2") for name in other]
    outputs = [helper.make_tensor_value_info("last", kind, None)]
    graph = helper.make_graph([chosen], "branches", inputs, outputs, named)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def test_the_same_node_in_two_branches(onnx: Any) -> None:
    model = in_two_branches(onnx, {})
    layer = fastrnn.from_onnx(model)
    assert not layer.return_sequences
    assert_same_bits(layer.parameters(), fastrnn.from_onnx(model, node="the_other").parameters())
    model = in_two_branches(onnx, {"R": np.ones((1, 8, 2), np.float32)})
    with pytest.raises(ValueError, match="expected one of LSTM node 'the_other', LSTM node 'the_node'"):
        fastrnn.from_onnx(model)
    assert (fastrnn.from_onnx(model, node="the_other").parameters()["weight_hh_l0"] == 1).all()


def test_layout(onnx: Any) -> None:
    assert fastrnn.from_onnx(one_node(onnx, layout=1)).batch_first
    assert not fastrnn.from_onnx(one_node(onnx)).batch_first


def test_activations_that_are_the_defaults(onnx: Any) -> None:
    two_ways = {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "tanh"] * 2}
    assert fastrnn.from_onnx(one_node(onnx, input_forget=0, **two_ways)).bidirectional
    assert "rnn_relu" in repr(fastrnn.from_onnx(one_node(onnx, "RNN", activations=["Relu"])))
    assert "rnn_identity" in repr(fastrnn.from_onnx(one_node(onnx, "RNN", activations=["Affine", "Tanh"])))
    assert not fastrnn.from_onnx(one_node(onnx, "RNN", output_sequence=1)).bidirectional  # of ONNX before version 7


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "message"),
    [
        ("LSTM", {}, {"clip": 0.5}, "LSTM node 'the_node': clip: 0.5 is not supported .* fastrnn.onnx"),
        ("LSTM", {}, {"input_forget": 1}, "input_forget: 1 is not supported"),
        ("LSTM", {}, {"direction": "reverse"}, "direction: expected 'forward' or 'bidirectional', got 'reverse'"),
        (
            "LSTM",
            {},
            {"activations": ["HardSigmoid", "Tanh", "Tanh"]},
            r"activations: \['hardsigmoid', 'tanh', 'tanh'\]",
        ),
        ("RNN", {}, {"activations": ["Affine"], "activation_alpha": [2.0], "activation_beta": [0.0]}, "activations"),
        ("RNN", {}, {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}, "activations"),
        ("GRU", {"W": "W"}, {}, "W: expected a constant"),
        (
            "GRU",
            {"W": np.ones((1, 5, 3), np.float32)},
            {},
            r"W: expected shape \(D, 3\*H, I\) = \(1, 6, 3\), got \(1, 5",
        ),
        ("GRU", {"B": np.ones((1, 6), np.float32)}, {}, "B: expected shape"),
        (
            "GRU",
            {"R": np.array(1, np.float32)},
            {},
            r"'the_node': R: expected shape \(D, 3\*H, H\) with hidden_size = 2, got \(\)",
        ),
        (
            "GRU",
            {"W": np.array(1, np.float32)},
            {},
            r"'the_node': W: expected shape \(D, 3\*H, I\) = \(1, 6, 0\), got \(\)",
        ),
        ("LSTM", {}, {"hidden_size": 3}, r"R: expected shape \(D, 4\*H, H\) with hidden_size = 3, got \(1, 8, 2\)"),
        ("LSTM", {}, {"clip": -1.0}, "'the_node': clip: expected a positive number, got -1.0"),
        ("LSTM", {}, {"layout": 2}, "'the_node': layout: expected 0 or 1, got 2"),
        ("LSTM", {}, {"speed": 2}, "'the_node': speed: LSTM has no such attribute here"),
        ("GRU", {"initial_h": np.ones((1, 2, 2), np.float32)}, {}, "initial_h: a layer cannot store it as a constant"),
        ("GRU", {"sequence_lens": np.ones(2, np.int32)}, {}, "sequence_lens: a layer cannot store it as a constant"),
    ],
)
def test_from_onnx_refuses(kind: str, inputs: Any, attributes: dict[str, Any], message: str, onnx: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_onnx(one_node(onnx, kind, inputs, **attributes))


def hostile(onnx: Any, change: Callable[[Any], Any]) -> Any:
    """A model of one node, of which something is not ONNX."""
    model = one_node(onnx, "GRU")
    change(model.graph)
    return model


def add_attribute(graph: Any, **fields: Any) -> None:
    attribute = graph.node[0].attribute.add()
    for name, value in fields.items():
        setattr(attribute, name, value)


def add_dropout(graph: Any, onnx: Any, ratio: np.ndarray | None, layout: int = 0) -> None:
    """The node on itself, with what stands between layers."""
    below, name = graph.node[0], "below"
    below.output[0] = name
    node = onnx.helper.make_node
    options = {"layout": 1} if layout else {}
    below.attribute.extend([onnx.helper.make_attribute(key, value) for key, value in options.items()])
    above = node("GRU", ["dropped", "W", "R", "B"], ["Y"], name="above", hidden_size=2, **options)
    inputs = ["joined"] if ratio is None else ["joined", "ratio"]
    graph.node.extend([node("Squeeze", [name, "axis"], ["joined"]), node("Dropout", inputs, ["dropped"]), above])
    arrays = {"axis": np.array([1 + layout])} | ({} if ratio is None else {"ratio": ratio})
    graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: setattr(g.initializer[0], "raw_data", b"123"), "model: constant 'W': "),
        (lambda g: setattr(g.initializer[0], "data_type", 0), "model: constant 'W': .*UNDEFINED"),
        (lambda g: setattr(g.initializer[0], "data_type", 99), "model: constant 'W': 99"),
        (lambda g: g.initializer[0].dims.append(10**12), "model: constant 'W': "),
        (lambda g: add_attribute(g, name="activations", type=1, f=1.0), "'the_node': activations: .* got FLOAT"),
        (lambda g: add_attribute(g, name="activations"), "activations: expected STRINGS, got UNDEFINED"),
        (lambda g: add_attribute(g, name="layout", type=2, ref_attr_name="a"), "layout: .* got a reference to 'a'"),
        (lambda g: add_attribute(g, name="other", type=2, ref_attr_name="a"), "other: .* got a reference to 'a'"),
        (
            lambda g: add_attribute(g, name="direction", type=3, s=b"\xff"),
            "direction: expected one of forward, reverse, ",
        ),
    ],
)
def test_what_is_not_what_it_says(change: Any, message: str, onnx: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_onnx(hostile(onnx, change))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("ratio", [None, 0.25])
def test_what_stands_between_layers(ratio: float | None, layout: int, onnx: Any) -> None:
    """The axis of directions is the second, or with layout=1 the third; a ratio that is not given is 0.5."""

    def change(graph: Any) -> None:
        for name in ("W", "R"):  # a layer reads what it gives
            tensor = next(one for one in graph.initializer if one.name == name)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 6, 2), np.float32), name))
        add_dropout(graph, onnx, None if ratio is None else np.array(ratio, np.float32), layout)
        upper = onnx.numpy_helper.from_array(np.zeros((1, 6, 2), np.float32), "upper")
        graph.initializer.append(upper)
        graph.node[-1].input[1] = "upper"  # nodes of the same weights would be one layer

    layer = fastrnn.from_onnx(hostile(onnx, change))
    assert (layer.num_layers, layer.dropout, layer.batch_first) == (2, 0.5 if ratio is None else ratio, layout == 1)


@pytest.mark.parametrize("ratio", [np.zeros(2, np.float32), np.array("half", object), np.array(1)])
def test_a_ratio_that_is_no_number(ratio: np.ndarray, onnx: Any) -> None:
    with pytest.raises(ValueError, match="Dropout node 'dropped': ratio: expected a number, got "):
        fastrnn.from_onnx(hostile(onnx, lambda g: add_dropout(g, onnx, ratio)))


def test_a_constant_without_a_name(onnx: Any) -> None:
    """Nobody can read it."""
    value = onnx.numpy_helper.from_array(np.zeros(1))
    nameless = onnx.helper.make_node("Constant", [], [], value=value)
    assert fastrnn.from_onnx(hostile(onnx, lambda g: g.node.append(nameless))).hidden_size == 2


def test_axes_that_are_no_integers(onnx: Any) -> None:
    def change(graph: Any) -> None:
        add_dropout(graph, onnx, np.array(0.5, np.float32))
        axis, R = (next(one for one in graph.initializer if one.name == name) for name in ("axis", "R"))
        axis.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan]), "axis"))
        graph.node[-1].input[2] = "another R"  # nodes of the same weights would be one layer
        graph.initializer.append(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(R), "another R"))

    with pytest.raises(ValueError, match="do not form a stack"):
        fastrnn.from_onnx(hostile(onnx, change))


def test_initial_states_that_are_given_or_zero(onnx: Any) -> None:
    for value in ("initial_h", np.zeros((1, 2, 2), np.float32)):
        assert fastrnn.from_onnx(one_node(onnx, "GRU", {"initial_h": value})).hidden_size == 2


def test_nodes_that_are_no_chain(onnx: Any) -> None:
    helper, layer = onnx.helper, fastrnn.LSTM(3, 3, 2, rng=0)
    model = fastrnn.to_onnx(layer)
    between = next(node for node in model.graph.node if node.op_type == "Squeeze")
    activation = helper.make_node("Relu", ["between"], list(between.output))
    between.output[0] = "between"
    model.graph.node.insert(list(model.graph.node).index(between) + 1, activation)
    onnx.checker.check_model(model)
    with pytest.raises(ValueError, match="expected one of LSTM node 'layer0', LSTM node 'layer1'"):
        fastrnn.from_onnx(model)
    upper = fastrnn.from_onnx(model, node="layer1")
    own = {name.replace("l1", "l0"): a for name, a in layer.parameters().items() if name.endswith("l1")}
    assert_same_bits(upper.parameters(), own)
    assert_same_bits(fastrnn.from_onnx(model, node="Y1").parameters(), own)
    with pytest.raises(ValueError, match="node: expected the name of one recurrent node, got 'layer2'"):
        fastrnn.from_onnx(model, node="layer2")


def test_other_files(onnx: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a model")
    with pytest.raises(ValueError, match="is not an ONNX model"):
        fastrnn.from_onnx(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        fastrnn.from_onnx(tmp_path / "nothing")
    with pytest.raises(TypeError, match=r"expected a path, bytes or an onnx.ModelProto, got int"):
        fastrnn.from_onnx(3)
    with pytest.raises(ValueError, match="path_or_model: the byte string is not an ONNX model"):
        fastrnn.from_onnx(b"a model")
    model = one_node(onnx)
    layer = fastrnn.from_onnx(model.SerializeToString())
    assert_same_bits(layer.parameters(), fastrnn.from_onnx(model).parameters())
    del model.graph.node[0].input[2:], model.graph.node[0].output[:]
    with pytest.raises(ValueError, match=r"LSTM node .* expected inputs X, W, R and of B, "):
        fastrnn.from_onnx(model)
    with pytest.raises(ValueError, match="found none"):
        fastrnn.from_onnx(onnx.ModelProto())


@pytest.mark.filterwarnings("ignore")  # of the exporter, many
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"batch_first": True}, {"bias": False}])
def test_what_pytorch_exports(
    kind: str, options: dict[str, Any], onnx: Any, oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    torch = oracle("torch")
    module = getattr(torch.nn, kind)(3, 4, 2, **options)
    x = torch.randn((2, 5, 3) if options.get("batch_first") else (5, 2, 3))
    torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=False)
    layer = fastrnn.from_onnx(tmp_path / "model.onnx")
    assert repr(layer) == repr(fastrnn.from_torch(module))
    assert_same_bits(layer.parameters(), fastrnn.from_torch(module).parameters())
