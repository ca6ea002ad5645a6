"""`fastrnn.onnx` as a backend of the onnx package: which nodes run in kernels, prepare, run_node, and their errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.onnx_models import packed_calls
from support.onnx_nodes import ACTIVATIONS, NAMES, cast, model, random_node
from support.problems import Arrays
from support.tolerance import assert_same_bits

from fastrnn.cells import machine


@pytest.mark.parametrize(
    ("op", "attributes", "kernels"),
    [
        ("RNN", {}, True),
        ("RNN", {"activations": ["relu"]}, True),
        ("RNN", {"activations": ["Relu", "Tanh"]}, True),  # a pair, as in ONNX's default; the first one counts
        ("RNN", {"activations": ["Sigmoid", "Tanh"], "direction": "bidirectional"}, True),
        ("RNN", {"activations": ["Affine"]}, True),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5]}, False),
        ("RNN", {"activations": ["Elu"]}, False),
        ("GRU", {"linear_before_reset": 1, "layout": 1, "direction": "reverse"}, True),
        ("GRU", {"activations": ["Sigmoid", "Tanh"]}, True),
        ("GRU", {"activations": ["Tanh", "Tanh"]}, False),
        ("LSTM", {"hidden_size": 3}, True),
        ("GRU", {"activations": ["HardSigmoid", "Relu"], "linear_before_reset": 1}, True),
        ("LSTM", {"input_forget": 1}, True),
        ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, True),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, False),
        ("LSTM", {"clip": 1.0}, False),
    ],
)
def test_runs_in_kernels(
    op: str, attributes: dict[str, Any], kernels: bool, onnx: Any, ours: Any, native: str, monkeypatch: Any
) -> None:
    """All of them, if there is a compiler for those that are not compiled in."""
    node = onnx.helper.make_node(op, ["X", "W", "R"], ["Y"], **attributes)
    assert ours.runs_in_kernels(node)
    monkeypatch.setattr(machine, "available", lambda: False)
    assert ours.runs_in_kernels(node) is kernels


def test_every_activation_has_a_function(ours: Any) -> None:
    from fastrnn.frameworks import ONNX_ACTIVATIONS
    from fastrnn.onnx import node

    assert node.ACTIVATIONS.keys() == ONNX_ACTIVATIONS.keys() == {name.lower() for name in ACTIVATIONS}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"direction": "sideways"}, "direction: expected one of forward, reverse, bidirectional, got 'sideways'"),
        ({"clip": -1.0}, "clip: expected a positive number, got -1.0"),
        ({"layout": 2}, "layout: expected 0 or 1, got 2"),
        ({"activations": ["Tanh"]}, "activations: expected 3 names, got 1"),
        ({"activations": ["Tanh", "Tanh", "Swish"]}, "activations: expected names of .*, got 'Swish'"),
        ({"activation_beta": [1.0]}, "activation_beta: Sigmoid, Tanh, Tanh take 1 fewer"),
        ({"output_sequence": 1}, "output_sequence: LSTM has no such attribute"),
    ],
)
def test_wrong_attributes_are_refused(attributes: dict[str, Any], message: str, onnx: Any, ours: Any) -> None:
    with pytest.raises(ValueError, match=message):
        ours.runs_in_kernels(onnx.helper.make_node("LSTM", ["X", "W", "R"], ["Y"], **attributes))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": np.ones((2, 3))}, ValueError, r"X: expected shape \(T, B, I\) with I = 4, got \(2, 3\)"),
        ({"X": np.ones((2, 3, 4), np.float32)}, TypeError, "X: expected dtype float64, that of W, got float32"),
        ({"X": np.ones((2, 3, 4), np.float16)}, TypeError, "X: expected dtype float32 or float64"),
        ({"W": np.ones((1, 14, 4))}, ValueError, r"W: expected shape \(D, 3\*H, I\) = \(1, 15, 4\), got \(1, 14, 4\)"),
        ({"R": np.ones((2, 15, 5))}, ValueError, r"R: expected shape \(D, 3\*H, H\) = \(1, 15, 5\)"),
        ({"R": np.ones((1, 12, 4))}, ValueError, r"R: expected shape \(D, 3\*H, H\) with hidden_size = 5"),
        ({"B": np.ones((1, 15))}, ValueError, r"B: expected shape \(D, 6\*H\) = \(1, 30\), got \(1, 15\)"),
        ({"sequence_lens": np.array([1, 2, 3])}, ValueError, r"sequence_lens: expected each in 0\.\.T = 0\.\.2, got 3"),
        ({"initial_h": np.ones((3, 5))}, ValueError, r"initial_h: expected shape \(D, B, H\) = \(1, 3, 5\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: Arrays, error: Any, message: str, onnx: Any, ours: Any) -> None:
    inputs = {"X": np.ones((2, 3, 4)), "W": np.ones((1, 15, 4)), "R": np.ones((1, 15, 5))} | change
    names = [name if name in inputs else "" for name in NAMES[:6]]
    node = onnx.helper.make_node("GRU", names, ["Y"], hidden_size=5)
    with pytest.raises(error, match=message):
        ours.run_node(node, [inputs.get(name) for name in names])


def test_run_node_takes_absent_inputs_as_none_or_not_at_all(onnx: Any, ours: Any) -> None:
    """By position, absent inputs are None or left out; outputs without a name are omitted."""
    rng = np.random.default_rng(0)
    X, W, R, h = (rng.standard_normal(shape) for shape in ((4, 2, 3), (1, 5, 3), (1, 5, 5), (1, 2, 5)))
    node = onnx.helper.make_node("RNN", ["X", "W", "R", "", "", "h"], ["", "Y_h"])
    (expected,) = ours.run_node(node, [X, W, R, None, None, h], opset_version=14)
    (got,) = ours.run_node(node, [X, W, R, h])
    assert_same_bits({"Y_h": got}, {"Y_h": expected})
    with pytest.raises(ValueError, match="inputs: expected 4, X, W, R, initial_h, got 3"):
        ours.run_node(node, [X, W, R])


def test_prepared_takes_inputs_in_order_or_by_name(onnx: Any, ours: Any) -> None:
    node = random_node("LSTM", np.random.default_rng(2))
    prepared = ours.prepare(model(onnx, node), "CPU:0")
    inputs = list(node.inputs.values())
    for got, expected in zip(prepared.run(node.inputs), prepared.run(inputs), strict=True):
        assert np.array_equal(got, expected)
    with pytest.raises(ValueError, match=f"inputs: expected {len(inputs)}, X, W, R"):
        prepared.run(inputs[:-1])
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        prepared.run(inputs, speed=2)


def test_the_only_device_is_the_cpu(onnx: Any, ours: Any) -> None:
    whole = model(onnx, random_node("RNN", np.random.default_rng(0)))
    assert ours.supports_device("CPU")
    assert not ours.supports_device("CUDA:1")
    assert ours.is_compatible(whole)
    assert not ours.is_compatible(whole, "CUDA")
    with pytest.raises(NotImplementedError, match="device: expected CPU, got CUDA"):
        ours.prepare(whole, "CUDA")


def test_models_of_other_nodes_are_refused(onnx: Any, ours: Any) -> None:
    whole = model(onnx, random_node("RNN", np.random.default_rng(0)))
    whole.graph.node.append(onnx.helper.make_node("Relu", ["Y"], ["positive"]))
    assert not ours.is_compatible(whole)
    with pytest.raises(NotImplementedError, match=r"got Relu; fastrnn\.onnx\.Session runs such models"):
        ours.prepare(whole)


def test_half_precision_runs_in_the_rest(onnx: Any, ours: Any) -> None:
    whole = model(onnx, cast(random_node("GRU", np.random.default_rng(0)), np.float16))
    assert not ours.is_compatible(whole)
    assert ours.Session(whole, rest="reference").nodes == [("Y", "GRU", "reference", "X: float16")]


def test_weights_are_packed_once(onnx: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only constant weights; an input may change."""
    packed = packed_calls(monkeypatch)
    node = random_node("LSTM", np.random.default_rng(3), direction="bidirectional")
    whole = model(onnx, node)
    X = node.inputs.pop("X")
    varying = ours.prepare(whole)
    expected = [varying.run([X, *node.inputs.values()]) for _ in range(2)]
    assert not packed
    for name, a in node.inputs.items():
        whole.graph.initializer.append(onnx.numpy_helper.from_array(a, name))
    del whole.graph.input[1:]
    constant = ours.prepare(whole)
    got = [constant.run([X]) for _ in range(2)]
    assert len(packed) == 2
    assert all(np.array_equal(a, b) for a, b in zip(sum(got, ()), sum(expected, ()), strict=True))
