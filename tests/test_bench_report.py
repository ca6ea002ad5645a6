"""The report of `python -m fastrnn bench`: ratios, means and verdicts, in Markdown and as a chart."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import PUBLIC

from benchmarks.compare import figures, grid, machine, report
from benchmarks.compare.rounds import LEAST_ROUNDS, Case, Measured, Timing


def at(seconds: float) -> Timing:
    return Timing(seconds, spread=seconds / 10, rounds=7, calls=3)


def measured(point: str = "b1_512", cell: str = "lstm", mode: str = "forward", **seconds: float) -> Measured:
    """Return an artificial result: fastrnn takes 1 ms by default."""
    times = {name: at(t) for name, t in ({"fastrnn": 1e-3} | seconds).items()}
    rates = {"fma": 200e9, "stream": 100e9}
    rounds = {name: [timing.median] * LEAST_ROUNDS for name, timing in times.items()}
    return Measured(Case(point, cell, mode, 1), times, {"jax": "differs: relative error 1.0e+00"}, rates, rounds)


def result(*rows: figures.Row) -> dict[str, Any]:
    limits = [{"threads": 1, "cpus": [0], "fma": 170e9, "isa": "v9", "sgemm": 150e9, "blas": "a BLAS"}]
    peers = ["torch", "onnxruntime", "jax"]
    return {
        "date": "2026-01-01",
        "machine": machine.machine(),
        "pause": 0.03,
        "peers": peers,
        "seen": {"fastrnn": {"offered": "v9", "chosen": "v8"}, "torch": {"offered": "v9", "chosen": ""}},
        "limits": limits,
        "rows": list(rows),
    }


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([1.01] * 12, "ahead"),
        ([1.1] * 10 + [0.9] * 2, "ahead"),
        ([1.1] * 9 + [0.9] * 3, "level"),
        ([1.0] * 12, "level"),
        ([1.1] * 6 + [0.9] * 6, "level"),
        ([0.9] * 10 + [1.1] * 2, "behind"),
    ],
)
def test_a_verdict_needs_a_clear_majority(theirs: list[float], expected: str) -> None:
    done = measured(torch=1e-3)
    done.rounds["torch"] = [1e-3 * r for r in theirs]
    ratios = figures.ratios(done, sgemm=150e9)
    assert ratios["verdict"] == expected
    assert ratios["spread"][0] <= ratios["R_peer"] <= ratios["spread"][1]


def test_verdict_is_by_rounds() -> None:
    """Other load that slows both does not change the verdict."""
    done = measured(torch=1e-3)
    done.rounds = {"fastrnn": [1.0, 9.0] * 6, "torch": [1.02, 9.2] * 6}
    assert figures.ratios(done, sgemm=150e9)["verdict"] == "ahead"


def test_ratios_are_to_the_best_peer() -> None:
    ratios = figures.ratios(measured(torch=3e-3, onnxruntime=2e-3, openvino=4e-3), sgemm=150e9)
    assert (ratios["best"], ratios["R_peer"], ratios["R_torch"]) == ("onnxruntime", pytest.approx(2), pytest.approx(3))
    sizes = grid.POINTS["b1_512"]
    assert ratios["R_flop"] == pytest.approx(grid.flop(4, 4, sizes) / 1e-3 / 200e9)
    assert ratios["R_bw"] == pytest.approx(grid.least_bytes(4, 4, sizes) / 1e-3 / 100e9)
    faster_sgemm = figures.ratios(measured(), sgemm=400e9)
    assert faster_sgemm["R_flop"] == pytest.approx(ratios["R_flop"] / 2)


def test_ratios_without_a_peer_are_none() -> None:
    alone = figures.ratios(measured(), sgemm=150e9)
    assert (alone["best"], alone["R_peer"], alone["R_torch"]) == (None, None, None)
    assert figures.ratios(measured("med"), sgemm=150e9)["R_bw"] is None
    without_core = measured()
    without_core.rates = {}
    ratios = figures.ratios(without_core, sgemm=150e9)
    assert ratios["R_bw"] is None
    assert ratios["R_flop"] == pytest.approx(grid.flop(4, 4, grid.POINTS["b1_512"]) / 1e-3 / 150e9)


def test_means_are_geometric() -> None:
    rows = [
        figures.row(done, 150e9)
        for done in (measured(torch=2e-3), measured("tiny", torch=9e-3, onnxruntime=8e-3), measured("med"))
    ]
    assert figures.mean(rows, "R_peer") == pytest.approx(4)  # of 2 and 8: the third has no peer
    assert figures.mean(rows, "R_torch") == pytest.approx(np.sqrt(18))
    assert figures.mean(rows[2:], "R_peer") is None
    assert figures.least(rows, "R_peer") is rows[0]
    assert figures.least(rows[2:], "R_peer") is None


def test_the_report_in_markdown() -> None:
    rows = [figures.row(measured(torch=2e-3), 150e9), figures.row(measured("tiny", mode="training"), 150e9)]
    rows[0]["notes"]["onnxruntime"] = rows[1]["notes"]["onnxruntime"] = rows[1]["notes"]["torch"] = "-"
    text = report.markdown(result(*rows))
    tables = [line.split(" | ") for line in text.split("\n") if re.match(r"\| (b1_512|tiny)", line)]
    assert tables[0][2:7] == ["1.00 ms ± 10 %", "2.00 ms", "-", "differs", "2.00"]
    assert tables[0][7:9] == ["2.000 to 2.000", "ahead"]
    assert tables[1][2:10] == ["1.00 ms ± 10 %", "-", "-", "differs", "", "", "", ""]
    assert "multiply-add loop 170 GFLOP/s (v9), sgemm 150 GFLOP/s (a BLAS)" in text
    assert "| v9 | v8 |" in text
    assert "Of 2 rows: ahead 1, level 0, behind 0." in text
    assert "* lstm, forward, 1 thread, b1_512: JAX differs: relative error 1.0e+00" in text
    assert "The least R_peer of all: 2.00 (b1_512, PyTorch)." in text
    json.loads(json.dumps(result(*rows), allow_nan=False))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-6, "1.23 us"), (9.999e-6, "10.0 us"), (99.97e-6, "100 us"), (999.6e-6, "1.00 ms"), (0.0567, "56.7 ms")],
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert report.human(seconds) == text


def test_the_chart_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [measured(point, cell, torch=2e-3) for point in grid.POINTS for cell in PUBLIC]
    rows.append(measured("tiny", mode="training"))  # has no peer, so it is not drawn
    whole = result(*(figures.row(done, 150e9) for done in rows))
    importlib.import_module("benchmarks.compare.chart").draw(whole, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
