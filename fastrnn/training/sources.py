"""Sources of batches: arrays, which are split into batches, or an iterable of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from operator import length_hint
from typing import Any, Protocol

import numpy as np

from fastrnn.cells import Array
from fastrnn.training.batches import Batch, Samples

#: fields of a batch, as a tuple and as a dict, and those that training needs
TUPLE = ("x", "y", "sample_weight")
FIELDS = ("x", "y", "lengths", "sample_weight", "e")
NEEDED = {"x", "y"}


class Source(Protocol):
    """Source of batches for training, evaluation or prediction."""

    @property
    def batches_per_epoch(self) -> int | None:
        """Number of batches, or None if it is unknown before the end."""

    def epoch(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        """Yield all batches once; with rng, shuffled if the source has no order of its own."""

    def expect_epochs(self, number: int) -> None:
        """Raise ValueError if it cannot be iterated this often."""

    def expect_equal(self) -> None:
        """Require batches of equal size, checked now or when they are read."""

    def split(self, fraction: float) -> tuple[Source, Source]:
        """Split off the last `fraction` of the samples."""

    def joined(self, predictions: Iterator[Array]) -> Array:
        """Join the predictions of all batches into one array, batch-first."""


class Arrays:
    """Batches of `size` samples from arrays."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.samples, self._size = samples, size

    @property
    def batches_per_epoch(self) -> int | None:
        return math.ceil(self.samples.size / self._size)

    def epoch(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        return self.samples.batches(self._size, None if rng is None else rng.permutation(self.samples.size))

    def expect_epochs(self, number: int) -> None:
        """Accept any number."""

    def expect_equal(self) -> None:
        if self.samples.size % self._size:
            got = f"{self.samples.size} samples in batches of {self._size}"
            raise ValueError(f"stateful: expected batches of equal size, got {got}")

    def split(self, fraction: float) -> tuple[Source, Source]:
        first, last = self.samples.split(fraction)
        return Arrays(first, self._size), Arrays(last, self._size)

    def joined(self, predictions: Iterator[Array]) -> Array:
        samples, out, start = self.samples, None, 0
        for y in predictions:
            if out is None:
                leading = samples.leading
                out = np.zeros((*leading, *y.shape[len(leading) :]), y.dtype)
            rows = out[start : start + len(y)]
            rows[:, : y.shape[1]] = y
            start += len(y)
        assert out is not None  # there is at least one sample
        return out


class Given:
    """Batches from the caller's iterable or sequence.

    Parameters
    ----------
    name : str
        Its name in messages.
    batches : iterable, or an object with ``__len__`` and ``__getitem__``
    read : callable
        Returns checked samples, given a name for messages ("batch 3") and a batch.
    steps : int, optional
        Batches per epoch; each epoch continues where the one before ended, and restarts at the end.
    argument : str
        Name of the argument that gave `steps`.
    """

    def __init__(
        self, name: str, batches: Any, read: Callable[[str, Any], Samples], steps: int | None, argument: str
    ) -> None:
        self._name, self._batches, self._read, self._steps, self._argument = name, batches, read, steps, argument
        self._indexed = indexed(batches)
        self._once = isinstance(batches, Iterator)
        self._running: Iterator[Any] = iter(())
        self._began = False
        self._equal = False

    @property
    def batches_per_epoch(self) -> int | None:
        if self._steps is not None:
            return self._steps
        number = length_hint(self._batches, -1)  # a loader may have a __len__ that raises TypeError
        return None if number < 0 else number

    def expect_epochs(self, number: int) -> None:
        if self._once and self._steps is None and number > 1:
            raise ValueError(
                f"{self._name}: a generator can be iterated only once, not in each of {number} epochs; pass "
                f"{self._argument}, or batches that can be iterated again: a Sequence, a DataLoader"
            )

    def expect_equal(self) -> None:
        self._equal = True

    def epoch(self, rng: np.random.Generator | None) -> Iterator[Batch]:
        size = 0
        for number, given in enumerate(self._one_pass(rng) if self._steps is None else self._some(rng), 1):
            samples = self._read(f"batch {number}", given)
            if self._equal and number > 1 and samples.size != size:
                got = f"{samples.size} samples in batch {number} after {size}"
                raise ValueError(f"stateful: expected batches of equal size, got {got}")
            size = samples.size
            yield samples.batch(slice(None))
        if size == 0:
            why = "; the generator is exhausted" if self._once else ""
            raise ValueError(f"{self._name}: expected at least one batch, got none{why}")

    def split(self, fraction: float) -> tuple[Source, Source]:
        raise ValueError(
            f"validation_split: expected 0, because {self._name} yields batches and cannot be split, "
            f"got {fraction}; pass validation_data"
        )

    def joined(self, predictions: Iterator[Array]) -> Array:
        every = list(predictions)
        longest = max([y.shape[1] for y in every])
        if any(y.shape[1] < longest for y in every):
            every = [np.pad(y, [(0, 0), (0, longest - y.shape[1]), (0, 0)]) for y in every]
        return np.concatenate(every)

    def _one_pass(self, rng: np.random.Generator | None) -> Iterator[Any]:
        if not self._indexed:
            yield from self._batches
            return
        count = len(self._batches)
        for i in range(count) if rng is None else rng.permutation(count):
            yield self._batches[int(i)]
        if hasattr(self._batches, "on_epoch_end"):  # Keras' hook, for instance to shuffle samples
            self._batches.on_epoch_end()

    def _some(self, rng: np.random.Generator | None) -> Iterator[Any]:
        assert self._steps is not None
        end = object()
        for done in range(self._steps):
            given = next(self._running, end)
            if given is end and not (self._once and self._began):
                self._began, self._running = True, self._one_pass(rng)
                given = next(self._running, end)
            if given is end:
                raise ValueError(
                    f"{self._name}: expected {self._argument} = {self._steps} batches in every epoch, got only {done}"
                )
            yield given


def fields(name: str, given: Any, targets: bool) -> dict[str, Any]:
    """Return the fields of a batch by name: x, with `targets` also y, and any optional ones."""
    found = {} if targets else {"x": given}
    if isinstance(given, Mapping):
        found = dict(given)
    elif isinstance(given, tuple | list):
        found = dict(zip(TUPLE, given, strict=False)) if len(given) <= len(TUPLE) else {}
    if not (NEEDED if targets else {"x"}) <= found.keys() <= {*FIELDS}:
        what = f"{'' if targets else 'x, '}(x, y), ({', '.join(TUPLE)}) or a dict of {', '.join(FIELDS)}"
        got = type(given).__name__
        if isinstance(given, Mapping):
            got = f"a dict of {', '.join(map(str, given))}"
        elif isinstance(given, tuple | list):
            got = f"a {got} of {len(given)}"
        raise TypeError(f"{name}: expected {what}, got {got}")
    return {"y": None} | found


def indexed(x: Any) -> bool:
    return hasattr(x, "__getitem__") and hasattr(x, "__len__")


def gives_batches(x: Any) -> bool:
    """Return whether x yields batches, rather than being an array or a list of sequences.

    A list of tuples or dicts yields batches.
    """
    if isinstance(x, list):
        return bool(x) and isinstance(x[0], tuple | Mapping)
    if isinstance(x, tuple | str | Mapping | Set | memoryview) or hasattr(x, "shape") or hasattr(x, "__dlpack__"):
        return False
    try:
        memoryview(x)
    except TypeError:
        return hasattr(x, "__iter__") or indexed(x)
    except (BufferError, ValueError):
        pass  # an array, but not a readable one
    return False
