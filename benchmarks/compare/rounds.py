"""One point: every implementation made ready, compared with fastrnn, and timed in rounds that alternate."""

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

ROUND = 5e-3  # seconds that a round is timed at least
LONG = 50e-3  # seconds of a call from which on waking up is no part of it that counts
LEAST_ROUNDS = 12  # see figures.spread
PAUSE = 30e-3  # seconds of idleness before every round
LEAST_ERROR = 1e-4  # norm-wise, from which on two implementations do not do the same
SLOW = 1.0  # seconds of a call that a slow peer is not waited for


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
    """What came of a case: times by implementation, fastrnn among them, and why others have none."""

    case: Case
    times: dict[str, Timing] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  #: limit -> flop/s or bytes/s
    rounds: dict[str, list[float]] = field(default_factory=dict)  #: seconds of a call in each round, all in step


class Bench:
    """The processes of one number of threads; they live from point to point, as importing a framework takes seconds."""

    def __init__(self, cpus: list[int], peers: list[str], seconds: float, pause: float = PAUSE) -> None:
        self.cpus, self.peers, self.seconds, self.pause = cpus, peers, seconds, pause
        self.stack = contextlib.ExitStack()
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def process(self, name: str) -> Process:
        """The implementation's process, started at its first use and after its death."""
        if name not in self.processes or not self.processes[name].alive:
            self.processes[name] = self.stack.enter_context(Process(name, self.cpus))
        return self.processes[name]

    def prepare(self, name: str, case: Case) -> dict[str, Array]:
        """An implementation's outputs, once it is ready to be timed."""
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
        """Make a peer ready; why it cannot be timed, empty if it can."""
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
        """What a call of each limit amounts to; without those that this installation cannot measure."""
        amounts = {}
        for name in names:
            if LIMITS[name].installed():
                amounts[name] = float(self.prepare(name, case)[AMOUNT])
        return amounts

    def interleave(self, names: list[str]) -> tuple[dict[str, Timing], dict[str, list[float]]]:
        """Rounds of one after the other, over and over, until each has had its seconds on the average, pauses included.

        Everything is idle before a round, so that each finds the CPUs in the same state and nobody's threads spin. Then
        come as many calls that are not timed as will be, in which caches, threads and clocks wake up; none if long.
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
        """flop/s of the multiply-add loop, where it is installed, and of NumPy's product, too slow for every point."""
        amounts = self.amounts(["fma", "sgemm"], Case("tiny", "lstm", "forward", len(self.cpus)))
        times, _ = self.interleave(list(amounts))
        return {name: amount / times[name].median for name, amount in amounts.items()}

    def seen(self, name: str) -> dict[str, str]:
        """What the CPUID instruction offers an implementation's process, and what it says of its own choice."""
        try:
            offered, chosen = self.process(name).ask("seen")
        except Failed as failure:
            return {"offered": "", "chosen": f"failed: {failure}"}
        return {"offered": offered, "chosen": chosen}


def timing(seconds: list[float], calls: int) -> Timing:
    low, _, high = quantiles(seconds, n=4)
    return Timing(median(seconds), high - low, len(seconds), calls)
