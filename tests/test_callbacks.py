"""Callbacks: when they are called, early stopping, progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from support.models import Give, N, classes, classifier, inputs
from support.tolerance import assert_same_bits

from fastrnn import training
from fastrnn.training import Callback, EarlyStopping, Training


def test_order_of_callback_calls() -> None:
    calls: list[Any] = []

    class Note(Callback):
        def on_train_begin(self, training: Training) -> None:
            calls.append("begin")

        def on_epoch_begin(self, training: Training) -> None:
            calls.append(("epoch", training.epoch))

        def on_batch_end(self, training: Training) -> None:
            calls.append((training.batch, sorted(training.logs)))

        def on_epoch_end(self, training: Training) -> None:
            calls.append((training.epoch, sorted(training.logs), len(training.history)))
            training.stop()

        def on_train_end(self, training: Training) -> None:
            calls.append("end")

    model = classifier()
    options: dict[str, Any] = {"epochs": 5, "batch_size": 10, "validation_split": 0.1, "truncate": None}
    history = model.fit(inputs(), classes(N), callbacks=[Note()], **options)
    batch = ["accuracy", "loss"]
    assert calls == ["begin", ("epoch", 0), (1, batch), (2, batch), (1, [*batch, "val_accuracy", "val_loss"], 1), "end"]
    assert len(history) == 1
    assert repr(history).startswith("History of 1 epochs: loss ")


@pytest.mark.parametrize(
    ("name", "values", "options", "epochs", "best"),
    [
        ("loss", [3, 2, 2.5, 2.4, 2.1, 1], {"patience": 3}, 5, 2),
        ("loss", [3, 2, 2.5, 2.4, 2.1, 1], {"patience": 4}, 6, 6),
        ("loss", [3, 2.9, 2.8, 2, 2, 2], {"patience": 2, "min_delta": 0.5}, 3, 1),
        ("loss", [3, 2.9, 2.8, 2, 1, 0], {"patience": 3, "min_delta": 0.5}, 6, 6),
        ("accuracy", [0.5, 0.6, 0.6, 0.5, 0.9, 0], {"patience": 2}, 4, 2),
        ("accuracy", [0.5, 0.6, 0.6, 0.5, 0.9, 0], {"patience": 2, "mode": "min"}, 3, 1),
        ("loss", [math.nan, 1, math.nan, math.nan, 0, 0], {"patience": 2}, 4, 2),
        ("loss", [1, 2, 3, 4, 5, 6], {"patience": 1, "mode": "max"}, 6, 6),
    ],
)
@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping(
    restore: bool, name: str, values: list[float], options: dict[str, Any], epochs: int, best: int
) -> None:
    model, give = classifier(), Give(name, values)
    stopping = EarlyStopping(name, restore_best=restore, **options)
    history = model.fit(inputs(), classes(N), epochs=6, rng=0, callbacks=[give, stopping])
    assert (len(history), stopping.best_epoch, stopping.best) == (epochs, best, values[best - 1])
    assert_same_bits(model.state_dict(), give.weights[(best if restore else epochs) - 1])
    after = EarlyStopping(name, restore_best=restore, **options)
    again = classifier().fit(inputs(), classes(N), epochs=6, rng=0, callbacks=[Give(name, values), after])
    fresh = classifier().fit(inputs(), classes(N), epochs=6, rng=0, callbacks=[Give(name, values), stopping])
    assert again.history == fresh.history == history.history  # values from the previous training are forgotten


def test_progress(capsys: pytest.CaptureFixture[str], oracle: Callable[[str], Any]) -> None:
    oracle("tqdm")
    classifier().fit(inputs(), classes(N), epochs=2, batch_size=5, progress=True)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "accuracy=" in shown


@pytest.mark.parametrize(
    "made",
    [
        "EarlyStopping('val_loss', patience=5, min_delta=0.0, restore_best=True, mode=None)",
        "EarlyStopping('mae', patience=2, min_delta=0.5, restore_best=False, mode='max')",
        "Checkpoint('model-{epoch}', every=3)",
        "Checkpoint('model', every=1, best_only=True, monitor='loss', mode='min')",
    ],
)
def test_repr_of_callbacks(made: str) -> None:
    assert repr(eval(made, vars(training))) == made
