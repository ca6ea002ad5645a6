"""The tolerance policy of all tests, in one place.

Errors are norm-wise: ||got - exact|| / ||exact|| for each tensor, exact being the float64 NumPy reference (which
complex steps vouch for). A tensor whose exact value is 0 must be 0, so zero passes for nothing else.

* float64: within 1e-12.
* float32: within 4 times the error that a plain float32 NumPy loop makes on the same problem. That loop may be
  right to the last bit by luck, on a tensor of a few elements above all, so its error counts as FLOOR_EPS
  roundings at least (then the worst of 4000 tensors of random problems is at 2.8 times).
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]

FLOAT64 = 1e-12
RATIO = 4.0
FLOOR_EPS = 2.0


def relative_error(got: np.ndarray, exact: np.ndarray) -> float:
    """||got - exact|| / ||exact|| in float64; where exact is 0 throughout, 0 if got is too and else infinite."""
    assert got.shape == exact.shape, f"shape {got.shape}, expected {exact.shape}"
    assert np.isfinite(exact).all(), "the reference is not finite"
    distance, size = np.linalg.norm(got.astype(np.float64) - exact), np.linalg.norm(exact)
    if size == 0:
        return 0.0 if distance == 0 else np.inf
    return float(distance / size)


def assert_close(got: Arrays, exact: Arrays, bound: float = FLOAT64) -> None:
    """Every tensor of `exact` is in `got`, and no other, each within `bound` norm-wise."""
    assert got.keys() == exact.keys()
    errors = {name: relative_error(got[name], exact[name]) for name in exact}
    # not (error <= bound) rather than error > bound: a NaN must fail
    assert not (bad := {k: e for k, e in errors.items() if not e <= bound}), f"relative errors {bad} above {bound}"


def assert_float32(got: Arrays, exact: Arrays, loop: Arrays) -> None:
    """Every tensor is within 4 times the error of the float32 NumPy `loop`."""
    assert got.keys() == exact.keys() == loop.keys()
    floor = FLOOR_EPS * np.finfo(np.float32).eps
    bad = {}
    for name, value in exact.items():
        assert got[name].dtype == np.float32, f"{name} is {got[name].dtype}"
        error, allowed = relative_error(got[name], value), RATIO * max(relative_error(loop[name], value), floor)
        if not error <= allowed:
            bad[name] = f"{error:.2e} > {allowed:.2e}"
    assert not bad, f"relative errors {bad}"


def assert_same_bits(got: Arrays, expected: Arrays) -> None:
    """Every tensor has the same dtype, shape and bits (so -0 is not 0, and equal NaNs are equal)."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape), name
        assert got[name].tobytes() == value.tobytes(), f"{name} differs in {np.sum(got[name] != value)} elements"
