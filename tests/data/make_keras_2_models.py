"""Makes keras_2_models.zip in this directory, for tests/test_convert_keras_2.py to read without Keras: for each model a
.h5 and a .keras file as Keras 2 wrote them, and known.npz with what Keras computed, ``<model>/x`` and ``<model>/y``.

    pip install tensorflow-cpu==2.15.1 && python tests/data/make_keras_2_models.py

All weights are random, including biases. CuDNN's layers do not run on a CPU; Keras reads their files into its plain
layers.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
keras, layers, old = tf.keras, tf.keras.layers, tf.compat.v1.keras.layers
T, I = 6, 3


def one_after_another(*rest: tf.keras.layers.Layer, shape: tuple[int | None, ...] = (None, I)) -> tf.keras.Model:
    return keras.Sequential([keras.Input(shape), *rest])


def nested(trainable: bool) -> tf.keras.Model:
    lstm = layers.LSTM(4, return_sequences=True, input_shape=(None, I), trainable=trainable)
    inner = keras.Sequential([lstm, layers.Dense(5, activation="relu")], name="inner")
    return one_after_another(inner, layers.GRU(3), layers.Dense(2))


def nested_functional() -> tf.keras.Model:
    x = keras.Input((None, I))
    encoder = keras.Model(x, layers.Bidirectional(layers.LSTM(4))(x), name="encoder")
    x = keras.Input((None, I))
    return keras.Model(x, layers.Dense(2)(encoder(x)))


def of_cells() -> tf.keras.Model:
    stacked = [layers.GRUCell(3), layers.LSTMCell(4), layers.GRUCell(2, reset_after=False)]
    return one_after_another(
        layers.RNN(layers.LSTMCell(4), return_sequences=True),
        layers.RNN(stacked, return_sequences=True),
        layers.Bidirectional(layers.RNN(layers.SimpleRNNCell(3))),
    )


MODELS: dict[str, Callable[[], tf.keras.Model]] = {
    "version_1": lambda: one_after_another(
        old.LSTM(4, return_sequences=True, recurrent_activation="sigmoid"),
        old.GRU(3, recurrent_activation="sigmoid", implementation=1),
        layers.Dense(2),
    ),
    "plain": lambda: one_after_another(
        layers.Bidirectional(layers.GRU(4, return_sequences=True), merge_mode="ave"),
        layers.TimeDistributed(layers.Dense(3, activation="tanh")),
        layers.SpatialDropout1D(0.1),
        layers.SimpleRNN(3, activation="relu"),
        layers.ReLU(),
        layers.Dense(4),
        layers.Softmax(),
    ),
    "masking": lambda: one_after_another(layers.Masking(), layers.Bidirectional(layers.LSTM(4)), layers.Dense(2)),
    "mask_zero": lambda: one_after_another(
        layers.Embedding(9, 3, mask_zero=True), layers.LSTM(4, return_sequences=True), layers.GRU(2), shape=(None,)
    ),
    "stateful": lambda: keras.Sequential(
        [keras.Input(batch_shape=(2, None, I)), layers.LSTM(4, stateful=True), layers.Dense(2)]
    ),
    "nested": lambda: nested(True),
    "nested_frozen": lambda: nested(False),
    "nested_functional": nested_functional,
    "of_cells": of_cells,
    "cudnn_lstm": lambda: one_after_another(old.CuDNNLSTM(4, return_sequences=True), layers.Dense(2)),
    "cudnn_gru": lambda: one_after_another(
        layers.Bidirectional(old.CuDNNGRU(4, return_sequences=True)), layers.Dense(2)
    ),
}

#: models into which Keras loads the weights of another model, to run them
IN_PLACE: dict[str, Callable[[], tf.keras.Model]] = {
    "cudnn_lstm": lambda: one_after_another(layers.LSTM(4, return_sequences=True), layers.Dense(2)),
    "cudnn_gru": lambda: one_after_another(layers.Bidirectional(layers.GRU(4, return_sequences=True)), layers.Dense(2)),
}


def inputs(name: str, rng: np.random.Generator) -> np.ndarray:
    if name == "mask_zero":
        return np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1]])
    x = rng.standard_normal((2, T, I)).astype(np.float32)
    if name == "masking":
        x[0, 4:] = 0
    return x


def main() -> None:
    known, rng = {}, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        for name, make in MODELS.items():
            keras.backend.clear_session()
            model = make()
            model.set_weights([0.5 * rng.standard_normal(w.shape).astype(w.dtype) for w in model.get_weights()])
            for suffix in (".h5", ".keras"):
                model.save(path / f"{name}{suffix}")
            if name in IN_PLACE:
                model = IN_PLACE[name]()
                model.load_weights(path / f"{name}.h5")
            known[f"{name}/x"] = x = inputs(name, rng)
            known[f"{name}/y"] = model.predict(x, verbose=0)
        np.savez(path / "known.npz", **known)
        with zipfile.ZipFile(HERE / "keras_2_models.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(path.iterdir()):
                archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main()
