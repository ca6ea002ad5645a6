"""One point: every implementation made ready, compared with fastrnn, and timed in rounds that alternate."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import NamedTuple, Self

from fastrnn.bench.limits import AMOUNT, LIMITS
from fastrnn.bench.peer import Peer, worst_error
from fastrnn.bench.peers import PEERS
from fastrnn.bench.process import Failed, Process
from fastrnn.cells import Array

ROUND = 5e-3  # seconds that a round lasts at least
LEAST_ROUNDS = 5
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


class Bench:
    """The processes of one number of threads; they live from point to point, as importing a framework takes seconds."""

    def __init__(self, cpus: list[int], peers: list[str], seconds: float) -> None:
        self.cpus, self.peers, self.seconds = cpus, peers, seconds
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
        times = self.interleave([*timed, *amounts])
        done.rates = {name: amount / times[name].median for name, amount in amounts.items()}
        done.times = {name: times[name] for name in timed}
        return done

    def obstacle(self, name: str, case: Case, expected: dict[str, Array]) -> str:
        """Make a peer ready; why it cannot be timed, empty if it can."""
        peer: type[Peer] = PEERS[name]
        if case.cell not in peer.cells[case.mode] or (case.point == "lengths" and not peer.lengths):
            return "-"
        try:
            error = worst_error(self.prepare(name, case), expected)
            if not error < LEAST_ERROR:
                return f"differs: relative error {error:.1e}"
            if peer.slow and (taken := self.process(name).ask("clock", 1)) > SLOW:
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

    def interleave(self, names: list[str]) -> dict[str, Timing]:
        """Rounds of one after the other, over and over, until each has had its seconds on the average."""
        asked = {name: self.process(name) for name in names}
        first = {name: process.ask("clock", 1) for name, process in asked.items()}
        calls = {name: max(1, math.ceil(ROUND / taken)) for name, taken in first.items()}
        sweep = sum((calls[name] + 1) * first[name] for name in names)
        rounds = max(LEAST_ROUNDS, round(self.seconds * len(names) / sweep))
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, process in asked.items():
                taken[name].append(process.ask("clock", calls[name]))
        return {name: timing(seconds, calls[name]) for name, seconds in taken.items()}

    def sgemm(self) -> tuple[float, str]:
        """flop/s of NumPy's product, which takes too long for every point, and whose product it is."""
        amount = self.amounts(["sgemm"], Case("tiny", "lstm", "forward", len(self.cpus)))["sgemm"]
        rate = amount / self.interleave(["sgemm"])["sgemm"].median
        return rate, self.process("sgemm").ask("describe")


def timing(seconds: list[float], calls: int) -> Timing:
    low, _, high = quantiles(seconds, n=4)
    return Timing(median(seconds), high - low, len(seconds), calls)
