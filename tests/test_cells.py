"""Cells of a user's own: outputs and every gradient, promises, errors, and the machine code that is kept on disk."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.problems import PUBLIC
from support.tolerance import assert_close, assert_rounded, assert_same_bits

import fastrnn
from fastrnn import catalogue
from fastrnn.backends import available_isas
from fastrnn.cells import CELLS, CellError, generate, machine, relu, sigmoid, tanh
from fastrnn.cells.c import source
from fastrnn.cells.definition import Cell
from fastrnn.defined import DefinedCell

Arrays = dict[str, np.ndarray]

STEP = 1e-30

#: cells as users write them, and built-in ones that no public function has
ALL = (
    *own_cells.ALL,
    *[DefinedCell(c.function, c.gates, c.states, c.parameters) for c in CELLS.values() if c.name not in PUBLIC],
)

CATALOGUE = tuple([cell for name in catalogue.__all__ if isinstance(cell := getattr(catalogue, name), Cell)])


def problem(cell: Any, sizes: tuple[int, int, int, int], seed: int = 0, **options: Any) -> SimpleNamespace:
    """Random float64 arguments, cotangents and options of a cell's forward and backward."""
    T, B, I, H = sizes
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / 2

    products, narrow = len(cell.products), ((T, B, H), (T, B, 1), (B, H), (B, 1))
    inputs: dict[str, Any] = {
        "x": drawn(T, B, I),
        "W": drawn(cell.G * H, I),
        "b": drawn(cell.G * H),
        **({"U": drawn(products * H, H), "b_rec": drawn(products * H)} if products else {}),
        **({"p": rng.random(len(cell.parameters) * H)} if cell.parameters else {}),
    }
    e = {name: rng.random(narrow[(k + seed) % 4]) for k, name in enumerate(cell.inputs)}
    init = tuple([drawn(B, H) for _ in cell.states])
    back = {
        "dy": drawn(T, B, H),
        "dfinal": tuple([drawn(B, H) for _ in cell.states]),
        "dstates": tuple([drawn(T, B, H) for _ in cell.states]),
    }
    if options.pop("lengths", False):
        options["lengths"] = rng.integers(0, T + 1, B)
    if options.pop("resets", False):
        options["resets"] = rng.random((T, B)) < 0.2
    return SimpleNamespace(cell=cell, inputs=inputs, e=e, init=init, back=back, options=options)


def as_dtype(value: Any, dtype: Any) -> Any:
    if isinstance(value, dict):
        return {k: as_dtype(v, dtype) for k, v in value.items()}
    return tuple([v.astype(dtype) for v in value]) if isinstance(value, tuple) else value.astype(dtype)


def results(p: SimpleNamespace, dtype: Any = np.float64, **more: Any) -> Arrays:
    """All that forward and backward return, by name."""
    inputs, e, init, back = (as_dtype(v, dtype) for v in (p.inputs, p.e, p.init, p.back))
    out = p.cell.forward(**inputs, e=e or None, init=init, return_states=True, training=True, **p.options, **more)
    grads = p.cell.backward(back["dy"], out.cache, dfinal=back["dfinal"], dstates=back["dstates"])
    found = {"y": out.y}
    found |= {f"{s}_n": a for s, a in zip(p.cell.states, out.final, strict=True)}
    found |= {s: a for s, a in zip(p.cell.states, out.states, strict=True)}
    found |= {f"d{name}": getattr(grads, f"d{name}") for name in inputs}
    found |= {f"d{s}0": a for s, a in zip(p.cell.states, grads.dinit, strict=True)}
    return found | {f"d{name}": a for name, a in (grads.de or {}).items()}


def loop(p: SimpleNamespace, given: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """States of every step and the final ones, by the equations and a plain loop."""
    cell, options = p.cell, p.options
    x, state = given["x"], tuple([given[f"{s}0"] for s in cell.states])
    T, B, _ = x.shape
    lengths = options.get("lengths", np.full(B, T))
    every: list[Any] = [None] * T
    for t in range(T - 1, -1, -1) if options.get("reverse") else range(T):
        before = state
        if "resets" in options:
            before = tuple([np.where(options["resets"][t][:, None], 0, s) for s in before])
        e = {n: given[n][t] if given[n].ndim == 3 else given[n] for n in cell.inputs}
        after = cell.step(
            x[t], before, given["W"], given.get("U"), given["b"], given.get("b_rec"), p=given.get("p"), e=e or None
        )
        alive = (t < lengths)[:, None]
        every[t] = tuple([np.where(alive, a, 0) for a in after])
        state = tuple([np.where(alive, a, s) for a, s in zip(after, state, strict=True)])
    return every, state


def by_complex_step(p: SimpleNamespace) -> Arrays:
    """What `results` returns, gradients by the imaginary part of a loss whose inputs are moved by it."""
    given = p.inputs | p.e | {f"{s}0": a for s, a in zip(p.cell.states, p.init, strict=True)}
    every, final = loop(p, given)
    states = [np.stack([after[k] for after in every]) for k in range(len(p.cell.states))]
    found = {"y": states[0]} | {f"{s}_n": a for s, a in zip(p.cell.states, final, strict=True)}
    found |= dict(zip(p.cell.states, states, strict=True))
    moved = {name: a.astype(complex) for name, a in given.items()}

    def loss() -> complex:
        every, final = loop(p, moved)
        total = sum(np.sum(after[0] * d) for after, d in zip(every, p.back["dy"], strict=True))
        for k in range(len(p.cell.states)):
            total += sum(np.sum(after[k] * d) for after, d in zip(every, p.back["dstates"][k], strict=True))
            total += np.sum(final[k] * p.back["dfinal"][k])
        return total

    for name, a in given.items():
        found[f"d{name}"] = gradient = np.empty(a.shape)
        for index in np.ndindex(a.shape):
            moved[name][index] += 1j * STEP
            gradient[index] = loss().imag / STEP
            moved[name][index] = a[index]
    return found


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"lengths": True, "resets": True},
    {"lengths": True, "reverse": True, "checkpoint": 2},
    {"resets": True, "reverse": True, "checkpoint": 1},
)


@pytest.mark.parametrize("n", range(len(OPTIONS)))
@pytest.mark.parametrize("cell", ALL, ids=lambda cell: cell.name)
def test_gradients_are_complex_steps(cell: Any, n: int) -> None:
    p = problem(cell, (4, 3, 2, 3), n, **OPTIONS[n])
    exact = by_complex_step(p)
    for backend in ("numpy", "native") if "native" in fastrnn.config()["available_backends"] else ("numpy",):
        with fastrnn.use_backend(backend):
            assert_close(results(p), exact)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", [*ALL, *CATALOGUE], ids=lambda cell: cell.name)
def test_machine_code_is_the_reference(cell: Any, dtype: Any, isa: str) -> None:
    """On every instruction set, at sizes round the widths of vectors."""
    least = 5 if cell.program.means else 1  # of few units, what is normalised is their rounding
    for n, sizes in enumerate([(6, 5, 3, 7), (5, 1, 4, 33), (4, 9, 5, 64), (3, 2, 1, least)]):
        p = problem(cell, sizes, n, **OPTIONS[n])

        def evaluate(p: SimpleNamespace = p) -> Arrays:
            with fastrnn.use_backend("numpy"):
                return results(p)

        p.inputs, p.e, p.init, p.back = (
            as_dtype(as_dtype(v, dtype), np.float64) for v in (p.inputs, p.e, p.init, p.back)
        )
        with fastrnn.use_isa(isa):
            got = results(p, dtype)
        assert_rounded(got, evaluate(), evaluate)


#: all that a cell can have: inputs, parameters, several states, means, products one after the other, and values that
#: depend on parameters alone
UNLIKE = {"everything", "normalised", "in_turns", "lru"}


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=cell.name, marks=() if cell.name in UNLIKE else pytest.mark.thorough)
        for cell in (*ALL, catalogue.lru)
    ],
)
def test_numba_is_the_reference(cell: Any) -> None:
    p = problem(cell, (4, 3, 2, 5), lengths=True, resets=True)
    with fastrnn.use_backend("numpy"):
        exact = results(p)
    with fastrnn.use_backend("numba"):
        assert_close(results(p), exact)


@pytest.mark.parametrize("cell", ALL, ids=lambda cell: cell.name)
def test_bits(cell: Any, native: str) -> None:
    """The same on any number of threads, with checkpoints, batch-first, and without training."""
    for sizes in ((9, 12, 5, 48), (7, 1, 3, 400), (7, 5, 3, 257)):
        p = problem(cell, sizes, lengths=True, resets=True)
        expected = results(p, np.float32, threads=1)
        for more in ({"threads": 2}, {"threads": 3, "checkpoint": 3}, {"checkpoint": "auto"}):
            assert_same_bits(results(p, np.float32, **more), expected)
        inputs, e, init = (as_dtype(v, np.float32) for v in (p.inputs, p.e, p.init))
        y, final, states, cache = cell.forward(**inputs, e=e or None, init=init, **p.options)
        assert (states, cache) == (None, None)
        assert_same_bits({"y": y, "h": final[0]}, {"y": expected["y"], "h": expected[f"{cell.states[0]}_n"]})
        inputs["x"] = inputs["x"].swapaxes(0, 1)
        e = {k: a.swapaxes(0, 1) if a.ndim == 3 else a for k, a in e.items()}
        turned = {k: v.T if k == "resets" else v for k, v in p.options.items()}
        y = cell.forward(**inputs, e=e or None, init=init, batch_first=True, **turned).y
        assert_same_bits({"y": y.swapaxes(0, 1).copy()}, {"y": expected["y"]})


SCANS = [cell for cell in (*ALL, *CATALOGUE) if cell.program.scans]


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"lengths": True, "resets": True}], ids=str)
@pytest.mark.parametrize("cell", SCANS, ids=lambda cell: cell.name)
def test_one_long_sequence(cell: Any, options: dict[str, Any], native: str) -> None:
    """Whose units are run one after the other, over many steps at a time; several sequences are not."""
    for T, H in ((150, 40), (64, 70), (65, 3)):
        p = problem(cell, (T, 1, 3, H), **options)
        p.inputs["W"] /= 4
        if "p" in p.inputs:
            p.inputs["p"] = np.abs(p.inputs["p"]) / (2 + np.abs(p.inputs["p"]))  # or states grow beyond any number
        with fastrnn.use_backend("numpy"):
            exact = results(p)
        assert_close(results(p), exact)
        expected = results(p, np.float32, threads=1)
        assert_same_bits(results(p, np.float32, threads=2), expected)
        assert_same_bits(results(p, np.float32, checkpoint=9), expected)


def test_a_zero_that_is_carried_back_keeps_its_sign(native: str) -> None:
    """Gradients of -0 reach the initial state as -0, alone, in a batch, and with checkpoints."""
    cell, x, W = catalogue.min_gru, np.ones((3, 2, 1), np.float32), np.ones((10, 1), np.float32)

    def carried(sequences: int, **options: Any) -> np.ndarray:
        minus = np.full((sequences, 5), -0.0, np.float32)
        out = cell.forward(x[:, :sequences], W, None, init=(minus,), training=True, **options)
        return cell.backward(np.broadcast_to(minus, out.y.shape), out.cache, dfinal=(minus,)).dinit[0][0]

    for got in (carried(1), carried(2), carried(1, checkpoint=2)):
        assert_same_bits({"dh0": got}, {"dh0": np.full(5, -0.0, np.float32)})


def test_some_cells_scan() -> None:
    assert {"min_gru", "ind_rnn", "sru", "lru"} <= {cell.name for cell in SCANS}


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("cell", generate.compiled().values(), ids=generate.compiled())
def test_a_cell_has_the_same_bits_compiled_in_and_here(cell: Any, isa: str, monkeypatch: Any) -> None:
    """The one that is compiled in is found by its equations, whoever wrote them."""
    native = fastrnn.backends.load("native")
    own = DefinedCell(cell.function, cell.gates, cell.states, cell.parameters)
    p = problem(own, (7, 5, 3, 37), 1, lengths=True, resets=True)
    with fastrnn.use_isa(isa):
        for dtype in (np.float32, np.float64):
            assert isinstance(native._code(own, np.dtype(dtype).itemsize, isa), int)
            expected = results(p, dtype)
            with monkeypatch.context() as patch:
                patch.delitem(native._compiled_in, own.digest)
                native._code.cache_clear()
                assert not isinstance(native._code(own, np.dtype(dtype).itemsize, isa), int)
                got = results(p, dtype)
            native._code.cache_clear()
            assert_same_bits(got, expected)


def test_one_sequence_without_the_axis_of_the_batch() -> None:
    p = problem(own_cells.leaky_rates, (6, 1, 3, 5))
    whole = p.cell.forward(**p.inputs, e=p.e, init=p.init, training=True)
    inputs = p.inputs | {"x": p.inputs["x"][:, 0]}
    for noise in (p.e["noise"][:, 0], p.e["noise"][:, 0, :1], p.e["noise"][0, 0]):
        alone = p.cell.forward(**inputs, e={"noise": noise}, init=tuple([s[0] for s in p.init]), training=True)
        grads = p.cell.backward(np.ones_like(alone.y), alone.cache)
        assert grads.de["noise"].shape == noise.shape
        if noise.ndim == 2 and noise.shape[1] == 5:
            assert_same_bits({"y": alone.y}, {"y": whole.y[:, 0].copy()})


def test_nan_propagates() -> None:
    p = problem(own_cells.everything, (4, 3, 2, 5))
    p.inputs["x"][1, 0, 0] = np.nan
    y = p.cell.forward(**p.inputs).y
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1:, 0]).any()
    assert np.isfinite(y[:, 1:]).all()


def test_the_branch_not_taken_lets_nothing_through() -> None:
    from fastrnn.cells import log, where

    @fastrnn.cell(gates="a", states="h")
    def guarded(x: Any, U: Any, s: Any) -> Any:
        return where(x.a > 0, log(x.a), 0 * s.h)

    x = np.array([[[-1.0]], [[0.0]], [[2.0]]])
    out = guarded.forward(x, np.ones((1, 1)), training=True)
    assert guarded.backward(np.ones((3, 1, 1)), out.cache).dx.ravel().tolist() == [0, 0, 0.5]


def test_kinks() -> None:
    """relu'(0) = abs'(0) = 0, clip's is 0 at its bounds, ties go to the first argument."""
    from fastrnn.cells import abs, clip, maximum, minimum

    def slopes(f: Any) -> list[float]:
        @fastrnn.cell(gates="ab", states="h")
        def kink(x: Any, U: Any, s: Any) -> Any:
            return f(x.a, x.b)

        out = kink.forward(np.zeros((1, 1, 1)), np.ones((2, 1)), None, np.zeros(2), training=True)
        return kink.backward(np.ones((1, 1, 1)), out.cache).db.tolist()

    assert slopes(lambda a, b: relu(a) + abs(b)) == [0, 0]
    assert slopes(lambda a, b: clip(a, 0, 1) + clip(b, -1, 0)) == [0, 0]
    assert slopes(minimum) == [1, 0]
    assert slopes(maximum) == [1, 0]


def two_states(x: Any, U: Any, s: Any) -> Any:
    return tanh(x.a + U.a @ s.h)


def twice(x: Any, U: Any, s: Any) -> Any:
    return tanh(x.a + U.a @ s.h) + U.a @ s.h


def branch(x: Any, U: Any, s: Any) -> Any:
    return relu(x.a) if s.h > 0 else U.a @ s.h


def numpy_function(x: Any, U: Any, s: Any) -> Any:
    return np.tanh(x.a + U.a @ s.h)


def unknown_gate(x: Any, U: Any, s: Any) -> Any:
    return x.a + x.z


def array_inside(x: Any, U: Any, s: Any) -> Any:
    return x.a * np.ones(3)


def comparison(x: Any, U: Any, s: Any) -> Any:
    return x.a * (s.h > 0)


def power(x: Any, U: Any, s: Any) -> Any:
    return (x.a + U.a @ s.h) ** 0.5


def changes(x: Any, U: Any, s: Any) -> Any:
    s.h = x.a
    return s.h


def too_many(x: Any, U: Any, s: Any) -> Any:
    h = s.h
    for g in "abcdefgh":
        h = tanh(getattr(U, g) @ (h + 1))
    return h


def no_product(x: Any, U: Any, s: Any) -> Any:
    return x.a * U.a


def rounds(x: Any, U: Any, s: Any) -> Any:
    return round(x.a)


def returns_text(x: Any, U: Any, s: Any) -> Any:
    return "h"


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (two_states, {"states": "hc"}, r"returns 1 states, expected 2: h, c"),
        (twice, {}, r"U\.a is used twice"),
        (branch, {}, r"use where\(condition, a, b\) instead of `if`"),
        (numpy_function, {}, r"use the functions of fastrnn\.cells"),
        (unknown_gate, {}, r"x has no 'z'; expected one of: a"),
        (array_inside, {}, r"ndarray is neither a number nor a value"),
        (comparison, {}, r"a comparison is not a number"),
        (power, {}, r"\*\* takes an integer power"),
        (changes, {}, r"equations return the next states"),
        (too_many, {"gates": "abcdefgh"}, r"need 9 products|at most 8"),
        (no_product, {}, r"U\.a can only be used in U\.a @ v"),
        (rounds, {}, r"doesn't define __round__"),
        (returns_text, {}, r"str is neither a number"),
        (two_states, {"gates": "ab"}, r"gate b is not used"),
        (two_states, {"gates": ("for",)}, r"expected attribute names, got 'for'"),
        (two_states, {"gates": "aa"}, r"expected distinct names"),
        (two_states, {"gates": ""}, r"expected 1 to 8 names"),
        (two_states, {"states": "hcdef"}, r"expected 1 to 4 names"),
        (two_states, {"inputs": ("e",)}, r"expected a function of x, U, s, e"),
        (two_states, {"inputs": ("lengths",)}, r"'lengths' is the name of another argument"),
        (lambda x, U, s, p: x.a, {"parameters": ("q",)}, r"parameter q is not used"),
    ],
)
def test_what_is_no_cell(function: Any, options: dict[str, Any], says: str) -> None:
    """The message names the cell and the line."""
    name = "<lambda>" if function.__name__ == "<lambda>" else function.__name__
    with pytest.raises(CellError, match=rf"cell {name}, .*test_cells\.py:\d+: .*({says})"):
        fastrnn.cell(**{"gates": "a", "states": "h"} | options)(function)


def test_the_line_is_that_of_the_mistake() -> None:
    with pytest.raises(CellError, match=rf":{branch.__code__.co_firstlineno + 1}: equations are traced without values"):
        fastrnn.cell(gates="a", states="h")(branch)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"e": None}, "e: missing 'noise'"),
        (
            {"e": {"noise": np.zeros((6, 3, 2))}},
            r"noise: expected one of the shapes \(6, 3, 5\), \(3, 5\), \(6, 3, 1\), \(3, 1\)",
        ),
        ({"e": {"noise": np.zeros((3, 5), np.float32)}}, "noise: expected dtype float64"),
        ({"e": {"noise": np.zeros((3, 5)), "more": np.zeros((3, 5))}}, "e: unexpected 'more'"),
        ({"p": None}, r"p: expected shape \(H,\) for alpha, got None"),
        ({"U": None}, "U: expected an array"),
        ({"init": (None,)}, "init: expected a tuple of rate, current"),
        ({"init": (None, np.zeros((3, 4)))}, r"current0: expected shape"),
        ({"length": None}, "unexpected keyword argument 'length'"),
    ],
)
def test_arguments_refused(change: dict[str, Any], says: str) -> None:
    p = problem(own_cells.leaky_rates, (6, 3, 2, 5))
    with pytest.raises((TypeError, ValueError), match=says):
        p.cell.forward(**p.inputs | {"e": {"noise": np.zeros((3, 5))}} | change)


def test_what_a_cell_does_not_have_is_refused() -> None:
    p = problem(own_cells.min_gru, (2, 3, 2, 5))
    with pytest.raises(ValueError, match="U: cell min_gru has no product with U"):
        p.cell.forward(**p.inputs, U=np.zeros((5, 5)))
    with pytest.raises(ValueError, match="p: expected None"):
        p.cell.forward(**p.inputs, p=np.zeros(5))
    with pytest.raises(ValueError, match="e: unexpected 'mask'"):
        p.cell.forward(**p.inputs, e={"mask": np.zeros((3, 5))})


def test_a_cache_is_of_its_cell() -> None:
    p = problem(own_cells.min_gru, (2, 3, 2, 5))
    cache = p.cell.forward(**p.inputs, training=True).cache
    with pytest.raises(TypeError, match="expected one made by ind_rnn_forward"):
        own_cells.ind_rnn.backward(None, cache)
    p.inputs["x"][:] = 0
    with pytest.raises(ValueError, match="x was changed"):
        p.cell.backward(np.ones((2, 3, 5)), cache)


def test_pickle_is_by_name() -> None:
    assert pickle.loads(pickle.dumps(own_cells.slstm)) is own_cells.slstm
    assert pickle.loads(pickle.dumps(CELLS["lstm"])) is CELLS["lstm"]


def test_text() -> None:
    assert str(own_cells.ind_rnn).endswith("return relu(x.n + p.u * s.h)")
    assert repr(own_cells.ind_rnn) == "<cell ind_rnn: gates n, states h>"
    assert own_cells.ind_rnn.derivative().splitlines() == [
        "v0 = h <= 0",
        "dh_prev = where(v0, 0, dh * p_u)",
        "dx_n = where(v0, 0, dh)",
        "dp_u = where(v0, 0, dh * h_prev)",
    ]
    scope = {"where": np.where, "h": np.array([2.0]), "dh": np.array([3.0]), "p_u": 0.5, "h_prev": np.array([1.0])}
    exec(own_cells.ind_rnn.derivative(), scope)
    assert (scope["dh_prev"], scope["dp_u"]) == (1.5, 3.0)


PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
import numpy as np; from support import own_cells
from test_cells import problem
p = problem(own_cells.min_gru, (3, 2, 2, 5))
print(p.cell.forward(**p.inputs).y.tobytes().hex())
"""


def run_with(folder: Path, program: str = PROGRAM) -> str:
    """y in a process of its own that keeps machine code in this folder."""
    code = program.format(tests=str(Path(__file__).parent))
    environment = os.environ | {"FASTRNN_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


FAR = """
import ctypes, mmap, sys
sys.path.insert(0, {tests!r})
from test_cells import problem
from support import own_cells

libc, page, big = ctypes.CDLL(None), mmap.PAGESIZE, 8 << 30
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def reserve(size):  # address space alone: no access, private, anonymous, no memory behind it
    return libc.mmap(None, size, 0, 0x4022, -1, 0)


run = lambda cell: cell.forward(**problem(cell, (3, 2, 2, 5)).inputs).y.tobytes().hex()
run(own_cells.gru)  # the compiler has its memory
block = reserve(big)
while reserve(page) > block:  # no hole is left above it
    pass
libc.munmap(block + big // 2, page)  # but one, for a single section
print(run(own_cells.min_gru))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the flags of mmap are Linux'")
@pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")
def test_code_far_from_its_constants(tmp_path: Path) -> None:
    """Where the address space is crowded, code and constants come to lie gigabytes apart."""
    assert run_with(tmp_path, FAR) == run_with(tmp_path)


@pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")
def test_the_cache_on_disk(tmp_path: Path) -> None:
    """Machine code is kept and used again; what is damaged, or cannot be written, costs time alone."""
    expected = run_with(tmp_path / "kept")
    [path] = (tmp_path / "kept").iterdir()
    whole, time = path.read_bytes(), path.stat().st_mtime_ns
    assert run_with(tmp_path / "kept") == expected
    assert path.stat().st_mtime_ns == time
    for damaged in (b"", whole[:100], whole[:-1] + b"?", whole[32:]):
        path.write_bytes(damaged)
        assert run_with(tmp_path / "kept") == expected
        assert path.read_bytes() == whole
    (tmp_path / "file").write_text("no folder")
    assert run_with(tmp_path / "file") == expected


def test_the_key_is_all_that_matters(tmp_path: Path, native: str, monkeypatch: Any) -> None:
    """Equations, dtype and instruction set: each has a file of its own."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    code = fastrnn.backends.load("native")._code
    isas = fastrnn.config()["available_isas"]
    for cell in (own_cells.min_gru, own_cells.zoneout):
        for itemsize in (4, 8):
            for isa in isas:
                code.__wrapped__(cell, itemsize, isa)
    assert len(list(tmp_path.iterdir())) == 4 * len(isas)


def test_without_a_compiler(native: str, monkeypatch: Any) -> None:
    """NumPy computes, and says so."""
    p = problem(own_cells.zoneout, (3, 2, 2, 5))
    expected = results(p)
    monkeypatch.setattr(machine, "available", lambda: False)
    with pytest.warns(RuntimeWarning, match=r"cell zoneout is not compiled in.*pip install 'fastrnn\[cells\]'"):
        assert_close(results(p), expected)


def test_functions_of_machine_code_are_accurate(native: str) -> None:
    """exp, log, log1p and softplus within 3 ulp of float64's, over their range."""
    from fastrnn.cells import exp, log, log1p, softplus

    rng = np.random.default_rng(0)
    points = {
        exp: np.concatenate([rng.uniform(-87, 88.7, 200000), rng.uniform(-1, 1, 50000)]),
        log: np.exp(rng.uniform(-87, 88, 250000)),
        log1p: np.concatenate([np.exp(rng.uniform(-60, 80, 200000)), rng.uniform(-0.999, 1, 50000)]),
        softplus: rng.uniform(-80, 80, 250000),
    }
    for function, x in points.items():

        @fastrnn.cell(gates="a", states="h")
        def elementwise(x: Any, U: Any, s: Any, function: Any = function) -> Any:
            return function(x.a)

        for isa in available_isas():
            with fastrnn.use_isa(isa):
                x32 = x.astype(np.float32)
                y = elementwise.forward(x32[None, :, None], np.ones((1, 1), np.float32)).y.ravel()
                exact = np.asarray(function(x32.astype(np.float64)))
                ulps = abs(y - exact) / np.spacing(abs(exact).astype(np.float32))
                assert ulps.max() < 3, (function, isa)
    special = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32)
    for function, expected in ((exp, [np.inf, 0, np.nan, 1]), (log, [np.inf, np.nan, np.nan, -np.inf])):

        @fastrnn.cell(gates="a", states="h")
        def at_limits(x: Any, U: Any, s: Any, function: Any = function) -> Any:
            return function(x.a)

        y = at_limits.forward(special[None, :, None], np.ones((1, 1), np.float32)).y.ravel()
        assert np.array_equal(y, np.array(expected, np.float32), equal_nan=True)


def test_equations_take_any_dtype() -> None:
    """`step` is the function itself: complex and long double go through."""
    cell = own_cells.gru
    for dtype in (np.complex64, np.longdouble):
        h = cell.step(
            *[np.ones(s, dtype) / 3 for s in ((2, 3),)],
            (np.ones((2, 4), dtype),),
            np.ones((12, 3), dtype),
            np.ones((12, 4), dtype),
        )
        assert h[0].dtype == dtype


def test_a_cell_needs_a_function() -> None:
    with pytest.raises(TypeError, match="expected a Python function"):
        Cell(np.tanh, "a", "h")


def test_cells_of_the_library_are_cells() -> None:
    assert str(CELLS["lstm"]).startswith('@builtin("lstm", gates="ifgo", states="hc")')
    assert sigmoid(np.zeros(1)) == 0.5


def test_generated_c(tmp_path: Path) -> None:
    """A file for each family, left alone if it is there already; what C has no form for is an error."""
    generate.main(tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    families = {"cell_rnn.c", "cell_lstm.c", "cell_gru.c", "cell_catalogue.c"}
    assert written.keys() == {"cells.h", "headers.h", *families}
    assert (tmp_path / "cells.h").read_text().count("CELL(") == len(generate.compiled())
    lstm = (tmp_path / "cell_lstm.c").read_text().partition("const Cell")[0]
    assert lstm.count("vsigmoid(") == 3
    assert lstm.count("vtanh(") == 3  # of g and of c, and of c again backwards
    (tmp_path / "cell_old.c").write_text("what is no family any more")
    generate.main(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    with pytest.raises(KeyError, match="softplus"):
        source({"slstm": own_cells.slstm})
