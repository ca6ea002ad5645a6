"""Checks of the NumPy reference: complex steps, numbers computed elsewhere, a closed form.

All compiled code is compared with the reference (test_backends.py); these tests verify the reference itself.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS, PUBLIC, Problem, forward, make, run
from support.tolerance import assert_close

import fastrnn
from fastrnn.backends import numpy as reference
from fastrnn.call import Call

STEP = 1e-30  # no difference is formed, so the step can be so small that its square vanishes


#: half of the sixteen combinations have every combination of three; the others are thorough
HALF = [pytest.param(n, marks=pytest.mark.thorough if n.bit_count() % 2 else ()) for n in range(16)]


def options(cell: str) -> list[dict[str, Any]]:
    """Return all combinations of lengths, resets, reverse and initial states; the other options alternate."""
    every = []
    for n, (lengths, resets, reverse, states) in enumerate(product((False, True), repeat=4)):
        some = {
            "lengths": lengths,
            "resets": resets,
            "reverse": reverse,
            "states": [("h0", "c0"), ("h0",), ("c0",)][n // 2 % 3] if states else (),
            "biases": [("b", "b_rec"), ("b",), ("b_rec",), ()][n // 3 % 4],
            "checkpoint": [None, 2, 1][n % 3],
        }
        every.append(some | {"return_cells": n % 5 != 1} if PUBLIC[cell][0] == "lstm" else some)
    return every


def loss(problem: Problem, inputs: dict[str, np.ndarray]) -> complex:
    """Return the scalar that the backward pass differentiates: the sum of outputs times cotangents."""
    given = {name: None for name in ("b", "b_rec", "p", "h0", "c0", "lengths", "resets")} | inputs
    init = (given.pop("h0"), given.pop("c0"))
    cell = fastrnn.cells.CELLS[problem.cell]
    chosen = {"reverse": False} | problem.options | {"training": False, "checkpoint": None}
    chosen["return_states"] = chosen.pop("return_cells", False)
    call = Call(cell, **given, init=init[: len(cell.states)], **chosen, batch_first=False, threads=1)
    [(y, final, others, _)] = reference.forward([call])
    outputs = {"dy": y} | dict(zip(("dc",), others, strict=False)) | dict(zip(("dh_n", "dc_n"), final, strict=False))
    return sum(np.sum(outputs[name] * cotangent) for name, cotangent in problem.cotangents.items())


def complex_step(problem: Problem, name: str) -> np.ndarray:
    """Return d loss / d inputs[name], element by element, up to rounding."""
    inputs = {k: v.astype(complex) if v.dtype.kind == "f" else v for k, v in problem.inputs.items()}
    gradient = np.empty(problem.inputs[name].shape)
    for index in np.ndindex(gradient.shape):
        inputs[name][index] += 1j * STEP
        gradient[index] = loss(problem, inputs).imag / STEP
        inputs[name][index] = problem.inputs[name][index]
    return gradient


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("n", HALF)
def test_gradients_are_complex_step_derivatives(cell: str, n: int) -> None:
    problem = make(cell, (4, 3, 2, 5), seed=n, **options(cell)[n])
    with fastrnn.use_backend("numpy"):
        got = run(problem)
    exact = {f"d{name}": complex_step(problem, name) for name, a in problem.inputs.items() if a.dtype.kind == "f"}
    assert_close({name: a for name, a in got.items() if name.startswith("d")}, exact)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_options_equal_plain_calls(cell: str, reverse: bool, implementation: str) -> None:
    """Lengths, resets and reverse, expressed as plain calls on parts of single sequences."""
    cells = {"return_cells": True} if PUBLIC[cell][0] == "lstm" else {}
    problem = make(cell, (9, 7, 5, 15), lengths=True, resets=True, reverse=reverse, **cells)
    got = forward(problem)
    weights = {name: a for name, a in problem.inputs.items() if name in ("W", "U", "b", "b_rec", "p")}
    every_step = [name for name in ("y", "c") if name in got]
    for n, length in enumerate(problem.inputs["lengths"]):
        state = {name: problem.inputs[name][n] for name in ("h0", "c0") if name in problem.inputs}
        steps = list(range(length))[:: -1 if reverse else 1]
        for t in steps:
            if problem.inputs["resets"][t, n]:
                state = dict.fromkeys(state, np.zeros(15))
            now = Problem(cell, weights | state | {"x": problem.inputs["x"][t : t + 1, n]}, {}, cells)
            one = forward(now)
            state = {name: one[f"{name[0]}_n"] for name in state}
            assert_close({k: got[k][t, n] for k in every_step}, {k: one[k][0] for k in every_step})
        assert_close({name: got[f"{name[0]}_n"][n] for name in state}, state)
        assert not any(got[k][length:, n].any() for k in every_step)


#: one step of one unit to 30 digits (mpmath), for the inputs of `test_one_step_by_hand`: h, and c for an LSTM
BY_HAND = {
    "rnn_tanh": (0.124353001771596208,),
    "rnn_relu": (0.125,),
    "rnn_sigmoid": (0.531209373373756257,),
    "rnn_identity": (0.125,),
    "lstm": (-0.0753616365974958199, -0.137930623971842268),
    "lstm_peephole": (-0.149849145837190137, -0.360862912984356704),
    "gru_after": (0.338015156770592161,),
    "gru_before": (0.38872458651925407,),
}


def by_hand(gates: int, states: str) -> dict[str, np.ndarray]:
    """Return the arguments of the steps in `BY_HAND`."""
    inputs = {
        "x": np.full((1, 1, 1), 0.5),
        "W": np.array([[0.1], [-0.2], [0.3], [0.4]])[:gates],
        "U": np.array([[0.5], [0.6], [-0.7], [0.8]])[:gates],
        "b": np.array([0.05, -0.15, 0.25, -0.35])[:gates],
        "b_rec": np.array([-0.1, 0.2, 0.3, 0.15])[:gates],
    }
    return inputs | {f"{s}0": np.full((1, 1), 0.25 - k) for k, s in enumerate(states)}


PEEPHOLES = np.array([0.9, -1.1, 1.3])


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_by_hand(cell: str, implementation: str) -> None:
    inputs = by_hand(PUBLIC[cell][1], "hc" if PUBLIC[cell][0] == "lstm" else "h")
    if cell == "lstm_peephole":
        inputs["p"] = PEEPHOLES
    got = forward(Problem(cell, inputs, {}))
    expected = dict(zip(("h_n", "c_n"), (np.full((1, 1), value) for value in BY_HAND[cell]), strict=False))
    assert_close(got, expected | {"y": expected["h_n"][None]})


@pytest.mark.parametrize("name", fastrnn.cells.CELLS)
def test_equations_by_hand(name: str) -> None:
    """Every cell, including those without a public function."""
    cell = fastrnn.cells.CELLS[name]
    given = by_hand(cell.G, "".join(cell.states))
    products, P = len(cell.products), len(cell.parameters)
    state = tuple([given[s] for s in cell.initial])
    U, b_rec = given["U"][:products], given["b_rec"][:products]
    after = cell.evaluate(given["x"][0], state, given["W"], U, given["b"], b_rec, PEEPHOLES[:P] if P else None)
    assert_close(
        dict(zip(cell.states, after, strict=True)),
        {s: np.full((1, 1), value) for s, value in zip(cell.states, BY_HAND[name], strict=True)},
    )


def test_published_example(implementation: str) -> None:
    """An example from outside the project: four one-hot letters through a tanh RNN, with the printed values."""
    weights = np.arange(1, 17).reshape(4, 4) / 10
    y = fastrnn.rnn_forward(np.eye(4), weights, weights, np.array([0.1, 0.2, 0.3, 0.4])).y
    printed = [
        [0.19737532, 0.60436778, 0.83365461, 0.93540907],
        [0.78752106, 0.98887785, 0.99947397, 0.99997525],
        [0.88013356, 0.99771501, 0.99995896, 0.99999926],
        [0.90287178, 0.99831338, 0.99997209, 0.99999954],
    ]
    np.testing.assert_allclose(y, printed, rtol=0, atol=0.5001e-8)  # printed to eight digits


def test_linear_cell_is_a_sum_of_matrix_powers(implementation: str) -> None:
    """h[t] = sum over s <= t of U^(t-s) (W x[s] + b + b_rec), and U^(t+1) h0."""
    problem = make("rnn_identity", (7, 3, 5, 17))
    x, W, U, b, b_rec, h0 = (problem.inputs[name] for name in ("x", "W", "U", "b", "b_rec", "h0"))
    power = np.linalg.matrix_power
    y = np.stack(
        [
            sum((x[s] @ W.T + b + b_rec) @ power(U, t - s).T for s in range(t + 1)) + h0 @ power(U, t + 1).T
            for t in range(len(x))
        ]
    )
    assert_close(forward(problem), {"y": y, "h_n": y[-1]})


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_functions(cell: str, implementation: str) -> None:
    """rnn_step, gru_step and lstm_step are the forward functions at T = 1."""
    family, _, chosen = PUBLIC[cell]
    problem = make(cell, (1, 7, 3, 17))
    inputs = dict(problem.inputs)
    expected = forward(problem)
    state = {name[0]: inputs.pop(name) for name in ("h0", "c0") if name in inputs}
    got = getattr(fastrnn, f"{family}_step")(inputs.pop("x")[0], *state.values(), **inputs, **chosen)
    outputs = got if isinstance(got, tuple) else (got,)
    assert_close(dict(zip(state, outputs, strict=True)), {name: expected[f"{name}_n"] for name in state})
