"""The estimators pass scikit-learn's own checks, and take sequences of unequal length."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.training import Adam

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastrnn.sklearn import SequenceClassifier, SequenceRegressor

ESTIMATORS = [SequenceClassifier, SequenceRegressor]


#: checks with a bound of 1e-7, below float32's rounding; `test_sample_weight` is the same check with a larger bound
ROUNDED = {"check_sample_weight_equivalence_on_dense_data": "computed in float32"}


@parametrize_with_checks(
    [SequenceClassifier(hidden_size=4, epochs=5), SequenceRegressor(hidden_size=16, epochs=80)],
    expected_failed_checks=lambda estimator: ROUNDED,
)
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    """Every check except those affected by rounding."""
    check(estimator)


def task(N: int = 60, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Return sequences of unequal length, and whether their sums are positive."""
    rng = np.random.default_rng(seed)
    X = [rng.standard_normal((T, 2)) + rng.choice([-1, 1]) for T in rng.integers(1, 12, N)]
    return X, np.array(["down", "up"])[[int(x.sum() > 0) for x in X]]


class Counting(SequenceClassifier):
    """Its score is the number of threads that it may use."""

    def score(self, X: Any, y: Any) -> float:
        return float(fastrnn.get_num_threads())


def test_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two workers may use half of the threads (joblib tells them); the parent's number does not change."""
    monkeypatch.delenv("FASTRNN_NUM_THREADS", raising=False)
    joblib = pytest.importorskip("joblib")
    share, own = max(joblib.cpu_count() // 2, 1), fastrnn.get_num_threads()
    with joblib.parallel_config("loky", n_jobs=2):
        scores = cross_val_score(Counting(hidden_size=4, epochs=1), *task(), cv=2)
    assert scores.tolist() == [share] * 2
    assert fastrnn.get_num_threads() == own


@pytest.mark.parametrize("listed", [False, True])
def test_channels_before_time(listed: bool) -> None:
    """Collections of aeon and sktime, transposed as the docstring says."""
    X, y = task()
    expected = small().fit(X, y).predict_proba(X)
    turned: Any = [np.ascontiguousarray(x.T) for x in X]
    given: Any = [x.T for x in turned]
    if not listed:
        X = [x[:1] for x in X]
        expected = small().fit(np.stack(X), y).predict_proba(np.stack(X))
        given = np.stack([x.T for x in X]).swapaxes(1, 2)
    assert "``X.swapaxes(1, 2)``, or ``[x.T for x in X]``" in str(SequenceClassifier.__doc__)
    assert_same_bits({"y": small().fit(given, y).predict_proba(given)}, {"y": expected})


def small(**options: Any) -> SequenceClassifier:
    return SequenceClassifier(**{"cell": "gru_after", "hidden_size": 4, "epochs": 8, "random_state": 0} | options)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_by_its_name(cell: str) -> None:
    model = small(cell=cell, epochs=1).fit(*task())
    assert repr(model.model_.layers[0]).endswith(f"[{cell}]")


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh", "rnn_relu"])
def test_sequences_are_classified(cell: str) -> None:
    X, y = task()
    model = small(cell=cell, bidirectional=True, num_layers=2, dropout=0.1).fit(X, y)
    assert list(model.classes_) == ["down", "up"]
    assert model.n_features_in_ == 2
    assert len(model.history_) == 8
    new, truth = task(40, seed=1)
    assert model.score(new, truth) > 0.85
    probabilities = model.predict_proba(new)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.array_equal(model.classes_[probabilities.argmax(axis=1)], model.predict(new))


def test_regression() -> None:
    X, _ = task()
    y = np.array([[x.mean(), -x[-1, 0]] for x in X])
    model = SequenceRegressor("gru_after", 16, epochs=60, random_state=0).fit(X, y)
    assert model.predict(X).shape == (60, 2)
    assert model.score(X, y) > 0.8
    assert model.fit(X, y[:, 0]).predict(X).shape == (60,)


def test_cross_validation_and_grid_search() -> None:
    X, y = task()
    assert cross_val_score(small(), X, y, cv=3).mean() > 0.8
    search = GridSearchCV(small(), {"hidden_size": [1, 4], "cell": ["rnn_tanh", "gru_before"]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.8
    assert search.predict(X[:3]).shape == (3,)
    assert make_pipeline(small()).fit(X, y).score(X, y) > 0.8


def test_all_forms_of_data_agree() -> None:
    """Lists, object arrays, (N, T, I) and (N, F) of the same numbers give the same model."""
    X, y = task()
    objects = np.empty(len(X), object)
    objects[:] = X
    expected = small().fit(X, y).predict_proba(X)
    assert np.array_equal(small().fit(objects, y).predict_proba(objects), expected)
    assert np.array_equal(small().fit([x.tolist() for x in X], y).predict_proba(tuple(X)), expected)
    cube = np.random.default_rng(0).standard_normal((60, 5, 1))
    expected = small().fit(cube, y).predict_proba(cube)
    assert np.array_equal(small().fit(list(cube), y).predict_proba(cube), expected)
    table = small().fit(cube[:, :, 0], y)
    assert np.array_equal(table.predict_proba(cube[:, :, 0]), expected)
    assert (table.n_features_in_, small().fit(cube, y).n_features_in_) == (5, 1)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_sample_weight(kind: Any) -> None:
    """Integer weights are repetitions and 0 is absence, if all samples are in one batch."""
    X, y = task(20)
    y = (y == "up").astype(float)
    w = np.random.default_rng(0).integers(0, 3, 20)
    repeated = np.repeat(np.arange(20), w)
    options = {"hidden_size": 4, "epochs": 5, "batch_size": 64, "random_state": 0}
    weighted = kind(**options).fit(X, y, sample_weight=w).predict(X)
    same = kind(**options).fit([X[i] for i in repeated], y[repeated]).predict(X)
    np.testing.assert_allclose(weighted, same, atol=1e-5)
    plain = kind(**options).fit(X, y)
    assert plain.fit(X, y, sample_weight=None).history_ == plain.fit(X, y).history_
    assert plain.fit(X, y, sample_weight=[0.5] * 20).history_.history["loss"] == pytest.approx(
        plain.fit(X, y).history_.history["loss"], rel=1e-4
    )
    assert plain.fit(X, y, sample_weight=w).history_ != plain.fit(X, y).history_
    for wrong, message in ((np.ones(5), r"got \(5,\)"), (-np.ones(20), "at least 0, got -1"), (w * np.nan, "NaN")):
        with pytest.raises(ValueError, match=f"sample_weight.*{message}"):
            plain.fit(X, y, sample_weight=wrong)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_early_stopping(kind: Any) -> None:
    X, y = task(40)[0], np.random.default_rng(1).permutation(np.arange(40.0) % 2)  # nothing to learn
    options = {"early_stopping": True, "validation_fraction": 0.25, "n_iter_no_change": 3, "tol": 0.0}
    options |= {"random_state": 0}
    options |= {"cell": "gru_after", "hidden_size": 8, "epochs": 200, "learning_rate": 0.05}
    model, w = kind(**options), np.linspace(0.5, 2, 40)
    losses = model.fit(X, y, w).history_.history["val_loss"]
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 3
    up_to_there = kind(**options | {"epochs": best}).fit(X, y, w)
    assert up_to_there.history_.history["val_loss"] == losses[:best]
    assert np.array_equal(model.predict(X), up_to_there.predict(X))
    for wrong, message in (
        ({"early_stopping": 1}, "early_stopping: expected True or False"),
        ({"n_iter_no_change": 0}, "n_iter_no_change: expected a positive integer"),
        ({"tol": -1.0}, "tol: expected a finite number of at least 0"),
        ({"validation_fraction": 1.5}, "test_size"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            kind(**options | wrong).fit(X, y)


def test_early_stopping_holds_out_every_class() -> None:
    X, y = task(40)
    y = np.sort(y)  # the last samples are of one class
    model = small(early_stopping=True, epochs=40, learning_rate=0.03).fit(X, y)
    assert len(model.history_.history["val_loss"]) > 1
    with pytest.raises(ValueError, match="least populated class"):
        model.fit(X, ["down"] * 39 + ["up"])


def test_a_random_state_gives_the_same_model() -> None:
    X, y = task()
    settings = [(1, 0.2), (1, 0.2), (2, 0.2), (1, 0.0)]
    models = [small(random_state=s, dropout=rate, num_layers=2).fit(X, y) for s, rate in settings]
    one, same, *others = (model.predict_proba(X) for model in models)
    assert np.array_equal(one, same)
    assert not any(np.array_equal(one, other) for other in others)


def test_an_optimizer_is_copied() -> None:
    X, y = task()
    optimizer = Adam(0.02, clip_norm=1.0)
    model = small(optimizer=optimizer, learning_rate=None)
    first = model.fit(X, y).predict_proba(X)
    assert np.array_equal(model.fit(X, y).predict_proba(X), first)
    assert np.array_equal(clone(model).fit(X, y).predict_proba(X), first)
    assert_same_bits(optimizer.state_dict(), Adam().state_dict())  # unchanged
    optimizer.step({"w": np.zeros(1)}, {"w": np.ones(1)})
    assert np.array_equal(model.fit(X, y).predict_proba(X), first)  # its state from another training has no effect here
    faster = small(optimizer=optimizer, learning_rate=0.1).fit(X, y).predict_proba(X)
    assert not np.array_equal(faster, first)
    assert optimizer.learning_rate == 0.02


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_it_pickles(kind: Any) -> None:
    X, y = task()
    model = kind("rnn_tanh", 4, epochs=1, random_state=0).fit(X, (y == "up").astype(float))
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_mistakes(kind: Any) -> None:
    X, y = task(6)
    y = (y == "up").astype(float)
    model = kind("rnn_tanh", 2, epochs=1)
    for message, x, target in (
        ("X: expected equal numbers of features, got 2, 3", [*X[:5], np.ones((4, 3))], y),
        (r"X: expected shape \(N, T, I\), \(N, F\), or a list", np.ones((6, 2, 2, 2)), y),
        (r"X\[2\] contains NaN", [*X[:2], np.full((3, 2), np.nan), *X[3:]], y),
        (r"0 sample", [*X[:5], np.ones((0, 2))], y),
        (r"inconsistent numbers of samples: \[6, 5\]", X, y[:5]),
        ("y contains NaN", X, np.where(np.arange(6) == 2, np.nan, y)),
        ("requires y to be passed", X, None),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(x, target)
    for short in ("gru", "rnn", "mlp"):
        with pytest.raises(ValueError, match=f"cell: expected one of 'rnn_tanh', .*'gru_after', .*, got '{short}'"):
            kind(short).fit(X, y)
    with pytest.raises(ValueError, match=r"cell: expected one of .*, got \[1\]"):
        kind([1]).fit(X, y)
    with pytest.raises(ValueError, match="epochs"):
        kind(epochs=0).fit(X, y)
    model.fit(X, y)
    for wrong in (np.ones((2, 4, 3)), [np.ones((4, 3))]):
        with pytest.raises(ValueError, match=f"X: {kind.__name__} expects 2 features, as in fit; got sequences of 3"):
            model.predict(wrong)
    with pytest.raises(ValueError, match="X: expected sequences of 2 features, as in fit"):
        model.predict(np.ones((2, 2)))
    model.fit(np.ones((6, 4)), y)
    for features in (1, 4):
        with pytest.raises(ValueError, match="expects a table of 4 columns"):
            model.predict(np.ones((6, 4, features)))


def test_fit_resets_the_feature_names() -> None:
    X, y = task()
    model = small(epochs=1).fit(X, y)
    model.feature_names_in_ = np.array(["a", "b"], object)
    assert not hasattr(model.fit(X, y), "feature_names_in_")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastrnn.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'fastrnn\[sklearn\]'"):
        import fastrnn.sklearn  # noqa: F401
