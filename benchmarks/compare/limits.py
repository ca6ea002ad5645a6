"""The limits of the machine on the same CPUs, timed in rounds between those of the implementations.

`fma` is a loop of independent multiply-adds in registers, `sgemm` NumPy's product of two 2048 x 2048 matrices, and
`stream` reads a buffer of U's size repeatedly, each thread its own part. The first two bound arithmetic, the third
bounds the reading of weights in every step. All use fastrnn's instruction set.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import fastrnn
from fastrnn.types import Array

from .peer import Peer, Work
from .problem import Problem

SIDE = 2048  # size of the matrices
CALL = 2e-3  # seconds that a call lasts, so that handing it to threads takes no significant time
ALIGN = 64  # bytes

#: unit of a limit's work: flop or bytes of one call
AMOUNT = "amount"


def scaled(work: Callable[[int], Any]) -> int:
    """Return how often one thread repeats some work in CALL seconds."""
    times = 1
    while True:
        start = time.perf_counter()
        work(times)
        if (taken := time.perf_counter() - start) >= CALL / 4:
            return max(1, round(times * CALL / taken))
        times *= 4


def aligned(floats: int) -> Array:
    """Return ones from the start of a cache line on: vectors across two lines would halve the rate."""
    raw = np.ones(floats + ALIGN // 4, np.float32)
    return raw[-raw.ctypes.data % ALIGN // 4 :][:floats]


class Limit(Peer):
    """Work that is the same on every thread."""

    package = "_fastrnn"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.core: Any = importlib.import_module("_fastrnn")
        self.isa = self.core.isas()[fastrnn.config()["isa"]]
        cpus = iter(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [])
        lock = threading.Lock()

        def pin() -> None:
            with lock:
                cpu = next(cpus, None)
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})  # that of this thread

        self.pool = ThreadPoolExecutor(threads, initializer=pin)

    def on_threads(self, works: list[Callable[[], Any]], amount: float) -> Work:
        """Run each work on a thread; a single one runs directly."""

        def together() -> None:
            for future in [self.pool.submit(work) for work in works]:
                future.result()

        return Work(works[0] if len(works) == 1 else together, lambda _: {AMOUNT: np.array(amount)})


class FMA(Limit):
    title = "multiply-add loop"

    def prepare(self, problem: Problem, training: bool) -> Work:
        rounds = scaled(lambda times: self.core.peak_flops(self.isa, 1000 * times)) * 1000
        flop = self.core.peak_flops(self.isa, rounds)
        return self.on_threads([lambda: self.core.peak_flops(self.isa, rounds)] * self.threads, flop * self.threads)


class Stream(Limit):
    title = "read stream"

    def prepare(self, problem: Problem, training: bool) -> Work:
        w = problem.weights[0]
        floats = -(-w.get("U", w["W"]).size // self.threads)
        parts = [aligned(floats) for _ in range(self.threads)]
        times = scaled(lambda times: self.core.read_bandwidth(self.isa, parts[0], times))

        def reads(part: Array) -> Callable[[], float]:
            return lambda: float(self.core.read_bandwidth(self.isa, part, times))

        return self.on_threads([reads(part) for part in parts], 4.0 * floats * self.threads * times)


class SGEMM(Peer):
    """NumPy's BLAS, which has its own threads."""

    title, package = "NumPy sgemm", "numpy"

    def prepare(self, problem: Problem, training: bool) -> Work:
        a, out = np.ones((SIDE, SIDE), np.float32), np.empty((SIDE, SIDE), np.float32)
        return Work(lambda: np.matmul(a, a, out=out), lambda _: {AMOUNT: np.array(2.0 * SIDE**3)})

    def describe(self) -> str:
        """Return the name of the BLAS, and the architecture whose kernels it selected."""
        if importlib.util.find_spec("threadpoolctl") is None:
            return "unknown BLAS (threadpoolctl is not installed)"
        pools = importlib.import_module("threadpoolctl").threadpool_info()
        named = (f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}" for pool in pools)
        return ", ".join(named).strip() or "no BLAS with threads"


LIMITS: dict[str, type[Peer]] = {"fma": FMA, "sgemm": SGEMM, "stream": Stream}
