"""`fastrnn.onnx`: the onnx package's own node tests, its reference evaluator and ONNX Runtime as oracles.

The evaluator ignores lengths, clip and most activations, and the runtime has no float64 and no layout=1 for all
nodes; between them they know everything, and what both leave open is compared with what they know.
"""

from __future__ import annotations

import doctest
import importlib
import unittest
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from support.problems import Arrays
from support.tolerance import assert_close, assert_same_bits

from fastrnn import backends
from fastrnn.cells import machine

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
NAMES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")
#: name -> how many of alpha and beta it takes
ACTIVATIONS = {
    "Tanh": 0,
    "Relu": 0,
    "Sigmoid": 0,
    "Softsign": 0,
    "Softplus": 0,
    "LeakyRelu": 1,
    "ThresholdedRelu": 1,
    "Elu": 1,
    "Affine": 2,
    "ScaledTanh": 2,
    "HardSigmoid": 2,
}


@pytest.fixture(scope="module")
def ours(onnx: Any) -> Any:
    import fastrnn.onnx

    return fastrnn.onnx


@pytest.fixture(scope="module")
def runtime(oracle: Callable[[str], Any]) -> Any:
    return oracle("onnxruntime")


def random_node(op: str, rng: np.random.Generator, **attributes: Any) -> SimpleNamespace:
    """A node's `op`, `inputs` and `attributes`: B, initial states, lengths and peepholes are there or not."""
    T, B, I, H = (int(n) for n in rng.integers(1, 9, 4))
    D = 2 if attributes.get("direction") == "bidirectional" else 1
    G = GATES[op]
    every = {
        "X": rng.standard_normal((T, B, I)),
        "W": rng.uniform(-1, 1, (D, G * H, I)) / np.sqrt(I),
        "R": rng.uniform(-1, 1, (D, G * H, H)) / np.sqrt(H),
        "B": rng.uniform(-1, 1, (D, 2 * G * H)),
        "sequence_lens": rng.integers(1, T + 1, B).astype(np.int32),
        "initial_h": rng.uniform(-1, 1, (D, B, H)),
    }
    if op == "LSTM":
        every |= {"initial_c": rng.standard_normal((D, B, H)), "P": rng.uniform(-1, 1, (D, 3 * H))}
    inputs = {name: a for name, a in every.items() if name in ("X", "W", "R") or rng.integers(4)}
    return SimpleNamespace(op=op, inputs=inputs, attributes=attributes)


def random_attributes(op: str, rng: np.random.Generator) -> dict[str, Any]:
    """Direction, activations with their alpha and beta, clip, linear_before_reset, input_forget."""
    direction = ["forward", "reverse", "bidirectional"][rng.integers(3)]
    attributes: dict[str, Any] = {"direction": direction}
    if rng.integers(2):
        count = {"RNN": 1, "GRU": 2, "LSTM": 3}[op] * (2 if direction == "bidirectional" else 1)
        names = [str(name) for name in rng.choice(list(ACTIVATIONS), count)]
        for attribute, least in (("activation_alpha", 1), ("activation_beta", 2)):
            values = rng.uniform(0.2, 0.9, sum(ACTIVATIONS[name] >= least for name in names))
            attributes |= {attribute: values.tolist()} if len(values) else {}
        attributes["activations"] = names
    if rng.integers(2):
        attributes["clip"] = float(rng.uniform(0.1, 1.5))
    extra = {"GRU": "linear_before_reset", "LSTM": "input_forget"}.get(op)
    return attributes | ({extra: int(rng.integers(2))} if extra else {})


def model(onnx: Any, node: SimpleNamespace) -> Any:
    """Of this one node, every output with its name."""
    helper = onnx.helper
    outputs = OUTPUTS[: 3 if node.op == "LSTM" else 2]
    names = [name if name in node.inputs else "" for name in NAMES]
    names = names[: max(i for i, name in enumerate(names) if name) + 1]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in node.inputs.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(node.inputs["X"].dtype)
    results = [helper.make_tensor_value_info(name, kind, [None] * (4 if name == "Y" else 3)) for name in outputs]
    made = helper.make_node(node.op, names, outputs, **node.attributes)
    graph = helper.make_graph([made], node.op, inputs, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def cast(node: SimpleNamespace, dtype: Any) -> SimpleNamespace:
    inputs = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in node.inputs.items()}
    return SimpleNamespace(op=node.op, inputs=inputs, attributes=node.attributes)


def swapped(node: SimpleNamespace) -> SimpleNamespace:
    """The same with layout=1."""
    inputs = dict(node.inputs)
    for name in {"X", "initial_h", "initial_c"} & inputs.keys():
        inputs[name] = np.ascontiguousarray(inputs[name].swapaxes(0, 1))
    return SimpleNamespace(op=node.op, inputs=inputs, attributes=node.attributes | {"layout": 1})


def by_fastrnn(onnx: Any, ours: Any, node: SimpleNamespace) -> Arrays:
    return dict(zip(OUTPUTS, ours.run_model(model(onnx, node), list(node.inputs.values())), strict=False))


def by_runtime(onnx: Any, runtime: Any, node: SimpleNamespace) -> Arrays:
    session = runtime.InferenceSession(model(onnx, node).SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(None, node.inputs), strict=False))


def by_evaluator(onnx: Any, reference: Any, node: SimpleNamespace) -> Arrays:
    return dict(zip(OUTPUTS, reference.ReferenceEvaluator(model(onnx, node)).run(None, node.inputs), strict=False))


@pytest.fixture(scope="module")
def node_suite(oracle: Callable[[str], Any], ours: Any) -> list[unittest.TestCase]:
    """The tests of the onnx package for RNN, GRU and LSTM nodes on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators' tests overflow while they are made
        suite = oracle("onnx.backend.test").BackendTest(ours.Backend, __name__)
    for name in ("simple_rnn", "rnn", "gru", "lstm"):
        suite.include(f"^test_{name}_.*_cpu$")
    case = suite.test_cases["OnnxBackendNodeModelTest"]
    skipped = "__unittest_skip__"
    names = unittest.TestLoader().getTestCaseNames(case)
    return [case(name) for name in names if not hasattr(getattr(case, name), skipped)]


def test_node_suite(node_suite: list[unittest.TestCase], native: str) -> None:
    """Six of each operator."""
    result = unittest.TestSuite(node_suite).run(unittest.TestResult())
    assert result.wasSuccessful(), (result.failures + result.errors)[0]
    assert not result.skipped
    ran = [test.id().rpartition(".")[2] for test in node_suite]
    counts = [len([name for name in ran if f"{op}_" in name]) for op in ("rnn", "gru", "lstm")]
    assert result.testsRun == sum(counts)
    assert min(counts) >= 6


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("seed", range(30))
def test_runtime(seed: int, op: str, onnx: Any, runtime: Any, ours: Any) -> None:
    """Every option but layout=1; in float32, and its activations are approximations."""
    rng = np.random.default_rng(seed)
    node = cast(random_node(op, rng, **random_attributes(op, rng)), np.float32)
    node.attributes["hidden_size"] = node.inputs["R"].shape[2]  # the runtime infers none
    assert_close(by_fastrnn(onnx, ours, node), by_runtime(onnx, runtime, node), 2e-6)


@st.composite
def nodes(draw: Any) -> SimpleNamespace:
    """Any sizes, inputs and attributes that the runtime knows; float32."""
    op, direction = draw(st.sampled_from(sorted(GATES))), draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    T, B, I = draw(st.integers(1, 8)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    H = draw(st.sampled_from([1, 3, 8, 17]))
    D, G = 1 + (direction == "bidirectional"), GATES[op]
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": H}
    attributes |= {"linear_before_reset": draw(st.integers(0, 1))} if op == "GRU" else {}
    attributes |= {"input_forget": draw(st.sampled_from([0, 0, 0, 1]))} if op == "LSTM" else {}
    if op == "RNN":
        attributes["activations"] = draw(st.lists(st.sampled_from(["Tanh", "Relu", "Sigmoid"]), min_size=D, max_size=D))
    shapes = {"B": (D, 2 * G * H), "initial_h": (D, B, H)}
    shapes |= {"initial_c": (D, B, H), "P": (D, 3 * H)} if op == "LSTM" else {}
    present = {name: shape for name, shape in shapes.items() if draw(st.booleans())}
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    inputs = {"X": rng.standard_normal((T, B, I)), "W": rng.uniform(-1, 1, (D, G * H, I)) / np.sqrt(I)}
    inputs |= {"R": rng.uniform(-1, 1, (D, G * H, H)) / np.sqrt(H)}
    inputs |= {name: rng.uniform(-1, 1, shape) for name, shape in present.items()}
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
        inputs["sequence_lens"] = np.array(lengths, np.int32)
    inputs = {name: inputs[name] for name in NAMES if name in inputs}
    return cast(SimpleNamespace(op=op, inputs=inputs, attributes=attributes), np.float32)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(node=nodes())
def test_any_node(node: SimpleNamespace, onnx: Any, runtime: Any, ours: Any) -> None:
    """What it computes, and the same bits with layout=1."""
    got = by_fastrnn(onnx, ours, node)
    assert_close(got, by_runtime(onnx, runtime, node), 4e-6)
    turned = {"Y": (2, 0, 1, 3), "Y_h": (1, 0, 2), "Y_c": (1, 0, 2)}
    expected = {name: np.ascontiguousarray(a.transpose(turned[name])) for name, a in got.items()}
    again = by_fastrnn(onnx, ours, swapped(node))
    assert_same_bits({name: np.ascontiguousarray(a) for name, a in again.items()}, expected)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("seed", range(3))
def test_reference_evaluator(
    seed: int, direction: str, layout: int, op: str, onnx: Any, oracle: Callable[[str], Any], ours: Any
) -> None:
    rng = np.random.default_rng(seed)
    attributes = {"linear_before_reset": int(rng.integers(2))} if op == "GRU" else {}
    if op == "RNN" and seed == 1:
        D = 2 if direction == "bidirectional" else 1
        attributes = {"activations": ["Affine"] * D, "activation_alpha": [0.7] * D, "activation_beta": [0.1] * D}
    node = random_node(op, rng, direction=direction, **attributes)
    node.inputs.pop("sequence_lens", None)
    node = swapped(node) if layout else node
    assert_close(by_fastrnn(onnx, ours, node), by_evaluator(onnx, oracle("onnx.reference"), node))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("seed", range(10))
def test_layout(seed: int, op: str, onnx: Any, ours: Any) -> None:
    """With layout=1 the same bits, the first two axes swapped."""
    rng = np.random.default_rng(seed)
    node = random_node(op, rng, **random_attributes(op, rng))
    expected, got = by_fastrnn(onnx, ours, node), by_fastrnn(onnx, ours, swapped(node))
    expected = {
        name: np.ascontiguousarray(a.transpose(2, 0, 1, 3) if name == "Y" else a.swapaxes(0, 1))
        for name, a in expected.items()
    }
    assert_same_bits({name: np.ascontiguousarray(a) for name, a in got.items()}, expected)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("seed", range(5))
def test_the_loop_is_the_kernels(seed: int, op: str, onnx: Any, ours: Any, native: str) -> None:
    """A clip that clips nothing makes another cell."""
    rng = np.random.default_rng(seed)
    attributes = {"direction": "bidirectional"} | ({"linear_before_reset": seed % 2} if op == "GRU" else {})
    node = random_node(op, rng, **attributes)
    loop = SimpleNamespace(op=op, inputs=node.inputs, attributes=attributes | {"clip": 1e6})
    assert ours.runs_in_kernels(model(onnx, loop).graph.node[0])
    assert_close(by_fastrnn(onnx, ours, node), by_fastrnn(onnx, ours, loop))


def test_one_direction_in_the_loop(onnx: Any, runtime: Any, ours: Any) -> None:
    attributes = {"direction": "bidirectional", "activations": ["Relu", "Softsign"]}
    node = cast(random_node("RNN", np.random.default_rng(0), **attributes), np.float32)
    node.attributes["hidden_size"] = node.inputs["R"].shape[2]
    assert ours.runs_in_kernels(model(onnx, node).graph.node[0])
    assert_close(by_fastrnn(onnx, ours, node), by_runtime(onnx, runtime, node), 2e-6)


@pytest.fixture(params=["forward", "reverse", "bidirectional"])
def with_empty(request: Any) -> Callable[..., SimpleNamespace]:
    """A node of four sequences of at most T steps, with initial states; float32."""

    def made(op: str, T: int, lengths: list[int] | None, **attributes: Any) -> SimpleNamespace:
        rng, B, I, H = np.random.default_rng(len(op)), 4, 3, 5
        D, G = 1 + (request.param == "bidirectional"), GATES[op]
        inputs = {"X": rng.standard_normal((T, B, I)), "W": rng.standard_normal((D, G * H, I))}
        inputs |= {"R": rng.standard_normal((D, G * H, H)) / 3}
        inputs |= {} if lengths is None else {"sequence_lens": np.array(lengths, np.int32)}
        inputs |= {name: rng.uniform(0.1, 1, (D, B, H)) for name in ("initial_h", "initial_c")[: 1 + (op == "LSTM")]}
        attributes |= {"direction": request.param, "hidden_size": H}
        return cast(SimpleNamespace(op=op, inputs=inputs, attributes=attributes), np.float32)

    return made


@pytest.mark.parametrize("attributes", [{}, {"clip": 0.3}], ids=["plain", "clip"])
@pytest.mark.parametrize("lengths", [[0, 4, 2, 0], [3, 0, 4, 1], [0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("op", GATES)
def test_empty_sequences(
    op: str, lengths: list[int], attributes: dict[str, Any], with_empty: Any, onnx: Any, runtime: Any, ours: Any
) -> None:
    """As in ONNX Runtime their final states are 0, by every way to a node; what the caller gave stays as it was."""
    node = with_empty(op, 4, lengths, **attributes)
    given = {name: a.copy() for name, a in node.inputs.items()}
    got = by_fastrnn(onnx, ours, node)
    assert_same_bits(node.inputs, given)
    assert_close(got, by_runtime(onnx, runtime, node), 2e-6)
    for name in got.keys() - {"Y"}:
        assert (got[name].any(axis=(0, 2)) == (np.array(lengths) > 0)).all()
    for again in (by_node, by_session):
        assert_same_bits(again(onnx, ours, node), got)
    turned = by_session(onnx, ours, swapped(node))
    expected = {name: a.transpose(2, 0, 1, 3) if name == "Y" else a.swapaxes(0, 1) for name, a in got.items()}
    assert_same_bits(*({name: np.ascontiguousarray(a) for name, a in each.items()} for each in (turned, expected)))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("op", GATES)
def test_no_steps(op: str, layout: int, with_empty: Any, onnx: Any, ours: Any) -> None:
    """Without sequence_lens every sequence of an X of no steps is empty, at each call of a session.

    ONNX Runtime is no oracle here: a GRU aborts its process, and an LSTM's Y_c is memory that nothing has written.
    """
    node = with_empty(op, 0, None)
    node = swapped(node) if layout else node
    session = ours.Session(model(onnx, node), rest="reference")
    for _ in range(4):
        y, *states = session.run(None, node.inputs)
        assert y.size == 0
        for s in states:
            assert s.shape == node.inputs["initial_h"].shape
            assert not s.any()


def by_node(onnx: Any, ours: Any, node: SimpleNamespace) -> Arrays:
    made = model(onnx, node).graph.node[0]
    return dict(zip(OUTPUTS, ours.run_node(made, [node.inputs[name] for name in made.input if name]), strict=False))


def by_session(onnx: Any, ours: Any, node: SimpleNamespace) -> Arrays:
    return dict(zip(OUTPUTS, ours.Session(model(onnx, node), rest="reference").run(None, node.inputs), strict=False))


@pytest.mark.parametrize(
    ("op", "attributes", "kernels"),
    [
        ("RNN", {}, True),
        ("RNN", {"activations": ["relu"]}, True),
        ("RNN", {"activations": ["Relu", "Tanh"]}, True),  # a pair, as ONNX's default is; the first counts
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
    """All of them, where there is a compiler for what is not compiled in."""
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
def test_attributes_that_mean_nothing(attributes: dict[str, Any], message: str, onnx: Any, ours: Any) -> None:
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
def test_inputs_that_do_not_fit(change: Arrays, error: Any, message: str, onnx: Any, ours: Any) -> None:
    inputs = {"X": np.ones((2, 3, 4)), "W": np.ones((1, 15, 4)), "R": np.ones((1, 15, 5))} | change
    names = [name if name in inputs else "" for name in NAMES[:6]]
    node = onnx.helper.make_node("GRU", names, ["Y"], hidden_size=5)
    with pytest.raises(error, match=message):
        ours.run_node(node, [inputs.get(name) for name in names])


def test_run_node(onnx: Any, ours: Any) -> None:
    """By position with None for what is absent, or without it; outputs that have no name are left out."""
    rng = np.random.default_rng(0)
    X, W, R, h = (rng.standard_normal(shape) for shape in ((4, 2, 3), (1, 5, 3), (1, 5, 5), (1, 2, 5)))
    node = onnx.helper.make_node("RNN", ["X", "W", "R", "", "", "h"], ["", "Y_h"])
    (expected,) = ours.run_node(node, [X, W, R, None, None, h], opset_version=14)
    (got,) = ours.run_node(node, [X, W, R, h])
    assert_same_bits({"Y_h": got}, {"Y_h": expected})
    with pytest.raises(ValueError, match="inputs: expected 4, X, W, R, initial_h, got 3"):
        ours.run_node(node, [X, W, R])


def test_prepared(onnx: Any, ours: Any) -> None:
    """Inputs in their order, or by name."""
    node = random_node("LSTM", np.random.default_rng(2))
    prepared = ours.prepare(model(onnx, node), "CPU:0")
    inputs = list(node.inputs.values())
    for got, expected in zip(prepared.run(node.inputs), prepared.run(inputs), strict=True):
        assert np.array_equal(got, expected)
    with pytest.raises(ValueError, match=f"inputs: expected {len(inputs)}, X, W, R"):
        prepared.run(inputs[:-1])
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        prepared.run(inputs, speed=2)


def test_devices(onnx: Any, ours: Any) -> None:
    whole = model(onnx, random_node("RNN", np.random.default_rng(0)))
    assert ours.supports_device("CPU")
    assert not ours.supports_device("CUDA:1")
    assert ours.is_compatible(whole)
    assert not ours.is_compatible(whole, "CUDA")
    with pytest.raises(NotImplementedError, match="device: expected CPU, got CUDA"):
        ours.prepare(whole, "CUDA")


def test_models_of_other_nodes(onnx: Any, ours: Any) -> None:
    whole = model(onnx, random_node("RNN", np.random.default_rng(0)))
    whole.graph.node.append(onnx.helper.make_node("Relu", ["Y"], ["positive"]))
    assert not ours.is_compatible(whole)
    with pytest.raises(NotImplementedError, match=r"got Relu; fastrnn\.onnx\.Session runs such models"):
        ours.prepare(whole)


def test_half_precision(onnx: Any, ours: Any) -> None:
    whole = model(onnx, cast(random_node("GRU", np.random.default_rng(0)), np.float16))
    assert not ours.is_compatible(whole)
    assert ours.Session(whole, rest="reference").nodes == [("Y", "GRU", "reference", "X: float16")]


def test_weights_are_packed_once(onnx: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are constant; an input has no such claim."""
    packed = []
    backend = backends.current()
    pack = backend.pack
    monkeypatch.setattr(backend, "pack", lambda call, *rest: packed.append(call) or pack(call, *rest))
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


@pytest.mark.parametrize("module", ["onnx", "onnx.backend", "onnx.rest", "onnx.session"])
def test_docstrings(module: str, ours: Any) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"fastrnn.{module}"))
    assert (attempted > 0, failed) == (True, 0)
