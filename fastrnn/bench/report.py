"""The report as Markdown: a table for each cell, mode and number of threads, their geometric means, the machine."""

from __future__ import annotations

from typing import Any

from fastrnn.bench.figures import RATIOS, Row, groups, least, mean
from fastrnn.bench.grid import Sizes
from fastrnn.bench.peers import PEERS
from fastrnn.bench.rounds import LEAST_ERROR

MODES = {"forward": "inference", "training": "training (forward and backward)"}


def human(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            value = seconds / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{seconds:.2f} s"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def threads(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


def head(cell: str, mode: str, n: int, peers: list[str]) -> str:
    """A table's title and its first two lines."""
    titles = ["point", "T, B, I, H", "fastrnn", *(PEERS[name].title for name in peers), *RATIOS]
    return f"\n### {cell}, {MODES[mode]}, {threads(n)}\n\n{line(titles)}\n{line(['---'] * len(titles))}"


def line(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |"


def body(row: Row, peers: list[str]) -> str:
    """One line of a table: median and spread of fastrnn, medians of the peers, ratios."""
    times = row["times"]
    own = times["fastrnn"]
    columns = [row["point"], str(Sizes(*row["sizes"]))]
    columns.append(f"{human(own['median'])} ± {100 * own['spread'] / own['median']:.0f} %")
    for name in peers:
        # The reason stands under the tables; here its first word: differs, skipped, failed.
        columns.append(human(times[name]["median"]) if name in times else row["notes"][name].partition(":")[0])
    return line(columns + [ratio(row["ratios"][name]) for name in RATIOS])


def summary(rows: list[Row]) -> str:
    """Geometric means for each table, and the least R_peer of all."""
    titles = ["cell", "mode", "threads", "points", *RATIOS, "least R_peer"]
    lines = ["\n### Geometric means\n", line(titles), line(["---"] * len(titles))]
    for (cell, mode, n), group in groups(rows):
        means = [ratio(mean(group, name)) for name in RATIOS]
        lines.append(line([cell, mode, str(n), str(len(group)), *means, worst(group)]))
    return "\n".join([*lines, "", f"The least R_peer of all: {worst(rows) or 'there was no peer'}."])


def worst(rows: list[Row]) -> str:
    """Where fastrnn stands worst against its best peer; "" without peers."""
    row = least(rows, "R_peer")
    if row is None:
        return ""
    where = f"{row['point']}, {PEERS[row['ratios']['best']].title}"
    return f"{ratio(row['ratios']['R_peer'])} ({where})"


def notes(rows: list[Row]) -> str:
    """Why a peer was not timed, for each that could have been."""
    found = [
        f"* {row['cell']}, {row['mode']}, {threads(row['threads'])}, {row['point']}: {PEERS[name].title} {note}"
        for row in rows
        for name, note in row["notes"].items()
        if note != "-"
    ]
    return "\n".join(["\n### Not timed\n", *found]) if found else ""


def preamble(result: dict[str, Any]) -> str:
    """What was measured, on what, and what the columns mean."""
    machine, versions = result["machine"], result["machine"]["versions"]
    own = machine["fastrnn"]
    named = [f"{PEERS[name].title} {versions[PEERS[name].package]}" for name in result["peers"]]
    peaks = [
        f"* {threads(limit['threads'])} on CPU {', '.join(map(str, limit['cpus']))}: "
        f"sgemm {limit['sgemm'] / 1e9:.0f} GFLOP/s ({limit['blas']})"
        for limit in result["limits"]
    ]
    return "\n".join(
        [
            "# fastrnn and its peers\n",
            f"{machine['processor']}, {machine['system']}, Python {machine['python']}; {result['date']}.",
            f"fastrnn {own['version']}, {own['backend']} backend, {own['isa']}, {own['compiler']}; "
            f"{', '.join(named) or 'no peers'}.\n",
            *peaks,
            "\nfloat32. Every implementation runs in its own process, pinned to the same CPUs, and is stopped while "
            "another is timed; rounds alternate. Times are medians of a call over the rounds, ± the quartiles' "
            f"distance. A peer whose outputs or gradients are off by {LEAST_ERROR:g} or more, norm-wise, is not "
            "timed; `-` is what it does not offer.\n",
            *(f"* {name}: {meaning}" for name, meaning in RATIOS.items()),
        ]
    )


def markdown(result: dict[str, Any]) -> str:
    """The whole report."""
    rows, peers = result["rows"], result["peers"]
    parts = [preamble(result)]
    for (cell, mode, n), group in groups(rows):
        parts += [head(cell, mode, n, peers), *(body(row, peers) for row in group)]
    return "\n".join([*parts, summary(rows), notes(rows)]).rstrip() + "\n"
