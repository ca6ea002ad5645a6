"""Dense and functions of rows: the bits of a row do not depend on other rows, and packed weights follow the layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.functions import FUNCTIONS, normalized

#: norm-wise, for both dtypes
ROUNDINGS = 8


def assert_rounded(y: np.ndarray, exact: np.ndarray) -> None:
    assert_close({"y": y}, {"y": exact.astype(np.float64)}, ROUNDINGS * np.finfo(y.dtype).eps)


SIZES = [(1, 1, 1), (3, 5, 7), (7, 17, 33), (70, 130, 10), (150, 64, 200), (2, 300, 1100)]


def dense(I: int, N: int, function: str = "identity", **options: Any) -> tuple[fastrnn.Dense, np.random.Generator]:
    return fastrnn.Dense(I, N, function, rng=I + N, **options), np.random.default_rng(I * N)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_rows_have_the_same_bits(function: str, dtype: type, native: str) -> None:
    """Alone, in any batch at any place, with any number of threads, strided, in training and in inference."""
    for n, I, N in SIZES:
        layer, rng = dense(I, N, function, dtype=dtype)
        x = rng.standard_normal((n, I)).astype(dtype)
        y = layer(x)
        wide = np.repeat(x, 2, axis=0)[::2]
        for other in (layer.forward(x, training=True).y, layer(wide), layer(x[::-1])[::-1]):
            assert_same_bits({"y": other}, {"y": y})
        for threads in (1, 2, 3):
            assert_same_bits({"y": layer.forward(x, threads=threads, training=True).y}, {"y": y})
        for i in {0, n // 2, n - 1}:
            assert_same_bits({"y": layer(x[i])}, {"y": y[i]})
        assert_same_bits({"y": layer(x[n // 3 :])}, {"y": y[n // 3 :]})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [True, False])
def test_rows_of_layer_normalization(scale: bool, dtype: type, native: str) -> None:
    """As above, with no larger error than the formula in float64 rounded."""
    for n, F in ((1, 1), (3, 7), (70, 33), (9, 200), (2, 1024)):
        rng = np.random.default_rng(n * F)
        layer = fastrnn.LayerNormalization(F, 1e-3, scale=scale, center=not scale, dtype=dtype)
        for p in layer.parameters().values():
            p[:] = rng.standard_normal(F)
        x = (1 + rng.standard_normal((n, F))).astype(dtype)
        y = layer(x)
        for other in (layer.forward(x, training=True).y, layer(np.repeat(x, 2, axis=0)[::2]), layer(x[::-1])[::-1]):
            assert_same_bits({"y": other}, {"y": y})
        assert_same_bits({"y": layer(x[n // 2])}, {"y": y[n // 2]})
        exact, _ = normalized(x.astype(np.float64), 1e-3)
        assert_rounded(y, exact * layer.weight if scale else exact + layer.bias)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("function", ["tanh", "softmax"])
def test_threads_share_rows_or_weights(threads: int, function: str, native: str) -> None:
    """Products large enough for threads: many rows by few features, and few rows by many."""
    for n, I, N in ((900, 128, 70), (33, 200, 1300), (1, 1500, 4000)):
        layer, rng = dense(I, N, function)
        x = rng.standard_normal((n, I)).astype(np.float32)
        for training in (False, True):
            y = layer.forward(x, threads=1, training=training).y
            assert_same_bits({"y": layer.forward(x, threads=threads, training=training).y}, {"y": y})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_numpy(dtype: type, function: str, bias: bool, native: str) -> None:
    """Compare with NumPy in the widest type available."""
    for n, I, N in SIZES:
        layer, rng = dense(I, N, function, dtype=dtype, bias=bias)
        x = rng.standard_normal((n, I)).astype(dtype)
        a = x.astype(np.longdouble) @ layer.weight.T.astype(np.longdouble) + (layer.bias if bias else 0)
        assert_rounded(layer(x), FUNCTIONS[function].f(a))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_alone(dtype: type, function: str, native: str) -> None:
    """Any shape and strides; rows of softmax have the same bits whatever the other rows are."""
    layer, rng = fastrnn.Activation(function), np.random.default_rng(3)
    for shape in ((5,), (3, 1), (4, 6, 37), (2, 300)):
        x = (4 * rng.standard_normal(shape)).astype(dtype)
        y = layer(x)
        assert_rounded(y, FUNCTIONS[function].f(x.astype(np.longdouble)))
        assert_same_bits({"y": layer(x[..., ::-1].copy()[..., ::-1])}, {"y": y})
        assert_same_bits({"y": layer.forward(x, training=True).y}, {"y": y})
        if len(shape) > 1:
            assert_same_bits({"y": layer(x[:1])}, {"y": y[:1]})
    assert layer(np.ones((3, 0), dtype)).shape == (3, 0)


def test_nan_and_infinity_propagate_by_row(native: str) -> None:
    """As in NumPy, row by row."""
    inf, nan = np.inf, np.nan
    rows = [[0, -inf, 1], [inf, 0, 1], [nan, 0, 1], [0, 1, nan], [-inf, -inf, -inf], [50, -200, 0], [-inf, 3, -inf]]
    for dtype in (np.float32, np.float64):
        x = np.concatenate([rows] * 9, axis=1).astype(dtype)
        for function in FUNCTIONS:
            y = fastrnn.Activation(function)(x)
            with fastrnn.use_backend("numpy"), np.errstate(all="ignore"):
                expected = fastrnn.Activation(function)(x)
            finite = np.isfinite(expected)
            assert_same_bits({"y": y[~finite & ~np.isnan(y)]}, {"y": expected[~finite & ~np.isnan(expected)]})
            assert np.array_equal(np.isfinite(y), finite)
            assert_rounded(y[finite], expected[finite])


def test_new_weights_are_noticed(backend: str) -> None:
    """With `changed` and without, also through the user's own array; streams use them after `changed`."""
    layer, rng = dense(6, 40, "tanh")
    x = rng.standard_normal((3, 6)).astype(np.float32)
    stream = layer.stream(3)
    y = layer(x)
    layer.weight *= 2
    layer.bias[...] = 1
    fresh = fastrnn.Dense(6, 40, "tanh")
    fresh.load_state_dict(layer.state_dict())
    assert not np.array_equal(y, layer(x))
    assert_same_bits({"y": layer(x)}, {"y": fresh(x)})
    layer.changed()
    assert_same_bits({"y": stream.step(x)}, {"y": fresh(x)})
    layer.load_state_dict({"weight": 3 * fresh.weight, "bias": fresh.bias})
    fresh.weight = 3 * fresh.weight
    assert_same_bits({"y": layer(x)}, {"y": fresh(x)})
    assert_same_bits({"y": stream.step(x)}, {"y": fresh(x)})


def test_copies_have_weights_of_their_own(backend: str) -> None:
    layer, rng = dense(6, 40)
    x = rng.standard_normal((3, 6)).astype(np.float32)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits({"y": other(x)}, {"y": y})
        other.weight *= 0
        other.changed()
        assert not np.array_equal(other(x), y)
        assert_same_bits({"y": layer(x)}, {"y": y})


def test_weights_are_packed_for_each_instruction_set(native: str) -> None:
    layer, rng = dense(40, 40)
    x = rng.standard_normal((3, 40)).astype(np.float32)
    y = layer(x)
    for isa in fastrnn.config()["available_isas"]:
        with fastrnn.use_isa(isa):
            assert_rounded(layer(x), y)
    assert_same_bits({"y": layer(x)}, {"y": y})


def test_wrong_threads() -> None:
    layer, _ = dense(3, 4)
    with pytest.raises(ValueError, match=r"^threads\b"):
        layer.forward(np.ones((2, 3), np.float32), threads=0)
