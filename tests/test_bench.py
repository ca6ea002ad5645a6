"""`python -m fastrnn bench`: its arguments and grid, how it measures, the limits of the machine, and a small run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import PUBLIC
from support.python import Python

from benchmarks.compare import __main__ as command
from benchmarks.compare import cells, figures, grid, machine
from benchmarks.compare.limits import FMA
from benchmarks.compare.peer import relative_error, worst_error
from benchmarks.compare.problem import make
from benchmarks.compare.rounds import LEAST_ROUNDS, Bench, timing

ROOT = Path(__file__).parents[1]
SMALL = "lengths"  # the point with unequal lengths


def test_cells_are_found_by_name() -> None:
    found = {name: cells.find(name) for name in PUBLIC}
    assert {name: (cell.family, len(cell.gates)) for name, cell in found.items()} == {
        name: (family, gates) for name, (family, gates, _) in PUBLIC.items()
    }
    assert set(PUBLIC) - set(cells.USUAL) == {"rnn_relu", "rnn_sigmoid", "rnn_identity"}
    assert {cell for some, _ in grid.ONLY.values() for cell in some} <= set(PUBLIC)
    assert set(grid.ONLY) <= set(grid.REAL)
    assert set(grid.QUICK) <= set(grid.GRID)


def test_grid_imports_nothing_of_fastrnn(python: Python) -> None:
    done = python("-c", f"import runpy, sys; runpy.run_path({grid.__file__!r}); print('fastrnn' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_bench_needs_a_checkout(python: Python) -> None:
    done = python("-m", "fastrnn", "bench", "--points", "tiny")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (2, 1, "")
    assert "`python -m benchmarks.compare`" in done.stdout


@pytest.mark.parametrize("command", [("fastrnn", "bench"), ("benchmarks.compare",)])
def test_bench_in_a_checkout(command: tuple[str, ...]) -> None:
    nothing = [sys.executable, "-m", *command, "--points", "guitarml", "--modes", "forward"]
    done = subprocess.run(nothing, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "none of these points is measured" in done.stdout, done.stderr


def test_other_commands_take_no_arguments(python: Python) -> None:
    done = python("-m", "fastrnn", "info", "--points")
    assert done.returncode == 2
    assert "unrecognized arguments: --points" in done.stderr


def test_the_grid_says_what_runs() -> None:
    assert grid.runs("guitarml", "lstm", "training")
    assert not grid.runs("guitarml", "lstm", "forward")
    assert not grid.runs("rnnoise_256", "lstm", "forward")
    assert all(grid.runs("odd_33", cell, mode) for cell in PUBLIC for mode in grid.MODES)


def test_flop_and_bytes_of_a_point() -> None:
    sizes = grid.Sizes(T=5, B=3, I=2, H=7)
    assert grid.flop(4, 4, sizes) == 2 * (4 * 7) * (2 + 7) * 5 * 3
    assert grid.flop(4, 4, sizes, train=True) == 3 * grid.flop(4, 4, sizes)
    assert grid.flop(4, 4, sizes, lengths=np.array([5, 1, 0])) == grid.flop(4, 4, sizes) * 6 // 15
    assert grid.least_bytes(3, 3, sizes) == 4 * (5 * 3 * 7 * 7 + 3 * 7 * 2)
    assert grid.least_bytes(3, 3, sizes, train=True) == 2 * grid.least_bytes(3, 3, sizes)
    assert grid.flop(4, 1, sizes) == 2 * (4 * 7 * 2 + 7 * 7) * 5 * 3
    assert grid.least_bytes(4, 0, sizes) == 4 * 4 * 7 * 2
    stack = grid.Sizes(T=5, B=3, I=2, H=7, layers=2, directions=2)
    both = (grid.Sizes(5, 3, I, 7) for I in (2, 2, 14, 14))
    assert grid.flop(4, 4, stack) == sum(grid.flop(4, 4, one) for one in both)
    both = (grid.Sizes(5, 3, I, 7) for I in (2, 2, 14, 14))
    assert grid.least_bytes(4, 4, stack) == sum(grid.least_bytes(4, 4, one) for one in both)
    assert str(sizes) == "5, 3, 2, 7"
    assert str(stack) == "5, 3, 2, 7, 2 layers, 2 directions"


def test_lengths_are_drawn_once() -> None:
    lengths = grid.drawn_lengths("lengths")
    assert lengths is not None
    T, B = grid.POINTS["lengths"][:2]
    assert lengths.shape == (B,)
    assert (lengths >= 1).all()
    assert (lengths <= T).all()
    assert len(set(lengths)) > B // 2
    assert (grid.drawn_lengths("lengths") == lengths).all()
    assert grid.drawn_lengths("med") is None


@pytest.mark.parametrize("cell", PUBLIC)
def test_a_problem_has_the_sizes_of_its_point(cell: str) -> None:
    problem = make(cell, SMALL)
    T, B, I, H = grid.POINTS[SMALL][:4]
    G = PUBLIC[cell][1]
    assert (problem.x.shape, problem.dy.shape) == ((T, B, I), (T, B, H))
    shapes = {"W": (G * H, I), "U": (G * H, H), "b": (G * H,), "b_rec": (G * H,), "p": (3 * H,)}
    assert {name: a.shape for name, a in problem.parameters.items()} == {
        f"{name}_l0": shape for name, shape in shapes.items() if name != "p" or cell == "lstm_peephole"
    }
    for name, array in problem.parameters.items():
        assert array.dtype == np.float32
        assert 0.9 < abs(array).max() * np.sqrt(H) <= 1, name
    for b, length in enumerate(problem.lengths if problem.lengths is not None else []):
        assert (problem.dy[:length, b] != 0).any()
        assert (problem.dy[length:, b] == 0).all()


@pytest.mark.parametrize("seconds", ["nan", "-1", "inf", "soon"])
def test_wrong_seconds_are_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = command.parser()
    assert parser.parse_args(["--seconds", "0.25"]).seconds == 0.25
    with pytest.raises(SystemExit):
        parser.parse_args([f"--seconds={seconds}"])
    assert "argument --seconds: " in capsys.readouterr().err


def test_relative_errors_are_by_norm() -> None:
    one, two, zero = np.ones(4, np.float32), np.full(4, 2, np.float32), np.zeros(4, np.float32)
    assert relative_error(one, two) == 0.5
    assert (relative_error(zero, zero), relative_error(one, zero)) == (0, np.inf)
    assert relative_error(one[:3], one) == np.inf
    assert worst_error({"y": one, "dx": one}, {"y": one, "dx": two}) == 0.5
    assert worst_error({"y": one}, {"y": one, "dx": one}) == np.inf
    assert not worst_error({"y": one * np.nan, "dx": one}, {"y": one, "dx": one}) < 1


def test_a_timing_is_median_and_spread() -> None:
    taken = timing([3.0, 1.0, 2.0, 5.0, 4.0, 7.0, 6.0], calls=9)
    assert taken == (4.0, 6.0 - 2.0, 7, 9)


def test_spread_holds_the_median() -> None:
    """The spread contains the true median with a confidence of 95 %, from the least number of rounds on."""
    for n in range(LEAST_ROUNDS, 500):
        low, high = figures.spread([*range(n, 0, -1)])
        assert n / 2 <= high - low + 1 <= 0.75 * n
        assert low - 1 == n - high  # as many are smaller as are larger
        k = n // 4
        outside = 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
        assert outside < 0.05, n


class FakeProcess:
    """Reports how long a call takes, and records the requests and their times."""

    def __init__(self, log: list[tuple[float, Any]], taken: float) -> None:
        self.log, self.taken, self.alive = log, taken, True

    def ask(self, *request: Any) -> float:
        self.log.append((time.perf_counter(), request))
        return self.taken


def test_rounds_alternate_with_pauses() -> None:
    log: list[tuple[float, Any]] = []
    with Bench([0], [], seconds=0, pause=0.01) as some:
        some.processes = {"short": FakeProcess(log, 1e-3), "long": FakeProcess(log, 0.6)}  # type: ignore[dict-item]
        _, rounds = some.interleave(["short", "long"])
    assert rounds == {"short": [1e-3] * LEAST_ROUNDS, "long": [0.6] * LEAST_ROUNDS}
    times, asked = zip(*log[2:], strict=True)
    assert asked == (("clock", 5, 5), ("clock", 1, 0)) * LEAST_ROUNDS
    assert min(np.diff(times)) >= 0.01


def test_cpu_and_caches(tmp_path: Path) -> None:
    text = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: A CPU: fast\n\nmodel\t: 9\n"
    found = {"processor": "A CPU: fast", "vendor": "GenuineIntel", "model": "family 6, model 207"}
    assert machine.cpu(text) == found
    assert machine.cpu("")["processor"]
    every = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]
    for i, (level, kind, size) in enumerate(every):
        (tmp_path / f"index{i}").mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (tmp_path / f"index{i}" / name).write_text(f"{value}\n")
    caches = machine.caches(tmp_path)
    assert caches == {"L1d": "48K", "L2": "2M"}
    line = machine.described({**found, "cores": 2, "caches": caches})
    assert line == "A CPU: fast, GenuineIntel, family 6, model 207, 2 cores, L1d 48K, L2 2M"
    assert machine.described({**dict.fromkeys(found), "processor": "arm", "cores": 1, "caches": {}}) == "arm, 1 cores"


def test_peak_is_of_the_instruction_set_in_use(native: str) -> None:
    assert FMA(1).isa == importlib.import_module("_fastrnn").isas()[native.removeprefix("native-")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_read_stream_reads_all(dtype: type, native: str) -> None:
    core = importlib.import_module("_fastrnn")
    isa = core.isas()[native.removeprefix("native-")]
    for n in (1, 15, 127, 128, 129, 1000):
        x = np.arange(1, n + 1, dtype=dtype)  # whole numbers: the sum is exact in any order
        assert core.read_bandwidth(isa, x, 3) == 3 * n * (n + 1) / 2


def test_multiply_adds_are_counted(native: str) -> None:
    core = importlib.import_module("_fastrnn")
    isa = core.isas()[native.removeprefix("native-")]
    one = core.peak_flops(isa, 1)
    assert one >= 2 * 4 * 8  # eight chains of four lanes at least
    assert core.peak_flops(isa, 1000) == 1000 * one


@pytest.mark.alone  # training has to take longer than a forward pass
@pytest.mark.parametrize("cell", ["lstm", pytest.param("support.own_cells:gru", marks=pytest.mark.thorough)])
def test_a_small_run_measures_and_reports(cell: str, python: Python, tmp_path: Path) -> None:
    chosen = {"points": "seed3", "cells": cell, "peers": "numpy", "seconds": "0.05", "threads": "1", "out": "out"}
    done = python("-m", "benchmarks.compare", *(word for k, v in chosen.items() for word in (f"--{k}", v)))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(row["cell"], row["mode"], row["point"]) for row in found["rows"]] == [
        (cell, "forward", "seed3"),
        (cell, "training", "seed3"),
    ]
    forward, training = found["rows"]
    for row in (forward, training):
        own, peer = row["times"]["fastrnn"], row["times"]["numpy"]
        # on a busy machine the median of a few quotients may differ from the quotient of the medians
        assert 0.5 < row["ratios"]["R_peer"] * own["median"] / peer["median"] < 2
        assert row["ratios"]["verdict"] in figures.VERDICTS
        assert row["ratios"]["best"] == "numpy"
        assert 0 < own["median"] < 1
        assert own["spread"] >= 0
        assert min(own["rounds"], peer["rounds"]) >= LEAST_ROUNDS
        assert 0 < row["ratios"]["R_flop"] < 1.2
        assert row["notes"] == {}
    for name in ("fastrnn", "numpy"):  # training does a forward pass and more
        assert training["times"][name]["median"] > forward["times"][name]["median"]
    assert found["limits"][0]["threads"] == 1
    assert found["limits"][0]["sgemm"] > 1e8
    text = (tmp_path / "out" / "bench.md").read_text()
    assert text.count("| seed3 |") == 2
    assert f"### {cell}, inference, 1 thread" in done.stdout
