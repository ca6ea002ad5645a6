"""The kernels' sigmoid and tanh: within 2 ulp over all floating-point numbers, for every instruction set.

The exact value is NumPy's in the next wider type, and an ulp is the distance between neighbours at the exact value.
Where that is below the smallest normal number the kernel gives 0 or that number.

`python -m pytest -m exhaustive -s tests/test_activations.py` checks every float32 and 2e8 float64, and prints its
counts. NumPy's float64 exp and tanh, and values computed from them, have relative errors below 2^-50. So the error of a
float32 is known to 2^-26 ulp; if that does not decide whether it is correctly rounded, decimals do. A long double has
11 bits more than a float64, so errors of float64 are known to 2^-8 ulp, and "correctly rounded" has this accuracy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.backends import available_isas
from fastrnn.call import DenseCall

ULP = 2.0
DTYPES = (np.float32, np.float64)
BITS = {np.float32: np.uint32, np.float64: np.uint64}
WIDER = {np.float32: np.float64, np.float64: np.longdouble}
REFERENCE = {np.float32: 2.0**-50, np.float64: 2.0**-61}  #: relative error of the exact values, at most


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {"sigmoid": sigmoid, "tanh": np.tanh}


def in_decimal(name: str, x: Any) -> Decimal:
    """Compute it to at least 50 digits, although 1 - exp(-2x) loses the first 38 of 100 if x is a tiny float32."""
    with localcontext(prec=100):
        e = (Decimal(float(x)) * (-1 if name == "sigmoid" else -2)).exp()
        return 1 / (1 + e) if name == "sigmoid" else (1 - e) / (1 + e)


def computed(name: str, x: np.ndarray) -> np.ndarray:
    """Compute f(x) of a contiguous float array with the kernels of the current instruction set."""
    y: np.ndarray = importlib.import_module("fastrnn.backends.native").dense(DenseCall(name, x.reshape(1, -1)))
    return y.reshape(x.shape)


@pytest.fixture
def activation(native: str) -> Callable[[str, np.ndarray], np.ndarray]:
    return computed


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    if np.finfo(WIDER[request.param]).nmant <= np.finfo(request.param).nmant + 8:
        pytest.skip("this machine has no wider type to compare with")
    return request.param


def numbers(dtype: Any) -> Iterator[np.ndarray]:
    """Return every exponent and both signs at even steps of the bit patterns, random numbers, and all near the
    breakpoints.

    Breakpoints are where the kernels may change course: multiples of ln(2)/4 (range reduction of either function),
    where a result saturates, overflows or becomes subnormal. And where float64's tanh rounds the most.
    """
    uint, rng = BITS[dtype], np.random.default_rng(0)
    top = np.iinfo(uint).max
    yield np.arange(0, top, top // 1_000_003, uint).view(dtype)
    yield rng.integers(0, top, 250_000, uint, endpoint=True).view(dtype)
    yield rng.uniform(-100, 100, 500_000).astype(dtype)
    saturates = [9.01, 9.2, 18.37, 20, 22, 36.7]
    underflows = [87.34, 88, 88.72, 103.97, 104, 708.4, 709, 709.78, 745.1]
    others = [1, 1e-4, 0.23329654901297767]
    at = np.concatenate([np.arange(1, 260) * np.log(2) / 4, saturates, underflows, others]).astype(dtype)
    near = (at.view(uint)[:, None] + np.arange(-500, 501).astype(uint)).ravel().view(dtype)
    yield near
    yield -near


@dataclass
class Tally:
    """Counts for a function on an instruction set."""

    values: int = 0
    nan: int = 0
    below: int = 0  #: number of exact values below the normal range
    rounded: int = 0  #: correctly
    decided: int = 0  #: whether correctly, by decimals
    within: tuple[int, ...] = (0, 0, 0)  #: 1, 1.5 and 2 ulp
    worst: tuple[float, float] = (0.0, 0.0)  #: ulp, x
    falls: int = 0  #: neighbours of which the larger has the smaller result
    deepest: tuple[float, float] = (0.0, 0.0)  #: ulp, x

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.values + other.values,
            self.nan + other.nan,
            self.below + other.below,
            self.rounded + other.rounded,
            self.decided + other.decided,
            tuple(a + b for a, b in zip(self.within, other.within, strict=True)),
            max(self.worst, other.worst),
            self.falls + other.falls,
            max(self.deepest, other.deepest),
        )

    def __str__(self) -> str:
        ulps = ", ".join(f"{n} within {ulp} ulp" for ulp, n in zip((1, 1.5, 2), self.within, strict=True))
        return (
            f"{self.values} values: {self.nan} NaN, {self.below} whose exact value is below the normal range; "
            f"{self.rounded} correctly rounded ({self.decided} decided by decimals), {ulps}; "
            f"worst {self.worst[0]:.4f} ulp at {self.worst[1]!r}; "
            f"{self.falls} falls, the deepest {self.deepest[0]:g} ulp at {self.deepest[1]!r}"
        )


class Exact:
    """The correct results of one function at some x, for every instruction set."""

    def __init__(self, name: str, x: np.ndarray) -> None:
        exact, info = EXACT[name](x.astype(WIDER[x.dtype.type])), np.finfo(x.dtype)
        self.name, self.x, self.exact, self.eps = name, x, exact, float(info.eps)
        self.nan, self.negative, self.small = np.isnan(x), np.signbit(exact), abs(exact) < info.tiny
        self.saturated = abs(exact) > 1 - self.eps / 8
        self.normal = ~(self.nan | self.small)
        mantissa, _ = np.frexp(exact)  # in [0.5, 1), so that exact / mantissa is a power of two
        self.ulp = np.where(self.normal, abs(exact / mantissa) * (self.eps / 2), 1)

    def judge(self, got: np.ndarray) -> Tally:
        """Count errors, and check NaN, signs, underflow and saturation."""
        assert (np.isnan(got) == self.nan).all()
        assert ((np.signbit(got) == self.negative) | self.nan).all()
        assert not (abs(got) > 1).any()
        assert (abs(got[self.saturated]) == 1).all(), "1 to a quarter of an ulp, and not 1"
        small = abs(got[self.small])
        assert ((small == 0) | (small == np.finfo(got.dtype).tiny)).all()

        error = np.where(self.normal, abs(got - self.exact) / self.ulp, 0)
        unsure = REFERENCE[got.dtype.type] * 2 / self.eps
        least = 0.5
        doubtful: Any = ()
        if got.dtype == np.float32:
            doubtful = np.argwhere(abs(error - 0.5) <= unsure)
            for at in map(tuple, doubtful):
                off = abs(Decimal(float(got[at])) - in_decimal(self.name, self.x[at]))
                error[at] = 0.5 if off <= Decimal(float(self.ulp[at])) / 2 else 0.5 + unsure
        else:
            least += unsure
        outside = got.size - np.count_nonzero(self.normal)  # and an error of 0
        worst = np.unravel_index(error.argmax(), error.shape)
        return Tally(
            values=got.size,
            nan=int(np.count_nonzero(self.nan)),
            below=int(np.count_nonzero(self.small)),
            rounded=int(np.count_nonzero(error <= least)) - outside,
            decided=len(doubtful),
            within=tuple(int(np.count_nonzero(error <= most)) - outside for most in (1, 1.5, 2)),
            worst=(float(error[worst]), float(self.x[worst])),
        )


def falls(x: np.ndarray, got: np.ndarray) -> Tally:
    """Return the places where results of ascending or descending neighbours are not in order."""
    fall = np.diff(got, axis=1) * -np.copysign(x.dtype.type(1), x[:, :1])
    at = np.nonzero(fall > 0)
    if not at[0].size:
        return Tally()
    depth = fall[at] / np.spacing(np.minimum(abs(got[:, 1:][at]), abs(got[:, :-1][at])))
    deepest = depth.argmax()
    return Tally(falls=depth.size, deepest=(float(depth[deepest]), float(x[:, :-1][at][deepest])))


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_values(name: str, dtype: Any) -> None:
    """The exact values are as accurate as the counts assume."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-80, 80, 300), rng.uniform(-1, 1, 300), rng.uniform(-1, 1, 300) ** 9]).astype(dtype)
    exact = EXACT[name](x.astype(WIDER[dtype]))
    for value, truth in zip(exact, (in_decimal(name, x_i) for x_i in x), strict=True):
        high = float(value)
        with localcontext(prec=60):
            off = abs(Decimal(high) + Decimal(float(value - high)) - truth) / abs(truth)
        assert off <= REFERENCE[dtype]


@pytest.mark.parametrize("name", EXACT)
def test_error(name: str, dtype: Any) -> None:
    """All instruction sets share the exact values, which take longer to compute than the kernels' results."""
    if not available_isas():
        pytest.skip("no native implementation is installed")
    with np.errstate(all="ignore"):
        for x in numbers(dtype):
            exact = Exact(name, x)
            for isa in available_isas():
                with fastrnn.use_isa(isa):
                    worst, at = exact.judge(computed(name, x)).worst
                assert worst <= ULP, f"{isa}: {worst} ulp at {at!r}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_odd(dtype: Any, activation: Callable[..., np.ndarray]) -> None:
    for x in numbers(dtype):
        x = x[~np.isnan(x)]
        assert activation("tanh", -x).tobytes() == (-activation("tanh", x)).tobytes()


# Every float32, and 2e8 float64


def rows_of_float32() -> Iterator[np.ndarray]:
    """Yield all patterns without the sign, in order. The last one of a row is also the first one of the next."""
    chunk = 2**17
    for n in range(0, 2**31, chunk):
        yield np.arange(n, n + chunk + 1, dtype=np.uint64).astype(np.uint32)[None]


def rows_of_float64() -> Iterator[np.ndarray]:
    """Yield runs of 257 neighbours: 96 per binade with its first and last, 5000 more each from 2^-30 to 2^9."""
    rng, run = np.random.default_rng(0), np.arange(257, dtype=np.uint64)
    for exponent in range(2047):
        inner = rng.integers(0, 2**52 - 256, 94 + 5000 * (-30 <= exponent - 1023 < 10), np.uint64)
        starts = np.concatenate([inner, np.array([0, 2**52 - 257], np.uint64)])
        for some in np.array_split(starts, len(starts) // 600 + 1):
            yield (np.uint64(exponent) << np.uint64(52)) + some[:, None] + run


def count(name: str, dtype: Any, every: Iterable[np.ndarray]) -> dict[str, Tally]:
    """Count over rows of patterns without the sign, except the last of each row, and over the same with the sign."""
    uint, tallies = BITS[dtype], dict.fromkeys(available_isas(), Tally())
    sign = np.array(-0.0, dtype).view(uint)
    for patterns in every:
        of_positive: dict[str, tuple[np.ndarray, Tally]] = {}
        for x in (patterns.view(dtype), (patterns | sign).view(dtype)):
            judged: list[tuple[np.ndarray, Tally]] = []
            exact: Exact | None = None
            for isa in tallies:
                with fastrnn.use_isa(isa):
                    got = computed(name, x)
                if name == "tanh" and isa in of_positive:
                    opposite, tally = of_positive[isa]
                    odd = got.view(uint) == opposite.view(uint) ^ sign
                    assert (odd | (np.isnan(x) & np.isnan(got)))[:, :-1].all()
                else:  # instruction sets with the same bits have the same counts
                    tally = next((t for g, t in judged if np.array_equal(g.view(uint), got.view(uint))), Tally())
                    if not tally.values:
                        exact = exact or Exact(name, x[:, :-1])
                        tally = exact.judge(got[:, :-1]) + falls(x, got)
                        judged.append((got, tally))
                    of_positive.setdefault(isa, (got, tally))
                tallies[isa] += tally
    return tallies


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EXACT)
def test_all_numbers(name: str, dtype: Any) -> None:
    """From a number to the next larger one a result may decrease, but by one ulp at most."""
    if not available_isas():
        pytest.skip("no native implementation is installed")
    with np.errstate(all="ignore"):
        tallies = count(name, dtype, rows_of_float32() if dtype == np.float32 else rows_of_float64())
    for isa, tally in tallies.items():
        print(f"\n{name} {dtype.__name__} {isa}: {tally}")
    for tally in tallies.values():
        assert tally.values == 2**32 if dtype == np.float32 else tally.values > 2e8
        assert tally.worst[0] <= ULP
        assert tally.within[-1] == tally.values - tally.nan - tally.below
        assert tally.deepest[0] <= 1


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
    """NaN may be quiet or signalling, of either sign, in any lane."""
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
def test_lanes_give_the_same_bits(dtype: Any, name: str, activation: Callable[..., np.ndarray]) -> None:
    """The remainder of a vector is computed like the rest."""
    x = np.random.default_rng(1).standard_normal(130).astype(dtype)
    whole = activation(name, x)
    for n in range(1, 67):
        np.testing.assert_array_equal(activation(name, x[:n]), whole[:n])
        np.testing.assert_array_equal(activation(name, np.ascontiguousarray(x[n:])), whole[n:])
