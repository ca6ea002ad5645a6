"""Run any cell: check arguments, call the backend in use, and return results in the caller's layout."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from fastrnn import backends
from fastrnn.call import BackwardCall, Call, Gradients
from fastrnn.cells import Cell, find, members
from fastrnn.checks import (
    BOOLEANS,
    TIME_MAJOR,
    Layout,
    activation,
    as_array,
    boolean,
    checked_checkpoint,
    checked_gradient,
    checked_inputs,
    checked_lengths,
    checked_resets,
    checked_state,
    checked_threads,
    checked_x,
    expect_heads,
    expect_room,
    floating_array,
    floats,
    size,
)
from fastrnn.results import Cache, Kept
from fastrnn.types import Array, Arrays


class Common(TypedDict, total=False):
    """The keywords of every forward; `functional.lstm_forward` documents them."""

    lengths: Any
    resets: Any
    reverse: bool
    batch_first: bool
    training: bool
    checkpoint: int | Literal["auto"] | None
    heads: int
    threads: int | None


class CallOptions(NamedTuple):
    """The keywords of `Common` with their defaults."""

    lengths: Any = None
    resets: Any = None
    reverse: bool = False
    batch_first: bool = False
    training: bool = False
    checkpoint: int | Literal["auto"] | None = None
    heads: int = 1
    threads: int | None = None


RNN_ACTIVATIONS = tuple(cell.options["activation"] for cell in members("rnn"))

KEYWORDS = frozenset(CallOptions._fields)

WEIGHTS = ("W", "U", "b", "b_rec", "p")


def rnn_cell(chosen: str, name: str = "activation") -> Cell:
    return find("rnn", activation=activation(name, chosen, RNN_ACTIVATIONS))


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


def checked_call(
    cell: Cell,
    x: Any,
    weights: dict[str, Any],
    init: tuple[Any, ...],
    options: CallOptions,
    return_states: bool = False,
    e: Any = None,
) -> tuple[Call, Layout]:
    """Return the call, and the layout of the caller's arrays."""
    boolean("reverse", options.reverse)
    boolean("batch_first", options.batch_first)
    boolean("training", options.training)
    x, layout = checked_x(floating_array("x", x), options.batch_first)
    T, B, I = x.shape
    if options.checkpoint is not None and not options.training:
        raise ValueError("checkpoint: needs training=True; got training=False")

    parameters = checked_weights(cell, weights, I, x.dtype, size("heads", options.heads))
    H = len(parameters["W"]) // cell.G
    expect_room("x", "T, B, I, H", (T, B, I, H), T, B, I + 8 * H)
    inputs: tuple[Arrays, tuple[bool, ...]] = ((), ())
    if cell.inputs or e is not None:
        inputs = checked_inputs(cell, e, (T, B, H), x.dtype, layout)
    call = Call(
        cell=cell,
        x=x,
        **parameters,
        init=tuple([checked_state(n, s, B, H, x.dtype, layout) for n, s in zip(cell.initial, init, strict=True)]),
        lengths=checked_lengths(options.lengths, T, B, layout),
        resets=checked_resets(options.resets, T, B, layout),
        reverse=bool(options.reverse),
        batch_first=layout.batch_first,
        training=bool(options.training),
        checkpoint=checked_checkpoint(options.checkpoint, T),
        return_states=bool(return_states),
        threads=checked_threads(options.threads),
        e=inputs[0],
        fixed=inputs[1],
    )
    return call, layout


def checked_step(
    cell: Cell, x: Any, state: dict[str, Any], weights: dict[str, Any]
) -> tuple[Array, Arrays, dict[str, Any]]:
    """Return x, the state and the weights of one step, of any dtype."""
    x = as_array("x", x)
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (B, I), got {x.shape}")
    parameters = checked_weights(cell, weights, x.shape[1], None)
    H = len(parameters["W"]) // cell.G
    before = tuple(floats(name, s, "(B, H)", (len(x), H), None) for name, s in state.items())
    return x, before, parameters


def checked_weights(
    cell: Cell, weights: dict[str, Any], I: int, dtype: np.dtype[Any] | None, heads: int = 1
) -> dict[str, Any]:
    """Return W, U, b, b_rec, p by name, absent ones None; I is that of x. H follows from U, or from W without U."""
    if I < 1:
        raise ValueError("x: expected at least 1 input (I >= 1), got 0")
    G, products, P, shapes = cell.G, len(cell.products), len(cell.parameters), cell.shapes
    W, U, b, b_rec, p = weights["W"], weights["U"], weights["b"], weights["b_rec"], weights["p"]
    expect_heads(cell, heads)
    if products:
        U = as_array("U", U)
        D = U.shape[-1] if U.ndim else 0
        H = heads * D
        if U.shape != (products * H, D) or H < 1:
            shape = f"{shapes['U'][:-1]}/heads) with heads = {heads}," if heads > 1 else f"{shapes['U']} with"
            raise ValueError(f"U: expected shape {shape} H >= 1, got {U.shape}")
    else:
        W = as_array("W", W)
        H = len(W) // G if W.ndim else 0
        if W.shape != (G * H, I) or H < 1:
            raise ValueError(f"W: expected shape {shapes['W']} with H >= 1, got {W.shape}")
        for name in ("U", "b_rec"):
            if weights[name] is not None:
                raise ValueError(f"{name}: cell {cell.name} has no product with U; expected None")
    if (p is None) != (P == 0):
        wanted = f"shape {shapes['p']} for {', '.join(cell.parameters)}" if P else f"None: cell {cell.name} has none"
        raise ValueError(f"p: expected {wanted}, got {'None' if p is None else 'an array'}")
    return {
        "W": floats("W", W, shapes["W"], (G * H, I), dtype),
        "U": None if U is None else floats("U", U, shapes["U"], U.shape, dtype),
        "b": None if b is None else floats("b", b, shapes["b"], (G * H,), dtype),
        "b_rec": None if b_rec is None else floats("b_rec", b_rec, shapes["b_rec"], (products * H,), dtype),
        "p": None if p is None else floats("p", p, shapes["p"], (P * H,), dtype),
    }


def run_forward(
    cell: Cell,
    x: Any,
    weights: dict[str, Any],
    init: tuple[Any, ...],
    common: Common,
    return_states: bool = False,
    e: Any = None,
) -> tuple[Any, ...]:
    """Return y, the final states, the other states of every step (or None for each), and the cache."""
    if not common.keys() <= KEYWORDS:
        unknown = min(common.keys() - KEYWORDS)
        raise TypeError(f"{forward_of(cell.family, cell)}() got an unexpected keyword argument {unknown!r}")
    if common.get("threads") is None:
        common["threads"] = backends.get_num_threads()
    options = CallOptions(**common)
    call, layout = checked_call(cell, x, weights, init, options, return_states, e)
    backend = backends.of(cell)
    (out,) = backend.forward([call])
    cache = Cache(Kept(backend, call, out.saved, layout)) if call.training else None
    y = layout.restore(out.y)
    states = tuple([None if a is None else layout.restore(a) for a in out.states]) if return_states else out.states
    final = tuple([s[0] for s in out.final]) if layout.unbatched else out.final
    return y, final, states, cache


def forward_of(family: str, cell: Cell | None) -> str:
    """Return how a caller writes the forward of a family of built-in cells, or of a cell."""
    return f"{cell.name}.forward" if cell and not cell.builtin else f"{family}_forward"


def run_backward(
    name: str, dy: Any, cache: Cache | None, dfinal: dict[str, Any], dstates: dict[str, Any], cell: Cell | None = None
) -> Gradients:
    """Return every gradient, in the caller's layout; the cache must be of the family `name`, or of `cell` if given."""
    its = cache.kept.call.cell if isinstance(cache, Cache) else None
    if not isinstance(cache, Cache) or not its or not (its is cell if cell else its.builtin and its.family == name):
        got = repr(cache) if cache is None or isinstance(cache, Cache) else type(cache).__name__
        raise TypeError(f"cache: expected one made by {forward_of(name, cell)}(..., training=True), got {got}")
    backend, call, saved, layout = cache.kept
    T, B, _, H = call.sizes
    dtype = call.x.dtype
    back = BackwardCall(
        call,
        saved,
        checked_gradient("dy", dy, T, B, H, dtype, layout),
        tuple([checked_state(name, d, B, H, dtype, layout) for name, d in dfinal.items()]),
        tuple([checked_gradient(name, d, T, B, H, dtype, layout) for name, d in dstates.items()]),
    )
    (g,) = backend.backward([back])
    if call.e:
        given = zip(g.de, call.e, call.fixed, strict=True)
        g = g._replace(de=tuple([as_given(d, e, fixed, layout) for d, e, fixed in given]))
    if layout is TIME_MAJOR:
        return g
    dinit = tuple([None if d is None else layout.restore_state(d) for d in g.dinit])
    return g._replace(dx=layout.restore(g.dx), dinit=dinit)


def as_given(d: Array, e: Array, fixed: bool, layout: Layout) -> Array:
    """Return the gradient of an extra input e from d (T, B, H): sum over the axes that e was broadcast along."""
    if e.shape[2] != d.shape[2]:
        d = np.ascontiguousarray(d).sum(axis=2, keepdims=True, dtype=np.float64)
    if not fixed:
        return layout.restore(d.astype(e.dtype, copy=False))
    total = np.zeros(d.shape[1:])
    for step in d:  # in a fixed order: that of np.sum depends on the memory layout
        total += step
    total = total.astype(e.dtype)
    return layout.restore_state(total)
