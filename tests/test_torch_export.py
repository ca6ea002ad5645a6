"""`torch.onnx.export` of models with fastrnn's layers, with both of PyTorch's exporters, run on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # from the exporters themselves

EXPORTERS = [False, True]
MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "lstm, no bias": ("LSTM", {"bias": False}),
    "gru": ("GRU", {"num_layers": 2, "batch_first": True}),
    "gru, both ways": ("GRU", {"bidirectional": True}),
}


class Model(nn.Module):
    """Returns every output; the layer gets initial states, or none."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any, *states: Any) -> Any:
        state = None if not states else states if isinstance(self.rnn, nn.LSTM) else states[0]
        y, final = self.rnn(x, state)
        return y, *(final if isinstance(final, tuple) else (final,))


def exported(model: Any, given: tuple[Any, ...], path: Path, dynamo: bool, dynamic: bool = True) -> Any:
    """Return a session of ONNX Runtime, and the operators in the file."""
    if dynamo:
        pytest.importorskip("onnxscript")
    names = ["x", "h0", "c0"][: len(given)]
    axes: dict[str, Any] = {}
    if dynamic and dynamo:
        some = torch.export.Dim.DYNAMIC
        states = {"states": tuple({1: some} for _ in given[1:])} if given[1:] else {}
        axes = {"dynamic_shapes": {"x": {0: some, 1: some}} | states}
    elif dynamic:
        axes = {"dynamic_axes": {"x": [0, 1]} | {name: [1] for name in names[1:]}}
    torch.onnx.export(model, given, path, dynamo=dynamo, verbose=False, input_names=names, **axes)
    session = runtime.InferenceSession(path)
    return session, [node.op_type for node in onnx.load(path).graph.node]


def assert_same(session: Any, model: Any, given: tuple[Any, ...]) -> None:
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, dict(zip(names, [a.numpy() for a in given], strict=True)))
    with torch.no_grad():
        expected = model(*given)
    for got, a in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("what", MODULES)
def test_export(what: str, states: bool, dynamo: bool, tmp_path: Path) -> None:
    """One node for each layer; other numbers of steps and sequences than in the export."""
    kind, options = MODULES[what]
    torch.manual_seed(0)
    model = Model(getattr(nn, kind)(3, 5, **options)).eval()
    fastrnn.torch.replace(model)
    calls = model.rnn.num_layers * (1 + model.rnn.bidirectional)

    def given(T: int, B: int) -> tuple[Any, ...]:
        x = torch.randn(*((B, T) if model.rnn.batch_first else (T, B)), 3)
        return x, *[torch.randn(calls, B, 5) for _ in ("hc" if kind == "LSTM" else "h") if states]

    session, operators = exported(model, given(4, 2), tmp_path / "model.onnx", dynamo)
    assert operators.count(kind) == model.rnn.num_layers
    assert not {"Loop", "Scan", "MatMul", "Gemm"} & set(operators)
    for T, B in ((4, 2), (9, 3)):
        assert_same(session, model, given(T, B))


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_export_of_an_rnn(nonlinearity: str, dynamo: bool, tmp_path: Path) -> None:
    model = Model(fastrnn.torch.RNN(3, 5, 2, nonlinearity, bidirectional=True)).eval()
    session, operators = exported(model, (torch.randn(4, 2, 3),), tmp_path / "model.onnx", dynamo)
    assert operators.count("RNN") == 2
    assert_same(session, model, (torch.randn(9, 3, 3),))


BEYOND: dict[str, Any] = {
    "peephole": lambda: fastrnn.torch.LSTM(3, 5, peephole=True, bidirectional=True),
    "before": lambda: fastrnn.torch.GRU(3, 5, 2, reset_after=False),
    "sigmoid": lambda: fastrnn.torch.RNN(3, 5, nonlinearity="sigmoid", bidirectional=True),
    "identity": lambda: fastrnn.torch.RNN(3, 5, nonlinearity="identity"),
}


@pytest.mark.parametrize("what", BEYOND)
def test_export_of_cells_that_torch_lacks(what: str, tmp_path: Path) -> None:
    model = Model(BEYOND[what]()).eval()
    session, operators = exported(model, (torch.randn(4, 2, 3),), tmp_path / "model.onnx", dynamo=True)
    assert operators.count(type(model.rnn).__name__) == model.rnn.num_layers
    assert_same(session, model, (torch.randn(9, 3, 3),))


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_export_of_one_sequence(dynamo: bool, tmp_path: Path) -> None:
    model = Model(fastrnn.torch.GRU(3, 5)).eval()
    session, operators = exported(model, (torch.randn(4, 3),), tmp_path / "model.onnx", dynamo, dynamic=False)
    assert operators.count("GRU") == 1
    assert_same(session, model, (torch.randn(4, 3),))


class Packed(nn.Module):
    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any, lengths: Any) -> Any:
        y, h = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y)[0], h


def test_export_of_packed_sequences(tmp_path: Path) -> None:
    model, x = Packed(fastrnn.torch.GRU(3, 5)).eval(), torch.randn(7, 2, 3)
    session, operators = exported(model, (x, torch.tensor([4, 7])), tmp_path / "m.onnx", dynamo=False, dynamic=False)
    assert operators.count("GRU") == 1
    assert_same(session, model, (torch.randn(7, 2, 3), torch.tensor([7, 3])))


REFUSED: dict[str, tuple[Any, str]] = {
    "peephole": (lambda: fastrnn.torch.LSTM(3, 5, peephole=True), "^cell: expected one of lstm, .* got lstm_peephole"),
    "before": (lambda: fastrnn.torch.GRU(3, 5, reset_after=False), "^cell: .* got gru_before"),
    "projected": (lambda: fastrnn.torch.LSTM(3, 5, proj_size=2), "^cell: .* got lstm, with proj_size"),
    "dropout": (lambda: fastrnn.torch.GRU(3, 5, 2, dropout=0.5), "^dropout: expected none in an export to ONNX"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_unsupported_options_raise_an_error(what: str, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    training = torch.onnx.TrainingMode.TRAINING
    options: dict[str, Any] = {"dynamo": False, "training": training, "verbose": False}
    with pytest.raises(ValueError, match=message):
        torch.onnx.export(Model(make()), (torch.randn(4, 2, 3),), tmp_path / "m.onnx", **options)
