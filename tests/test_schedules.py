"""Schedules of the learning rate: their values step by step, and errors that name the argument."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastrnn.training import SGD, CosineDecay, ExponentialDecay, PiecewiseConstant


def test_schedules_count_steps_from_0() -> None:
    """A schedule gets the number of the step, counted from 0; a new rate is used from the next step on."""
    seen: list[int] = []

    def rate(step: int) -> float:
        seen.append(step)
        return 0.5**step

    p, o = {"p": np.array(0.0)}, SGD(rate)
    for _ in range(3):
        o.step(p, {"p": np.array(1.0)})
    assert (seen, float(p["p"])) == ([0, 1, 2], -1.75)
    assert (o.rate, o.learning_rate) == (0.125, rate)
    o.learning_rate = 2.0
    o.step(p, {"p": np.array(1.0)})
    assert (o.rate, float(p["p"])) == (2.0, -3.75)

    decay = ExponentialDecay(0.1, 10, 0.5)
    assert [decay(s) for s in (0, 10, 30)] == [0.1, 0.05, 0.0125]
    assert decay(5) == pytest.approx(0.1 * math.sqrt(0.5), rel=1e-15)
    steps = ExponentialDecay(0.1, 10, 0.5, staircase=True)
    assert [steps(s) for s in (0, 9, 10, 19, 20)] == [0.1, 0.1, 0.05, 0.05, 0.025]
    cosine = CosineDecay(1.0, 8, final_rate=0.2, warmup_steps=4)
    assert [cosine(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], rel=1e-15)
    assert [cosine(s) for s in (8, 12, 13, 1000)] == pytest.approx([0.6, 0.2, 0.2, 0.2], rel=1e-15)
    pieces = PiecewiseConstant([2, 5], [0.3, 0.2, 0.1])
    assert [pieces(s) for s in (0, 1, 2, 4, 5, 99)] == [0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
    assert PiecewiseConstant([], [0.3])(7) == 0.3
    for schedule in (decay, steps, cosine, pieces):
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        hash(schedule)


@pytest.mark.parametrize(
    ("schedule", "error", "said"),
    [
        (lambda: ExponentialDecay(-0.1, 10, 0.5), ValueError, "learning_rate"),
        (lambda: ExponentialDecay(0.1, 0, 0.5), ValueError, "decay_steps"),
        (lambda: ExponentialDecay(0.1, 1.5, 0.5), TypeError, "decay_steps"),
        (lambda: ExponentialDecay(0.1, 10, 0.0), ValueError, "decay_rate"),
        (lambda: ExponentialDecay(0.1, 10, 0.5, 1), TypeError, "staircase"),
        (lambda: CosineDecay(-0.1, 10), ValueError, "learning_rate"),
        (lambda: CosineDecay(0.1, -10), ValueError, "decay_steps"),
        (lambda: CosineDecay(0.1, 10, -0.1), ValueError, "final_rate"),
        (lambda: CosineDecay(0.1, 10, 0.1, -1), ValueError, "warmup_steps"),
        (lambda: CosineDecay(0.1, 10, 0.1, 1.0), TypeError, "warmup_steps"),
        (lambda: PiecewiseConstant([3, 2], [1, 2, 3]), ValueError, "boundaries"),
        (lambda: PiecewiseConstant([2, 2], [1, 2, 3]), ValueError, "boundaries"),
        (lambda: PiecewiseConstant([-1], [1, 2]), ValueError, "boundaries"),
        (lambda: PiecewiseConstant([1.5], [1, 2]), TypeError, "boundaries"),
        (lambda: PiecewiseConstant([2], [1, 2, 3]), ValueError, "values"),
        (lambda: PiecewiseConstant([2], [1, -2]), ValueError, "values"),
        (lambda: PiecewiseConstant(5, [1, 2]), TypeError, "boundaries"),
        (lambda: PiecewiseConstant([5], 1), TypeError, "values"),
    ],
)
def test_wrong_schedules_are_refused(schedule: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=rf"^{said}: expected"):
        schedule()
