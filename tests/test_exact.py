"""Results that must be equal to the last bit.

With small integers a linear cell has no rounding errors, so every implementation must agree with integer arithmetic.
The native kernels promise that a sequence's result does not depend on threads, the rest of the batch, padding, training
or inference, and the memory layout.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.problems import CELLS, PUBLIC, THREADED, Arrays, Problem, make, run
from support.promises import BY_STEP, cut, in_a_batch, inferred, laid_by_sequence, padded, padding, part, split
from support.tolerance import assert_same_bits

DTYPES = (np.float32, np.float64)
EVERYTHING = {"lengths": True, "resets": True}


def everything(cell: str, sizes: tuple[int, int, int, int], **options: object) -> Problem:
    """Return a float32 problem with lengths, resets and all outputs."""
    cells = {"return_cells": True} if PUBLIC[cell][0] == "lstm" else {}
    return make(cell, sizes, dtype=np.float32, **(EVERYTHING | cells | options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", ["rnn_identity", "rnn_relu"])
@pytest.mark.parametrize("sizes", [(4, 7, 5, 33), (5, 1, 3, 97), (3, 67, 17, 15), (3, 31, 1, 1)])
def test_small_integers(cell: str, sizes: tuple[int, int, int, int], dtype: type, implementation: str) -> None:
    problem = integers(cell, sizes)
    bound = max(np.abs(a).max() for a in in_integers(problem, absolute=True).values())
    assert bound < 2**24, "a sum may be rounded in float32"
    expected = {name: a.astype(dtype) for name, a in in_integers(problem).items()}
    got = run(problem.astype(dtype))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == dtype
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def integers(cell: str, sizes: tuple[int, int, int, int]) -> Problem:
    """Inputs from -2 to 2 and about two weights of -1 or 1 per row of U, so that nothing exceeds 2^24."""
    problem = make(cell, sizes, seed=3, resets=True)
    rng = np.random.default_rng(3)
    whole = {n: rng.integers(-2, 3, a.shape).astype(float) for n, a in (problem.inputs | problem.cotangents).items()}
    H = sizes[3]
    whole["U"] = rng.choice([-1.0, 1.0], (H, H)) * (rng.random((H, H)) < 2 / H)
    return problem.changed(**whole | {"resets": problem.inputs["resets"]})


def in_integers(problem: Problem, absolute: bool = False) -> Arrays:
    """Compute a linear or ReLU recurrence and its gradients in int64; `absolute` bounds every partial sum."""
    arrays = {n: a.astype(np.int64) for n, a in (problem.inputs | problem.cotangents).items() if n != "resets"}
    if absolute:
        arrays = {name: abs(a) for name, a in arrays.items()}
    x, W, U, b, b_rec, h, dy, dh = (arrays[n] for n in ("x", "W", "U", "b", "b_rec", "h0", "dy", "dh_n"))
    keep = ~problem.inputs["resets"][:, :, None]
    linear = problem.cell == "rnn_identity" or absolute
    before, y, dx, dW, dU, db = [], [], [], 0, 0, 0
    for t in range(len(x)):
        before.append(h * keep[t])
        a = x[t] @ W.T + b + before[t] @ U.T + b_rec
        h = a if linear else np.maximum(a, 0)
        y.append(h)
    for t in reversed(range(len(x))):
        da = (dh + dy[t]) * (1 if linear else y[t] > 0)
        dx.append(da @ W)
        dW, dU, db = dW + da.T @ x[t], dU + da.T @ before[t], db + da.sum(axis=0)
        dh = (da @ U) * keep[t]
    gradients = {"dx": np.stack(dx[::-1]), "dW": dW, "dU": dU, "db": db, "db_rec": db, "dh0": dh}
    return {"y": np.stack(y), "h_n": h} | gradients


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", THREADED)
def test_threads(cell: str, sizes: tuple[int, int, int, int], native: str) -> None:
    problem = everything(cell, sizes)
    alone = run(problem, threads=1)
    for threads in (2, 3, 8):
        assert_same_bits(run(problem, threads=threads), alone)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_batch(cell: str, reverse: bool, native: str) -> None:
    """In another order, in a smaller batch, or alone, a sequence and its gradients are the same."""
    problem = everything(cell, (6, 33, 17, 31), reverse=reverse)
    whole = run(problem)
    for sequences in (np.random.default_rng(0).permutation(33), slice(5, 12), slice(20, 21)):
        assert_same_bits(*in_a_batch(problem, whole, sequences))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_padding(cell: str, reverse: bool, native: str) -> None:
    """NaN in the padding, also of upstream gradients, has no effect; a sequence cut to its length gives the same."""
    problem = everything(cell, (9, 7, 5, 17), reverse=reverse)
    clean = run(problem)
    past = padding(problem)
    assert 0 < past.sum() < past.size
    for steps in (0, 3):
        assert_same_bits(*padded(problem, clean, steps, np.nan))
    for name in ("y", "c", "dx"):
        assert name not in clean or not clean[name][past].any(), name
    for n in range(7):
        assert_same_bits(*cut(problem, clean, n))


@pytest.mark.parametrize("cell", CELLS)
def test_training_or_not(cell: str, implementation: str) -> None:
    problem = everything(cell, (9, 7, 5, 33))
    assert_same_bits(*inferred(problem, run(problem)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [(12, 7, 5, 17), (70, 33, 3, 15)])
@pytest.mark.parametrize("cell", CELLS)
def test_checkpoint(cell: str, sizes: tuple[int, int, int, int], reverse: bool, implementation: str) -> None:
    """Recomputed steps give the same gradients, whether or not k divides T, and if k exceeds it."""
    problem = everything(cell, sizes, reverse=reverse)
    kept = run(problem)
    for k in (1, 5, 6, sizes[0], 100, "auto"):
        assert_same_bits(run(problem, checkpoint=k), kept)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_split_in_time(cell: str, reverse: bool, native: str) -> None:
    """Two calls that pass states forwards and gradients backwards."""
    problem = everything(cell, (11, 7, 5, 33), reverse=reverse)
    assert_same_bits(*split(problem, run(problem), 4))


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole"])
def test_gradients_that_vanish_are_carried_back_too(cell: str, native: str) -> None:
    """A saturated gate passes no gradient; the remaining zero has a sign."""
    problem = make(cell, (4, 7, 5, 17), dtype=np.float32)
    problem = problem.changed(x=problem.inputs["x"] * np.float32(1e30))
    whole = run(problem)
    assert ((whole["dc0"] == 0) & np.signbit(whole["dc0"])).any()
    assert_same_bits(*split(problem, whole, 2))


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first(cell: str, native: str) -> None:
    problem = everything(cell, (9, 7, 5, 33))
    assert_same_bits(*laid_by_sequence(problem, run(problem)))


@pytest.mark.parametrize("cell", CELLS)
def test_unbatched(cell: str, implementation: str) -> None:
    """A 2-D x is a batch of one, and is returned without the batch axis."""
    batched = everything(cell, (9, 1, 5, 17))
    inputs = part(batched.inputs | batched.cotangents)
    alone = {name: a[:, 0] if name in BY_STEP else a[0] for name, a in inputs.items()}
    expected = run(batched)
    without = {name: a[:, 0] if name in BY_STEP else a[0] for name, a in part(expected).items()}
    assert_same_bits(run(batched.changed(**alone)), expected | without)


@pytest.mark.parametrize("cell", CELLS)
def test_reverse_is_forward_on_the_flipped_sequence(cell: str, native: str) -> None:
    problem = everything(cell, (9, 7, 5, 17))
    lengths = problem.inputs["lengths"]

    def flipped(arrays: Arrays) -> Arrays:
        """Reverse each sequence's valid steps and leave its padding in place."""
        turned = {name: a.copy() for name, a in arrays.items()}
        for name, a in turned.items():
            for n, length in enumerate(lengths if name in BY_STEP else ()):
                a[:length, n] = a[:length, n][::-1]
        return turned

    forwards = run(problem.changed(**flipped(problem.inputs), **flipped(problem.cotangents)))
    assert_same_bits(part(run(problem, reverse=True)), part(flipped(forwards)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_resets_cut_the_sequence(cell: str, reverse: bool, native: str) -> None:
    """A reset starts a new sequence from zeros: the old state may be NaN, and no gradient crosses."""
    problem = make(cell, (8, 7, 5, 17), dtype=np.float32, reverse=reverse)
    states = {name: np.full_like(a, np.nan) for name, a in problem.inputs.items() if name in ("h0", "c0")}
    at = np.zeros((8, 7), bool)
    at[7 if reverse else 0] = True
    got = run(problem.changed(resets=at, **states))
    fresh = run(problem.changed(**dict.fromkeys(states)))
    for name in states:
        assert not got.pop(f"d{name}").any()
    assert_same_bits(got, fresh)
