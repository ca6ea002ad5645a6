"""Cells with extra inputs inside a `Sequential`: forward, gradients, fit, predict, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.models import K, N, T, classes, inputs, steps, targets
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.cells import exp, tanh
from fastrnn.training import Sequential

H = 5


@fastrnn.cell(gates="n", states="h", inputs=("dt",))
def decaying(x: Any, U: Any, s: Any, e: Any) -> Any:
    """The state decays with the time since the last step."""
    return exp(-e.dt) * s.h + tanh(x.n + U.n @ s.h)


@fastrnn.cell(gates="n", states="h", inputs=("noise", "dt"))
def noisy(x: Any, U: Any, s: Any, e: Any) -> Any:
    return tanh(x.n + U.n @ (s.h / (1 + e.dt)) + e.noise)


def extras(samples: int = N, length: int = T) -> dict[str, np.ndarray]:
    """Return a time for every step, shared by all units, and a noise for every sequence and unit."""
    rng = np.random.default_rng(9)
    return {"dt": rng.random((samples, length, 1)), "noise": rng.standard_normal((samples, H))}


def layers() -> list[Any]:
    """Return models in either layout: with extra inputs in a nested model, and with layers without any between."""
    first = fastrnn.Recurrent(decaying, 3, H, dtype=np.float64, batch_first=True, rng=1)
    second = fastrnn.Recurrent(noisy, H, H, dtype=np.float64, rng=2)
    dense = [fastrnn.Dense(H, H, "tanh", dtype=np.float64, rng=3), fastrnn.Dense(H, K, dtype=np.float64, rng=4)]
    return [first, Sequential([dense[0], second]), dense[1]]


def model(optimizer: Any = None) -> Sequential:
    made = Sequential(layers())
    made.compile(optimizer or training.SGD(0.1, momentum=0.9), "mse")
    return made


@pytest.mark.parametrize("lengths", [None, "some"])
def test_gradients_are_differences(lengths: Any) -> None:
    """Central differences along a random direction of each array; none is 0."""
    lengths, rng = steps() if lengths else None, np.random.default_rng(0)
    net, x, e, dy = model(), inputs(), extras(), targets(N, T)
    if lengths is not None:
        dy[np.arange(T) >= lengths[:, None]] = 0
    out = net.forward(x, lengths=lengths, training=True, e=e)
    back: Any = net.backward(dy, out.cache)
    assert net.inputs == ("dt", "noise")
    assert back.de.keys() == e.keys()
    found = {"x": back.dx, **back.de, **back.grads}
    for name, a in {"x": x, **e, **net.parameters()}.items():
        direction, values = rng.standard_normal(a.shape), []
        for change in (1e-6, -2e-6, 1e-6):
            a += change * direction
            net.changed()
            values.append(float((dy * net.forward(x, lengths=lengths, e=e).y).sum()))
        expected = (values[0] - values[1]) / 2e-6
        assert abs(expected) > 1e-3
        assert float((found[name] * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8), name


def test_fit_equals_a_loop_over_the_layers() -> None:
    """By hand, time-major, with the gradients of each layer."""
    net, x, y, e = model(), inputs(), targets(N, T), extras()
    history = net.fit(x, y, epochs=2, batch_size=4, shuffle=False, e=e)
    first, (dense, second), last = (layer.layers if isinstance(layer, Sequential) else layer for layer in layers())
    names = {"0": first, "1.0": dense, "1.1": second, "2": last}
    parameters = {f"{i}.{name}": p for i, layer in names.items() for name, p in layer.parameters().items()}
    sgd, mse, losses = training.SGD(0.1, momentum=0.9), training.MeanSquaredError(), []
    for _ in range(2):
        total = 0.0
        for start in range(0, N, 4):
            which = slice(start, start + 4)
            dt, noise = e["dt"][which], e["noise"][which]
            h, _, c0 = first.forward(x[which], training=True, e={"dt": dt})
            h, _, c1 = dense.forward(h.swapaxes(0, 1), training=True)
            h, _, c2 = second.forward(h, training=True, e={"noise": noise, "dt": dt.swapaxes(0, 1)})
            p, _, c3 = last.forward(h, training=True)
            loss, d = mse.gradient(p, y[which].swapaxes(0, 1))
            grads = {}
            for i, layer, cache in (("2", last, c3), ("1.1", second, c2), ("1.0", dense, c1)):
                d, _, own = layer.backward(d, cache)
                grads |= {f"{i}.{name}": g for name, g in own.items()}
            grads |= {f"0.{name}": g for name, g in first.backward(d.swapaxes(0, 1), c0).grads.items()}
            sgd.step(parameters, grads)
            for layer in names.values():
                layer.changed()
            total += loss * len(dt)
        losses.append(total / N)
    assert_close(net.parameters(), parameters)
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-12)


def test_every_form_of_extra_inputs() -> None:
    """Arrays with any padding, lists, batches, validation; the same predictions and metrics."""
    lengths, x, y, e = steps(), inputs(), targets(N, T), extras()
    past = (np.arange(T) >= lengths[:, None])[..., None]
    padded = {"dt": np.where(past, np.nan, e["dt"]), "noise": e["noise"]}
    x, y = np.where(past, np.nan, x), np.where(past, np.nan, y)
    lists = {"dt": [a[:n] for a, n in zip(e["dt"], lengths, strict=True)], "noise": e["noise"]}
    x_list, y_list = ([a[:n] for a, n in zip(whole, lengths, strict=True)] for whole in (x, y))
    batches = [
        {"x": x[i], "y": y[i], "lengths": lengths[i], "e": {name: a[i] for name, a in padded.items()}}
        for i in (slice(start, start + 4) for start in range(0, N, 4))
    ]
    options: dict[str, Any] = {"epochs": 2, "shuffle": False}
    given_twice = {"validation_data": iter(batches * 2), "validation_steps": 4}
    nets = [model() for _ in range(3)]
    histories = [
        nets[0].fit(x, y, lengths=lengths, e=padded, batch_size=4, validation_data=batches, **options),
        nets[1].fit(x_list, y_list, e=lists, batch_size=4, **options, **given_twice),
        nets[2].fit(batches, validation_data={"x": x, "y": y, "lengths": lengths, "e": padded}, **options),
    ]
    for net, history in zip(nets, histories, strict=True):
        assert_same_bits(net.state_dict(), nets[0].state_dict())
        assert history.history["loss"] == histories[0].history["loss"]
        np.testing.assert_allclose(history.history["val_loss"], histories[0].history["val_loss"], rtol=1e-12)
    net = nets[0]
    found = net.predict(x, lengths=lengths, e=padded, batch_size=4)
    assert_same_bits({"y": training.pad_sequences(net.predict(x_list, e=lists))[0]}, {"y": found})
    assert_same_bits({"y": net.predict(iter(batches))}, {"y": found})
    assert_close({"y": np.where(past, 0, net.forward(np.nan_to_num(x), e=e).y)}, {"y": found})
    assert net.evaluate(batches) == net.evaluate(x, y, lengths=lengths, e=padded, batch_size=4)
    other = net.predict(x, lengths=lengths, e={"dt": padded["dt"] + 1, "noise": e["noise"]})
    differs = (other != found).any(axis=2)
    np.testing.assert_array_equal(differs, ~past[..., 0] & (np.arange(T) > 0))  # at t = 0 there is no state


def test_truncated_windows_with_extra_inputs() -> None:
    """One long window gives the same; with validation_split and shuffling, too."""
    x, y, e = inputs(), targets(N, T), extras()
    once, cut = model(), model()
    once.fit(x, y, e=e, batch_size=4, rng=0)
    cut.fit(x, y, e=e, batch_size=4, rng=0, truncate=T)
    assert_same_bits(cut.state_dict(), once.state_dict())
    cut = model(training.SGD(0.0))
    history = cut.fit(x, y, e=e, truncate=2, validation_split=0.4).history
    kept = {name: a[7:] for name, a in e.items()}
    assert history["val_loss"][-1] == cut.evaluate(x[7:], y[7:], e=kept)["loss"]
    first = {name: a[:7] for name, a in e.items()}
    np.testing.assert_allclose(history["loss"], cut.evaluate(x[:7], y[:7], e=first)["loss"], rtol=1e-12)


def given(**changes: Any) -> dict[str, Any]:
    return {name: a for name, a in (extras() | changes).items() if a is not None}


X, Y, SHORT = inputs(), targets(N, T), [np.ones((n, 1)) for n in (7, 2, *[7] * 11)]
AXES = r"\(N, T, H\), \(N, T, 1\), .* with N, T = 13, 7"

ERRORS: dict[str, Callable[[Sequential], Any]] = {
    r"e: missing 'noise'": lambda m: m.fit(X, Y, e=given(noise=None)),
    r"e: missing 'dt', 'noise'": lambda m: m.predict(X),
    r"e: missing 'dt', 'noise' ": lambda m: m.forward(X),
    r"e: unexpected 'other'": lambda m: m.predict(X, e=given(other=np.ones((N, 1)))),
    r"e: expected a mapping from names to arrays, got ndarray": lambda m: m.predict(X, e=extras()["dt"]),  # type: ignore[arg-type]
    r"e: unexpected 'dt', 'noise'": lambda m: Sequential([fastrnn.LSTM(3, 4)]).predict(X.astype("f"), e=extras()),
    rf"e 'dt': expected shape {AXES}, got \(13, 6, 1\)": lambda m: m.predict(X, e=given(dt=extras(N, 6)["dt"])),
    r"e 'dt': expected shape .*, got \(12, 1\)": lambda m: m.predict(X, e=given(dt=np.ones((12, 1)))),
    r"e 'dt': expected 7 steps in sequence 1, as x has, got 2": lambda m: m.predict(X, e=given(dt=SHORT)),
    r"layer 0 \(Recurrent\): dt: expected one of the shapes": lambda m: m.predict(X, e=given(dt=np.ones((N, T, 2)))),
    r"layer 0 \(Recurrent\): dt: expected dtype float64, .*, got float32": lambda m: m.predict(
        X, e=given(dt=np.ones((N, T, 1), np.float32))
    ),
    r"validation_data e: missing 'dt', 'noise'": lambda m: m.fit(X, Y, e=extras(), validation_data=(X, Y)),
    r"e: expected None, because x yields batches with their own e": lambda m: m.fit([(X, Y)], e=extras()),
    r"batch 1 e: missing 'dt', 'noise'": lambda m: m.fit([(X, Y)]),
    r"validation_data: expected .* a dict of x, y, lengths, sample_weight, e, got a dict of x": lambda m: m.fit(
        X, Y, e=extras(), validation_data={"x": X}
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message.rstrip()}"):
        ERRORS[message](model())


def test_infinite_extra_inputs_raise_an_error() -> None:
    e = extras()
    e["noise"][3] = np.nan
    with pytest.raises(FloatingPointError, match=r"^loss: nan in epoch 1, batch 1: e 'noise' holds NaN or infinity"):
        model().fit(inputs(), targets(N, T), e=e)


def test_extra_inputs_with_classes_and_weights() -> None:
    """A model that predicts once per sequence, from lists."""
    layer = fastrnn.Recurrent(decaying, 3, H, return_sequences=False, dtype=np.float64, rng=1)
    net = Sequential([layer, fastrnn.Dense(H, K, "softmax", dtype=np.float64, rng=2)])
    net.compile("adam", "categorical_crossentropy", ["accuracy"])
    e = {"dt": [a[:n] for a, n in zip(extras()["dt"], steps(), strict=True)]}
    x = [a[:n] for a, n in zip(inputs(), steps(), strict=True)]
    net.fit(x, classes(N), e=e, sample_weight=np.ones(N), epochs=2)
    padded = {"dt": extras()["dt"]}
    found = net.predict(inputs(), lengths=steps(), e=padded)
    assert_same_bits({"y": net.predict(x, e=e)}, {"y": found})
