"""Shared parts of the fuzzers: counted comparisons, and shrinking of failing cases."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from support.problems import Arrays

Check = Callable[[Any], None]

counts: Counter[str] = Counter()


def same(got: Arrays, expected: Arrays, what: str, only: Any = None) -> None:
    for name in only or expected:
        a, b = got[name], expected[name]
        wrong = f"{what}: {name} is {a.dtype} {a.shape}, not {b.dtype} {b.shape}"
        assert (a.shape, a.dtype) == (b.shape, b.dtype), wrong
        if a.tobytes() != b.tobytes():  # NaNs may differ in their sign and payload
            a, b = (np.where(np.isnan(c), c.dtype.type(np.nan), c) for c in (a, b))
            assert a.tobytes() == b.tobytes(), f"{what}: {name} has other bits in {np.sum(a != b)} elements"
            counts["other NaN"] += 1
    counts[what] += 1


def failure(check: Check, case: Any) -> str | None:
    try:
        check(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def simpler(case: Any) -> Iterator[Any]:
    """Yield cases with one parameter made smaller or set to its default."""
    for f in fields(case):
        value = getattr(case, f.name)
        if f.name in ("T", "B", "I", "H"):
            yield from (replace(case, **{f.name: n}) for n in {1, value // 2, value - 1} if 1 <= n < value)
        elif f.name == "changes":
            yield from (replace(case, changes=value[:i] + value[i + 1 :]) for i in range(len(value)))
        elif f.name not in ("seed", "cell", "whole") and value != f.default:
            yield replace(case, **{f.name: f.default})


def shrunk(check: Check, case: Any) -> Any:
    """Return the simplest case that fails with the same first word of the message."""

    def kind(case: Any) -> str:
        return " ".join((failure(check, case) or "").split()[:2])

    wanted, start = kind(case), time.monotonic()
    while time.monotonic() - start < 20:
        found = next((c for c in itertools.islice(simpler(case), 100) if kind(c) == wanted), None)
        if found is None:
            break
        case = found
    return case
