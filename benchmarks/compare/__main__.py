"""The command: `python -m benchmarks.compare`, and in a checkout `python -m fastrnn bench`."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastrnn.backends import usable_cpus
from fastrnn.cells import CELLS

from . import chart, machine, report
from .cells import USUAL, find
from .figures import Row, row
from .grid import GRID, MODES, POINTS, QUICK, runs
from .peers import PEERS
from .process import Failed
from .rounds import PAUSE, Bench, Case


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=compare.__doc__)
    add = made.add_argument
    add(
        "--cells",
        nargs="+",
        type=cell,
        default=USUAL,
        metavar="CELL",
        help=f"{', '.join(CELLS)}, or module:name for a cell made by fastrnn.cell (default: {' '.join(USUAL)})",
    )
    points = made.add_mutually_exclusive_group()
    points.add_argument(
        "--points",
        nargs="+",
        choices=POINTS,
        default=list(GRID),
        metavar="POINT",
        help=f"{', '.join(POINTS)} (default: the first {len(GRID)})",
    )
    points.add_argument("--quick", action="store_const", dest="points", const=list(QUICK), help=", ".join(QUICK))
    points.add_argument("--all", action="store_const", dest="points", const=list(POINTS), help="all points")
    add(
        "--modes",
        nargs="+",
        choices=MODES,
        default=list(MODES),
        metavar="MODE",
        help=f"{', '.join(MODES)} (default: all)",
    )
    add(
        "--threads",
        nargs="+",
        type=int,
        choices=range(1, usable_cpus() + 1),
        default=sorted({1, usable_cpus()}),
        metavar="N",
        help=f"numbers of threads, each pinned to as many CPUs, at most {usable_cpus()} here (default: 1 and all)",
    )
    add(
        "--peers",
        nargs="*",
        choices=PEERS,
        metavar="PEER",
        help=f"{', '.join(PEERS)} (default: those installed)",
    )
    add("--seconds", type=seconds_of, default=0.5, help="per point and peer, including pauses (default: 0.5)")
    add("--pause", type=seconds_of, default=PAUSE, help=f"idle seconds before a round (default: {PAUSE})")
    add("--out", type=Path, default=Path("bench"), metavar="DIR", help="folder of the report (default: bench)")
    return made


def cell(name: str) -> str:
    try:
        find(name)
    except (KeyError, ImportError, AttributeError) as error:
        expected = f"one of {', '.join(CELLS)}, or module:name of a cell"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {name} ({error!r})") from error
    return name


def seconds_of(text: str) -> float:
    found = float(text)
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    return compare(**vars(parser().parse_args(arguments)))


def compare(
    *,
    cells: list[str],
    points: list[str],
    modes: list[str],
    threads: list[int],
    peers: list[str] | None,
    seconds: float,
    pause: float,
    out: Path,
) -> int:
    """Time fastrnn against its installed peers and against the machine's limits."""
    installed = [name for name, peer in PEERS.items() if peer.installed()]
    chosen = installed if peers is None else peers
    if absent := set(chosen) - set(installed):
        print(f"not installed: {', '.join(sorted(absent))}; `pip install '.[bench]'` installs all peers")
        return 2
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine.machine(),
        "pause": pause,
        "peers": chosen,
        "seen": {},
        "limits": [],
        "rows": [],
    }
    if not any(runs(*kind) for kind in itertools.product(points, cells, modes)):
        print("none of these points is measured for these cells and modes")
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # in either case, report the existing results
    status = 0
    print(report.cpu(result), flush=True)
    try:
        for n in threads:
            with Bench(cpus(n), chosen, seconds, pause) as bench:
                measure(result, list(itertools.product(cells, modes)), points, bench)
    except (Failed, KeyboardInterrupt) as end:
        print(f"\nstopped: {f'fastrnn itself or a limit failed: {end}' if str(end) else 'interrupted'}")
        status = 1
    if result["rows"]:
        print(report.summary(result["rows"]), report.notes(result["rows"]), sep="\n")
        write(result, out)
    return status


Kinds = list[tuple[str, str]]  #: (cell, mode)


def cpus(threads: int) -> list[int]:
    """Return the CPUs that so many threads are pinned to."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(threads))
    return usable[:threads]


def measure(result: dict[str, Any], kinds: Kinds, points: list[str], bench: Bench) -> None:
    """Add the results of all cases at all points on the bench's CPUs, and print the rows as they are measured."""
    threads, peers = len(bench.cpus), result["peers"]
    peaks = bench.peaks()
    limit = {
        "threads": threads,
        "cpus": bench.cpus,
        "fma": peaks.get("fma"),
        "isa": result["machine"]["fastrnn"]["isa"],
        "sgemm": peaks["sgemm"],
        "blas": bench.seen("sgemm")["chosen"],
    }
    result["limits"].append(limit)
    print(report.peaks(limit), flush=True)
    if not result["seen"]:
        result["seen"] = {name: bench.seen(name) for name in ("fastrnn", *peers)}
        print(f"\n{report.seen(result)}", flush=True)
    for cell, mode in kinds:
        cases = [Case(point, cell, mode, threads) for point in points if runs(point, cell, mode)]
        if cases:
            print(report.head(cell, mode, threads, result), flush=True)
        for case in cases:
            done: Row = row(bench.measure(case), peaks["sgemm"])
            result["rows"].append(done)
            print(report.body(done, peers), flush=True)


def write(result: dict[str, Any], out: Path) -> None:
    """Write bench.json, bench.md and, if possible, bench.png."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    (out / "bench.md").write_text(report.markdown(result))
    names = ["bench.json", "bench.md"]
    if importlib.util.find_spec("matplotlib") is None:
        print("\nno chart: matplotlib is not installed")
    elif result["peers"]:
        chart.draw(result, out / "bench.png")
        names.append("bench.png")
    print(f"\nwrote {', '.join(str(out / name) for name in names)}")


if __name__ == "__main__":
    sys.exit(main())
