"""Weights that were kept gate by gate."""

from __future__ import annotations

from typing import Any

from fastrnn.layers.recurrent import Recurrent


def from_gates(
    *,
    transposed: bool | None = None,
    reset_after: bool | None = None,
    update: str | None = None,
    activation: str | None = None,
    batch_first: bool = False,
    **gates: Any,
) -> Recurrent:
    """A layer from an array for each gate: Wi, Wf, Wc, Wo, Ui, ..., bi, ...

    >>> # to come
    """
    raise NotImplementedError
