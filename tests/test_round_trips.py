"""Whole models to ONNX, PyTorch and Keras and back: the same predictions; and foreign models read whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, assert_predicts, drawn_model, read_by
from support.tolerance import FLOAT32, assert_close, assert_same_bits

import fastrnn
from fastrnn.convert.onnx_nodes import OPSETS

DTYPES = (np.float32, np.float64)


@pytest.mark.parametrize("seed", MANY)
def test_onnx(seed: int, onnx: Any, tmp_path: Path) -> None:
    """Through files of the lowest opset, and of the highest that onnx supports: bit for bit."""
    model = drawn_model(seed, dtype=DTYPES[seed % 2])
    x = read_by(model, seed)
    expected = {"y": model.predict(x)}
    for opset in (OPSETS[0], min(OPSETS[-1], onnx.defs.onnx_opset_version())):
        fastrnn.to_onnx(model, tmp_path / "model.onnx", opset=opset)
        back = fastrnn.from_onnx(tmp_path / "model.onnx", whole=True)
        assert isinstance(back, fastrnn.Sequential)
        assert_same_bits({"y": back.predict(x)}, expected)


@pytest.mark.parametrize("seed", MANY)
def test_torch(seed: int, torch: Any) -> None:
    model = drawn_model(seed, ("lstm", "gru_after", "rnn_tanh", "rnn_relu"), DTYPES[seed % 2])
    x = read_by(model, seed)
    assert_same_bits({"y": fastrnn.from_torch(fastrnn.to_torch(model)).predict(x)}, {"y": model.predict(x)})


@pytest.mark.filterwarnings("ignore")  # Keras and its backends issue some on import
@pytest.mark.parametrize("seed", range(12))
def test_keras(seed: int, keras: Any, tmp_path: Path) -> None:
    """Keras has the sum of two biases; in memory, and through its file."""
    cells = ("lstm", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity")
    model = drawn_model(seed, cells)
    x = read_by(model, seed)
    theirs = fastrnn.to_keras(model)
    theirs.save(tmp_path / "model.keras")
    for back in (fastrnn.from_keras(theirs), fastrnn.from_keras(tmp_path / "model.keras")):
        assert_predicts(back.predict(x), model, x)


@pytest.mark.parametrize("chosen", ["last", "every", "final"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.filterwarnings("ignore")  # many, from the exporter
def test_a_model_of_pytorch(kind: str, chosen: str, torch: Any, onnx: Any, tmp_path: Path) -> None:
    """An embedding, a recurrent layer, and a product with every step, the last step, or the final state."""
    torch.manual_seed(0)

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = torch.nn.Embedding(7, 3), torch.nn.Linear(4, 2)
            self.recurrent = getattr(torch.nn, kind)(3, 4, batch_first=True)

        def forward(self, x: Any) -> Any:
            y, state = self.recurrent(self.table(x))
            h = state[0] if isinstance(state, tuple) else state
            chosen_step = {"last": lambda: y[:, -1], "every": lambda: torch.relu(y), "final": lambda: h.squeeze(0)}
            return torch.softmax(self.head(chosen_step[chosen]()), -1)

    network, x = Network().eval(), np.random.default_rng(0).integers(0, 7, (4, 6))
    axes = {"x": {0: "B", 1: "T"}}
    options = {"dynamo": False, "input_names": ["x"], "dynamic_axes": axes}
    torch.onnx.export(network, (torch.from_numpy(x),), tmp_path / "model.onnx", **options)
    model = fastrnn.from_onnx(tmp_path / "model.onnx", whole=True)
    kinds = ["Embedding", kind, *(["Activation"] if chosen == "every" else []), "Dense"]
    assert [type(layer).__name__ for layer in model.layers] == kinds
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    assert_close({"y": model.predict(x)}, {"y": expected}, FLOAT32)


def changed(onnx: Any, change: Callable[[Any, Any], None], **options: Any) -> Any:
    layers = [fastrnn.LSTM(3, 4, rng=0), fastrnn.Dense(4, 2, "softmax", rng=1)]
    model = fastrnn.to_onnx(fastrnn.Sequential(layers), **options)
    change(model.graph, onnx.helper.make_node)
    return model


def node_of(graph: Any, kind: str) -> Any:
    return next(node for node in graph.node if node.op_type == kind)


def read(graph: Any, kind: str, i: int, name: str) -> None:
    """Let a node read another value."""
    node_of(graph, kind).input[i] = name


def axis(graph: Any, value: int) -> None:
    next(a for a in node_of(graph, "Softmax").attribute if a.name == "axis").i = value


def appended(graph: Any, node: Any) -> None:
    graph.node.append(node)
    graph.output[0].name = node.output[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, n: appended(g, n("Sqrt", ["y"], ["z"])), "Sqrt node 'z': not a layer .*expected one of Transpose"),
        (lambda g, n: appended(g, n("Add", ["y", "x"], ["z"])), "Add node 'z': .* reads 2 computed values"),
        (lambda g, n: appended(g, n("Add", ["y", "1.bias"], ["z"])), "Add node 'z': .* directly after a product"),
        (lambda g, n: appended(g, n("Transpose", ["y"], ["z"], perm=[0, 2, 1])), "a swap of the time and batch axes"),
        (lambda g, n: axis(g, 1), "Softmax node .*: expected the last axis, got 1|Softmax .* last axis"),
        (lambda g, n: g.output.append(g.output[0]), "a model with one output, got y, y; whole=False reads"),
        (lambda g, n: setattr(g.output[0], "name", "q"), "whole: no node computes 'q', or it depends on itself"),
        (lambda g, n: read(g, "LSTM", 5, "0.y0"), "LSTM node '0.layer0': .* initial_h is comp"),
        (lambda g, n: node_of(g, "LSTM").output.__setitem__(0, "q"), "whole: no node computes '0.Y0'"),
        (lambda g, n: read(g, "LSTM", 1, ""), "LSTM node '0.layer0': node: expected inputs X, W, R and of B, "),
        (lambda g, n: g.node.remove(node_of(g, "Squeeze")), "whole: no node computes '0.y0'"),
        (lambda g, n: read(g, "Squeeze", 1, "axis0"), "join its directions are not recognised"),
    ],
)
def test_graphs_that_are_not_a_chain(change: Any, message: str, onnx: Any) -> None:
    constant = onnx.numpy_helper.from_array(np.array([0]), "axis0")

    def whole(graph: Any, node: Any) -> None:
        graph.initializer.append(constant)
        change(graph, node)

    with pytest.raises(ValueError, match=message):
        fastrnn.from_onnx(changed(onnx, whole), whole=True)


def test_names_that_are_not_text(onnx: Any) -> None:
    """Protocol buffers return such names as bytes."""
    model = changed(onnx, lambda g, node: g.output.append(g.output[0]))
    with pytest.raises(ValueError, match=r"got b'\\xff', b'\\xff'"):
        fastrnn.from_onnx(model.SerializeToString().replace(b"\x01y", b"\x01\xff"), whole=True)


def test_from_onnx_refuses(onnx: Any) -> None:
    model = changed(onnx, lambda g, node: None)
    with pytest.raises(ValueError, match="node: expected None with whole=True, got 'a'"):
        fastrnn.from_onnx(model, "a", whole=True)
    with pytest.raises(TypeError, match="whole: expected"):
        fastrnn.from_onnx(model, whole=1)
    with pytest.raises(ValueError, match=r"Where node .* reads 2 computed values"):
        fastrnn.from_onnx(changed(onnx, lambda g, node: None, lengths=True), whole=True)
    assert repr(fastrnn.from_onnx(model)) == "LSTM(3, 4, batch_first=True, dtype=float32) [lstm]"
