"""Layers with recurrent dropout, zoneout or weight drop, their masks, and all results of training."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrnn
import fastrnn.inspect
from fastrnn.cells import tanh
from support.problems import Arrays
from support.stacks import as_given, layer

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


def problem(net: Any, T: int, B: int, seed: int) -> tuple[Arrays, Arrays]:
    """Return a problem with all optional arguments, and cotangents of all results."""
    rng = np.random.default_rng(seed)
    H, ways, cell = net.hidden_size, 1 + net.bidirectional, net.stack.cell
    given = {"x": rng.standard_normal((T, B, net.input_size))}
    given |= {f"{name}0": rng.standard_normal((net.num_layers * ways, B, H)) for name in cell.states}
    given |= {name: rng.standard_normal((T, B, H)) for name in cell.inputs}
    d = {"y": rng.standard_normal((T, B, ways * H))}
    d |= {f"{name}_n": rng.standard_normal((net.num_layers * ways, B, H)) for name in cell.states}
    given, d = ({name: a.astype(net.dtype) for name, a in arrays.items()} for arrays in (given, d))
    return given | {"lengths": rng.integers(0, T + 1, B), "resets": rng.random((T, B)) < 0.2}, d


def results(net: Any, given: Arrays, d: Arrays, seed: int, **options: Any) -> Arrays:
    """Return the same as `by_autograd`."""
    cell = net.stack.cell
    e = {name: given[name] for name in cell.inputs} or None
    state = as_given(tuple([given[f"{name}0"] for name in cell.states]))
    options |= {"lengths": given["lengths"], "resets": given["resets"], "e": e}
    y, final, cache = net.forward(given["x"], state=state, training=True, rng=seed, **options)
    back = net.backward(d["y"], cache, dstate=as_given(tuple([d[f"{name}_n"] for name in cell.states])))
    finals, dstates = (s if isinstance(s, tuple) else (s,) for s in (final, back.dstate))
    found = {"y": y} | {f"{n}_n": s for n, s in zip(cell.states, finals, strict=True)} | {"dx": back.dx}
    found |= {f"d{name}0": s for name, s in zip(cell.states, dstates, strict=True)}
    found |= {f"d{name}": a for name, a in back.grads.items()}
    return found | {f"d{name}": a for name, a in getattr(back, "de", {}).items()}
