"""Layers with recurrent dropout, zoneout and weight drop: inference, training with fit, files, and errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.recurrent import problem, results
from support.regularised import ONE_EACH, RATES, made, names_taken
from support.stacks import layer, named, states
from support.tolerance import assert_close, assert_same_bits, relative_error

import fastrnn
import fastrnn.inspect
from fastrnn import training


@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.5}, {"weight_drop": 0.5}, {"zoneout": (0.0, 0.0)}])
def test_inference_ignores_dropout(options: dict[str, Any], backend: str) -> None:
    plain, net = layer("lstm", 3, 9, 2), layer("lstm", 3, 9, 2, **options)
    x = np.random.default_rng(0).standard_normal((6, 2, 3), np.float32)
    expected = named(*plain(x))
    for _ in range(3):  # the third call is prepared
        assert_same_bits(named(*net(x)), expected)
    stream = net.stream(2)
    assert_same_bits({"y": np.array([stream.step(x_t) for x_t in x])}, {"y": expected["y"]})
    if not any(options.values()) or "zoneout" in options:
        given, d = problem(net, 6, 2, 0)
        assert_same_bits(results(net, given, d, 0), results(plain, given, d, 0))


def test_inference_of_zoneout_is_its_expectation(backend: str) -> None:
    zoneout = (0.3, 0.6)
    net = fastrnn.LSTM(3, 5, zoneout=zoneout, dtype=np.float64, rng=0)
    W, U, b, b_rec = net.get_weights()
    x = np.random.default_rng(0).standard_normal((6, 2, 3))
    state = states("lstm", 2, 5, dtype=np.float64)
    y, final = net(x, tuple([s[None] for s in state]))
    stream = net.stream(2)
    stream.state = tuple([s[None] for s in state])
    for t in range(6):
        after = fastrnn.lstm_step(x[t], *state, W, U, b, b_rec)
        state = tuple([p * old + (1 - p) * new for p, old, new in zip(zoneout, state, after, strict=True)])
        assert_close({"y": y[t]}, {"y": state[0]})
        assert_same_bits({"y": stream.step(x[t])}, {"y": y[t]})
    assert_close(named(y[-1], final), named(state[0], tuple([s[None] for s in state])))
    assert_same_bits(named(*net(x)), named(*net(x)))


def test_mean_over_zoneout_masks_is_the_expectation() -> None:
    """The mean over many masks of one step equals inference, within its own spread."""
    many = 20000
    net = fastrnn.GRU(3, 4, reset_after=True, zoneout=0.3, dtype=np.float64, rng=0)
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((1, 1, 3)).repeat(many, 1), rng.standard_normal((1, 1, 4)).repeat(many, 1)
    y = net.forward(x, state=h, training=True, rng=1).y[0]
    spread = y.std(axis=0) / many**0.5
    assert (spread > 0).all()
    assert (abs(y.mean(axis=0) - net(x, h)[0][0, 0]) < 5 * spread).all()


def test_inspect_sees_inference() -> None:
    net = fastrnn.GRU(3, 5, 2, reset_after=True, dtype=np.float64, rng=0, dropout=0.5, **RATES)
    x = np.random.default_rng(0).standard_normal((6, 2, 3))
    found = fastrnn.inspect.gates(net, x)
    assert list(found) == ["r", "z", "n", "h"]
    assert_close({"h": found["h"]}, {"h": net(x)[0]})
    norms = fastrnn.inspect.gradient_norms(net, x)
    assert norms.shape == (6, 2)
    np.testing.assert_allclose(norms[-1], 1, rtol=1e-12)


def test_bfloat16_weights_infer(backend: str) -> None:
    net = fastrnn.LSTM(8, 40, weight_dtype="bfloat16", rng=0, **RATES)
    wide = fastrnn.LSTM(8, 40, **RATES)
    wide.load_state_dict(net.state_dict())
    x = np.random.default_rng(0).standard_normal((5, 2, 8), np.float32)
    assert relative_error(net(x)[0], wide(x)[0].astype(np.float64)) < 2e-2
    with pytest.raises(ValueError, match="weight_dtype"):
        net.forward(x, training=True)


def mean_task() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((64, 10, 3), np.float32)
    return x, x.mean(axis=(1, 2))[:, None] * 5


def model(seed: int, **options: Any) -> training.Sequential:
    lstm = fastrnn.LSTM(3, 16, return_sequences=False, initializer="keras", rng=seed, **options)
    made = training.Sequential([lstm, fastrnn.Dense(lstm.output_shape((1, 1, 3))[-1], 1, rng=seed + 1)])
    made.compile(training.Adam(0.01), "mse")
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [{n: r / 2} for n, r in RATES.items()] + [{n: 0.1 for n in RATES}, {"proj_size": 6}, {"heads": 4}]
)
def test_fit_learns(options: dict[str, Any], seed: int) -> None:
    x, y = mean_task()
    net = model(seed, **options)
    before = net.evaluate(x, y)["loss"]
    net.fit(x, y, epochs=30, batch_size=16, rng=seed)
    assert net.evaluate(x, y)["loss"] < 0.1 * before


def test_rng_determines_the_training() -> None:
    x, y = mean_task()
    nets = [model(0, **RATES) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        net.fit(x, y, epochs=2, rng=seed)
    assert_same_bits(nets[0].state_dict(), nets[1].state_dict())
    assert any((a != b).any() for a, b in zip(nets[0].get_weights(), nets[2].get_weights(), strict=True))


@pytest.mark.parametrize("cell", ["lstm", names_taken], ids=str)
def test_copies_and_files_have_the_same_masks(cell: Any, tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("safetensors")
    net = made(cell, 3, 5, 2, rng=0, **RATES | ({"zoneout": (0.3, 0.1)} if cell == "lstm" else {}))
    path = tmp_path / "layer.safetensors"
    fastrnn.save(path, net)
    given, d = problem(net, 6, 4, 0)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fastrnn.load(path, cell=names_taken)):
        assert repr(twin) == repr(net)
        assert {name: getattr(twin, name) for name in RATES} == {name: getattr(net, name) for name in RATES}
        assert_same_bits(results(twin, given, d, 1), results(net, given, d, 1))
        e = {name: given[name] for name in net.stack.cell.inputs} or None
        assert_same_bits({"y": twin(given["x"], e=e)[0]}, {"y": net(given["x"], e=e)[0]})


def test_repr_shows_the_rates() -> None:
    net = fastrnn.LSTM(3, 4, recurrent_dropout=0.1, zoneout=(0, 0.2), weight_drop=0.3)
    said = "recurrent_dropout=0.1, zoneout=(0.0, 0.2), weight_drop=0.3"
    assert repr(net) == f"LSTM(3, 4, {said}, dtype=float32) [lstm]"


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [1.0, -0.1, np.nan, "a", True, None])
def test_wrong_rates_are_refused(name: str, value: Any) -> None:
    error = ValueError if isinstance(value, float) else TypeError
    for given in [value, (0.1, value)] if name == "zoneout" else [value]:
        with pytest.raises(error, match=f"^{name}: expected a number"):
            fastrnn.LSTM(3, 4, **{name: given})


def test_cells_without_products_or_states_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"^zoneout: .* one for each of the states h, c, got \(0.1,\)"):
        fastrnn.LSTM(3, 4, zoneout=(0.1,))
    for name in ("recurrent_dropout", "weight_drop"):
        with pytest.raises(ValueError, match=f"^{name}: cell min_gru has no product with U"):
            fastrnn.Recurrent(own_cells.min_gru, 3, 4, **{name: 0.1})


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("options", ONE_EACH)
def test_pytorch_cannot_express_them(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=f"^{name}: PyTorch cannot express"):
        fastrnn.to_torch(fastrnn.LSTM(3, 4, **options))
