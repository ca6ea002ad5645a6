"""Arrays in any memory layout, outputs that stay within bounds, and sizes from zero to too large."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.memory import backwards, guarded, read_only, strided, unaligned
from support.problems import AWKWARD, CELLS, PUBLIC, Arrays, Problem, batch_first, forward, make, run
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.memory import LARGE, empty

ALL = make("lstm_peephole", (5, 3, 2, 17), lengths=True, resets=True, return_cells=True)


@pytest.mark.parametrize("batch_major", [False, True])
@pytest.mark.parametrize("lay", [read_only, np.asfortranarray, strided, backwards, unaligned, memoryview])
def test_layouts(lay: Callable[[np.ndarray], Any], batch_major: bool, backend: str) -> None:
    problem = batch_first(ALL) if batch_major else ALL
    laid = {name: lay(a) for name, a in (problem.inputs | problem.cotangents).items()}
    assert_same_bits(run(problem.changed(**laid)), run(problem))


def test_memory_map(tmp_path: Path, backend: str) -> None:
    mapped = {}
    for name, a in (ALL.inputs | ALL.cotangents).items():
        a.tofile(tmp_path / name)
        mapped[name] = np.memmap(tmp_path / name, a.dtype, "r", shape=a.shape)
    got = run(ALL.changed(**mapped))
    assert_same_bits(got, run(ALL))
    assert {type(a) for a in got.values()} == {np.ndarray}


def test_overlapping_arguments(backend: str) -> None:
    """All are views of one buffer, some of the same bytes, and a broadcast one with stride 0."""
    buffer = np.random.default_rng(0).standard_normal(2000) / 8
    views = {name: buffer[n : n + a.size].reshape(a.shape) for n, (name, a) in enumerate(floats(ALL).items())}
    views["x"] = np.broadcast_to(buffer[:2], ALL.inputs["x"].shape)
    apart = {name: a.copy() for name, a in views.items()}
    assert_same_bits(run(ALL.changed(**views)), run(ALL.changed(**apart)))


def floats(problem: Problem) -> Arrays:
    return {n: a for n, a in (problem.inputs | problem.cotangents).items() if a.dtype.kind == "f"}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T", [0, 1, 5])
def test_outputs_are_fresh(cell: str, T: int, backend: str) -> None:
    """No output shares memory with an input or another output, and no input is written to."""
    problem = make(cell, (T, 3, 2, 17))
    given = problem.inputs | problem.cotangents
    before = {name: a.copy() for name, a in given.items()}
    got = run(problem)
    assert_same_bits(given, before)
    for name, a in got.items():
        assert a.flags.writeable, name
        others = given | {other: b for other, b in got.items() if other != name}
        assert not [other for other, b in others.items() if np.shares_memory(a, b)], name


def test_results_keep_their_memory_while_any_view_is_left(implementation: str) -> None:
    """Large results are in memory that is used again, but not before."""
    x = np.random.default_rng(0).standard_normal((64, 32, 2), np.float32)
    layer = fastrnn.RNN(2, 32, rng=0)
    y = layer(x)[0]
    expected, place = y.copy(), y.ctypes.data
    view = y[1:].T[::2]
    assert not np.shares_memory(layer(-x)[0], view)
    assert_same_bits({"y": view}, {"y": expected[1:].T[::2]})
    del y, view
    assert layer(x)[0].ctypes.data == place


def large() -> np.ndarray:
    """Return an array in memory that is used again."""
    return empty((LARGE,), np.dtype(np.uint8))


def test_a_base_of_results_has_no_copies() -> None:
    """The end of a copy would let the memory be used again."""
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copy the array instead"):
            copied(large().base)


class Garbage:
    """A cycle with a result; its finalizer waits for a thread that makes and drops another."""

    def __init__(self, stuck: list[bool]) -> None:
        self.itself, self.y, self.stuck = self, large(), stuck

    def __del__(self) -> None:
        thread = threading.Thread(target=large, daemon=True)
        thread.start()
        thread.join(5)
        self.stuck.append(thread.is_alive())


def test_garbage_is_collected_while_memory_is_looked_for() -> None:
    """At any point of `empty`; more pairs than Python keeps for new ones, so that each pair is an allocation."""
    thresholds, stuck = gc.get_threshold(), list[bool]()
    try:
        for later in range(40):
            gc.disable()
            Garbage(stuck)
            pairs = [(i, i) for i in range(2500)]
            gc.set_threshold(gc.get_count()[0] + later)
            gc.enable()
            large()
            del pairs
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    gc.collect()
    assert stuck == [False] * 40


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", AWKWARD)
def test_outputs_stay_within_bounds(cell: str, size: int, native: str) -> None:
    """Those of calls, and the memory that the backend allocates for them."""
    problems = [
        make(cell, sizes, dtype=np.float32, lengths=True, resets=True, checkpoint=k)
        for sizes in ((2, size, 3, 5), (3, 2, size, 7), (3, 2, 5, size), (size, 1, 3, 2))
        for k in (None, 2)
    ]
    with guarded():
        for problem in problems:
            run(problem)


@pytest.mark.parametrize("cell", CELLS)
def test_checkpoints_save_memory(cell: str, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step's peak memory, besides arguments and results, is O(T), and O(sqrt(T)) with "auto"."""

    def peak(T: int, checkpoint: str | None) -> float:
        problem = make(cell, (T, 2, 3, 64), checkpoint=checkpoint)
        monkeypatch.setattr("fastrnn.memory._spare", {})
        with ThreadPoolExecutor(1) as fresh:  # a thread keeps scratch memory between calls
            tracemalloc.start()
            results = fresh.submit(run, problem).result()
            most = tracemalloc.get_traced_memory()[1] - sum(a.nbytes for a in results.values())
            tracemalloc.stop()
        return most

    all_of_it, least = peak(4900, None), peak(4900, "auto")
    states = 2 * 64 * 8 * (2 if cell.startswith("lstm") else 1)
    assert all_of_it > 4900 * states
    assert least < all_of_it / 3
    assert least < 2.5 * peak(1225, "auto")


@pytest.mark.parametrize("cell", CELLS)
def test_no_steps(cell: str, implementation: str) -> None:
    """T = 0: the final state is the initial state, so is its gradient; empty sums are 0."""
    problem = make(cell, (0, 3, 2, 5))
    got = run(problem)
    states = ["h", "c"] if PUBLIC[cell][0] == "lstm" else ["h"]
    expected = {f"{s}_n": problem.inputs[f"{s}0"] for s in states}
    expected |= {f"d{s}0": problem.cotangents[f"d{s}_n"] for s in states}
    expected |= {"y": np.empty((0, 3, 5)), "dx": np.empty((0, 3, 2))}
    expected |= {f"d{n}": np.zeros_like(a) for n, a in problem.inputs.items() if n in ("W", "U", "b", "b_rec", "p")}
    assert_same_bits(got, expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"lengths": True, "resets": True, "reverse": True, "batch_first": True}])
def test_no_sequences(cell: str, options: dict[str, bool], implementation: str) -> None:
    problem = make(cell, (4, 0, 2, 5), **options)
    got = run(problem)
    steps = (0, 4) if options else (4, 0)
    shapes = {"y": (*steps, 5), "dx": (*steps, 2)} | {n: (0, 5) for n in got if n in ("h_n", "c_n", "dh0", "dc0")}
    for name, a in got.items():
        assert a.shape == shapes.get(name, problem.inputs[name[1:]].shape if name[0] == "d" else None), name
        assert not a.any(), name


def test_every_length_0(implementation: str) -> None:
    problem = ALL.changed(lengths=np.zeros(3, int))
    got = run(problem)
    assert_same_bits({"h": got.pop("h_n"), "c": got.pop("c_n")}, {"h": problem.inputs["h0"], "c": problem.inputs["c0"]})
    expected = {"h": problem.cotangents["dh_n"], "c": problem.cotangents["dc_n"]}
    assert_same_bits({"h": got.pop("dh0"), "c": got.pop("dc0")}, expected)
    assert not [name for name, a in got.items() if a.any()]


@pytest.mark.parametrize("name", ["x", "U"])
def test_no_inputs_or_units(name: str) -> None:
    """I = 0 and H = 0 raise an error."""
    empty = {"x": np.empty((5, 3, 0)), "W": np.empty((20, 0)), "U": np.zeros((20, 5))}
    if name == "U":
        empty = {"x": np.empty((5, 3, 2)), "W": np.empty((0, 2)), "U": np.empty((0, 0))}
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        fastrnn.lstm_forward(**empty)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(2**50, 1, 1, 1), (1, 2**50, 1, 1), (1, 1, 2**50, 1), (2**30, 2**29, 1, 1), (2**30, 2**29, 1, 16)],
)
def test_sizes_beyond_memory(sizes: tuple[int, int, int, int], training: bool, backend: str) -> None:
    """An x that takes no memory (all strides 0), but whose outputs would take petabytes or overflow a size."""
    T, B, I, H = sizes
    zero = np.zeros(1)
    x, W = np.broadcast_to(zero, (T, B, I)), np.broadcast_to(zero, (4 * H, I))
    with pytest.raises((MemoryError, ValueError)):
        fastrnn.lstm_forward(x, W, np.zeros((4 * H, H)), training=training)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_infinity_propagate(cell: str, implementation: str) -> None:
    """They affect their own sequence from their own step on, and nothing else."""
    clean = make(cell, (5, 7, 2, 17))
    expected = forward(clean)["y"]
    for value in (np.nan, np.inf, -np.inf):
        x = clean.inputs["x"].copy()
        x[2, 3] = value
        got = forward(clean.changed(x=x))["y"]
        others = np.arange(7) != 3
        np.testing.assert_array_equal(got[:, others], expected[:, others])
        np.testing.assert_array_equal(got[:2], expected[:2])
        if np.isnan(value):
            assert np.isnan(got[2:, 3]).all()
