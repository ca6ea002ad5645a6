"""Whether arrays that something was made of, and that others can write, are what they were: a cache, packed weights.

Looking at every element would cost, by estimate, a tenth of some trainings. Sixteen of each array, spread over it, are
enough to notice an optimizer's step or a buffer that holds the next batch; a change of a few elements goes unnoticed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

from fastrnn.cells import Array, Arrays


def _hashes(arrays: Arrays) -> list[int | None]:
    return [hash(a.tobytes()) for a in arrays]


#: a hash of each array of at most `SAMPLES` elements
contents: Callable[[Arrays], list[int | None]] = _hashes
with contextlib.suppress(ImportError):  # not built
    import _fastrnn

    contents = _fastrnn.glance

#: elements looked at in each array; `_fastrnn.pyx` has the same number
SAMPLES = 16

#: an array's name -> bytes of some of its elements
Glance = dict[str, bytes]


def glance(arrays: Mapping[str, Array | None]) -> Glance:
    """Some elements of each array that is there."""
    return {name: a.flat[:: -(-a.size // SAMPLES) or 1].tobytes() for name, a in arrays.items() if a is not None}


def expect_unchanged(before: Glance, arrays: Mapping[str, Array | None]) -> None:
    now = glance(arrays)
    for name, seen in before.items():
        if now[name] != seen:
            raise changed(name)


def spread(a: Array) -> Array:
    """Up to sixteen elements of a vector or matrix, the last among them, as a view of its memory.

    They lie in many columns, and in rows of even and odd number: a part of a matrix may change alone. So the step from
    one to the next has no divisor in common with the length of a row, and is a number of rows and some 0.6 of one.
    """
    a = a.T if a.flags.f_contiguous else a
    if not a.flags.c_contiguous:  # gaps between the rows: a grid
        steps = [-(-n // math.isqrt(SAMPLES)) or 1 for n in a.shape]
        return a[tuple([slice((n - 1) % step, None, step) for n, step in zip(a.shape, steps, strict=True)])]
    step = -(-a.size // SAMPLES) or 1
    rows, width = a.shape if a.ndim == 2 else (1, 2)  # of a vector even and odd elements
    if rows > SAMPLES:
        step += (round(0.618 * width) - step) % width
    while math.gcd(step, width) > 1:
        step += 1
    return a.reshape(-1)[(a.size - 1) % step :: step]


def changed(name: str) -> ValueError:
    return ValueError(
        f"cache: {name} was changed after the forward that made it, so that its gradients would be wrong; "
        "change it after the backward, or run the forward again"
    )
