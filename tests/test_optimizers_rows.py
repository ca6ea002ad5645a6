"""Gradients of some rows, as of an embedding: each row is updated as if alone, at the cost of these rows."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.descents import KINDS, by_the_book, make
from support.tolerance import assert_close, assert_same_bits

from fastrnn.layers import RowGradient
from fastrnn.training import SGD, Adam, clip_by_norm, clip_by_value


def some_rows(seed: int, steps: int = 12, n: int = 9, dtype: Any = np.float64) -> tuple[np.ndarray, list[RowGradient]]:
    """Return a table (n, 3) and gradients of some of its rows; row 0 is in no step, row 1 in every one."""
    rng = np.random.default_rng(seed)
    grads = []
    for _ in range(steps):
        rows = np.flatnonzero(rng.random(n) < 0.4)
        rows = np.union1d(rows[rows > 1], [1])
        grads.append(RowGradient(rows, rng.standard_normal((len(rows), 3)).astype(dtype), (n, 3)))
    return rng.standard_normal((n, 3)).astype(dtype), grads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_rows_change_only_in_their_steps(kind: str, seed: int) -> None:
    """Each row follows the equations in the steps that include it; nothing else changes it, not even decay."""
    start, grads = some_rows(seed)
    p, o = {"p": start.copy()}, make(kind)
    for g in grads:
        kept = g.values.copy()
        o.step(p, {"p": g})
        assert_same_bits({"g": g.values}, {"g": kept})
    assert_same_bits({"0": p["p"][:1]}, {"0": start[:1]})
    for row in range(1, len(start)):
        met = [(t, g.values[g.rows == row][0]) for t, g in enumerate(grads, 1) if row in g.rows]
        expected = by_the_book(kind, start[row], [g for _, g in met], [t for t, _ in met])
        assert_close({"row": p["p"][row]}, {"row": expected})


@pytest.mark.parametrize(("rate", "betas"), [(0.001, (0.9, 0.999)), (0.05, (0.7, 0.9))])
def test_adam_of_rows_is_sparse_adam(rate: float, betas: tuple[float, float], oracle: Callable[[str], Any]) -> None:
    """With an epsilon near 0, because PyTorch adds it to an uncorrected v there, unlike in its Adam."""
    torch = oracle("torch")
    start, grads = some_rows(4)
    table = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.SparseAdam([table], lr=rate, betas=betas, eps=1e-200)
    p, ours = {"p": start.copy()}, Adam(rate, *betas, epsilon=1e-200)
    for g in grads:
        table.grad = torch.sparse_coo_tensor(g.rows[None], g.values, g.shape, check_invariants=True)
        theirs.step()
        ours.step(p, {"p": g})
    assert_close(p, {"p": table.detach().numpy()})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_equal_a_dense_gradient(kind: str, dtype: Any) -> None:
    """Bit for bit, also with clipping and beside a dense parameter; a saved state continues exactly."""
    options = {**KINDS[kind][1], "clip_norm": 0.5, "clip_value": 0.3}
    rng = np.random.default_rng(0)
    p = {name: rng.standard_normal((7, 3)).astype(dtype) for name in ("a", "b")}
    q, (whole, rows) = copy.deepcopy(p), (KINDS[kind][0](**options) for _ in range(2))
    for step in range(8):
        a, b = rng.standard_normal((2, 7, 3)).astype(dtype)
        whole.step(p, {"a": a.copy(), "b": b.copy()})
        rows.step(q, {"a": a.copy(), "b": RowGradient(np.arange(7), b.copy(), (7, 3))})
        if step == 3:
            state = rows.state_dict()
            rows = KINDS[kind][0](**options)
            rows.load_state_dict(state)
    assert_same_bits(q, p)
    assert_same_bits(rows.state_dict(), whole.state_dict())


def test_clipping_uses_the_norm_of_dense_gradients() -> None:
    """Rows that are 0 add nothing to the norm."""
    _, grads = some_rows(0)
    arrays = {"a": np.asarray(grads[0]), "b": np.ones(2)}
    given = {"a": grads[0], "b": np.ones(2)}
    assert clip_by_norm(given, 0.5) == pytest.approx(clip_by_norm(arrays, 0.5), rel=1e-15)
    assert_close({"a": np.asarray(given["a"]), "b": given["b"]}, arrays)
    clip_by_value(given, 0.05)
    assert np.abs(grads[0].values).max() == 0.05


@pytest.mark.parametrize("kind", ["sgd", "sgd_nesterov_decay", "adam", "adamw", "rmsprop_momentum"])
def test_cost_is_proportional_to_the_rows(kind: str) -> None:
    p = {"p": np.ones((100_000, 16))}
    rows = np.arange(0, 100_000, 2_000)
    o = make(kind, clip_norm=1.0, clip_value=1.0)
    o.step(p, {"p": RowGradient(rows, np.ones((50, 16)), (100_000, 16))})
    tracemalloc.start()
    o.step(p, {"p": RowGradient(rows + 1, np.ones((50, 16)), (100_000, 16))})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e5  # a dense gradient has 13 MB, these rows 6.4 kB
    changed = np.flatnonzero((p["p"] != 1).any(axis=1))
    np.testing.assert_array_equal(changed, np.union1d(rows, rows + 1))


def test_rows_that_do_not_fit_are_refused() -> None:
    p, one = {"p": np.ones((4, 3))}, np.ones((1, 3))
    with pytest.raises(ValueError, match=r"^grads 'p': expected shape the parameter's = \(4, 3\), got \(5, 3\)"):
        SGD().step(p, {"p": RowGradient(np.array([4]), one, (5, 3))})
    with pytest.raises(TypeError, match=r"^grads 'p': expected dtype float64, the parameter's, got float32"):
        SGD().step(p, {"p": RowGradient(np.array([0]), one.astype(np.float32), (4, 3))})
    for wrong, message in (
        (lambda: RowGradient([0], one, (4, 3)), "^rows: expected an array, got list"),  # type: ignore[arg-type]
        (lambda: RowGradient(np.array([0]), None, (4, 3)), "^values: expected an array, got NoneType"),  # type: ignore[arg-type]
        (lambda: RowGradient(np.array([0.0]), one, (4, 3)), "^rows: expected integers, got float64"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()
    for rows in ([1, 0], [1, 1], [[0, 1]]):
        with pytest.raises(ValueError, match=r"^rows: expected distinct row indices in ascending order"):
            RowGradient(np.array(rows), np.ones((2, 3)), (4, 3))
    for rows in ([-1, 0], [0, 4]):
        with pytest.raises(ValueError, match=r"^rows: expected each in 0\.\.3, got "):
            RowGradient(np.array(rows), np.ones((2, 3)), (4, 3))
    with pytest.raises(ValueError, match=r"^values: expected shape \(R, E\) = \(1, 3\), got \(2, 3\)"):
        RowGradient(np.array([1]), np.ones((2, 3)), (4, 3))
    assert (p["p"] == 1).all()
