"""Every backend, instruction set, cell, dtype and option against the NumPy reference in float64, gradients included."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from support.problems import AWKWARD, CELLS, Arrays, Problem, make, random_options, run
from support.tolerance import Measured, assert_rounded

import fastrnn

#: number of random problems for each cell and dtype
EVERY = [pytest.param(case, marks=pytest.mark.thorough if case >= 8 else ()) for case in range(12)]
KINK = 1e-5  # well above a rounding error of a pre-activation


def reference(problem: Problem) -> Arrays:
    with fastrnn.use_backend("numpy"):
        return run(problem)


def random_problem(cell: str, case: int) -> Problem:
    """Return a problem of sizes 1 to 130, often awkward ones, with any options, in float32 numbers."""
    for attempt in range(100):
        rng = np.random.default_rng([CELLS.index(cell), case, attempt])
        T, B, I, H = (int(rng.choice(AWKWARD)) if rng.integers(2) else int(rng.integers(1, 131)) for _ in range(4))
        if cell == "rnn_relu":
            T = min(T, 7)
        problem = make(cell, (T, B, I, H), dtype=np.float32, seed=rng, **random_options(cell, T, rng))
        if cell != "rnn_relu" or away_from_kink(problem):
            return problem
    raise AssertionError(f"no problem keeps away from the kink of {cell}")


def away_from_kink(problem: Problem) -> bool:
    """Return whether no pre-activation of a ReLU is so close to 0 that rounding decides its derivative."""
    b = problem.inputs.get("b", np.zeros(len(problem.inputs["W"]))).astype(np.float64)
    low, high = (reference(problem.astype(np.float64).changed(b=b + d))["y"] > 0 for d in (-KINK, KINK))
    return bool(np.array_equal(low, high))


@lru_cache(maxsize=2)
def solved(cell: str, case: int) -> tuple[Problem, Arrays, Measured]:
    """Return a problem and its float64 solution, and a dict for the measured bound, shared by all implementations."""
    problem = random_problem(cell, case).astype(np.float64)
    return problem, reference(problem), {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("cell", CELLS)
def test_random_problem(cell: str, dtype: type, case: int, fast: str) -> None:
    problem, exact, measured = solved(cell, case)
    assert_rounded(run(problem.astype(dtype)), exact, lambda: run(problem), measured)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_sigmoid", "lstm", "lstm_peephole", "gru_after", "gru_before"])
def test_saturated_gates(cell: str, fast: str) -> None:
    """Pre-activations of about +-50: the tails of sigmoid and tanh, and gradients that nearly vanish."""
    small = make(cell, (3, 17, 8, 33), dtype=np.float32, seed=1)
    problem = small.changed(**{name: 40 * small.inputs[name] for name in ("W", "U", "b")})
    wide = problem.astype(np.float64)
    assert_rounded(run(problem), reference(wide), lambda: run(wide))
