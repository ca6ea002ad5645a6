"""Train an LSTM to echo its input of two steps ago, using only fastrnn and NumPy.

The sequences are 50 random bits; the target is the input two steps back, 0 at first. An LSTM with a linear read-out
is trained by Adam on fresh batches, using only `lstm_forward` and `lstm_backward`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import fastrnn
from fastrnn.results import Cache
from fastrnn.types import Array

T, BATCH, HIDDEN, LAG = 50, 64, 16, 2
STEPS, RATE, BAR = 400, 0.02, 0.01

Parameters = dict[str, Array]


def echo(rng: np.random.Generator, batch: int = BATCH) -> tuple[Array, Array]:
    """Inputs and targets, (T, batch, 1) each."""
    x = rng.integers(0, 2, (T, batch, 1)).astype(np.float32)
    target = np.zeros_like(x)
    target[LAG:] = x[:-LAG]
    return x, target


def initial(rng: np.random.Generator) -> Parameters:
    """Return uniform weights on PyTorch's scale, and a zero read-out."""

    def uniform(*shape: int) -> Array:
        return rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(HIDDEN))

    return {
        "W": uniform(4 * HIDDEN, 1),
        "U": uniform(4 * HIDDEN, HIDDEN),
        "b": uniform(4 * HIDDEN),
        "V": np.zeros((1, HIDDEN), np.float32),
        "a": np.zeros(1, np.float32),
    }


def predict(w: Parameters, x: Array, training: bool = False) -> tuple[Array, Array, Cache | None]:
    """Return the read-out at every step (T, batch, 1), the LSTM's y (T, batch, HIDDEN), and its cache."""
    result = fastrnn.lstm_forward(x, w["W"], w["U"], w["b"], training=training)
    return result.y @ w["V"].T + w["a"], result.y, result.cache


def loss_and_gradients(w: Parameters, x: Array, target: Array) -> tuple[float, Parameters]:
    """Return the mean squared error and its gradient with respect to every parameter."""
    out, y, cache = predict(w, x, training=True)
    error = out - target
    d = 2 / error.size * error
    g = fastrnn.lstm_backward(d * w["V"], cache)
    assert g.db is not None  # because there was a b
    dV = d.reshape(1, -1) @ y.reshape(-1, HIDDEN)
    loss = float(np.mean(error**2))
    return loss, {"W": g.dW, "U": g.dU, "b": g.db, "V": dV, "a": d.sum(axis=(0, 1))}


def adam(w: Parameters, rate: float) -> Callable[[Parameters], None]:
    """Return a function that updates the parameters in place by Adam (Kingma and Ba, ICLR 2015, algorithm 1)."""
    m = {k: np.zeros_like(v) for k, v in w.items()}
    v = {k: np.zeros_like(v) for k, v in w.items()}
    t = 0

    def update(gradients: Parameters) -> None:
        nonlocal t
        t += 1
        for k, g in gradients.items():
            m[k] += 0.1 * (g - m[k])
            v[k] += 0.001 * (g * g - v[k])
            w[k] -= rate * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)

    return update


def throughput(backend: str, w: Parameters, x: Array, seconds: float = 0.5) -> float:
    """Measure a backend's throughput, forward and backward, in steps of one sequence per second."""
    with fastrnn.use_backend(backend):
        runs, start = -1, 0.0  # the first run warms up
        while runs < 0 or time.perf_counter() - start < seconds:
            result = fastrnn.lstm_forward(x, w["W"], w["U"], w["b"], training=True)
            fastrnn.lstm_backward(result.y, result.cache)
            runs += 1
            start = start or time.perf_counter()
        return runs * T * BATCH / (time.perf_counter() - start)


def main(seed: int = 0) -> int:
    """Train an LSTM on the 2-back echo task, test it, and compare backends.

    Return 0 if the error on unseen sequences is below BAR, else 1.
    """
    rng = np.random.default_rng(seed)
    unseen = echo(np.random.default_rng(seed + 1), 256)
    w = initial(rng)
    update = adam(w, RATE)
    backend = fastrnn.config()["backend"]
    print(f"{LAG}-back echo, {T} steps, batches of {BATCH}: LSTM with {HIDDEN} units, {backend} backend")
    start = time.perf_counter()
    for step in range(1, STEPS + 1):
        loss, gradients = loss_and_gradients(w, *echo(rng))
        update(gradients)
        if step == 1 or step % 50 == 0:
            print(f"batch {step:4d}   mean squared error {loss:.5f}   {time.perf_counter() - start:5.2f} s")
    error = float(np.mean((predict(w, unseen[0])[0] - unseen[1]) ** 2))
    passed = error < BAR
    print(f"unseen sequences: mean squared error {error:.5f}, {'under' if passed else 'NOT UNDER'} {BAR}")
    rates = {name: throughput(name, w, echo(rng)[0]) for name in dict.fromkeys((backend, "numpy"))}
    for name, rate in rates.items():
        print(f"{name:<7}{rate:12,.0f} steps/s, forward and backward ({rate / rates['numpy']:.1f} x numpy)")
    print("No file was written. Next: docs/tutorial.md, or help(fastrnn.LSTM); the code is fastrnn/demo.py")
    return 0 if passed else 1
