"""The interface of an implementation for the benchmarks, and the comparison of two."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastrnn.types import Array

from .cells import Cell
from .problem import Problem


class Work(NamedTuple):
    """A call to time, and a function that reads its results."""

    call: Callable[[], Any]  #: computes everything, and returns only when finished
    collect: Callable[[Any], dict[str, Array]]  #: y and, in training, the gradient of each of the problem's inputs


class Peer:
    """One implementation in its own process, pinned to `threads` CPUs before any framework is imported."""

    title: ClassVar[str]
    package: ClassVar[str]  #: package to install, also the module's name
    slow: ClassVar[bool] = False  #: whether to skip it if a call takes a second

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.package) is not None

    @classmethod
    def offers(cls, cell: Cell, training: bool, lengths: bool) -> bool:
        """Return whether it has the cell, can train it and takes unequal lengths, as far as requested."""
        return True

    def prepare(self, problem: Problem, training: bool) -> Work:
        """Do all work before the first call: pass weights, compile graphs."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the instruction set that it reports, and other details that its version does not show; "" for
        nothing.
        """
        return ""


def relative_error(got: Array, expected: Array) -> float:
    """Return ||got - expected|| / ||expected||; infinite if the shapes differ, NaN if a value is."""
    if got.shape != expected.shape:
        return float("inf")
    distance, size = float(np.linalg.norm(got.astype(np.float64) - expected)), float(np.linalg.norm(expected))
    if size == 0:
        return 0.0 if distance == 0 else float("inf")
    return distance / size


def worst_error(got: dict[str, Array], expected: dict[str, Array]) -> float:
    """Return the largest relative error; infinite if an output is missing or surplus, NaN if one is."""
    if got.keys() != expected.keys():
        return float("inf")
    return float(np.max([relative_error(got[name], expected[name]) for name in expected]))
