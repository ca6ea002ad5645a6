"""One implementation in a process of its own: `python -m benchmarks.compare.worker NAME THREADS DESCRIPTOR`.

Requests are tuples (name, *arguments) from a pipe with an inherited descriptor; each is answered with (True, answer) or
(False, error). The process ends when the pipe is closed.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from fastrnn.backends import available_isas
from fastrnn.types import Array

from .limits import LIMITS
from .peer import Peer, Work
from .peers import PEERS, Fastrnn
from .problem import make

IMPLEMENTATIONS: dict[str, type[Peer]] = {"fastrnn": Fastrnn, **PEERS, **LIMITS}


class Worker:
    """Answers requests, whose names are those of its public methods."""

    def __init__(self, name: str, threads: int) -> None:
        self._peer = IMPLEMENTATIONS[name](threads)
        self._work: Work | None = None

    def prepare(self, cell: str, point: str, training: bool) -> dict[str, Array]:
        """Make one problem ready, solve it once, and return the outputs."""
        self._work = None  # free the last problem's memory first
        self._work = self._peer.prepare(make(cell, point), training)
        return self._work.collect(self._work.call())

    def seen(self) -> tuple[str, str]:
        """Return the best instruction set that a library finds in this process, and the one that the peer reports."""
        return (available_isas() or [""])[-1], self._peer.describe()

    def clock(self, calls: int, waking: int) -> float:
        """Return the seconds per call over consecutive calls, after others that are not timed."""
        assert self._work is not None
        call = self._work.call
        for _ in range(waking):
            call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls


def answer(worker: Worker, request: tuple[Any, ...]) -> tuple[bool, Any]:
    """Return the result; any error of a framework becomes a note in the report."""
    name, *arguments = request
    try:
        return True, getattr(worker, name)(*arguments)
    except Exception as error:
        return False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def die_with_parent() -> None:
    """Let the process end with its parent: a stopped process would not notice that its pipe was closed."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(name: str, threads: str, descriptor: str) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process, and the parent handles it
    pipe: Connection[Any, Any] = Connection(int(descriptor))
    worker = Worker(name, int(threads))
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(worker, request))


if __name__ == "__main__":
    main(*sys.argv[1:])
