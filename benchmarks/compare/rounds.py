"""One point: prepare every implementation, compare it with fastrnn, and time all in alternating rounds."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import NamedTuple, Self

from fastrnn.types import Array

from .cells import find
from .grid import drawn_lengths
from .limits import AMOUNT, LIMITS
from .peer import Peer, worst_error
from .peers import PEERS
from .process import Failed, Process

ROUND = 5e-3  # least seconds of a round
LONG = 50e-3  # seconds of a call from which on warming up makes no difference
LEAST_ROUNDS = 12  # see figures.spread
PAUSE = 30e-3  # idle seconds before every round
LEAST_ERROR = 1e-4  # norm-wise error from which on two implementations count as different
SLOW = 1.0  # seconds of a call from which on a slow peer is skipped


class Timing(NamedTuple):
    """Seconds of a call over the rounds."""

    median: float
    spread: float  #: between the quartiles
    rounds: int
    calls: int  #: in a round


class Case(NamedTuple):
    point: str
    cell: str
    mode: str  #: "forward" or "training"
    threads: int


@dataclass
class Measured:
    """The results of a case: times by implementation, including fastrnn, and the reasons for missing ones."""

    case: Case
    times: dict[str, Timing] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  #: limit -> flop/s or bytes/s
    rounds: dict[str, list[float]] = field(default_factory=dict)  #: seconds of a call in each round, in parallel lists


class Bench:
    """The processes of one number of threads; they persist between points, because importing a framework takes
    seconds.
    """

    def __init__(self, cpus: list[int], peers: list[str], seconds: float, pause: float = PAUSE) -> None:
        self.cpus, self.peers, self.seconds, self.pause = cpus, peers, seconds, pause
        self.stack = contextlib.ExitStack()
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def process(self, name: str) -> Process:
        """Return the implementation's process; start it at its first use, and again if it ended."""
        if name not in self.processes or not self.processes[name].alive:
            self.processes[name] = self.stack.enter_context(Process(name, self.cpus))
        return self.processes[name]

    def prepare(self, name: str, case: Case) -> dict[str, Array]:
        """Prepare an implementation for timing and return its outputs."""
        outputs: dict[str, Array] = self.process(name).ask("prepare", case.cell, case.point, case.mode == "training")
        return outputs

    def measure(self, case: Case) -> Measured:
        """Time fastrnn, each peer that agrees with it, and the limits."""
        done = Measured(case)
        expected = self.prepare("fastrnn", case)
        timed = ["fastrnn"]
        for name in self.peers:
            note = self.obstacle(name, case, expected)
            if note:
                done.notes[name] = note
            else:
                timed.append(name)
        amounts = self.amounts(["fma", "stream"], case)
        times, rounds = self.interleave([*timed, *amounts])
        done.rates = {name: amount / times[name].median for name, amount in amounts.items()}
        done.times = {name: times[name] for name in timed}
        done.rounds = {name: rounds[name] for name in timed}
        return done

    def obstacle(self, name: str, case: Case, expected: dict[str, Array]) -> str:
        """Prepare a peer; return the reason why it cannot be timed, or ""."""
        peer: type[Peer] = PEERS[name]
        if not peer.offers(find(case.cell), case.mode == "training", drawn_lengths(case.point) is not None):
            return "-"
        try:
            error = worst_error(self.prepare(name, case), expected)
            if not error < LEAST_ERROR:
                return f"differs: relative error {error:.1e}"
            if peer.slow and (taken := self.process(name).ask("clock", 1, 1)) > SLOW:
                return f"skipped: a call takes {taken:.1f} s"
        except Failed as failure:
            return f"failed: {failure}"
        return ""

    def amounts(self, names: list[str], case: Case) -> dict[str, float]:
        """Return the work of a call of each limit, without those that this installation cannot measure."""
        amounts = {}
        for name in names:
            if LIMITS[name].installed():
                amounts[name] = float(self.prepare(name, case)[AMOUNT])
        return amounts

    def interleave(self, names: list[str]) -> tuple[dict[str, Timing], dict[str, list[float]]]:
        """Run alternating rounds until each implementation has had its seconds on average, including pauses.

        Everything is idle before a round, so that each finds the CPUs in the same state and no idle threads spin. The
        same number of untimed calls precedes the timed ones, to warm up caches, threads and clocks, but not long ones.
        """
        asked = {name: self.process(name) for name in names}
        first = {name: process.ask("clock", 1, 1) for name, process in asked.items()}
        calls = {name: max(1, math.ceil(ROUND / taken)) for name, taken in first.items()}
        waking = {name: calls[name] if first[name] < LONG else 0 for name in names}
        sweep = sum((waking[name] + calls[name]) * first[name] + self.pause for name in names)
        rounds = max(LEAST_ROUNDS, round(self.seconds * len(names) / sweep))
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, process in asked.items():
                time.sleep(self.pause)
                taken[name].append(process.ask("clock", calls[name], waking[name]))
        return {name: timing(seconds, calls[name]) for name, seconds in taken.items()}, taken

    def peaks(self) -> dict[str, float]:
        """Return the flop/s of the multiply-add loop, if installed, and of NumPy's product, which is too slow for
        every point.
        """
        amounts = self.amounts(["fma", "sgemm"], Case("tiny", "lstm", "forward", len(self.cpus)))
        times, _ = self.interleave(list(amounts))
        return {name: amount / times[name].median for name, amount in amounts.items()}

    def seen(self, name: str) -> dict[str, str]:
        """Return what the CPUID instruction offers an implementation's process, and the implementation's own report."""
        try:
            offered, chosen = self.process(name).ask("seen")
        except Failed as failure:
            return {"offered": "", "chosen": f"failed: {failure}"}
        return {"offered": offered, "chosen": chosen}


def timing(seconds: list[float], calls: int) -> Timing:
    low, _, high = quantiles(seconds, n=4)
    return Timing(median(seconds), high - low, len(seconds), calls)
