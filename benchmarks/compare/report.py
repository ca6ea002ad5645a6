"""The report as Markdown: a table for each cell, mode and number of threads, their geometric means, the machine."""

from __future__ import annotations

from typing import Any

from .figures import RATIOS, VERDICTS, Row, counts, groups, least, mean
from .grid import Sizes
from .machine import described
from .peers import PEERS
from .rounds import LEAST_ERROR

MODES = {"forward": "inference", "training": "training (forward and backward)"}


def human(seconds: float) -> str:
    """Format a time with three digits and a unit."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            value = seconds / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{seconds:.2f} s"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def threads(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


def head(cell: str, mode: str, n: int, result: dict[str, Any]) -> str:
    """Return a table's title, which names the CPU because tables of several CPUs may be combined, and its first two
    lines.
    """
    first, *others = RATIOS
    named = (PEERS[name].title for name in result["peers"])
    where = f"{result['machine']['processor']}, {result['machine']['fastrnn']['isa'] or 'no kernels'}"
    titles = ["point", "T, B, I, H", "fastrnn", *named, first, "spread", "verdict", *others]
    return f"\n### {cell}, {MODES[mode]}, {threads(n)}; {where}\n\n{line(titles)}\n{line(['---'] * len(titles))}"


def line(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |"


def body(row: Row, peers: list[str]) -> str:
    """Return one line of a table: median and spread of fastrnn, medians of the peers, ratios."""
    times = row["times"]
    own = times["fastrnn"]
    columns = [row["point"], str(Sizes(*row["sizes"]))]
    columns.append(f"{human(own['median'])} ± {100 * own['spread'] / own['median']:.0f} %")
    for name in peers:
        # The reason is below the tables; here only its first word: differs, skipped, failed.
        columns.append(human(times[name]["median"]) if name in times else row["notes"][name].partition(":")[0])
    found = row["ratios"]
    first, *others = (ratio(found[name]) for name in RATIOS)
    low, high = found["spread"] or (None, None)
    spread = f"{low:.3f} to {high:.3f}" if low is not None else ""
    return line([*columns, first, spread, found["verdict"] or "", *others])


def summary(rows: list[Row]) -> str:
    """Count the verdicts, and give geometric means and the least R_peer, for each table and for all."""
    titles = ["cell", "mode", "threads", "points", *VERDICTS, *RATIOS, "least R_peer"]
    lines = ["\n### Verdicts and geometric means\n", line(titles), line(["---"] * len(titles))]
    for (cell, mode, n), group in groups(rows):
        means = [ratio(mean(group, name)) for name in RATIOS]
        verdicts = [str(count) for count in counts(group).values()]
        lines.append(line([cell, mode, str(n), str(len(group)), *verdicts, *means, worst(group)]))
    every = ", ".join(f"{name} {count}" for name, count in counts(rows).items())
    end = f"Of {len(rows)} rows: {every}. The least R_peer of all: {worst(rows) or 'there was no peer'}."
    return "\n".join([*lines, "", end])


def worst(rows: list[Row]) -> str:
    """Name fastrnn's worst result against its best peer; "" without peers."""
    row = least(rows, "R_peer")
    if row is None:
        return ""
    where = f"{row['point']}, {PEERS[row['ratios']['best']].title}"
    return f"{ratio(row['ratios']['R_peer'])} ({where})"


def notes(rows: list[Row]) -> str:
    """List why peers were not timed."""
    found = [
        f"* {row['cell']}, {row['mode']}, {threads(row['threads'])}, {row['point']}: {PEERS[name].title} {note}"
        for row in rows
        for name, note in row["notes"].items()
        if note != "-"
    ]
    return "\n".join(["\n### Not timed\n", *found]) if found else ""


def cpu(result: dict[str, Any]) -> str:
    """Name the CPU and the instruction set that fastrnn used, for every figure of a run."""
    return f"CPU: {described(result['machine'])}; instruction set in use: {result['machine']['fastrnn']['isa'] or '-'}"


def peaks(limit: dict[str, Any]) -> str:
    """Describe both peaks of arithmetic for one number of threads."""
    loop = f"multiply-add loop {limit['fma'] / 1e9:.0f} GFLOP/s ({limit['isa']}), " if limit["fma"] else ""
    where = f"{threads(limit['threads'])} on CPU {', '.join(map(str, limit['cpus']))}"
    return f"{where}: peaks: {loop}sgemm {limit['sgemm'] / 1e9:.0f} GFLOP/s ({limit['blas']})"


def seen(result: dict[str, Any]) -> str:
    """Return a table of the instruction sets that each implementation could choose from."""
    titles = ["", "version", "the best instruction set that CPUID offered it", "its own word on what it uses"]
    lines = [line(titles), line(["---"] * len(titles))]
    versions = result["machine"]["versions"]
    for name, found in result["seen"].items():
        title = "fastrnn" if name == "fastrnn" else PEERS[name].title
        release = result["machine"]["fastrnn"]["version"] if name == "fastrnn" else versions[PEERS[name].package]
        lines.append(line([title, str(release), found["offered"] or "-", found["chosen"] or "-"]))
    return "\n".join(lines)


def preamble(result: dict[str, Any]) -> str:
    """Describe what was measured, on which machine, and the columns."""
    machine = result["machine"]
    own = machine["fastrnn"]
    return "\n".join(
        [
            "# fastrnn and its peers\n",
            f"{cpu(result)}.",
            f"{machine['system']}, Python {machine['python']}; fastrnn's {own['backend']} backend, {own['compiler']}; "
            f"{result['date']}.\n",
            *(f"* {peaks(limit)}" for limit in result["limits"]),
            "",
            seen(result),
            "\nfloat32. Every implementation runs in its own process, pinned to the same CPUs, and is stopped while "
            f"another is timed; rounds alternate, after {1e3 * result['pause']:g} ms of idleness each. Times are "
            "medians of a call over the rounds, ± the interquartile "
            f"range. A peer whose outputs or gradients have a norm-wise error of {LEAST_ERROR:g} or more is not "
            "timed; `-` means not available.\n",
            *(f"* {name}: {meaning}" for name, meaning in RATIOS.items()),
            "* spread: of R_peer over the rounds, from the n/4-th smallest to the n/4-th largest of n",
            "* verdict: " + ", ".join(f"{name} where {meaning}" for name, meaning in VERDICTS.items()),
        ]
    )


def markdown(result: dict[str, Any]) -> str:
    """Return the whole report."""
    rows, peers = result["rows"], result["peers"]
    parts = [preamble(result)]
    for (cell, mode, n), group in groups(rows):
        parts += [head(cell, mode, n, result), *(body(row, peers) for row in group)]
    return "\n".join([*parts, summary(rows), notes(rows)]).rstrip() + "\n"
