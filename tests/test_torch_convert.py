"""Weights from and to PyTorch: its modules and ours, bit for bit, and their results."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, bound, drawn, given, settings
from support.stacks import named
from support.tolerance import assert_close, assert_same_bits

import fastrnn

CELLS = ("lstm", "gru_after", "rnn_tanh", "rnn_relu")


def expressible(seed: int, **fixed: Any) -> Any:
    return drawn(seed, CELLS, merge="concat", return_sequences=True, **fixed)


def computed(torch: Any, module: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        y, state = module.eval()(torch.from_numpy(np.ascontiguousarray(x)))
    states = state if isinstance(state, tuple) else (state,)
    return named(y.numpy(), tuple(s.numpy() for s in states))


def arrays(module: Any) -> dict[str, np.ndarray]:
    return {name: t.detach().numpy() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("seed", MANY)
def test_round_trip(seed: int, torch: Any) -> None:
    layer = expressible(seed, bias=bool(seed % 3))
    module = fastrnn.to_torch(layer)
    assert_same_bits(arrays(module), layer.parameters())
    assert all(p.requires_grad for p in module.parameters())
    back = fastrnn.from_torch(module)
    assert settings(back) == settings(layer)
    assert_same_bits(back.parameters(), layer.parameters())
    again = fastrnn.to_torch(back)
    assert repr(again) == repr(module)
    assert_same_bits(arrays(again), arrays(module))
    x = given(layer, seed)
    assert_close(named(*back(x)), computed(torch, module, x), bound(layer))


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
def test_dropout_of_a_single_layer(torch: Any) -> None:
    """PyTorch stores the rate, and applies no dropout."""
    assert fastrnn.from_torch(torch.nn.GRU(3, 4, dropout=0.5)).dropout == 0
    assert fastrnn.from_torch(torch.nn.GRU(3, 4, 2, dropout=0.5)).dropout == 0.5


def test_one_bias_becomes_two(torch: Any) -> None:
    layer = fastrnn.GRU(3, 4, reset_after=True, bias="input", dtype=np.float64, rng=0)
    module, x = fastrnn.to_torch(layer), given(layer)
    assert not module.bias_hh_l0.any()
    assert_close(named(*layer(x)), computed(torch, module, x))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells(kind: str, torch: Any) -> None:
    torch.manual_seed(0)
    cell = getattr(torch.nn, f"{kind}Cell")(3, 4, dtype=torch.float64)
    x = np.random.default_rng(0).standard_normal((2, 3))
    with torch.no_grad():
        state = cell(torch.from_numpy(x))
    h = (state[0] if kind == "LSTM" else state).numpy()
    name = {"LSTM": "lstm", "GRU": "gru_after", "RNN": "rnn_tanh"}[kind]
    for layer in (fastrnn.from_torch(cell), fastrnn.from_torch(cell.state_dict(), cell=name)):
        assert_close({"y": layer(x[None])[0][0]}, {"y": h})
    relu = torch.nn.RNNCell(3, 4, nonlinearity="relu")
    assert "rnn_relu" in repr(fastrnn.from_torch(relu))


def test_state_dict_of_a_whole_model(torch: Any) -> None:
    model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4, 2, bidirectional=True), "out": torch.nn.Linear(8, 2)})
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    layer = fastrnn.from_torch(torch.load(file), cell="gru_after", prefix="encoder.", batch_first=True)
    assert layer.batch_first
    assert_same_bits(layer.parameters(), arrays(model["encoder"]))


def test_parametrized_weights_are_read_as_computed(torch: Any) -> None:
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(3, 4), "weight_hh_l0")
    layer = fastrnn.from_torch(module)
    assert_same_bits({"": layer.parameters()["weight_hh_l0"]}, {"": module.weight_hh_l0.detach().numpy()})


@pytest.mark.parametrize("made", [lambda nn: nn.LSTM(3, 4, 2, bidirectional=True), lambda nn: nn.LSTMCell(3, 4)])
@pytest.mark.parametrize("way", ["weight_norm", "spectral_norm", "identity", "pruned"])
@pytest.mark.parametrize("prefix", ["", "encoder."])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_state_dict_of_a_parametrized_module(way: str, prefix: str, made: Callable[[Any], Any], torch: Any) -> None:
    """It does not contain the weights, but the module has them."""
    module, utils = made(torch.nn), torch.nn.utils
    name = "weight_hh_l1_reverse" if hasattr(module, "weight_hh_l1_reverse") else "weight_hh"
    if way == "weight_norm":
        utils.weight_norm(module, name)  # the older one
    elif way == "spectral_norm":
        utils.spectral_norm(module, name)
    elif way == "pruned":
        importlib.import_module("torch.nn.utils.prune").l1_unstructured(module, name, amount=0.3)
    else:
        utils.parametrize.register_parametrization(module, name, torch.nn.Identity())
    state = {prefix + key: value for key, value in module.state_dict().items()}
    message = rf"^state_dict: '.*{name}.*' is part of a parametrized weight; pass the module"
    with pytest.raises(ValueError, match=message):
        fastrnn.from_torch(state, cell="lstm", prefix=prefix)
    expected = {"": getattr(module, name).detach().numpy()}
    taken = fastrnn.from_torch(module).parameters()[name if "_l" in name else "weight_hh_l0"]
    assert_same_bits({"": taken}, expected)


def test_batch_first_of_the_module_or_the_argument(torch: Any) -> None:
    module = torch.nn.LSTM(3, 4, batch_first=True)
    assert fastrnn.from_torch(module).batch_first
    assert not fastrnn.from_torch(module, batch_first=False).batch_first


def test_modules_of_ours(torch: Any) -> None:
    """A subclass with peepholes, or with reset_after=False."""
    lstm, gru = torch.nn.LSTM(3, 4), torch.nn.GRU(3, 4)
    lstm.peephole_l0 = torch.nn.Parameter(torch.ones(12))
    gru.reset_after = False
    assert fastrnn.from_torch(lstm).parameters()["peephole_l0"].tolist() == [1.0] * 12
    assert "gru_before" in repr(fastrnn.from_torch(gru))


def test_a_user_defined_cell_named_like_a_mode(torch: Any) -> None:
    def GRU(x: Any, U: Any, s: Any) -> Any:
        return x.r + x.z * (U.n @ s.h)

    cell = fastrnn.cell(gates="rzn", states="h")(GRU)
    with pytest.raises(TypeError, match=r"module: expected torch\.nn\.RNN, GRU or LSTM, got Recurrent"):
        fastrnn.from_torch(importlib.import_module("fastrnn.torch").Recurrent(cell, 3, 4))


def test_from_torch_refuses(torch: Any) -> None:
    with pytest.raises(TypeError, match=r"weight_ih_l0: expected dtype float32 or float64, got torch.float16"):
        fastrnn.from_torch(torch.nn.LSTM(3, 4, dtype=torch.float16))
    dense = "weight_ih_l0: expected a dense tensor with values, got"
    with pytest.raises(TypeError, match=f"{dense} one on the device meta"):
        fastrnn.from_torch(torch.nn.LSTM(3, 4, device="meta"))
    sparse = {name: value.to_sparse() for name, value in torch.nn.LSTM(3, 4).state_dict().items()}
    with pytest.raises(TypeError, match=f"{dense} layout .*sparse_coo"):
        fastrnn.from_torch(sparse, cell="lstm")
    with pytest.raises(TypeError, match=r"expected torch.nn.RNN, GRU, LSTM, .* got Linear"):
        fastrnn.from_torch(torch.nn.Linear(3, 4))
    with pytest.raises(TypeError, match=r"or a state_dict, as torch\.load reads it from a file, got str"):
        fastrnn.from_torch("lstm.pt")
    with pytest.raises(ValueError, match="cell, prefix: expected None with a module"):
        fastrnn.from_torch(torch.nn.LSTM(3, 4), cell="lstm")


def test_names_of_a_larger_model(torch: Any) -> None:
    state = {f"rnn.{name}": value for name, value in torch.nn.LSTM(3, 4).state_dict().items()}
    with pytest.raises(ValueError, match=r"missing 'weight_ih_l0'; pass prefix='rnn\.'"):
        fastrnn.from_torch(state, cell="lstm")
    with pytest.raises(ValueError, match=r"missing 'weight_ih_l0'; pass prefix='rnn\.'"):
        fastrnn.from_torch(state, cell="lstm", prefix="rnn")
    with pytest.raises(ValueError, match=r"prefix: no name begins with 'encoder\.'; expected one such as 'rnn\.'"):
        fastrnn.from_torch(state, cell="lstm", prefix="encoder.")
    with pytest.raises(KeyError, match=r"state: missing .* names have the prefix 'rnn\.'"):
        fastrnn.LSTM(3, 4).load_state_dict({name: value.numpy() for name, value in state.items()})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: fastrnn.LSTM(3, 4, peephole=True), "peephole: PyTorch cannot express True"),
        (lambda: fastrnn.GRU(3, 4, reset_after=False), "reset_after: PyTorch cannot express False"),
        (lambda: fastrnn.RNN(3, 4, activation="sigmoid"), "activation: PyTorch cannot express 'sigmoid'"),
        (lambda: fastrnn.LSTM(3, 4, bidirectional=True, merge="sum"), "merge: PyTorch cannot express 'sum'"),
        (lambda: fastrnn.LSTM(3, 4, return_sequences=False), "return_sequences: PyTorch cannot express False"),
        (lambda: fastrnn.LSTM(3, 4, weight_dtype="bfloat16"), "weight_dtype: PyTorch cannot express 'bfloat16'"),
        (lambda: fastrnn.LSTM(3, 4, heads=2), "heads: PyTorch cannot express 2 of .*; expected 1"),
    ],
)
def test_to_torch_refuses(layer: Callable[[], Any], message: str, torch: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.to_torch(layer())
