"""The same numbers in other memory, and guards round what is allocated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def strided(a: np.ndarray) -> np.ndarray:
    """Every second element of every axis of a larger array."""
    large = np.zeros([2 * n for n in a.shape], a.dtype)
    view = large[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def backwards(a: np.ndarray) -> np.ndarray:
    """Negative strides along every axis."""
    return np.flip(np.flip(a).copy())


def unaligned(a: np.ndarray) -> np.ndarray:
    """One byte off, as in a memory-mapped file with a header."""
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Every array that NumPy's `empty` makes meanwhile stands between guards of 128 bytes, which must survive."""
    guards, empty = [], np.empty

    def between(shape: Any, dtype: Any = float, *rest: Any) -> np.ndarray:
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = empty(n + 256, np.uint8)
        buffer[:] = 0xA5
        guards.append((buffer[:128], buffer[128 + n :]))
        return buffer[128 : 128 + n].view(dtype).reshape(shape)

    with patch.object(np, "empty", between):
        yield
    assert guards
    assert all((guard == 0xA5).all() for pair in guards for guard in pair)
