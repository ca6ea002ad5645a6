"""Graphs around recurrent nodes that `from_onnx` accepts or rejects: the error names the node and the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.onnx_models import one_node
from support.tolerance import assert_same_bits

import fastrnn


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
def test_constants_that_cannot_be_computed(nodes: list[Any], message: str, onnx: Any) -> None:
    """They are circular, too large for memory, or invalid."""
    model = one_node(onnx)
    model.graph.initializer[0].name, model.graph.node[0].input[1] = "W0", "W40"
    constants = {"many": np.zeros(9000, np.int64), "far": np.array([9])}
    model.graph.initializer.extend([onnx.numpy_helper.from_array(a, name) for name, a in constants.items()])
    for kind, inputs, output in nodes[::-1]:
        model.graph.node.insert(0, onnx.helper.make_node(kind, inputs, [output], axis=0))
    with pytest.raises(ValueError, match=message):
        fastrnn.from_onnx(model)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


HARD = ["HardSigmoid", "Tanh", "Tanh"]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "message"),
    [
        ("LSTM", {}, {"clip": 0.5}, "LSTM node 'the_node': clip: 0.5 is not supported .* fastrnn.onnx"),
        ("LSTM", {}, {"input_forget": 1}, "input_forget: 1 is not supported"),
        ("LSTM", {}, {"direction": "reverse"}, "direction: expected 'forward' or 'bidirectional', got 'reverse'"),
        ("LSTM", {}, {"activations": HARD}, r"activations: \['hardsigmoid', 'tanh', 'tanh'\]"),
        ("RNN", {}, {"activations": ["Affine"], "activation_alpha": [2.0], "activation_beta": [0.0]}, "activations"),
        ("RNN", {}, {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}, "activations"),
        ("GRU", {"W": "W"}, {}, "W: expected a constant"),
        ("GRU", {"W": ones(1, 5, 3)}, {}, r"W: expected shape \(D, 3\*H, I\) = \(1, 6, 3\), got \(1, 5"),
        ("GRU", {"B": ones(1, 6)}, {}, "B: expected shape"),
        ("GRU", {"R": ones()}, {}, r"'the_node': R: expected shape \(D, 3\*H, H\) with hidden_size = 2, got \(\)"),
        ("GRU", {"W": ones()}, {}, r"'the_node': W: expected shape \(D, 3\*H, I\) = \(1, 6, 0\), got \(\)"),
        ("LSTM", {}, {"hidden_size": 3}, r"R: expected shape \(D, 4\*H, H\) with hidden_size = 3, got \(1, 8, 2\)"),
        ("LSTM", {}, {"clip": -1.0}, "'the_node': clip: expected a positive number, got -1.0"),
        ("LSTM", {}, {"layout": 2}, "'the_node': layout: expected 0 or 1, got 2"),
        ("LSTM", {}, {"speed": 2}, "'the_node': speed: LSTM has no such attribute here"),
        ("GRU", {"initial_h": ones(1, 2, 2)}, {}, "initial_h: a layer cannot store it as a constant"),
        ("GRU", {"sequence_lens": np.ones(2, np.int32)}, {}, "sequence_lens: a layer cannot store it as a constant"),
    ],
)
def test_from_onnx_refuses(kind: str, inputs: Any, attributes: dict[str, Any], message: str, onnx: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_onnx(one_node(onnx, kind, inputs, **attributes))


def hostile(onnx: Any, change: Callable[[Any], Any]) -> Any:
    """Return a model of one node with an invalid part."""
    model = one_node(onnx, "GRU")
    change(model.graph)
    return model


def attribute(graph: Any, **fields: Any) -> None:
    """Give the node another attribute."""
    added = graph.node[0].attribute.add()
    for name, value in fields.items():
        setattr(added, name, value)


def add_dropout(graph: Any, onnx: Any, ratio: np.ndarray | None, layout: int = 0) -> None:
    """Connect the node to a copy of itself through the nodes between stacked layers."""
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
        (lambda g: attribute(g, name="activations", type=1, f=1.0), "'the_node': activations: .* got FLOAT"),
        (lambda g: attribute(g, name="activations"), "activations: expected STRINGS, got UNDEFINED"),
        (lambda g: attribute(g, name="layout", type=2, ref_attr_name="a"), "layout: .* got a reference to 'a'"),
        (lambda g: attribute(g, name="other", type=2, ref_attr_name="a"), "other: .* got a reference to 'a'"),
        (lambda g: attribute(g, name="direction", type=3, s=b"\xff"), "direction: expected one of forward, reverse, "),
    ],
)
def test_invalid_nodes_raise_an_error(change: Any, message: str, onnx: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_onnx(hostile(onnx, change))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("ratio", [None, 0.25])
def test_dropout_between_layers(ratio: float | None, layout: int, onnx: Any) -> None:
    """The axis of directions is the second, or with layout=1 the third; the default ratio is 0.5."""

    def change(graph: Any) -> None:
        for name in ("W", "R"):  # a layer reads its result
            tensor = next(one for one in graph.initializer if one.name == name)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 6, 2), np.float32), name))
        add_dropout(graph, onnx, None if ratio is None else np.array(ratio, np.float32), layout)
        upper = onnx.numpy_helper.from_array(np.zeros((1, 6, 2), np.float32), "upper")
        graph.initializer.append(upper)
        graph.node[-1].input[1] = "upper"  # nodes of the same weights would be one layer

    layer = fastrnn.from_onnx(hostile(onnx, change))
    assert (layer.num_layers, layer.dropout, layer.batch_first) == (2, 0.5 if ratio is None else ratio, layout == 1)


@pytest.mark.parametrize("ratio", [np.zeros(2, np.float32), np.array("half", object), np.array(1)])
def test_a_ratio_that_is_not_a_number(ratio: np.ndarray, onnx: Any) -> None:
    with pytest.raises(ValueError, match="Dropout node 'dropped': ratio: expected a number, got "):
        fastrnn.from_onnx(hostile(onnx, lambda g: add_dropout(g, onnx, ratio)))


def test_a_constant_without_a_name_is_ignored(onnx: Any) -> None:
    """Nothing can read it."""
    value = onnx.numpy_helper.from_array(np.zeros(1))
    nameless = onnx.helper.make_node("Constant", [], [], value=value)
    assert fastrnn.from_onnx(hostile(onnx, lambda g: g.node.append(nameless))).hidden_size == 2


def test_axes_that_are_not_integers(onnx: Any) -> None:
    def change(graph: Any) -> None:
        add_dropout(graph, onnx, np.array(0.5, np.float32))
        axis, R = (next(one for one in graph.initializer if one.name == name) for name in ("axis", "R"))
        axis.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan]), "axis"))
        graph.node[-1].input[2] = "another R"  # nodes of the same weights would be one layer
        graph.initializer.append(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(R), "another R"))

    with pytest.raises(ValueError, match="do not form a stack"):
        fastrnn.from_onnx(hostile(onnx, change))


def test_nodes_without_a_chain_are_read_one_by_one(onnx: Any) -> None:
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
    with pytest.raises(ValueError, match=r"node: expected one of .*'layer1', got 'layer2', which matches 0"):
        fastrnn.from_onnx(model, node="layer2")


def test_other_files_are_refused(onnx: Any, tmp_path: Path) -> None:
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
