"""Predict the next letter: a GRU learns to write like a licence, one character after another.

The text is one that is on the machine: the GNU General Public License on a Debian system, otherwise Python's language
reference. It is cut into as many strips as a batch has rows. The batches are pages, one after the other along the
strips: `stateful=True` carries the state from page to page, and `truncate=` cuts the backward pass, but not the state,
into windows (truncated backpropagation through time: Williams and Peng, "An efficient gradient-based algorithm for
on-line training of recurrent network trajectories", Neural Computation 2, 1990).

    python docs/examples/character_model.py

Then it writes, a character at a time, with `stream().step`. Exits with an error if the cross-entropy of the last
epoch, in nats per character, is above a limit. A uniform guess has 4.3 nats; the letters' frequencies give 3.2.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

import fastrnn
from fastrnn.training import Adam

GPL = Path("/usr/share/common-licenses/GPL-3")
STRIPS, PAGE, WINDOW = 16, 256, 32
HIDDEN, EMBEDDING, RATE = 128, 32, 4e-3


def read() -> str:
    return GPL.read_text() if GPL.exists() else "\n".join(topics.values())[:35_000]


def pages(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y (N, PAGE): row n of each batch of STRIPS rows continues row n of the previous batch."""
    count = (len(codes) - 1) // (STRIPS * PAGE)
    size = count * STRIPS * PAGE

    def cut(a: np.ndarray) -> np.ndarray:
        return a.reshape(STRIPS, count, PAGE).swapaxes(0, 1).reshape(-1, PAGE)

    return cut(codes[:size]), cut(codes[1 : size + 1])


def write(model: fastrnn.Sequential, letters: np.ndarray, start: str, length: int, rng: np.random.Generator) -> str:
    """Let the model continue from `start`, drawing each character from its prediction."""
    embedding, gru, dense = model.layers
    stream = gru.stream()
    text = start
    for n in range(len(start) + length - 1):
        h = stream.step(embedding(np.searchsorted(letters, [text[n]])))
        if n == len(text) - 1:
            probabilities = dense(h)[0].astype(float)
            text += rng.choice(letters, p=probabilities / probabilities.sum())
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="A language model of characters.")
    parser.add_argument("--quick", action="store_true", help="a few seconds, and a higher bar")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    quick = arguments.quick
    epochs, bar = (4, 2.0) if quick else (40, 1.0)
    rng = np.random.default_rng(arguments.seed)
    letters, codes = np.unique(list(read()), return_inverse=True)
    x, y = pages(codes)

    model = fastrnn.Sequential(
        [
            fastrnn.Embedding(len(letters), EMBEDDING, rng=rng),
            fastrnn.GRU(EMBEDDING, HIDDEN, reset_after=True, rng=rng),
            fastrnn.Dense(HIDDEN, len(letters), "softmax", rng=rng),
        ]
    )
    print(model.summary())
    model.compile(Adam(RATE, clip_norm=1.0), "categorical_crossentropy", metrics=["accuracy"])
    start = time.perf_counter()
    history = model.fit(x, y, epochs=epochs, batch_size=STRIPS, shuffle=False, stateful=True, truncate=WINDOW).history
    seconds = time.perf_counter() - start
    for epoch in range(0, epochs, 1 if quick else 5):
        print(f"epoch {epoch + 1:3d}   nats per character {history['loss'][epoch]:.3f}")

    for prompt in ("The ", "You may ", "This License "):
        print(f"\n----- {write(model, letters, prompt, 200, rng)}")

    loss = history["loss"][-1]
    passed = loss < bar
    print(f"\n{loss:.3f} nats per character, {'below' if passed else 'NOT BELOW'} {bar}; {seconds:.1f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
