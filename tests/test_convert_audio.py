"""Models of RTNeural and Neural Amp Modeler: results by formulas, and invalid files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tolerance import FLOAT32, assert_close

import fastrnn

T, B, I, H = 6, 2, 3, 4


def sequences(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def keras_arrays(G: int, two: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng([81, G])
    shapes = [(I, G * H), (H, G * H), (2, G * H) if two else (G * H,)]
    return [0.7 * rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def rtneural(*layers: tuple[str, str, int, list[np.ndarray]]) -> dict[str, Any]:
    """Return a model in the format of RTNeural's script."""
    written = [
        {"type": kind, "activation": activation, "shape": [None, None, units], "weights": [a.tolist() for a in arrays]}
        for kind, activation, units, arrays in layers
    ]
    return {"in_shape": [None, None, I], "layers": written}


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def lstm_step(gates: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return h and c from c of the step before."""
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def by_formula(kind: str, x: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
    """Compute y from x (T, B, I) with Keras' formulas, in float64."""
    W, U, b = (a.astype(np.float64) for a in arrays)
    h = c = np.zeros((x.shape[1], U.shape[0]))
    ys = []
    for x_t in x.astype(np.float64):
        if kind == "lstm":
            h, c = lstm_step(x_t @ W + h @ U + b, c)
        else:
            (xz, xr, xh), (hz, hr, hh) = (np.split(a, 3, axis=1) for a in (x_t @ W + b[0], h @ U + b[1]))
            z, r = sigmoid(xz + hz), sigmoid(xr + hr)
            h = z * h + (1 - z) * np.tanh(xh + r * hh)
        ys.append(h)
    return np.stack(ys)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_rtneural_models_compute_their_formulas(kind: str, tmp_path: Path) -> None:
    arrays = keras_arrays(4) if kind == "lstm" else keras_arrays(3, two=True)
    D, d = sequences(H, 2), sequences(2)
    dense = ("time-distributed-dense", "tanh", 2, [D, d])
    model = rtneural((kind, "tanh", H, arrays), dense, ("activation", "sigmoid", 2, []))
    (tmp_path / "model.json").write_text(json.dumps(model))
    x = sequences(B, T, I)
    expected = sigmoid(np.tanh(by_formula(kind, x.swapaxes(0, 1), arrays) @ D + d)).swapaxes(0, 1)
    for given in (model, tmp_path / "model.json", str(tmp_path / "model.json")):
        assert_close({"y": fastrnn.from_rtneural(given).predict(x)}, {"y": expected}, FLOAT32)


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("L", [1, 2])
def test_nam_models_compute_their_formulas(L: int, inputs: int, tmp_path: Path) -> None:
    """A layer's matrix for x and h, its bias, its initial h and c; then the head."""
    rng = np.random.default_rng([82, L])
    x, weights, layers = sequences(1, T, inputs), list[float](), []
    for i in range(L):
        wide = inputs if i == 0 else H
        own = [(4 * H, wide + H), (4 * H,), (H,), (H,)]
        arrays = [0.7 * rng.standard_normal(shape).astype(np.float32) for shape in own]
        layers.append((wide, *arrays))
        weights += [number for a in arrays for number in a.reshape(-1).tolist()]
    D, d = sequences(1, H), sequences(1)
    weights += D.reshape(-1).tolist() + d.tolist()
    config = {"input_size": inputs, "hidden_size": H, "num_layers": L}
    (tmp_path / "amp.nam").write_text(json.dumps({"architecture": "LSTM", "config": config, "weights": weights}))
    y = x[0].astype(np.float64)
    for _, M, b, h, c in layers:
        ys = []
        for y_t in y:
            h, c = lstm_step(M @ np.concatenate([y_t, h]) + b, c)
            ys.append(h)
        y = np.stack(ys)
    model, state = fastrnn.from_nam(tmp_path / "amp.nam")
    assert_close({"y": model.forward(x, state=state).y[0]}, {"y": y @ D.T + d}, FLOAT32)


LSTM = ("lstm", "", H, keras_arrays(4))
DENSE = ("dense", "prelu", 2, [sequences(H, 2), sequences(2)])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "path: layers: expected a list of layers, got None"),
        (rtneural(LSTM, ("conv1d", "", 2, [])), r"layers\[1\]: type: expected one of lstm, .*, got 'conv1d'"),
        (rtneural(("lstm", "", H + 1, keras_arrays(4))), r"layer '0' \(LSTM\): kernel: expected shape"),
        (rtneural(LSTM, DENSE), r"layer '1' \(Dense\): activation: expected .*, got 'prelu'"),
        (
            {"layers": [{"type": "lstm", "shape": [4], "weights": [[1, [2]]]}]},
            r"layers\[0\]: weights: expected nested lists of numbers",
        ),
        (
            {"model_data": {}, "state_dict": {"rec.weight_ih_l0": [[1.0]]}},
            r'PyTorch state_dict; pass its arrays to from_torch\(state_dict, cell="lstm", prefix="rec."\)',
        ),
        ({"layers": [{"type": ["lstm"]}]}, r"path: layers\[0\]: type: expected one of lstm, .*, got \['lstm'\]"),
        ({"layers": [{"type": "lstm", "weights": 5}]}, r"path: layers\[0\]: weights: expected a list of arrays, got 5"),
    ],
)
def test_invalid_models_of_rtneural_raise_an_error(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_rtneural(model)


def test_other_types_raise_an_error() -> None:
    with pytest.raises(TypeError, match="path: expected a path, or a mapping of a JSON file, got int"):
        fastrnn.from_rtneural(3)  # type: ignore[arg-type]


NAM = {"architecture": "LSTM", "config": {"input_size": 1, "hidden_size": 2, "num_layers": 1}, "weights": [0.5] * 39}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": ["LSTM"]}, r"expected LSTM, got \['LSTM'\]"),
        ({"architecture": "WaveNet"}, "expected LSTM, got 'WaveNet'"),
        ({"config": None}, "path: config: expected sizes, got None"),
        ({"weights": [0.5] * 38}, "expected 36 numbers and a multiple of 3"),
        ({"weights": [0.5] * 36}, "expected 36 numbers and a multiple of 3"),
        ({"config": {"input_size": 1, "hidden_size": 0, "num_layers": 1}}, "config: hidden_size: expected"),
    ],
)
def test_invalid_models_of_nam_raise_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_nam(NAM | change)


def test_files_that_are_not_json_raise_an_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    (tmp_path / "list").write_text("[1]")
    for name, message in (("text", "is not JSON"), ("list", r"expected a model, got \[1\]")):
        with pytest.raises(ValueError, match=message):
            fastrnn.from_nam(tmp_path / name)
