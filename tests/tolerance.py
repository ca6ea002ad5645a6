"""The tolerance policy of all tests, in one place.

Errors are norm-wise: ||got - exact|| / ||exact|| for each tensor, exact being the float64 NumPy reference (which
complex steps vouch for). A tensor whose exact value is 0 must be 0, so zero passes for nothing else.

* float64: within 1e-12.
* float32: within 4 times the error that a plain float32 NumPy loop makes on the same problem. On a tensor of a few
  elements that loop may be right to the last bit by luck (over 6000 tensors of random problems the worst ratio is
  2.9 among those of 64 elements or more, 13 among the smaller ones, though its square mean is about 1 in both), so
  below FEW elements its error counts as 4 roundings at least, and above as half of one.
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]

FLOAT64 = 1e-12
RATIO = 4.0
FEW = 64
FLOOR_EPS = 4.0  # below FEW elements


def relative_error(got: np.ndarray, exact: np.ndarray) -> float:
    """||got - exact|| / ||exact|| in float64; where exact is 0 throughout, 0 if got is too and else infinite."""
    assert got.shape == exact.shape, f"shape {got.shape}, expected {exact.shape}"
    assert np.isfinite(exact).all(), "the reference is not finite"
    distance, size = np.linalg.norm(got.astype(np.float64) - exact), np.linalg.norm(exact)
    if size == 0:
        return 0.0 if distance == 0 else np.inf
    return float(distance / size)


def allowed_float32(loop: np.ndarray, exact: np.ndarray) -> float:
    """The error that a float32 tensor may have where the NumPy loop came to `loop`."""
    least = (FLOOR_EPS if exact.size < FEW else 0.5) * float(np.finfo(np.float32).eps)
    return RATIO * max(relative_error(loop, exact), least)


def assert_close(got: Arrays, exact: Arrays, bound: float = FLOAT64) -> None:
    """Every tensor of `exact` is in `got`, and no other, each within `bound` norm-wise."""
    assert got.keys() == exact.keys()
    errors = {name: relative_error(got[name], exact[name]) for name in exact}
    # not (error <= bound) rather than error > bound: a NaN must fail
    assert not (bad := {k: e for k, e in errors.items() if not e <= bound}), f"relative errors {bad} above {bound}"


def assert_float32(got: Arrays, exact: Arrays, loop: Arrays) -> None:
    """Every tensor is within 4 times the error of the float32 NumPy `loop`."""
    assert got.keys() == exact.keys() == loop.keys()
    bad = {}
    for name, value in exact.items():
        assert got[name].dtype == np.float32, f"{name} is {got[name].dtype}"
        error, allowed = relative_error(got[name], value), allowed_float32(loop[name], value)
        if not error <= allowed:
            bad[name] = f"{error:.2e} > {allowed:.2e}"
    assert not bad, f"relative errors {bad}"


def assert_same_bits(got: Arrays, expected: Arrays) -> None:
    """Every tensor has the same dtype, shape and bits (so -0 is not 0, and equal NaNs are equal)."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape), name
        assert got[name].tobytes() == value.tobytes(), f"{name} differs in {np.sum(got[name] != value)} elements"
