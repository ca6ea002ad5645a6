"""Sample and class weights, and ignored classes: invalid arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.batches import one_hot
from support.models import K, N, T, classes, every_step, inputs

import fastrnn
from fastrnn.training import CategoricalCrossentropy, Sequential

DATA = inputs(), classes(N, T), None

VALUES: dict[str, dict[str, Any]] = {
    r"sample_weight: expected shape \(N,\) or \(N, T\) = \(13,\) or \(13, 7\), got \(5,\)": {
        "sample_weight": np.ones(5)
    },
    r"sample_weight: expected finite numbers of at least 0, got -1": {"sample_weight": -np.ones(N)},
    r"sample_weight: expected finite numbers of at least 0, got nan": {"sample_weight": np.full((N, T), np.nan)},
    r"class_weight: expected classes in 0\.\.3, got 4": {"class_weight": {4: 1.0}},
    r"class_weight: expected an integer of at least 0, got -1": {"class_weight": {-1: 1.0}},
    r"class_weight\[1\]: expected a finite number of at least 0, got -2": {"class_weight": {1: -2.0}},
    r"accumulate: expected a positive integer, got 0": {"accumulate": 0},
    r"accumulate: expected 1 with truncate or stateful, got 2": {"accumulate": 2, "truncate": 2},
    r"y: expected at least one valid target; all are NaN": {"sample_weight": np.zeros(N)},
    r"validation_data y: expected at least one valid target": {"validation_data": (*DATA, np.zeros(N))},
    r"validation_data sample_weight: expected finite numbers": {"validation_data": (*DATA, -np.ones(N))},
}
TYPES: dict[str, dict[str, Any]] = {
    r"sample_weight: expected numbers, got": {"sample_weight": ["1"] * N},
    r"class_weight: expected a dict from classes to weights, got \[1\]": {"class_weight": [1]},
    r"ignore_index: expected an integer or None, got 0\.5": {"ignore_index": 0.5},
}


@pytest.mark.parametrize("message", [*VALUES, *TYPES])
def test_errors(message: str) -> None:
    error, options = (ValueError, VALUES[message]) if message in VALUES else (TypeError, TYPES[message])
    model = every_step()
    model.compile("adam", CategoricalCrossentropy(from_logits=True))
    with pytest.raises(error, match=f"^{message}"):
        model.fit(inputs(), classes(N, T), **options)
    if set(options) <= {"sample_weight", "class_weight", "ignore_index"}:
        with pytest.raises(error, match=f"^{message}"):
            model.evaluate(inputs(), classes(N, T), **options)


def test_negative_classes_get_a_hint() -> None:
    model, c = every_step(), classes(N, T)
    c[3, 2] = -1
    model.compile("adam", CategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"^y: expected classes in 0\.\.3, got -1; to ignore it, pass ignore_index=-1"):
        model.fit(inputs(), c)
    with pytest.raises(ValueError, match=r"^y: expected classes in 0\.\.3, got -100"):
        model.fit(inputs(), np.where(c < 0, -100, c), ignore_index=None)


def test_class_weight_needs_classes() -> None:
    model = every_step()
    for loss in ("mse", "binary_crossentropy"):
        model.compile("adam", loss)
        with pytest.raises(ValueError, match=r"^class_weight: expected a loss with one class per target"):
            model.fit(inputs(), np.zeros((N, T, K)), class_weight={0: 1.0})


@pytest.mark.parametrize("form", ["one hot", "binary"])
def test_class_weight_with_other_targets(form: str) -> None:
    """One-hot rows, and 0 or 1 for a single output."""
    k = K if form == "one hot" else 1
    dense = fastrnn.Dense(3, k, "softmax" if k > 1 else "sigmoid", dtype=np.float64, rng=0)
    model, x, c = Sequential([dense]), inputs()[:, 0], classes(N) % (k if k > 1 else 2)
    y = one_hot(c) if k > 1 else c[:, None].astype(float)
    model.compile("sgd", "categorical_crossentropy" if k > 1 else "binary_crossentropy", ["accuracy"])
    class_weight = {0: 0.5, 1: 4.0}
    w = np.array([class_weight.get(int(one), 1.0) for one in c])
    assert model.evaluate(x, y, class_weight=class_weight) == model.evaluate(x, y, sample_weight=w)
    assert model.evaluate(x, y, class_weight=class_weight) != model.evaluate(x, y)
