"""Layers with int8 weights: exact integer sums, and so the same bits everywhere."""

from __future__ import annotations

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS, Arrays
from support.stacks import as_given, layer, named, states
from support.tolerance import assert_same_bits, relative_error

import fastrnn
from fastrnn import catalogue
from fastrnn.backends import available_isas
from fastrnn.training import weight_files
from fastrnn.weight_dtypes import dequantized, int8, int8_codes

ISAS = available_isas()
NATIVE = pytest.mark.skipif(not ISAS, reason="no native implementation is installed")


def product(W: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Compute W x for rows x from the definition: Python's integers, then three roundings to float32."""
    out = np.empty((len(x), len(W)), np.float32)
    codes, scales = int8_codes(W)
    for i, row in enumerate(x):
        most = np.abs(row).max()
        inputs = [int(a) for a in np.rint(row * (np.float32(32767) / most))]
        step = most / np.float32(32767)
        for j, own in enumerate(codes):
            total = sum(a * int(q) for a, q in zip(inputs, own, strict=True))
            # not float32(total), which may round twice, through float64; below 2**53 this is exact
            out[i, j] = np.float32(np.float64(total)) * (scales[j, 0] * step)
    return out


@pytest.mark.parametrize(("B", "I", "H"), [(1, 1, 1), (2, 3, 5), (5, 70, 17), (1, 513, 33), (4, 1100, 9), (2, 4200, 3)])
def test_the_definition(B: int, I: int, H: int, implementation: str) -> None:
    """One step of the linear cell equals its pre-activation, bit for bit in every implementation."""
    net = fastrnn.RNN(I, H, activation="identity", weight_dtype="int8", rng=0)
    rng = np.random.default_rng(B)
    x, h = rng.standard_normal((B, I), dtype=np.float32), rng.standard_normal((B, H), dtype=np.float32)
    own = net.state_dict()
    net.load_state_dict(own | {name: np.zeros_like(own[name]) for name in ("bias_ih_l0", "bias_hh_l0")})
    expected = product(own["weight_ih_l0"], x) + product(own["weight_hh_l0"], h)
    assert_same_bits({"y": net(x[None], h[None])[0][0]}, {"y": expected})


DRAWN = {
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "student": lambda rng, shape: rng.standard_t(8, shape),
}


@pytest.mark.parametrize("distribution", DRAWN)
@pytest.mark.parametrize("seed", range(3))
def test_error_of_a_pre_activation(distribution: str, seed: int, implementation: str) -> None:
    rng = np.random.default_rng(seed)
    I, H = 160, 96
    net = fastrnn.RNN(I, H, activation="identity", weight_dtype="int8", rng=0)
    weights = {name: DRAWN[distribution](rng, a.shape).astype(np.float32) for name, a in net.state_dict().items()}
    net.load_state_dict(weights)
    x, h = (rng.standard_normal((9, n), dtype=np.float32) for n in (I, H))
    W, U, b, b_rec = (a.astype(np.float64) for a in weights.values())
    error = relative_error(net(x[None], h[None])[0][0], x @ W.T + h @ U.T + b + b_rec)
    assert 1e-4 < error < 0.01


@NATIVE
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", [1, 17, 97])
def test_same_bits(cell: str, size: int, native: str) -> None:
    """On every instruction set, alone or in a batch, on any number of threads, step by step or at once."""
    net = layer(cell, size, 70, num_layers=2, weight_dtype="int8")
    x = np.random.default_rng(size).standard_normal((20, 9, size), dtype=np.float32)
    state = states(cell, 2, 9, 70)
    with fastrnn.use_isa(ISAS[0]):
        whole = named(*net(x, as_given(state), threads=1))
    assert_same_bits(named(*net(x, as_given(state), threads=3)), whole)
    assert_same_bits(named(*net(x, as_given(state), threads=3)), whole)  # the second call is prepared
    alone = as_given(tuple([s[:, 4:5] for s in state]))
    assert_same_bits({"y": net(x[:, 4:5], alone)[0]}, {"y": whole["y"][:, 4:5]})
    stream, own = net.stream(9), tuple([s.copy() for s in state])
    assert_same_bits({"y": np.stack([stream.step(x_t, state=own) for x_t in x])}, {"y": whole["y"]})


@NATIVE
@pytest.mark.parametrize(
    "make",
    [
        lambda: fastrnn.LSTM(7, 40, bidirectional=True, weight_dtype="int8", rng=0),
        lambda: fastrnn.LSTM(7, 40, proj_size=21, weight_dtype="int8", rng=0),
        lambda: fastrnn.LSTM(7, 40, zoneout=0.1, weight_dtype="int8", rng=0),
        lambda: fastrnn.Recurrent(catalogue.min_gru, 7, 40, weight_dtype="int8", rng=0),
        lambda: fastrnn.Recurrent(catalogue.minimal_gated_unit, 7, 40, weight_dtype="int8", rng=0),
        lambda: fastrnn.Recurrent(catalogue.slstm, 7, 40, weight_dtype="int8", rng=0),
        lambda: fastrnn.Recurrent(catalogue.leaky_esn, 7, 40, weight_dtype="int8", rng=0),
    ],
    ids=["two directions", "projection", "zoneout", "min_gru", "minimal_gated_unit", "slstm", "leaky_esn"],
)
def test_same_bits_of_other_layers(make: Any, native: str) -> None:
    net, x = make(), np.random.default_rng(3).standard_normal((15, 4, 7), dtype=np.float32)
    lengths = np.array([15, 3, 0, 8])
    with fastrnn.use_isa(ISAS[0]):
        whole, padded = net(x)[0], net(x, lengths=lengths)[0]
    assert_same_bits({"y": net(x)[0]}, {"y": whole})
    assert_same_bits({"y": net(x, lengths=lengths, threads=2)[0]}, {"y": padded})


@NATIVE
def test_same_bits_in_a_pool(native: str) -> None:
    net = fastrnn.LSTM(5, 33, weight_dtype="int8", rng=0)
    x = np.random.default_rng(0).standard_normal((6, 8, 5), dtype=np.float32)
    pool = net.pool(8)
    ids = [pool.open() for _ in range(8)]
    assert_same_bits({"y": np.stack([pool.step(ids, x_t) for x_t in x])}, {"y": net(x)[0]})


@pytest.mark.parametrize("cell", CELLS)
def test_other_backends(cell: str, implementation: str) -> None:
    """One step differs only by the cell: the products are the same."""
    net = layer(cell, 21, 34, weight_dtype="int8")
    x = np.random.default_rng(5).standard_normal((1, 6, 21), dtype=np.float32)
    state = states(cell, 1, 6, 34)

    def reference() -> Arrays:
        with fastrnn.use_backend("numpy"):
            return named(*net(x, as_given(state)))

    for name, value in reference().items():
        assert relative_error(named(*net(x, as_given(state)))[name], value.astype(np.float64)) < 1e-6, name


def test_rounding() -> None:
    """Rounded once to the nearest multiple of a scale of 17 bits."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((50, 37), dtype=np.float32) * np.float32(10.0) ** rng.integers(-20, 20, (50, 1))
    codes, scales = int8_codes(a.astype(np.float32))
    assert np.all(np.abs(codes).max(axis=1) == 127)
    assert np.all(scales.view(np.uint32) % 128 == 0)
    rounded = np.asarray(int8(a.astype(np.float32)))
    assert np.array_equal(rounded.astype(np.float64), codes.astype(np.float64) * scales.astype(np.float64))
    assert np.all(np.abs(rounded - a) <= scales * 0.5000001)
    assert_same_bits({"a": np.asarray(int8(rounded))}, {"a": rounded})


def test_rows_of_zeros_and_of_nan() -> None:
    rows = np.array([[0, -0.0, 0], [1e-31, 0, -1e-35], [1, np.nan, 2], [np.inf, 1, 2], [3e38, 1, 0]], np.float32)
    rounded = np.asarray(int8(rows))
    assert np.isnan(rounded[2:4]).all()
    assert not rounded[:2].any()
    assert rounded[4, 0] == pytest.approx(3e38, rel=1e-2)
    assert rounded[4, 1] == 0


def test_nan_and_infinity_propagate(implementation: str) -> None:
    """From an input to its own row, from a weight to its unit."""
    net = fastrnn.RNN(9, 5, activation="identity", weight_dtype="int8", rng=0)
    x = np.random.default_rng(0).standard_normal((1, 4, 9), dtype=np.float32)
    plain = net(x)[0]
    x[0, 1, 8], x[0, 2, 0] = np.nan, -np.inf
    y = net(x)[0][0]
    assert np.isnan(y[1:3]).all()
    assert_same_bits({"y": y[[0, 3]]}, {"y": plain[0, [0, 3]]})
    own = net.state_dict()
    own["weight_ih_l0"][3, 2] = np.inf
    net.load_state_dict(own)
    y = net(x)[0][0, 0]
    assert np.isnan(y[3])
    assert np.isfinite(np.delete(y, 3)).all()


def test_zero_inputs(implementation: str) -> None:
    net = fastrnn.RNN(9, 5, activation="identity", weight_dtype="int8", rng=0)
    own = net.state_dict()
    x = np.zeros((1, 2, 9), np.float32)
    x[0, 1] = 1e-32
    expected = np.tile(own["bias_ih_l0"] + own["bias_hh_l0"], (2, 1))
    assert_same_bits({"y": net(x)[0][0]}, {"y": expected})


@NATIVE
def test_memory_is_a_quarter() -> None:
    """A layer and its packed weights, after a call."""

    def held(net: Any) -> int:
        tracemalloc.start()
        own = copy.deepcopy(net)
        own(np.zeros((1, 1, 256), np.float32))
        n = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return n

    net = fastrnn.LSTM(256, 256, rng=0)
    small = fastrnn.quantize(net)
    assert held(small) < 0.28 * held(net)


def test_weights_cannot_be_changed_in_place() -> None:
    net = fastrnn.LSTM(5, 7, weight_dtype="int8", rng=0)
    with pytest.raises(ValueError, match="read-only"):
        net.parameters()["weight_hh_l0"][0] = 1
    model = fastrnn.Sequential([net, fastrnn.Dense(7, 2, rng=0)])
    other = fastrnn.Sequential([fastrnn.LSTM(5, 7, rng=1), fastrnn.Dense(7, 2, rng=1)])
    model.load_state_dict(other.state_dict())
    assert_same_bits(model.state_dict(), fastrnn.quantize(other).state_dict())


def test_state_dict_has_the_rounded_weights() -> None:
    net, full = layer("lstm", 5, 7, weight_dtype="int8"), layer("lstm", 5, 7).state_dict()
    net.load_state_dict(full)
    for name, value in net.state_dict().items():
        assert_same_bits({name: value}, {name: dequantized(int8(full[name])) if "weight" in name else full[name]})


def test_new_weights_are_used_at_once(backend: str) -> None:
    net = fastrnn.LSTM(5, 7, weight_dtype="int8", rng=0)
    x = np.random.default_rng(0).standard_normal((3, 2, 5), dtype=np.float32)
    stream = net.stream(2)
    net(x)
    other = fastrnn.LSTM(5, 7, weight_dtype="int8", rng=1)
    net.load_state_dict(other.state_dict())
    assert_same_bits({"y": net(x)[0]}, {"y": other(x)[0]})
    assert_same_bits({"y": stream.step(x[0])}, {"y": other(x[:1])[0][0]})


def test_unsupported_options_raise_an_error() -> None:
    with pytest.raises(ValueError, match='weight_dtype: expected None, "bfloat16" or "int8", got'):
        fastrnn.LSTM(3, 4, weight_dtype="int4")
    with pytest.raises(ValueError, match="weight_dtype: int8 needs dtype float32, got float64"):
        fastrnn.LSTM(3, 4, weight_dtype="int8", dtype=np.float64)
    with pytest.raises(ValueError, match="heads: not supported with weight_dtype int8; expected 1, got 2"):
        fastrnn.LSTM(3, 4, heads=2, weight_dtype="int8")
    with pytest.raises(ValueError, match="input_size: expected at most 65536 with weight_dtype int8, got 65537"):
        fastrnn.RNN(65537, 1, weight_dtype="int8")
    with pytest.raises(ValueError, match="weight_dtype: int8 is not supported for layer_norm_lstm"):
        fastrnn.Recurrent(catalogue.layer_norm_lstm, 3, 4, weight_dtype="int8")
    with pytest.raises(ValueError, match="weight_dtype: a layer with int8 weights is for inference only"):
        fastrnn.LSTM(3, 4, weight_dtype="int8").forward(np.zeros((1, 1, 3), np.float32), training=True)


def test_quantize() -> None:
    """A copy of every recurrent layer of a model; the model itself does not change."""
    inner = fastrnn.Sequential([fastrnn.GRU(8, 9, reset_after=True, rng=1), fastrnn.LayerNormalization(9)])
    model = fastrnn.Sequential([fastrnn.LSTM(5, 8, 2, dropout=0.5, rng=0), inner, fastrnn.Dense(9, 3, rng=2)])
    model.layers[0].trainable = False
    before = model.state_dict()
    small = fastrnn.quantize(model, "int8")
    assert [layer.weight_dtype for layer in (small.layers[0], small.layers[1].layers[0])] == ["int8"] * 2
    assert (small.layers[0].trainable, small.layers[0].dropout) == (False, 0.5)
    own = fastrnn.LSTM(5, 8, 2, weight_dtype="int8", rng=0)
    x = np.random.default_rng(0).standard_normal((4, 6, 5), dtype=np.float32)
    assert_same_bits({"y": small.layers[0](x)[0]}, {"y": own(x)[0]})
    assert 1e-5 < relative_error(small.predict(x), model.predict(x).astype(np.float64)) < 0.05
    assert_same_bits(model.state_dict(), before)
    with pytest.raises(ValueError, match="weight_dtype: int8 needs dtype float32"):
        fastrnn.quantize(fastrnn.LSTM(2, 3, dtype=np.float64))
    with pytest.raises(TypeError, match="model: expected a layer or a Sequential of fastrnn, got str"):
        fastrnn.quantize("model")  # type: ignore[type-var]


def test_loaded_as_int8(tmp_path: Path) -> None:
    layer = fastrnn.LSTM(5, 8, rng=0)
    fastrnn.save(tmp_path / "layer.safetensors", layer)
    loaded = fastrnn.load(tmp_path / "layer.safetensors", weight_dtype="int8")
    assert_same_bits(loaded.parameters(), fastrnn.quantize(layer).parameters())
    fastrnn.save(tmp_path / "small.safetensors", loaded)
    again = fastrnn.load(tmp_path / "small.safetensors")
    assert repr(again) == repr(loaded)
    assert_same_bits(again.parameters(), loaded.parameters())


def test_file_size_is_a_quarter(tmp_path: Path) -> None:
    model = fastrnn.Sequential([fastrnn.LSTM(200, 100, rng=0), fastrnn.Sequential([fastrnn.RNN(100, 90, rng=1)])])
    small = fastrnn.quantize(model)
    model.save(tmp_path / "large.safetensors")
    small.save(tmp_path / "small.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "large")]
    assert sizes[0] < 0.28 * sizes[1]
    again = fastrnn.load(tmp_path / "small.safetensors")
    assert_same_bits(again.parameters(), small.parameters())
    small.save_weights(tmp_path / "weights.safetensors")
    again.layers[0].load_state_dict(fastrnn.LSTM(200, 100, rng=5).state_dict())
    again.load_weights(tmp_path / "weights.safetensors")
    assert_same_bits(again.parameters(), small.parameters())


def test_a_file_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    layer = fastrnn.LSTM(3, 4, weight_dtype="int8", rng=0)
    own = layer.state_dict()
    own["weight_ih_l0"][2, 1] = np.nan
    layer.load_state_dict(own)
    fastrnn.save(tmp_path / "layer.safetensors", layer)
    assert_same_bits(fastrnn.load(tmp_path / "layer.safetensors").parameters(), layer.parameters())


@pytest.mark.parametrize("names", [["0.weight_hh_l0"], ["weight_ih_l0"] * 2, ["bias_ih_l0"], [["weight_ih_l0"]], 7])
def test_a_file_with_other_int8_matrices(names: Any, tmp_path: Path) -> None:
    layer = fastrnn.LSTM(3, 4, weight_dtype="int8", rng=0)
    fastrnn.save(tmp_path / "layer.safetensors", layer)
    tensors, metadata = weight_files.opened("path", tmp_path / "layer.safetensors")
    plain = json.loads(metadata["fastrnn"])
    assert plain["int8"] == ["weight_ih_l0", "weight_hh_l0"]
    weight_files.write(tmp_path / "layer.safetensors", tensors, plain | {"int8": names})
    with pytest.raises(ValueError, match=r"^path: .*layer.safetensors: .*: expected an int8 matrix and fl"):
        fastrnn.load(tmp_path / "layer.safetensors")
