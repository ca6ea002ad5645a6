"""The binding is memory-safe by itself: it rejects arguments that do not fit before the C core reads them.

Users see the errors of `fastrnn.checks`, which checks first. These tests simulate mistakes between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.memory import read_only, unaligned
from support.problems import call as called
from support.problems import make

from fastrnn import checks
from fastrnn.call import Call, DenseCall, Gradients
from fastrnn.cells import CELLS

core = pytest.importorskip("_fastrnn")

T, B, I, H = 5, 3, 2, 17
ISA = max(core.isas().values())
CELL = core.cells()[CELLS["lstm_peephole"].digest][0]


class Job(NamedTuple):
    """A training forward, as `_fastrnn.forward` takes it."""

    cell: int
    call: Call
    states: Any
    final: Any
    saved: Any


class Scratch:
    """Work areas that are some bytes too small."""

    asked = 0

    def __init__(self, less: int = 0) -> None:
        self.less = less

    def take(self, n: int) -> np.ndarray:
        self.asked = n
        return np.empty(n - self.less, np.uint8)

    def give(self, memory: np.ndarray) -> None:
        pass


def right(dtype: Any = np.float64) -> Job:
    """Return a correct job with outputs of NaN."""
    result, _ = called(make("lstm_peephole", (T, B, I, H), dtype=dtype, lengths=True, resets=True, training=True))
    call = result.cache.kept.call
    final = tuple(np.full((B, H), np.nan, dtype) for _ in "hc")
    saved = np.zeros(core.saved_bytes(ISA, CELL, call), np.uint8)
    states = (np.full((T, B, H), np.nan, dtype), np.full((T, B, H), np.nan, dtype))
    return Job(CELL, call, states, final, saved)


def nan_like(a: Any) -> Any:
    return None if a is None else np.full_like(a, np.nan)


def right_backward(job: Job) -> tuple[Any, ...]:
    """Return a correct job for `_fastrnn.backward`, the backward of a job that was run, with gradients of NaN."""
    call = job.call
    arrays = [nan_like(a) for a in (call.x, call.W, call.U, call.b, call.b_rec, call.p)]
    grads = Gradients(*arrays, tuple(nan_like(a) for a in call.init))
    return (CELL, call, job.saved, (np.ones((T, B, H)), None), (None, None), grads)


def ragged(job: Job, *lengths: int) -> Call:
    """Return a ragged call of 9 steps with padded outputs."""
    return job.call._replace(x=np.zeros((9, I)), lengths=np.array(lengths))


#: replacement of a part of the job or its call, and the expected error
WRONG: list[tuple[str, Callable[[Job], Any], str]] = [
    ("states", lambda job: (np.empty((T, B, H - 1)), job.states[1]), r"expected shape \(5, 3, 17\)"),
    ("states", lambda job: (np.empty((T, B + 1, H)), job.states[1]), r"expected shape \(5, 3, 17\)"),
    ("states", lambda job: (np.empty((T * B, H)), job.states[1]), r"expected shape \(5, 3, 17\)"),
    (
        "states",
        lambda job: (np.empty((T, B, 2 * H))[..., ::2], job.states[1]),
        "contiguous last axis of 8-byte elements",
    ),
    ("states", lambda job: (np.empty((T, B, H), np.float32), job.states[1]), "contiguous last axis of 8-byte elements"),
    ("states", lambda job: (unaligned(np.empty((T, B, H))), job.states[1]), "expected aligned elements"),
    ("states", lambda job: (read_only(np.empty((T, B, H))), job.states[1]), "read-only"),
    ("states", lambda job: (job.states[0], np.empty((T - 1, B, H))), r"expected shape \(5, 3, 17\)"),
    ("final", lambda job: (job.final[0], np.empty((B, H - 1))), "expected 51 aligned elements of 8 bytes"),
    ("final", lambda job: (unaligned(np.empty((B, H))), job.final[1]), "expected 51 aligned elements of 8 bytes"),
    ("final", lambda job: (np.empty((H, B)).T, job.final[1]), "not C-contiguous"),
    ("saved", lambda job: job.saved[:-64], "expected at least"),
    ("cell", lambda job: -1, "no cell -1"),
    ("cell", lambda job: len(core.cells()), "no cell"),
    ("cell", lambda job: core.cells()[CELLS["lstm"].digest][0], "p with parameters"),
    ("p", lambda job: None, "p with parameters"),
    ("W", lambda job: np.empty((4 * H, I + 1)), "expected 136 aligned elements of 8 bytes"),
    ("R", lambda job: np.empty((H + 1, H)), "no projection to 18 units"),
    ("R", lambda job: np.empty((0, H)), "no projection to 0 units"),
    ("R", lambda job: np.empty((3, H)), "expected 204 aligned elements of 8 bytes"),
    ("U", lambda job: np.asfortranarray(job.call.U), "not C-contiguous"),
    ("U", lambda job: np.empty((4 * H, 5)), "no heads of 5 of 17 units"),
    ("U", lambda job: np.empty((4 * H, 0)), "no heads of 0 of 17 units"),
    ("U", lambda job: np.empty((4 * H - 1, 1)), "expected 68 aligned elements of 8 bytes"),
    ("W", lambda job: np.empty((0, I)), "expected H of at least 1"),
    ("x", lambda job: np.lib.stride_tricks.as_strided(job.call.x, (2**50, B, I), (0, 8, 8)), "than memory holds"),
    ("x", lambda job: np.empty((0, 2**55, I)), "than memory holds"),
    ("checkpoint", lambda job: -3, "no checkpoint every -3 steps"),
    ("weight_dtype", lambda job: "bfloat16", "bfloat16 weights go with float32, for inference"),
    ("weight_dtype", lambda job: "int8", "int8 weights go with float32, for inference"),
    ("b", lambda job: job.call.b[1:], "expected 68 aligned elements of 8 bytes"),
    ("lengths", lambda job: np.array([T + 1, 0, 0]), r"length 6 is not in 0\.\.5"),
    ("lengths", lambda job: np.array([T, 0, -1]), r"length -1 is not in 0\.\.5"),
    ("lengths", lambda job: np.array([T, 0, 1], np.int32), "expected 3 aligned elements of 8 bytes"),
    ("resets", lambda job: np.zeros((T, B - 1), bool), r"expected shape \(5, 3, 1\)"),
    ("call", lambda job: ragged(job, 5, 1, 3), "length 3 rises"),
    ("call", lambda job: ragged(job, 5, 5, 0), r"expected shape \(10, 2\)"),
    ("call", lambda job: ragged(job, 5, 4, 0), r"expected shape \(9, 1\)"),
    ("call", lambda job: ragged(job, 5, 4, 0)._replace(resets=None), r"expected shape \(9, 17\)"),
    ("packed", lambda job: np.empty(core.packed_bytes(ISA, CELL, job.call) - 1, np.uint8), "expected at least"),
]


def test_what_is_right() -> None:
    """The unchanged job is valid, so each error below is due to its change."""
    job = right()
    core.forward(ISA, [job], Scratch())
    assert not any(np.isnan(a).any() for a in (*job.states, *job.final))


@pytest.mark.parametrize(("name", "wrong", "says"), WRONG)
def test_unsupported_options_raise_an_error(name: str, wrong: Callable[[Job], Any], says: str) -> None:
    job = right()
    value = {name: wrong(job)}
    bad = job._replace(**value) if name in Job._fields else job._replace(call=job.call._replace(**value))
    with pytest.raises((TypeError, ValueError, BufferError), match=says):
        core.forward(ISA, [bad], Scratch())
    assert all(np.isnan(a).all() for a in (*job.states, *job.final))


def test_a_small_work_area() -> None:
    job = right()
    with pytest.raises(ValueError, match="expected at least"):
        core.forward(ISA, [job], Scratch(1))
    assert np.isnan(job.states[0]).all()


@pytest.mark.parametrize("sequences", [8, 12])
def test_lengths_leave_no_thread_without_rows(sequences: int) -> None:
    """A thread's part of the work area is for its rows: with two threads neither has more than half of them."""
    asked = []
    for lengths in (False, True):
        problem = make("lstm", (60, sequences, 64, 64), dtype=np.float32, lengths=lengths, training=True)
        call = called(problem)[0].cache.kept.call._replace(training=False, threads=2)
        scratch, y = Scratch(), np.empty((60, sequences, 64), np.float32)
        core.forward(ISA, [Job(core.cells()[CELLS["lstm"].digest][0], call, (y,), (None, None), None)], scratch)
        asked.append(scratch.asked)
    assert asked[0] == asked[1]


def test_one_wrong_job_stops_all() -> None:
    first, second = right(), right()
    with pytest.raises(ValueError, match="expected shape"):
        core.forward(ISA, [first, second._replace(states=(np.empty((T, B, 1)), None))], Scratch())
    assert np.isnan(first.states[0]).all()


@pytest.mark.parametrize("dtypes", [(np.float64, np.float32), (np.float32, np.float64)])
def test_jobs_of_two_dtypes(dtypes: tuple[Any, Any]) -> None:
    jobs = [right(dtype) for dtype in dtypes]
    with pytest.raises(TypeError, match="jobs of one dtype"):
        core.forward(ISA, jobs, Scratch())
    assert all(np.isnan(job.states[0]).all() for job in jobs)


def test_what_is_right_backward() -> None:
    job = right()
    core.forward(ISA, [job], Scratch())
    back = right_backward(job)
    core.backward(ISA, [back], Scratch())
    assert not any(np.isnan(a).any() for a in (*back[-1][:6], *back[-1].dinit))


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("dx", None, "dx has to be there"),
        ("dx", np.empty((T, B, I + 1)), r"expected shape \(5, 3, 2\)"),
        ("dW", None, "NoneType"),
        ("dU", None, "have to be there"),
        ("dR", np.empty((3, H)), "expected 0 aligned elements"),
        ("dU", read_only(np.empty((4 * H, H))), "read-only"),
        ("dW", np.empty((4, I)), "expected 136 aligned elements"),
        ("dp", np.empty(2 * H), "expected 51 aligned elements"),
        ("dinit", (np.empty((B, 1)), None), "expected 51 aligned elements"),
    ],
)
def test_gradients_refused(name: str, wrong: Any, says: str) -> None:
    job = right()
    core.forward(ISA, [job], Scratch())
    *back, grads = right_backward(job)
    with pytest.raises((TypeError, ValueError, BufferError), match=says):
        core.backward(ISA, [(*back, grads._replace(**{name: wrong}))], Scratch())


def test_gradients_are_as_large_as_the_weights_whatever_their_axes() -> None:
    job = right()
    core.forward(ISA, [job], Scratch())
    cell, call, *rest, grads = right_backward(job)
    small = {"dW": np.empty((2, I)), "dU": np.empty((2, H)), "db": np.empty(2), "db_rec": np.empty(2)}
    back = (cell, call._replace(U=call.U.reshape(2, H, -1)), *rest, grads._replace(**small))
    with pytest.raises(ValueError, match="expected 136 aligned elements"):
        core.backward(ISA, [back], Scratch())


def test_backward_of_an_inference() -> None:
    job = right()
    back = list(right_backward(job))
    back[1] = job.call._replace(training=False)
    with pytest.raises(ValueError, match="training"):
        core.backward(ISA, [tuple(back)], Scratch())


@pytest.mark.parametrize("isa", [-1, 99])
def test_instruction_sets_that_are_not_there(isa: int) -> None:
    with pytest.raises(ValueError, match=f"instruction set {isa} does not run here"):
        core.forward(isa, [right()], Scratch())


def test_elements_of_another_size() -> None:
    with pytest.raises(TypeError, match="itemsize 2"):
        core.read_bandwidth(ISA, np.zeros(4, np.float16), 1)


@pytest.mark.parametrize("array", [np.float64(1), np.zeros(3, np.complex128)])
def test_arrays_without_a_fingerprint(array: Any) -> None:
    with pytest.raises(ValueError, match="expected axes, and elements of 8 bytes at most"):
        core.fingerprints((np.asarray(array),))


def test_no_cpus() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        core.set_cpus(0)


def dense(**other: Any) -> DenseCall:
    rng = np.random.default_rng(0)
    x, W, b = rng.standard_normal((3, 5)), rng.standard_normal((7, 5)), rng.standard_normal(7)
    return DenseCall("tanh", x, W, b)._replace(**other)


def packed_dense() -> DenseCall:
    call = dense()
    packed = np.empty(core.dense_packed_bytes(ISA, call), np.uint8)
    core.pack_dense(ISA, call, packed)
    return call._replace(packed=packed)


def test_dense_rows() -> None:
    """W may be packed or not; the output array has exactly the required size."""
    room = np.full(27, np.nan)
    for call in (dense(), packed_dense()):
        core.dense(ISA, call, room[3:24].reshape(3, 7), Scratch())
        assert np.allclose(room[3:24].reshape(3, 7), np.tanh(call.x @ call.W.T + call.b), rtol=1e-12)
        assert np.isnan([*room[:3], *room[24:]]).all()


@pytest.mark.parametrize(
    "other",
    [
        {"function": "cube"},
        {"x": np.ones((3, 4))},
        {"x": np.ones((3, 10))[:, ::2]},
        {"x": np.ones((0, 0)), "W": None, "b": None},
        {"W": np.ones((7, 4))},
        {"W": np.ones((7, 5), np.float32)},
        {"W": np.asfortranarray(np.ones((7, 5)))},
        {"b": np.ones(6)},
        {"function": "normalize", "scale": np.ones(5)},
        {"function": "normalize", "shift": np.ones(7, np.float32)},
        {"packed": np.ones(8, np.uint8)},
    ],
)
def test_wrong_rows(other: dict[str, Any]) -> None:
    y = np.full((3, 7), np.nan)
    with pytest.raises((ValueError, KeyError, BufferError)):
        core.dense(ISA, dense(**other), y, Scratch())
    with pytest.raises((ValueError, KeyError, BufferError)):
        core.pack_dense(ISA, dense(**other), np.empty(10000, np.uint8)[: 64 if "packed" in other else None])
    assert np.isnan(y).all()


def test_room_for_rows() -> None:
    for scratch, y in ((Scratch(1), np.zeros((3, 7))), (Scratch(), np.zeros((2, 7)))):
        with pytest.raises(ValueError, match="expected"):
            core.dense(ISA, dense(), y, scratch)
    with pytest.raises(ValueError, match="nothing to pack"):
        core.pack_dense(ISA, dense(W=None, b=None), np.empty(1000, np.uint8))


def stages(*parts: Any, rows: Any = None) -> Any:
    return core.Stages(ISA, list(parts or [packed_dense()]), rows, Scratch(), checks, np.empty)


def step_of_a_layer(B: int = 3) -> list[Any]:
    """Return a job of one step of the LSTM, whose inputs have the width of a `dense` output."""
    given = np.random.default_rng(1).standard_normal
    call = Call(CELLS["lstm"], np.zeros((1, B, 7)), given((44, 7)), (None, None), given((44, 11)), given(44), given(44))
    return [(core.cells()[CELLS["lstm"].digest][0], call, (None,), (None, None), None)]


def test_stages_that_do_not_fit() -> None:
    for parts, rows in (
        ([dense()], None),  # not packed
        ([packed_dense(), packed_dense()], None),  # 7 features are not 5
        ([step_of_a_layer(), packed_dense()], None),
        ([packed_dense()], np.ones((4, 6))),
        ([packed_dense()], np.ones((4, 5), np.float32)),
    ):
        with pytest.raises(ValueError, match=r"expected|do not fit"):
            stages(*parts, rows=rows)


def test_states_that_do_not_fit() -> None:
    """States of streams and pools must not be smaller than what C writes."""
    right = np.zeros((1, 3, 11))
    core.Stepper(stages(packed_dense(), step_of_a_layer()), (right, right.copy()), 3, tuple)
    for states, B in (((right, right[:, :2].copy()), 3), ((right,), 3), ((right, right.copy()), 2)):
        with pytest.raises((ValueError, IndexError)):
            core.Stepper(stages(packed_dense(), step_of_a_layer()), states, B, tuple)
    stores = np.zeros((4, 1, 1, 11)), np.zeros((4, 1, 1, 11))
    pool = core.Sessions(stages(packed_dense(), step_of_a_layer(1)), stores, 4, Scratch())
    assert pool.step([3, 0], np.ones((2, 5))).shape == (2, 11)
    assert [bool(store.any()) for store in stores[0]] == [True, False, False, True]
    for slots in ([4], [-1], [0, 1, 2, 3, 0], ["a"]):
        with pytest.raises((ValueError, TypeError)):
            pool.step(slots, np.ones((len(slots), 5)))
    with pytest.raises(ValueError, match="expected 44 aligned elements"):
        core.Sessions(stages(packed_dense(), step_of_a_layer(1)), (stores[0], stores[1][:3]), 4, Scratch())
    small = core.Sessions(stages(packed_dense(), step_of_a_layer(1)), stores, 4, Scratch(1))
    with pytest.raises(ValueError, match="expected at least"):
        small.step([1], np.ones((1, 5)))
