"""Layers with options drawn at random, for what converts them."""

from __future__ import annotations

from typing import Any

import numpy as np
from stacks import layer

import fastrnn
from fastrnn.cells import CELLS

MANY = range(24)


def drawn(seed: int, cells: Any = tuple(CELLS), **fixed: Any) -> Any:
    """A layer of some cell and options, of which `fixed` says some."""
    rng = np.random.default_rng([27, seed])
    L, two = int(fixed.pop("num_layers", rng.integers(1, 4))), bool(fixed.get("bidirectional", rng.integers(2)))
    options: dict[str, Any] = {
        "bias": [True, False, "input"][rng.integers(3)],
        "batch_first": bool(rng.integers(2)),
        "dropout": float(rng.random()) if L > 1 else 0.0,
        "bidirectional": two,
        "merge": ["concat", "sum", "mul", "average", None][rng.integers(4 if L > 1 else 5)] if two else "concat",
        "return_sequences": bool(rng.integers(2)),
        "dtype": [np.float32, np.float64][rng.integers(2)],
    }
    cell = str(rng.choice(cells))
    I, H = (int(n) for n in rng.integers(1, 6, 2))
    return layer(cell, I, H, L, rng=rng, **options | fixed)


def given(net: Any, seed: int = 0, T: int = 6, B: int = 3) -> np.ndarray:
    """An input of the layer."""
    x = np.random.default_rng([28, seed]).standard_normal((T, B, net.input_size)).astype(net.dtype)
    return x.swapaxes(0, 1) if net.batch_first else x


def settings(net: Any) -> dict[str, Any]:
    """Everything that makes a recurrent layer what it is, beside its parameters."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "merge")
    return {name: getattr(net, name) for name in (*names, "return_sequences", "weight_dtype", "dtype")} | {
        "class": type(net),
        "cell": repr(net)[repr(net).index("[") :],
    }


def bound(net: Any) -> float:
    """For assert_close against an implementation of the same dtype."""
    return 1e-12 if net.dtype == np.float64 else 2e-6


def small() -> fastrnn.Sequential:
    return fastrnn.Sequential(
        [
            fastrnn.Embedding(5, 3, padding_idx=1, rng=0),
            fastrnn.Sequential([fastrnn.LSTM(3, 4, peephole=True, rng=1), fastrnn.Dropout(0.5)]),
            fastrnn.Dense(4, 2, "tanh", bias=False, rng=2),
            fastrnn.Activation("softmax"),
        ]
    )


def written() -> tuple[fastrnn.GRU, np.ndarray, np.ndarray]:
    """A GRU from gates whose z says how much is written, an x (T, B, I), and y by the textbook's loop."""
    rng = np.random.default_rng(4)
    W, U, b = (dict(zip("zrh", rng.uniform(-1, 1, (3, *shape)), strict=True)) for shape in ((4, 3), (4, 4), (4,)))
    x, h, y = rng.standard_normal((6, 2, 3)), np.zeros((2, 4)), []
    for x_t in x:
        a = {gate: x_t @ W[gate].T + b[gate] for gate in "zrh"}
        z, r = (1 / (1 + np.exp(-(a[gate] + h @ U[gate].T))) for gate in "zr")
        h = (1 - z) * h + z * np.tanh(a["h"] + (r * h) @ U["h"].T)
        y.append(h)
    named = {f"{kind}{gate}": own[gate] for kind, own in (("W", W), ("U", U), ("b", b)) for gate in "zrh"}
    gates = {name: a.astype(np.float32) for name, a in named.items()}
    gru = fastrnn.from_gates(**gates, reset_after=False, update="write")
    return gru, x.astype(np.float32), np.array(y)
