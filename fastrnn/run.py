"""Run any cell: check arguments, call the backend in use, and return results in the caller's layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import backends
from fastrnn.call import Backward, Gradients
from fastrnn.cells import Array, Cell, find, members
from fastrnn.checks import BOOLEANS, Common, Options, activation, checked_call, checked_gradient, checked_state
from fastrnn.results import Cache, Kept

ACTIVATIONS = tuple(cell.options["activation"] for cell in members("rnn"))

KEYWORDS = frozenset(Options._fields)

WEIGHTS = ("W", "U", "b", "b_rec", "p")


def rnn_cell(chosen: str, name: str = "activation") -> Cell:
    return find("rnn", activation=activation(name, chosen, ACTIVATIONS))


def gru_cell(reset_after: bool | None) -> Cell:
    """Return the GRU variant; required, because they are easily confused, so None raises TypeError."""
    if not isinstance(reset_after, BOOLEANS):
        raise TypeError(
            "reset_after: expected True (the reset gate acts after the recurrent product: PyTorch, cuDNN, Keras 3 and "
            f"TensorFlow 2) or False (before it: Cho et al. 2014, ONNX's default), got {reset_after!r:.80}"
        )
    return find("gru", reset_after=bool(reset_after))


def lstm_cell(p: Any) -> Cell:
    return find("lstm", peephole=p is not None)


def run_forward(
    cell: Cell,
    x: Any,
    weights: tuple[Any, ...],
    init: tuple[Any, ...],
    common: Common,
    return_states: bool = False,
    e: Any = None,
) -> tuple[Any, ...]:
    """Return y, the final states, the other states of every step (or None for each), and the cache."""
    if not common.keys() <= KEYWORDS:
        raise TypeError(f"{cell.family}_forward() got an unexpected keyword argument {min(common.keys() - KEYWORDS)!r}")
    if common.get("threads") is None:
        common["threads"] = backends.get_num_threads()
    options = Options(**common)
    parameters = dict(zip(WEIGHTS, weights, strict=True))
    call, unbatched = checked_call(cell, x, parameters, init, options, return_states, e)
    backend = backends.of(cell)
    (out,) = backend.forward([call])
    cache = Cache(Kept(backend, call, out.saved, unbatched)) if call.training else None
    y = callers(out.y, unbatched, call.batch_first)
    states = tuple([None if a is None else callers(a, unbatched, call.batch_first) for a in out.states])
    final = tuple([s[0] for s in out.final]) if unbatched else out.final
    return y, final, states, cache


def run_backward(
    name: str, dy: Any, cache: Cache | None, dfinal: dict[str, Any], dstates: dict[str, Any], cell: Cell | None = None
) -> Gradients:
    """Return every gradient, in the caller's layout; the cache must be of the family `name`, or of `cell` if given."""
    its = cache.kept.call.cell if isinstance(cache, Cache) else None
    if not isinstance(cache, Cache) or not its or not (its is cell if cell else its.builtin and its.family == name):
        got = repr(cache) if cache is None or isinstance(cache, Cache) else type(cache).__name__
        raise TypeError(f"cache: expected one made by {name}_forward(..., training=True), got {got}")
    backend, call, saved, unbatched = cache.kept
    _, B, _, H = call.sizes
    back = Backward(
        call,
        saved,
        checked_gradient("dy", dy, call, unbatched),
        tuple([checked_state(name, d, B, H, call.x.dtype, unbatched) for name, d in dfinal.items()]),
        tuple([checked_gradient(name, d, call, unbatched) for name, d in dstates.items()]),
    )
    (g,) = backend.backward([back])
    if unbatched:
        g = g._replace(dinit=tuple([None if d is None else d[0] for d in g.dinit]))
    if call.e:
        given = zip(g.de, call.e, call.fixed, strict=True)
        g = g._replace(de=tuple([as_given(d, e, fixed, unbatched, call.batch_first) for d, e, fixed in given]))
    return g._replace(dx=callers(g.dx, unbatched, call.batch_first))


def as_given(d: Array, e: Array, fixed: bool, unbatched: bool, batch_first: bool) -> Array:
    """Return the gradient of an extra input e from d (T, B, H): sum over the axes that e was broadcast along."""
    if e.shape[2] != d.shape[2]:
        d = np.ascontiguousarray(d).sum(axis=2, keepdims=True, dtype=np.float64)
    if not fixed:
        return callers(d.astype(e.dtype, copy=False), unbatched, batch_first)
    total = np.zeros(d.shape[1:])
    for step in d:  # in a fixed order: that of np.sum depends on the memory layout
        total += step
    total = total.astype(e.dtype)
    return total[0] if unbatched else total


def callers(a: Array, unbatched: bool, batch_first: bool) -> Array:
    """Convert (T, B, ...) to the caller's layout: the inverse of `checks.time_major`."""
    if unbatched:
        return a[:, 0]
    return a.swapaxes(0, 1) if batch_first else a
