"""Detect changes to arrays that a cache or packed weights were made from.

Comparing every element would cost an estimated tenth of some training runs. Sixteen elements spread over each array
are enough to detect an optimizer step or a reused batch buffer; a change of a few elements goes undetected. Small
weights are compared in full, which takes no longer than picking elements.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from fastrnn.types import Array, Arrays


def _hashes(arrays: Arrays) -> list[int | None]:
    return [hash(a.tobytes()) for a in arrays]


#: a hash of each array of at most `SAMPLES` elements
contents: Callable[[Arrays], list[int | None]] = _hashes
with contextlib.suppress(ImportError):  # not built
    import _fastrnn

    contents = _fastrnn.fingerprints

#: elements compared per array; `_fastrnn.pyx` has the same number
SAMPLES = 16

#: arrays of at most this many bytes are compared in full by `Watched`
SMALL = 2**13

#: an array's name -> bytes of some of its elements
Fingerprint = dict[str, bytes]


def fingerprint(arrays: Mapping[str, Array | None]) -> Fingerprint:
    """Return a sample of the elements of each array that is not None."""
    return {name: a.flat[:: -(-a.size // SAMPLES) or 1].tobytes() for name, a in arrays.items() if a is not None}


def expect_unchanged(before: Fingerprint, arrays: Mapping[str, Array | None]) -> None:
    now = fingerprint(arrays)
    for name, seen in before.items():
        if now[name] != seen:
            raise changed(name)


def spread(a: Array) -> Array:
    """Return a view of up to sixteen elements of a vector or matrix, including the last.

    They are in many columns and in both even and odd rows, because part of a matrix may change alone. So the stride is
    coprime to the row length, and is some whole rows plus about 0.6 of a row.
    """
    a = a.T if a.flags.f_contiguous else a
    if not a.flags.c_contiguous:  # gaps between the rows: a grid
        steps = [-(-n // math.isqrt(SAMPLES)) or 1 for n in a.shape]
        return a[tuple([slice((n - 1) % step, None, step) for n, step in zip(a.shape, steps, strict=True)])]
    step = -(-a.size // SAMPLES) or 1
    rows, width = a.shape if a.ndim == 2 else (1, 2)  # for a vector, even and odd elements
    if rows > SAMPLES:
        step += (round(0.618 * width) - step) % width
    while math.gcd(step, width) > 1:
        step += 1
    return a.reshape(-1)[(a.size - 1) % step :: step]


class Watched:
    """Weights, and what they held when this was made: every element of small ones, a few of larger ones."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        ordered = [a.T if a.flags.f_contiguous else a for a in arrays]
        small = [a.nbytes <= SMALL and a.flags.c_contiguous for a in ordered]
        self._whole = [a.reshape(-1).view(np.uint8).data for a, whole in zip(ordered, small, strict=True) if whole]
        self._samples = tuple([spread(a) for a, whole in zip(ordered, small, strict=True) if not whole])
        self._copies = [bytearray(view) for view in self._whole]  # compares with any buffer by memcmp
        self._seen = contents(self._samples)

    def unchanged(self) -> bool:
        return self._copies == self._whole and contents(self._samples) == self._seen


def changed(name: str) -> ValueError:
    return ValueError(
        f"cache: {name} was changed after the forward that made it, so its gradients would be wrong; "
        "change it after the backward, or run the forward again"
    )
