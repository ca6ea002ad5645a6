"""Whole models to PyTorch and back: their results in float64, and every gradient."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, drawn_model, over_time, read_by
from support.tolerance import FLOAT32, assert_close, assert_same_bits

import fastrnn
from fastrnn import catalogue

CELLS = ("lstm", "gru_after", "rnn_tanh", "rnn_relu")

LENGTHS = np.array([6, 1, 3, 0])


def computed(torch: Any, module: Any, x: np.ndarray, lengths: Any = None) -> np.ndarray:
    with torch.no_grad():
        y = module.eval()(torch.from_numpy(x), None if lengths is None else torch.from_numpy(lengths))
    return np.asarray(y)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("seed", MANY)
def test_round_trip(seed: int, ragged: bool, torch: Any) -> None:
    model = drawn_model(seed, CELLS, np.float64)
    x, lengths = read_by(model, seed), LENGTHS if ragged else None
    module, expected = fastrnn.to_torch(model), {"y": model.predict(x, lengths=lengths)}
    assert_close({"y": computed(torch, module, x, lengths)}, expected)
    assert all(p.requires_grad for p in module.parameters())
    back = fastrnn.from_torch(module)
    assert isinstance(back, fastrnn.Sequential)
    assert_close({"y": back.predict(x, lengths=lengths)}, expected)
    again = fastrnn.to_torch(back)
    assert repr(again) == repr(module)
    states = [{name: t.numpy() for name, t in one.state_dict().items()} for one in (again, module)]
    assert_same_bits(*states)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("seed", MANY)
def test_gradients_are_differences(seed: int, ragged: bool, torch: Any) -> None:
    """Of the weights and of x, for a random cotangent that is 0 past the lengths."""
    model = drawn_model(seed, ("lstm", "gru_after", "rnn_tanh"), np.float64, dropout=0.0, merge="concat", bias=True)
    x, lengths = read_by(model, seed), LENGTHS if ragged else None
    assert_gradients(torch, model, fastrnn.to_torch(model), x, lengths)


def assert_gradients(torch: Any, model: Any, module: Any, x: np.ndarray, lengths: Any) -> None:
    given = torch.from_numpy(x)
    given.requires_grad_(given.is_floating_point())
    out = model.forward(x, lengths=lengths, training=True, rng=0)
    dy = np.random.default_rng(0).standard_normal(out.y.shape)
    if lengths is not None and dy.shape[:2] == x.shape[:2]:
        dy[np.arange(dy.shape[1]) >= lengths[:, None]] = 0
    dx, _, grads = model.backward(dy, out.cache)
    y = module.train()(given, None if lengths is None else torch.from_numpy(lengths))
    y.backward(torch.from_numpy(dy))
    got = {name: p.grad.numpy() for name, p in module.named_parameters()}
    assert_close(got | {"x": np.zeros(1) if given.grad is None else given.grad.numpy()}, grads | {"x": zeros_or(dx)})


def zeros_or(dx: np.ndarray | None) -> np.ndarray:
    """Return the gradient, or zeros for integers, which have none."""
    return np.zeros(1) if dx is None else dx


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("decodes", [False, True])
@pytest.mark.parametrize("kind", ["LastStep", "GlobalAveragePooling1D", "GlobalMaxPooling1D"])
def test_layers_over_time(kind: str, decodes: bool, ragged: bool, torch: Any) -> None:
    """In both directions, with gradients; repeated steps have no lengths."""
    model, lengths = over_time(kind, decodes, np.float64), LENGTHS if ragged else None
    x, module = read_by(model), fastrnn.to_torch(model)
    expected = {"y": model.predict(x, lengths=lengths)}
    assert_close({"y": computed(torch, module, x, lengths)}, expected)
    back = fastrnn.from_torch(module)
    assert repr(back) == repr(model).replace("GRU(3, 4, ", "GRU(3, 4, batch_first=True, ").replace(
        "LSTM(4, 2, ", "LSTM(4, 2, batch_first=True, "
    )
    assert_same_bits({"y": back.predict(x, lengths=lengths)}, expected)
    assert_gradients(torch, model, module, x, lengths)


def test_models_without_steps_or_modules(torch: Any) -> None:
    module = fastrnn.to_torch(fastrnn.Dense(3, 2, rng=0))
    with pytest.raises(ValueError, match=r"lengths: expected None, because x of shape \(4, 3\) has no time axis"):
        module(torch.ones(4, 3), torch.ones(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"layer 0 \(LayerNormalization\): scale: PyTorch has no LayerNorm"):
        fastrnn.to_torch(fastrnn.LayerNormalization(3, scale=False))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_state_dicts_convert_both_ways(torch: Any) -> None:
    layers = [fastrnn.Embedding(7, 3, padding_idx=2, rng=0), fastrnn.LSTM(3, 8, 2, proj_size=4, rng=1)]
    layers += [fastrnn.Sequential([fastrnn.GRU(4, 5, reset_after=True, return_sequences=False, rng=2)])]
    model = fastrnn.Sequential([*layers, fastrnn.Dense(5, 3, "softmax", rng=3)])
    module = fastrnn.to_torch(model)
    assert list(module.state_dict()) == list(model.parameters())
    assert [type(one).__name__ for one in module] == ["Embedding", "LSTM", "Sequential", "Linear"]
    assert module[0].padding_idx == 2
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.5)
    x = read_by(model)
    before = model.predict(x)
    model.load_state_dict(module.state_dict())
    y = model.predict(x)
    assert not np.allclose(y, before)
    assert_close({"y": computed(torch, module, x)}, {"y": y}, FLOAT32)
    module.load_state_dict({name: torch.from_numpy(a) for name, a in model.state_dict().items()})
    assert_close({"y": computed(torch, copy.deepcopy(module), x)}, {"y": y}, FLOAT32)


@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh", "relu", "softmax"])
def test_functions(activation: str, torch: Any) -> None:
    dense = fastrnn.Dense(3, 4, activation, dtype=np.float64, rng=0)
    model = fastrnn.Sequential([dense, fastrnn.Activation(activation)])
    x = np.random.default_rng(1).standard_normal((5, 3))
    for own, expected in ((model, model.predict(x)), (dense, dense(x))):
        module = fastrnn.to_torch(own)
        assert_close({"y": computed(torch, module, x)}, {"y": expected})
        assert_close({"y": fastrnn.from_torch(module).predict(x)}, {"y": expected})


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # from torch.nn.LSTM
def test_export(torch: Any) -> None:
    """With PyTorch's own exporter."""
    layers = [fastrnn.LSTM(3, 4, bidirectional=True, merge="sum", rng=0), fastrnn.Dense(4, 2, "tanh", rng=1)]
    model = fastrnn.Sequential(layers)
    x = read_by(model)
    exported = torch.export.export(fastrnn.to_torch(model).eval(), (torch.from_numpy(x),)).module()
    with torch.no_grad():
        assert_close({"y": exported(torch.from_numpy(x)).numpy()}, {"y": model.predict(x)}, FLOAT32)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (fastrnn.LSTM(3, 4, peephole=True), ValueError, r"layer 1 \(LSTM\): peephole: PyTorch cannot express True"),
        (fastrnn.GRU(3, 4, reset_after=False), ValueError, r"layer 1 \(GRU\): reset_after: PyTorch cannot express"),
        (fastrnn.RNN(3, 4, activation="sigmoid"), ValueError, "activation: PyTorch cannot express 'sigmoid'"),
        (fastrnn.LSTM(3, 4, zoneout=0.1), ValueError, "zoneout: "),
        (fastrnn.Recurrent(catalogue.li_gru, 3, 4), ValueError, r"layer 1 \(Recurrent\): cell: PyTorch has no li_gru"),
    ],
)
def test_to_torch_refuses(layer: Any, error: Any, message: str, torch: Any) -> None:
    with pytest.raises(error, match=message):
        fastrnn.to_torch(fastrnn.Sequential([fastrnn.Dense(3, 3, rng=0), layer]))


def test_from_torch_refuses(torch: Any) -> None:
    with pytest.raises(TypeError, match="layer: expected a layer or a Sequential of fastrnn, got Linear"):
        fastrnn.to_torch(torch.nn.Linear(3, 4))
    module = fastrnn.to_torch(fastrnn.Sequential([fastrnn.LSTM(3, 4), fastrnn.Activation("tanh")]))
    with pytest.raises(ValueError, match="batch_first: expected None for a model, which is batch-first, got False"):
        fastrnn.from_torch(module, batch_first=False)
    for other in (torch.nn.GELU(), torch.nn.Softmax(1)):
        module[1] = other
        message = f"module: expected a module that to_torch makes, got {type(other).__name__}"
        with pytest.raises(TypeError, match=message):
            fastrnn.from_torch(module)
