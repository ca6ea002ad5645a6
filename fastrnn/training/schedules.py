"""Learning rate schedules: callables from the step, counted from 0, to the (dimensionless) rate."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fastrnn.checks import boolean, count, finite, positive


@dataclass(frozen=True)
class ExponentialDecay:
    """``learning_rate * decay_rate^(step / decay_steps)``.

    Parameters
    ----------
    learning_rate : float
        The rate of step 0.
    decay_steps : int
        Steps over which the rate is multiplied by `decay_rate`.
    decay_rate : float
        Above 0.
    staircase : bool
        Change the rate only every `decay_steps` steps.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.

    Examples
    --------
    >>> from fastrnn.training import Adam, ExponentialDecay
    >>> rate = ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5)
    >>> rate(0), rate(20)
    (0.1, 0.025)
    >>> optimizer = Adam(rate)
    """

    learning_rate: float
    decay_steps: int
    decay_rate: float
    staircase: bool = False

    def __post_init__(self) -> None:
        finite("learning_rate", self.learning_rate, 0)
        positive("decay_steps", self.decay_steps)
        finite("decay_rate", self.decay_rate, above=0)
        boolean("staircase", self.staircase)

    def __call__(self, step: int) -> float:
        power = step // self.decay_steps if self.staircase else step / self.decay_steps
        return float(self.learning_rate * self.decay_rate**power)


@dataclass(frozen=True)
class CosineDecay:
    """Warm-up, then half a cosine from `learning_rate` to `final_rate`, after Loshchilov and Hutter [1]_, eq. 5.

    Parameters
    ----------
    learning_rate : float
        The highest rate.
    decay_steps : int
        Length of the cosine; afterwards the rate is `final_rate`.
    final_rate : float
    warmup_steps : int
        Before the cosine, the rate of step s is ``learning_rate * (s + 1) / (warmup_steps + 1)``.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    Examples
    --------
    >>> from fastrnn.training import CosineDecay
    >>> rate = CosineDecay(0.4, decay_steps=2, warmup_steps=3)
    >>> [round(rate(step), 3) for step in range(7)]
    [0.1, 0.2, 0.3, 0.4, 0.2, 0.0, 0.0]
    """

    learning_rate: float
    decay_steps: int
    final_rate: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        finite("learning_rate", self.learning_rate, 0)
        positive("decay_steps", self.decay_steps)
        finite("final_rate", self.final_rate, 0)
        count("warmup_steps", self.warmup_steps)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return float(self.learning_rate * (step + 1) / (self.warmup_steps + 1))
        done = min((step - self.warmup_steps) / self.decay_steps, 1.0)
        return float(self.final_rate + (self.learning_rate - self.final_rate) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class PiecewiseConstant:
    """``values[0]`` before step ``boundaries[0]``, from that step on ``values[1]``, and so forth.

    Parameters
    ----------
    boundaries : sequence of ints
        Increasing steps.
    values : sequence of floats
        Rates, one more than there are boundaries.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.

    Examples
    --------
    >>> from fastrnn.training import PiecewiseConstant
    >>> rate = PiecewiseConstant([100, 200], [0.1, 0.01, 0.001])
    >>> rate(99), rate(100), rate(1000)
    (0.1, 0.01, 0.001)
    """

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("boundaries", "values"):
            if not isinstance(given := getattr(self, name), Sequence) or isinstance(given, str):
                raise TypeError(f"{name}: expected a list or tuple, got {given!r}")
        boundaries = [count("boundaries", b) for b in self.boundaries]
        if boundaries != sorted(set(boundaries)):
            raise ValueError(f"boundaries: expected increasing steps, got {boundaries}")
        if len(self.values) != (needed := len(boundaries) + 1):
            raise ValueError(f"values: expected {needed}, one more than boundaries, got {len(self.values)}")
        object.__setattr__(self, "boundaries", tuple(boundaries))
        object.__setattr__(self, "values", tuple([finite("values", v, 0) for v in self.values]))

    def __call__(self, step: int) -> float:
        return self.values[bisect_right(self.boundaries, step)]
