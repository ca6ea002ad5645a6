"""Failures of the system: no memory, no threads, few CPUs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.python import Python

import fastrnn
from fastrnn.backends import cgroup_cpus

HUNGRY = """
import resource, sys
import numpy as np
import fastrnn

lstm = fastrnn.LSTM(8, 64, rng=0)
W, U = np.zeros((256, 8), np.float32), np.zeros((256, 64), np.float32)
x = np.ones((50, 2, 8), np.float32)
long = np.broadcast_to(np.float32(1), (200_000, 8, 8))
expected = fastrnn.lstm_forward(x, W, U).y
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), resource.RLIM_INFINITY))
calls = {
    "inference": lambda: fastrnn.lstm_forward(long, W, U),
    "training": lambda: fastrnn.lstm_forward(long[:20_000], W, U, training=True),
    "few steps": lambda: fastrnn.lstm_forward(x, W, U),
    "a layer": lambda: lstm(long),
    "training a layer": lambda: lstm.forward(long[:20_000], training=True),
    "a stream": lambda: lstm.stream(1_000_000),
    "a large layer": lambda: fastrnn.LSTM(8, 4096),
    "a large Dense": lambda: fastrnn.Dense(8192, 8192),
    "a large Embedding": lambda: fastrnn.Embedding(1_000_000, 64),
}
for name, hungry in calls.items():
    for _ in range(3):
        try:
            hungry()
            print(name, "had its memory")
        except MemoryError:
            print(name, "MemoryError")
assert (fastrnn.lstm_forward(x, W, U).y == expected).all()
assert fastrnn.lstm_backward(np.ones_like(expected), fastrnn.lstm_forward(x, W, U, training=True).cache).dW.any()
"""


def test_allocation_failure(native: str, python: Python) -> None:
    """With a limit of 64 MB above the current use, each call raises an error, and the library remains usable."""
    done = python("-c", HUNGRY, FASTRNN_ISA=native.removeprefix("native-"), FASTRNN_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    told = set(done.stdout.splitlines())
    assert "few steps had its memory" in told
    assert len(told) == 9, done.stdout
    assert sum(line.endswith("MemoryError") for line in told) == 8, done.stdout


NO_THREADS = """
import resource
from support import crowded
import numpy as np
from support.problems import THREADED, make, run

problem = make("lstm", THREADED[0], dtype=np.float32)
expected = run(problem, threads=1)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
import os
os.setuid(65534)
before = len(os.listdir("/proc/self/task"))
got = run(problem, threads=3)
assert len(os.listdir("/proc/self/task")) == before
assert all((got[name] == expected[name]).all() for name in expected)
"""


def test_thread_creation_failure(native: str, python: Python) -> None:
    """If the system creates no more threads, the call runs on its own thread, with the same bits."""
    if os.getuid() != 0:
        pytest.skip("needs root to become a user who may start none")
    done = python("-c", NO_THREADS)
    assert done.returncode == 0, done.stderr


def version_1(quota: str, group: str = "", period: int = 100000) -> dict[str, str]:
    return {f"cpu/{group}cpu.cfs_quota_us": f"{quota}\n", f"cpu/{group}cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "own", "cpus"),
    [
        ({}, "0::/\n", np.inf),
        ({"cpu.max": "150000 100000\n"}, "", np.inf),
        ({"cpu.max": "max 100000\n"}, "0::/\n", np.inf),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "150000 50000\n"}, "0::/\n", 3.0),
        ({"cpu.max": "150000 100000\n"}, "0::/a/service/of/the/host\n", 1.5),
        ({"a/cpu.max": "250000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 2.5),
        ({"a/cpu.max": "250000 100000\n", "a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"a/cpu.max": "250000 100000\n"}, "0::/b\n", np.inf),
        (version_1("-1"), "1:cpu:/\n0::/\n", np.inf),
        (version_1("50000"), "1:cpu:/\n0::/\n", 0.5),
        (version_1("50000", period=20000), "1:cpu:/\n0::/\n", 2.5),
        (version_1("50000"), "4:memory:/a\n3:cpu,cpuacct:/docker/0123\n0::/\n", 0.5),
        (version_1("-1") | version_1("300000", "a/"), "3:cpuset:/b\n1:cpuacct,cpu:/a\n", 3.0),
    ],
)
def test_quota_of_control_groups(files: dict[str, str], own: str, cpus: float, tmp_path: Path) -> None:
    """Either version; the tightest quota from the own group upwards; a container sees its own group as the root."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert cgroup_cpus(tmp_path, tmp_path / "own") == cpus
    assert cgroup_cpus(tmp_path, tmp_path / "absent") == np.inf


@pytest.mark.parametrize(("quota", "cpus"), [(0.2, 1), (1.0, 1), (1.5, 2), (3.5, 3), (np.inf, 3)])
def test_quota_is_rounded_up(quota: float, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one CPU, and at most those that the process may use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    monkeypatch.setattr(fastrnn.backends, "cgroup_cpus", lambda: quota)
    assert fastrnn.backends.usable_cpus() == cpus
