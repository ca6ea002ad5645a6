"""Weights from and to ONNX: checked by its checker, run by its runtime or (float64) its reference evaluator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, by_runtime, drawn, given, settings, written
from support.onnx_models import one_node
from support.stacks import named, states
from support.tolerance import FLOAT32, assert_close, assert_same_bits

import fastrnn


def computed(runtime: Any, model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {"y_forward": "y0", "y_backward": "y1"}
    return {renamed.get(name, name): a for name, a in by_runtime(runtime, model, inputs).items()}


def weights(onnx: Any, model: Any) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("given_states", [False, True])
@pytest.mark.parametrize("seed", MANY)
def test_round_trip_of_a_layer(seed: int, given_states: bool, onnx: Any, runtime: Any, tmp_path: Path) -> None:
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
    assert_close(named(*back(x, state, lengths)), computed(runtime, model, {"x": x} | inputs), FLOAT32)


def test_an_update_gate_that_writes(onnx: Any, runtime: Any) -> None:
    gru, x, y = written()
    model = fastrnn.to_onnx(gru)
    assert_close({"y": computed(runtime, model, {"x": x})["y"]}, {"y": y}, FLOAT32)
    own = gru.parameters()
    assert_same_bits({name: fastrnn.from_onnx(model).parameters()[name] for name in own}, own)


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh"])
def test_round_trip_of_float64(cell: str, oracle: Callable[[str], Any], onnx: Any) -> None:
    layer = drawn(3, (cell,), dtype=np.float64, num_layers=1, bidirectional=False)
    model = fastrnn.to_onnx(layer)
    onnx.checker.check_model(model, full_check=True)
    x = given(layer)
    names = [one.name for one in model.graph.output]
    found = dict(zip(names, oracle("onnx.reference").ReferenceEvaluator(model).run(None, {"x": x}), strict=True))
    assert_close(named(*layer(x)), found)
    assert_same_bits(fastrnn.from_onnx(model).parameters(), fastrnn.from_onnx(fastrnn.to_onnx(layer)).parameters())


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False])
def test_round_trip_of_a_node(kind: str, direction: str, bias: bool, onnx: Any) -> None:
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


def test_weights_computed_from_constants(onnx: Any) -> None:
    """Like PyTorch's exporter: gates in another order are sliced, concatenated and given an axis of directions."""
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


def in_two_branches(onnx: Any, other: dict[str, np.ndarray]) -> Any:
    """Return an If that runs the node with or without a state, with equal or, in the second branch, other weights."""
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


def test_layout_1_is_batch_first(onnx: Any) -> None:
    assert fastrnn.from_onnx(one_node(onnx, layout=1)).batch_first
    assert not fastrnn.from_onnx(one_node(onnx)).batch_first


def test_explicit_default_activations(onnx: Any) -> None:
    two_ways = {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "tanh"] * 2}
    assert fastrnn.from_onnx(one_node(onnx, input_forget=0, **two_ways)).bidirectional
    assert "rnn_relu" in repr(fastrnn.from_onnx(one_node(onnx, "RNN", activations=["Relu"])))
    assert "rnn_identity" in repr(fastrnn.from_onnx(one_node(onnx, "RNN", activations=["Affine", "Tanh"])))
    assert not fastrnn.from_onnx(one_node(onnx, "RNN", output_sequence=1)).bidirectional  # for ONNX before version 7


def test_initial_states_as_inputs_or_zeros(onnx: Any) -> None:
    for value in ("initial_h", np.zeros((1, 2, 2), np.float32)):
        assert fastrnn.from_onnx(one_node(onnx, "GRU", {"initial_h": value})).hidden_size == 2


@pytest.mark.filterwarnings("ignore")  # many, from the exporter
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"batch_first": True}, {"bias": False}])
def test_models_exported_by_pytorch(
    kind: str, options: dict[str, Any], onnx: Any, oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    torch = oracle("torch")
    module = getattr(torch.nn, kind)(3, 4, 2, **options)
    x = torch.randn((2, 5, 3) if options.get("batch_first") else (5, 2, 3))
    torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=False)
    layer = fastrnn.from_onnx(tmp_path / "model.onnx")
    assert repr(layer) == repr(fastrnn.from_torch(module))
    assert_same_bits(layer.parameters(), fastrnn.from_torch(module).parameters())
