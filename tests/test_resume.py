"""Checkpoints: an interrupted training resumes bit for bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import N, T, classes, classifier, inputs, letters, steps, targets
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.training import Callback, Checkpoint, EarlyStopping, History, Sequential, Training, weight_files

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: training.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: training.Adam(training.ExponentialDecay(0.05, 1, 0.9), clip_norm=0.5),
    "adamw": lambda: training.AdamW(0.01),
    "rmsprop": lambda: training.RMSprop(0.01, momentum=0.5),
}


@pytest.fixture(scope="module", autouse=True)
def safetensors(oracle: Callable[[str], Any]) -> Any:
    return oracle("safetensors")


class Interrupt(Callback):
    """Stop during an epoch, as a user would."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.when = epoch, batch

    def on_batch_end(self, training: Training) -> None:
        if (training.epoch, training.batch) == self.when:
            raise KeyboardInterrupt


def model_of(optimizer: str, dtype: Any = np.float64) -> Sequential:
    model = letters(dtype, num_layers=2, dropout=0.2)
    model = Sequential([*model.layers[:2], fastrnn.Dropout(0.3), model.layers[2]])
    model.compile(OPTIMIZERS[optimizer](), "categorical_crossentropy", ["accuracy"])
    return model


def train(model: Sequential, *callbacks: Callback, rng: Any = 0, epochs: int = 6, **options: Any) -> History:
    every: dict[str, Any] = {"epochs": epochs, "batch_size": 4, "lengths": steps(), "validation_split": 0.2, "rng": rng}
    return model.fit(classes(N, T), classes(N, T), callbacks=callbacks, **every, **options)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resumption_is_bit_identical(dtype: Any, optimizer: str, sparse: bool, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    whole, before, after = (model_of(optimizer, dtype) for _ in range(3))
    for model in (whole, before, after):
        embedding: Any = model.layers[0]
        embedding.sparse = sparse
    expected = train(whole, EarlyStopping(patience=50))
    with pytest.raises(KeyboardInterrupt):
        train(before, EarlyStopping(patience=50), Checkpoint(path), Interrupt(3, 2))
    history = train(after, EarlyStopping(patience=50), resume=path)
    assert history.history == expected.history
    assert_same_bits(after.state_dict(), whole.state_dict())
    assert_same_bits(after.compiled.optimizer.state_dict(), whole.compiled.optimizer.state_dict())
    assert_same_bits({"y": after.predict(classes(N, T))}, {"y": whole.predict(classes(N, T))})


def test_order_of_batches_is_restored(tmp_path: Path) -> None:
    """A list of batches: their random order is part of the checkpoint."""
    batches = [(inputs()[i : i + 3], classes(N)[i : i + 3]) for i in range(0, N, 3)]
    whole, before, after = (classifier(dropout=0.3) for _ in range(3))
    expected = whole.fit(batches, epochs=4, rng=0)
    before.fit(batches, epochs=2, rng=0, callbacks=[Checkpoint(tmp_path / "c")])
    history = after.fit(batches, epochs=4, rng=0, resume=tmp_path / "c")
    assert history.history == expected.history
    assert_same_bits(after.state_dict(), whole.state_dict())


@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_state_of_any_generator_is_restored(bits: str, tmp_path: Path) -> None:
    def generator() -> np.random.Generator:
        return np.random.Generator(getattr(np.random, bits)(3))

    whole, before, after = (model_of("sgd") for _ in range(3))
    expected = train(whole, rng=generator())
    train(before, Checkpoint(tmp_path / "c"), rng=generator(), epochs=2)
    rng = generator()
    rng.random(5)
    assert train(after, rng=rng, resume=tmp_path / "c").history == expected.history
    assert_same_bits(after.state_dict(), whole.state_dict())


def test_windows_and_states(tmp_path: Path) -> None:
    def model() -> Sequential:
        lstm = fastrnn.LSTM(3, 5, num_layers=2, dropout=0.3, dtype=np.float64, rng=1)
        model = Sequential([lstm, fastrnn.Dense(5, 4, dtype=np.float64, rng=2)])
        model.compile("adam", "mse")
        return model

    data: Any = inputs(samples=12), targets(12, T)
    options: Any = {"batch_size": 4, "shuffle": False, "stateful": True, "truncate": 3, "rng": 0}
    whole, before, after = (model() for _ in range(3))
    expected = whole.fit(*data, epochs=4, **options)
    before.fit(*data, epochs=2, callbacks=[Checkpoint(tmp_path / "c")], **options)
    got = after.fit(*data, epochs=4, resume=tmp_path / "c", **options)
    assert got.history == expected.history
    assert_same_bits(after.state_dict(), whole.state_dict())


class Worse(Callback):
    """An accuracy that decreases from the second epoch on."""

    def on_epoch_end(self, training: Training) -> None:
        training.logs["accuracy"] = [0.5, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0][training.epoch - 1]


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_counters_of_early_stopping(stop: int, tmp_path: Path) -> None:
    """Resumed from any epoch, including the last, it stops after the fifth and restores the second's weights."""
    path = str(tmp_path / "c-{epoch}")
    whole, after = classifier(), classifier()
    stopping = EarlyStopping("accuracy", patience=3)
    options: dict[str, Any] = {"epochs": 7, "batch_size": 4, "rng": 0}
    expected = whole.fit(inputs(), classes(N), callbacks=[Checkpoint(path), Worse(), stopping], **options)
    assert (len(expected), stopping.best_epoch) == (5, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"c-{epoch}" for epoch in range(1, 6)]
    stopping = EarlyStopping("accuracy", patience=3)
    resume = path.replace("{epoch}", str(stop))
    got = after.fit(inputs(), classes(N), callbacks=[Worse(), stopping], resume=resume, **options)
    assert (len(got), stopping.best_epoch, stopping.best) == (5, 2, 0.6)
    assert got.history == expected.history
    assert_same_bits(after.state_dict(), whole.state_dict())


def test_when_checkpoints_are_written(tmp_path: Path) -> None:
    def written(**options: Any) -> list[str]:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        checkpoint = Checkpoint(directory / "{epoch}", **options)
        classifier().fit(inputs(), classes(N), 7, callbacks=[checkpoint, Worse()])
        return sorted(p.name for p in directory.iterdir())

    assert written() == list("1234567")
    assert written(every=3) == ["3", "6"]
    assert written(best_only=True, monitor="accuracy") == ["1", "2"]
    assert written(best_only=True, monitor="accuracy", mode="min") == ["1", "3", "4", "5", "6", "7"]
    assert written(best_only=True, monitor="accuracy", every=2) == ["2"]


def test_best_epoch_is_restored(tmp_path: Path) -> None:
    def best() -> Checkpoint:
        return Checkpoint(tmp_path / "best-{epoch}", best_only=True, monitor="accuracy")

    all_of_them = Checkpoint(tmp_path / "c-{epoch}")
    classifier().fit(inputs(), classes(N), 3, callbacks=[Worse(), best(), all_of_them])
    assert (tmp_path / "best-2").exists()
    classifier().fit(inputs(), classes(N), 6, callbacks=[Worse(), best()], resume=tmp_path / "c-3")
    assert sorted(p.name for p in tmp_path.glob("best*")) == ["best-1", "best-2"]


def test_contents_of_a_checkpoint(tmp_path: Path, safetensors: Any) -> None:
    model = classifier()
    stopping = EarlyStopping("loss")
    model.fit(inputs(), classes(N), 2, callbacks=[Checkpoint(tmp_path / "c"), stopping], rng=0)
    with safetensors.safe_open(str(tmp_path / "c"), framework="numpy") as file:
        plain, names = json.loads(file.metadata()["fastrnn"]), set(file.keys())
        assert_same_bits({n: file.get_tensor(n) for n in model.parameters()}, model.state_dict())
    assert (plain["version"], plain["epoch"], plain["layers"]) == (1, 2, ["LSTM", "Dense"])
    assert plain["rng"]["bit_generator"] == "PCG64"
    assert "optimizer.exp_avg.1.weight" in names
    assert "callbacks.EarlyStopping.0.1.weight" in names
    other = classifier()
    other.load_weights(tmp_path / "c")
    assert_same_bits(other.state_dict(), model.state_dict())


def test_a_failed_write_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safetensors: Any) -> None:
    model = classifier()
    model.save(tmp_path / "w")
    before = (tmp_path / "w").read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space"):
        model.save(tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_unwritable_paths_raise_at_the_start(tmp_path: Path, safetensors: Any) -> None:
    """No file is created."""
    (tmp_path / "directory").mkdir()
    model = classifier()
    before = model.state_dict()
    nowhere, directory = tmp_path / "no" / "such", tmp_path / "directory"
    for place, kind, said in (
        (nowhere / "w", FileNotFoundError, f"path: the directory {nowhere} does not exist"),
        (directory, IsADirectoryError, f"path: expected a file, got the directory {directory}"),
    ):
        for write in (
            model.save,
            model.save_weights,
            lambda place: fastrnn.save(place, model),
            lambda place: model.fit(inputs(), classes(N), callbacks=[Checkpoint(place)]),
        ):
            with pytest.raises(kind, match=f"^{re.escape(said)}"):
                write(place)
    for name, read in (
        ("path", model.load_weights),
        ("path", fastrnn.load),
        ("resume", lambda path: model.fit(inputs(), classes(N), resume=path)),
    ):
        with pytest.raises(IsADirectoryError, match=f"^{name}: expected a file, got the directory"):
            read(tmp_path / "directory")
        with pytest.raises(FileNotFoundError, match="nothing"):
            read(tmp_path / "nothing")
    assert_same_bits(model.state_dict(), before)
    assert [path.name for path in tmp_path.rglob("*")] == ["directory"]
    model.fit(inputs(), classes(N), epochs=2, callbacks=[Made(tmp_path), Checkpoint(tmp_path / "{epoch}" / "w")])
    assert (tmp_path / "2" / "w").exists()


class Made(Callback):
    """Creates a directory for each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch_end(self, training: Any) -> None:
        (self.path / str(training.epoch)).mkdir()


def test_a_path_that_the_system_rejects(tmp_path: Path, safetensors: Any) -> None:
    """A name that is too long raises an OSError, whatever safetensors raises."""
    with pytest.raises(OSError, match=r"^path: .* cannot be written"):
        classifier().save(tmp_path / ("w" * 255))
    assert not list(tmp_path.iterdir())


def test_invalid_checkpoints_raise_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    data = inputs(), classes(N)
    classifier().fit(*data, callbacks=[Checkpoint(path), EarlyStopping("loss")])
    model = classifier()
    before = model.state_dict()
    stopping = [EarlyStopping("loss")]

    def resumed(
        message: str, *, path: Path = path, callbacks: Any = stopping, kind: Any = ValueError, **options: Any
    ) -> None:
        with pytest.raises(kind, match=f"^resume: {message}"):
            model.fit(*data, epochs=3, callbacks=callbacks, resume=path, **options)

    model.save(tmp_path / "w")
    resumed("expected a file that Checkpoint wrote, got .*w, with weights only", path=tmp_path / "w")
    model.save_weights(tmp_path / "w")
    resumed("expected a file that Checkpoint wrote, got .*w, with weights only", path=tmp_path / "w")
    resumed(".*c has the callbacks with a state .*EarlyStopping.0.*, expected \\[\\]", callbacks=())
    resumed(".*c has the generator PCG64, expected Philox", rng=np.random.Generator(np.random.Philox(0)))
    model.compile("sgd", "categorical_crossentropy")
    resumed(".*c has the optimizer Adam, expected SGD")
    model.compile("adam", "categorical_crossentropy")
    model.layers = model.layers[:1]
    with pytest.raises(ValueError, match=r"^resume: .*c has layers \['LSTM', 'Dense'\], expected \['LSTM'\]"):
        model.fit(inputs(), np.zeros((N, 5)), callbacks=stopping, resume=path)
    model = classifier()
    monkeypatch.setattr("fastrnn.training.weight_files.VERSION", 0)
    resumed(".*c has format version 1, expected 0")
    with pytest.raises(FileNotFoundError):
        model.fit(*data, resume=tmp_path / "nothing")
    assert_same_bits(model.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [("best", 10**309), ("best", "x"), ("best", []), ("wait", "x"), ("wait", 1.5), ("best_epoch", None)],
)
def test_counters_that_are_not_numbers(name: str, value: Any, tmp_path: Path) -> None:
    """A checkpoint with changed text and a matching checksum."""
    path = tmp_path / "c"
    classifier().fit(inputs(), classes(N), callbacks=[Checkpoint(path), EarlyStopping("loss")])
    tensors, plain = weight_files.read("resume", path)
    plain["callbacks"]["EarlyStopping.0"][name] = value
    weight_files.write(path, tensors, plain)
    model = classifier()
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"^resume: .*c does not fit, or is damaged: "):
        model.fit(inputs(), classes(N), epochs=2, callbacks=[EarlyStopping("loss")], resume=path)
    assert_same_bits(model.state_dict(), before)
