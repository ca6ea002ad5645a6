"""The models of seed 003 with Keras' weights give Keras' outputs, which tests/data/make_keras_cases.py stored.

Keras' kernels are (I, G*H), ours (G*H, I). Its reset-after GRU has a bias for each side; its other layers have
only that of the input side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import Arrays
from support.tolerance import assert_close

import fastrnn
from fastrnn import GRU, LSTM, RNN, Dense, Sequential
from fastrnn.cells import members
from fastrnn.frameworks import KERAS, reordered
from fastrnn.layers import Layer

STORED: Arrays = dict(np.load(Path(__file__).with_name("data") / "keras_cases.npz"))

SMALL, SEED = (3, 4), (32, 64)  # I, H of the stored models and of the seed's models


def models(I: int, H: int) -> dict[str, list[Layer]]:
    """Return every stored model by name, as layers of ours."""
    double: dict[str, Any] = {"dtype": np.float64}
    last = {"return_sequences": False}
    one, both = double | {"bias": "input"}, double | {"reset_after": True}
    one_two_ways, both_two_ways = one | {"bidirectional": True}, both | {"bidirectional": True}
    return {
        "rnn_dense": [RNN(I, H, **one | last), Dense(H, 10, **double)],
        "rnn_sequences": [RNN(I, H, **one)],
        "lstm_softmax": [LSTM(I, H, **one), Dense(H, 2, "softmax", **double)],
        "lstm_last": [LSTM(I, H, **one | last)],
        "gru_after_dense": [GRU(I, H, **both | last), Dense(H, 10, **double)],
        "gru_before_dense": [GRU(I, H, reset_after=False, **one | last), Dense(H, 10, **double)],
        "gru_after_sequences": [GRU(I, H, **both)],
        "bilstm_sigmoid": [LSTM(I, H, **one_two_ways), Dense(2 * H, 1, "sigmoid", **double)],
        "bilstm": [LSTM(I, H, **one_two_ways)],
        "bilstm_last": [LSTM(I, H, **one_two_ways | last)],
        "bigru": [GRU(I, H, **both_two_ways)],
        "bigru_last": [GRU(I, H, **both_two_ways | last)],
    }


def stored(name: str) -> tuple[Arrays, list[np.ndarray]]:
    """Return the stored arrays of a model, and its weights in Keras' order."""
    case = {key.removeprefix(f"{name}/"): a for key, a in STORED.items() if key.startswith(f"{name}/")}
    return case, [case[f"w{i}"] for i in range(len(case)) if f"w{i}" in case]


def parameters(kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray, cell: str) -> Arrays:
    """Return W, U, b and, if present, b_rec of one direction."""
    orders = KERAS.gates[cell], members(cell)[0].gates
    W, U, bias = (reordered(a, *orders, axis=-1) for a in (kernel, recurrent_kernel, np.atleast_2d(bias)))
    return {"W": W.T, "U": U.T, **dict(zip(("b", "b_rec"), bias, strict=False))}


def load(layer: Layer, weights: list[np.ndarray]) -> None:
    """Take this layer's weights from the front of Keras' list."""
    if isinstance(layer, Dense):
        kernel, bias = weights.pop(0), weights.pop(0)
        layer.load_state_dict({"weight": kernel.T, "bias": bias})
        return
    state = {}
    for way in ("", "_reverse") if layer.bidirectional else ("",):
        cell = type(layer).__name__.lower()
        own = parameters(weights.pop(0), weights.pop(0), weights.pop(0), cell)
        names = {"weight_ih": "W", "weight_hh": "U", "bias_ih": "b", "bias_hh": "b_rec"}
        state |= {f"{name}_l0{way}": own[key] for name, key in names.items() if key in own}
    layer.load_state_dict(state)


def count(layers: list[Layer]) -> int:
    return sum(a.size for layer in layers for a in layer.parameters().values())


@pytest.mark.parametrize("name", models(*SMALL))
def test_outputs(name: str) -> None:
    case, weights = stored(name)
    layers = models(*SMALL)[name]
    for layer in layers:
        load(layer, weights)
    assert not weights
    assert_close({"y": Sequential(layers).predict(case["x"])}, {"y": case["y"]})


@pytest.mark.parametrize("name", models(*SMALL))
def test_parameter_counts(name: str) -> None:
    counts = [count(models(*sizes)[name]) for sizes in (SMALL, SEED)]
    assert counts == stored(name)[0]["counts"].tolist()


def test_lstm_implementation_2_has_no_peepholes() -> None:
    """The seed uses this option for peepholes, but the weights and outputs are those of the plain LSTM."""
    case, (kernel, recurrent_kernel, bias) = stored("not_a_peephole")
    layer = LSTM(*SMALL, bias="input", batch_first=True, dtype=np.float64)
    load(layer, [kernel, recurrent_kernel, bias])
    assert_close({"y": layer(case["x"])[0]}, {"y": case["y"]})
    plain, peephole = (count([LSTM(32, 24, bias="input", peephole=p)]) for p in (False, True))
    assert (plain, peephole) == (case["counts"][1], plain + 3 * 24)


def test_rnn_cell() -> None:
    case, weights = stored("rnn_cell")
    y = fastrnn.rnn_step(case["x"], case["h0"], **parameters(*weights, "rnn"))
    assert_close({"y": y}, {"y": case["y"]})
    assert case["counts"][1] == 20_608


def test_go_backwards_returns_reversed_outputs() -> None:
    """Keras' y[0] belongs to the last x; ours to the first. Seed 000 joins the two without reversing."""
    case, weights = stored("lstm_go_backwards")
    y = fastrnn.lstm_forward(case["x"], **parameters(*weights, "lstm"), reverse=True, batch_first=True).y
    assert_close({"y": y[:, ::-1]}, {"y": case["y"]})


def test_every_stored_case_is_used() -> None:
    tested = {*models(*SMALL), "not_a_peephole", "rnn_cell", "lstm_go_backwards"}
    assert {key.split("/")[0] for key in STORED} == tested | {"keras_version"}
