"""Ragged calls, which have no padding: the bits of padded calls, and memory in proportion to the valid steps."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS, Arrays
from support.stacks import layer
from support.tolerance import assert_same_bits

from fastrnn import backends
from fastrnn.packed import PackedStack, Tape

#: by name, falling lengths
LENGTHS: dict[str, Callable[[Any], np.ndarray]] = {
    "random": lambda rng: rng.integers(0, 12, 13),
    "one sequence": lambda rng: np.array([7]),
    "all equal": lambda rng: np.full(5, 6),
    "all of one step": lambda rng: np.ones(9, int),
    "all empty": lambda rng: np.zeros(3, int),
    "no sequences": lambda rng: np.zeros(0, int),
    "one long": lambda rng: np.r_[60, rng.integers(1, 4, 40)],
}

Sizes = tuple[int, int, int]


def falling(kind: str, rng: Any) -> np.ndarray:
    return -np.sort(-LENGTHS[kind](rng)).astype(np.int64)


def ragged(a: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return a[np.arange(len(a))[:, None] < lengths]


def padded(a: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the padded array, with NaN in the padding."""
    T = int(lengths.max(initial=0))
    whole = np.full((T, len(lengths), *a.shape[1:]), True if a.dtype == bool else np.nan, a.dtype)
    whole[np.arange(T)[:, None] < lengths] = a
    return whole


def stack_of(cell: str, sizes: Sizes, directions: int = 2, merge: str | None = "concat") -> PackedStack:
    I, H, L = sizes
    return layer(cell, I, H, L, bidirectional=directions == 2, merge=merge, rng=1).stack


def everything(
    stack: PackedStack, lengths: np.ndarray, as_padded: bool, threads: int = 1, checkpoint: int | None = None
) -> Arrays:
    """Return outputs of inference and training, and all gradients, of a random problem; as ragged arrays."""
    rng = np.random.default_rng(len(lengths))
    N, calls = int(lengths.sum()), len(stack.parts)
    features = stack.widths[0] * (len(stack.directions) if stack.merge == "concat" else 1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(stack.dtype)

    def given(a: np.ndarray) -> np.ndarray:
        return padded(a, lengths) if as_padded else a

    x, resets = given(draw(N, stack.input_size)), given(rng.random(N) < 0.2)
    init, dfinal = [tuple([draw(calls, len(lengths), width) for width in stack.widths]) for _ in range(2)]
    masks = [given(draw(N, features)) for _ in range(stack.num_layers - 1)]
    tape = Tape(backends.of(stack.cell), masks, checkpoint)
    found: Arrays = {}
    for name, own in (("", tape), ("inferred ", None)):
        y, final = stack.forward(x, init, lengths, resets, threads=threads, tape=own)
        found |= {f"{name}y": y} | {f"{name}final {k}": a for k, a in enumerate(final)}
    grads = stack.backward(tape, given(draw(N, features)), dfinal)
    assert grads.dinit is not None
    found |= {"dx": grads.dx} | {f"dinit {k}": a for k, a in enumerate(grads.dinit)}
    found |= {f"d{key} {i}": a for i, part in enumerate(grads.dparts) for key, a in part.items()}
    steps = {"y", "inferred y", "dx"} if as_padded else set()
    return {name: ragged(a, lengths) if name in steps else a for name, a in found.items()}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_as_padded_calls(cell: str, kind: str, implementation: str) -> None:
    lengths, stack = falling(kind, np.random.default_rng(0)), stack_of(cell, (3, 17, 2))
    assert_same_bits(everything(stack, lengths, False), everything(stack, lengths, True))


@pytest.mark.parametrize("kind", ["random", "one long"])
@pytest.mark.parametrize("cell", ["lstm", "gru_before"])
def test_checkpoints_and_threads(cell: str, kind: str, native: str) -> None:
    """Large enough for several threads, which share the rows of the batch."""
    lengths = falling(kind, np.random.default_rng(0))
    for directions in (1, 2):
        stack = stack_of(cell, (5, 70, 2), directions, merge="sum")
        expected = everything(stack, lengths, True)
        for threads, checkpoint in ((2, None), (3, 4), (1, 1), (2, 100)):
            assert_same_bits(everything(stack, lengths, False, threads, checkpoint), expected)


def test_memory_is_proportional_to_the_steps(native: str) -> None:
    """Training with one sequence of 2,000 steps and 99 of two; padding would make 90 times as many steps."""
    lengths, stack = np.r_[2000, np.full(99, 2)], stack_of("gru_after", (8, 16, 2), directions=1)
    everything(stack, np.r_[3, 1], False)  # memory kept between calls
    N = int(lengths.sum())
    tracemalloc.start()
    everything(stack, lengths, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * N * (8 + 16) * 4 < 100 * 2000 * 16 * 4
