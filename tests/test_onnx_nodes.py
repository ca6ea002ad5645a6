"""ONNX nodes in `fastrnn.onnx`, compared with the onnx package's node tests, its evaluator and ONNX Runtime.

The evaluator ignores lengths, clip and most activations, and the runtime lacks float64 and, for some nodes, layout=1.
Together they cover every option; cases that neither supports are compared with equivalent ones.
"""

from __future__ import annotations

import unittest
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from support.onnx_nodes import ACTIVATIONS, GATES, NAMES, OUTPUTS, by_fastrnn, by_runtime, cast, model, random_node
from support.problems import Arrays
from support.tolerance import FLOAT32, assert_close, assert_same_bits


def random_attributes(op: str, rng: np.random.Generator) -> dict[str, Any]:
    """Return random direction, activations with alpha and beta, clip, linear_before_reset, input_forget."""
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


def swapped(node: SimpleNamespace) -> SimpleNamespace:
    """Return the same node with layout=1."""
    inputs = dict(node.inputs)
    for name in {"X", "initial_h", "initial_c"} & inputs.keys():
        inputs[name] = np.ascontiguousarray(inputs[name].swapaxes(0, 1))
    return SimpleNamespace(op=node.op, inputs=inputs, attributes=node.attributes | {"layout": 1})


def by_sequence(results: Arrays) -> Arrays:
    """The results of a node as one with layout=1 has them."""
    return {name: a.transpose(2, 0, 1, 3) if name == "Y" else a.swapaxes(0, 1) for name, a in results.items()}


def by_evaluator(onnx: Any, reference: Any, node: SimpleNamespace) -> Arrays:
    return dict(zip(OUTPUTS, reference.ReferenceEvaluator(model(onnx, node)).run(None, node.inputs), strict=False))


@pytest.fixture(scope="module")
def node_suite(oracle: Callable[[str], Any], ours: Any) -> list[unittest.TestCase]:
    """Return the onnx package's tests of RNN, GRU and LSTM nodes on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tests of other operators overflow while they are created
        suite = oracle("onnx.backend.test").BackendTest(ours.Backend, __name__)
    for name in ("simple_rnn", "rnn", "gru", "lstm"):
        suite.include(f"^test_{name}_.*_cpu$")
    case = suite.test_cases["OnnxBackendNodeModelTest"]
    skipped = "__unittest_skip__"
    names = unittest.TestLoader().getTestCaseNames(case)
    return [case(name) for name in names if not hasattr(getattr(case, name), skipped)]


def test_the_node_tests_of_the_onnx_package(node_suite: list[unittest.TestCase], native: str) -> None:
    """There are six for each operator."""
    result = unittest.TestSuite(node_suite).run(unittest.TestResult())
    assert result.wasSuccessful(), (result.failures + result.errors)[0]
    assert not result.skipped
    ran = [test.id().rpartition(".")[2] for test in node_suite]
    counts = [len([name for name in ran if f"{op}_" in name]) for op in ("rnn", "gru", "lstm")]
    assert result.testsRun == sum(counts)
    assert min(counts) >= 6


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("seed", range(30))
def test_any_options_are_those_of_onnx_runtime(seed: int, op: str, onnx: Any, runtime: Any, ours: Any) -> None:
    """Every option except layout=1; in float32, and with the runtime's approximate activations."""
    rng = np.random.default_rng(seed)
    node = cast(random_node(op, rng, **random_attributes(op, rng)), np.float32)
    node.attributes["hidden_size"] = node.inputs["R"].shape[2]  # the runtime does not infer it
    assert_close(by_fastrnn(onnx, ours, node), by_runtime(onnx, runtime, node), FLOAT32)


@st.composite
def nodes(draw: Any) -> SimpleNamespace:
    """Draw any sizes, inputs and attributes that the runtime supports; float32."""
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
    """Its results, and the same bits with layout=1."""
    got = by_fastrnn(onnx, ours, node)
    assert_close(got, by_runtime(onnx, runtime, node), 4e-6)
    assert_same_bits(by_fastrnn(onnx, ours, swapped(node)), by_sequence(got))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("seed", range(3))
def test_float64_is_that_of_the_reference_evaluator(
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
def test_layout_1_has_the_same_bits(seed: int, op: str, onnx: Any, ours: Any) -> None:
    """With layout=1 the same bits, the first two axes swapped."""
    rng = np.random.default_rng(seed)
    node = random_node(op, rng, **random_attributes(op, rng))
    assert_same_bits(by_fastrnn(onnx, ours, swapped(node)), by_sequence(by_fastrnn(onnx, ours, node)))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("seed", range(5))
def test_equal_cells_agree(seed: int, op: str, onnx: Any, ours: Any, native: str) -> None:
    """A clip without effect makes another cell."""
    rng = np.random.default_rng(seed)
    attributes = {"direction": "bidirectional"} | ({"linear_before_reset": seed % 2} if op == "GRU" else {})
    node = random_node(op, rng, **attributes)
    loop = SimpleNamespace(op=op, inputs=node.inputs, attributes=attributes | {"clip": 1e6})
    assert ours.runs_in_kernels(model(onnx, loop).graph.node[0])
    assert_close(by_fastrnn(onnx, ours, node), by_fastrnn(onnx, ours, loop))


def test_each_direction_has_its_activations(onnx: Any, runtime: Any, ours: Any) -> None:
    attributes = {"direction": "bidirectional", "activations": ["Relu", "Softsign"]}
    node = cast(random_node("RNN", np.random.default_rng(0), **attributes), np.float32)
    node.attributes["hidden_size"] = node.inputs["R"].shape[2]
    assert ours.runs_in_kernels(model(onnx, node).graph.node[0])
    assert_close(by_fastrnn(onnx, ours, node), by_runtime(onnx, runtime, node), FLOAT32)


@pytest.fixture(params=["forward", "reverse", "bidirectional"])
def with_empty(request: Any) -> Callable[..., SimpleNamespace]:
    """Return a node of four sequences of at most T steps, with initial states; float32."""

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
def test_final_states_of_empty_sequences_are_0(
    op: str, lengths: list[int], attributes: dict[str, Any], with_empty: Any, onnx: Any, runtime: Any, ours: Any
) -> None:
    """As in ONNX Runtime, in every way to run a node; the caller's arrays do not change."""
    node = with_empty(op, 4, lengths, **attributes)
    given = {name: a.copy() for name, a in node.inputs.items()}
    got = by_fastrnn(onnx, ours, node)
    assert_same_bits(node.inputs, given)
    assert_close(got, by_runtime(onnx, runtime, node), FLOAT32)
    for name in got.keys() - {"Y"}:
        assert (got[name].any(axis=(0, 2)) == (np.array(lengths) > 0)).all()
    for again in (by_node, by_session):
        assert_same_bits(again(onnx, ours, node), got)
    assert_same_bits(by_session(onnx, ours, swapped(node)), by_sequence(got))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("op", GATES)
def test_no_steps_give_states_of_0(op: str, layout: int, with_empty: Any, onnx: Any, ours: Any) -> None:
    """Without sequence_lens, every sequence of an X without steps is empty, in each call of a session.

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
