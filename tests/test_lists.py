"""Lists of sequences in fit, evaluate and predict: the results of a padded batch, at the cost of their own steps."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.models import (
    Arrays,
    I,
    K,
    by_hand,
    classes,
    classifier,
    every_step,
    inputs,
    last_step,
    letters,
    regressor,
    steps,
)
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.layers.base import Stateless
from fastrnn.training import Sequential, pad_sequences
from fastrnn.training.padding import similar

F64: dict[str, Any] = {"dtype": np.float64}

#: three parts, the last of an empty sequence
LENGTHS = np.array([3, 40, 0, 1, 40, 1, 17, 0, 5, 2, 1, 1])
N = len(LENGTHS)


@pytest.mark.parametrize("seed", range(20))
def test_parts_of_similar_length(seed: int) -> None:
    """Each sequence occurs once, the longest first, and there is at most as much padding as valid steps."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, [3, 10, 1000][seed % 3], rng.integers(1, 40)) ** rng.integers(1, 4)
    groups = similar(lengths)
    assert np.sort(np.concatenate(groups)).tolist() == list(range(len(lengths)))
    own = [lengths[group] for group in groups]
    assert all(a.max() * len(a) <= 2 * a.sum() for a in own)
    assert all(a.min() >= b.max() for a, b in itertools.pairwise(own))
    assert len(groups) <= 2 + np.log2(max(lengths.max(), 1))
    if lengths.max() * len(lengths) <= 2 * lengths.sum():
        assert len(groups) == 1


@pytest.mark.parametrize("lengths", [[0], [7], [0, 0], [5, 5, 5], [1, 2], [9, 10, 8]])
def test_one_part(lengths: list[int]) -> None:
    assert len(similar(np.array(lengths))) == 1


def pooled(layer: Any) -> Sequential:
    lstm = fastrnn.LSTM(I, 5, batch_first=True, rng=1, **F64)
    inner = Sequential([fastrnn.LayerNormalization(5, **F64), fastrnn.Dense(5, 5, "tanh", rng=2, **F64)])
    return Sequential([fastrnn.Dense(I, I, rng=3, **F64), lstm, inner, layer, fastrnn.Dense(5, K, rng=4, **F64)])


def with_extras() -> Sequential:
    layer = fastrnn.Recurrent(own_cells.zoneout, I, 5, bidirectional=True, rng=1, **F64)
    return Sequential([layer, fastrnn.Dense(10, K, rng=2, **F64)])


def repeated() -> Sequential:
    encoder = fastrnn.LSTM(I, 5, return_sequences=False, rng=1, **F64)
    decoder = fastrnn.GRU(5, 5, reset_after=True, rng=2, **F64)
    return Sequential([encoder, fastrnn.RepeatVector(3), decoder, fastrnn.Dense(5, K, rng=3, **F64)])


MODELS: dict[str, Callable[[], Sequential]] = {
    "every step": every_step,
    "letters": lambda: letters(num_layers=2),
    "last step": last_step,
    "average": lambda: pooled(fastrnn.GlobalAveragePooling1D()),
    "maximum": lambda: pooled(fastrnn.GlobalMaxPooling1D(batch_first=True)),
    "end": lambda: pooled(fastrnn.LastStep()),
    "extra inputs": with_extras,
    "steps of its own": repeated,
}


class Problem:
    """A model, its data as lists, and the same data padded."""

    def __init__(self, kind: str, weighted: str | None = None, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.model = MODELS[kind]()
        self.every = kind in ("every step", "letters", "extra inputs")
        x = rng.integers(0, 6, (N, 40)) if kind == "letters" else rng.standard_normal((N, 40, I))
        if kind in ("letters", "last step"):
            loss, y = "categorical_crossentropy", rng.integers(0, K, (N, 40) if self.every else N)
        else:
            steps = 40 if self.every else 3
            loss, y = "mse", rng.standard_normal((N, K) if kind in ("average", "maximum", "end") else (N, steps, K))
        self.padded: dict[str, Any] = {"x": x, "y": y}
        weights = None
        if weighted == "sequences":
            weights = rng.random(N)
        elif weighted == "steps":
            weights = rng.random((N, 40)) * (rng.random((N, 40)) < 0.8)
        elif weighted == "missing":
            if loss == "mse":
                y[rng.random(y.shape) < 0.3] = np.nan
            else:
                y[rng.random(y.shape) < 0.3] = -100
        self.options: dict[str, Any] = {"lengths": LENGTHS}
        if weights is not None:
            self.options["sample_weight"] = weights
        if kind == "extra inputs":
            self.options["e"] = {"keep": rng.random((N, 40, 1))}
        self.model.compile(training.SGD(1.0), loss, ["accuracy"] if loss != "mse" else ["mae"])

    def cut(self, a: np.ndarray) -> list[np.ndarray]:
        return [row[:steps] for row, steps in zip(a, LENGTHS, strict=True)]

    @property
    def lists(self) -> dict[str, Any]:
        """Return the arguments of fit and evaluate."""
        found = {"x": self.cut(self.padded["x"]), "y": self.padded["y"]}
        if self.every:
            found["y"] = self.cut(self.padded["y"])
        if "e" in self.options:
            found["e"] = {"keep": self.cut(self.options["e"]["keep"])}
        if (weights := self.options.get("sample_weight")) is not None:
            found["sample_weight"] = self.cut(weights) if weights.ndim == 2 else weights
        return found

    def by_one_batch(self) -> tuple[Arrays, float, np.ndarray]:
        """Return the gradients, the loss and the predictions of one padded batch, from forward and backward."""
        model, x, y = self.model, self.padded["x"], self.padded["y"]
        out = model.forward(x, lengths=LENGTHS, training=True, e=self.options.get("e"))
        weights = self.options.get("sample_weight")
        if weights is not None and weights.ndim < out.y.ndim - 1:
            weights = np.broadcast_to(weights[:, None], out.y.shape[:2])
        if y.dtype.kind == "i":
            weights = np.where(y == -100, 0, 1 if weights is None else weights)
            y = np.maximum(y, 0)
        turned = [a if a is None or not self.every else a.swapaxes(0, 1) for a in (out.y, y, weights)]
        loss, dy = model.compiled.loss.gradient(turned[0], turned[1], LENGTHS if self.every else None, turned[2])
        return model.backward(dy.swapaxes(0, 1) if self.every else dy, out.cache).grads, loss, out.y


KINDS = [(kind, w) for kind in MODELS for w in (None, "sequences", "missing")]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "weighted"), [*KINDS, ("every step", "steps"), ("letters", "steps")])
def test_a_step_equals_that_of_a_padded_batch(kind: str, weighted: str | None, seed: int) -> None:
    """The loss and every gradient; padded arrays with lengths give the same bits."""
    results = []
    for listed in (True, False):
        problem = Problem(kind, weighted, seed)
        model = problem.model
        assert len(similar(LENGTHS)) == 3
        grads, loss, _ = problem.by_one_batch()
        before = {name: p.copy() for name, p in model.parameters().items()}
        given = problem.lists if listed else problem.padded | problem.options
        score = model.evaluate(**given)
        history = model.fit(**given, batch_size=N, shuffle=False).history
        assert_close({name: before[name] - p for name, p in model.parameters().items()}, dict(grads), 1e-11)
        np.testing.assert_allclose([score["loss"], *history["loss"]], loss, rtol=1e-11)
        results.append((model.state_dict(), history, score))
    assert_same_bits(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


@pytest.mark.parametrize("kind", MODELS)
def test_predictions_equal_those_of_single_sequences(kind: str, native: str) -> None:
    problem = Problem(kind)
    lists = problem.lists
    e = lists.get("e", {}).get("keep")
    got = problem.model.predict(lists["x"], e=lists.get("e"), batch_size=7)
    for n in range(N):
        own = None if e is None else {"keep": e[n : n + 1]}
        alone = problem.model.predict(lists["x"][n : n + 1], e=own)[0] if LENGTHS[n] else got[n]
        assert_same_bits({"y": got[n]}, {"y": alone})
    whole = problem.model.predict(problem.padded["x"], lengths=LENGTHS, e=problem.options.get("e"), batch_size=7)
    if problem.every:
        assert isinstance(got, list)
        assert [a.shape for a in got] == [(steps, K) for steps in LENGTHS]
        assert all(a.flags.c_contiguous for a in got)
        assert whole.shape == (N, 40, K)
        got = pad_sequences(got)[0]
    assert_same_bits({"y": got}, {"y": whole})
    y = problem.by_one_batch()[2]
    valid = np.arange(40) < LENGTHS[:, None] if problem.every else np.ones(len(y), bool)
    assert_close({"y": got[valid]}, {"y": y[valid]})


def test_class_weights_of_lists() -> None:
    problem, weights = Problem("letters", "steps"), {0: 3.0, 2: 0.0}
    lists, y = problem.lists, problem.padded["y"]
    table = np.array([3.0, 1.0, 0.0, 1.0])
    by_class = problem.model.evaluate(**lists, class_weight=weights)
    lists["sample_weight"] = problem.cut(problem.options["sample_weight"] * table[y])
    np.testing.assert_allclose(list(by_class.values()), list(problem.model.evaluate(**lists).values()), rtol=1e-12)


@pytest.mark.parametrize("window", [1, 4, 100])
def test_truncated_windows_of_parts(window: int) -> None:
    """Each window is one optimizer step for the parts with remaining steps, with the states of their own sequences."""
    rng, model = np.random.default_rng(0), regressor()
    x, y = rng.standard_normal((N, 40, I)), rng.standard_normal((N, 40, K))
    cut = [[a[:n] for a, n in zip(whole, LENGTHS, strict=True)] for whole in (x, y)]
    history = model.fit(*cut, epochs=2, batch_size=N, shuffle=False, truncate=window)
    expected, losses = by_hand(x, y, 2, N, window, LENGTHS)
    assert_close(model.parameters(), expected, 1e-10)
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-10)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_accumulated_lists(accumulate: int) -> None:
    problem, one = Problem("every step", "steps"), Problem("every step", "steps")
    problem.model.fit(**problem.lists, batch_size=-(-N // accumulate), accumulate=accumulate, shuffle=False)
    one.model.fit(**one.lists, batch_size=N, shuffle=False)
    assert_close(problem.model.state_dict(), one.model.state_dict(), 1e-11)


def test_masks_follow_from_the_seed() -> None:
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((n, I)) for n in LENGTHS]
    y = classes(N)
    trained = []
    for seed in (0, 0, 1):
        model = classifier(dropout=0.5)
        model.fit(x, y, epochs=2, batch_size=8, rng=seed)
        trained.append(model.state_dict())
    assert_same_bits(trained[0], trained[1])
    assert (trained[0]["2.weight"] != trained[2]["2.weight"]).any()


def test_lists_in_batches_from_an_iterable(native: str) -> None:
    """The predictions are a list of all sequences."""
    problem = Problem("every step")
    x = problem.lists["x"]
    expected = problem.model.predict(x)
    got = problem.model.predict(iter([{"x": x[:4]}, {"x": x[4:]}]))
    assert len(got) == N
    for a, b in zip(got, expected, strict=True):
        assert_same_bits({"y": a}, {"y": b})
    arrays = problem.model.predict(iter([inputs(samples=2, steps=3), inputs(samples=1, steps=5)]))
    assert arrays.shape == (3, 5, K)
    assert not arrays[:2, 3:].any()
    together = problem.model.predict(iter([{"x": x[:4]}, inputs(samples=2, steps=3)]))
    assert [len(a) for a in together] == [*LENGTHS[:4], 3, 3]
    one = problem.model.predict([x[1]])
    assert_same_bits({"y": one[0]}, {"y": expected[1]})


def test_lists_of_last_steps() -> None:
    x, model = inputs(), classifier()
    sequences = [a[:n] for a, n in zip(x, steps(), strict=True)]
    assert_same_bits({"y": model.predict(sequences)}, {"y": model.predict(x, lengths=steps())})
    padded, lengths = pad_sequences(sequences)
    assert lengths.tolist() == steps().tolist()
    assert (padded.dtype, padded.shape) == (x.dtype, x.shape)


class Count(Stateless):
    """A layer that returns x and counts the steps that it gets."""

    steps = 0

    def _forward(self, x: Any, training: bool, rng: Any) -> Any:
        self.steps += x.shape[0] * x.shape[1]
        return x, {}

    def _backward(self, dy: Any, kept: Any) -> Any:
        self.steps += dy.shape[0] * dy.shape[1]
        return dy, {}


@pytest.mark.parametrize("listed", [True, False])
def test_work_is_proportional_to_the_steps(listed: bool) -> None:
    """At most twice the valid steps, in every layer and pass."""
    rng, count = np.random.default_rng(0), Count()
    lengths = np.r_[3, 3000, np.full(62, 20)]
    model = Sequential([fastrnn.GRU(4, 4, reset_after=True, rng=0), count, fastrnn.Dense(4, 2, rng=1)])
    model.compile("sgd", "mse")
    x = [rng.standard_normal((n, 4), np.float32) for n in lengths]
    y = [rng.standard_normal((n, 2), np.float32) for n in lengths]
    given: dict[str, Any] = {"x": x, "y": y}
    if not listed:
        given = {"x": pad_sequences(x)[0], "y": pad_sequences(y)[0], "lengths": lengths}
    model.evaluate(**given, batch_size=64)
    there = lengths.sum() + lengths[0]  # checking the targets runs one sequence
    assert lengths.sum() <= count.steps <= 2 * there
    count.steps = 0
    model.fit(**given, batch_size=64)
    assert 2 * lengths.sum() <= count.steps <= 4 * there
    count.steps = 0
    del given["y"]
    model.predict(**given, batch_size=64)
    assert lengths.sum() <= count.steps <= 2 * there


def peak(run: Callable[..., Any], *given: Any, **options: Any) -> int:
    """Return the peak memory of a call."""
    tracemalloc.start()
    run(*given, **options)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("weighted", [False, True])
def test_memory_is_proportional_to_the_steps(weighted: bool) -> None:
    """One long sequence among short ones: at most three times the memory of the same steps without padding."""
    rng, peaks = np.random.default_rng(0), []
    for lengths in (np.r_[3, 3000, np.full(62, 20)], np.full(64, 66)):
        e = {"keep": [rng.random((n, 1), np.float32) for n in lengths]}
        x = [rng.integers(0, 6, n) for n in lengths]
        y = [rng.integers(0, 8, n) for n in lengths]
        weights = [rng.random(n) for n in lengths] if weighted else None
        layer = fastrnn.Recurrent(own_cells.zoneout, 16, 16, dropout=0.5, num_layers=2, recurrent_dropout=0.1)
        layers = [fastrnn.Embedding(6, 16), fastrnn.Dropout(0.1), layer, fastrnn.Dense(16, 8, "softmax")]
        model = Sequential(layers)
        model.compile("sgd", "categorical_crossentropy", ["accuracy"])
        options: dict[str, Any] = {"e": e, "batch_size": 64}
        both = options | {"sample_weight": weights}
        model.fit(x, y, **both)  # imports modules and packs what the first call needs
        peaks.append([peak(model.fit, x, y, **both), peak(model.evaluate, x, y, **both)])
        peaks[-1].append(peak(model.fit, x, y, **both, stateful=True, shuffle=False))
        peaks[-1].append(peak(model.predict, x, **options))
    for long, short in zip(*peaks, strict=True):
        assert long < 3 * short


def test_lists_are_padded_batch_by_batch() -> None:
    """One long sequence among short ones: weights and predictions of padded arrays, without their memory."""
    rng = np.random.default_rng(0)
    lengths = np.r_[3, 3000, np.full(62, 2)]
    x = [rng.standard_normal((n, 32), np.float32) for n in lengths]
    y = [rng.standard_normal((n, 1), np.float32) for n in lengths]
    whole = [pad_sequences(a)[0] for a in (x, y)]
    weights, peaks = [], []
    for given in ({"x": x, "y": y}, {"x": whole[0], "y": whole[1], "lengths": lengths}):
        model = Sequential([fastrnn.GRU(32, 4, reset_after=True, rng=0), fastrnn.Dense(4, 1, rng=0)])
        model.compile("sgd", "mse")
        options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "validation_split": 0.25, "rng": 1}
        peaks.append(peak(model.fit, **given, **options))
        weights.append(model.state_dict())
    assert_same_bits(*weights)
    assert peaks[0] < whole[0].nbytes / 8


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"y: expected 40 steps in sequence 1, as x has, got 39", {"y": lambda y: [y[0], y[1][1:], *y[2:]]}),
        (r"sample_weight: expected 3 steps in sequence 0", {"sample_weight": lambda w: [w[0][:2], *w[1:]]}),
        (r"sample_weight: expected finite .*, got -1\.0", {"sample_weight": lambda w: [w[0] * 0 - 1, *w[1:]]}),
        (r"e 'keep': expected shape \(N, T, H\)", {"e": lambda e: {"keep": [a[:, 0] for a in e["keep"]]}}),
        (r"e 'keep': expected shape \(N, T, H\)", {"e": lambda e: {"keep": e["keep"][:-1]}}),
    ],
)
def test_lists_that_do_not_fit(message: str, change: dict[str, Callable[[Any], Any]]) -> None:
    problem = Problem("extra inputs", "steps")
    given = problem.lists
    with pytest.raises(ValueError, match=f"^{message}"):
        problem.model.fit(**given | {name: wrong(given[name]) for name, wrong in change.items()})
