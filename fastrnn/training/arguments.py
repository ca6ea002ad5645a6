"""Argument checks that only training needs; every message names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastrnn import checks
from fastrnn.checks import integer

T = TypeVar("T")


def number(name: str, value: Any, below: float = math.inf, positive: bool = False) -> float:
    """Return a finite Python float, at least 0 (above 0 if `positive`) and below `below`."""
    least = "above 0" if positive else "at least 0"
    expected = f"a number {least}" + (f" and below {below:g}" if below < math.inf else "")
    found = checks.number(name, value, expected)
    if not 0 <= found < below or (positive and found == 0):
        raise ValueError(f"{name}: expected {expected}, got {found}")
    return found


def count(name: str, value: Any) -> int:
    """Return an integer of at least 0."""
    found = integer(name, value, "an integer of at least 0")
    if found < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {found}")
    return found


def by_name(argument: str, which: Any, kind: type[Any], table: Mapping[str, Callable[[], T]]) -> T:
    """Return `which` if it is an instance of `kind`, else a new instance of that name."""
    if isinstance(which, kind):
        instance: T = which
        return instance
    names = ", ".join(map(repr, table))
    if not isinstance(which, str):
        raise TypeError(f"{argument}: expected a {kind.__name__} or one of {names}, got {which!r}")
    if which not in table:
        raise ValueError(f"{argument}: expected a {kind.__name__} or one of {names}, got {which!r}")
    return table[which]()
