"""fit: batches, windows, states, lengths, validation, and the model that an optimizer belongs to."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import K, N, T, by_hand, classes, classifier, inputs, last_step, letters, regressor, steps, targets
from support.problems import Arrays
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.training import Callback, Sequential, Training


@pytest.mark.parametrize("lengths", [None, "some"])
@pytest.mark.parametrize("window", [None, 1, 3, T, 100])
def test_fit_is_a_loop_over_batches_and_windows(window: int | None, lengths: Any) -> None:
    x, y, lengths = inputs(), targets(N, T), steps() if lengths else None
    model = regressor()
    history = model.fit(x, y, epochs=2, batch_size=5, lengths=lengths, shuffle=False, truncate=window)
    expected, losses = by_hand(x, y, 2, 5, window or T, lengths)
    assert_close(model.parameters(), expected)
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-12)


def test_stateful_is_one_long_sequence() -> None:
    batch, chunks = 4, 3
    x, y = inputs(samples=batch, steps=chunks * T), targets(batch, chunks * T)
    long, cut = regressor(), regressor()
    expected = long.fit(x, y, epochs=2, truncate=T, shuffle=False)
    x, y = (np.concatenate(np.split(a, chunks, axis=1)) for a in (x, y))
    got = cut.fit(x, y, epochs=2, batch_size=batch, stateful=True, shuffle=False)
    assert_same_bits(cut.state_dict(), long.state_dict())
    np.testing.assert_allclose(got.history["loss"], expected.history["loss"], rtol=1e-12)

    fresh = regressor()
    fresh.fit(x, y, epochs=2, batch_size=batch, shuffle=False)
    assert all((a != b).all() for a, b in zip(fresh.get_weights(), cut.get_weights(), strict=True))


@pytest.mark.parametrize("every", [False, True])
def test_padding_has_no_effect(every: bool) -> None:
    lengths = steps()
    valid = np.arange(T) < lengths[:, None]
    x, y = inputs(), targets(N, T) if every else classes(N)
    results = []
    for padding in (0.0, 7.0, np.nan):
        model = regressor() if every else classifier()
        given = [np.where(valid[..., None], a, padding) if a.ndim == 3 else a for a in (x, y)]
        history = model.fit(*given, epochs=2, batch_size=4, lengths=lengths, rng=0)
        results.append((model.state_dict(), history.history, model.evaluate(*given, lengths=lengths)))
    for weights, history, scores in results[1:]:
        assert_same_bits(weights, results[0][0])
        assert (history, scores) == results[0][1:]
    assert np.isfinite(results[0][2]["loss"])


def test_padding_of_integers_does_not_matter() -> None:
    lengths = steps()
    results = []
    for padding in (0, -1, 10**6):
        model = letters()
        model.compile("adam", "categorical_crossentropy", ["accuracy"])
        given = np.where(np.arange(T) < lengths[:, None], classes(N, T), padding)
        model.fit(given, given, lengths=lengths, rng=0)
        results.append(model.state_dict())
    for weights in results[1:]:
        assert_same_bits(weights, results[0])


def words(sparse: bool | None, optimizer: Any) -> Sequential:
    """Return a model from (N, T) integers below 6 to (N, K)."""
    embedding = fastrnn.Embedding(6, 3, padding_idx=0, sparse=sparse, dtype=np.float64, rng=1)
    embedding.weight[0] = 1.0
    lstm = fastrnn.LSTM(3, 5, return_sequences=False, dtype=np.float64, rng=2)
    model = Sequential([embedding, lstm, fastrnn.Dense(5, K, "softmax", dtype=np.float64, rng=3)])
    model.compile(optimizer, "categorical_crossentropy")
    return model


@pytest.mark.parametrize("kind", [training.SGD, training.Adam, training.AdamW, training.RMSprop])
def test_sparse_embeddings_train(kind: Any) -> None:
    """Like dense ones if every batch has every row; otherwise rows outside the batches, or of padding, stay."""
    x = np.random.default_rng(0).permuted(np.tile(np.arange(1, 6), (N, 2)), axis=1)
    options = {"learning_rate": 0.05, "clip_norm": 0.1}
    dense, sparse = (words(s, kind(**options, weight_decay=0)) for s in (False, True))
    for model in (dense, sparse):
        model.fit(x, classes(N), epochs=3, batch_size=4, rng=0)
    assert_same_bits(sparse.state_dict(), dense.state_dict())
    sparse, dense = (words(s, kind(**options, weight_decay=0.5)) for s in (True, False))
    before = sparse.layers[0].parameters()["weight"].copy()
    for model in (sparse, dense):
        model.fit(np.where(x == 4, 0, x), classes(N), epochs=2, batch_size=4, rng=0)
    after = sparse.layers[0].parameters()["weight"]
    assert_same_bits({"rows": after[[0, 4]]}, {"rows": before[[0, 4]]})
    assert (after[[1, 2, 3, 5]] != before[[1, 2, 3, 5]]).all()
    assert (dense.layers[0].parameters()["weight"] != before).all()  # decay changes these rows, too


def test_sparse_embeddings_accumulate() -> None:
    """Batches with different rows give the same as one batch of all."""
    x = np.random.default_rng(0).integers(0, 6, (N, T))
    one, many = (words(True, training.Adam(0.05, clip_norm=0.1)) for _ in range(2))
    one.fit(x, classes(N), epochs=3, batch_size=N, shuffle=False)
    many.fit(x, classes(N), epochs=3, batch_size=3, accumulate=5, shuffle=False)
    assert_close(many.state_dict(), one.state_dict(), 1e-10)


def test_batches_of_empty_sequences_make_no_step() -> None:
    model = regressor()
    model.fit(inputs(), targets(N, T))  # so that there is momentum, which a step would apply
    before = model.state_dict()
    history = model.fit(inputs(), targets(N, T), lengths=np.zeros(N, int))
    assert_same_bits(model.state_dict(), before)
    assert history.history == {"loss": [0.0]}
    classifier().fit(inputs(), classes(N), lengths=np.zeros(N, int))  # a class for the initial state


def test_a_seed_reproduces_the_training() -> None:
    def trained(rng: Any, shuffle: bool = True) -> Arrays:
        model = classifier(dropout=0.3)
        model.fit(inputs(), classes(N), epochs=2, batch_size=4, rng=rng, shuffle=shuffle)
        return model.state_dict()

    first = trained(0)
    assert_same_bits(trained(0), first)
    assert_same_bits(trained(np.random.default_rng(0)), first)
    for other in (trained(1), trained(0, shuffle=False), trained(None)):
        assert (other["2.weight"] != first["2.weight"]).any()


def test_rng_shuffles_and_then_draws_dropout() -> None:
    """A loop by hand with an equal generator, in this order, gives the same bits."""
    x, y = inputs(), classes(N)
    model, same = classifier(dropout=0.3), last_step(dropout=0.3)
    model.fit(x, y, epochs=2, batch_size=4, rng=0)
    rng, adam, loss = np.random.default_rng(0), training.Adam(0.01), training.CategoricalCrossentropy()
    for _ in range(2):
        order = rng.permutation(N)
        for start in range(0, N, 4):
            which = order[start : start + 4]
            p, _, cache = same.forward(x[which], training=True, rng=rng)
            adam.step(same.parameters(), same.backward(loss.gradient(p, y[which])[1], cache).grads)
            same.changed()
    assert_same_bits(model.state_dict(), same.state_dict())


def test_every_sample_once_in_an_epoch() -> None:
    """A linear model at rate 0 with a known loss for each sample."""
    model = Sequential([fastrnn.Dense(1, 1, bias=False, dtype=np.float64)])
    model.compile(training.SGD(0.0), "mse")
    x = np.arange(10.0)[:, None]
    y = x * model.get_weights()[0][0, 0] + x
    seen: list[float] = []

    class Note(Callback):
        def on_batch_end(self, training: Training) -> None:
            seen.append(training.logs["loss"])

    history = model.fit(x, y, epochs=2, batch_size=4, rng=0, callbacks=[Note()])
    np.testing.assert_allclose(history.history["loss"], [28.5, 28.5], rtol=1e-12)
    assert len(seen) == 6
    assert len(set(np.round(seen, 6))) > 4


def test_validation() -> None:
    x, y = inputs(), classes(N)
    results = []
    for options in (
        {"validation_split": 0.3},
        {"validation_data": (x[9:], y[9:])},
        {"validation_data": [x[9:], y[9:], [T] * 4]},
    ):
        model = classifier()
        first = slice(None) if "validation_split" in options else slice(9)
        history = model.fit(x[first], y[first], epochs=2, rng=0, **options).history
        assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
        scores = model.evaluate(x[9:], y[9:])
        assert {name: history[f"val_{name}"][-1] for name in scores} == scores
        results.append(history)
    assert results[0] == results[1]
    np.testing.assert_allclose(results[2]["val_loss"], results[0]["val_loss"], rtol=1e-12)


def test_validation_of_lists() -> None:
    model, x, y = classifier(), inputs(), classes(N)
    sequences = [a[:n] for a, n in zip(x, steps(), strict=True)]
    history = model.fit(x, y, rng=0, validation_data=(sequences, y)).history
    assert history["val_loss"] == [model.evaluate(x, y, lengths=steps())["loss"]]


def test_metrics_cover_all_samples() -> None:
    model = regressor()
    model.compile("sgd", "mse", ["mae", training.MeanAbsoluteError()])
    got = model.evaluate(inputs(), targets(N, T), lengths=steps(), batch_size=4)
    error = np.abs(model.predict(inputs()) - targets(N, T))[np.arange(T) < steps()[:, None]]
    assert list(got) == ["loss", "mae"]
    np.testing.assert_allclose(got["mae"], error.mean(), rtol=1e-12)


def short(model: Sequential, optimizer: Any, fit: bool = True) -> Arrays:
    model.compile(optimizer, "categorical_crossentropy")
    if fit:
        model.fit(inputs(), classes(N), rng=0)
    return model.state_dict()


OTHERS = r"^optimizer: it trained another model and holds its moments and steps; give each model its own"


def test_an_optimizer_trains_one_model() -> None:
    """The next model has parameters of the same names, but is refused, even if the first one no longer exists."""
    optimizer = training.Adam(0.01)
    one, other, twin = last_step(), last_step(), last_step()
    for model in (one, other):
        short(model, optimizer, fit=False)
    before_any = copy.deepcopy(one)
    one.fit(inputs(), classes(N), rng=0)
    before, state = other.state_dict(), optimizer.state_dict()
    del one
    with pytest.raises(ValueError, match=OTHERS):
        other.fit(inputs(), classes(N), epochs=2)
    for model in (twin, before_any):
        with pytest.raises(ValueError, match=OTHERS):
            short(model, optimizer)
    assert_same_bits(other.state_dict(), before)
    assert_same_bits(optimizer.state_dict(), state)
    optimizer.load_state_dict(training.Adam().state_dict())  # its state has been dropped
    assert_same_bits(short(twin, optimizer), short(last_step(), training.Adam(0.01)))


def test_an_optimizer_continues_with_its_model() -> None:
    """The model may be compiled again, copied or pickled, together with the optimizer or alone."""
    optimizer, model = training.Adam(0.01), last_step()
    short(model, optimizer)
    pairs = [
        (copy.deepcopy(model), copy.deepcopy(optimizer)),
        copy.deepcopy((model, optimizer)),
        (pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(optimizer))),
    ]
    resumed = training.Adam(0.01)
    resumed.load_state_dict(optimizer.state_dict())
    own = copy.deepcopy(model)
    expected = short(model, optimizer)
    for pair in [*pairs, (own, resumed)]:
        assert_same_bits(short(*pair), expected)
    alone = copy.deepcopy(model)
    alone.fit(inputs(), classes(N), rng=0)
    model.fit(inputs(), classes(N), rng=0)
    assert_same_bits(alone.state_dict(), model.state_dict())


def test_a_failed_resumption_leaves_the_optimizer_its_model(tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("safetensors")
    optimizer, model = training.Adam(0.01), last_step()
    short(model, optimizer)
    model.save_weights(tmp_path / "weights")
    with pytest.raises(ValueError, match=r"^resume: "):
        model.fit(inputs(), classes(N), resume=tmp_path / "weights")
    with pytest.raises(ValueError, match=OTHERS):
        last_step().compile(optimizer)
