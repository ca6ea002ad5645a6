"""Any input gives the correct result, or an error that names the argument; never a crash."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS, Problem, arrays, call, make, run
from support.tolerance import assert_same_bits

import fastrnn

SIZES = (5, 3, 2, 4)
ALL = make("lstm_peephole", SIZES, lengths=True, resets=True, return_cells=True)
NAMED = [*ALL.inputs, *ALL.cotangents]
FLOATS = [name for name in NAMED if name not in ("lengths", "resets")]


def wrong_rank(a: np.ndarray) -> np.ndarray:
    return a[None, None]


def one_more(a: np.ndarray) -> np.ndarray:
    return np.concatenate([a, a[-1:]])


def transposed(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a.T) if a.ndim > 1 else a[:-1]


def refuses(problem: Problem, error: type[Exception], name: str, *said: str) -> None:
    """Check that the call raises `error` with a message that names the argument and matches the rest."""
    with pytest.raises(error) as caught:
        run(problem)
    for word in (name, *said):
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", str(caught.value)), f"{word!r} not in {caught.value}"


@pytest.mark.parametrize("spoil", [wrong_rank, one_more, transposed])
@pytest.mark.parametrize("name", NAMED)
def test_wrong_shape(name: str, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    """A longer x is valid, so all other arguments are wrong; with its axes swapped, x itself is wrong."""
    bad = spoil((ALL.inputs | ALL.cotangents)[name])
    culprit, shape = {
        ("x", one_more): ("resets", str(ALL.inputs["resets"].shape)),
        ("x", transposed): ("W", str(ALL.inputs["W"].shape)),
    }.get((name, spoil), (name, str(bad.shape)))
    with pytest.raises(ValueError, match=rf"^{culprit}\b.*{re.escape(shape)}"):
        run(ALL.changed(**{name: bad}))


@pytest.mark.parametrize("dtype", ["f2", "f4", "i8", "c16", "g", "O", "U3", "M8[s]", ">f8"])
@pytest.mark.parametrize("name", FLOATS)
def test_wrong_dtype(name: str, dtype: str) -> None:
    """x sets the dtype of the call: with a float32 x, the first float64 argument is the wrong one."""
    a = (ALL.inputs | ALL.cotangents)[name]
    bad = np.zeros(a.shape, dtype) if dtype in ("O", "U3", "M8[s]") else a.astype(dtype)
    refuses(ALL.changed(**{name: bad}), TypeError, "W" if (name, dtype) == ("x", "f4") else name)


@pytest.mark.parametrize("value", [3.5, "abc", object(), {"a": 1}, [[1.0, 2.0]], (1,), int])
@pytest.mark.parametrize("name", FLOATS)
def test_not_an_array(name: str, value: Any) -> None:
    refuses(ALL.changed(**{name: value}), TypeError, name)


HINT = r": expected an array, got list; convert it with np\.asarray\(\.\.\., np\.float32\)"


@pytest.mark.parametrize("name", FLOATS)
def test_lists_get_a_hint(name: str) -> None:
    """Lists as from JSON, also ragged ones."""
    for value in ((ALL.inputs | ALL.cotangents)[name].tolist(), [[1.0, 2.0], [3.0]], []):
        with pytest.raises(TypeError, match=f"^{name}{HINT}"):
            run(ALL.changed(**{name: value}))


def test_lists_get_a_hint_elsewhere() -> None:
    with pytest.raises(TypeError, match=f"^Wi{HINT}"):
        fastrnn.from_gates(Wi=[[1.0]])
    with pytest.raises(TypeError, match=f"^weight_ih_l0{HINT}"):
        fastrnn.from_torch({"weight_ih_l0": [[1.0]]}, cell="lstm")
    with pytest.raises(TypeError, match=f"^x{HINT}"):
        fastrnn.Dense(2, 3)([[1.0, 2.0]])


@pytest.mark.parametrize("name", ["x", "W", "U"])
def test_missing(name: str) -> None:
    arrays = {n: None if n == name else ALL.inputs[n] for n in ("x", "W", "U")}
    with pytest.raises(TypeError, match=rf"^{name}\b"):
        fastrnn.lstm_forward(**arrays)


@pytest.mark.parametrize(
    "lengths", [[np.nan] * 3, [1.0, 2.0, 3.0], np.zeros(3, bool), ["a"] * 3, [None] * 3, {1, 2, 3}, 3.0, None.__class__]
)
def test_lengths_are_integers(lengths: Any) -> None:
    refuses(ALL.changed(lengths=lengths), TypeError, "lengths")


@pytest.mark.parametrize(
    "lengths",
    [[-1, 1, 1], [1, 6, 1], [1, 1, 2**63 - 1], [1, 1], [[1, 1, 1]], np.array([1, 1, 2**64 - 1], np.uint64)],
)
def test_lengths_within_the_sequence(lengths: Any) -> None:
    refuses(ALL.changed(lengths=lengths), ValueError, "lengths")


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", ">i8", "u8", list])
def test_lengths_of_any_integer_type(dtype: Any) -> None:
    lengths = ALL.inputs["lengths"]
    same = lengths.tolist() if dtype is list else lengths.astype(dtype)
    assert_same_bits(run(ALL.changed(lengths=same)), run(ALL))


@pytest.mark.parametrize("dtype", ["f8", "i8", "O", "U3"])
def test_resets_are_booleans(dtype: str) -> None:
    refuses(ALL.changed(resets=np.zeros(SIZES[:2], dtype)), TypeError, "resets")


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (ValueError, "threads", 0),
        (ValueError, "threads", -1),
        (TypeError, "threads", 1.5),
        (TypeError, "threads", "2"),
        (ValueError, "checkpoint", 0),
        (ValueError, "checkpoint", -2),
        (TypeError, "checkpoint", 2.0),
        (ValueError, "checkpoint", "often"),
        (TypeError, "reverse", "yes"),
        (TypeError, "batch_first", 1),
        (TypeError, "return_cells", "c"),
        (TypeError, "backwards", True),
    ],
)
def test_options(error: type[Exception], name: str, value: Any) -> None:
    refuses(ALL.changed(**{name: value}), error, name)


def test_huge_option_values(backend: str) -> None:
    """Huge numbers of threads and long checkpoints do not overflow a C integer."""
    assert_same_bits(run(ALL, checkpoint=2**62, threads=2**40), run(ALL))


def test_results_have_names_and_places() -> None:
    assert fastrnn.LSTMResult._fields == ("y", "h_n", "c_n", "cache", "c")
    assert fastrnn.LSTMGrads._fields == ("dx", "dW", "dU", "db", "db_rec", "dp", "dh0", "dc0")
    x, W, U = np.zeros((2, 3, 4)), np.zeros((5, 4)), np.zeros((5, 5))
    three = np.tile(W, (3, 1)), np.tile(U, (3, 1))
    results = fastrnn.rnn_forward(x, W, U), fastrnn.gru_forward(x, *three, reset_after=True)
    for result, grads in zip(results, (fastrnn.RNNGrads, fastrnn.GRUGrads), strict=True):
        assert result._fields == ("y", "h_n", "cache")
        assert grads._fields == ("dx", "dW", "dU", "db", "db_rec", "dh0")
    assert [repr(result)[:10] for result in results] == ["RNNResult(", "GRUResult("]
    assert type(results[1]) is fastrnn.GRUResult
    assert type(results[1]._replace(y=x)) is fastrnn.GRUResult


def test_selection_of_the_cell() -> None:
    x, W, U = np.zeros((2, 3, 4)), np.zeros((5, 4)), np.zeros((5, 5))
    with pytest.raises(ValueError, match=r"activation.*tanh.*swish"):
        fastrnn.rnn_forward(x, W, U, activation="swish")
    weights = np.zeros((15, 4)), np.zeros((15, 5))
    for given, got in (({}, "None"), ({"reset_after": "before"}, "'before'")):
        said = rf"^reset_after: expected True \(.*PyTorch, cuDNN, .*\) or False \(.*ONNX's default\), got {got}$"
        with pytest.raises(TypeError, match=said):
            fastrnn.gru_forward(x, *weights, **given)
        with pytest.raises(TypeError, match=said):
            fastrnn.gru_step(x[0], np.zeros((3, 5)), *weights, **given)


def test_cache() -> None:
    """Without a cache the error says how to get one; a cache of another family, or another object, raises an error."""
    x, dy = np.zeros((2, 3, 4)), np.zeros((2, 3, 5))
    rnn = fastrnn.rnn_forward(x, np.zeros((5, 4)), np.zeros((5, 5)), training=True)
    assert fastrnn.rnn_forward(x, np.zeros((5, 4)), np.zeros((5, 5))).cache is None
    for backward in (fastrnn.lstm_backward, fastrnn.gru_backward):
        with pytest.raises(TypeError, match=r"cache.*rnn"):
            backward(dy, rnn.cache)
    for cache in (None, "cache", rnn, 3):
        with pytest.raises(TypeError, match=r"cache.*training=True"):
            fastrnn.rnn_backward(dy, cache)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice(cell: str, implementation: str) -> None:
    """A cache can be used repeatedly, and dy may be None if only the final state matters."""
    problem = make(cell, (5, 3, 2, 17), training=True)
    backward = getattr(fastrnn, f"{problem.family}_backward")
    cache = call(problem)[0].cache
    dy, dh_n = problem.cotangents["dy"], problem.cotangents["dh_n"]
    first, second = (arrays(backward(dy, cache, dh_n=dh_n)) for _ in range(2))
    assert_same_bits(second, first)
    assert_same_bits(arrays(backward(None, cache, dh_n=dh_n)), arrays(backward(0 * dy, cache, dh_n=dh_n)))


@pytest.mark.parametrize("cell", CELLS)
def test_absent_cotangents_are_zero(cell: str, implementation: str) -> None:
    problem = make(cell, (5, 3, 2, 17), **{"return_cells": True} if cell.startswith("lstm") else {})
    for name, cotangent in problem.cotangents.items():
        assert_same_bits(run(problem.changed(**{name: None})), run(problem.changed(**{name: 0 * cotangent})))
