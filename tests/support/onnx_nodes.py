"""Random ONNX nodes, as models of one node, run by fastrnn and by ONNX Runtime."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from support import conversions
from support.problems import Arrays

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
NAMES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")
#: name -> number of alpha and beta parameters
ACTIVATIONS = {
    **dict.fromkeys(("Tanh", "Relu", "Sigmoid", "Softsign", "Softplus"), 0),
    **dict.fromkeys(("LeakyRelu", "ThresholdedRelu", "Elu"), 1),
    **dict.fromkeys(("Affine", "ScaledTanh", "HardSigmoid"), 2),
}


def random_node(op: str, rng: np.random.Generator, **attributes: Any) -> SimpleNamespace:
    """Return a node's `op`, `inputs` and `attributes`; B, initial states, lengths and peepholes are optional."""
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


def model(onnx: Any, node: SimpleNamespace) -> Any:
    """Return a model of this node, with names for all outputs."""
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


def by_fastrnn(onnx: Any, ours: Any, node: SimpleNamespace) -> Arrays:
    return dict(zip(OUTPUTS, ours.run_model(model(onnx, node), list(node.inputs.values())), strict=False))


def by_runtime(onnx: Any, runtime: Any, node: SimpleNamespace) -> Arrays:
    return conversions.by_runtime(runtime, model(onnx, node), node.inputs)
