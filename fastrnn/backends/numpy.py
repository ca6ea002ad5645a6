"""The NumPy backend, and the loop over time that it shares with the Numba backend.

The loop is independent of the cell. It goes through the steps in the direction of travel and, at each, updates only the
rows of the batch that are valid there: the state of a sequence past its length stays unchanged and its padding is
never read. In reverse, a sequence's state stays unchanged until the loop reaches its last valid step.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from fastrnn.call import BackwardCall, Call, DenseCall, ForwardResult, Gradients, Prepared, Stage
from fastrnn.cells import Cell
from fastrnn.cells.python import compiled
from fastrnn.cells.reference import Reference
from fastrnn.checks import stepped, stepped_numbers, stepped_reset, stepped_state
from fastrnn.functions import FUNCTIONS, normalized
from fastrnn.types import Array, Arrays
from fastrnn.unchanged import Fingerprint, expect_unchanged, fingerprint

name = "numpy"

# NaN and infinity are data here; the compiled backends do not warn about them either.
quietly = np.errstate(all="ignore")


class Visit(NamedTuple):
    """Data of one step for backward; its rows are those valid at the step."""

    at: Any  # index of the step's rows in (T, B, ...) arrays, or in those of a ragged call
    rows: Any  # a slice or an index array into the batch
    x: Array  # (rows, I)
    state: Arrays  # (rows, H) each: before the step, after resets
    saved: Arrays
    e: Arrays  # (rows, H) or (rows, 1) each


class Saved(NamedTuple):
    """Data that `scan` saves for `scan_backward`."""

    seen: Fingerprint
    segments: list[Any]  # visits per segment; with `checkpoint`, its initial state


def forward(calls: Sequence[Call]) -> list[ForwardResult]:
    return [scan(call, reference(call.cell, call.x.dtype)) for call in calls]


def backward(calls: Sequence[BackwardCall]) -> list[Gradients]:
    return [scan_backward(back, reference(back.call.cell, back.call.x.dtype)) for back in calls]


@cache
def reference(cell: Cell, dtype: np.dtype[Any]) -> Reference:
    """Return the cell's step for this dtype."""
    return Reference(cell.program, lambda loop: compiled(loop, cell.names, dtype))


def to_bytes(saved: Any) -> Array:
    return np.frombuffer(bytearray(pickle.dumps(saved)), np.uint8)


def room(cell: Cell, dtype: np.dtype, H: int, P: int, rows: Any, B: Any) -> None:
    """Return None: a pickle's size is known only afterwards."""


def from_bytes(memory: Array, layout: str) -> Any:
    return pickle.loads(memory.tobytes())


def layout() -> str:
    return "as they are"


def pack(call: Call, layout: str, packed: None = None) -> None:
    """Return None: weights are not packed."""


@quietly
def dense(call: DenseCall) -> Array:
    a = call.x if call.W is None else call.x @ call.W.T
    a = a if call.b is None else a + call.b
    if call.function != "normalize":
        return FUNCTIONS[call.function].f(a)
    n, _ = normalized(a, call.epsilon)
    n = n if call.scale is None else n * call.scale
    return n if call.shift is None else n + call.shift


def pack_dense(call: DenseCall, layout: str, packed: None = None) -> None:
    """Return None: weights are not packed."""


def prepared(calls: Sequence[Call], x_shape: tuple[int, ...], batch_first: bool, every_step: bool) -> Prepared:
    """Return one that always defers to the general path, whose overhead is small beside the NumPy loop."""
    return general_way


def general_way(x: Any, state: Any = None) -> None:
    """A `call.Prepared` that accepts no x."""


class ForwardStepper:
    """A `call.Stepper` that runs a whole forward for every step."""

    def __init__(
        self,
        forward: Callable[[Sequence[Call]], list[ForwardResult]],
        stages: Sequence[Stage],
        table: Array | None,
        states: Sequence[Array],
        B: int,
        flat: Callable[[Any], Any],
    ) -> None:
        self._forward, self._stages, self._table, self._states = forward, list(stages), table, tuple(states)
        self._B, self._flat = B, flat
        first, last = stages[0], stages[-1]
        x = first[0].x if isinstance(first, list) else first.x
        self._dtype, self._features = x.dtype, x.shape[-1]
        self._width = last[-1].widths[0] if isinstance(last, list) else last.features

    def read(self, x: Any, n: int) -> Array:
        """Return x as (n, features), or (features,) for a single row."""
        if self._table is None:
            return stepped("x", x, (n, self._features), self._dtype, False)
        return self._table[stepped_numbers("x", x, n, len(self._table))]

    def write(self, out: Any, x: Array, n: int) -> tuple[Array, Array]:
        """Return the output for x, and the checked array to fill."""
        y: Array = np.empty((*x.shape[:-1], self._width), self._dtype) if out is None else out
        return y, stepped("out", y, (n, self._width), self._dtype, True)

    def step(self, x: Any, out: Any = None, state: Any = None, reset: Any = None) -> Array:
        x = self.read(x, self._B)
        y, to = self.write(out, x, self._B)
        states: Sequence[Array] = self._states
        if state is not None:
            states = stepped_state(self._flat(state), tuple([s.shape for s in states]), self._dtype)
            if any(np.may_share_memory(to, s) for s in states):
                raise ValueError("out: shares memory with the state; give it an array of its own")
        if reset is not None:
            afresh = stepped_reset("reset", reset, self._B)
            for s in states:
                s[:, afresh] = 0
        to[...] = self.run(x.reshape(self._B, -1), states).reshape(to.shape)
        return y

    def run(self, x: Array, states: Sequence[Array]) -> Array:
        """Return y for rows x, and update the states."""
        unused = iter(states)
        for stage in self._stages:
            if not isinstance(stage, list):
                x = dense(stage._replace(x=x))
                continue
            own = [next(unused) for _ in stage[0].init]
            for layer, call in enumerate(stage):
                before = tuple([s[layer] for s in own])
                top, after, _, _ = self._forward([call._replace(x=x[None], init=before)])[0]
                for s, now in zip(before, after, strict=True):
                    s[:] = now
                x = top[0]
        return x


class OneByOne:
    """A `call.Sessions` that runs sequences one by one, so results do not depend on the grouping."""

    def __init__(
        self,
        forward: Callable[[Sequence[Call]], list[ForwardResult]],
        stages: Sequence[Stage],
        table: Array | None,
        stores: Sequence[Array],
        capacity: int,
    ) -> None:
        self._steps = ForwardStepper(forward, stages, table, [store[0] for store in stores], 1, list)
        self._stores = stores

    def step(self, slots: list[int], x: Any, out: Any = None) -> Array:
        n = len(slots)
        x = self._steps.read(x, n)
        y, to = self._steps.write(out, x, n)
        results = [
            self._steps.run(row[None], [store[slot] for store in self._stores])
            for slot, row in zip(slots, x.reshape(n, x.shape[-1]), strict=True)
        ]
        to[...] = np.reshape(results, to.shape)
        return y


stepper, sessions = partial(ForwardStepper, forward), partial(OneByOne, forward)


@quietly
def scan(call: Call, of: Reference) -> ForwardResult:
    """Run a cell's step over time.

    It saves a list of visits per segment or, with `checkpoint`, only a segment's initial state to recompute it from.
    """
    H, state = call.sizes[3], given_or_zeros(call, call.init)
    y = call.output()
    others = tuple([call.empty(H) if call.return_states else None for _ in call.init[1:]])
    keep = call.training and not call.checkpoint
    tape: list[Any] = []
    seen = fingerprint(call.arguments()) if call.training else {}
    for times in segments(call):
        start, visits = state, []
        for visit, state in walk(call, of, times, start):
            fill(y, visit, state[0][visit.rows])
            for other, s in zip(others, state[1:], strict=True):
                if other is not None:
                    fill(other, visit, s[visit.rows])
            if keep:
                visits.append(visit)
        tape.append(visits if keep else start)
    # Copies: the caller owns the result, while the tape and `init` may hold the same arrays.
    return ForwardResult(y, tuple(s.copy() for s in state), others, Saved(seen, tape) if call.training else None)


@quietly
def scan_backward(back: BackwardCall, of: Reference) -> Gradients:
    """Run backward over the data saved by `scan`, first recomputing a segment if only its initial state was saved."""
    call, (seen, tape), dy, dfinal, dstates = back
    expect_unchanged(seen, call.arguments())
    _, _, I, H = call.sizes
    weights = call.cell.weights(*call.weights)
    dweights = tuple(np.zeros_like(w) for w in weights)
    dstate = tuple([d.copy() for d in given_or_zeros(call, dfinal)])
    dx, de = call.empty(I), tuple([call.empty(H) for _ in call.e])
    for inputs in de:
        inputs[...] = 0
    for times, kept in zip(reversed(segments(call)), reversed(tape), strict=True):
        visits = [visit for visit, _ in walk(call, of, times, kept)] if call.checkpoint else kept
        for visit in reversed(visits):
            at, rows, x, state, saved, e = visit
            d = [ds[rows].copy() for ds in dstate]  # copies: a state that takes another's place passes its array on
            for k, outside in enumerate((dy, *dstates)):
                if outside is not None:
                    d[k] = d[k] + outside[at]
            dx_t, d_prev, dw, de_t = of.step_backward(tuple(d), x, state, saved, weights, e)
            for total, part in zip(dweights, dw, strict=True):
                total += part
            fill(dx, visit, dx_t)
            for whole, part in zip(de, de_t, strict=True):
                whole[at] = part
            for ds, prev in zip(dstate, afresh(call, at, d_prev), strict=True):
                ds[rows] = prev
    given = zip(dweights, call.weights, strict=True)
    dW, dU, db, db_rec, dp, dR = (d if w is not None else None for d, w in given)
    dinit = tuple(ds if s is not None else None for ds, s in zip(dstate, call.init, strict=True))
    assert dW is not None  # because W never is
    return Gradients(dx, dW, dU, db, db_rec, dp, dinit, de, dR)


def given_or_zeros(call: Call, states: Sequence[Array | None]) -> Arrays:
    """Return one (B, H) array per state of the call, zeros for None; the first is (B, P) if projected."""
    B, each = call.sizes[1], zip(states, call.widths, strict=True)
    return tuple([np.zeros((B, width), call.x.dtype) if s is None else s for s, width in each])


def segments(call: Call) -> list[range]:
    """Return the steps in the direction of travel, split into segments of `checkpoint` steps."""
    T = call.sizes[0]
    times = range(T - 1, -1, -1) if call.reverse else range(T)
    k = call.checkpoint or max(T, 1)
    return [times[n : n + k] for n in range(0, T, k)]


def walk(call: Call, of: Reference, times: range, state: Arrays) -> Iterator[tuple[Visit, Arrays]]:
    """Run the steps of one segment; yield each visit and the state of the whole batch after it."""
    weights = call.cell.weights(*call.weights)
    for t in times:
        rows = slice(None) if call.lengths is None else np.flatnonzero(t < call.lengths)
        at = place(call, t, rows)
        x = np.ascontiguousarray(call.x[at])
        before = afresh(call, at, tuple(s[rows] for s in state))
        e = tuple([np.ascontiguousarray(a[at]) for a in call.e])
        after, saved = of.step(x, before, weights, e)
        state = after if call.lengths is None else tuple(put(s, rows, a) for s, a in zip(state, after, strict=True))
        yield Visit(at, rows, x, before, saved, e), state


def place(call: Call, t: int, rows: Any) -> Any:
    """Return the index of these rows at step t."""
    if not call.ragged or call.lengths is None:
        return t, rows
    first = int(np.minimum(call.lengths, t).sum())
    return slice(first, first + len(rows))


def afresh(call: Call, at: Any, state: Arrays) -> Arrays:
    """Return the state, or its gradient, zeroed in the rows reset at this step."""
    if call.resets is None:
        return state
    reset = call.resets[at][:, None]
    return tuple(np.where(reset, np.zeros_like(s), s) for s in state)


def put(a: Array, rows: Any, values: Array) -> Array:
    a = a.copy()
    a[rows] = values
    return a


def fill(out: Array, visit: Visit, values: Array) -> None:
    """Write one step of an output: the values of the valid rows, 0 in the others."""
    if out.ndim == 3 and not isinstance(visit.rows, slice):
        out[visit.at[0]] = 0
    out[visit.at] = values
