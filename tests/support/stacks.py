"""Layers of every cell, and the same stacks composed of functional calls, which a layer must equal."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrnn
from support.problems import PUBLIC, Arrays

CLASSES = {"rnn": fastrnn.RNN, "gru": fastrnn.GRU, "lstm": fastrnn.LSTM}
PARAMETERS = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh", "p": "peephole"}
STATES = ("h", "c")
EVERYTHING = ("state", "lengths", "resets")  #: optional arguments of a call besides x
LAYOUTS = ("time", "batch", "alone")
MERGED = {
    "concat": lambda f, b: np.concatenate([f, b], axis=-1),
    "sum": lambda f, b: f + b,
    "mul": lambda f, b: f * b,
    "average": lambda f, b: (f + b) / 2,
    None: lambda f, b: (f, b),
}


def layer(cell: str, I: int, H: int, num_layers: int = 1, *, rng: Any = 0, **options: Any) -> Any:
    family, _, chosen = PUBLIC[cell]
    peephole = {"peephole": True} if cell == "lstm_peephole" else {}
    return CLASSES[family](I, H, num_layers, rng=rng, **chosen, **peephole, **options)


def states(cell: str, *shape: int, dtype: Any = np.float32, seed: Any = 0) -> tuple[np.ndarray, ...]:
    """Return a random array for each state of the cell."""
    rng = np.random.default_rng(seed)
    return tuple(rng.uniform(-1, 1, shape).astype(dtype) for _ in STATES[: 2 if PUBLIC[cell][0] == "lstm" else 1])


def as_given(state: tuple[np.ndarray, ...]) -> Any:
    """Return the states in a layer's form: a single array, or a pair."""
    return state if len(state) > 1 else state[0]


def named(y: Any, state: Any) -> Arrays:
    """Return the results of a layer or a stream by name: y (or y0 and y1 of two directions), h_n and c_n."""
    pairs = zip(STATES, state if isinstance(state, tuple) else (state,), strict=False)
    outputs = dict(zip(("y0", "y1"), y, strict=True)) if isinstance(y, tuple) else {"y": y}
    return outputs | {f"{name}_n": s for name, s in pairs}


def composed(net: Any, cell: str, x: np.ndarray, state: tuple[np.ndarray, ...] | None = None, **options: Any) -> Arrays:
    """Return the expected `named(*net(...))` from one functional call per layer and direction."""
    family, _, chosen = PUBLIC[cell]
    forward, weights = getattr(fastrnn, f"{family}_forward"), net.state_dict()
    final: list[list[np.ndarray]] = [[] for _ in STATES]
    for level in range(net.num_layers):
        outputs = []
        for reverse in (False, True)[: 1 + net.bidirectional]:
            way = f"_l{level}{'_reverse' if reverse else ''}"
            own = {key: weights[name + way] for key, name in PARAMETERS.items() if name + way in weights}
            which = level * (1 + net.bidirectional) + reverse
            own |= {f"{name}0": s[which] for name, s in zip(STATES, state or (), strict=False)}
            result = forward(x, **own, **chosen, reverse=reverse, batch_first=net.batch_first, **options)
            outputs.append(result.y)
            for name, parts in zip(STATES, final, strict=True):
                parts += [getattr(result, f"{name}_n")] if hasattr(result, f"{name}_n") else []
        x = MERGED[net.merge](*outputs) if net.bidirectional else outputs[0]
    return named(x, tuple(np.stack(parts) for parts in final if parts))


def inputs(
    cell: str, net: Any, sizes: tuple[int, int], layout: str, seed: Any, given: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return x, and the optional arguments named in `given`, in the requested layout."""
    T, B = sizes
    rng = np.random.default_rng(seed)
    shape = {"time": (T, B), "batch": (B, T), "alone": (T,)}[layout]
    batch = () if layout == "alone" else (B,)
    lengths = rng.permutation(np.r_[T, 0, rng.integers(0, T + 1, B)][:B])  # both among them if there are two
    every = {
        "state": states(cell, net.num_layers * (1 + net.bidirectional), *batch, net.hidden_size, dtype=net.dtype),
        "lengths": np.array(rng.integers(1, T + 1)) if layout == "alone" else lengths,
        "resets": rng.random(shape) < 0.2,
    }
    x = rng.standard_normal((*shape, net.input_size)).astype(net.dtype)
    return x, {name: every[name] for name in given}


def run(net: Any, x: np.ndarray, state: tuple[np.ndarray, ...] | None = None, **options: Any) -> Arrays:
    """Call the layer and return its results by name."""
    return named(*net(x, None if state is None else as_given(state), **options))
