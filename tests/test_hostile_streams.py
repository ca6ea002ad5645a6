"""Hostile steps, states and options of streams raise an error or work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.hostile import (
    GIVEN,
    NO_ARRAY,
    NO_SHAPE,
    ONE,
    PAIR,
    SOME_ARRAY,
    B,
    Case,
    H,
    I,
    refused,
    table,
)
from support.tolerance import assert_same_bits

import fastrnn

NET = fastrnn.LSTM(I, H, rng=0)


def step(**changes: Any) -> Callable[[], Any]:
    return lambda: NET.stream(B).step(**{"x": GIVEN["x"][0]} | changes)


def state(n: int = 2, **changes: Any) -> tuple[np.ndarray, ...]:
    shape = changes.pop("shape", (1, B, H))
    return tuple([np.zeros(shape, changes.get("dtype", np.float32)) for _ in range(n)])


def overlapping(strides: tuple[int, int]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.zeros(100, np.float32), (B, H), strides)


READ_ONLY = np.frombuffer(bytes(4 * B * H), np.float32)


def assigned(value: Any) -> Callable[[], Any]:
    return lambda: setattr(NET.stream(B), "state", value)


@table(
    [
        *[Case("x", what, step(x=f(GIVEN["x"][0]))) for what, f in NO_ARRAY.items() if what != "released"],
        *[Case("x", what, step(x=f(GIVEN["x"][0])), ValueError) for what, f in NO_SHAPE.items()],
        *[Case("out", what, step(out=f(np.zeros((B, H), "f4")))) for what, f in NO_ARRAY.items() if what != "released"],
        *[Case("out", what, step(out=f(np.zeros((B, H), "f4"))), ValueError) for what, f in NO_SHAPE.items()],
        Case("out", "read-only", step(out=READ_ONLY.reshape(B, H)), ValueError),
        Case("out", "bytes", step(out=memoryview(READ_ONLY.reshape(B, H))), ValueError),
        Case("out", "Fortran's order", step(out=np.zeros((H, B), "f4").T), ValueError),
        Case("out", "the same row for all", step(out=overlapping((0, 4))), ValueError),
        Case("out", "rows that overlap", step(out=overlapping((8, 4))), ValueError),
        Case("out", "rows that overlap, backwards", step(out=overlapping((4, 4))[::-1]), ValueError),
        Case("out", "the state", step(out=ONE[0], state=(ONE[:1], ONE[1:])), ValueError),
        Case(
            "out", "half of the state", step(out=ONE.reshape(-1)[6 : 6 + B * H].reshape(B, H), state=(ONE[:1], ONE[1:]))
        ),
        Case("state", "h alone", step(state=ONE[:1]), ValueError),
        Case("state", "a list of one", step(state=[ONE[:1]]), ValueError),
        Case("state", "three", step(state=state(3)), ValueError),
        Case("state", "nothing", step(state=()), ValueError),
        Case("state", "text", step(state="hc"), TypeError),
        Case("state", "an array of no axes", step(state=np.array(1.0)), TypeError),
        Case("state", "a dict", step(state=dict(zip("hc", state(), strict=True))), TypeError),
        Case("state", "a generator", step(state=(s for s in state())), TypeError),
        Case("state", "None in it", step(state=(None, ONE[:1])), TypeError),
        Case("state", "c is h", step(state=(ONE[:1], ONE[:1])), ValueError),
        Case(
            "state", "c overlaps h", step(state=(ONE[:1], ONE.reshape(-1)[6 : 6 + B * H].reshape(1, B, H))), ValueError
        ),
        Case("state", "without L", step(state=state(shape=(B, H))), ValueError),
        Case("state", "of another batch", step(state=state(shape=(1, B + 1, H))), ValueError),
        Case("state", "read-only", step(state=(READ_ONLY.reshape(1, B, H), ONE[:1])), ValueError),
        Case("state", "in Fortran's order", step(state=(np.zeros((H, B, 1), "f4").T, ONE[:1])), ValueError),
        Case("state", "float64", step(state=state(dtype=np.float64)), TypeError),
        Case("state", "masked", step(state=(np.ma.array(ONE[:1]), ONE[1:])), TypeError),
        *[
            Case("state", f"assigned {what}", assigned(value))
            for what, value in {
                "None": None,
                "h": ONE[:1],
                "text": "hc",
                "one": (ONE[:1],),
                "three": (ONE[:1],) * 3,
                "None in it": (ONE[:1], None),
                "float64": state(dtype=np.float64),
                "without L": state(shape=(B, H)),
                "masked": (np.ma.array(ONE[:1]), ONE[1:]),
            }.items()
        ],
        *[
            Case("sequences", repr(v)[:24], lambda v=v: NET.stream(B).reset(v), IndexError)
            for v in (
                B,
                -B - 1,
                [0, B],
                1.5,
                None,
                True,
                False,
                "0",
                {0},
                np.ones((B, H), bool),
                [True, False],
                [[0]],
                [[1, 2], [3]],
                [0.0],
            )
        ],
        *[
            Case("batch_size", repr(v), lambda v=v: NET.stream(v))
            for v in (0, -1, 1.0, None, "1", True, 2**62, 2**70, [1])
        ],
        *[Case("threads", repr(v), lambda v=v: NET.stream(1, threads=v)) for v in (0, 1.0, "1", True, [1])],
        Case("stream", "two directions", lambda: PAIR.stream(), ValueError),
    ]
)
def test_streams(case: Case, backend: str) -> None:
    refused(case)


@pytest.mark.parametrize("kind", SOME_ARRAY)
def test_unusual_arrays_in_a_stream(kind: str, backend: str) -> None:
    expected = NET.stream(B).step(GIVEN["x"][0])
    assert_same_bits({"y": NET.stream(B).step(SOME_ARRAY[kind](GIVEN["x"][0]))}, {"y": expected})


def test_a_rejected_step_changes_nothing(implementation: str) -> None:
    stream = NET.stream(B)
    expected = NET.stream(B).step(GIVEN["x"][0])
    for hostile in ({"x": None}, {"x": GIVEN["x"][0], "out": 1}, {"x": GIVEN["x"][0], "state": (ONE[:1], ONE[:1])}):
        with pytest.raises((TypeError, ValueError)):
            stream.step(**hostile)
    for hostile_index in (B, True):
        with pytest.raises(IndexError):
            stream.reset(hostile_index)
    assert_same_bits({"y": stream.step(GIVEN["x"][0])}, {"y": expected})


def test_x_and_out_share_memory(implementation: str) -> None:
    """x may also share memory with the state: it is read before anything is written."""
    net = fastrnn.LSTM(H, H, rng=0)
    x = GIVEN["h0"]
    plain_stream, own = net.stream(B), net.stream(B)
    first, second = plain_stream.step(x), plain_stream.step(x)
    both = x.copy()
    assert own.step(both, out=both) is both
    h, c = state()
    own.state = (first[None], own.state[1])
    assert_same_bits({"y": both}, {"y": first})
    again = net.stream(B)
    again.step(x, state=(h, c))
    x_in_h = h
    h[0] = first
    expected = net.stream(B).step(first.copy(), state=(h.copy(), c.copy()))
    assert_same_bits({"y": again.step(x_in_h[0], state=(h, c))}, {"y": expected})
    assert second.shape == (B, H)
