"""Small models and data for the tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrnn
from fastrnn import training
from fastrnn.training import Sequential
from support.problems import Arrays

N, T, I, K = 13, 7, 3, 4  #: samples, steps, features, outputs


def last_step(dtype: Any = np.float64, dropout: float = 0.0) -> Sequential:
    """Return a model from (N, T, I) to (N, K)."""
    lstm = fastrnn.LSTM(I, 5, return_sequences=False, dtype=dtype, rng=1)
    dense = fastrnn.Dense(5, K, "softmax", dtype=dtype, rng=2)
    return Sequential([lstm, fastrnn.Dropout(dropout), dense] if dropout else [lstm, dense])


def every_step() -> Sequential:
    """Return a model from (N, T, I) to (N, T, K)."""
    gru = fastrnn.GRU(I, 5, reset_after=True, dtype=np.float64, rng=1)
    return Sequential([gru, fastrnn.Dense(5, K, dtype=np.float64, rng=2)])


def letters(dtype: Any = np.float64, **options: Any) -> Sequential:
    """Return a model from (N, T) integers below 6 to classes (N, T, K) that uses every kind of layer."""
    embedding = fastrnn.Embedding(6, I, dtype=dtype, rng=1)
    lstm = fastrnn.LSTM(I, 5, bidirectional=True, dtype=dtype, rng=2, **options)
    return Sequential([embedding, lstm, fastrnn.Dense(10, K, "softmax", dtype=dtype, rng=3)])


def inputs(dtype: Any = np.float64, samples: int = N, steps: int = T) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((samples, steps, I)).astype(dtype)


def classes(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, K, shape)


def targets(*shape: int) -> np.ndarray:
    return np.random.default_rng(6).standard_normal((*shape, K))


def steps() -> np.ndarray:
    """Return lengths 1..T, including both."""
    return np.random.default_rng(7).permutation(np.r_[1, T, np.random.default_rng(8).integers(1, T + 1, N - 2)])


def classifier(**options: Any) -> Sequential:
    """Return `last_step`, compiled for classes."""
    model = last_step(**options)
    model.compile(training.Adam(0.01), "categorical_crossentropy", ["accuracy"])
    return model


def regressor() -> Sequential:
    """Return `every_step`, compiled for regression."""
    model = every_step()
    model.compile(training.SGD(0.1, momentum=0.9), "mse")
    return model


class Give(training.Callback):
    """Put these values for a name into the logs, and keep the weights and the rates of the epochs."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values, self.weights, self.rates = name, values, list[Arrays](), list[float]()

    def on_epoch_begin(self, training: training.Training) -> None:
        self.rates.append(training.optimizer.rate)

    def on_epoch_end(self, training: training.Training) -> None:
        training.logs[self.name] = self.values[training.epoch - 1]
        self.weights.append(training.model.state_dict())


def by_hand(
    x: np.ndarray, y: np.ndarray, epochs: int, size: int, window: int, lengths: Any = None
) -> tuple[Arrays, list[float]]:
    """Return the weights and losses of `regressor` from a training loop over its layers."""
    gru, dense = every_step().layers
    parameters = {f"{i}.{n}": p for i, layer in enumerate((gru, dense)) for n, p in layer.parameters().items()}
    optimizer, mse, losses = training.SGD(0.1, momentum=0.9), training.MeanSquaredError(), []
    lengths = np.full(len(x), x.shape[1]) if lengths is None else lengths
    for _ in range(epochs):
        total = count = 0.0
        for start in range(0, len(x), size):
            which = slice(start, start + size)
            state = None
            for t in range(0, lengths[which].max(), window):
                some = (which, slice(t, min(t + window, lengths[which].max())))
                x_t, y_t = (np.ascontiguousarray(a[some].swapaxes(0, 1)) for a in (x, y))
                valid = np.clip(lengths[which] - t, 0, len(x_t))
                h, state, gru_cache = gru.forward(x_t, state=state, lengths=valid, training=True)
                prediction, _, dense_cache = dense.forward(h, training=True)
                loss, dy = mse.gradient(prediction, y_t, valid)
                dh, _, dense_grads = dense.backward(dy, dense_cache)
                _, _, gru_grads = gru.backward(dh, gru_cache)
                grads = {f"0.{n}": g for n, g in gru_grads.items()} | {f"1.{n}": g for n, g in dense_grads.items()}
                optimizer.step(parameters, grads)
                gru.changed()
                dense.changed()
                total, count = total + loss * valid.sum(), count + valid.sum()
        losses.append(total / count)
    return parameters, losses
