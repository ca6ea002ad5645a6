"""ReduceLROnPlateau: compared with Keras' callback of this name, and resumed after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.models import Give, N, T, inputs, regressor, targets
from support.tolerance import assert_same_bits

from fastrnn import training
from fastrnn.training import ReduceLROnPlateau


def rates(values: list[float], name: str = "loss", rate: float = 0.5, **options: Any) -> list[float]:
    """Return the learning rate of every epoch, and the one after the last."""
    model, give = regressor(), Give(name, values)
    model.compile(training.SGD(rate), "mse", ["mae"])
    callbacks = [give, ReduceLROnPlateau(name, **options)]
    model.fit(inputs(), targets(N, T), epochs=len(values), callbacks=callbacks, rng=0)
    return [*give.rates, model.compiled.optimizer.rate]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3, 2, 2, 2, 1, 1], {"patience": 2, "factor": 0.5}, [0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]),
        (
            [3, 3, 3, 3, 3, 3],
            {"patience": 1, "factor": 0.5, "cooldown": 2},
            [0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625],
        ),
        ([3, 3, 3, 3], {"patience": 1, "factor": 0.5, "min_lr": 0.2}, [0.5, 0.5, 0.25, 0.2, 0.2]),
        ([3, 2.95, 2.9, 2.85], {"patience": 2, "factor": 0.5, "min_delta": 0.2}, [0.5, 0.5, 0.5, 0.25, 0.25]),
        ([1, 2, 3, 4], {"patience": 2, "mode": "max"}, [0.5] * 5),
        ([np.nan, np.nan, 1, 1], {"patience": 2, "factor": 0.5}, [0.5, 0.5, 0.25, 0.25, 0.25]),
    ],
)
def test_rates(values: list[float], options: dict[str, Any], expected: list[float]) -> None:
    assert rates(values, **options) == pytest.approx(expected, rel=1e-15)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(20))
def test_rates_are_keras(seed: int, keras: Any) -> None:
    rng = np.random.default_rng(seed)
    values = [float(v) for v in np.round(rng.random(25) * 2, 1)]
    options: dict[str, Any] = {
        "factor": float(rng.choice([0.1, 0.5, 0.9])),
        "patience": int(rng.integers(1, 4)),
        "min_delta": float(rng.choice([1e-4, 0.25])),
        "cooldown": int(rng.integers(0, 4)),
        "min_lr": float(rng.choice([0, 0.01])),
    }
    mode = str(rng.choice(["min", "max"]))
    theirs = keras.callbacks.ReduceLROnPlateau("loss", mode=mode, **options)
    made = SimpleNamespace(optimizer=SimpleNamespace(learning_rate=0.5))
    theirs.set_model(made)
    theirs.on_train_begin()
    expected = [0.5]
    for epoch, value in enumerate(values):
        theirs.on_epoch_end(epoch, {"loss": value})
        expected.append(float(made.optimizer.learning_rate))
    assert rates(values, mode=mode, **options) == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 1


def test_the_next_training_starts_with_the_lowered_rate() -> None:
    """Its counts start at zero."""
    model, lower = regressor(), ReduceLROnPlateau("loss", patience=2, factor=0.5)
    model.compile(training.SGD(0.5), "mse")
    for expected in (0.25, 0.125):
        model.fit(inputs(), targets(N, T), epochs=3, callbacks=[Give("loss", [1, 1, 1]), lower])
        assert model.compiled.optimizer.rate == expected


def test_resumption_is_bit_identical(tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    """The rate, the best value and the counts come from the checkpoint."""
    oracle("safetensors")
    values = [3.0, 2.0, 2.0, 2.0, 2.5, 2.0, 1.0, 2.0, 2.0]
    path, options = tmp_path / "checkpoint", {"patience": 2, "factor": 0.5, "cooldown": 1}
    results = []
    for stops in ([9], [3, 9], [4, 9], [5, 6, 9]):
        for begin, end in zip([0, *stops], stops, strict=False):
            model, give = regressor(), Give("loss", values)
            callbacks = [give, ReduceLROnPlateau("loss", **options), training.Checkpoint(path)]
            resume = {"resume": path} if begin else {}
            model.fit(inputs(), targets(N, T), epochs=end, batch_size=4, rng=0, callbacks=callbacks, **resume)
        results.append((model.state_dict(), model.compiled.optimizer.rate))
    assert results[0][1] < 0.1 / 2
    for weights, rate in results[1:]:
        assert rate == results[0][1]
        assert_same_bits(weights, results[0][0])


def test_errors() -> None:
    for message, options in (
        (r"factor: expected a number in \[0, 1\)", {"factor": 1.0}),
        ("patience: expected a positive integer", {"patience": 0}),
        ("min_delta: expected a finite number of at least 0", {"min_delta": -1.0}),
        ("cooldown: expected an integer of at least 0", {"cooldown": -1}),
        ("min_lr: expected a finite number of at least 0", {"min_lr": -0.1}),
        ("mode: expected", {"mode": "least"}),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            ReduceLROnPlateau(**options)  # type: ignore[arg-type]
    model = regressor()
    with pytest.raises(ValueError, match=r"^monitor: expected one of loss, got 'val_loss'"):
        model.fit(inputs(), targets(N, T), callbacks=[ReduceLROnPlateau()])
    model.compile(training.SGD(lambda step: 0.1), "mse")
    with pytest.raises(ValueError, match=r"^learning_rate: expected a number with ReduceLROnPlateau, got a schedule"):
        model.fit(inputs(), targets(N, T), callbacks=[ReduceLROnPlateau("loss")])


def test_repr() -> None:
    made = "ReduceLROnPlateau('mae', factor=0.5, patience=2, min_delta=0.1, cooldown=1, min_lr=0.01, mode='max')"
    assert repr(eval(made, vars(training))) == made
