"""Threads and processes that interfere: parallel calls, forks during calls, signals, CPUs used by others."""

from __future__ import annotations

import os

import pytest
from support.python import Python

STORM = """
import sys, threading, time
from support import crowded
import numpy as np
from support.problems import CELLS, THREADED, call, make, run

seconds = float(sys.argv[1])
problems = [make(cell, THREADED[n % 2], dtype=np.float32) for n, cell in enumerate(CELLS)]
problems += [make(cell, (7, 5, 3, 17), lengths=True, resets=True) for cell in CELLS]
expected = [{n: a.tobytes() for n, a in run(p, threads=1).items()} for p in problems]
counts, wrong, stop = [0] * 8, [], time.monotonic() + seconds

def work(thread):
    rng = np.random.default_rng(thread)
    while time.monotonic() < stop and not wrong:
        n = rng.integers(len(problems))
        got = run(problems[n], threads=int(rng.integers(1, 4)))
        if {name: a.tobytes() for name, a in got.items()} != expected[n]:
            wrong.append((thread, n))
        counts[thread] += 1

threads = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(8)]
for thread in threads:
    thread.start()
FORKS
for thread in threads:
    thread.join(seconds + 60)
assert not any(thread.is_alive() for thread in threads), "deadlock"
assert not wrong, wrong
assert min(counts) > 0, counts
print(sum(counts), "calls")
"""

FORKS = """
import os
forks = 0
while time.monotonic() < stop:
    child = os.fork()
    if child == 0:
        n = forks % len(problems)
        good = {name: a.tobytes() for name, a in run(problems[n], threads=3).items()} == expected[n]
        os._exit(not good)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            raise SystemExit("a child hangs")
        time.sleep(0.001)
    assert status == 0, status
    forks += 1
print(forks, "forks")
"""


def storm(python: Python, seconds: float, forks: str = "") -> str:
    done = python("-W", "ignore", "-c", STORM.replace("FORKS", forks), str(seconds), timeout=seconds + 120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_eight_parallel_threads(python: Python) -> None:
    storm(python, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_during_calls(python: Python) -> None:
    storm(python, 1, FORKS)


@pytest.mark.long
def test_eight_threads_for_a_minute(python: Python) -> None:
    print(storm(python, 60))


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_for_a_minute(python: Python) -> None:
    print(storm(python, 60, FORKS))


SIGNAL = """
import contextlib, math, os, signal, sys, threading, time
from functools import partial
import numpy as np
import fastrnn; from support import crowded

signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may have it ignored
rng = np.random.default_rng(0)

sent = []

def after(seconds):
    def send():
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(seconds, send).start()

def long_enough(ready, x):
    "The work that ready(x) gives for so long an x that it takes half a second; seconds, CPU seconds, and its result."
    while True:
        work = ready(x)
        start = time.perf_counter(), time.process_time()
        result = work()
        taken, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        if taken >= 0.5:
            return work, taken, cpu, result
        x = np.concatenate([x] * math.ceil(0.6 / taken))

def two_of_three(turn, good):
    "What turns gave until two of three were good, or two were not; and whether they were good."
    turns = [turn(), turn()]
    if good(turns[0]) != good(turns[1]):
        turns.append(turn())
    return turns, sum(map(good, turns)) >= 2

def late(work, taken, cpu):
    "How much a call still computes after the signal, to how much it does without one."
    after(taken / 8)
    with contextlib.suppress(KeyboardInterrupt):
        work()
        time.sleep(60)  # on a machine that was busier just now, the signal is still to come
        raise SystemExit("no KeyboardInterrupt")
    return (time.process_time() - sent[-1]) / cpu

def problem(B, H, layers=1, **options):
    lstm = fastrnn.LSTM(H, H, layers, rng=0, **options)
    return lstm, rng.standard_normal((25600 // B, B, H), dtype=np.float32)  # a busy machine makes few steps take long

CASES = {
    "rows dealt": (problem(16, 192), 2, ("inference", "training", "recomputing")),
    "one thread": (problem(8, 192), 1, ("backward",)),
    "hidden units dealt": (problem(1, 256), 2, ("inference", "backward")),
    "two directions": (problem(8, 192, bidirectional=True), 2, ("backward",)),
    "a wavefront": (problem(4, 192, 3), 2, ("inference",)),
}
if name := sys.argv[1]:
    (lstm, x), threads, cases = CASES[name]
    def training(x, checkpoint=None):
        y, _, cache = lstm.forward(x, training=True, checkpoint=checkpoint, threads=threads)
        return y, cache
    def backward(x, checkpoint=None):
        return partial(lstm.backward, *training(x, checkpoint))
    expected = backward(x[:40])().grads
    ways = {
        "inference": lambda x: lambda: lstm(x, threads=threads),
        "training": lambda x: lambda: training(x),
        "backward": backward,
        "recomputing": lambda x: backward(x, 30),
    }
    for way in cases:
        work, taken, cpu, _ = long_enough(ways[way], x)
        turns, good = two_of_three(lambda: late(work, taken, cpu), lambda ratio: ratio < 0.5)
        print(f"{name}, {way}: of {cpu:.2f} CPU seconds in {taken:.2f} s, {turns} after the signal")
        assert good, (name, way, turns)
        assert all(a.tobytes() == expected[n].tobytes() for n, a in backward(x[:40])().grads.items()), (name, way)

# A handler that returns may call fastrnn itself, with the caller's treatment of subnormal numbers; the interrupted
# call, for which they are 0, continues unaffected.
if name:
    sys.exit()
lstm, x = CASES["rows dealt"][0]
small, seen = lstm(x[:40], threads=2)[0].tobytes(), []
least = np.full_like(x, 1e-40)

def hear(*_):
    seen.append((lstm(x[:40], threads=2)[0].tobytes() == small, (least[0] / 2 > 0).all(), time.process_time()))

signal.signal(signal.SIGINT, hear)
for net, given in ((lstm, x), (fastrnn.LSTM(192, 192, bias=False, rng=0), least)):
    work, taken, cpu, whole = long_enough(lambda x: lambda: net(x, threads=2)[0].tobytes(), given)

    def went_on():
        seen.clear()
        after(taken / 8)
        assert work() == whole
        end = time.process_time()
        while not seen:
            time.sleep(0.01)
        [(same, normal, heard)] = seen
        assert same and normal, (same, normal)
        return (end - heard) / cpu

    turns, good = two_of_three(went_on, lambda ratio: ratio > 1 / 4)
    assert good, turns
"""


def signalled(python: Python, case: str) -> None:
    done = python("-c", SIGNAL, case, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.alone
@pytest.mark.parametrize(
    "case",
    [
        "rows dealt",
        *[
            pytest.param(name, marks=pytest.mark.thorough)
            for name in ("hidden units dealt", "one thread", "two directions", "a wavefront")
        ],
    ],
)
def test_interruption(case: str, python: Python) -> None:
    """Ctrl-C ends a call at its next check, every tenth of a second, and the next call is correct."""
    signalled(python, case)


@pytest.mark.alone
def test_interruption_with_a_handler_that_returns(python: Python) -> None:
    """The handler may call fastrnn, and the interrupted call gives the same bits."""
    signalled(python, "")


#: calls that end every step at a barrier if several threads share them, and the duration of some
TURNS = """
import os, time
import numpy as np
import fastrnn

rng = np.random.default_rng(0)
x, W, U = (rng.uniform(-0.1, 0.1, shape).astype(np.float32) for shape in ((300, 1, 192), (768, 192), (768, 192)))

def seconds(threads, calls):
    start = time.perf_counter()
    for _ in range(calls):
        fastrnn.lstm_forward(x, W, U, threads=threads)
    return time.perf_counter() - start

def ratios(turns, several, calls):
    "How much longer several threads take than one, in as many of the turns as decide the median of all."
    found, good = [], 0
    while max(good, len(found) - good) <= turns // 2:
        alone = seconds(1, calls)
        found.append(seconds(several, calls) / alone)
        good += found[-1] < 1.3
    return found, good > turns // 2
"""

TAKEN = """
cpus = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cpus)
holder = os.fork()
if holder == 0:
    os.sched_setaffinity(0, cpus[1:])
    while os.getppid() != 1:
        pass
    os._exit(0)

try:
    found, good = ratios(11, len(cpus), 8)
finally:
    os.kill(holder, 9)
assert good, found
"""


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_cpu_taken_by_another_process(python: Python) -> None:
    """Two threads then take at most 1.3 times as long as one thread does."""
    done = python("-W", "ignore", "-c", TURNS + TAKEN)
    assert done.returncode == 0, done.stdout + done.stderr


QUOTA = """
import pathlib

group = pathlib.Path("/sys/fs/cgroup/cpu", f"fastrnn-{os.getpid()}")
group.mkdir()
(group / "cpu.cfs_period_us").write_text("100000")
(group / "cpu.cfs_quota_us").write_text("100000")
home = group.parent / "cgroup.procs"

try:
    (group / "cgroup.procs").write_text(str(os.getpid()))
    told = fastrnn.backends.usable_cpus()  # not heeded below: the settings are of before
    found, good = ratios(9, 2, 60)
finally:
    home.write_text(str(os.getpid()))
    group.rmdir()
print("CPUs", told, "ratios", found)
assert told == 1 and good, found
"""


@pytest.mark.alone
@pytest.mark.skipif(not os.access("/sys/fs/cgroup/cpu/cgroup.procs", os.W_OK), reason="no control group can be made")
def test_a_quota(python: Python) -> None:
    """A quota of one CPU, set after the import, is detected: two threads take at most 1.3 times as long as one."""
    done = python("-W", "ignore", "-c", TURNS + QUOTA)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
