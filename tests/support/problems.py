"""Random recurrences, one generator for the tests and for asv's suite.

A `Problem` is a call of the public interface as plain data: a cell of the registry by name, named arrays, random
upstream gradients and options. `forward` and `run` make the call and return its results as a flat dict.

asv runs this with builds of older commits, so it uses only public functions of fastrnn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import fastrnn

#: cell of the registry -> (family: the prefix of its public functions, gates, keywords that select the cell)
PUBLIC: dict[str, tuple[str, int, dict[str, Any]]] = {
    "rnn_tanh": ("rnn", 1, {"activation": "tanh"}),
    "rnn_relu": ("rnn", 1, {"activation": "relu"}),
    "rnn_sigmoid": ("rnn", 1, {"activation": "sigmoid"}),
    "rnn_identity": ("rnn", 1, {"activation": "identity"}),
    "lstm": ("lstm", 4, {}),
    "lstm_peephole": ("lstm", 4, {}),  # selected by passing p
    "gru_after": ("gru", 3, {"reset_after": True}),
    "gru_before": ("gru", 3, {"reset_after": False}),
}
CELLS = list(PUBLIC)

#: sizes around the widths of vectors (4, 8, 16, 32) and of tiles, where remainders occur
AWKWARD = (1, 3, 7, 15, 17, 31, 33, 97)

#: sizes shared among threads: by batch rows, by hidden units at batch 1 and at a batch too small to divide
THREADED = ((12, 70, 33, 130), (40, 1, 65, 400), (20, 5, 17, 257))

#: optional arguments of a call
BIASES: tuple[tuple[str, ...], ...] = ((), ("b",), ("b_rec",), ("b", "b_rec"))
INITIAL: tuple[tuple[str, ...], ...] = ((), ("h0",), ("c0",), ("h0", "c0"))

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """One call: shapes as in the design's table, time-major unless options["batch_first"]."""

    cell: str
    inputs: Arrays  #: x, W, U and those of b, b_rec, p, h0, c0, lengths, resets that the call has
    cotangents: Arrays  #: dy, dh_n, for an LSTM dc_n, and dc with return_cells
    options: dict[str, Any] = field(default_factory=dict)  #: reverse, batch_first, checkpoint, return_cells, threads

    @property
    def family(self) -> str:
        return PUBLIC[self.cell][0]

    def astype(self, dtype: Any) -> Problem:
        """Return the same numbers in another precision (float32 to float64 is exact)."""
        return replace(self, inputs=_cast(self.inputs, dtype), cotangents=_cast(self.cotangents, dtype))

    def changed(self, **changes: Any) -> Problem:
        """Return it with other inputs, cotangents or options by name; None removes one."""
        parts = {"inputs": dict(self.inputs), "cotangents": dict(self.cotangents), "options": dict(self.options)}
        for name, value in changes.items():
            part = parts["cotangents" if name in COTANGENTS else "inputs" if name in INPUTS else "options"]
            part.pop(name, None)
            if value is not None:
                part[name] = value
        return replace(self, **parts)


INPUTS = ("x", "W", "U", "b", "b_rec", "p", "h0", "c0", "lengths", "resets")
COTANGENTS = ("dy", "dh_n", "dc_n", "dc")


def _cast(arrays: Arrays, dtype: Any) -> Arrays:
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}


def make(
    cell: str,
    sizes: tuple[int, int, int, int],
    *,
    dtype: Any = np.float64,
    seed: Any = 0,
    biases: tuple[str, ...] = ("b", "b_rec"),
    states: tuple[str, ...] = ("h0", "c0"),
    lengths: bool = False,
    resets: bool = False,
    **options: Any,
) -> Problem:
    """Return a random problem of sizes (T, B, I, H); equal arguments give the same problem.

    Weights are uniform in +-1/sqrt(fan in), so that no state explodes and no gate saturates. `lengths` holds 0 and T
    when B allows; `resets` strikes every fifth step or so, its value in the padding included.
    """
    T, B, I, H = sizes
    family, G, _ = PUBLIC[cell]
    rng = np.random.default_rng(seed)

    def weight(*shape: int, fan_in: int = H) -> np.ndarray:
        return rng.uniform(-1, 1, shape) / np.sqrt(fan_in)

    every = {
        "x": rng.standard_normal((T, B, I)),
        "W": weight(G * H, I, fan_in=I),
        "U": weight(G * H, H),
        "b": weight(G * H),
        "b_rec": weight(G * H),
        "p": weight(3 * H),
        "h0": rng.uniform(-1, 1, (B, H)),
        "c0": rng.standard_normal((B, H)),
    }
    given = {"x", "W", "U", *biases, *(s for s in states if s == "h0" or family == "lstm")}
    if cell == "lstm_peephole":
        given.add("p")
    inputs = {name: array for name, array in every.items() if name in given}
    steps, struck = rng.permutation(np.r_[T, 0, rng.integers(0, T + 1, B)][:B]), rng.random((T, B)) < 0.2
    if lengths:
        inputs["lengths"] = steps
    if resets:
        inputs["resets"] = struck

    cotangents = {"dy": rng.standard_normal((T, B, H)), "dh_n": rng.standard_normal((B, H))}
    if family == "lstm":
        cotangents["dc_n"] = rng.standard_normal((B, H))
        if options.get("return_cells"):
            cotangents["dc"] = rng.standard_normal((T, B, H))
    problem = Problem(cell, inputs, cotangents, options).astype(dtype)
    return batch_first(problem) if options.get("batch_first") else problem


def batch_first(problem: Problem) -> Problem:
    """Return the same problem in batch-first layout."""
    turned = {
        name: np.ascontiguousarray(np.swapaxes(array, 0, 1))
        for name, array in (problem.inputs | problem.cotangents).items()
        if name in ("x", "resets", "dy", "dc")
    }
    return problem.changed(batch_first=True, **turned)


def random_options(cell: str, T: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return a random choice of everything that `make` can vary."""
    some = {
        "biases": BIASES[rng.integers(len(BIASES))],
        "states": INITIAL[rng.integers(len(INITIAL))],
        "checkpoint": [None, None, 1, int(rng.integers(1, T + 2))][rng.integers(4)],
        **{name: bool(rng.integers(2)) for name in ("lengths", "resets", "reverse", "batch_first")},
    }
    return some | {"return_cells": bool(rng.integers(2))} if PUBLIC[cell][0] == "lstm" else some


def call(problem: Problem, **changes: Any) -> tuple[Any, Arrays]:
    """Return the forward call's result and its arrays by name."""
    problem = problem.changed(**changes)
    family, _, chosen = PUBLIC[problem.cell]
    result = getattr(fastrnn, f"{family}_forward")(**chosen, **problem.inputs, **problem.options)
    return result, arrays(result)


def forward(problem: Problem, **changes: Any) -> Arrays:
    """Return y, h_n and, if present, c_n and c, from a call without training."""
    return call(problem, **changes, checkpoint=None)[1]


def run(problem: Problem, **changes: Any) -> Arrays:
    """Return the forward call's results and all gradients."""
    problem = problem.changed(training=True, **changes)
    result, outputs = call(problem)
    back = getattr(fastrnn, f"{problem.family}_backward")
    cotangents = dict(problem.cotangents)
    return outputs | arrays(back(cotangents.pop("dy", None), result.cache, **cotangents))


def arrays(result: Any) -> Arrays:
    """Return the arrays of a result by name, without absent ones."""
    return {name: value for name, value in result._asdict().items() if isinstance(value, np.ndarray)}
