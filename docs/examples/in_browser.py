"""An LSTM in a web page: trained here, written as C, compiled to WebAssembly, and run step by step in a browser.

    pip install ziglang
    python docs/examples/in_browser.py page.html    # then open page.html in a browser

The task is to remove the noise from a wave: one noisy number in, one number out, step by step. The page is a single
file that loads nothing else: in_browser.html with the model inserted into its JavaScript.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from checking import claim

import fastrnn

HIDDEN, STEPS, NOISE = 16, 200, 0.3


def waves(rng: np.random.Generator, samples: int, noise: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x (N, T, 1), y with noise; and y (N, T, 1), waves of 20 to 80 steps with varying frequency."""
    wander = np.cumsum(0.01 * rng.standard_normal((samples, STEPS)), axis=1)
    frequency = 2 * np.pi / rng.uniform(20, 80, (samples, 1)) * np.exp(wander)
    phase = rng.uniform(0, 2 * np.pi, (samples, 1)) + np.cumsum(frequency, axis=1)
    y = rng.uniform(0.3, 1, (samples, 1)) * np.sin(phase)
    x = y + noise * rng.standard_normal(y.shape)
    return x[..., None].astype(np.float32), y[..., None].astype(np.float32)


def trained(epochs: int, seed: int = 0) -> fastrnn.Sequential:
    rng = np.random.default_rng(seed)
    model = fastrnn.Sequential([fastrnn.LSTM(1, HIDDEN, rng=rng), fastrnn.Dense(HIDDEN, 1, rng=rng)])
    model.compile(fastrnn.training.Adam(0.01, clip_norm=1.0), "mse")
    model.fit(*waves(rng, 512, rng.uniform(0, 2 * NOISE, (512, 1))), epochs, rng=rng)
    return model


def webassembly(model: fastrnn.Sequential) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        fastrnn.to_c(model, Path(folder, "amp.c"))
        kept = [f"-Wl,--export={name}" for name in ("amp_init", "amp_step", "__heap_base")]
        options = ["-target", "wasm32-wasi", "-mexec-model=reactor", "-msimd128", "-O2", "-s", *kept]
        clang = [sys.executable, "-m", "ziglang", "cc"]
        subprocess.run([*clang, *options, "amp.c", "-o", "amp.wasm"], cwd=folder, check=True)
        return Path(folder, "amp.wasm").read_bytes()


def write_page(model: fastrnn.Sequential, path: Path, x: np.ndarray) -> None:
    """Write the page, which also computes the outputs for x (T, 1) and shows their distance from the model's own."""
    wasm, y = base64.b64encode(webassembly(model)).decode(), model.predict(x[None])
    gaps = {"WASM": wasm, "HIDDEN": HIDDEN, "X": x.ravel().tolist(), "Y": y.ravel().tolist()}
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    path.write_text(page.replace('"GAPS"', json.dumps(gaps)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the file to write")
    parser.add_argument("--quick", action="store_true", help="train for a fraction of a second")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = trained(2 if given.quick else 40, given.seed)
    x, y = waves(np.random.default_rng([given.seed, 1]), 100, NOISE)
    error = float(np.sqrt(np.mean((model.predict(x) - y) ** 2)))
    claim(f"the LSTM leaves less than two thirds of the noise of {NOISE}: {error:.2f}", error < 2 / 3 * NOISE)
    write_page(model, given.page, x[0])
    print(f"Open {given.page} in a browser.")


if __name__ == "__main__":
    main()
