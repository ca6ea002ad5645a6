"""Who is speaking? A many-to-one LSTM on recorded speech of unequal length, with NumPy and fastrnn alone.

Japanese Vowels: nine men say /ae/; each utterance is 7 to 29 frames of 12 LPC cepstrum coefficients (dimensionless),
270 to train on and 370 to test (Kudo, Toyama, Shimbo, "Multidimensional curve classification using passing-through
regions", Pattern Recognition Letters 20, 1999). The data comes inside the aeon package; only the files are read:

    pip install --no-deps aeon
    python docs/examples/japanese_vowels.py

An LSTM reads each utterance to its own end (`lengths=`), its last state goes through a linear layer to nine classes,
and Adam minimises the cross-entropy. Exits with an error below an accuracy of 0.95 on the test set.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from pathlib import Path

import numpy as np

import fastrnn

HIDDEN, EPOCHS, BATCH, RATE, NOISE, BAR = 64, 60, 30, 4e-3, 0.4, 0.95

Parameters = dict[str, np.ndarray]


def read(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (T, N, 12) padded with zeros, lengths (N,), speakers 0..8 (N,) of "TRAIN" or "TEST"."""
    files = importlib.metadata.files("aeon") or []
    [path] = [Path(str(f.locate())) for f in files if f.name == f"JapaneseVowels_{split}.ts"]
    _, _, data = path.read_text().partition("@data\n")
    utterances, speakers = [], []
    for line in data.split():
        *channels, speaker = line.split(":")
        utterances.append(np.array([channel.split(",") for channel in channels], np.float32).T)
        speakers.append(int(speaker) - 1)
    lengths = np.array([len(u) for u in utterances])
    x = np.zeros((lengths.max(), len(utterances), 12), np.float32)
    for n, utterance in enumerate(utterances):
        x[: len(utterance), n] = utterance
    return x, lengths, np.array(speakers)


def valid(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(T, N): which frames are not padding."""
    return np.arange(len(x))[:, None] < lengths


def initial(rng: np.random.Generator) -> Parameters:
    """Uniform weights of PyTorch's scale."""
    shapes = {"W": (4 * HIDDEN, 12), "U": (4 * HIDDEN, HIDDEN), "b": (4 * HIDDEN,), "V": (9, HIDDEN), "a": (9,)}
    return {k: (rng.uniform(-1, 1, shape) / np.sqrt(HIDDEN)).astype(np.float32) for k, shape in shapes.items()}


def scores(
    w: Parameters, x: np.ndarray, lengths: np.ndarray, training: bool = False
) -> tuple[np.ndarray, np.ndarray, fastrnn.Cache | None]:
    """The nine scores of each utterance (N, 9), the last states (N, HIDDEN), and the LSTM's cache."""
    _, h_n, _, cache, _ = fastrnn.lstm_forward(x, w["W"], w["U"], w["b"], lengths=lengths, training=training)
    return h_n @ w["V"].T + w["a"], h_n, cache


def gradients(w: Parameters, x: np.ndarray, lengths: np.ndarray, speakers: np.ndarray) -> tuple[float, Parameters]:
    """The cross-entropy, and its gradient with respect to every parameter."""
    s, h_n, cache = scores(w, x, lengths, training=True)
    q = np.exp(s - s.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    truth = np.eye(9, dtype=np.float32)[speakers]
    d = (q - truth) / np.float32(len(s))
    g = fastrnn.lstm_backward(None, cache, dh_n=d @ w["V"])
    loss = -float(np.mean(np.log(np.sum(q * truth, axis=1) + 1e-12)))
    return loss, {"W": g.dW, "U": g.dU, "b": g.db, "V": d.T @ h_n, "a": d.sum(axis=0)}


def train(w: Parameters, x: np.ndarray, lengths: np.ndarray, speakers: np.ndarray, rng: np.random.Generator) -> None:
    """Adam (Kingma and Ba, ICLR 2015) over shuffled batches, its rate falling linearly to 0; changes w in place."""
    m, v = ({k: np.zeros_like(a) for k, a in w.items()} for _ in range(2))
    step, steps = 0, EPOCHS * -(-len(speakers) // BATCH)
    for epoch in range(1, EPOCHS + 1):
        losses = []
        for batch in np.array_split(rng.permutation(len(speakers)), -(-len(speakers) // BATCH)):
            step += 1
            noise = NOISE * rng.standard_normal((len(x), len(batch), 12), np.float32)  # 270 utterances are few
            loss, g = gradients(w, x[:, batch] + noise, lengths[batch], speakers[batch])
            losses.append(loss)
            rate = RATE * (1 - step / steps) / (1 - 0.9**step)
            for k in w:
                m[k] += 0.1 * (g[k] - m[k])
                v[k] += 0.001 * (g[k] ** 2 - v[k])
                w[k] -= rate * m[k] / (np.sqrt(v[k] / (1 - 0.999**step)) + 1e-8)
        if epoch == 1 or epoch % 10 == 0:
            print(f"epoch {epoch:3d}   cross-entropy {np.mean(losses):.4f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Tell nine speakers apart by their Japanese vowels.")
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    x, lengths, speakers = read("TRAIN")
    x_test, lengths_test, speakers_test = read("TEST")
    frames = x[valid(x, lengths)]
    mean, scale = frames.mean(axis=0), frames.std(axis=0)

    start = time.perf_counter()
    w = initial(rng)
    train(w, (x - mean) / scale, lengths, speakers, rng)
    guesses = scores(w, (x_test - mean) / scale, lengths_test)[0].argmax(axis=1)
    accuracy = float(np.mean(guesses == speakers_test))
    passed = accuracy >= BAR
    print(
        f"test accuracy {accuracy:.4f} on {len(speakers_test)} utterances, "
        f"{'at least' if passed else 'BELOW'} {BAR}; {time.perf_counter() - start:.1f} s"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
