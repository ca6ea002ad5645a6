"""Batches from generators, sequences, loaders and mapped files give the results of the same arrays."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import K, N, T, classes, classifier, inputs, regressor, steps, targets
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.training import Callback, Training

SIZE = 4
SLICES = [slice(start, start + SIZE) for start in range(0, N, SIZE)]


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(inputs()[which], classes(N)[which]) for which in SLICES]


def generated() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from pairs()


class Again:
    """An iterable that is not an iterator."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return generated()


class Numbered:
    """A Keras Sequence."""

    def __init__(self) -> None:
        self.asked, self.ends = list[int](), 0

    def __len__(self) -> int:
        return len(SLICES)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        self.asked.append(i)
        return pairs()[i]

    def on_epoch_end(self) -> None:
        self.ends += 1


def loader(oracle: Callable[[str], Any]) -> Any:
    torch = oracle("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(inputs()), torch.from_numpy(classes(N)))
    return torch.utils.data.DataLoader(data, batch_size=SIZE)


class Mapped(Again):
    def __iter__(self) -> Iterator[Any]:
        return map(list, pairs())


KINDS: dict[str, Callable[[], Any]] = {
    "list": pairs,
    "iterable": Again,
    "sequence": Numbered,
    "dicts": lambda: [{"x": x, "y": y} for x, y in pairs()],
    "lists": lambda: [(list(x), list(y)) for x, y in pairs()],
    "map": Mapped,
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_the_results_of_arrays(kind: str) -> None:
    model, same = classifier(), classifier()
    expected = same.fit(inputs(), classes(N), epochs=3, batch_size=SIZE, shuffle=False).history
    history = model.fit(KINDS[kind](), epochs=3, shuffle=False).history
    assert_same_bits(model.state_dict(), same.state_dict())
    assert history == expected
    assert model.evaluate(KINDS[kind]()) == same.evaluate(inputs(), classes(N), batch_size=SIZE)
    if kind not in ("list", "dicts", "lists"):  # lists of sequences, if there is no y
        assert_same_bits({"y": model.predict(KINDS[kind]())}, {"y": same.predict(inputs(), batch_size=SIZE)})


def test_generators() -> None:
    model, same = classifier(), classifier()
    same.fit(inputs(), classes(N), batch_size=SIZE, shuffle=False)
    model.fit(generated())
    assert_same_bits(model.state_dict(), same.state_dict())
    same.fit(inputs(), classes(N), epochs=2, batch_size=SIZE, shuffle=False)
    model.fit(itertools.chain(generated(), generated()), epochs=2, steps_per_epoch=len(SLICES))
    assert_same_bits(model.state_dict(), same.state_dict())
    assert model.evaluate(generated()) == same.evaluate(inputs(), classes(N), batch_size=SIZE)
    y = same.predict(inputs(), batch_size=SIZE)
    for given in (generated(), (x for x, _ in pairs()), ({"x": x} for x, _ in pairs()), ((x,) for x, _ in pairs())):
        assert_same_bits({"y": model.predict(given)}, {"y": y})


def test_data_loaders(oracle: Callable[[str], Any]) -> None:
    model, same = classifier(), classifier()
    same.fit(inputs(), classes(N), epochs=2, batch_size=SIZE, shuffle=False)
    model.fit(loader(oracle), epochs=2)
    assert_same_bits(model.state_dict(), same.state_dict())
    assert model.evaluate(loader(oracle)) == same.evaluate(inputs(), classes(N), batch_size=SIZE)
    assert_same_bits({"y": model.predict(loader(oracle))}, {"y": same.predict(inputs(), batch_size=SIZE)})


def test_loaders_without_a_length(oracle: Callable[[str], Any]) -> None:
    """A loader of an iterable has a __len__ that raises TypeError."""
    torch = oracle("torch")

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[Any]:
            return zip(inputs(), classes(N), strict=True)

    model, same = classifier(), classifier()
    model.fit(torch.utils.data.DataLoader(Stream(), batch_size=SIZE), epochs=2)
    same.fit(inputs(), classes(N), epochs=2, batch_size=SIZE, shuffle=False)
    assert_same_bits(model.state_dict(), same.state_dict())


def test_epochs_continue_where_the_last_one_ended() -> None:
    """They restart at the end: with three batches per epoch of four, 0 1 2, 3 0 1, 2 3 0."""
    model, same, numbered = classifier(), classifier(), Numbered()
    model.fit(numbered, epochs=3, steps_per_epoch=3, shuffle=False)
    assert numbered.asked == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    same.fit([pairs()[i] for i in numbered.asked], shuffle=False)
    assert_same_bits(model.state_dict(), same.state_dict())
    endless = itertools.cycle(pairs())
    model, same = classifier(), classifier()
    model.fit(endless, epochs=3, steps_per_epoch=3)
    same.fit(Again(), epochs=3, steps_per_epoch=3)
    assert_same_bits(model.state_dict(), same.state_dict())
    assert model.evaluate(Again(), steps=6) == model.evaluate(pairs() + pairs()[:2])
    assert len(model.predict(endless, steps=2)) == 2 * SIZE


def test_batches_of_a_sequence_are_shuffled() -> None:
    numbered, model = Numbered(), classifier()
    model.fit(numbered, epochs=2, rng=0)
    rng = np.random.default_rng(0)
    assert numbered.asked == [*rng.permutation(4), *rng.permutation(4)]
    assert numbered.ends == 2
    again = classifier()
    again.fit(Numbered(), epochs=2, rng=0)
    assert_same_bits(again.state_dict(), model.state_dict())


def test_lengths_of_batches() -> None:
    """Lengths in dicts, or of lists; the padding is NaN."""
    lengths, x, y = steps(), inputs(), targets(N, T)
    past = np.arange(T)[:, None] >= lengths[:, None, None]
    x, y = np.where(past, np.nan, x), np.where(past, np.nan, y)
    model, same = regressor(), regressor()
    same.fit(x, y, epochs=2, batch_size=SIZE, lengths=lengths, shuffle=False)
    given = [{"x": x[which], "y": y[which], "lengths": lengths[which]} for which in SLICES]
    model.fit(given, epochs=2, shuffle=False)
    assert_same_bits(model.state_dict(), same.state_dict())
    expected = same.predict(x, lengths=lengths, batch_size=SIZE)
    assert_same_bits({"y": model.predict(iter(given))}, {"y": expected})
    short = [{"x": x[:SIZE, :3], "lengths": np.minimum(lengths[:SIZE], 3)}, *given[1:]]
    expected[:SIZE, 3:] = 0
    assert_same_bits({"y": model.predict(iter(short))}, {"y": expected})
    lists = [([a[:n] for a, n in zip(x[i], lengths[i], strict=True)], classes(N)[i]) for i in SLICES]
    of_lists, of_arrays = classifier(), classifier()
    of_lists.fit(lists, shuffle=False)
    of_arrays.fit(x, classes(N), lengths=lengths, batch_size=SIZE, shuffle=False)
    assert_same_bits(of_lists.state_dict(), of_arrays.state_dict())


def test_weights_of_batches() -> None:
    """As a third element, like Keras, or by name."""
    w, results = np.random.default_rng(0).random(N), []
    for given in (
        [(x, y, w[which]) for (x, y), which in zip(pairs(), SLICES, strict=True)],
        [{"x": x, "y": y, "sample_weight": w[which]} for (x, y), which in zip(pairs(), SLICES, strict=True)],
    ):
        model = classifier()
        model.fit(given, epochs=2, shuffle=False)
        results.append((model.state_dict(), model.evaluate(given)))
    same = classifier()
    same.fit(inputs(), classes(N), epochs=2, sample_weight=w, batch_size=SIZE, shuffle=False)
    for weights, scores in results:
        assert_same_bits(weights, same.state_dict())
        assert scores == same.evaluate(inputs(), classes(N), sample_weight=w, batch_size=SIZE)
    plain = classifier()
    plain.fit(pairs(), epochs=2, shuffle=False)
    assert (plain.state_dict()["1.weight"] != same.state_dict()["1.weight"]).any()


@pytest.mark.parametrize("kind", ["sequence", "iterable", "list"])
def test_validation_by_batches(kind: str) -> None:
    model, same = classifier(), classifier()
    history = model.fit(inputs(), classes(N), epochs=2, rng=0, validation_data=KINDS[kind]()).history
    data = inputs(), classes(N)
    expected = same.fit(*data, epochs=2, rng=0, validation_data=data).history
    np.testing.assert_allclose(history.pop("val_loss"), expected.pop("val_loss"), rtol=1e-12)  # other batches
    assert history == expected
    assert history["val_accuracy"][-1] == model.evaluate(KINDS[kind]())["accuracy"]
    endless = itertools.cycle(pairs())
    again = classifier().fit(*data, epochs=2, rng=0, validation_data=endless, validation_steps=len(SLICES)).history
    assert again["val_accuracy"] == history["val_accuracy"]


def test_stateful_batches() -> None:
    x, y = inputs(samples=8), targets(8, T)
    model, same = regressor(), regressor()
    same.fit(x, y, epochs=2, batch_size=SIZE, stateful=True, shuffle=False, truncate=3)
    model.fit([(x[:4], y[:4]), (x[4:], y[4:])], epochs=2, stateful=True, shuffle=False, truncate=3)
    assert_same_bits(model.state_dict(), same.state_dict())
    with pytest.raises(ValueError, match=r"^stateful: expected batches of equal size, got 3 samples in batch 2 after"):
        model.fit([(x[:4], y[:4]), (x[4:7], y[4:7])], stateful=True, shuffle=False)


def test_callbacks_get_the_number_of_batches(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Any] = []

    class Note(Callback):
        def on_train_begin(self, training: Training) -> None:
            heard.append(training.batches_per_epoch)

    for x, options in ((Numbered(), {}), (generated(), {}), (Again(), {"steps_per_epoch": 2})):
        classifier().fit(x, callbacks=[Note()], **options)
    assert heard == [4, None, 2]


def test_progress_without_a_known_end(capsys: pytest.CaptureFixture[str], oracle: Callable[[str], Any]) -> None:
    oracle("tqdm")
    classifier().fit(generated(), progress=True)
    assert "4batch" in capsys.readouterr().err


def resident(path: Path) -> int:
    """Return how many bytes of this file the process has in memory."""
    maps = Path("/proc/self/smaps").read_text()
    found = re.findall(rf" {re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    return sum(map(int, found)) * 1024


@pytest.mark.parametrize("options", [{}, {"lengths": 60}, {"validation_split": 0.25}, {"shuffle": False}])
def test_mapped_files_are_read_by_batches(tmp_path: Path, options: dict[str, Any]) -> None:
    """They are neither read nor copied as a whole: 64 MB with nonzero padding."""
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs Linux's list of maps")
    shape = 4096, 64, 64
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=shape)
    x[0, 63] = np.nan if "lengths" in options else 1
    del x
    x = np.memmap(tmp_path / "x", np.float32, "r", shape=shape)
    if "lengths" in options:
        options = {**options, "lengths": np.full(len(x), options["lengths"])}
    model = fastrnn.Sequential([fastrnn.LSTM(64, 4, return_sequences=False), fastrnn.Dense(4, 1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((16, 64, 64), np.float32), np.ones((16, 1), np.float32))  # loads or compiles everything
    peaks: list[int] = []

    class Stop(Callback):
        def on_batch_end(self, training: Training) -> None:
            if training.batch == 3:
                peaks.append(tracemalloc.get_traced_memory()[1])
                raise KeyboardInterrupt

    tracemalloc.start()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, np.zeros((len(x), 1), np.float32), batch_size=16, callbacks=[Stop()], rng=0, **options)
    tracemalloc.stop()
    assert peaks[0] < 4e6  # a batch has 262 kB
    assert 0 < resident(tmp_path / "x") < 16e6


def test_mapped_targets_are_read_by_batches(tmp_path: Path) -> None:
    """Numeric targets, whose range is not checked; also x, in evaluate and predict."""
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs Linux's list of maps")
    for name in ("x", "y"):
        np.memmap(tmp_path / name, np.float32, "w+", shape=(1024, 256, 64))[0, 255] = np.nan
    x, y = (np.memmap(tmp_path / name, np.float32, "r", shape=(1024, 256, 64)) for name in ("x", "y"))
    lengths, seen = np.full(1024, 250), list[int]()
    model = fastrnn.Sequential([fastrnn.RNN(64, 64)])
    model.compile("sgd", "mse")

    class Stop(Callback):
        def on_batch_end(self, training: Training) -> None:
            seen.extend([resident(tmp_path / "x"), resident(tmp_path / "y")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, lengths=lengths, batch_size=4, callbacks=[Stop()])
    assert 0 < max(seen) < 16e6  # of 67 MB


def test_all_targets_are_checked_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.batches, "PART", 3)
    model, y, lengths = classifier(), classes(N), steps()
    model.fit(inputs(), y, lengths=lengths)
    with pytest.raises(ValueError, match=r"^y: expected classes in 0\.\.3, got 4$"):
        model.fit(inputs(), np.r_[y[:-1], K], lengths=lengths)


@pytest.mark.parametrize("weighted", [False, True])
def test_long_lists_of_targets(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They equal padded arrays, although only the first part contains a sequence of the maximal length."""
    x, y = inputs(), targets(N, T)
    lengths = np.r_[T, np.arange(N - 1) % (T - 1) + 1]
    weights = {"sample_weight": np.random.default_rng(3).random(N)} if weighted else {}
    model, padded = regressor(), regressor()
    padded.fit(x, y, lengths=lengths, **weights, rng=0)
    monkeypatch.setattr(training.batches, "PART", 3)
    pieces = [[a[:n] for a, n in zip(whole, lengths, strict=True)] for whole in (x, y)]
    model.fit(*pieces, **weights, rng=0)
    assert_same_bits(model.state_dict(), padded.state_dict())


wrong = inputs()[:4], np.full(4, K)
ONCE = "a generator can be iterated only once"
DICT = "or a dict of x, y, lengths, sample_weight, e, got"


def of_fit() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return x and other arguments of fit by the expected message."""
    return {
        rf"x: {ONCE}, not in each of 3 epochs; pass steps_per_epoch, or": (generated(), {"epochs": 3}),
        rf"validation_data x: {ONCE}, .*; pass validation_steps, or": (
            pairs(),
            {"epochs": 2, "validation_data": generated()},
        ),
        r"x: expected steps_per_epoch = 3 batches in every epoch, got only 1": (
            generated(),
            {"epochs": 2, "steps_per_epoch": 3},
        ),
        r"x: expected at least one batch, got none; the generator is exhausted": (iter([]), {}),
        r"x: expected at least one batch, got none$": (range(0), {}),
        r"x: expected steps_per_epoch = 1 batches in every epoch, got only 0": (iter([]), {"steps_per_epoch": 1}),
        r"validation_split: expected 0, because x yields batches": (pairs(), {"validation_split": 0.5}),
        r"validation_steps: expected None without validation_data, got 2": (pairs(), {"validation_steps": 2}),
        r"y: expected None, because x yields batches with their own y": (generated(), {"y": classes(N)}),
        r"lengths: expected None, because x yields batches with their own lengths": (pairs(), {"lengths": steps()}),
        r"y: expected an array or a sequence, got NoneType": (inputs(), {}),
        r"steps_per_epoch: expected None if x is an array or a list, got 3": (
            inputs(),
            {"y": classes(N), "steps_per_epoch": 3},
        ),
        r"steps_per_epoch: expected a positive integer, got 0": (pairs(), {"steps_per_epoch": 0}),
        rf"batch 1: expected \(x, y\), .* {DICT} ndarray": ((x for x, _ in pairs()), {}),
        rf"batch 1: expected \(x, y\), .* {DICT} a tuple of 1": ([(inputs(),)], {}),
        r"batch 2: expected .*, got a dict of x, z": ([*pairs()[:1], {"x": 1, "z": 2}], {"shuffle": False}),
        r"batch 2 y: expected classes in 0\.\.3, got 4": (iter([*pairs()[:1], wrong]), {}),
        r"validation_data batch 1 y: expected classes": (pairs(), {"validation_data": [wrong]}),
        r"batch 1 x: expected shape \(N, T, I\)": ([(np.zeros(3), classes(3))], {}),
        r"truncate: expected a model that predicts every step": (pairs(), {"truncate": 2}),
        r"x: expected an array, got str": ("data.csv", {}),
        r"x: expected an array, got dict": ({"x": inputs(), "y": classes(N)}, {}),
        r"x: expected an array, got set": ({1, 2}, {}),
        r"x: expected an array, got NoneType": (None, {}),
    }


@pytest.mark.parametrize("message", of_fit())
def test_errors_of_fit(message: str) -> None:
    x, options = of_fit()[message]
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        classifier().fit(x, **options)


ERRORS: dict[str, Callable[[], Any]] = {
    r"x: expected steps = 5 batches in every epoch, got only 4": lambda: classifier().evaluate(generated(), steps=5),
    r"batch 2 y: expected classes in 0\.\.3, got 4": lambda: classifier().evaluate(iter([*pairs()[:1], wrong])),
    rf"batch 1: expected x, \(x, y\), .* {DICT} a tuple of 7": lambda: classifier().predict(iter([(0,) * 7])),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_of_other_methods(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ERRORS[message]()
