"""Parallel callers, parallel threads in a call, fork, and settings that a call must restore."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.problems import CELLS, THREADED, make, run
from support.python import Python
from support.tolerance import assert_same_bits

import fastrnn

pytestmark = pytest.mark.by_turns  # threads share work in the same way on every instruction set


@pytest.mark.parametrize("sizes", THREADED)
def test_several_python_threads_at_once(sizes: tuple[int, int, int, int], implementation: str) -> None:
    """Calls of different cells and sizes, each with several threads, do not affect each other."""
    problems = [make(cell, sizes, dtype=np.float32) for cell in ("lstm", "gru_after", "gru_before", "rnn_tanh")]
    small = [make(cell, (5, 3, 2, 7)) for cell in CELLS]
    every = problems + small
    expected = [run(problem) for problem in every]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for got, alone in zip(pool.map(lambda p: run(p, threads=3), every), expected, strict=True):
                assert_same_bits(got, alone)


@pytest.mark.parametrize("sizes", THREADED)
def test_more_threads_than_cpus(sizes: tuple[int, int, int, int], native: str) -> None:
    problem = make("lstm", sizes, dtype=np.float32)
    assert_same_bits(run(problem, threads=4 * (os.cpu_count() or 1) + 1), run(problem, threads=1))


def test_default_number_of_threads() -> None:
    before = fastrnn.get_num_threads()
    assert before >= 1
    fastrnn.set_num_threads(before + 2)
    assert fastrnn.get_num_threads() == before + 2
    for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError)):
        with pytest.raises(error, match="threads"):
            fastrnn.set_num_threads(wrong)
    assert fastrnn.get_num_threads() == before + 2
    fastrnn.set_num_threads(before)


IMPORTS = """
import os, fastrnn, numpy as np
from support import crowded
from support.problems import CELLS, THREADED, make, run
"""


def script(text: str, name: str) -> tuple[str, str]:
    """Return arguments for an interpreter that runs `text` with an implementation in use."""
    backend, _, isa = name.partition("-")
    setting = f"fastrnn.use_backend({backend!r})\n" + (f"fastrnn.use_isa({isa!r})\n" if isa else "")
    return "-c", f"{IMPORTS}{setting}{text}"


COUNT = """
def threads():
    return len(os.listdir("/proc/self/task"))

for cell in CELLS:
    for sizes in THREADED:
        child = os.fork()
        if child == 0:
            before = threads()
            run(make(cell, sizes), threads=3)
            os._exit(threads() - before)
        print(cell, sizes, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_large_problems_use_threads(native: str, python: Python) -> None:
    """The sizes for threaded work in these tests start two threads in addition to the caller's."""
    done = python(*script(COUNT, native))
    assert {line.split()[-1] for line in done.stdout.splitlines()} == {"2"}, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(CELLS) * len(THREADED)


QUEUE = """
import time
import _fastrnn

_fastrnn.set_backoff(0)  # after a crowd's losses both would keep to one thread
rng = np.random.default_rng(0)
x, W, U = (rng.uniform(-0.1, 0.1, shape).astype(np.float32) for shape in ((60, 1, 192), (768, 192), (768, 192)))

def seconds(threads):
    start = time.perf_counter()
    fastrnn.lstm_forward(x, W, U, threads=threads)
    return time.perf_counter() - start

cpus, ratios, stop = fastrnn.get_num_threads(), [], time.perf_counter() + 10
while len(ratios) < 5 or len(ratios) < 200 and time.perf_counter() < stop:  # on a busy machine a call takes a second
    order = (cpus, 8 * cpus) if len(ratios) % 2 else (8 * cpus, cpus)
    taken = {threads: seconds(threads) for threads in order}
    ratios.append(taken[8 * cpus] / taken[cpus])
ratios.sort()
assert ratios[len(ratios) // 2] < 1.3, ratios
"""


@pytest.mark.alone
def test_more_threads_than_cpus_do_not_wait_in_a_queue(native: str, python: Python) -> None:
    """With a barrier at the end of every step, threads that take turns on a CPU would take several times as long."""
    text = f"import os, fastrnn\nimport numpy as np\nfastrnn.use_isa({native.removeprefix('native-')!r})\n{QUEUE}"
    done = python("-c", text)
    assert done.returncode == 0, done.stderr


WAVE = """
before, cpus = len(os.listdir("/proc/self/task")), fastrnn.get_num_threads()
fastrnn.LSTM(256, 256, 2 * cpus + 2, rng=0)(np.ones((60, 1, 256), np.float32), threads=8 * cpus)
os._exit(len(os.listdir("/proc/self/task")) - before >= cpus)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_parallel_layers_use_no_more_threads_than_cpus(native: str, python: Python) -> None:
    text = f"import os, fastrnn\nimport numpy as np\nfastrnn.use_isa({native.removeprefix('native-')!r})\n{WAVE}"
    done = python("-c", text)
    assert done.returncode == 0, done.stderr


CROWD = """
problem = make("lstm", (1, 1028, 16, 16), dtype=np.float32)
alone, crowd = run(problem, threads=1), run(problem, threads=257)
assert all((alone[n] == crowd[n]).all() for n in alone)
"""


def test_more_threads_than_a_team_holds(native: str, python: Python) -> None:
    """A team has at most 256 threads, and the work area is laid out for as many."""
    done = python(*script(CROWD, native))
    assert done.returncode == 0, done.stderr


FORK = """
def results():
    return [{n: a.tobytes() for n, a in run(make("lstm", s), threads=3).items()} for s in THREADED]

before = results()
for generation in range(2):  # a child, and a child of the child: each has to start a pool of its own
    child = os.fork()
    if child == 0:
        continue
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert results() == before
    os._exit(0)
os._exit(results() != before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork(fast: str, python: Python) -> None:
    """A child forked after a threaded call computes the same, and so does its parent afterwards."""
    done = python("-W", "ignore::DeprecationWarning", *script(FORK, fast), timeout=100)
    assert done.returncode == 0, done.stderr


def test_exit(native: str, python: Python) -> None:
    """The interpreter exits although the threads of the pool never return."""
    done = python(*script('run(make("lstm", THREADED[0]), threads=3)', native), timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cell", CELLS)
def test_floating_point_environment_is_the_callers(cell: str, native: str) -> None:
    """Kernels may flush subnormal numbers to zero, but only while they run; warnings are as before."""
    tiny = np.array([1e-40], np.float32)
    before = np.geterr()
    for threads in (1, 3):
        run(make(cell, THREADED[0], dtype=np.float32), threads=threads)
        assert (tiny * np.float32(0.5))[0] > 0
        assert (tiny / np.float32(2.0))[0] == np.float32(5e-41)
    assert np.geterr() == before


@pytest.mark.parametrize("cell", CELLS)
def test_subnormal_inputs(cell: str, native: str) -> None:
    """Subnormal inputs and weights cause no error: they count as their value or as 0."""
    problem = make(cell, (5, 3, 7, 17), dtype=np.float32)
    x = problem.inputs["x"]
    tiny = run(problem.changed(x=np.full_like(x, 1e-40)))
    zero = run(problem.changed(x=np.zeros_like(x)))
    for name in ("y", "h_n", "dU", "dh0"):
        np.testing.assert_allclose(tiny[name], zero[name], rtol=1e-5, atol=1e-30)
