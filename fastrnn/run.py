"""From checked arguments through the backend in use to results in the caller's layout; the same for every cell."""

from __future__ import annotations

from typing import Any

from fastrnn import backends
from fastrnn.call import Backward, Gradients
from fastrnn.cells import CELLS, Array
from fastrnn.checks import (
    Common,
    Options,
    boolean,
    checked_call,
    checked_gradient,
    checked_state,
)
from fastrnn.results import Cache, Kept

ACTIVATIONS = tuple(name.removeprefix("rnn_") for name in CELLS if name.startswith("rnn_"))

KEYWORDS = frozenset(Options._fields)


def rnn_cell(activation: str) -> str:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return f"rnn_{activation}"


def gru_cell(reset_after: bool) -> str:
    boolean("reset_after", reset_after)
    return "gru_after" if reset_after else "gru_before"


def lstm_cell(p: Any) -> str:
    return "lstm" if p is None else "lstm_peephole"


def family(cell: str) -> str:
    """The prefix of the cell's public functions."""
    return cell.split("_")[0]


def run_forward(
    cell: str, x: Any, weights: tuple[Any, ...], init: dict[str, Any], common: Common, return_cells: bool = False
) -> tuple[Any, ...]:
    """y, each final state, the cache, and for a cell with c the c of every step."""
    if not common.keys() <= KEYWORDS:
        raise TypeError(
            f"{family(cell)}_forward() got an unexpected keyword argument {min(common.keys() - KEYWORDS)!r}"
        )
    if common.get("threads") is None:
        common["threads"] = backends.get_num_threads()
    options = Options(**common)
    parameters = dict(zip(("W", "U", "b", "b_rec", "p"), weights, strict=True))
    call, unbatched = checked_call(cell, x, parameters, init, options, return_cells)
    backend = backends.current()
    (out,) = backend.forward([call])
    cache = Cache(Kept(backend, call, out.saved, unbatched)) if call.training else None
    y, c = (None if a is None else callers(a, unbatched, call.batch_first) for a in (out.y, out.c))
    final = (s[0] if unbatched else s for s in out.final)
    return (y, *final, cache) if len(init) == 1 else (y, *final, cache, c)


def run_backward(name: str, dy: Any, cache: Cache | None, dfinal: dict[str, Any], dc: Any = None) -> Gradients:
    """Every gradient, in the caller's layout."""
    if not isinstance(cache, Cache) or family(cache.kept.call.cell) != name:
        got = repr(cache) if cache is None or isinstance(cache, Cache) else type(cache).__name__
        raise TypeError(f"cache: expected that of {name}_forward; call {name}_forward(..., training=True); got {got}")
    backend, call, saved, unbatched = cache.kept
    _, B, _, H = call.sizes
    back = Backward(
        call,
        saved,
        checked_gradient("dy", dy, call, unbatched),
        tuple(checked_state(name, d, B, H, call.x.dtype, unbatched) for name, d in dfinal.items()),
        checked_gradient("dc", dc, call, unbatched),
    )
    (g,) = backend.backward([back])
    dinit = tuple(d[0] if d is not None and unbatched else d for d in g.dinit)
    return g._replace(dx=callers(g.dx, unbatched, call.batch_first), dinit=dinit)


def callers(a: Array, unbatched: bool, batch_first: bool) -> Array:
    """(T, B, ...) as the caller has it: the way back from `checks.time_major`."""
    if unbatched:
        return a[:, 0]
    return a.swapaxes(0, 1) if batch_first else a
