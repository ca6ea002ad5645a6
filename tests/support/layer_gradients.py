"""Layers of every cell with all optional arguments, and all their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from support import stacks
from support.problems import Arrays
from support.stacks import EVERYTHING, MERGED, as_given, layer, named

#: (num_layers, options)
STACKS: list[tuple[int, dict[str, Any]]] = [(1, {}), (3, {}), (2, {"dropout": 0.4}), (2, {"bias": False})]
STACKS += [(n, {"bidirectional": True, "merge": m}) for n in (1, 2) for m in MERGED if m or n == 1]
STACKS += [(3, {"bidirectional": True, "dropout": 0.3, "merge": "mul"})]


def inputs(cell: str, net: Any, layout: str, given: tuple[str, ...], T: int = 5, B: int = 3) -> Arrays:
    x, keywords = stacks.inputs(cell, net, (T, B), layout, 7, given)
    return {"x": x} | keywords


def forward(net: Any, x: Any, state: Any = None, **options: Any) -> Any:
    given = None if state is None else as_given(state)
    return net.forward(x, state=given, training=True, rng=3, **options)


def flat(y: Any, state: Any) -> Arrays:
    return named(y, state) if state is not None else {"y": y}


def cotangents(net: Any, given: Arrays) -> Arrays:
    """Return random cotangents of all outputs."""
    out = forward(net, **given)
    rng = np.random.default_rng(8)
    return {name: rng.standard_normal(a.shape).astype(a.dtype) for name, a in flat(*out[:2]).items()}


def split(d: Arrays) -> tuple[Any, Any]:
    """Return dy and dstate as backward expects them."""
    dy = d["y"] if "y" in d else (d["y0"], d["y1"]) if "y0" in d else None
    dstate = tuple(d[name] for name in ("h_n", "c_n") if name in d)
    return dy, as_given(dstate) if dstate else None


def gradients(net: Any, given: Arrays, d: Arrays) -> Arrays:
    dy, dstate = split(d)
    back = net.backward(dy, forward(net, **given).cache, dstate=dstate)
    initial = {} if back.dstate is None else {k[0] + "0": v for k, v in named(0, back.dstate).items() if k != "y"}
    assert list(back.grads) == list(net.parameters())
    return back.grads | initial | ({} if back.dx is None else {"x": back.dx})


WIDE = (11, 6, 5, 17)  # T, B, I, H


def wide(cell: str, num_layers: int, dtype: type, **options: Any) -> tuple[Any, Arrays]:
    T, B, I, H = WIDE
    net = layer(cell, I, H, num_layers, dtype=dtype, **options)
    return net, inputs(cell, net, "batch" if net.batch_first else "time", EVERYTHING, T, B)
