"""From times to the ratios and the verdict of each row: plain data, as in bench.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import geometric_mean, median
from typing import Any

from .cells import find
from .grid import POINTS, drawn_lengths, flop, least_bytes
from .rounds import Measured

#: The possible verdicts on R_peer, from its `spread` over the rounds.
VERDICTS = {
    "ahead": "the spread of R_peer lies above 1",
    "level": "1 lies within the spread",
    "behind": "the spread lies below 1",
}

#: One case: point, cell, mode, threads, sizes, times, notes, limits, ratios.
Row = dict[str, Any]

#: The meaning of the ratios. Larger is better; a ratio is None without the peer's time or the limit.
RATIOS = {
    "R_peer": "the best peer's time over fastrnn's, the median over the rounds",
    "R_torch": "PyTorch's time over fastrnn's, likewise",
    "R_flop": "useful flop/s over the peak of the instruction set in use, the better of a multiply-add loop and "
    "NumPy's sgemm of 2048",
    "R_bw": "at B = 1: bytes of weights that must be read (U in every step and W once; twice that in training) per "
    "second, over the rate of reading a buffer of U's size",
}


def row(measured: Measured, sgemm: float) -> Row:
    """Return one case as plain data; `sgemm` is in flop/s."""
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
    """Return the RATIOS, the name of the best peer, and the verdict on it."""
    point, cell, mode, _ = measured.case
    sizes, train, found = POINTS[point], mode == "training", find(cell)
    G, P = len(found.gates), len(found.products)
    rounds, seconds = measured.rounds, {name: timing.median for name, timing in measured.times.items()}
    own = seconds.pop("fastrnn")
    best = min(seconds, key=seconds.__getitem__, default=None)
    peak = max(sgemm, measured.rates.get("fma", 0))
    stream = measured.rates.get("stream") if sizes.B == 1 else None
    each = quotients(rounds[best], rounds["fastrnn"]) if best else None
    within = spread(each) if each else None
    return {
        "best": best,
        "R_peer": median(each) if each else None,
        "spread": within,
        "verdict": verdict(*within) if within else None,
        "R_torch": median(quotients(rounds["torch"], rounds["fastrnn"])) if "torch" in rounds else None,
        "R_flop": flop(G, P, sizes, train, drawn_lengths(point)) / own / peak,
        "R_bw": least_bytes(G, P, sizes, train) / own / stream if stream else None,
    }


def quotients(theirs: list[float], own: list[float]) -> list[float]:
    """Return the quotient of each round; its times are measured one after the other, so common load cancels out."""
    return [a / b for a, b in zip(theirs, own, strict=True)]


def spread(values: list[float]) -> tuple[float, float]:
    """Return the range from the n/4-th smallest to the n/4-th largest of n values, n/4 rounded down.

    That is the middle half or a little more. With at least 12 values it is also a 95 % confidence interval of the true
    median: a fair coin thrown 12 times falls on the same side at least 10 times in 4 % of cases.
    """
    ordered, k = sorted(values), len(values) // 4
    return ordered[k - 1], ordered[-k]


def verdict(low: float, high: float) -> str:
    """Return one of VERDICTS."""
    return "ahead" if low > 1 else "behind" if high < 1 else "level"


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """Count the rows with each of VERDICTS."""
    found = Counter(one["ratios"]["verdict"] for one in rows)
    return {name: found[name] for name in VERDICTS}


def groups(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, str, int], list[Row]]]:
    """Return the rows of each (cell, mode, threads), in order of first occurrence."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for one in rows:
        found.setdefault((one["cell"], one["mode"], one["threads"]), []).append(one)
    yield from found.items()


def mean(rows: Iterable[Row], ratio: str) -> float | None:
    """Return the geometric mean of a ratio over the rows that have it."""
    values = [one["ratios"][ratio] for one in rows if one["ratios"][ratio] is not None]
    return geometric_mean(values) if values else None


def least(rows: Iterable[Row], ratio: str) -> Row | None:
    """Return the row with the smallest value of a ratio."""
    having = [one for one in rows if one["ratios"][ratio] is not None]
    return min(having, key=lambda one: float(one["ratios"][ratio]), default=None)
