"""Whether arrays that a cache refers to, without a copy, are what they were when it was made.

Looking at every element would cost, by estimate, a tenth of some trainings. Sixteen of each array, spread over it, are
enough to notice an optimizer's step or a buffer that holds the next batch; a change of a few elements goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastrnn.cells import Array

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


def changed(name: str) -> ValueError:
    return ValueError(
        f"cache: {name} was changed after the forward that made it, so that its gradients would be wrong; "
        "change it after the backward, or run the forward again"
    )
