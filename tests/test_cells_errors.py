"""Errors of user-defined cells: invalid equations and invalid arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.cell_problems import problem

import fastrnn
from fastrnn.cells import CellError, relu, tanh
from fastrnn.cells.definition import Cell


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
def test_invalid_equations_raise_an_error(function: Any, options: dict[str, Any], says: str) -> None:
    """The message names the cell and the line."""
    name = "<lambda>" if function.__name__ == "<lambda>" else function.__name__
    with pytest.raises(CellError, match=rf"cell {name}, .*test_cells_errors\.py:\d+: .*({says})"):
        fastrnn.cell(**{"gates": "a", "states": "h"} | options)(function)


def test_the_error_names_the_line_of_the_mistake() -> None:
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
def test_wrong_arguments_are_refused(change: dict[str, Any], says: str) -> None:
    p = problem(own_cells.leaky_rates, (6, 3, 2, 5))
    with pytest.raises((TypeError, ValueError), match=says):
        p.cell.forward(**p.inputs | {"e": {"noise": np.zeros((3, 5))}} | change)


def test_missing_features_raise_an_error() -> None:
    p = problem(own_cells.min_gru, (2, 3, 2, 5))
    with pytest.raises(ValueError, match="U: cell min_gru has no product with U"):
        p.cell.forward(**p.inputs, U=np.zeros((5, 5)))
    with pytest.raises(ValueError, match="p: expected None"):
        p.cell.forward(**p.inputs, p=np.zeros(5))
    with pytest.raises(ValueError, match="e: unexpected 'mask'"):
        p.cell.forward(**p.inputs, e={"mask": np.zeros((3, 5))})


def test_a_cache_belongs_to_its_cell() -> None:
    p = problem(own_cells.min_gru, (2, 3, 2, 5))
    cache = p.cell.forward(**p.inputs, training=True).cache
    with pytest.raises(TypeError, match="expected one made by ind_rnn_forward"):
        own_cells.ind_rnn.backward(None, cache)
    p.inputs["x"][:] = 0
    with pytest.raises(ValueError, match="x was changed"):
        p.cell.backward(np.ones((2, 3, 5)), cache)


def test_a_cell_needs_a_function() -> None:
    with pytest.raises(TypeError, match="expected a Python function"):
        Cell(np.tanh, "a", "h")
