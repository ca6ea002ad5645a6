"""`fastrnn.onnx` on ONNX Runtime's own test cases with their values: clips, activations, peepholes, lengths,
directions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.onnx_nodes import GATES, by_fastrnn, by_runtime, model
from support.problems import Arrays
from support.tolerance import assert_close

CASES = json.loads((Path(__file__).parent / "data" / "onnxruntime_rnn.json").read_text())["cases"]

#: literals have at least five digits
BOUND = 5e-5


def read(case: dict[str, Any]) -> tuple[SimpleNamespace, Arrays]:
    """Return a case of the file as a node, and its expected outputs."""
    T, B, I, H = case["sizes"]
    D = 2 if case["attributes"].get("direction") == "bidirectional" else 1
    G = GATES[case["op"]]
    states = dict.fromkeys(("initial_h", "initial_c", "Y_h", "Y_c"), (D, B, H))
    shapes = states | {"X": (T, B, I), "W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
    shapes |= {"Y": (T, D, B, H)}
    inputs = {}
    for name, values in case["inputs"].items():
        if name == "sequence_lens":
            inputs[name] = np.array(values, np.int32)
        elif isinstance(values, dict):
            gates = np.reshape(values["diagonal"], (G, H))
            inputs[name] = np.tile(np.concatenate([np.diag(gate) for gate in gates]), (D, 1, 1))
        else:
            inputs[name] = np.resize(values, shapes[name])
    inputs = {name: a if name == "sequence_lens" else a.astype(np.float32) for name, a in inputs.items()}
    attributes = case["attributes"] | {"hidden_size": H}
    outputs = {name: np.array(values, float).reshape(shapes[name]) for name, values in case["outputs"].items()}
    return SimpleNamespace(op=case["op"], inputs=inputs, attributes=attributes), outputs


def assert_values(got: Arrays, expected: Arrays) -> None:
    for name, values in expected.items():
        assert got[name].shape == values.shape
        known = np.isfinite(values)
        assert_close({name: got[name][known]}, {name: values[known]}, BOUND)
        assert not got[name][values == 0].any()  # past a sequence's length


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['op']} {case['name']}")
def test_values(case: dict[str, Any], onnx: Any, ours: Any, native: str) -> None:
    node, expected = read(case)
    [placed] = ours.Session(model(onnx, node), rest="reference").nodes
    assert (placed.op, placed.where) == (case["op"], "kernels")
    assert_values(by_fastrnn(onnx, ours, node), expected)


def test_the_values_are_those_of_the_runtime(onnx: Any, oracle: Callable[[str], Any]) -> None:
    """This checks that no number was mistyped."""
    runtime = oracle("onnxruntime")
    for case in CASES:
        node, expected = read(case)
        assert_values(by_runtime(onnx, runtime, node), expected)
