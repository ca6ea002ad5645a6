"""`python -m fastrnn bench`: the arithmetic of its figures, its limits, its peers' agreement, and a small run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from support.problems import PUBLIC

import fastrnn
from benchmarks.compare import __main__ as command
from benchmarks.compare import cells, figures, grid, machine, report
from benchmarks.compare.jax_peer import JAX
from benchmarks.compare.limits import FMA
from benchmarks.compare.onnx_peers import ONNXRuntime, OpenVINO
from benchmarks.compare.peer import Peer, relative_error, worst_error
from benchmarks.compare.peers import PEERS, Fastrnn, Numba, NumPy, PyTorch
from benchmarks.compare.problem import Problem, draw, make
from benchmarks.compare.process import AVX2, environment
from benchmarks.compare.rounds import LEAST_ROUNDS, Bench, Case, Measured, Timing, timing

Python = Callable[..., CompletedProcess[str]]

ROOT = Path(__file__).parents[1]
SMALL = "lengths"  # the point with unequal lengths


def at(seconds: float) -> Timing:
    return Timing(seconds, spread=seconds / 10, rounds=7, calls=3)


def measured(point: str = "b1_512", cell: str = "lstm", mode: str = "forward", **seconds: float) -> Measured:
    """A hand-made result: fastrnn takes 1 ms unless told."""
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


def test_cells() -> None:
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


def test_bench_outside_a_checkout(python: Python) -> None:
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


def test_what_runs() -> None:
    assert grid.runs("guitarml", "lstm", "training")
    assert not grid.runs("guitarml", "lstm", "forward")
    assert not grid.runs("rnnoise_256", "lstm", "forward")
    assert all(grid.runs("odd_33", cell, mode) for cell in PUBLIC for mode in grid.MODES)


def test_work() -> None:
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
def test_problem(cell: str) -> None:
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
def test_seconds_that_are_none(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = command.parser()
    assert parser.parse_args(["--seconds", "0.25"]).seconds == 0.25
    with pytest.raises(SystemExit):
        parser.parse_args([f"--seconds={seconds}"])
    assert "argument --seconds: " in capsys.readouterr().err


def test_errors() -> None:
    one, two, zero = np.ones(4, np.float32), np.full(4, 2, np.float32), np.zeros(4, np.float32)
    assert relative_error(one, two) == 0.5
    assert (relative_error(zero, zero), relative_error(one, zero)) == (0, np.inf)
    assert relative_error(one[:3], one) == np.inf
    assert worst_error({"y": one, "dx": one}, {"y": one, "dx": two}) == 0.5
    assert worst_error({"y": one}, {"y": one, "dx": one}) == np.inf
    assert not worst_error({"y": one * np.nan, "dx": one}, {"y": one, "dx": one}) < 1


@pytest.mark.parametrize(("isa", "limited"), [("v3", True), ("x86-64-v3", True), ("x86-64-v4", False), ("", False)])
def test_peers_are_limited_like_fastrnn(isa: str, limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_ISA", isa)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    chosen = environment(1)
    assert (AVX2.items() <= chosen.items()) == limited
    assert ("max_isa" in chosen["XLA_FLAGS"]) == limited
    assert ("OPENBLAS_CORETYPE" in chosen) == limited


def test_timing() -> None:
    taken = timing([3.0, 1.0, 2.0, 5.0, 4.0, 7.0, 6.0], calls=9)
    assert taken == (4.0, 6.0 - 2.0, 7, 9)


def test_spread_holds_the_median() -> None:
    """What is said of it: it holds the true median with a confidence of 95 %, from the least number of rounds on."""
    for n in range(LEAST_ROUNDS, 500):
        low, high = figures.spread([*range(n, 0, -1)])
        assert n / 2 <= high - low + 1 <= 0.75 * n
        assert low - 1 == n - high  # as many are smaller as are larger
        k = n // 4
        outside = 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
        assert outside < 0.05, n


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
def test_verdict(theirs: list[float], expected: str) -> None:
    done = measured(torch=1e-3)
    done.rounds["torch"] = [1e-3 * r for r in theirs]
    ratios = figures.ratios(done, sgemm=150e9)
    assert ratios["verdict"] == expected
    assert ratios["spread"][0] <= ratios["R_peer"] <= ratios["spread"][1]


def test_verdict_is_of_rounds_not_of_times() -> None:
    """A neighbour that slows both alike hides nothing."""
    done = measured(torch=1e-3)
    done.rounds = {"fastrnn": [1.0, 9.0] * 6, "torch": [1.02, 9.2] * 6}
    assert figures.ratios(done, sgemm=150e9)["verdict"] == "ahead"


class FakeProcess:
    """Says how long a call takes, and notes what it was asked, and when."""

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
    for i, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]
    ):
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


def test_ratios() -> None:
    ratios = figures.ratios(measured(torch=3e-3, onnxruntime=2e-3, openvino=4e-3), sgemm=150e9)
    assert (ratios["best"], ratios["R_peer"], ratios["R_torch"]) == ("onnxruntime", pytest.approx(2), pytest.approx(3))
    sizes = grid.POINTS["b1_512"]
    assert ratios["R_flop"] == pytest.approx(grid.flop(4, 4, sizes) / 1e-3 / 200e9)
    assert ratios["R_bw"] == pytest.approx(grid.least_bytes(4, 4, sizes) / 1e-3 / 100e9)
    faster_sgemm = figures.ratios(measured(), sgemm=400e9)
    assert faster_sgemm["R_flop"] == pytest.approx(ratios["R_flop"] / 2)


def test_ratios_that_are_not_there() -> None:
    alone = figures.ratios(measured(), sgemm=150e9)
    assert (alone["best"], alone["R_peer"], alone["R_torch"]) == (None, None, None)
    assert figures.ratios(measured("med"), sgemm=150e9)["R_bw"] is None
    without_core = measured()
    without_core.rates = {}
    ratios = figures.ratios(without_core, sgemm=150e9)
    assert ratios["R_bw"] is None
    assert ratios["R_flop"] == pytest.approx(grid.flop(4, 4, grid.POINTS["b1_512"]) / 1e-3 / 150e9)


def test_means() -> None:
    rows = [
        figures.row(done, 150e9)
        for done in (measured(torch=2e-3), measured("tiny", torch=9e-3, onnxruntime=8e-3), measured("med"))
    ]
    assert figures.mean(rows, "R_peer") == pytest.approx(4)  # of 2 and 8: the third has no peer
    assert figures.mean(rows, "R_torch") == pytest.approx(np.sqrt(18))
    assert figures.mean(rows[2:], "R_peer") is None
    assert figures.least(rows, "R_peer") is rows[0]
    assert figures.least(rows[2:], "R_peer") is None


def test_markdown() -> None:
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
def test_human(seconds: float, text: str) -> None:
    assert report.human(seconds) == text


def test_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [measured(point, cell, torch=2e-3) for point in grid.POINTS for cell in PUBLIC]
    rows.append(measured("tiny", mode="training"))  # has no peer, and so no place in it
    importlib.import_module("benchmarks.compare.chart").draw(
        result(*(figures.row(done, 150e9) for done in rows)), tmp_path / "bench.png"
    )
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


def outputs(peer: type[Peer], problem: Problem, mode: str) -> dict[str, np.ndarray]:
    with fastrnn.use_backend(fastrnn.config()["backend"]):  # comes back: a peer may switch it
        threads = fastrnn.get_num_threads()
        work = peer(1).prepare(problem, mode == "training")
        fastrnn.set_num_threads(threads)
        return work.collect(work.call())


#: Not Numba, which is NumPy's twin and takes half a minute to compile.
EVERY = (NumPy, PyTorch, ONNXRuntime, OpenVINO, JAX)
AGREE = [
    (peer, sizes, lengths)
    for peer in EVERY
    for sizes, lengths in (
        (grid.POINTS["seed3"], None),
        (grid.Sizes(9, 5, 3, 17, layers=2, directions=2), None),
        (grid.Sizes(1, 2, 3, 17, layers=2), None),
        (grid.Sizes(9, 5, 3, 17), np.array([9, 1, 4, 8, 2])),
    )
    if lengths is None or peer is not JAX
]


@pytest.mark.parametrize(("peer", "sizes", "lengths"), AGREE)
def test_peers_agree(peer: type[Peer], sizes: grid.Sizes, lengths: np.ndarray | None) -> None:
    """What each says it can do gives fastrnn's outputs and gradients: gate orders and peepholes among it."""
    if not peer.installed():
        pytest.skip(f"{peer.title} is not installed")
    offered = [
        (name, mode)
        for name in PUBLIC
        for mode in grid.MODES
        if peer.offers(cells.find(name), mode == "training", lengths is not None)
    ]
    assert len(offered) == {NumPy: 16, PyTorch: 8, ONNXRuntime: 8, OpenVINO: 6, JAX: 10}[peer]
    for name, mode in offered:
        problem = draw(name, sizes, lengths)
        expected = outputs(Fastrnn, problem, mode)
        assert len(expected) == (1 if mode == "forward" else 2 + len(problem.parameters))
        error = worst_error(outputs(peer, problem, mode), expected)
        assert error < 1e-5, f"{name}, {mode}"


@pytest.mark.parametrize("peer", [PyTorch, JAX])
@pytest.mark.parametrize(
    "name", [f"support.own_cells:{name}" for name in ("gru", "minimal_gated_unit", "min_gru", "slstm")]
)
def test_peers_run_a_users_cell(peer: type[Peer], name: str) -> None:
    """Their loops over its equations give what its own functions give."""
    if not peer.installed():
        pytest.skip(f"{peer.title} is not installed")
    problem = draw(name, grid.Sizes(9, 5, 3, 17))
    for mode in grid.MODES:
        expected = outputs(Fastrnn, problem, mode)
        assert len(expected) == (1 if mode == "forward" else 2 + len(problem.parameters))
        assert worst_error(outputs(peer, problem, mode), expected) < 1e-5, mode


def test_extra_inputs_and_gates_apart(oracle: Callable[[str], Any]) -> None:
    """A cell that has all that a cell can have."""
    oracle("torch"), oracle("jax")
    problem = draw("support.own_cells:in_turns", grid.Sizes(9, 5, 3, 17))
    assert {name: a.shape for name, a in problem.weights[0].items()} == {
        "W": (4 * 17, 3),
        "U": (3 * 17, 17),
        "b": (4 * 17,),
        "b_rec": (3 * 17,),
        "p": (17,),
    }
    of_torch = outputs(PyTorch, problem, "training")
    assert {"de_keep", "de_drop", "dp_l0"} < of_torch.keys()
    assert worst_error(outputs(JAX, problem, "training"), of_torch) < 1e-5
    assert worst_error(outputs(Fastrnn, problem, "training"), of_torch) < 1e-5


def test_gates_share_products(oracle: Callable[[str], Any]) -> None:
    """One for each operand, as people write them; their rows of U are a slice where they lie side by side."""
    jnp = oracle("jax").numpy
    groups, rows = {}, {}
    for name in ("minimal_gated_unit", "clipped_relu_lstm", "in_turns"):
        cell = cells.find(f"support.own_cells:{name}")
        steps = cells.Steps(cell, cell.own.equations, lambda: jnp.zeros((1, 1)))
        W, b_rec = np.ones((len(cell.gates), 1)), np.arange(len(cell.products))
        groups[name] = steps.groups
        rows[name] = [b.tolist() for _, b in steps.parts({"W": W, "U": b_rec, "b_rec": b_rec})]
    assert list(groups.values()) == [[["f"], ["n"]], [["i", "f", "g", "o"]], [["u", "w"], ["v"]]]
    assert list(rows.values()) == [[[0], [1]], [[0, 1, 2, 3]], [[0, 2], [1]]]


def test_who_runs_a_users_cell() -> None:
    cell = cells.find("support.own_cells:gru")
    assert [name for name in PEERS if PEERS[name].offers(cell, True, False)] == ["torch", "jax", "numba", "numpy"]
    assert [name for name in PEERS if PEERS[name].offers(cell, True, True)] == ["numba", "numpy"]


def test_every_peer_is_listed() -> None:
    assert list(PEERS.values()) == [PyTorch, ONNXRuntime, OpenVINO, JAX, Numba, NumPy]


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
def test_small_run(cell: str, python: Python, tmp_path: Path) -> None:
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
        # the median of a few rounds' quotients is not the quotient of medians on a machine that others use too
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
