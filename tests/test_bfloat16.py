"""Layers with bfloat16 weights are float32 layers with rounded weights, up to float32's own error.

Only the instruction set that multiplies pairs of bfloat16 also rounds the left operand. The bound of its error is a
fraction of the largest effect of rounding x and h, each by at most 2**-8 of its size. The states of these problems do
not explode, so the bound holds for a whole sequence.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.problems import AWKWARD, CELLS, Arrays
from support.recurrent import in_dtype
from support.stacks import layer, named
from support.tolerance import assert_rounded, assert_same_bits, relative_error

import fastrnn
from fastrnn.weight_dtypes import bfloat16

#: A product of rounded operands, 2**-8 each, in a net that does not amplify it.
ROUNDED_OPERANDS = 2.0**-7


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("B", "I", "H"), [(1, 1, 1), (3, 7, 33), (7, 33, 15), (17, 31, 97), (1, 130, 257)])
def test_error(cell: str, B: int, I: int, H: int, implementation: str) -> None:
    net = layer(cell, I, H, num_layers=2, weight_dtype="bfloat16")
    x = np.random.default_rng(0).standard_normal((9, B, I), dtype=np.float32)

    def reference() -> Arrays:
        with fastrnn.use_backend("numpy"):
            return named(*in_dtype(net, np.float64)(x.astype(np.float64)))

    exact, got = reference(), named(*net(x))
    if implementation == "native-x86-64-v4-bf16":
        for name, value in exact.items():
            assert 0 < relative_error(got[name], value) < ROUNDED_OPERANDS, name
        return
    assert_rounded(got, exact, reference)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", AWKWARD)
def test_same_bits(cell: str, size: int, native: str) -> None:
    """Alone or in a batch, on any number of threads, step by step or at once."""
    net = layer(cell, size, 70, weight_dtype="bfloat16")
    x = np.random.default_rng(size).standard_normal((40, 9, size), dtype=np.float32)
    whole = named(*net(x, threads=1))
    assert_same_bits(named(*net(x, threads=3)), whole)
    assert_same_bits({"y": net(x[:, 4:5])[0]}, {"y": whole["y"][:, 4:5]})
    stream = net.stream(9)
    assert_same_bits({"y": np.stack([stream.step(x_t) for x_t in x])}, {"y": whole["y"]})


def test_rounding() -> None:
    """To the nearest of 8 significant bits, ties to even; NaN stays NaN, and overflow gives infinity."""
    one = np.float32(1)
    step = np.float32(2.0**-7)
    given = np.array([1, 1 + step / 2, 1 + step * 3 / 2, 1 + step / 2 + 2.0**-20, -1 - step, 0, -0.0], np.float32)
    expected = np.array([one, one, 1 + 2 * step, 1 + step, -1 - step, 0, -0.0], np.float32)
    assert_same_bits({"a": bfloat16(given.copy())}, {"a": expected})
    extremes = bfloat16(np.array([np.inf, -np.inf, np.nan, np.finfo(np.float32).max], np.float32))
    assert_same_bits({"a": extremes[[0, 1, 3]]}, {"a": np.array([np.inf, -np.inf, np.inf], np.float32)})
    assert np.isnan(extremes[2])


def test_state_dict_has_the_rounded_weights() -> None:
    net = layer("lstm", 5, 7, weight_dtype="bfloat16")
    full = layer("lstm", 5, 7).state_dict()
    net.load_state_dict(full)
    for name, value in net.state_dict().items():
        expected = bfloat16(full[name].copy()) if name.startswith("weight") else full[name]
        assert_same_bits({name: value}, {name: expected})
    assert np.any(net.state_dict()["weight_hh_l0"] != full["weight_hh_l0"])


def test_bad_choices() -> None:
    with pytest.raises(ValueError, match="weight_dtype: expected None"):
        fastrnn.LSTM(3, 4, weight_dtype="float16")
    with pytest.raises(TypeError, match=r"^weights: use weight_dtype='bfloat16' or 'int8'$"):
        fastrnn.LSTM(3, 4, weights="bfloat16")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="weight_dtype: bfloat16 needs dtype float32"):
        fastrnn.LSTM(3, 4, weight_dtype="bfloat16", dtype=np.float64)
