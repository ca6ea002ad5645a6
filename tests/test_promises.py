"""The promises of `docs/promises.md` about bits, on problems that hypothesis draws.

    python -m pytest -m long -s tests/test_promises.py      thousands of new ones in each run; prints counts

An ordinary run draws the same few every time. A failing problem is shrunk and printed with its parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from typing import Any

import numpy as np
import pytest
from fuzz import ABSENT, SPECIAL, VALUES, Call, counts, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.problems import AWKWARD, BIASES, CELLS, INITIAL, PUBLIC, run
from support.promises import at_once, cut, in_a_batch, inferred, laid_by_sequence, padded, split, streamed
from support.python import Python
from support.stacks import layer, named

import fastrnn
from fastrnn.backends import available_isas

ISAS = available_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="no native implementation is installed")

SETTINGS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)

# slightly more than the constants of these names in src/team.h and src/plan.c
WORTH_THREADS = 1.1e7  # flop of a forward pass
WORTH_BARRIER = 2.1e5  # flop of a step

Draw = Callable[[Any], Any]


def worth_threads(case: Any) -> Any:
    """Return the sizes with enough steps; three times as many with lengths, which are drawn from 0 to T."""
    step = 2 * PUBLIC[case.cell][1] * case.B * case.H * (case.H + case.I)
    return replace(case, T=int(WORTH_THREADS / step * (3 if getattr(case, "lengths", False) else 1)) + 1)


# Calls


#: of calls and of layers
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "cell": st.sampled_from(CELLS),
    "T": st.integers(1, 9),
    "I": st.sampled_from(AWKWARD),
    "H": st.sampled_from(AWKWARD),
    "seed": st.integers(0, 2**31 - 1),
    "isa": st.sampled_from(ISAS or [""]),
}


def small_calls() -> st.SearchStrategy[Call]:
    return st.builds(
        Call,
        **COMMON,
        B=st.integers(1, 20),
        wide=st.booleans(),
        biases=st.sampled_from(BIASES),
        states=st.sampled_from(INITIAL),
        lengths=st.booleans(),
        resets=st.booleans(),
        reverse=st.booleans(),
        return_cells=st.booleans(),
        checkpoint=st.integers(1, 20),
        threads=st.sampled_from([2, 3, 4, 5, 8, 16]),
        absent=st.sampled_from(ABSENT),
        value=st.sampled_from(["normal", *VALUES]),
        where=st.sampled_from(SPECIAL),
    )


@st.composite
def large_calls(draw: st.DrawFn) -> Call:
    """Enough work for several threads: rows to divide among them, or a step that is worth a barrier."""
    call, B, I = draw(small_calls()), draw(st.integers(1, 70)), draw(st.sampled_from([1, 3, 17, 33]))
    least = 31 if B >= 32 else int(np.sqrt(WORTH_BARRIER / (2 * PUBLIC[call.cell][1] * B))) + 66
    return worth_threads(replace(call, B=B, I=I, H=least + draw(st.integers(0, 60))))


def check_call(call: Call, draw: Draw) -> None:
    with fastrnn.use_isa(call.isa):
        problem = call.problem()
        whole = run(problem, threads=1)
        problem = problem.changed(threads=call.threads)
        same(run(problem), whole, "threads")
        same(run(problem), whole, "run to run")
        same(run(problem, checkpoint=call.checkpoint), whole, "checkpoint")
        same(*inferred(problem, whole), "inference")
        same(*laid_by_sequence(problem, whole), "batch first")
        sequences = draw(st.lists(st.integers(0, call.B - 1), min_size=1, max_size=2 * call.B))
        same(*in_a_batch(problem, whole, np.array(sequences)), "batch")
        value = draw(st.sampled_from([0.0, np.nan, np.inf, -1e30, 1e-40]))
        same(*padded(problem, whole, draw(st.integers(0, 9)), value), "padding")
        if call.lengths:
            same(*cut(problem, whole, sequences[0]), "no padding")
        same(*split(problem, whole, draw(st.integers(0, call.T))), "split in time")
        if not (call.lengths or call.reverse or call.biases == ("b_rec",)):
            same(*streamed(problem, whole), "stream")
        for pair in at_once(problem, whole):
            same(*pair, "eight callers")


# layers whose directions and levels run in parallel


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "num_layers": st.integers(1, 3),
    "bidirectional": st.booleans(),
    "weight_dtype": st.sampled_from([None, None, "bfloat16"]),
}
FIELDS = COMMON | {"B": st.integers(1, 9), "threads": st.sampled_from([2, 3, 8])} | OPTIONS
Stack: Any = make_dataclass("Stack", FIELDS)


def small_stacks() -> st.SearchStrategy[Any]:
    return st.builds(Stack, **FIELDS)


@st.composite
def large_stacks(draw: st.DrawFn) -> Any:
    stack = replace(draw(small_stacks()), B=draw(st.integers(1, 3)), H=draw(st.integers(90, 130)))
    return worth_threads(replace(stack, num_layers=max(stack.num_layers, 2 - stack.bidirectional)))


def made(case: Any) -> tuple[Any, np.ndarray]:
    options = {name: getattr(case, name) for name in OPTIONS}
    x = np.random.default_rng(case.seed).standard_normal((case.T, case.B, case.I), dtype=np.float32)
    return layer(case.cell, case.I, case.H, rng=case.seed, **options), x


def check_stack(case: Any, draw: Draw) -> None:
    net, x = made(case)
    with fastrnn.use_isa(case.isa):
        whole = named(*net(x, threads=1))
        same(named(*net(x, threads=case.threads)), whole, "layer's threads")
        sequences = draw(st.lists(st.integers(0, case.B - 1), min_size=1, max_size=2 * case.B))
        expected = {n: a[:, sequences] for n, a in whole.items()}
        same(named(*net(x[:, sequences], threads=case.threads)), expected, "layer's batch")
        if case.weight_dtype is None:
            trained = net.forward(x, training=True, threads=case.threads)
            same(named(trained.y, trained.state), whole, "layer's training")
        if not case.bidirectional:
            stream = net.stream(case.B)
            same(named(np.stack([stream.step(x_t) for x_t in x]), stream.state), whole, "layer's stream")


Check = Callable[[Any, Draw], None]
#: (kind of problem, the promise, number of examples in an ordinary run and in a long one)
KINDS: dict[str, tuple[st.SearchStrategy[Any], Check, int, int]] = {
    "small calls": (small_calls(), check_call, 50, 10_000),
    "large calls": (large_calls(), check_call, 8, 300),
    "small layers": (small_stacks(), check_stack, 20, 3000),
    "large layers": (large_stacks(), check_stack, 8, 300),
}


def every(drawn: st.SearchStrategy[Any], check: Check, how: settings) -> None:
    @how
    @given(drawn, st.data())
    def holds(case: Any, data: st.DataObject) -> None:
        check(case, data.draw)
        counts["problems"] += 1

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits(kind: str) -> None:
    drawn, check, few, _ = KINDS[kind]
    every(drawn, check, settings(SETTINGS, derandomize=True, max_examples=few))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_at_length(kind: str) -> None:
    drawn, check, _, many = KINDS[kind]
    counts.clear()
    every(drawn, check, settings(SETTINGS, max_examples=many))
    print(f"\n{kind}:", ", ".join(f"{name} {n}" for name, n in counts.items()))
    assert counts["problems"] >= many


SHARED = """
import os
import fastrnn
from hypothesis import given, settings
from support.problems import run
from test_promises import SETTINGS, large_calls, large_stacks, made

def call(case):
    run(case.problem(), threads=case.threads)

def stack(case):
    net, x = made(case)
    net(x, threads=case.threads)

def started(drawn, work):
    @settings(SETTINGS, derandomize=True, max_examples=10)
    @given(drawn)
    def each(case):
        child = os.fork()  # to start a team of its own
        if child == 0:
            before, more = len(os.listdir("/proc/self/task")), 0
            try:
                with fastrnn.use_isa(case.isa):
                    work(case)
                more = len(os.listdir("/proc/self/task")) - before
            finally:
                os._exit(more)  # an error must not reach this child's copy of hypothesis, which would go on and fork
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), case)
    each()

started(large_calls().filter(lambda call: not call.lengths), call)  # a call counts the steps of its lengths
started(large_stacks(), stack)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_large_problems_use_threads(python: Python) -> None:
    """Each of them starts threads in addition to the caller's."""
    done = python("-c", SHARED)
    assert done.returncode == 0, done.stderr
    started = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(started) >= 20
    assert min(started) >= 1, done.stdout
