"""Layers with recurrent dropout, zoneout or weight drop, and their masks."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrnn
import fastrnn.inspect
from fastrnn.cells import tanh
from support.stacks import layer

RATES: dict[str, Any] = {"recurrent_dropout": 0.5, "zoneout": 0.3, "weight_drop": 0.25}
ONE_EACH = [{name: rate} for name, rate in RATES.items()]


@fastrnn.cell(gates="n", states="h", inputs=("mask", "zone_h"))
def names_taken(x: Any, U: Any, s: Any, e: Any) -> Any:
    return e.mask * tanh(x.n + U.n @ s.h) + e.zone_h


def made(cell: Any, *sizes: int, **options: Any) -> Any:
    return layer(cell, *sizes, **options) if isinstance(cell, str) else fastrnn.Recurrent(cell, *sizes, **options)


def draws(net: Any, T: int, B: int, seed: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Return the scaled masks between layers, and in each layer and direction, as documented for `Recurrent`."""
    rng = np.random.default_rng(seed)
    H, ways, names = net.hidden_size, 1 + net.bidirectional, net.stack.cell.states

    def kept(shape: tuple[int, ...], rate: float) -> np.ndarray:
        return (rng.random(shape, np.float32) >= rate) / (1 - rate)

    between = [kept((T, B, ways * H), net.dropout) for _ in range(net.num_layers - 1) if net.dropout]
    zoneout = net.zoneout if isinstance(net.zoneout, tuple) else (net.zoneout,) * len(names)
    each = []
    for _ in range(net.num_layers * ways):
        own: dict[str, Any] = {"U": 1.0, "h": 1.0}
        if net.weight_drop:
            own["U"] = kept((len(net.stack.cell.products) * H, H), net.weight_drop)
        if net.recurrent_dropout:
            own["h"] = kept((B, H), net.recurrent_dropout)
        own["zones"] = [kept((T, B, H), rate) > 0 if rate else np.full((T, B, H), True) for rate in zoneout]
        each.append(own)
    return between, each
