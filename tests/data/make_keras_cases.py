"""Makes keras_cases.npz: what Keras computes for small models of seed 003, for tests/test_keras_parity.py to match.

    python -m venv /tmp/keras && /tmp/keras/bin/pip install keras==3.15.1 tensorflow-cpu==2.21.0
    KERAS_BACKEND=tensorflow /tmp/keras/bin/python tests/data/make_keras_cases.py

For each model, by name: ``<name>/x`` (B, T, I), ``<name>/y``, the weights ``<name>/w0``, ``<name>/w1``, ... in Keras'
shapes and order, and ``<name>/counts``, the number of parameters at these small sizes and at the seed's. Everything is
float64, which Keras supports only with TensorFlow, and all weights are random, including biases. Every run writes the
same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

SIZES = {"B": 2, "T": 5, "I": 3}
UNITS = 4
SEED_SHAPE = (10, 32)  # T, I

#: name -> (the layers for a number of units, the seed's number of units)
MODELS: dict[str, tuple[Callable[[int], list[keras.Layer]], int]] = {
    "rnn_dense": (lambda H: [layers.SimpleRNN(H), layers.Dense(10)], 64),
    "rnn_sequences": (lambda H: [layers.SimpleRNN(H, return_sequences=True)], 64),
    "lstm_softmax": (
        lambda H: [
            layers.LSTM(H, return_sequences=True),
            layers.TimeDistributed(layers.Dense(2, activation="softmax")),
        ],
        64,
    ),
    "lstm_last": (lambda H: [layers.LSTM(H)], 64),
    "gru_after_dense": (lambda H: [layers.GRU(H, reset_after=True), layers.Dense(10)], 64),
    "gru_before_dense": (lambda H: [layers.GRU(H, reset_after=False), layers.Dense(10)], 64),
    "gru_after_sequences": (lambda H: [layers.GRU(H, reset_after=True, return_sequences=True)], 64),
    "not_a_peephole": (lambda H: [layers.LSTM(H, implementation=2, return_sequences=True)], 24),
    "bilstm_sigmoid": (
        lambda H: [layers.Bidirectional(layers.LSTM(H, return_sequences=True)), layers.Dense(1, activation="sigmoid")],
        64,
    ),
    "bilstm": (lambda H: [layers.Bidirectional(layers.LSTM(H, return_sequences=True))], 64),
    "bilstm_last": (lambda H: [layers.Bidirectional(layers.LSTM(H))], 64),
    "bigru": (lambda H: [layers.Bidirectional(layers.GRU(H, return_sequences=True))], 64),
    "bigru_last": (lambda H: [layers.Bidirectional(layers.GRU(H))], 64),
    "lstm_go_backwards": (lambda H: [layers.LSTM(H, return_sequences=True, go_backwards=True)], 64),  # seed 000's
}


def randomized(model: keras.Model | keras.Layer, rng: np.random.Generator) -> list[np.ndarray]:
    """The model's new weights, of the size of 1/2."""
    weights = [0.5 * rng.standard_normal(w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    return weights


def named(weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"w{i}": w for i, w in enumerate(weights)}


def counts(*models: keras.Model | keras.Layer) -> np.ndarray:
    return np.array([model.count_params() for model in models])


def model_case(name: str) -> dict[str, np.ndarray]:
    build, seed_units = MODELS[name]
    rng = np.random.default_rng(list(name.encode()))
    B, T, I = SIZES.values()
    model = keras.Sequential([keras.Input((T, I)), *build(UNITS)])
    at_seed = keras.Sequential([keras.Input(SEED_SHAPE), *build(seed_units)])
    weights = randomized(model, rng)
    x = rng.standard_normal((B, T, I))
    return {"x": x, "y": keras.ops.convert_to_numpy(model(x)), "counts": counts(model, at_seed)} | named(weights)


def cell_case() -> dict[str, np.ndarray]:
    """One step of SimpleRNNCell: x and h0 are (B, I) and (B, H)."""
    rng = np.random.default_rng(0)
    B, _, I = SIZES.values()
    cell, at_seed = layers.SimpleRNNCell(UNITS), layers.SimpleRNNCell(128)
    cell.build((B, I))
    at_seed.build((B, SEED_SHAPE[1]))
    weights = randomized(cell, rng)
    x, h0 = rng.standard_normal((B, I)), rng.standard_normal((B, UNITS))
    y, _ = cell(x, [h0])
    return {"x": x, "h0": h0, "y": keras.ops.convert_to_numpy(y), "counts": counts(cell, at_seed)} | named(weights)


def main() -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    cases = {name: model_case(name) for name in MODELS} | {"rnn_cell": cell_case()}
    arrays = {f"{name}/{key}": array for name, case in cases.items() for key, array in case.items()}
    assert all(array.dtype in (np.float64, np.int64) for array in arrays.values())
    path = Path(__file__).with_name("keras_cases.npz")
    np.savez_compressed(path, keras_version=np.array(keras.__version__), **arrays)
    print(f"{path.name}: {len(cases)} models of Keras {keras.__version__}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
