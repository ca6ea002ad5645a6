"""Inspect a recurrent layer: its gates over time, and the gradient that reaches each step.

`fastrnn.plot` draws both. Numbers are dimensionless.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import backends
from fastrnn.backends import numpy as by_numpy
from fastrnn.call import BackwardCall, Call
from fastrnn.checks import Layout, boolean, integer
from fastrnn.layers.base import LayerCache
from fastrnn.layers.options import options_of
from fastrnn.layers.recurrent import Recurrent
from fastrnn.packed import Tape
from fastrnn.types import Array
from fastrnn.weight_dtypes import dequantized

__all__ = ["gates", "gradient_norms"]


def gates(
    net: Recurrent,
    x: Any,
    *,
    layer: int = -1,
    reverse: bool = False,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> dict[str, Array]:
    """Compute every gate and every state of one layer at every step.

    The values come from the reference step (`fastrnn.cells`), and equal the kernels' up to rounding. Dropout is off.

    Parameters
    ----------
    net : LSTM, GRU, RNN or Recurrent
    x, state, lengths, resets
        As for a call of `net`.
    layer : int
        Index of the stacked layer, from 0 at the bottom; -1 is the top.
    reverse : bool
        Use the second direction of a bidirectional layer, from each sequence's end to its start.

    Returns
    -------
    dict of (T, B, H) arrays
        i, f, g, o, c, h of an LSTM; r, z, n, h of a GRU; h of an RNN; of another cell the states, and the gates that
        its backward needs. Laid out like x, so possibly (B, T, H) or (T, H); gates after their sigmoid or tanh; 0 past
        a sequence's length. With ``proj_size`` P, h is projected, P wide.

    Raises
    ------
    TypeError, ValueError
        For a net that is not recurrent, a layer or direction that it does not have, and as a call of it.

    Examples
    --------
    >>> import numpy as np, fastrnn.inspect
    >>> lstm = fastrnn.LSTM(3, 4, num_layers=2, rng=0)
    >>> found = fastrnn.inspect.gates(lstm, np.ones((5, 2, 3), np.float32), layer=0)
    >>> list(found), found["f"].shape
    (['i', 'f', 'g', 'o', 'c', 'h'], (5, 2, 4))
    """
    i = which(net, layer, reverse)
    tape, layout = forward(plain(net), x, state, lengths, resets).kept
    return {name: layout.restore(a) for name, a in activations(tape.calls[i]).items()}


def gradient_norms(
    net: Recurrent,
    x: Any,
    dy: Any = None,
    *,
    dstate: Any = None,
    layer: int = -1,
    reverse: bool = False,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> Array:
    """Compute the Euclidean norm of dL/dh[t]: how much of the gradient of a loss L reaches step t.

    This is the total derivative, through y[t] and all later steps: dL/de with h[t] + e in place of h[t], and an
    LSTM's c[t] unchanged. If it vanishes going back in time, the layer cannot learn from those steps; if it explodes,
    training is unstable [1]_. Dropout is off.

    Parameters
    ----------
    net : LSTM, GRU, RNN or Recurrent
    x, state, lengths, resets
        As for a call of `net`.
    dy, dstate
        Gradients of L with respect to the net's y and final state, as for `backward`. If both are absent, L is
        sum(h_n) / sqrt(H) over the final h of the chosen layer and direction: that gradient has norm 1, so the result
        is the factor by which a gradient shrinks or grows. With ``proj_size`` P, h is projected and H is P.
    layer, reverse
        The layer and direction of h, as for `gates`.

    Returns
    -------
    (T, B) array, float64
        Laid out like x, so possibly (B, T) or (T,); 0 past a sequence's length.

    Raises
    ------
    TypeError, ValueError
        As for `gates` and the net's `backward`; also for bfloat16 and int8 weights, which cannot be trained.

    References
    ----------
    .. [1] Y. Bengio, P. Simard, P. Frasconi, "Learning long-term dependencies with gradient descent is difficult",
       IEEE Transactions on Neural Networks 5, 1994.

    Examples
    --------
    >>> import numpy as np, fastrnn.inspect
    >>> rnn = fastrnn.RNN(1, 1, activation="identity", dtype=np.float64)
    >>> rnn.set_weights([np.full((1, 1), 1.0), np.full((1, 1), 0.5), np.zeros(1), np.zeros(1)])
    >>> fastrnn.inspect.gradient_norms(rnn, np.ones((4, 1)))  # each step halves it
    array([0.125, 0.25 , 0.5  , 1.   ])
    """
    i = which(net, layer, reverse)
    if net.weight_dtype is not None:
        raise ValueError(f"net: a layer with {net.weight_dtype} weights is for inference and has no gradients")
    own = plain(net)
    cache = forward(own, x, state, lengths, resets)
    layout: Layout
    tape, layout = cache.kept
    if dy is None and dstate is None:
        dstate = unit(tape, layout, i)
    asked: list[BackwardCall] = []
    tape.watch = asked.extend
    own.backward(dy, cache, dstate=dstate)
    [back] = [back for back in asked if back.call is tape.calls[i]]
    return layout.restore(norms(back))


def which(net: Any, layer: Any, reverse: Any) -> int:
    """Return the index of a layer and direction in PyTorch's order."""
    if not isinstance(net, Recurrent):
        raise TypeError(f"net: expected an LSTM, a GRU or an RNN, got {type(net).__name__}")
    boolean("reverse", reverse)
    if reverse and not net.bidirectional:
        raise ValueError("reverse: expected False for a unidirectional net, got True")
    L, index = net.num_layers, integer("layer", layer, "an integer")
    if not -L <= index < L:
        raise ValueError(f"layer: expected one of {-L}..{L - 1}, got {index}")
    return index % L * (1 + net.bidirectional) + int(reverse)


def plain(layer: Recurrent) -> Recurrent:
    """Return a layer that shares the parameters and has no dropout, so that training computes what inference does."""
    options = options_of(layer)
    options |= dict.fromkeys(("dropout", "recurrent_dropout", "zoneout", "weight_drop"), 0.0) | {"weight_dtype": None}
    parts = [{key: dequantized(a) for key, a in part.items()} for part in layer.stack.parts]
    return layer.from_parts(layer.stack.inference, parts, **options)


def forward(layer: Recurrent, x: Any, state: Any, lengths: Any, resets: Any) -> LayerCache:
    cache: LayerCache = layer.forward(x, state=state, lengths=lengths, resets=resets, training=True).cache
    return cache


def activations(call: Call) -> dict[str, Array]:
    """Return every gate and state, (T, B, H) each, or (T, B, P) if projected."""
    cell, (T, B, _, H) = call.cell, call.sizes
    [run] = by_numpy.forward([call._replace(y=None, training=True, return_states=True)])
    names = [cell.names.get(node) for node in cell.program.kept]
    found = {name: np.zeros((T, B, H), run.y.dtype) for name in cell.gates if name in names}
    for visit in (visit for segment in run.saved.segments for visit in segment):
        saved = dict(zip(names, visit.saved, strict=False))
        for name, values in found.items():
            values[visit.at] = saved[name]
    return found | dict(zip(cell.states[1:], run.states, strict=True)) | {cell.states[0]: run.y}


def unit(tape: Tape, layout: Layout, i: int) -> Any:
    """Return the gradient of L = sum(final h of call i) / sqrt(H) with respect to all final states."""
    final = [np.zeros((len(tape.calls), *s.shape), s.dtype) for s in tape.final[i]]
    final[0][i] = 1 / np.sqrt(final[0].shape[-1])
    if layout.unbatched:
        final = [s[:, 0] for s in final]
    return final[0] if len(final) == 1 else tuple(final)


@np.errstate(over="ignore", invalid="ignore")  # exploding gradients are a result, not an error
def norms(back: BackwardCall) -> Array:
    """Return the gradient norm of every h, (T, B), by running backward one step at a time."""
    call, dy = back.call, back.dy
    T, B, _, _ = call.sizes
    valid = np.full((T, B), True) if call.lengths is None else np.arange(T)[:, None] < call.lengths
    found = np.zeros((T, B))
    dstate = by_numpy.given_or_zeros(call, back.dfinal)
    for t, step, saved in reversed(steps(call, valid)):
        dh = dstate[0] if dy is None else dstate[0] + dy[t]
        rows = valid[t]
        found[t, rows] = np.hypot.reduce(dh[rows], axis=-1, dtype=np.float64)  # hypot avoids overflow in squares
        dy_t = None if dy is None else dy[t : t + 1]
        [gradients] = backends.current().backward([BackwardCall(step, saved, dy_t, dstate)])
        dstate = gradients.dinit  # type: ignore[assignment]  # every step was given its state
    return found


def steps(call: Call, valid: Array) -> list[tuple[int, Call, Any]]:
    """Split the call into one-step calls, in the direction of travel: (t, call, saved data of its forward)."""
    T, state = len(call.x), by_numpy.given_or_zeros(call, call.init)
    taken = []
    for t in range(T - 1, -1, -1) if call.reverse else range(T):
        one = slice(t, t + 1)
        resets = None if call.resets is None else call.resets[one]
        step = call._replace(x=call.x[one], y=None, init=state, resets=resets, reads_previous=False)
        step = step._replace(lengths=None if call.lengths is None else valid[t].astype(np.int64))
        [result] = backends.current().forward([step])
        taken.append((t, step, result.saved))
        state = result.final
    return taken
