"""Ways to combine the outputs of two directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastrnn.types import Array


class Merge(NamedTuple):
    """The combined output, and both outputs' gradients from its gradient."""

    forward: Callable[[Array, Array], Any]
    backward: Callable[[Any, Array, Array], tuple[Any, Any]]


def half(a: Array) -> Array:
    halved: Array = a / a.dtype.type(2)
    return halved


MERGES: dict[str | None, Merge] = {
    "concat": Merge(
        lambda forward, backward: np.concatenate((forward, backward), axis=-1),
        lambda dy, forward, backward: (dy[..., : forward.shape[-1]], dy[..., forward.shape[-1] :]),
    ),
    "sum": Merge(np.add, lambda dy, forward, backward: (dy, dy)),
    "mul": Merge(np.multiply, lambda dy, forward, backward: (dy * backward, dy * forward)),
    "average": Merge(lambda forward, backward: half(forward + backward), lambda dy, *_: (half(dy), half(dy))),
    None: Merge(lambda forward, backward: (forward, backward), lambda dy, *_: dy),
}
