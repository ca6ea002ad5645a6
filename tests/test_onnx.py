"""ONNX's reference evaluator as an independent oracle, especially for peepholes and both GRUs; and ONNX Runtime, in
float32, for options that the evaluator ignores: lengths and other activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.problems import PUBLIC, Arrays, Problem, forward, make
from support.tolerance import FLOAT32, assert_close

#: positions of our gates (r z n; i f g o) and peepholes (i f o) in ONNX's order (z r h; i o f c; i o f)
GATES = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}
PEEPHOLES = [0, 2, 1]
ACTIVATIONS = {"rnn_tanh": "Tanh", "rnn_relu": "Relu", "rnn_sigmoid": "Sigmoid"}


def reordered(a: np.ndarray, order: list[int]) -> np.ndarray:
    """Return the array with its gates, stacked along the first axis, in another order, and ONNX's first axis."""
    return np.concatenate([np.split(a, len(order))[k] for k in order])[None]


def by_onnx(onnx: Any, problem: Problem, evaluate: Callable[[Any, Arrays], list[np.ndarray]]) -> Arrays:
    """Return y, h_n, c_n of a model of one node: X (T, B, I), Y (T, directions, B, H), states (directions, B, H)."""
    family, given = problem.family, problem.inputs
    order = GATES[family]
    inputs = {"X": given["x"], "W": reordered(given["W"], order), "R": reordered(given["U"], order)}
    inputs["B"] = np.hstack([reordered(given[name], order) for name in ("b", "b_rec")])
    inputs["sequence_lens"] = given["lengths"].astype(np.int32) if "lengths" in given else None
    inputs["initial_h"] = given["h0"][None]
    if family == "lstm":
        inputs["initial_c"] = given["c0"][None]
    if "p" in given:
        inputs["P"] = reordered(given["p"], PEEPHOLES)
    attributes = {"direction": "reverse"} if problem.options.get("reverse") else {}
    if family == "gru":
        attributes["linear_before_reset"] = int(PUBLIC[problem.cell][2]["reset_after"])
    if family == "rnn":
        attributes["activations"] = [ACTIVATIONS[problem.cell]]

    names = [name if a is not None else "" for name, a in inputs.items()]
    inputs = {name: a for name, a in inputs.items() if a is not None}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if family == "lstm" else 2]
    helper, type_of = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    H = given["U"].shape[1]
    node = helper.make_node(family.upper(), names, outputs, hidden_size=H, **attributes)
    graph = helper.make_graph(
        [node],
        problem.cell,
        [helper.make_tensor_value_info(name, type_of(a.dtype), a.shape) for name, a in inputs.items()],
        [helper.make_tensor_value_info(name, type_of(given["x"].dtype), None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    y, *final = evaluate(model, inputs)
    return {"y": y[:, 0]} | dict(zip(("h_n", "c_n"), (s[0] for s in final), strict=False))


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "lstm_peephole", "gru_after", "gru_before"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [(13, 7, 5, 33), (4, 33, 17, 3), (1, 1, 1, 1)])
def test_reference_evaluator(
    sizes: tuple[int, int, int, int], reverse: bool, cell: str, oracle: Callable[[str], Any], implementation: str
) -> None:
    onnx, reference = oracle("onnx"), oracle("onnx.reference")

    def evaluate(model: Any, inputs: Arrays) -> list[np.ndarray]:
        return reference.ReferenceEvaluator(model).run(None, inputs)

    problem = make(cell, sizes, seed=6, reverse=reverse)
    assert_close(forward(problem), by_onnx(onnx, problem, evaluate))


@pytest.mark.parametrize("cell", [*ACTIVATIONS, "lstm", "lstm_peephole", "gru_after", "gru_before"])
@pytest.mark.parametrize("reverse", [False, True])
def test_runtime(reverse: bool, cell: str, oracle: Callable[[str], Any], implementation: str) -> None:
    """With lengths; in float32, and with the runtime's approximate activations."""
    onnx, onnxruntime = oracle("onnx"), oracle("onnxruntime")

    def evaluate(model: Any, inputs: Arrays) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, inputs)

    problem = make(cell, (13, 7, 5, 33), dtype=np.float32, seed=7, reverse=reverse, lengths=True)
    problem = problem.changed(lengths=np.maximum(problem.inputs["lengths"], 1))
    assert_close(forward(problem), by_onnx(onnx, problem, evaluate), FLOAT32)
