"""The kernels' sigmoid and tanh: within 2 ulp over all floating-point numbers, for every instruction set.

The exact value is NumPy's in the next wider type, and an ulp is the distance between neighbours at the exact value.
Where that is below the smallest normal number the kernel may give 0, or anything as small.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

ULP = 2.0
DTYPES = (np.float32, np.float64)
BITS = {np.float32: np.uint32, np.float64: np.uint64}
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {"sigmoid": sigmoid, "tanh": np.tanh}


@pytest.fixture
def activation(native: str) -> Callable[[str, np.ndarray], np.ndarray]:
    function: Any = importlib.import_module("fastrnn.backends.native").activation
    return function


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    if np.finfo(WIDER[request.param]).nmant <= np.finfo(request.param).nmant + 8:
        pytest.skip("this machine has no wider type to compare with")
    return request.param


def numbers(dtype: Any) -> Iterator[np.ndarray]:
    """Every exponent and both signs in even steps over the bit patterns; random ones; all round the breakpoints.

    Breakpoints are where the kernels may change course: multiples of ln(2)/4 (range reduction of either function),
    where a result saturates, overflows or becomes subnormal.
    """
    uint, rng = BITS[dtype], np.random.default_rng(0)
    top = np.iinfo(uint).max
    yield np.arange(0, top, top // 2_000_003, uint).view(dtype)
    yield rng.integers(0, top, 500_000, uint, endpoint=True).view(dtype)
    yield rng.uniform(-100, 100, 1_000_000).astype(dtype)
    saturates = [9.01, 9.2, 18.37, 20, 22, 36.7]
    underflows = [87.34, 88, 88.72, 103.97, 104, 708.4, 709, 709.78, 745.1]
    at = np.concatenate([np.arange(1, 260) * np.log(2) / 4, saturates, underflows, [1, 1e-4]]).astype(dtype)
    near = (at.view(uint)[:, None] + np.arange(-500, 501).astype(uint)).ravel().view(dtype)
    yield near
    yield -near


def worst_ulp(activation: Callable[..., np.ndarray], name: str, x: np.ndarray) -> float:
    """The largest error over the numbers in x whose result is normal; asserts what must hold for the others."""
    with np.errstate(all="ignore"):
        x = x[~np.isnan(x)]
        exact, got = EXACT[name](x.astype(WIDER[x.dtype.type])), activation(name, x)
        tiny = np.finfo(x.dtype).tiny
        small = abs(exact) < tiny
        assert (abs(got[small]) <= tiny).all()
        assert (np.signbit(got) == np.signbit(exact)).all()
        error = abs(got[~small] - exact[~small]) / np.spacing(abs(exact[~small]).astype(x.dtype))
        assert np.isfinite(error).all()
        return float(error.max(initial=0))


@pytest.mark.parametrize("name", EXACT)
def test_error(name: str, dtype: Any, activation: Callable[..., np.ndarray]) -> None:
    worst = max(worst_ulp(activation, name, x) for x in numbers(dtype))
    assert worst <= ULP, f"{worst} ulp"


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EXACT)
def test_every_float32(name: str, activation: Callable[..., np.ndarray]) -> None:
    """All 2^32 of them: a minute or two for each instruction set."""
    chunk = 2**22
    patterns = (np.arange(n, n + chunk, dtype=np.uint64).astype(np.uint32) for n in range(0, 2**32, chunk))
    worst = max(worst_ulp(activation, name, bits.view(np.float32)) for bits in patterns)
    assert worst <= ULP, f"{worst} ulp"


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype: Any, activation: Callable[..., np.ndarray]) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf], dtype)
    np.testing.assert_array_equal(activation("sigmoid", x), np.array([0.5, 0.5, 1, 0], dtype))
    tanh = activation("tanh", x)
    np.testing.assert_array_equal(tanh, np.array([0, 0, 1, -1], dtype))
    np.testing.assert_array_equal(np.signbit(tanh), [False, True, False, True])


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan(dtype: Any, name: str, activation: Callable[..., np.ndarray]) -> None:
    """Quiet or signalling, of either sign, in any lane."""
    uint = BITS[dtype]
    infinity = np.array(np.inf, dtype).view(uint)
    for pattern in (infinity + uint(1), infinity | uint(1) << uint(dtype().itemsize * 8 - 1) | uint(3), ~uint(0)):
        nan = np.array(pattern, uint).view(dtype)
        assert np.isnan(nan)
        for lane in range(19):
            x = np.zeros(19, dtype)
            x[lane] = nan
            assert np.isnan(activation(name, x)).tolist() == [n == lane for n in range(19)]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lane_makes_no_difference(dtype: Any, name: str, activation: Callable[..., np.ndarray]) -> None:
    """The remainder of a vector is computed as the rest is."""
    x = np.random.default_rng(1).standard_normal(130).astype(dtype)
    whole = activation(name, x)
    for n in range(1, 67):
        np.testing.assert_array_equal(activation(name, x[:n]), whole[:n])
        np.testing.assert_array_equal(activation(name, np.ascontiguousarray(x[n:])), whole[n:])
