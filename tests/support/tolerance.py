"""The tolerance policy of all tests and of the fuzzer, in one place.

Errors are norm-wise: ||got - exact|| / ||exact|| for each tensor, where exact is the float64 NumPy reference (which
complex steps verify). A tensor whose exact value is 0 must be 0, and a zero tensor never passes for another value.

The error of a cell's result may be LUCK times the effect of rounding on its problem. This effect is measured in the
reference itself: under `rounding`, each operation has a random error as large as the precision in question allows, and
the effect is the root mean square of the errors of RUNS such evaluations. So the bound depends on no library's result.
For float64 the noise is larger than its roundings, which float64 itself could not represent, and its effect is scaled
down.

* Every operation is off by one unit in the last place at most: twice what a correct rounding is, and as an
  activation is.
* A sum of K terms, one after the other, has K roundings: its terms and the sum are off by sqrt(K) times that at most.
  So is what the sum is added to, which it may have begun with.
* What is below the normal numbers of a precision may be 0 in it.
* A few roundings are nobody's fault: FLOOR of them are allowed on any problem, and where no error is larger, nothing
  is measured.
* A problem of which rounding moves a result by WORST or more decides nothing, and is an error in the test.

What is compared with an independent implementation in the same dtype, on a problem that is known to be harmless, has
FLOAT64 or FLOAT32 for its bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

import fastrnn
from fastrnn.backends import numpy as by_numpy
from fastrnn.cells import Cell

Arrays = dict[str, np.ndarray]
Evaluate = Callable[[], Arrays]  #: solves the problem in float64
Measured = dict[Any, dict[str, float]]  #: dtype -> the bound for each tensor

FLOAT64 = 1e-12
FLOAT32 = 2e-6
LUCK = 4.0
FLOOR = 4.0  #: units in the last place
RUNS = 6
WORST = 1e-2
LEAST = 2.0**-40  #: smallest noise that float64 can represent


class Rounded(np.ndarray):
    """A float64 array whose computed values have random errors, as in a precision of `unit`."""

    rng: np.random.Generator
    unit: float
    tiny: float
    terms = 1  #: number of terms if it is a sum

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        given = [np.asarray(a) for a in inputs]
        terms = 1
        if ufunc is np.matmul or method == "reduce":
            terms = given[0].shape[options.get("axis", -1)]
            given[0] = off(given[0], terms)
        elif ufunc is np.add:  # adding to a sum continues it
            terms = max(getattr(a, "terms", 1) for a in inputs)
        result = getattr(ufunc, method)(*given, **options)
        if result.dtype.kind == "f":
            result = off(result, terms).view(Rounded)
            result.terms = terms
        if out is None:
            return result
        out[0][...] = result
        return out[0]

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(function, types, args, kwargs)
        return result.view(Rounded) if isinstance(result, np.ndarray) else result  # np.where forgets the class


def off(a: np.ndarray, roundings: int = 1) -> np.ndarray:
    """Under `rounding`: return `a` with the random error of that many roundings."""
    most = Rounded.unit * roundings**0.5
    return a * ((1 - most) + 2 * most * Rounded.rng.random(a.shape)) * (abs(a) >= Rounded.tiny)


def rounded(given: Any) -> Any:
    """Return a step's arguments as rounded arrays."""
    return tuple(map(rounded, given)) if isinstance(given, tuple) else given.view(Rounded)


@contextlib.contextmanager
def rounding(dtype: Any, unit: float, seed: int) -> Iterator[None]:
    """Give the reference's steps random errors, as in a precision whose unit in the last place of 1 is `unit`."""
    reference = by_numpy.reference

    def off_in(step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: step(*rounded(given))

    def rounding_reference(cell: Cell, dtype: np.dtype[Any], *options: Any) -> Any:
        of = reference(cell, dtype, *options)
        return SimpleNamespace(step=off_in(of.step), step_backward=off_in(of.step_backward))

    with (
        fastrnn.use_backend("numpy"),
        patch.object(by_numpy, "reference", rounding_reference),
        patch.multiple(Rounded, unit=unit, tiny=np.finfo(dtype).tiny, rng=np.random.default_rng(seed), create=True),
    ):
        yield


def relative_error(got: np.ndarray, exact: np.ndarray) -> float:
    """||got - exact|| / ||exact|| in float64; where exact is 0 throughout, 0 if got is too and else infinite."""
    assert got.shape == exact.shape, f"shape {got.shape}, expected {exact.shape}"
    assert np.isfinite(exact).all(), "the reference is not finite"
    distance, size = np.linalg.norm(got.astype(np.float64) - exact), np.linalg.norm(exact)
    if size == 0:
        return 0.0 if distance == 0 else np.inf
    return float(distance / size)


def allowed(evaluate: Evaluate, exact: Arrays, dtype: Any) -> dict[str, float]:
    """Return the relative error that each tensor may have in a precision."""
    unit = float(np.finfo(dtype).eps)
    larger = max(unit, LEAST)
    squares = dict.fromkeys(exact, 0.0)
    for seed in range(RUNS):
        with rounding(dtype, larger, seed):
            found = evaluate()
        for name, value in exact.items():
            squares[name] += (relative_error(np.asarray(found[name]), value) / larger) ** 2
    return {name: unit * max(FLOOR, LUCK * float(np.sqrt(square / RUNS))) for name, square in squares.items()}


class RoundingDecides(AssertionError):
    """The problem is so ill-conditioned that no result can be judged by it."""


def assert_rounded(got: Arrays, exact: Arrays, evaluate: Evaluate, measured: Measured | None = None) -> None:
    """Check that `got` has every tensor of `exact`, the result of `evaluate`, within the error of one precision.

    What is allowed is measured once for all calls that hand on the same `measured`, empty at first.
    """
    assert got.keys() == exact.keys()
    [dtype] = {a.dtype for a in got.values()}
    errors = {name: relative_error(got[name], value) for name, value in exact.items()}
    # not (error <= bound) rather than error > bound: a NaN must fail
    if all(error <= FLOOR * np.finfo(dtype).eps for error in errors.values()):
        return
    measured = {} if measured is None else measured
    if dtype not in measured:
        measured[dtype] = allowed(evaluate, exact, dtype)
    most = measured[dtype]
    bad = {k: f"{e:.2e} > {most[k]:.2e}" for k, e in errors.items() if not e <= most[k] < WORST}
    if any(most[k] >= WORST for k in bad):
        raise RoundingDecides(str(bad))
    assert not bad, f"relative errors {bad}"


def assert_close(got: Arrays, exact: Arrays, bound: float = FLOAT64) -> None:
    """Check that `got` has exactly the tensors of `exact`, each within `bound`, norm-wise."""
    assert got.keys() == exact.keys()
    errors = {name: relative_error(got[name], exact[name]) for name in exact}
    assert not (bad := {k: e for k, e in errors.items() if not e <= bound}), f"relative errors {bad} above {bound}"


def assert_same_bits(got: Arrays, expected: Arrays) -> None:
    """Check that every tensor has the same dtype, shape and bits (so -0 is not 0, and equal NaNs are equal)."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape), name
        assert got[name].tobytes() == value.tobytes(), f"{name} differs in {np.sum(got[name] != value)} elements"
