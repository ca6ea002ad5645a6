"""Hostile calls raise a readable error, or give the correct result.

What is right although it looks wrong has the bits of the plain call.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.hostile import (
    ALL,
    FLOATS,
    GIVEN,
    NO_ARRAY,
    NO_SHAPE,
    OPTIONS,
    SIZES,
    SOME_ARRAY,
    Case,
    Index,
    Spoil,
    T,
    refused,
    rnn_weights,
    table,
    zeros,
)
from support.problems import CELLS, COTANGENTS, make, run
from support.tolerance import assert_same_bits

import fastrnn


def with_(name: str, spoil: Spoil) -> Callable[[], Any]:
    return lambda: run(ALL.changed(**{name: spoil(GIVEN[name])}))


@table([Case(n, what, with_(n, f)) for n in FLOATS for what, f in NO_ARRAY.items()])
def test_non_arrays(case: Case) -> None:
    refused(case)


@table([Case(n, what, with_(n, f), ValueError) for n in FLOATS for what, f in NO_SHAPE.items() if what != "one short"])
def test_wrong_shapes(case: Case) -> None:
    """Before anything of that size is allocated."""
    refused(case)


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("kind", SOME_ARRAY)
def test_unusual_arrays(kind: str, name: str) -> None:
    a = GIVEN[name] if GIVEN[name].dtype != np.intp else GIVEN[name].astype("l")
    assert_same_bits(run(ALL.changed(**{name: SOME_ARRAY[kind](a)})), run(ALL))


@table(
    [
        Case("x", "scalar arrays in a list", lambda: fastrnn.rnn_forward([np.float32(1)] * 4, *rnn_weights())),
        Case("x", "B of 2**57", lambda: fastrnn.rnn_forward(zeros(0, 2**57, 2), *rnn_weights(16))),
        Case("x", "T of 2**57", lambda: fastrnn.rnn_forward(zeros(2**57, 0, 2), *rnn_weights(16))),
        Case("x", "layer, B of 2**57", lambda: fastrnn.RNN(2, 16, rng=0)(zeros(0, 2**57, 2))),
        Case("x", "layer, T of 2**57", lambda: fastrnn.RNN(2, 16, rng=0)(zeros(2**57, 0, 2))),
        Case("x", "batch-first", lambda: fastrnn.rnn_forward(zeros(2**57, 0, 2), *rnn_weights(16), batch_first=True)),
        Case(
            "W", "its own transpose", lambda: fastrnn.rnn_forward(zeros(5, 3, 2), rnn_weights()[0].T, rnn_weights()[1])
        ),
        Case("U", "one axis", lambda: fastrnn.rnn_forward(zeros(5, 3, 2), rnn_weights()[0], zeros(4))),
        Case("U", "LSTM's for an RNN", lambda: fastrnn.rnn_forward(zeros(5, 3, 2), zeros(16, 2), zeros(16, 4))),
        Case("U", "RNN's for a GRU", lambda: fastrnn.gru_forward(zeros(5, 3, 2), *rnn_weights(), reset_after=True)),
        Case("p", "W", lambda: run(ALL.changed(p=ALL.inputs["W"]))),
        Case(
            "h0", "batched, of one sequence", lambda: fastrnn.rnn_forward(zeros(5, 2), *rnn_weights(), h0=zeros(1, 4))
        ),
        Case("h0", "unbatched", lambda: fastrnn.rnn_forward(zeros(5, 1, 2), *rnn_weights(), h0=zeros(4))),
    ]
)
def test_sizes(case: Case) -> None:
    refused(case)


@table(
    [Case(name, what, lambda n=name, v=v: run(ALL, **{n: v})) for name, o in OPTIONS.items() for what, v in o.items()]
)
def test_options(case: Case) -> None:
    refused(case)


SAME_OPTIONS: list[dict[str, Any]] = [
    {"threads": np.int8(2)},
    {"threads": np.array(2)},
    {"threads": 2**70},
    {"threads": Index(3)},
    {"threads": np.uint64(2**64 - 1)},
    {"checkpoint": np.uint8(2)},
    {"checkpoint": 2**70},
    {"checkpoint": np.str_("auto")},
    {"reverse": np.False_},
    {"batch_first": np.False_, "return_cells": np.True_},
    {"lengths": tuple(ALL.inputs["lengths"].tolist())},
    {"lengths": list(ALL.inputs["lengths"].astype(np.uint8))},
    {"lengths": array.array("b", ALL.inputs["lengths"].tolist())},
    {"resets": ALL.inputs["resets"].tolist()},
    {"resets": (ALL.inputs["resets"] * np.uint8(7)).view(bool)},
]


@pytest.mark.parametrize("options", SAME_OPTIONS, ids=str)
def test_unusual_valid_options(options: dict[str, Any], backend: str) -> None:
    assert_same_bits(run(ALL, **options), run(ALL))


def plain(function: Callable[..., Any], **options: Any) -> Callable[[], Any]:
    return lambda: function(**options)


@table(
    [
        *[
            Case("activation", repr(v)[:20], plain(fastrnn.rnn_forward, x=zeros(1, 1), W=1, U=1, activation=v))
            for v in (None, 1, [], "TANH", b"tanh", np.array(["tanh"]), np.array(["tanh", "relu"]), np.tanh, {})
        ],
        *[
            Case("reset_after", repr(v), plain(fastrnn.gru_forward, x=zeros(1, 1), W=1, U=1, reset_after=v))
            for v in (None, 1, "True", np.array(True), 0.0)
        ],
        *[
            Case("threads", repr(v), plain(fastrnn.set_num_threads, threads=v))
            for v in (0, None, True, "1", [1], -(2**80))
        ],
        *[Case("backend", repr(v), plain(fastrnn.use_backend, name=v), TypeError) for v in (None, [], 1, b"numpy")],
        Case("backend", "case", plain(fastrnn.use_backend, name="NUMPY")),
        *[Case("instruction set", repr(v), plain(fastrnn.use_isa, name=v)) for v in (None, [], 1, "", "avx2")],
    ]
)
def test_settings(case: Case) -> None:
    before = fastrnn.config()
    refused(case)
    assert fastrnn.config() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0])
@pytest.mark.parametrize("cell", CELLS)
def test_hostile_numbers(cell: str, value: float, backend: str) -> None:
    """In one sequence, or in all: no crash, no warning, and no effect on other sequences or the padding."""
    problem = make(cell, SIZES, dtype=np.float32, lengths=True)
    x = problem.inputs["x"].copy()
    x[:, 1] = value
    got, expected = run(problem.changed(x=x)), run(problem)
    others = [0, 2]
    assert_same_bits({"y": got["y"][:, others]}, {"y": expected["y"][:, others]})
    assert_same_bits({"dx": got["dx"][:, others]}, {"dx": expected["dx"][:, others]})
    for t, b in np.argwhere(np.arange(T)[:, None] >= problem.inputs["lengths"]):
        assert not got["y"][t, b].any()
        assert not got["dx"][t, b].any()
    for name in COTANGENTS:
        if name in problem.cotangents:
            run(problem.changed(**{name: np.full_like(problem.cotangents[name], value)}))
    run(problem.changed(**{name: np.full_like(a, value) for name, a in problem.inputs.items() if a.dtype.kind == "f"}))
