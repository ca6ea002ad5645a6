"""Initial weights: their distributions, and the defaults of the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS
from support.stacks import layer

import fastrnn
from fastrnn.initializers import (
    Constant,
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    Ones,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    Zeros,
)

#: initializer -> mean, standard deviation and, if uniform, the largest value of a weight (200, 100)
DISTRIBUTIONS = [
    (RandomUniform(0.3), 0, 0.3 / np.sqrt(3), 0.3),
    (RandomNormal(), 0, 0.05, None),
    (RandomNormal(stddev=10), 0, 10, None),
    (RandomNormal(mean=3, stddev=0.5), 3, 0.5, None),
    (GlorotUniform(), 0, np.sqrt(2 / 300), np.sqrt(6 / 300)),
    (GlorotNormal(), 0, np.sqrt(2 / 300), None),
    (HeUniform(), 0, np.sqrt(2 / 100), np.sqrt(6 / 100)),
    (HeNormal(), 0, np.sqrt(2 / 100), None),
    (Orthogonal(), 0, np.sqrt(1 / 200), None),
    (Orthogonal(gain=2), 0, 2 * np.sqrt(1 / 200), None),
]
EVERY = [f for f, *_ in DISTRIBUTIONS] + [Zeros(), Ones(), Constant(0.5)]


@pytest.mark.parametrize(("f", "mean", "deviation", "largest"), DISTRIBUTIONS)
def test_distributions(f: Any, mean: float, deviation: float, largest: float | None) -> None:
    values = f((200, 100), rng=0, dtype=np.float64)
    assert values.mean() == pytest.approx(mean, abs=4 * deviation / np.sqrt(values.size))
    assert values.std() == pytest.approx(deviation, rel=0.02)
    if largest is None:
        assert np.abs(values - mean).max() > 3 * deviation
    else:
        assert 0.999 * largest < np.abs(values).max() <= largest


@pytest.mark.parametrize("f", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_and_seeds(dtype: type, f: Callable[..., np.ndarray]) -> None:
    """A new, contiguous array in each call, which depends only on the seed."""
    one, same = f((7, 3), 5, dtype), f((7, 3), np.random.default_rng(5), dtype)
    assert (one.shape, one.dtype, one.flags.c_contiguous) == ((7, 3), dtype, True)
    np.testing.assert_array_equal(one, same)
    assert not np.shares_memory(one, same)
    constant = isinstance(f, Zeros | Ones | Constant)
    assert np.array_equal(f((7, 3), 6, dtype), one) == constant
    assert f((3, 7)).shape == (3, 7)


def test_constants() -> None:
    for f, value in ((Zeros(), 0), (Ones(), 1), (Constant(0.5), 0.5)):
        np.testing.assert_array_equal(f((2, 3)), np.full((2, 3), value))


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256), (1, 5), (5, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_orthogonal(dtype: type, shape: tuple[int, int]) -> None:
    Q = Orthogonal(gain=3)(shape, 0, dtype).astype(np.float64) / 3
    product = Q.T @ Q if shape[0] >= shape[1] else Q @ Q.T
    np.testing.assert_allclose(product, np.eye(min(shape)), rtol=0, atol=1e-6)


def test_orthogonal_is_uniform() -> None:
    """Without the signs of R, the diagonal of Q would have only one sign."""
    diagonals = np.array([np.diag(Orthogonal()((4, 4), seed)) for seed in range(400)])
    np.testing.assert_allclose(np.mean(diagonals > 0, axis=0), 0.5, atol=0.1)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"^shape\b"):
        Orthogonal()((3,))
    with pytest.raises(ValueError, match=r"^shape\b"):
        GlorotUniform()((3, 4, 5))


# In layers


@pytest.mark.parametrize("cell", CELLS)
def test_keras(cell: str) -> None:
    net = layer(cell, 30, 50, 2, bidirectional=True, initializer="keras")
    G = len(net.parameters()["weight_ih_l0"]) // 50
    for name, a in net.parameters().items():
        if name.startswith("weight_ih"):
            limit = np.sqrt(6 / sum(a.shape))
            assert 0.99 * limit < np.abs(a).max() <= limit
            assert a.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
        elif name.startswith("weight_hh"):
            np.testing.assert_allclose(a.T @ a, np.eye(50), rtol=0, atol=1e-6)
        elif name.startswith("bias"):
            expected = np.zeros((G, 50))
            if G == 4 and name.startswith("bias_ih"):
                expected[1] = 1
            np.testing.assert_array_equal(a.reshape(G, 50), expected)
        else:
            assert 0.13 < np.abs(a).max() <= 1 / np.sqrt(50)


@pytest.mark.parametrize("initializer", ["torch", "keras"])
def test_forget_bias(initializer: str) -> None:
    forgetful = fastrnn.LSTM(3, 4, 2, rng=0, initializer=initializer).parameters()
    for name, a in fastrnn.LSTM(3, 4, 2, rng=0, initializer=initializer, forget_bias=-2.5).parameters().items():
        if name.startswith("bias"):
            np.testing.assert_array_equal(a[4:8], -2.5 if name.startswith("bias_ih") else 0)
            np.testing.assert_array_equal(np.delete(a, slice(4, 8)), np.delete(forgetful[name], slice(4, 8)))
        else:
            np.testing.assert_array_equal(a, forgetful[name])


def test_an_initializer_for_each_parameter() -> None:
    chosen = {"W": Constant(2), "U": Orthogonal(), "p": Zeros(), "b": lambda shape, rng, dtype: np.arange(shape[0])}
    own = fastrnn.LSTM(3, 4, peephole=True, initializer=chosen).parameters()
    assert (own["weight_ih_l0"] == 2).all()
    np.testing.assert_allclose(own["weight_hh_l0"].T @ own["weight_hh_l0"], np.eye(4), rtol=0, atol=1e-6)
    assert not own["peephole_l0"].any()
    np.testing.assert_array_equal(own["bias_ih_l0"], np.arange(16))
    assert {a.dtype for a in own.values()} == {np.dtype(np.float32)}
    assert 0 < np.abs(own["bias_hh_l0"]).max() <= 0.5


def test_dense_and_embedding() -> None:
    dense = fastrnn.Dense(100, 200, rng=0)
    assert 0.0999 < np.abs(dense.weight).max() <= 0.1
    assert 0.09 < np.abs(dense.bias).max() <= 0.1
    keras = fastrnn.Dense(100, 200, rng=0, initializer="keras")
    assert 0.999 * np.sqrt(6 / 300) < np.abs(keras.weight).max() <= np.sqrt(6 / 300)
    assert not keras.bias.any()
    table = fastrnn.Embedding(100, 200, rng=0)
    assert (table.weight.mean(), table.weight.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, rel=0.02))
    assert 0.0499 < np.abs(fastrnn.Embedding(100, 200, initializer="keras").weight).max() <= 0.05
    assert (fastrnn.Embedding(3, 2, initializer={"weight": Ones()}).weight == 1).all()


@pytest.mark.parametrize(
    ("error", "initializer"),
    [
        (ValueError, "jax"),
        (TypeError, Zeros()),
        (ValueError, {"weight": Zeros()}),
        (ValueError, {"p": Zeros()}),
        (TypeError, {"W": "zeros"}),
        (ValueError, {"W": lambda shape, rng, dtype: np.zeros(3)}),
    ],
)
def test_wrong_initializers(error: type[Exception], initializer: Any) -> None:
    with pytest.raises(error, match=r"^initializer\b"):
        fastrnn.LSTM(3, 4, initializer=initializer)
    with pytest.raises(ValueError, match=r"^initializer\b"):
        fastrnn.LSTM(3, 4, bias=False, initializer={"b": Zeros()})


def count(net: Any) -> int:
    return sum(a.size for a in net.parameters().values())


def test_parameter_counts() -> None:
    """torch.nn.LSTM(64, 64) has 33,280; Keras' has 256 fewer, with one bias; the others are Keras' counts."""
    assert count(fastrnn.LSTM(64, 64)) == 33_280
    assert count(fastrnn.GRU(32, 64, reset_after=True)) == 18_816
    assert count(fastrnn.Dense(64, 10)) == 650
    assert count(fastrnn.Dense(128, 1)) == 129
    assert count(fastrnn.Embedding(100, 8)) == 800


WRONG: dict[str, Callable[[], Any]] = {
    "value: expected a finite number, got None": lambda: Constant(None),  # type: ignore[arg-type]
    "value: expected a finite number, got 'abc'": lambda: Constant("abc"),  # type: ignore[arg-type]
    "value: expected a finite number, got inf": lambda: Constant(np.inf),
    "limit: expected a finite number of at least 0, got nan": lambda: RandomUniform(np.nan),
    "limit: expected a finite number of at least 0, got -0.1": lambda: RandomUniform(-0.1),
    "mean: expected a finite number, got nan": lambda: RandomNormal(np.nan),
    "stddev: expected a finite number of at least 0, got nan": lambda: RandomNormal(0, np.nan),
    "stddev: expected a finite number of at least 0, got -1": lambda: RandomNormal(0, -1),
    "gain: expected a finite number, got 'x'": lambda: Orthogonal("x"),  # type: ignore[arg-type]
    "gain: expected a finite number, got nan": lambda: Orthogonal(np.float32("nan")),  # type: ignore[arg-type]
    "forget_bias: expected a finite number, got nan": lambda: fastrnn.LSTM(2, 3, forget_bias=np.nan),
    "dtype: expected float32 or float64, got None": lambda: fastrnn.Dense(2, 3, dtype=None),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_numbers(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        WRONG[message]()
