"""`fastrnn.onnx.Session` step by step, in several threads, too: the bits of the whole sequence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.onnx_models import agree, model, sequences, weights
from support.problems import Arrays
from support.tolerance import assert_same_bits

pytestmark = pytest.mark.usefixtures("runtime")


def streamed(onnx: Any, op: str, layout: int, direction: str = "forward") -> Any:
    """Return a model run step by step: inputs x and the state, outputs Y and the state, constant weights."""
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
def test_single_steps_have_the_bits_of_the_sequence(op: str, layout: int, onnx: Any, ours: Any, native: str) -> None:
    """For one batch after another; the given states do not change."""
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
    """It is an ordinary step; without states it starts from zeros."""
    whole = streamed(onnx, "LSTM", 0, "reverse")
    del whole.graph.input[1:], whole.graph.node[0].input[5:]
    session, x = ours.Session(whole), sequences(1, 2, 4)
    agree(session, whole, {"x": x})
    first, again = ({str(i): a for i, a in enumerate(session.run(None, {"x": x}))} for _ in range(2))
    assert_same_bits(again, first)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("T", [1, 6])
def test_a_node_is_set_up_once(T: int, layout: int, onnx: Any, native: str) -> None:
    """From the third run with inputs of one shape: the same bits, with states and without."""
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
def test_one_step_with_empty_sequences(op: str, onnx: Any, ours: Any) -> None:
    """As with two steps, of which no sequence has the second."""
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
