"""Errors of user-defined cells: invalid equations and invalid arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.cell_problems import problem

import fastrnn
from fastrnn.cells import CellError, clip, log, minimum, relu, sqrt, tanh, where
from fastrnn.cells.definition import Cell


def two_states(x: Any, U: Any, s: Any) -> Any:
    return tanh(x.a + U.a @ s.h)


def branch(x: Any, U: Any, s: Any) -> Any:
    return relu(x.a) if s.h > 0 else U.a @ s.h


def changes(x: Any, U: Any, s: Any) -> Any:
    s.h = x.a
    return s.h


def too_many(x: Any, U: Any, s: Any) -> Any:
    h = s.h
    for g in "abcdefgh":
        h = tanh(getattr(U, g) @ (h + 1))
    return h


def no_return(x: Any, U: Any, s: Any) -> Any:
    tanh(x.a + U.a @ s.h)


def unknown_function(x: Any, U: Any, s: Any) -> Any:
    return swish(x.a)  # type: ignore[name-defined]  # noqa: F821


def nan_constant(x: Any, U: Any, s: Any) -> Any:
    return x.a + log(-1.0)


def zero_divisor(x: Any, U: Any, s: Any) -> Any:
    return x.a / (s.h - s.h)


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (no_return, {"states": "hc"}, r"it returns None; end it with: return h, c"),
        (lambda x, U, s: [tanh(x.a + U.a @ s.h)], {}, r"it returns a list; end it with: return h"),
        (lambda x, U, s: x.a > U.a @ s.h, {}, r"a comparison is not a number"),
        (lambda x, U, s: x.a + U.a @ (s.h > 0), {}, r"a comparison is not a number"),
        (lambda x, U, s: x.a - np.mean(x.a), {}, r"NumPy's mean cannot be traced"),
        (lambda x, U, s: x.a - np.asarray(x.a).mean(), {}, r"NumPy cannot read a value"),
        (lambda x, U, s: math.tanh(x.a), {}, r"a value is not a Python number"),
        (unknown_function, {}, r"NameError: name 'swish' is not defined; .*the functions of fastrnn\.cells"),
        (lambda x, U, s: x.a * dict(b=1)["c"], {}, r"KeyError: 'c'"),
        (lambda x, U, s: where((x.a > 0) & (x.a < 1), x.a, 0), {}, r"comparisons cannot be combined"),
        (lambda x, U, s: where(True, x.a, 0), {}, r"where: expected a comparison"),
        (lambda x, U, s: x.a % 1, {}, r"//, % and rounding have no derivative"),
        (lambda x, U, s: 2**x.a, {}, r"write exp\(log\(2\) \* a\)"),
        (lambda x, U, s: x["a"] + U.a @ s.h, {}, r"x has values by name: write x\.a"),
        (lambda x, U, s: x.a + U.a @ s, {"states": "hc"}, r"s has values by name: write s\.h or s\.c"),
        (lambda x, U, s: x.a + s.h[:, 0], {}, r"a value has no indices"),
        (lambda x, U, s: x.a + U.a.T @ s.h, {}, r"U\.a can only be used in U\.a @ v"),
        (
            lambda x, U, s: clip(x.a, -s.h, s.h),
            {},
            r"clip: expected two numbers low <= high, got <value: neg> and <value: h>",
        ),
        (lambda x, U, s: x.a * float("inf"), {}, r"\* gives NaN or infinity for any values"),
        (nan_constant, {}, r"a constant gives NaN or infinity for any values"),
        (zero_divisor, {}, r"/ gives NaN or infinity for any values"),
        (lambda x, U, s: sqrt(-1 - x.a * x.a), {}, r"sqrt gives NaN or infinity for any values"),
        (two_states, {"gates": None}, r"gates: expected a string of letters or a tuple of names, got None"),
        (two_states, {"inputs": "keep"}, r"for a single name write \('keep',\)"),
        (two_states, {"parameters": {"q": np.nan}}, r"expected a number as the initial value of q, got nan"),
        (two_states, {"states": "hc"}, r"returns 1 states, expected 2: h, c"),
        (lambda x, U, s: tanh(x.a + U.a @ s.h) + U.a @ s.h, {}, r"U\.a is used twice"),
        (branch, {}, r"use where\(condition, a, b\) instead of `if`"),
        (lambda x, U, s: np.tanh(x.a + U.a @ s.h), {}, r"use the functions of fastrnn\.cells"),
        (lambda x, U, s: x.a + x.z, {}, r"x has no 'z'; expected one of: a"),
        (lambda x, U, s: x.a * np.ones(3), {}, r"ndarray is neither a number nor a value"),
        (lambda x, U, s: x.a * (s.h > 0), {}, r"a comparison is not a number"),
        (lambda x, U, s: (x.a + U.a @ s.h) ** 0.5, {}, r"\*\* takes an integer power"),
        (changes, {}, r"equations return the next states"),
        (too_many, {"gates": "abcdefgh"}, r"need 9 products|at most 8"),
        (lambda x, U, s: x.a * U.a, {}, r"U\.a can only be used in U\.a @ v"),
        (lambda x, U, s: round(x.a), {}, r"rounding have no derivative"),
        (lambda x, U, s: "h", {}, r"str is neither a number"),
        (two_states, {"gates": "ab"}, r"gate b is not used"),
        (two_states, {"gates": ("for",)}, r"expected attribute names, got 'for'"),
        (two_states, {"gates": "aa"}, r"expected distinct names"),
        (two_states, {"gates": ""}, r"expected 1 to 8 names"),
        (two_states, {"states": ()}, r"states: expected 1 to 4 names, got 0"),
        (two_states, {"states": "hcdef"}, r"expected 1 to 4 names"),
        (two_states, {"inputs": ("e",)}, r"expected a function of x, U, s, e"),
        (two_states, {"inputs": ("lengths",)}, r"'lengths' is the name of another argument"),
        (lambda x, U, s, p: x.a, {"parameters": ("q",)}, r"parameter q is not used"),
    ],
)
def test_invalid_equations_raise_an_error(function: Any, options: dict[str, Any], says: str) -> None:
    """The message names the cell and the line."""
    with pytest.raises(CellError, match=rf"cell {function.__name__}, .*test_cells_errors\.py:\d+: .*({says})"):
        fastrnn.cell(**{"gates": "a", "states": "h"} | options)(function)


@pytest.mark.parametrize("function", [branch, unknown_function, nan_constant, zero_divisor])
def test_the_error_names_the_line_of_the_mistake(function: Any) -> None:
    with pytest.raises(CellError, match=rf"{__name__}\.py:{function.__code__.co_firstlineno + 1}: "):
        fastrnn.cell(gates="a", states="h")(function)


def test_numbers_of_numpy_are_numbers() -> None:
    @fastrnn.cell(gates="a", states="h", parameters={"q": np.float32(0.5)})
    def cell(x: Any, U: Any, s: Any, p: Any) -> Any:
        return np.float32(2) * clip(x.a, np.float32(-1), np.int64(1)) ** np.int64(2) - p.q * np.array(3.0)

    assert cell.step(np.full((1, 1), -0.5), (np.zeros((1, 1)),), np.ones((1, 1)), None, p=np.ones(1))[0] == -2.5
    assert cell.forward(np.full((1, 1), -0.5), np.ones((1, 1)), p=np.ones(1)).y == -2.5
    assert fastrnn.Recurrent(cell, 1, 2).parameters()["parameter_l0"].tolist() == [0.5, 0.5]


def test_values_that_are_finite_somewhere_are_equations() -> None:
    """Infinite constants are bounds; a domain of one sign, or a small one, is enough."""

    @fastrnn.cell(gates="ab", states="h", parameters="pq")
    def cell(x: Any, U: Any, s: Any, p: Any) -> Any:
        a = clip(x.a, 0, np.inf) + where(x.a > 0, minimum(x.a, np.inf), -np.inf)
        return log(p.p) * log(p.q) * log(x.b) * log(s.h) * sqrt(1e-3 - x.b**2) * a

    assert cell.gates == ("a", "b")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"e": None}, "e: missing 'noise'"),
        (
            {"e": {"noise": np.zeros((6, 3, 2))}},
            r"noise: expected one of the shapes \(6, 3, 5\), \(3, 5\), \(6, 3, 1\), \(3, 1\), got .* leaky_rates",
        ),
        ({"e": {"noise": np.zeros((3, 5), np.float32)}}, "noise: expected dtype float64"),
        ({"e": {"noise": np.zeros((3, 5)), "more": np.zeros((3, 5))}}, "e: unexpected 'more'"),
        ({"p": None}, r"p: expected shape \(H,\) for alpha, got None"),
        ({"U": None}, "U: expected an array"),
        ({"init": (None,)}, "init: expected a tuple of rate, current"),
        ({"init": (None, np.zeros((3, 4)))}, r"current0: expected shape"),
        ({"length": None}, r"leaky_rates\.forward\(\) got an unexpected keyword argument 'length'"),
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
    with pytest.raises(TypeError, match=r"expected one made by ind_rnn\.forward"):
        own_cells.ind_rnn.backward(None, cache)
    p.inputs["x"][:] = 0
    with pytest.raises(ValueError, match="x was changed"):
        p.cell.backward(np.ones((2, 3, 5)), cache)


def test_a_cell_needs_a_function() -> None:
    with pytest.raises(TypeError, match="expected a Python function"):
        Cell(np.tanh, "a", "h")
