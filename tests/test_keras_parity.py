"""The models of seed 003 with Keras' weights give Keras' outputs; tests/data/make_keras_cases.py stored what Keras did.

Keras' kernels are (I, G*H), ours (G*H, I). Its LSTM stacks the gates as we do, its GRU has z, r, h where we have r, z,
n. Its reset-after GRU has a bias for each side, as we have; elsewhere it has one, and our second, PyTorch's, is 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerance import assert_close

import fastrnn
from fastrnn import GRU, LSTM, RNN, Dense, Sequential
from fastrnn.layers import Layer

Arrays = dict[str, np.ndarray]

STORED: Arrays = dict(np.load(Path(__file__).with_name("data") / "keras_cases.npz"))

SMALL, SEED = (3, 4), (32, 64)  # I, H of the stored models and of the seed's


def models(I: int, H: int) -> dict[str, list[Layer]]:
    """Every stored model by its name, as layers of ours."""
    both: dict[str, Any] = {"dtype": np.float64}
    last = both | {"return_sequences": False}
    two_ways = both | {"bidirectional": True}
    return {
        "rnn_dense": [RNN(I, H, **last), Dense(H, 10, **both)],
        "rnn_sequences": [RNN(I, H, **both)],
        "lstm_softmax": [LSTM(I, H, **both), Dense(H, 2, "softmax", **both)],
        "lstm_last": [LSTM(I, H, **last)],
        "gru_after_dense": [GRU(I, H, reset_after=True, **last), Dense(H, 10, **both)],
        "gru_before_dense": [GRU(I, H, reset_after=False, **last), Dense(H, 10, **both)],
        "gru_after_sequences": [GRU(I, H, reset_after=True, **both)],
        "bilstm_sigmoid": [LSTM(I, H, **two_ways), Dense(2 * H, 1, "sigmoid", **both)],
        "bilstm": [LSTM(I, H, **two_ways)],
        "bilstm_last": [LSTM(I, H, **two_ways | last)],
        "bigru": [GRU(I, H, reset_after=True, **two_ways)],
        "bigru_last": [GRU(I, H, reset_after=True, **two_ways | last)],
    }


def stored(name: str) -> tuple[Arrays, list[np.ndarray]]:
    """What is stored of a model, and its weights in Keras' order."""
    case = {key.removeprefix(f"{name}/"): a for key, a in STORED.items() if key.startswith(f"{name}/")}
    return case, [case[f"w{i}"] for i in range(len(case)) if f"w{i}" in case]


def gates(a: np.ndarray, cell: str) -> np.ndarray:
    """From Keras' order of gates along the last axis to ours."""
    if cell != "gru":
        return a
    z, r, h = np.split(a, 3, axis=-1)
    return np.concatenate([r, z, h], axis=-1)


def parameters(kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray, cell: str) -> Arrays:
    """W, U, b and b_rec of one direction."""
    b, b_rec = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    W, U = gates(kernel, cell).T, gates(recurrent_kernel, cell).T
    return {"W": W, "U": U, "b": gates(b, cell), "b_rec": gates(b_rec, cell)}


def load(layer: Layer, weights: list[np.ndarray]) -> None:
    """Take this layer's share from the front of Keras' weights."""
    if isinstance(layer, Dense):
        kernel, bias = weights.pop(0), weights.pop(0)
        layer.load_state_dict({"weight": kernel.T, "bias": bias})
        return
    state = {}
    for way in ("", "_reverse") if layer.bidirectional else ("",):
        cell = type(layer).__name__.lower()
        own = parameters(weights.pop(0), weights.pop(0), weights.pop(0), cell)
        names = {"weight_ih": "W", "weight_hh": "U", "bias_ih": "b", "bias_hh": "b_rec"}
        state |= {f"{name}_l0{way}": own[key] for name, key in names.items()}
    layer.load_state_dict(state)


def keras_count(layers: list[Layer], two_biases: bool) -> int:
    """Parameters, as Keras counts them: without our second bias where it has one."""
    named = {f"{i}.{name}": a for i, layer in enumerate(layers) for name, a in layer.parameters().items()}
    return sum(a.size for name, a in named.items() if two_biases or "bias_hh" not in name)


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
    two_biases = name.startswith(("gru_after", "bigru"))
    counts = [keras_count(models(*sizes)[name], two_biases) for sizes in (SMALL, SEED)]
    assert counts == stored(name)[0]["counts"].tolist()


def test_lstm_implementation_2_has_no_peepholes() -> None:
    """The seed takes this option for peepholes; it is the plain LSTM, in its weights and in its outputs."""
    case, (kernel, recurrent_kernel, bias) = stored("not_a_peephole")
    layer = LSTM(*SMALL, batch_first=True, dtype=np.float64)
    load(layer, [kernel, recurrent_kernel, bias])
    assert_close({"y": layer(case["x"])[0]}, {"y": case["y"]})
    plain, peephole = (keras_count([LSTM(32, 24, peephole=p)], two_biases=False) for p in (False, True))
    assert (plain, peephole) == (case["counts"][1], plain + 3 * 24)


def test_rnn_cell() -> None:
    case, weights = stored("rnn_cell")
    y = fastrnn.rnn_step(case["x"], case["h0"], **parameters(*weights, "rnn"))
    assert_close({"y": y}, {"y": case["y"]})
    assert case["counts"][1] == 20_608


def test_go_backwards_leaves_the_outputs_turned() -> None:
    """Keras' y[0] stands beside the last x; ours stays beside the first. Seed 000 joins the two as they are."""
    case, weights = stored("lstm_go_backwards")
    y = fastrnn.lstm_forward(case["x"], **parameters(*weights, "lstm"), reverse=True, batch_first=True).y
    assert_close({"y": y[:, ::-1]}, {"y": case["y"]})


def test_nothing_is_stored_in_vain() -> None:
    tested = {*models(*SMALL), "not_a_peephole", "rnn_cell", "lstm_go_backwards"}
    assert {key.split("/")[0] for key in STORED} == tested | {"keras_version"}
