"""Makes the Keras models in this directory, for tests/test_convert_keras_files.py to read without Keras: *.keras,
*.h5.gz, and keras_models.npz with what Keras computed, ``<file>/x`` and ``<file>/y``.

    KERAS_BACKEND=torch python tests/data/make_keras_models.py       # Keras 3.15.1

All weights are random, including biases. Files are compressed again, to a tenth of the size that Keras writes.
"""

from __future__ import annotations

import gzip
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

HERE = Path(__file__).parent
I = 3


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((None,)),
            layers.Embedding(7, I),
            layers.Bidirectional(layers.LSTM(2, return_sequences=True), merge_mode="ave"),
            layers.GRU(3, return_sequences=True, name="gru_1"),  # Keras' own name for the second
            layers.GRU(2, return_sequences=True, reset_after=False, unroll=False, name="gru"),
            layers.SimpleRNN(4, activation="relu", return_sequences=True, use_bias=False),
            layers.Dropout(0.25),
            layers.TimeDistributed(layers.Dense(3)),
            layers.Activation("softmax"),
        ]
    )


def functional() -> keras.Model:
    x = keras.Input((None, I))
    y = layers.Bidirectional(layers.GRU(2))(x)
    return keras.Model(x, layers.Dense(2, activation="tanh", use_bias=False)(y))


MODELS: dict[str, Callable[[], keras.Model]] = {"sequential": sequential, "functional": functional}


def repacked(path: Path) -> bytes:
    """As small as it goes, and with no dates."""
    if path.suffix == ".h5":
        return gzip.compress(path.read_bytes(), mtime=0)
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for name in ("config.json", "model.weights.h5"):
            new.writestr(zipfile.ZipInfo(name), old.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def main() -> None:
    rng = np.random.default_rng(0)
    known: dict[str, np.ndarray] = {}
    for name, build in MODELS.items():
        model = build()
        model.set_weights([rng.standard_normal(w.shape).astype(np.float32) for w in model.get_weights()])
        x = rng.standard_normal((2, 5, I)).astype(np.float32) if name == "functional" else rng.integers(0, 7, (2, 5))
        known |= {f"{name}/x": x, f"{name}/y": model.predict(x, verbose=0)}
        for suffix in (".keras", ".h5"):
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / f"{name}{suffix}"
                model.save(path)
                to = HERE / f"keras_{name}{suffix}{'.gz' * (suffix == '.h5')}"
                to.write_bytes(repacked(path))
                print(f"{to.name}: {to.stat().st_size} bytes")
    np.savez_compressed(HERE / "keras_models.npz", **known)


if __name__ == "__main__":
    main()
