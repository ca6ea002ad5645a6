"""What an implementation is to the benchmarks, and how two of them are compared."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastrnn.types import Array

from .cells import Cell
from .problem import Problem


class Work(NamedTuple):
    """A call to time, and how to read what it returned."""

    call: Callable[[], Any]  #: does everything, and returns only when it is done
    collect: Callable[[Any], dict[str, Array]]  #: y and, of training, the gradient of each of the problem's inputs


class Peer:
    """One implementation in its own process, pinned to `threads` CPUs before any framework is imported."""

    title: ClassVar[str]
    package: ClassVar[str]  #: what has to be installed, also the module's name
    slow: ClassVar[bool] = False  #: is it skipped where a call takes a second?

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.package) is not None

    @classmethod
    def offers(cls, cell: Cell, training: bool, lengths: bool) -> bool:
        """Whether it has the cell, can train it, and takes sequences of unequal length, as far as it is asked to."""
        return True

    def prepare(self, problem: Problem, training: bool) -> Work:
        """Everything that a user does once, before the first call: weights are given, graphs compiled."""
        raise NotImplementedError

    def describe(self) -> str:
        """The instruction set that it says it uses, and what else its version does not say; "" for nothing."""
        return ""


def relative_error(got: Array, expected: Array) -> float:
    """||got - expected|| / ||expected||; infinite if the shapes differ, NaN if a value is."""
    if got.shape != expected.shape:
        return float("inf")
    distance, size = float(np.linalg.norm(got.astype(np.float64) - expected)), float(np.linalg.norm(expected))
    if size == 0:
        return 0.0 if distance == 0 else float("inf")
    return distance / size


def worst_error(got: dict[str, Array], expected: dict[str, Array]) -> float:
    """The largest relative error; infinite if an output is missing or too many, NaN if one is."""
    if got.keys() != expected.keys():
        return float("inf")
    return float(np.max([relative_error(got[name], expected[name]) for name in expected]))
