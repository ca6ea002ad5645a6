"""Derivatives that `fastrnn.jax` computes from equations: forward mode, gradients of gradients, vmaps of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import cell_problems, own_cells
from support.jax_problems import SIZES, by_fastrnn, by_scan, problem, split
from support.problems import CELLS, Problem
from support.tolerance import assert_close, assert_same_bits

slow = pytest.mark.filterwarnings("ignore:fastrnn.jax. .*, which is slow:RuntimeWarning")

SMALL = (3, 2, 2, 3)


def both(jax: Any, ours: Any, given: Problem, make: Callable[..., Any]) -> None:
    """Check that `make` gives the same for fastrnn's function and for the scan, as functions of the real arrays."""
    real, fixed = split(given)
    found = []
    for call in (by_fastrnn(ours, given), by_scan(jax, given)):
        arrays = jax.jit(make(lambda real, call=call: call(real | fixed)))(real)
        found.append({str(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(arrays)})
    assert_close(*found)


def loss(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loss of every output, nonlinear in all."""
    return lambda real: sum(((a + 0.5) ** 3).sum() for a in call(real).values())


def tangents_of(real: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal(np.shape(a)) for name, a in real.items()}


@slow
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seed", range(2))
def test_forward_mode(seed: int, cell: str, jax: Any, ours: Any) -> None:
    """Outputs and tangents, for random tangents of every array."""
    both(jax, ours, problem(cell, seed), lambda call: lambda real: jax.jvp(call, (real,), (tangents_of(real),)))


@slow
@pytest.mark.parametrize("cell", ["lstm_peephole", "gru_before"])
def test_second_derivatives(cell: str, jax: Any, ours: Any) -> None:
    """Products with the Hessian of every array, in each of the four orders."""
    given = problem(cell, 3, SMALL, lengths=True, resets=True, reverse=True)
    along = tangents_of(split(given)[0])

    def forward(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda real: jax.jvp(f, (real,), (along,))[1]

    def backward(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda real: sum((a * along[name]).sum() for name, a in jax.grad(f)(real).items())

    def orders(call: Callable[..., Any]) -> Callable[..., Any]:
        f = loss(call)
        found = (jax.grad(forward(f)), jax.grad(backward(f)), forward(jax.grad(f)), forward(forward(f)))
        return lambda real: [d(real) for d in found]

    both(jax, ours, given, orders)


@slow
def test_third_derivative(jax: Any, ours: Any) -> None:
    given = problem("rnn_tanh", 3, SMALL, lengths=True, resets=True, reverse=True)
    along = tangents_of(split(given)[0])

    def backward(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda real: sum((a * along[name]).sum() for name, a in jax.grad(f)(real).items())

    both(jax, ours, given, lambda call: jax.grad(backward(backward(loss(call)))))


@slow
def test_hessian(jax: Any, ours: Any) -> None:
    both(jax, ours, problem("rnn_tanh", 1, SMALL), lambda call: jax.hessian(loss(call)))


@slow
@pytest.mark.parametrize("names", [("x", "h0"), ("W", "U"), ("x", "W", "b", "c0")])
def test_vmaps_of_derivatives(names: tuple[str, ...], jax: Any, ours: Any) -> None:
    """Over sequences, weights and both; outside and inside of either mode."""
    given = problem("lstm", 0, SMALL, lengths=True, resets=True, biases=("b",), states=("h0", "c0"))
    axes = {name: 0 if name in names else None for name in split(given)[0]}

    def several(real: dict[str, Any]) -> dict[str, Any]:
        return {name: jax.numpy.stack([a, 0.5 * a, a + 0.1]) if name in names else a for name, a in real.items()}

    def mapped(call: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(call, (axes,))

    def all_of_them(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(real: dict[str, Any]) -> Any:
            many = several(real)
            along = lambda call: lambda a: jax.jvp(call, (a,), (jax.tree.map(jax.numpy.sin, a),))  # noqa: E731
            return [
                mapped(along(call))(many),
                along(mapped(call))(many),
                mapped(jax.grad(loss(call)))(many),
                jax.grad(loss(mapped(call)))(many),
                jax.grad(lambda a: sum((d**2).sum() for d in mapped(jax.grad(loss(call)))(a).values()))(many),
            ]

        return run

    both(jax, ours, given, all_of_them)


def test_vmaps_in_vmaps_of_derivatives(jax: Any, ours: Any) -> None:
    """First gradients through two vmaps are computed by the kernels."""
    given = problem("gru_after", 0, SMALL, lengths=False, resets=False, biases=("b",), states=())

    def twice(call: Callable[..., Any]) -> Callable[..., Any]:
        over_x = jax.vmap(loss(call), ({"x": 0, "W": None, "U": None, "b": None},))
        over_both = jax.vmap(over_x, ({"x": None, "W": 0, "U": 0, "b": None},))

        def run(real: dict[str, Any]) -> Any:
            many = {n: jax.numpy.stack([a, -a]) if n != "b" else a for n, a in real.items()}
            return jax.grad(lambda many: over_both(many).sum())(many)

        return run

    both(jax, ours, given, twice)


@slow
@pytest.mark.parametrize("cell", own_cells.ALL, ids=lambda cell: cell.name)
def test_forward_mode_of_a_users_cell(cell: Any, jax: Any, ours: Any) -> None:
    """Its tangents are products with its gradients, which tests/test_jax.py checks."""
    p = cell_problems.problem(cell, (5, 3, 2, 4), lengths=True, resets=True, reverse=True)
    given = {"inputs": p.inputs, "e": p.e, "init": p.init}

    def loss(given: Any) -> Any:
        options = {"e": given["e"] or None, "init": given["init"]} | p.options
        y, final = ours.recurrent(cell, **given["inputs"], **options)
        return (y * p.back["dy"]).sum() + sum((a * d).sum() for a, d in zip(final, p.back["dfinal"], strict=True))

    rng = np.random.default_rng(1)
    along = jax.tree.map(lambda a: rng.standard_normal(a.shape), given)
    value, tangent = jax.jit(lambda a, b: jax.jvp(loss, (a,), (b,)))(given, along)
    expected, grads = jax.value_and_grad(loss)(given)
    parts = jax.tree.map(lambda d, v: (d * v).sum(), grads, along)
    assert_close(
        {"value": np.asarray(value), "tangent": np.asarray(tangent)},
        {"value": np.asarray(expected), "tangent": np.asarray(sum(jax.tree.leaves(parts)))},
    )


@slow
def test_padding_does_not_affect_derivatives(jax: Any, ours: Any) -> None:
    """Even if it contains infinity."""
    given = problem("lstm", 0, lengths=True, resets=False, biases=("b",), states=(), reverse=False)
    behind = np.arange(SIZES[0])[:, None] >= given.inputs["lengths"]
    assert behind.any()
    real, fixed = split(given)
    found = []
    for value in (np.inf, 0.0):
        arrays = real | {"x": np.where(behind[:, :, None], value, real["x"])}
        run = jax.jit(lambda real: jax.jvp(lambda r: by_fastrnn(ours, given)(r | fixed), (real,), (tangents_of(real),)))
        found.append({f"{i} {n}": np.asarray(a) for i, part in enumerate(run(arrays)) for n, a in part.items()})
    assert_same_bits(*found)


def test_first_gradients_are_the_kernels(jax: Any, ours: Any) -> None:
    """The program of a gradient contains one forward and one backward call, and no loop of JAX."""
    given = problem("lstm", lengths=True, resets=True, biases=("b",), states=("h0",), reverse=False)
    real, fixed = split(given)
    run = jax.grad(lambda real: sum((a**2).sum() for a in by_fastrnn(ours, given)(real | fixed).values()))
    text = jax.jit(run).lower(real).as_text()
    calls = [text.count(name) for name in ("@fastrnn_forward", "@fastrnn_backward", "stablehlo.while")]
    assert calls == [1, 1, 0]


def test_slow_derivatives_warn_once(python: Callable[..., Any], jax: Any) -> None:
    """Once per reason, and not for a first gradient."""
    code = """
import warnings, jax, jax.numpy as jnp, fastrnn.jax
x, W, U = jnp.ones((5, 2, 3)), jnp.ones((16, 3)), jnp.ones((16, 4))
def loss(x):
    return (fastrnn.jax.lstm(x, W, U)[0] ** 2).sum()
def told(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(x)
    return [str(w.message) for w in found if w.category is RuntimeWarning]
assert not told(jax.grad(loss))
for call in (lambda x: jax.jvp(loss, (x,), (x,)), jax.grad(lambda x: jax.grad(loss)(x).sum())):
    print(*told(call), sep=", ")
    assert not told(call)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    reasons = "forward-mode derivatives", "gradients of gradients"
    rest = "are computed by the cell's equations, step by step, which is slow"
    assert done.stdout.splitlines() == [f"fastrnn.jax: {reason} {rest}" for reason in reasons]
