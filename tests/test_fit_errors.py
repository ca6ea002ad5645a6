"""Errors of fit, and when they are raised: arguments, data that are not finite, targets."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.models import K, N, T, classes, classifier, inputs, letters, regressor, steps, targets
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.training import Checkpoint, EarlyStopping, Sequential


def spoilt(where: tuple[int, ...], a: np.ndarray, value: float) -> np.ndarray:
    a = a.copy()
    a[where] = value
    return a


def test_a_loss_that_is_not_finite() -> None:
    x, y = inputs(), targets(N, T)
    model = regressor()
    with pytest.raises(FloatingPointError, match=r"^loss: nan in epoch 1, batch 2: x holds NaN or infinity"):
        model.fit(spoilt((5, 2, 1), x, np.nan), y, batch_size=4, shuffle=False)
    with pytest.raises(FloatingPointError, match=r"^loss: inf in epoch 1, batch 1: y holds infinity"):
        model.fit(x, spoilt((5, 2, 1), y, np.inf), epochs=2)
    before = model.state_dict()
    message = r"^loss: inf .*: x, y and the weights are finite, but the predictions are too"
    with pytest.raises(FloatingPointError, match=message):
        model.fit(x, spoilt((5, 2, 1), y, 1e200))
    assert_same_bits(model.state_dict(), before)
    model.layers[0].parameters()["weight_hh_l0"][0, 0] = np.nan
    message = r"^loss: nan .*: weight_hh_l0 of layer 0 \(GRU\) became non-finite in an ea"
    with pytest.raises(FloatingPointError, match=message):
        model.fit(x, y)


def fit(model: Sequential, x: Any = None, y: Any = None, **options: Any) -> Any:
    return model.fit(inputs() if x is None else x, classes(N) if y is None else y, **options)


BOTH = {"validation_split": 0.5, "validation_data": (inputs(), classes(N))}

#: expected message: arguments of fit, for a classifier
ARGUMENTS: dict[str, dict[str, Any]] = {
    r"x: expected numbers, got objects; pass sequences of unequal length as a list": {
        "x": np.array([*inputs()[:, :2], inputs()[0]], object)[:N]
    },
    r"epochs: expected a positive integer, got 0": {"epochs": 0},
    r"epochs: expected a positive integer, got 1.5": {"epochs": 1.5},
    r"batch_size: expected a positive integer, got -1": {"batch_size": -1},
    r"shuffle: expected True or False, got 1": {"shuffle": 1},
    r"stateful: expected True or False, got None": {"stateful": None},
    r"progress: expected True or False, got 'bar'": {"progress": "bar"},
    r"callbacks: expected a list of Callback, got 3": {"callbacks": [3]},
    r"truncate: expected a model that predicts every step": {"truncate": 2},
    r"stateful: expected shuffle=False, because the order": {"stateful": True},
    r"stateful: expected batches of equal size, got 13 samples in batches of 4": {
        "stateful": True,
        "shuffle": False,
        "batch_size": 4,
    },
    r"validation_split: expected a number in \[0, 1\), got 1": {"validation_split": 1.0},
    r"validation_split: expected a number in \[0, 1\), got -0.1": {"validation_split": -0.1},
    r"validation_split: 0.99 of 13 samples leaves one part empty": {"validation_split": 0.99},
    r"validation_split: expected 0 with validation_data": BOTH,
    r"validation_data: expected \(x, y\), \(x, y, lengths\) or .*, got 3": {"validation_data": 3},
    r"validation_data y: expected shape \(N, \.\.\.\) = \(13, \.\.\.\), got \(5,\)": {
        "validation_data": (inputs(), classes(5))
    },
    r"validation_data x: expected shape": {"validation_data": (classes(5), classes(5))},
    r"monitor: expected one of loss, accuracy, got 'val_loss'": {"callbacks": [EarlyStopping()]},
    r"monitor: expected one of loss, accuracy, got 'mae'": {
        "callbacks": [training.Checkpoint("x", best_only=True, monitor="mae")]
    },
    r"threads: expected a positive integer, got 0": {"threads": 0},
}


@pytest.mark.parametrize("message", ARGUMENTS)
def test_wrong_arguments(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^(layer 0 .LSTM.: )?{message}"):
        fit(classifier(), **ARGUMENTS[message])


STEPS = classes(N, T)


def of_vectors() -> Sequential:
    return compiled(Sequential([fastrnn.Dense(3, K, dtype=np.float64)]))


CALLS: dict[str, Callable[[], Any]] = {
    r"truncate: expected a positive integer, got 0": lambda: fit(regressor(), y=targets(N, T), truncate=0),
    r"truncate: layer 1 \(LSTM\) is bidirectional": lambda: fit(compiled(letters()), STEPS, STEPS, truncate=2),
    r"truncate: needs x with a time axis, got shape \(13, 3\)": lambda: fit(of_vectors(), inputs()[:, 0], truncate=2),
    r'mode: expected "min", "max" or None, got \'more\'': lambda: EarlyStopping(mode="more"),
    r"monitor: expected the name of a loss or metric, got None": lambda: EarlyStopping(None),  # type: ignore[arg-type]
    r"patience: expected a positive integer, got 0": lambda: EarlyStopping(patience=0),
    r"min_delta: expected a finite number of at least 0, got -1": lambda: EarlyStopping(min_delta=-1.0),
    r"monitor, mode: expected None without best_only": lambda: Checkpoint("x", monitor="loss"),
    r"monitor, mode: expected None without best_only=True": lambda: Checkpoint("x", monitor=False, mode=0),
    r"monitor: expected the name of a loss or metric, got False": lambda: Checkpoint(
        "x", best_only=True, monitor=False
    ),
    r'mode: expected "min", "max" or None, got 0': lambda: EarlyStopping(mode=0),  # type: ignore[arg-type]
    r'mode: expected "min", "max" or None, got array': lambda: EarlyStopping(mode=np.array(["min", "max"])),  # type: ignore[arg-type]
    r"threshold: expected a finite number, got nan": lambda: training.Accuracy(np.nan),
    r"threshold: expected a finite number, got inf": lambda: training.metrics.BinaryAccuracy(np.inf),
    r"every: expected a positive integer, got 0": lambda: Checkpoint("x", every=0),
}


@pytest.mark.parametrize("message", CALLS)
def test_errors_of_other_models_and_callbacks(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        CALLS[message]()


def compiled(model: Sequential, loss: str = "categorical_crossentropy") -> Sequential:
    model.compile("sgd", loss)
    return model


def test_layers_of_bfloat16_do_not_train() -> None:
    model = Sequential([fastrnn.LSTM(3, 5, weight_dtype="bfloat16"), fastrnn.Dense(5, K)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"^layer 0 \(LSTM\): .*weights"):
        model.fit(inputs(np.float32), targets(N, T).astype(np.float32))


def binary(loss: str = "binary_crossentropy") -> Sequential:
    """Return a model from (N, T, I) to (N, 1)."""
    gru = fastrnn.GRU(3, 4, reset_after=True, return_sequences=False, rng=0)
    return compiled(Sequential([gru, fastrnn.Dense(4, 1, "sigmoid", rng=1)]), loss)


def number() -> Sequential:
    return binary("mse")


NUMBERS, BINARY = targets(N)[:, :1].astype(np.float32), classes(N)[:, None] % 2
OVER, ONE_HOT = np.r_[BINARY[1:], [[1.5]]].astype(np.float32), np.eye(K, dtype=np.int64)[classes(N)]


def got(dtype: str, *shape: int) -> str:
    return rf"got {dtype} of shape {re.escape(str(shape))}"


#: expected message: a model, and targets that do not fit it, even if only in the last samples
TARGETS: dict[str, tuple[Callable[[], Sequential], Any]] = {
    r"expected classes in 0\.\.3, got 4": (classifier, np.r_[classes(N - 1), 4]),
    r"expected classes in 0\.\.3, got -1": (classifier, np.r_[classes(N - 1), -1]),
    r"expected probabilities in 0\.\.1, got 1\.5": (binary, OVER),
    rf"expected float32 of shape \(N, K\) = \(13, 1\), {got('float32', N)}; y\[:, None\]$": (number, NUMBERS[:, 0]),
    rf"expected float32 .*, {got('float64', N)}; y\[:, None\]\.astype\(np\.float32\)$": (number, targets(N)[:, 0]),
    rf"expected float32 .*, {got('int64', N, 1)}; y\.astype\(np\.float32\)$": (binary, BINARY),
    rf".*, or integer classes of shape \(N,\) = \(13,\), {got('int64', N, K)}; y\.astype\(np\.float64\)$": (
        classifier,
        ONE_HOT,
    ),
    rf".* {got('int64', N, 1)}; classes have no axis of their own: y\[:, 0\]$": (classifier, classes(N)[:, None]),
    rf".* {got('float64', N)}; classes are integers: y\.astype\(int\)$": (classifier, classes(N).astype(float)),
    rf".* {got('int64', N, T)}; for integer classes use the loss .categorical_crossentropy.$": (regressor, STEPS),
    rf".* = \(13, 7, 4\), {got('float64', N, T, 2)}$": (regressor, targets(N, T)[..., :2]),
    r"expected shape \(N, T, \.\.\.\) .*, got \(13, 4\); for one target per sequence, give the last": (
        regressor,
        targets(N),
    ),
}


@pytest.mark.parametrize("message", TARGETS)
def test_invalid_targets_raise_before_the_first_step(message: str) -> None:
    """Also for validation targets and in batches; the message names the caller's argument."""
    make, wrong = TARGETS[message]
    model = make()
    x = inputs(np.float32) if "float32" in message or "probabilities" in message else inputs()
    right = np.asarray(model.predict(x))
    before = model.state_dict()
    options: dict[str, Any] = {"batch_size": 2, "shuffle": False}
    for y, more, name in ((wrong, {}, "y"), (right, {"validation_data": (x, wrong)}, "validation_data y")):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: {message}"):
            model.fit(x, y, **options, **more)
    with pytest.raises((TypeError, ValueError), match=f"^y: {message}"):
        model.fit(x, wrong, **options, validation_split=0.3)
    with pytest.raises((TypeError, ValueError), match=f"^y: {message}"):
        model.evaluate(x, wrong, batch_size=2)
    assert_same_bits(model.state_dict(), before)
    assert model.compiled.optimizer.steps == 0


def test_padding_of_targets_may_be_anything() -> None:
    model, y = compiled(letters()), classes(N, T)
    y[np.arange(T) >= steps()[:, None]] = 99
    model.fit(classes(N, T), y, lengths=steps())
    assert model.evaluate(classes(N, T), y, lengths=steps())["loss"] > 0
