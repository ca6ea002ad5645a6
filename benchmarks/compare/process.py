"""The benchmark's side of a worker: start it pinned, send requests, and stop it while others are timed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import Pipe
from typing import Any, Self

#: variables that select an older or differently tuned kernel for OpenBLAS, or another implementation for fastrnn
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "FASTRNN_BACKEND")

#: Where FASTRNN_ISA asks fastrnn for AVX2, those that can be told get no more either; ONNX Runtime cannot, and needs
#: benchmarks/hold_avx2.c.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}

PATIENCE = 300.0  # seconds allowed for an answer


class Failed(Exception):
    """An implementation cannot do what was requested, or its process ended."""


def environment(threads: int) -> dict[str, str]:
    """Return this process's environment, with that many threads for every library that reads such a variable."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMBA", "FASTRNN")
    chosen = {f"{library}_NUM_THREADS": str(threads) for library in libraries}
    chosen["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    chosen["JAX_PLATFORMS"] = "cpu"
    if os.environ.get("FASTRNN_ISA") in ("v3", "x86-64-v3"):
        chosen |= AVX2
        chosen["XLA_FLAGS"] += " --xla_cpu_max_isa=AVX2"
    return {name: value for name, value in os.environ.items() if name not in UNSET} | chosen


@contextlib.contextmanager
def pinned(cpus: list[int]) -> Iterator[None]:
    """Pin processes started in this block to these CPUs, if the system supports it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


class Process:
    """A worker process. It runs only during a request and is otherwise stopped, because its idle threads may spin."""

    def __init__(self, name: str, cpus: list[int]) -> None:
        self.pipe, theirs = Pipe()
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - open as long as the process
        command = [sys.executable, "-m", f"{__package__}.worker", name, str(len(cpus)), str(theirs.fileno())]
        with pinned(cpus), theirs:
            self.process = subprocess.Popen(
                command,
                env=environment(len(cpus)),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.log,
            )

    def ask(self, *request: Any) -> Any:
        """Return the result of the worker's method of that name; raise `Failed` if there is none."""
        self.process.send_signal(signal.SIGCONT)
        try:
            self.pipe.send(request)
            if not self.pipe.poll(PATIENCE):
                self.process.kill()
            done, answer = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise Failed(self.last_words()) from error
        self.process.send_signal(signal.SIGSTOP)
        if not done:
            raise Failed(answer)
        return answer

    def last_words(self) -> str:
        """Return how the process ended, and the last line that it wrote."""
        status = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().split("\n")
        return f"its process ended with status {status}: {next((line for line in reversed(lines) if line), '')}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # a stopped process does not react to anything else
        self.process.wait()
        self.pipe.close()
        self.log.close()
