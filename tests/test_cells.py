"""User-defined cells: outputs and every gradient, and the same bits in every way to compute them."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.cell_problems import as_dtype, problem, results
from support.problems import PUBLIC, Arrays
from support.tolerance import assert_close, assert_rounded, assert_same_bits

import fastrnn
from fastrnn import catalogue
from fastrnn.backends import available_isas
from fastrnn.cells import CELLS, mean, relu, sigmoid, tanh
from fastrnn.cells.definition import Cell
from fastrnn.defined import DefinedCell

STEP = 1e-30

#: user-defined cells, and built-in ones without a public function
ALL = (
    *own_cells.ALL,
    *[DefinedCell(c.function, c.gates, c.states, c.parameters) for c in CELLS.values() if c.name not in PUBLIC],
)

CATALOGUE = tuple([cell for name in catalogue.__all__ if isinstance(cell := getattr(catalogue, name), Cell)])


def loop(p: SimpleNamespace, given: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """Return the states of every step and the final ones, from a plain loop over the equations."""
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
    """Return the same as `results`; gradients are the imaginary part of a loss with complex inputs."""
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
    """On every instruction set, at sizes around the widths of vectors."""
    least = 5 if cell.program.means else 1  # with few units, normalised values consist mainly of rounding errors
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


#: together, every feature of a cell: inputs, parameters, several states, means, dependent products, and values that
#: depend only on parameters
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
def test_bits_are_the_same_on_threads_with_checkpoints_and_batch_first(cell: Any, native: str) -> None:
    """On any number of threads, with checkpoints, batch-first, and without training."""
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
def test_a_scan_of_one_long_sequence_is_the_reference(cell: Any, options: dict[str, Any], native: str) -> None:
    """Its units are computed one after the other, many steps at a time; several sequences are computed differently."""
    for T, H in ((150, 40), (64, 70), (65, 3)):
        p = problem(cell, (T, 1, 3, H), **options)
        p.inputs["W"] /= 4
        if "p" in p.inputs:
            p.inputs["p"] = np.abs(p.inputs["p"]) / (2 + np.abs(p.inputs["p"]))  # otherwise states grow without bound
        with fastrnn.use_backend("numpy"):
            exact = results(p)
        assert_close(results(p), exact)
        expected = results(p, np.float32, threads=1)
        assert_same_bits(results(p, np.float32, threads=2), expected)
        assert_same_bits(results(p, np.float32, checkpoint=9), expected)


def test_a_zero_that_is_carried_back_keeps_its_sign(native: str) -> None:
    """A gradient of -0 reaches the initial state as -0: alone, in a batch, and with checkpoints."""
    cell, x, W = catalogue.min_gru, np.ones((3, 2, 1), np.float32), np.ones((10, 1), np.float32)

    def carried(sequences: int, **options: Any) -> np.ndarray:
        minus = np.full((sequences, 5), -0.0, np.float32)
        out = cell.forward(x[:, :sequences], W, None, init=(minus,), training=True, **options)
        return cell.backward(np.broadcast_to(minus, out.y.shape), out.cache, dfinal=(minus,)).dinit[0][0]

    for got in (carried(1), carried(2), carried(1, checkpoint=2)):
        assert_same_bits({"dh0": got}, {"dh0": np.full(5, -0.0, np.float32)})


def test_some_cells_scan() -> None:
    assert {"min_gru", "ind_rnn", "sru", "lru"} <= {cell.name for cell in SCANS}


def test_one_sequence_needs_no_axis_of_the_batch() -> None:
    p = problem(own_cells.leaky_rates, (6, 1, 3, 5))
    whole = p.cell.forward(**p.inputs, e=p.e, init=p.init, training=True)
    inputs = p.inputs | {"x": p.inputs["x"][:, 0]}
    for noise in (p.e["noise"][:, 0], p.e["noise"][:, 0, :1], p.e["noise"][0, 0]):
        alone = p.cell.forward(**inputs, e={"noise": noise}, init=tuple([s[0] for s in p.init]), training=True)
        grads = p.cell.backward(np.ones_like(alone.y), alone.cache)
        assert grads.de["noise"].shape == noise.shape
        if noise.ndim == 2 and noise.shape[1] == 5:
            assert_same_bits({"y": alone.y}, {"y": whole.y[:, 0].copy()})


def test_nan_stays_in_its_sequence() -> None:
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


@pytest.mark.parametrize("backend", fastrnn.config()["available_backends"])
def test_states_can_exchange_their_places(backend: str) -> None:
    @fastrnn.cell(gates="n", states="ab")
    def exchange(x: Any, U: Any, s: Any) -> Any:
        return s.b, x.n + s.a

    da, db = np.ones((1, 2)), np.full((1, 2), 5.0)
    init = np.zeros((1, 2)), np.zeros((1, 2))
    with fastrnn.use_backend(backend):
        out = exchange.forward(np.ones((3, 1, 1)), np.ones((2, 1)), init=init, training=True)
        grads = exchange.backward(None, out.cache, dfinal=(da, db))
    assert [a.item(0) for a in (*out.final, *grads.dinit)] == [1, 2, 5, 1]
    assert grads.dx.ravel().tolist() == [10, 2, 10]


@pytest.mark.parametrize("backend", [b for b in fastrnn.config()["available_backends"] if b != "numba"])
def test_an_operand_can_be_the_same_for_all_units(backend: str) -> None:
    @fastrnn.cell(gates="abc", states="h", inputs=("dt",))
    def same(x: Any, U: Any, s: Any, e: Any) -> Any:
        return tanh(x.a + U.a @ mean(s.h) + U.b @ e.dt + U.c @ 0.5) + relu(x.b) * x.c * mean(0.5)

    p = problem(same, (4, 3, 2, 5))
    p.e["dt"] = np.ascontiguousarray(p.e["dt"][..., :1])
    with fastrnn.use_backend(backend):
        assert_close(results(p), by_complex_step(p))


def test_slopes_at_kinks_are_as_documented() -> None:
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


def test_pickle_is_by_name() -> None:
    assert pickle.loads(pickle.dumps(own_cells.slstm)) is own_cells.slstm
    assert pickle.loads(pickle.dumps(CELLS["lstm"])) is CELLS["lstm"]


def test_cells_of_a_function_are_copied_but_not_pickled() -> None:
    cells: list[Any] = []
    for k in range(2):

        @fastrnn.cell(gates="n", states="h")
        def made(x: Any, U: Any, s: Any, k: int = k) -> Any:
            return tanh(x.n + k * s.h)

        cells.append(made)
    layers = [fastrnn.Recurrent(cell, 3, 4) for cell in cells]
    assert [copy.deepcopy(layer).stack.cell for layer in layers] == cells == [copy.copy(cell) for cell in cells]
    with pytest.raises(pickle.PicklingError, match=r"cell made: .* define it at the top level of a module"):
        pickle.dumps(layers[0])


def test_an_earlier_cell_of_the_same_name_is_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = own_cells.ind_rnn
    later = fastrnn.cell(gates="n", states="h", parameters="u")(earlier.function)
    monkeypatch.setattr(own_cells, "ind_rnn", later)
    assert pickle.loads(pickle.dumps(later)) is later
    with pytest.raises(pickle.PicklingError, match=r"own_cells\.ind_rnn is not this cell"):
        pickle.dumps(earlier)


def test_a_cell_prints_its_equations_and_derivative() -> None:
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


def test_equations_take_any_dtype() -> None:
    """`step` is the function itself, so it takes complex and long double numbers."""
    cell = own_cells.gru
    for dtype in (np.complex64, np.longdouble):
        h = cell.step(
            *[np.ones(s, dtype) / 3 for s in ((2, 3),)],
            (np.ones((2, 4), dtype),),
            np.ones((12, 3), dtype),
            np.ones((12, 4), dtype),
        )
        assert h[0].dtype == dtype


def test_cells_of_the_library_are_cells() -> None:
    assert str(CELLS["lstm"]).startswith('@builtin("lstm", gates="ifgo", states="hc")')
    assert sigmoid(np.zeros(1)) == 0.5
