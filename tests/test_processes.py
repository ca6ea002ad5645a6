"""Threads and processes in each other's way: all at once, forks in the middle, signals, CPUs that are taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

Python = Callable[..., CompletedProcess[str]]

STORM = """
import sys, threading, time
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
import os, signal, threading, time
import numpy as np
import fastrnn

rng = np.random.default_rng(0)
x = rng.standard_normal((800, 8, 256), dtype=np.float32)
W, U = (rng.standard_normal((1024, 256), dtype=np.float32) / 16 for _ in range(2))
expected = fastrnn.lstm_forward(x[:9], W, U).y.tobytes()

def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

def interrupted(work, after):
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    try:
        work()
    except KeyboardInterrupt:
        return time.perf_counter() - start - after
    raise SystemExit("no KeyboardInterrupt")

# A call ends before the signal is heard: as long as it takes, and no longer.
once = min(seconds(lambda: fastrnn.lstm_forward(x, W, U)) for _ in range(3))
late = interrupted(lambda: fastrnn.lstm_forward(x, W, U), once / 4)
assert late < 3 * once + 0.2, (late, once)
# Many calls one after the other, as training and streams make them: after the one at hand.
late = interrupted(lambda: [fastrnn.lstm_forward(x[:50], W, U) for _ in range(10**5)], 0.2)
assert late < 0.5, late
assert fastrnn.lstm_forward(x[:9], W, U).y.tobytes() == expected
"""


def test_interruption(python: Python) -> None:
    done = python("-c", SIGNAL)
    assert done.returncode == 0, done.stderr


TAKEN = """
import os, time
import numpy as np
import fastrnn

rng = np.random.default_rng(0)
x, W, U = (rng.uniform(-0.1, 0.1, shape).astype(np.float32) for shape in ((300, 1, 192), (768, 192), (768, 192)))
cpus = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cpus)
holder = os.fork()
if holder == 0:
    os.sched_setaffinity(0, cpus[1:])
    while os.getppid() != 1:
        pass
    os._exit(0)

def seconds(threads):
    start = time.perf_counter()
    for _ in range(8):
        fastrnn.lstm_forward(x, W, U, threads=threads)
    return time.perf_counter() - start

try:
    pairs = [(seconds(1), seconds(len(cpus))) for _ in range(12)]
finally:
    os.kill(holder, 9)
ratios = sorted(two / one for one, two in pairs)
print("medians", ratios[len(ratios) // 2])
assert ratios[len(ratios) // 2] < 1.3, ratios
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_cpu_that_is_taken(python: Python) -> None:
    """Two threads, one of whose CPUs another process holds, take at most 1.3 times as long as one thread does."""
    done = python("-W", "ignore", "-c", TAKEN)
    assert done.returncode == 0, done.stdout + done.stderr
