"""Sample and class weights, ignored classes and missing targets.

The mean is that of PyTorch's CrossEntropyLoss, ``sum(w * loss) / sum(w)``; Keras calls it "mean_with_sample_weight".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.batches import LOSSES, METRICS, SIZES, batch, differences, ragged
from support.models import K, N, T, classes, every_step, inputs, last_step, steps, targets
from support.tolerance import assert_close, assert_same_bits, relative_error

import fastrnn
from fastrnn import training
from fastrnn.training import Accuracy, BinaryAccuracy, CategoricalCrossentropy, MeanAbsoluteError, Sequential

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # from Keras and its backends

SEEDS = range(3)


def weights_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return positive weights, a third of them 0."""
    rng = np.random.default_rng([seed, 1])
    return rng.random(shape) * 3 * (rng.random(shape) > 0.3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(4, 3, 5), (7, 3)])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_differences(name: str, shape: tuple[int, ...], seed: int) -> None:
    """With weights, lengths and missing targets."""
    f, (p, t), w = LOSSES[name], batch(name, shape, seed=seed), weights_of(shape[:-1], seed)
    lengths = ragged(*shape[:2], seed) if len(shape) == 3 else None
    missing = np.random.default_rng(seed).random(shape) < 0.2
    counts = (0, int(np.argmax(lengths))) if lengths is not None else (0,)  # at least this step counts
    w[counts], missing[counts] = 1, False
    t[missing] = np.nan
    value, gradient = f.gradient(p, t, lengths, w)
    expected = differences(lambda p: f(p, t, lengths, w), p)
    assert value == f(p, t, lengths, w) > 0
    assert np.linalg.norm(expected) > 1e-3
    assert relative_error(gradient, expected) < 1e-7


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_weighted_mean(name: str, shape: tuple[int, ...], seed: int) -> None:
    """The weighted mean of the terms; integer weights are repetitions; equal weights have no effect."""
    f, (p, t) = LOSSES[name], batch(name, shape, seed=seed)
    w = np.random.default_rng(seed).integers(0, 4, shape[:-1])
    w.flat[0] = 2
    value, gradient = f.gradient(p, t, None, w)
    terms = f.terms(p.reshape(-1, shape[-1]), t.reshape(-1, shape[-1]))[0]
    mean = terms if terms.ndim == 1 else terms.mean(axis=1)
    assert value == pytest.approx(np.average(mean, weights=w.ravel()), rel=1e-12)
    rows = np.repeat(np.arange(w.size), w.ravel())
    again, repeated = f.gradient(*(a.reshape(-1, shape[-1])[rows] for a in (p, t)))
    assert again == pytest.approx(value, rel=1e-12)
    summed = np.zeros((w.size, shape[-1]))
    np.add.at(summed, rows, repeated)
    assert relative_error(gradient.reshape(summed.shape), summed) < 1e-12
    for m in METRICS.values():
        total, count = m(p, t, None, w)
        expected = m(*(a.reshape(-1, shape[-1])[rows] for a in (p, t)))
        assert total / count == pytest.approx(expected[0] / expected[1], rel=1e-12)
        assert count == expected[1]
    assert f(p, t, None, np.full(shape[:-1], 0.3)) == pytest.approx(f(p, t), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_values_with_weight_0_have_no_effect(name: str, dtype: Any) -> None:
    f, (p, t), w = LOSSES[name], batch(name, (9, 5, 3), dtype), weights_of((9, 5))
    value, gradient = f.gradient(p, t, None, w)
    p[w == 0], t[w == 0] = np.nan, 99
    again, bits = f.gradient(p, t, None, w)
    assert (again, gradient.dtype) == (value, dtype)
    assert_same_bits({"gradient": bits}, {"gradient": gradient})
    assert not gradient[w == 0].any()
    assert all(np.isfinite(m(p, t, None, w)).all() for m in METRICS.values())


def test_missing_elements() -> None:
    """The element for elementwise losses, the step for losses of steps; also for metrics."""
    p, t = batch("mse", (4, 3))
    t[1, 0] = t[2] = np.nan
    error = p - t
    value, gradient = LOSSES["mse"].gradient(p, t)
    assert value == pytest.approx(np.nanmean(error**2), rel=1e-12)
    np.testing.assert_allclose(gradient, np.nan_to_num(2 * error / 8), rtol=1e-12)
    assert MeanAbsoluteError()(p, t) == pytest.approx((np.nansum(np.abs(error)), 8), rel=1e-12)
    p, t = batch("cce", (4, 3))
    t[1, 0] = t[2] = np.nan
    value, gradient = LOSSES["cce"].gradient(p, t)
    expected, rows = LOSSES["cce"].gradient(p[[0, 3]], t[[0, 3]])
    assert value == expected
    assert_same_bits({"gradient": gradient[[0, 3]]}, {"gradient": rows})
    assert not gradient[[1, 2]].any()
    assert Accuracy()(p, t) == Accuracy()(p[[0, 3]], t[[0, 3]])
    right = (p > 0.5) == (t > 0.5)
    assert BinaryAccuracy()(p, t) == (right[~np.isnan(t)].sum(), 8)


# Comparisons with PyTorch and Keras


@pytest.mark.parametrize("seed", SEEDS)
def test_class_weight_and_ignore_index_are_torch(seed: int, oracle: Callable[[str], Any]) -> None:
    """Fifty steps of a model, compared with CrossEntropyLoss(weight, ignore_index)."""
    torch = oracle("torch")
    rng = np.random.default_rng(seed)
    x, c = rng.standard_normal((N, T, 3)), rng.integers(0, K, (N, T))
    c[rng.random((N, T)) < 0.3] = -100
    weight = rng.random(K) * 3
    model = Sequential([fastrnn.RNN(3, 5, dtype=np.float64, rng=seed), fastrnn.Dense(5, K, dtype=np.float64, rng=seed)])
    rnn, dense = torch.nn.RNN(3, 5, batch_first=True).double(), torch.nn.Linear(5, K).double()
    for i, module in enumerate((rnn, dense)):
        module.load_state_dict({n: torch.tensor(a) for n, a in model.layers[i].state_dict().items()})
    model.compile(training.Adam(0.02), CategoricalCrossentropy(from_logits=True), ["accuracy"])
    got = model.fit(x, c, 50, batch_size=N, shuffle=False, class_weight=dict(enumerate(weight))).history
    loss = torch.nn.CrossEntropyLoss(torch.tensor(weight), ignore_index=-100)
    optimizer, losses = torch.optim.Adam([*rnn.parameters(), *dense.parameters()], 0.02), []
    for _ in range(50):
        logits = dense(rnn(torch.tensor(x))[0])
        value = loss(logits.flatten(0, 1), torch.tensor(c).flatten())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.98 * losses[0]
    np.testing.assert_allclose(got["loss"], losses, rtol=1e-9)
    right = logits.detach().numpy().argmax(axis=-1) == c
    w = np.where(c < 0, 0, weight[np.maximum(c, 0)])
    assert got["accuracy"][-1] == pytest.approx(np.average(right, weights=w), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(6, 5, 4), (7, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_keras(name: str, shape: tuple[int, ...], seed: int, keras: Any) -> None:
    kind, options = {
        "mse": ("MeanSquaredError", {}),
        "bce": ("BinaryCrossentropy", {}),
        "bce_logits": ("BinaryCrossentropy", {"from_logits": True}),
        "cce": ("CategoricalCrossentropy", {}),
        "cce_logits": ("CategoricalCrossentropy", {"from_logits": True}),
    }[name]
    p, t = batch(name, shape, seed=seed)
    if name == "cce":  # Keras divides by the sum first
        p /= p.sum(axis=-1, keepdims=True)
    w = weights_of(shape[:-1], seed)
    theirs = getattr(keras.losses, kind)(reduction="mean_with_sample_weight", dtype="float64", **options)
    assert LOSSES[name](p, t, None, w) == pytest.approx(float(theirs(t, p, sample_weight=w)), rel=1e-6)
    metric = keras.metrics.MeanAbsoluteError(dtype="float64")
    metric.update_state(t, p, sample_weight=w)
    total, count = METRICS["mae"](p, t, None, w)
    assert total / count == pytest.approx(float(metric.result()), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_class_weight_is_keras(seed: int, keras: Any) -> None:
    """Only the given classes; there the loss of `fit` is divided by the number of samples, not by their weights."""
    c = np.random.default_rng(seed).integers(0, K, N)
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(K, activation="softmax")])
    made.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    x, class_weight = np.random.default_rng(seed).standard_normal((N, 4)).astype(np.float32), {0: 2.0, 2: 0.25}
    theirs = made.fit(x, c, batch_size=N, verbose=0, class_weight=class_weight).history
    ours = fastrnn.from_keras(made)
    model = ours if isinstance(ours, Sequential) else Sequential([ours])
    model.compile(training.SGD(0.0), "categorical_crossentropy", ["accuracy"])
    got = model.fit(x, c, batch_size=N, class_weight=class_weight).history
    w = np.array([class_weight.get(int(k), 1.0) for k in c])
    assert got["loss"][0] * w.sum() / N == pytest.approx(theirs["loss"][0], rel=1e-5)
    assert got["accuracy"][0] == pytest.approx(theirs["accuracy"][0], rel=1e-5)


# Training


def trained(model: Sequential, y: np.ndarray, loss: Any, **options: Any) -> tuple[dict[str, np.ndarray], Any]:
    model.compile(training.Adam(0.01), loss, ["accuracy" if y.dtype.kind == "i" else "mae"])
    history = model.fit(inputs(), y, epochs=2, batch_size=4, rng=0, **options).history
    return model.state_dict(), history


@pytest.mark.parametrize("lengths", [None, "some"])
def test_all_ways_to_leave_out_a_target_agree(lengths: Any) -> None:
    """The same bits for NaN, a weight of 0 with any value, and an ignored class with any number."""
    lengths = steps() if lengths else None
    y, out = targets(N, T), np.random.default_rng(3).random((N, T)) < 0.3
    w = np.where(out, 0.0, 1.0)
    expected = trained(every_step(), y, "mse", lengths=lengths, sample_weight=w)
    for other in (np.nan, 1e300, np.inf):
        again = trained(every_step(), np.where(out[..., None], other, y), "mse", lengths=lengths, sample_weight=w)
        assert_same_bits(again[0], expected[0])
        assert again[1] == expected[1]
    missing = trained(every_step(), np.where(out[..., None], np.nan, y), "mse", lengths=lengths)
    assert_close(missing[0], expected[0])
    c, loss = classes(N, T), CategoricalCrossentropy(from_logits=True)
    expected = trained(every_step(), c, loss, lengths=lengths, sample_weight=w)
    for index in (-100, -1, 77):
        options = {} if index == -100 else {"ignore_index": index}
        again = trained(every_step(), np.where(out, index, c), loss, lengths=lengths, **options)
        assert_same_bits(again[0], expected[0])
        assert again[1] == expected[1]


def test_weights_of_sequences_and_of_their_steps() -> None:
    w = np.random.default_rng(0).random(N)
    per_step = [np.full(n, v) for n, v in zip(steps(), w, strict=True)]
    padded = np.where(np.arange(T) < steps()[:, None], w[:, None], np.nan)
    results = [
        trained(every_step(), targets(N, T), "mse", lengths=steps(), sample_weight=one)
        for one in (w, w.tolist(), np.repeat(w[:, None], T, axis=1), padded, per_step)
    ]
    for weights, history in results[1:]:
        assert_same_bits(weights, results[0][0])
        assert history == results[0][1]


@pytest.mark.parametrize("seed", SEEDS)
def test_evaluation(seed: int) -> None:
    """Over all samples by hand, whatever the batches; that of `fit` is the same."""
    x, c, w = inputs(), classes(N, T), weights_of((N, T), seed)
    c[:, 0] = -1
    model = every_step()

    def most(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return np.asarray(y_pred.max(axis=1))

    model.compile(training.SGD(0.0), CategoricalCrossentropy(True), ["accuracy", Accuracy(), most])
    class_weight, options = {1: 3.0, 2: 0.5}, {"lengths": steps(), "sample_weight": w}
    got = model.evaluate(x, c, **options, class_weight=class_weight, ignore_index=-1, batch_size=4)
    y = model.predict(x)
    whole = w * np.array([1, 3, 0.5, 1])[np.maximum(c, 0)] * (c >= 0) * (np.arange(T) < steps()[:, None])
    log_p = y - np.log(np.exp(y).sum(axis=-1, keepdims=True))
    terms = {
        "loss": -np.take_along_axis(log_p, np.maximum(c, 0)[..., None], -1)[..., 0],
        "accuracy": y.argmax(axis=-1) == c,
        "most": y.max(axis=-1),
    }
    assert got == pytest.approx({name: np.average(a, weights=whole) for name, a in terms.items()}, rel=1e-12)
    history = model.fit(
        x, c, batch_size=3, rng=0, **options, class_weight=class_weight, ignore_index=-1,
        validation_data=(x, c, steps(), w),
    ).history  # fmt: skip
    for name, value in got.items():
        assert [history[name][0], history[f"val_{name}"][0]] == pytest.approx([value] * 2, rel=1e-12)


def test_weights_are_split_and_shuffled_with_the_samples() -> None:
    """A linear model at rate 0 with a known loss for each sample."""
    model = Sequential([fastrnn.Dense(1, 1, bias=False, dtype=np.float64)])
    model.compile(training.SGD(0.0), "mse")
    x = np.arange(1.0, 11)[:, None]
    y, w = x * model.get_weights()[0][0, 0] + x, np.arange(10.0)
    history = model.fit(x, y, batch_size=3, rng=0, sample_weight=w, validation_split=0.4).history
    assert history["loss"][0] == pytest.approx(np.average(x[:6, 0] ** 2, weights=w[:6]), rel=1e-12)
    assert history["val_loss"][0] == pytest.approx(np.average(x[6:, 0] ** 2, weights=w[6:]), rel=1e-12)


def test_batches_with_their_own_weights() -> None:
    """A list of dicts; class weights and ignored classes act as for arrays."""
    c, w, loss = classes(N, T), weights_of((N, T)), CategoricalCrossentropy(from_logits=True)
    c[:, 3] = -1
    options: dict[str, Any] = {"class_weight": {1: 2.0}, "ignore_index": -1, "accumulate": 2}
    cut = [slice(0, 5), slice(5, 10), slice(10, N)]
    parts = [{"x": inputs()[p], "y": c[p], "lengths": steps()[p], "sample_weight": w[p]} for p in cut]
    results = []
    for given in ((inputs(), c), (parts,)):
        model = every_step()
        model.compile(training.Adam(0.01), loss, ["accuracy"])
        arrays = {"lengths": steps(), "sample_weight": w} if len(given) == 2 else {}
        history = model.fit(*given, epochs=2, batch_size=5, shuffle=False, **options, **arrays).history
        results.append((model.state_dict(), history))
    assert_same_bits(results[1][0], results[0][0])
    assert results[1][1] == results[0][1]
    with pytest.raises(ValueError, match=r"^sample_weight: expected None, because x yields batches with their own"):
        model.fit(parts, sample_weight=w)


def test_windows_without_a_valid_target_carry_the_state() -> None:
    """Warm-up: the first windows have weight 0, so no step is made, but the state continues."""
    x, y, w = inputs(), targets(N, T), np.zeros((N, T))
    w[:, 6:] = 1
    model, other = every_step(), every_step()
    for one in (model, other):
        one.compile(training.SGD(0.1, momentum=0.9), "mse")
    model.fit(x, y, batch_size=N, shuffle=False, truncate=3, sample_weight=w)
    assert model.compiled.optimizer.steps == 1
    state = other.forward(x[:, :6]).state
    y_7, _, cache = other.forward(x[:, 6:], state=state, training=True)
    grads = other.backward(training.MeanSquaredError().gradient(y_7, y[:, 6:])[1], cache).grads
    other.compiled.optimizer.step(other.parameters(), grads)
    assert_close(model.parameters(), other.parameters())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_accumulated_batches_equal_one(accumulate: int, every: bool, seed: int) -> None:
    """With lengths, weights and missing targets, so the batches have different weights; the last group is smaller."""
    rng = np.random.default_rng(seed)
    y = targets(N, T) if every else targets(N)
    y[rng.random(y.shape) < 0.2] = np.nan
    options: dict[str, Any] = {"lengths": steps(), "sample_weight": rng.random(N), "epochs": 3, "shuffle": bool(seed)}
    results = []
    for size, together in ((3, accumulate), (3 * accumulate, 1)):
        model = every_step() if every else last_step()
        model.compile(training.Adam(0.01, clip_norm=0.1), "mse", ["mae"])
        history = model.fit(inputs(), y, batch_size=size, accumulate=together, rng=0, **options).history
        results.append((model.state_dict(), history, model.compiled.optimizer.steps))
    assert results[0][2] == results[1][2] == 3 * -(-N // (3 * accumulate))
    assert_close(results[0][0], results[1][0])
    assert results[0][1]["loss"] == pytest.approx(results[1][1]["loss"], rel=1e-9)
    assert results[0][1]["mae"] == pytest.approx(results[1][1]["mae"], rel=1e-9)


# Functions as metrics


def test_functions_as_metrics() -> None:
    def squared(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return np.asarray((y_true - y_pred) ** 2)

    def mean(y_true: np.ndarray, y_pred: np.ndarray, power: int) -> float:
        return float(np.mean(np.abs(y_true - y_pred) ** power))

    model = every_step()
    model.compile("sgd", "mse", ["mae", squared, MeanAbsoluteError(), functools.partial(mean, power=1)])
    got = model.evaluate(inputs(), targets(N, T), lengths=steps(), batch_size=4)
    assert list(got) == ["loss", "mae", "squared", "mean"]
    assert (got["squared"], got["mean"]) == pytest.approx((got["loss"], got["mae"]), rel=1e-12)
    assert model.evaluate(inputs(), targets(N, T), lengths=np.zeros(N, int))["mean"] == 0
    with pytest.raises(ValueError, match=r"^metrics: mean: one number per batch cannot be weighted"):
        model.evaluate(inputs(), targets(N, T), sample_weight=np.ones(N))
    model.compile("sgd", "mse", [lambda y_true, y_pred: y_pred[:1]])
    message = r"^metrics: <lambda>: expected one number, or one per step .* got shape \(1, 4\)"
    with pytest.raises(ValueError, match=message):
        model.evaluate(inputs(), targets(N, T))
    for wrong in (training.MeanSquaredError(), np.maximum, MeanAbsoluteError, 3):  # objects may have state, or change y
        with pytest.raises(TypeError, match=r"^metrics: expected a Metric, a function f\(y_true, y_pred\), or one of"):
            model.compile("sgd", "mse", ["mae", wrong])
    with pytest.raises(ValueError, match=r"^metrics: expected one of each name, got two of 'accuracy'"):
        model.compile("sgd", "mse", ["accuracy", Accuracy(0.1)])
