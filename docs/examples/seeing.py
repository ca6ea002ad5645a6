"""Three figures: a training, the gates of an LSTM, and gradients that vanish and explode.

    pip install 'fastrnn[plot]'
    python docs/examples/seeing.py pictures        # writes history.png, gates.png and gradients.png there

The task is to remember one number: each sequence is noise, one of its first steps is marked, and after the last
step the answer is whether the noise was above 0 at the mark. The gates of the trained LSTM show how it does that: input
gates open at the mark and forget gates stay open (near 1) after it, so that the cell state holds the answer.

In the third figure the line of the exploding gradient ends where it exceeds the range of float32.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import fastrnn
import fastrnn.plot

STEPS, EARLY, HIDDEN = 40, 10, 12


def marked_noise(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (N, T, 2): noise, and 1 at the mark; and y (N, 1): 1 if the noise is above 0 there."""
    x = np.zeros((samples, STEPS, 2), np.float32)
    x[:, :, 0] = rng.standard_normal((samples, STEPS))
    everyone, marks = np.arange(samples), rng.integers(EARLY, size=samples)
    x[everyone, marks, 1] = 1
    return x, (x[everyone, marks, :1] > 0).astype(np.float32)


def trained(epochs: int, samples: int, seed: int = 0) -> tuple[fastrnn.LSTM, fastrnn.training.History]:
    """Start with forget gates at 0.95 = sigmoid(3), so that some gradient reaches the mark.

    With a bias of 1 what is left of it after 35 steps is 0.73**35, and some seeds learn nothing.
    """
    rng = np.random.default_rng(seed)
    lstm = fastrnn.LSTM(2, HIDDEN, return_sequences=False, batch_first=True, forget_bias=3.0, rng=rng)
    model = fastrnn.Sequential([lstm, fastrnn.Dense(HIDDEN, 1, "sigmoid", rng=rng)])
    model.compile(fastrnn.training.Adam(0.01, clip_norm=1.0), "binary_crossentropy", ["binary_accuracy"])
    x, y = marked_noise(rng, samples)
    return lstm, model.fit(x, y, epochs, validation_split=0.25, rng=rng)


def vanishing() -> fastrnn.RNN:
    """The sigmoid's slope is at most 1/4, so every step removes at least three quarters of the gradient."""
    return fastrnn.RNN(2, HIDDEN, activation="sigmoid", batch_first=True, rng=4)


def exploding() -> fastrnn.RNN:
    """Recurrent weights of standard deviation 10, and no saturation."""
    wide = {"U": fastrnn.initializers.RandomNormal(stddev=10.0)}
    return fastrnn.RNN(2, HIDDEN, activation="relu", batch_first=True, initializer=wide, rng=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="train for a moment, to see that it runs")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    lstm, history = trained(*((2, 64) if arguments.quick else (40, 2000)), arguments.seed)
    x, _ = marked_noise(np.random.default_rng(6), 16)
    layers = {"RNN, sigmoid": vanishing(), "RNN, weights of std 10": exploding(), "LSTM, trained": lstm}
    pictures = {
        "history": fastrnn.plot.history(history),
        "gates": fastrnn.plot.gates(lstm, x),
        "gradients": fastrnn.plot.gradient_norms(layers, x),
    }
    for name, figure in pictures.items():
        figure.savefig(arguments.folder / f"{name}.png", dpi=150)
    accuracy = history.history["val_binary_accuracy"][-1]
    print(f"accuracy {accuracy:.3f} on new sequences; marks at steps {', '.join(map(str, x[:3, :, 1].argmax(axis=1)))}")
    print(f"{', '.join(f'{name}.png' for name in pictures)} are in {arguments.folder}; docs/gallery.md explains them.")
    if accuracy < 0.95 and not arguments.quick:
        sys.exit("too low: expected 0.95 at least")


if __name__ == "__main__":
    main()
