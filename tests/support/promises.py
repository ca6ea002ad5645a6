"""The promises of equal bits, each stated once: a problem computed in another way, and the result that it must equal.

Fixed cases are in `test_exact.py`, cases that hypothesis draws in `test_promises.py`, random ones in `fuzz.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from support.problems import Arrays, Problem, batch_first, forward, run
from support.stacks import PARAMETERS, STATES, layer, named

BY_STEP = ("x", "resets", "y", "c", "dx", "dy", "dc")  # (T, B, ...)
BY_SEQUENCE = ("h0", "c0", "lengths", "h_n", "c_n", "dh0", "dc0", "dh_n", "dc_n")  # (B, ...)

Pair = tuple[Arrays, Arrays]


def part(arrays: Arrays, *, steps: slice = slice(None), sequences: Any = slice(None)) -> Arrays:
    """Select steps and sequences of every array that has them, and drop sums over them."""
    by_step = {name: a[steps][:, sequences] for name, a in arrays.items() if name in BY_STEP}
    return by_step | {name: a[sequences] for name, a in arrays.items() if name in BY_SEQUENCE}


def subproblem(problem: Problem, **which: Any) -> Problem:
    return problem.changed(**part(problem.inputs, **which), **part(problem.cotangents, **which))


def in_a_batch(problem: Problem, whole: Arrays, sequences: Any) -> Pair:
    """Some of the sequences in another order, repeated, and alone: a sequence does not depend on its place."""
    return part(run(subproblem(problem, sequences=sequences))), part(whole, sequences=sequences)


def padding(problem: Problem) -> np.ndarray:
    """(T, B), true where a sequence has ended."""
    T, B, _ = problem.inputs["x"].shape
    return np.arange(T)[:, None] >= problem.inputs.get("lengths", np.full(B, T))


def padded(problem: Problem, whole: Arrays, steps: int, value: float) -> Pair:
    """More padding, filled with `value` and random resets: it is not read, and results are 0 there."""
    T, B, _ = problem.inputs["x"].shape
    given = {n: a for n, a in (problem.inputs | problem.cotangents).items() if n in BY_STEP}
    longer = problem.changed(
        lengths=problem.inputs.get("lengths", np.full(B, T)),
        **{n: np.concatenate([a, np.zeros((steps, *a.shape[1:]), a.dtype)]) for n, a in given.items()},
    )
    past = padding(longer)
    dirty = {
        n: a ^ past if n == "resets" else np.where(past[:, :, None], a.dtype.type(value), a)
        for n, a in (longer.inputs | longer.cotangents).items()
        if n in BY_STEP
    }
    more = {n: np.zeros((steps, *a.shape[1:]), a.dtype) for n, a in whole.items() if n in BY_STEP}
    return run(longer.changed(**dirty)), whole | {n: np.concatenate([whole[n], a]) for n, a in more.items()}


def cut(problem: Problem, whole: Arrays, sequence: int) -> Pair:
    """Return a sequence alone, without its padding."""
    which = {"steps": slice(0, problem.inputs["lengths"][sequence]), "sequences": slice(sequence, sequence + 1)}
    return part(run(subproblem(problem, **which).changed(lengths=None))), part(whole, **which)


def split(problem: Problem, whole: Arrays, at: int) -> Pair:
    """Compute it in two calls, passing states forwards and gradients backwards."""
    pieces = []
    for steps, ended in ((slice(0, at), 0), (slice(at, None), at)):
        piece = subproblem(problem, steps=steps)
        if "lengths" in piece.inputs:
            piece = piece.changed(lengths=np.clip(piece.inputs["lengths"] - ended, 0, len(piece.inputs["x"])))
        pieces.append(piece)
    first, second = reversed(pieces) if problem.options.get("reverse") else pieces
    middle = forward(first)
    states = [s for s in STATES if f"{s}_n" in middle]
    after = run(second.changed(**{f"{s}0": middle[f"{s}_n"] for s in states}))
    before = run(first.changed(**{f"d{s}_n": after[f"d{s}0"] for s in states}))
    in_time = (after, before) if problem.options.get("reverse") else (before, after)
    got = {n: np.concatenate([a[n] for a in in_time]) for n in BY_STEP if n in whole}
    got |= {f"{s}_n": after[f"{s}_n"] for s in states}
    return got | {n: before[n] for n in ("dh0", "dc0") if n in whole}, part(whole)


def inferred(problem: Problem, whole: Arrays) -> Pair:
    """Compute it without keeping anything for backward."""
    got = forward(problem)
    return got, {n: a for n, a in whole.items() if n in got}


def laid_by_sequence(problem: Problem, whole: Arrays) -> Pair:
    got = run(batch_first(problem))
    return {n: np.swapaxes(a, 0, 1) if n in BY_STEP else a for n, a in got.items()}, whole


def at_once(problem: Problem, whole: Arrays) -> list[Pair]:
    """Compute it in several Python threads at the same time."""
    with ThreadPoolExecutor(8) as pool:
        return [(got, whole) for got in pool.map(run, [problem] * 8)]


def layer_of(problem: Problem, **options: Any) -> Any:
    """Return a layer with the problem's weights."""
    bias = {(False, False): False, (True, False): "input"}.get(("b" in problem.inputs, "b_rec" in problem.inputs), True)
    x, U = problem.inputs["x"], problem.inputs["U"]
    net = layer(problem.cell, x.shape[2], U.shape[1], dtype=x.dtype, **{"bias": bias} | options)
    of = {name: key for key, name in PARAMETERS.items()}
    absent = np.zeros(len(U), x.dtype)
    net.load_state_dict({n: problem.inputs.get(of[n.rsplit("_", 1)[0]], absent) for n in net.parameters()})
    return net


def streamed(problem: Problem, whole: Arrays, x: np.ndarray | None = None) -> Pair:
    """Compute it step by step into a given array, with a stream's resets and initial state."""
    x = problem.inputs["x"] if x is None else x
    net = layer_of(problem)
    stream, out = net.stream(x.shape[1]), np.empty((x.shape[1], net.hidden_size), x.dtype)
    state = stream.state if isinstance(stream.state, tuple) else (stream.state,)
    state = tuple(problem.inputs.get(f"{s}0", zero[0])[None] for s, zero in zip(STATES, state, strict=False))
    stream.state = state if len(state) > 1 else state[0]
    steps = []
    for t, x_t in enumerate(x):
        if problem.inputs.get("resets", np.zeros((len(x), 1), bool))[t].any():
            stream.reset(problem.inputs["resets"][t])
        assert stream.step(x_t, out=out) is out
        steps.append(out.copy())
    got = {n: a if n == "y" else a[0] for n, a in named(np.stack(steps), stream.state).items()}
    return got, {n: whole[n] for n in got}
