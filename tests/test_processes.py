"""Threads and processes in each other's way: all at once, forks in the middle, signals, CPUs that are taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

Python = Callable[..., CompletedProcess[str]]

STORM = """
import sys, threading, time
import crowded
import numpy as np
from problems import CELLS, THREADED, call, make, run

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


def test_eight_threads_at_once(python: Python) -> None:
    storm(python, 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_in_the_middle(python: Python) -> None:
    storm(python, 2, FORKS)


@pytest.mark.long
def test_eight_threads_for_a_minute(python: Python) -> None:
    print(storm(python, 60))


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_for_a_minute(python: Python) -> None:
    print(storm(python, 60, FORKS))


SIGNAL = """
import contextlib, math, os, signal, threading, time
import numpy as np
import crowded, fastrnn

signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may have it ignored
rng = np.random.default_rng(0)

sent = []

def after(seconds):
    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(seconds, send).start()

def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

def late(work, x):
    "Of three turns, how long a call goes on after the signal, to how long it takes without one; and that."
    while (taken := min(seconds(lambda: work(x)) for _ in range(2))) < 0.5:
        x = np.concatenate([x] * math.ceil(0.6 / taken))
    turns = []
    for _ in range(3):
        whole = seconds(lambda: work(x))
        after(whole / 8)
        with contextlib.suppress(KeyboardInterrupt):
            work(x)
            time.sleep(60)  # on a machine that was busier just now, the signal is still to come
            raise SystemExit("no KeyboardInterrupt")
        turns.append(((time.perf_counter() - sent[-1]) / whole, whole))
    return sorted(turns)

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
for name, ((lstm, x), threads, cases) in CASES.items():
    def training(x, checkpoint=None):
        y, _, cache = lstm.forward(x, training=True, checkpoint=checkpoint, threads=threads)
        return y, cache
    def gradients(x, checkpoint=None):
        return lstm.backward(*training(x, checkpoint)).grads
    expected = gradients(x[:40])
    ways = {
        "inference": lambda x: lstm(x, threads=threads),
        "training": training,
        "backward": gradients,
        "recomputing": lambda x: gradients(x, 30),
    }
    for way in cases:
        turns = late(ways[way], x)
        ratio, whole = turns[1]
        print(f"{name}, {way}: of {whole:.2f} s, over {ratio * whole:.3f} s after the signal")
        assert ratio < 0.5, (name, way, turns)
        assert all(a.tobytes() == expected[n].tobytes() for n, a in gradients(x[:40]).items()), (name, way)

# A handler that returns may call fastrnn itself, and subnormal numbers are numbers to it; the call, to which they are
# 0, goes on as if nothing had been.
lstm, x = CASES["rows dealt"][0]
small, seen = lstm(x[:40], threads=2)[0].tobytes(), []
least = np.full_like(x, 1e-40)

def hear(*_):
    seen.append((lstm(x[:40], threads=2)[0].tobytes() == small, (least[0] / 2 > 0).all(), time.perf_counter()))

signal.signal(signal.SIGINT, hear)
for net, given in ((lstm, x), (fastrnn.LSTM(192, 192, bias=False, rng=0), least)):
    while (taken := seconds(lambda: net(given, threads=2))) < 0.5:
        given = np.concatenate([given] * math.ceil(0.6 / taken))
    whole, went_on = net(given, threads=2)[0].tobytes(), []
    for _ in range(3):
        seen.clear()
        after(taken / 8)
        assert net(given, threads=2)[0].tobytes() == whole
        end = time.perf_counter()
        while not seen:
            time.sleep(0.01)
        [(same, normal, heard)] = seen
        assert same and normal, (same, normal)
        went_on.append((end - heard) / taken)
    assert sorted(went_on)[1] > 1 / 4, went_on
"""


@pytest.mark.alone
def test_interruption(python: Python) -> None:
    """Ctrl-C ends a call within the tenth of a second in which it asks, and the next one is right."""
    done = python("-c", SIGNAL, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


#: Calls that end every step at a barrier, if they are shared, and how long some of them take.
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
    pairs = [(seconds(1, 8), seconds(len(cpus), 8)) for _ in range(12)]
finally:
    os.kill(holder, 9)
ratios = sorted(two / one for one, two in pairs)
print("medians", ratios[len(ratios) // 2])
assert ratios[len(ratios) // 2] < 1.3, ratios
"""


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_cpu_that_is_taken(python: Python) -> None:
    """Two threads, one of whose CPUs another process holds, take at most 1.3 times as long as one thread does."""
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
    pairs = [(seconds(1, 60), seconds(2, 60)) for _ in range(9)]
finally:
    home.write_text(str(os.getpid()))
    group.rmdir()
ratios = sorted(two / one for one, two in pairs)
print("CPUs", told, "median", ratios[len(ratios) // 2])
assert told == 1 and ratios[len(ratios) // 2] < 1.3, ratios
"""


@pytest.mark.alone
@pytest.mark.skipif(not os.access("/sys/fs/cgroup/cpu/cgroup.procs", os.W_OK), reason="no control group can be made")
def test_a_quota(python: Python) -> None:
    """Of one CPU, set after the import: it is seen, and two threads take at most 1.3 times as long as one."""
    done = python("-W", "ignore", "-c", TURNS + QUOTA)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
