"""From seconds to the ratios of the table, and what all of it was measured on: plain data, as bench.json holds it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import fastrnn
from fastrnn.bench.grid import CELLS, POINTS, drawn_lengths, flop, least_bytes
from fastrnn.bench.peers import PEERS
from fastrnn.bench.rounds import Measured

#: One case: point, cell, mode, threads, sizes, times, notes, limits, ratios.
Row = dict[str, Any]

#: What the ratios are; all are better when larger, and a peer's time or a limit that is not there makes them None.
RATIOS = {
    "R_peer": "the best peer's time over fastrnn's",
    "R_torch": "PyTorch's time over fastrnn's",
    "R_flop": "useful flop/s over the machine's peak, the better of an own multiply-add loop and NumPy's sgemm of 2048",
    "R_bw": "at B = 1: bytes of weights that must be read (U in every step and W once; twice that in training) per "
    "second, over the rate of reading a buffer of U's size",
}


def row(measured: Measured, sgemm: float) -> Row:
    """One case as plain data; `sgemm` is in flop/s."""
    point, cell, mode, threads = measured.case
    return {
        "point": point,
        "cell": cell,
        "mode": mode,
        "threads": threads,
        "sizes": list(POINTS[point]),
        "times": {name: timing._asdict() for name, timing in measured.times.items()},
        "notes": measured.notes,
        "limits": {"sgemm": sgemm, **measured.rates},
        "ratios": ratios(measured, sgemm),
    }


def ratios(measured: Measured, sgemm: float) -> dict[str, Any]:
    """Those of RATIOS, and the name of the best peer."""
    point, cell, mode, _ = measured.case
    sizes, train = POINTS[point], mode == "training"
    seconds = {name: timing.median for name, timing in measured.times.items()}
    own = seconds.pop("fastrnn")
    best = min(seconds, key=seconds.__getitem__, default=None)
    peak = max(sgemm, measured.rates.get("fma", 0))
    stream = measured.rates.get("stream") if sizes.B == 1 else None
    return {
        "best": best,
        "R_peer": seconds[best] / own if best else None,
        "R_torch": seconds["torch"] / own if "torch" in seconds else None,
        "R_flop": flop(CELLS[cell], sizes, train, drawn_lengths(point)) / own / peak,
        "R_bw": least_bytes(CELLS[cell], sizes, train) / own / stream if stream else None,
    }


def groups(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, str, int], list[Row]]]:
    """The rows of each (cell, mode, threads), in the order of their first."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for one in rows:
        found.setdefault((one["cell"], one["mode"], one["threads"]), []).append(one)
    yield from found.items()


def mean(rows: Iterable[Row], ratio: str) -> float | None:
    """Geometric mean of a ratio over the rows that have it."""
    values = [one["ratios"][ratio] for one in rows if one["ratios"][ratio] is not None]
    return geometric_mean(values) if values else None


def least(rows: Iterable[Row], ratio: str) -> Row | None:
    """The row with the smallest value of a ratio."""
    having = [one for one in rows if one["ratios"][ratio] is not None]
    return min(having, key=lambda one: float(one["ratios"][ratio]), default=None)


def machine() -> dict[str, Any]:
    """Processor, system, and the versions of everything that is compared."""
    packages = dict.fromkeys(("numpy", *(peer.package for peer in PEERS.values())))
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "fastrnn": fastrnn.config(),
        "versions": {name: version(name) for name in packages},
    }


def processor() -> str:
    """The processor's name as Linux has it, else as Python has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n") if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
