"""Recognise the speaker: a bidirectional GRU on recorded speech of unequal length, with only NumPy and fastrnn.

Japanese Vowels: nine men say /ae/; each utterance is 7 to 29 frames of 12 LPC cepstrum coefficients (dimensionless),
270 to train on and 370 to test (Kudo, Toyama, Shimbo, "Multidimensional curve classification using passing-through
regions", Pattern Recognition Letters 20, 1999). The data is part of the aeon package, of which only the files are read:

    pip install --no-deps aeon
    python docs/examples/japanese_vowels.py

Two GRUs read each utterance in both directions; a dense layer turns their last states into nine probabilities. 270
utterances are few, so in training dropout removes some of the coefficients and half of the states. Exits with an
error if the accuracy on the test set is below 0.97.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.training import Adam, CosineDecay

COEFFICIENTS, HIDDEN, SPEAKERS = 12, 64, 9
EPOCHS, BATCH, RATE, BAR = 60, 30, 4e-3, 0.97


def read(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the utterances, each (T, 12), and their speakers 0..8 (N,), of "TRAIN" or "TEST"."""
    files = importlib.metadata.files("aeon") or []
    [path] = [Path(str(f.locate())) for f in files if f.name == f"JapaneseVowels_{split}.ts"]
    _, _, data = path.read_text().partition("@data\n")
    utterances, speakers = [], []
    for line in data.split():
        *channels, speaker = line.split(":")
        utterances.append(np.array([channel.split(",") for channel in channels], np.float32).T)
        speakers.append(int(speaker) - 1)
    return utterances, np.array(speakers)


def build(rng: np.random.Generator) -> fastrnn.Sequential:
    layers = [
        fastrnn.Dropout(0.2),
        fastrnn.GRU(COEFFICIENTS, HIDDEN, reset_after=True, bidirectional=True, return_sequences=False, rng=rng),
        fastrnn.Dropout(0.5),
        fastrnn.Dense(2 * HIDDEN, SPEAKERS, "softmax", rng=rng),
    ]
    return fastrnn.Sequential(layers)


def main() -> int:
    parser = argparse.ArgumentParser(description="Tell nine speakers apart by their Japanese vowels.")
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    utterances, speakers = read("TRAIN")
    test_utterances, test_speakers = read("TEST")
    frames = np.concatenate(utterances)
    mean, scale = frames.mean(axis=0), frames.std(axis=0)
    x, x_test = ([(u - mean) / scale for u in split] for split in (utterances, test_utterances))

    start = time.perf_counter()
    model = build(rng)
    print(model.summary())
    steps = EPOCHS * -(-len(x) // BATCH)
    model.compile(Adam(CosineDecay(RATE, steps)), "categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, speakers, epochs=EPOCHS, batch_size=BATCH, rng=rng).history
    for epoch in (1, *range(10, EPOCHS + 1, 10)):
        loss, accuracy = (history[name][epoch - 1] for name in ("loss", "accuracy"))
        print(f"epoch {epoch:3d}   cross-entropy {loss:.4f}   accuracy {accuracy:.4f}")

    accuracy = model.evaluate(x_test, test_speakers)["accuracy"]
    passed = accuracy >= BAR
    print(
        f"test accuracy {accuracy:.4f} on {len(x_test)} utterances, "
        f"{'at least' if passed else 'BELOW'} {BAR}; {time.perf_counter() - start:.1f} s"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
