"""The time-major batches that a model reads: from arrays and lists, or from the caller's iterable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import chain
from operator import length_hint
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fastrnn.checks import as_array, checked_lengths, extras
from fastrnn.training.padding import Sequences, alike, has_steps, similar, taken, turned, zeros_after
from fastrnn.training.targets import ClassWeights, expect_weights, numbers
from fastrnn.types import Array

#: extra inputs of cells by their names
Extras = Mapping[str, Array]

#: returns the predictions of a batch, time-major
Predict = Callable[["Batch"], Array]

#: elements of y that are checked at a time
PART = 2**20


class Batch(NamedTuple):
    """Time-major samples for one forward pass: a batch, or a part of one."""

    x: Array  #: (T, B, I), (T, B) of integers, or (B, F)
    y: Array | None  #: (T, B, ...) if `stepwise`, else (B, ...)
    lengths: Array | None  #: (B,)
    stepwise: bool  #: whether there is a prediction, and so a target, for every step of x
    weights: Array | None = None  #: weights of the predictions, (T, B) or (B,)
    e: Extras = MappingProxyType({})  #: extra inputs of cells by name, (T, B, ...) or (B, ...)
    which: Any = None  #: a slice or (B,) integers: the numbers of the samples

    @property
    def mask(self) -> Array | None:
        """The lengths of y."""
        return self.lengths if self.stepwise else None

    @property
    def empty(self) -> bool:
        """Whether every sequence is empty, so that nothing is predicted."""
        return self.mask is not None and not self.mask.any()

    def windows(self, size: int | None) -> Iterator[Batch]:
        """Split along time into windows of `size` steps; None yields the whole batch."""
        if size is None:
            yield self
            return
        assert self.y is not None
        for start in range(0, len(self.x), size):
            x, y = self.x[start : start + size], self.y[start : start + size]
            lengths = None if self.lengths is None else np.clip(self.lengths - start, 0, len(x))
            weights = None if self.weights is None else self.weights[start : start + size]
            e = {name: a[start : start + size] if has_steps(a) else a for name, a in self.e.items()}
            yield Batch(x, y, lengths, self.stepwise, weights, e)


class Samples(NamedTuple):
    """Checked samples, batch-first: x is (N, T, I), integer (N, T), or (N, F); values past the lengths are undefined.

    The arrays may be memory-mapped and larger than memory: they are read batch by batch.
    """

    x: Any  #: array or `Sequences`; so is a stepwise y
    y: Any
    lengths: Array | None  #: (N,)
    stepwise: bool
    own_steps: int | None = None  #: steps of the predictions, if they have a time axis that is not that of x
    weights: Any = None  #: weights of the predictions, shaped like `leading`, or (N,) for all steps of a sample
    class_weights: ClassWeights = ClassWeights()
    e: Mapping[str, Any] = MappingProxyType({})  #: extra inputs of cells by name, (N, T, ...) or (N, ...)

    @property
    def size(self) -> int:
        return len(self.x)

    @property
    def leading(self) -> tuple[int, ...]:
        """Leading shape of the predictions: (N, T) if they have a time axis, else (N,)."""
        return (*self.x.shape[: 1 + self.stepwise], *(() if self.own_steps is None else (self.own_steps,)))

    def take(self, which: slice | Array) -> Samples:
        y, lengths, weights = (None if a is None else a[which] for a in (self.y, self.lengths, self.weights))
        e = {name: a[which] for name, a in self.e.items()}
        return self._replace(x=self.x[which], y=y, lengths=lengths, weights=weights, e=e)

    def parts(self, which: slice | Array) -> Sequence[slice | Array]:
        """Split samples into parts of `similar` length, the longest first."""
        if self.lengths is None or len(groups := similar(self.lengths[which])) == 1:
            return [which]
        return [np.arange(self.size)[which][rows] for rows in groups]

    def batch(self, which: slice | Array) -> Batch:
        """Return time-major samples; with lengths, cut to the longest sequence and zero past each length."""
        lengths = None if self.lengths is None else self.lengths[which]
        x = taken(self.x, which, lengths)
        e = {name: turned(taken(a, which, lengths if has_steps(a) else None)) for name, a in self.e.items()}
        y, weights = (None, None) if self.y is None else self._judged(which, lengths)
        if len(self.leading) == 2:
            y, weights = (None if a is None else a.swapaxes(0, 1) for a in (y, weights))
        return Batch(turned(x), y, lengths, self.stepwise, weights, e, which)

    def _judged(self, which: slice | Array, lengths: Array | None) -> tuple[Array, Array | None]:
        """Return y and its weights for some samples, batch-first."""
        axes, lengths = len(self.leading), lengths if self.stepwise else None
        y, weights = taken(self.y, which, lengths), self.weights
        if weights is not None and weights.ndim < axes:
            weights = np.broadcast_to(weights[which][:, None], y.shape[:2])
        elif weights is not None:
            weights = taken(weights, which, lengths)
        return y, self.class_weights.weights(y, weights, axes)

    def batches(self, size: int, order: Array | None = None, whole: bool = False) -> Iterator[list[Batch]]:
        """Yield all samples in batches, in the given order if there is one; in parts, or one part if `whole`."""
        for start in range(0, self.size, size):
            which: slice | Array = slice(start, start + size)
            which = which if order is None else order[which]
            yield [self.batch(part) for part in ([which] if whole else self.parts(which))]

    def predictions(self, predict: Predict, size: int) -> Any:
        """Return the predictions of all samples, batch-first: 0 past the lengths, or as a list if x is one."""
        listed = self.stepwise and isinstance(self.x, Sequences)
        found: Any = [None] * self.size if listed else None
        for part in chain.from_iterable(self.batches(size)):
            y = turned(predict(part))
            if listed:
                for n, a in zip(np.arange(self.size)[part.which], y, strict=True):
                    found[n] = a[: self.x.lengths[n]].copy()
                continue
            if found is None:
                found = np.zeros((*self.leading, y.shape[-1]), y.dtype)
            found[part.which, : y.shape[1]] = y if part.mask is None else zeros_after(y, part.mask)
        return found

    def targets(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield y and its weights (0 past each length) for all samples, a few MB at a time."""
        assert self.y is not None
        some = max(PART // max(math.prod(self.y.shape[1:]), 1), 1)
        for start in range(0, self.size, some):
            for which in self.parts(slice(start, start + some)):
                lengths = None if self.lengths is None else self.lengths[which]
                y, weights = self._judged(which, lengths)
                if lengths is not None and self.stepwise:
                    valid = np.arange(y.shape[1]) < lengths[:, None]
                    weights = valid if weights is None else np.where(valid, weights, 0)
                yield y, weights

    def split(self, fraction: float) -> tuple[Samples, Samples]:
        """Split off the last `fraction` of the samples."""
        first = int(self.size * (1 - fraction))
        if not 0 < first < self.size:
            raise ValueError(f"validation_split: {fraction} of {self.size} samples leaves one part empty")
        return self.take(slice(0, first)), self.take(slice(first, None))


def as_inputs(name: str, x: Any, lengths: Any) -> tuple[Any, Array | None]:
    """Return x as (N, T, I), integer (N, T) or (N, F), or a list as `Sequences`, and its lengths or those given."""
    if isinstance(x, list | tuple):
        if lengths is not None:
            raise ValueError("lengths: expected None with a list of sequences, which has its own lengths")
        x = Sequences(alike(f"{name}: ", x))
        lengths = x.lengths
        if not has_steps(x):
            got = f"{x.ndim - 1} axes of {x.dtype}"
            raise ValueError(f"{name}: expected a list of sequences (T_n, I), or integers (T_n,), got {got}")
    else:
        x = as_array(name, x)
    if x.dtype == object:
        raise TypeError(f"{name}: expected numbers, got objects; pass sequences of unequal length as a list")
    if x.ndim not in (2, 3):
        raise ValueError(f"{name}: expected shape (N, T, I), (N, T) of integers, or (N, F), got {x.shape}")
    if x.size == 0:
        raise ValueError(f"{name}: expected at least one sample of one step and one feature, got shape {x.shape}")
    if lengths is None:
        return x, None
    if not has_steps(x):
        raise ValueError(f"lengths: expected None, because {name} of shape {x.shape} has no time axis")
    return x, checked_lengths(lengths, x.shape[1], len(x))


def as_targets(name: str, y: Any, samples: Samples) -> Any:
    """Return y as (N, T, ...), or a list as `Sequences`, if the model predicts every step; else (N, ...)."""
    every = samples.stepwise and isinstance(y, list | tuple)
    found = as_x(name, y, samples) if every else as_array(name, y, sequence=True)
    leading = samples.leading
    if found.shape[: len(leading)] != leading:
        meaning = "(N, T, ...)" if len(leading) == 2 else "(N, ...)"
        shape = ", ".join([*map(str, leading), "..."])
        one = samples.stepwise and len(found) == samples.size
        hint = "; for one target per sequence, give the last recurrent layer return_sequences=False" if one else ""
        raise ValueError(f"{name}: expected shape {meaning} = ({shape}), got {found.shape}{hint}")
    return found


def as_weights(name: str, weights: Any, samples: Samples) -> Any:
    """Return weights as (N,), or, if the model predicts every step, as (N, T), or a list as `Sequences`."""
    if weights is None:
        return None
    leading = samples.leading
    every = samples.stepwise and isinstance(weights, list | tuple) and any(map(np.ndim, weights))
    w: Any = as_x(name, [numbers(name, a) for a in weights], samples) if every else numbers(name, weights)
    if w.shape not in (leading, leading[:1]):
        meaning = "(N,) or (N, T)" if len(leading) == 2 else "(N,)"
        expected = " or ".join(map(str, dict.fromkeys((leading[:1], leading))))
        raise ValueError(f"{name}: expected shape {meaning} = {expected}, got {w.shape}")
    listed = isinstance(w, Sequences)
    if samples.stepwise and samples.lengths is not None and w.ndim == 2 and not listed:
        w = zeros_after(w, samples.lengths)
    expect_weights(name, np.concatenate(w.arrays) if listed else w)
    return w


def as_extras(name: str, e: Any, names: Sequence[str], samples: Samples) -> Mapping[str, Any]:
    """Return extra inputs by name, (N, T, ...) or (N, ...), or a list as `Sequences`."""
    e = extras(name, e, names)
    found: dict[str, Any] = {}
    for key in names:
        own = f"{name} {key!r}"
        a = e[key]
        a = found[key] = as_x(own, a, samples) if isinstance(a, list | tuple) else as_array(own, a)
        if a.ndim not in (2 + isinstance(a, Sequences), 3) or a.shape[: a.ndim - 1] != samples.x.shape[: a.ndim - 1]:
            N, T = samples.x.shape[:2]
            expected = f"(N, T, H), (N, T, 1), (N, H) or (N, 1) with N, T = {N}, {T}"
            raise ValueError(f"{own}: expected shape {expected}, got {a.shape}")
    return found


def as_x(name: str, sequences: Sequence[Any], samples: Samples) -> Any:
    """Return a list with values for every step of x, as `Sequences`, or as an array if x has no lengths."""
    a = Sequences(alike(f"{name}: ", sequences))
    expected = np.full(samples.size, samples.x.shape[1]) if samples.lengths is None else samples.lengths
    for n, (got, wanted) in enumerate(zip(a.lengths, expected, strict=False)):
        if got != wanted:
            raise ValueError(f"{name}: expected {wanted} steps in sequence {n}, as x has, got {got}")
    return a if samples.lengths is not None else a.padded()


#: fields of a batch, as a tuple and as a dict, and those that training needs
TUPLE = ("x", "y", "sample_weight")
FIELDS = ("x", "y", "lengths", "sample_weight", "e")
NEEDED = {"x", "y"}


class ArraySource:
    """Batches of `size` samples from arrays; an `IterableSource` has the same methods."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.samples, self._size = samples, size
        self._whole = False

    @property
    def batches_per_epoch(self) -> int | None:
        """Number of batches, or None if it is unknown before the end."""
        return math.ceil(self.samples.size / self._size)

    def epoch(self, rng: np.random.Generator | None) -> Iterator[list[Batch]]:
        """Yield all batches once, in parts; with rng, shuffled if the source has no order of its own."""
        order = None if rng is None else rng.permutation(self.samples.size)
        return self.samples.batches(self._size, order, self._whole)

    def expect_epochs(self, number: int) -> None:
        """Raise ValueError if it cannot be iterated this often; arrays can."""

    def expect_equal(self, whole: bool) -> None:
        """Require batches of equal size, checked now or when they are read; each in one part if `whole`."""
        self._whole = whole
        if self.samples.size % self._size:
            got = f"{self.samples.size} samples in batches of {self._size}"
            raise ValueError(f"stateful: expected batches of equal size, got {got}")

    def split(self, fraction: float) -> tuple[Source, Source]:
        """Split off the last `fraction` of the samples."""
        first, last = self.samples.split(fraction)
        return ArraySource(first, self._size), ArraySource(last, self._size)

    def predictions(self, predict: Predict) -> Any:
        """Return the predictions of all samples, as `Samples.predictions`."""
        return self.samples.predictions(predict, self._size)


class IterableSource:
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
        self._equal = self._whole = False

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

    def expect_equal(self, whole: bool) -> None:
        self._equal, self._whole = True, whole

    def epoch(self, rng: np.random.Generator | None) -> Iterator[list[Batch]]:
        for samples in self._all(rng):
            yield from samples.batches(samples.size, whole=self._whole)

    def _all(self, rng: np.random.Generator | None) -> Iterator[Samples]:
        size = 0
        for number, given in enumerate(self._one_pass(rng) if self._steps is None else self._some(rng), 1):
            samples = self._read(f"batch {number}", given)
            if self._equal and number > 1 and samples.size != size:
                got = f"{samples.size} samples in batch {number} after {size}"
                raise ValueError(f"stateful: expected batches of equal size, got {got}")
            size = samples.size
            yield samples
        if size == 0:
            why = "; the generator is exhausted" if self._once else ""
            raise ValueError(f"{self._name}: expected at least one batch, got none{why}")

    def split(self, fraction: float) -> tuple[Source, Source]:
        raise ValueError(
            f"validation_split: expected 0, because {self._name} yields batches and cannot be split, "
            f"got {fraction}; pass validation_data"
        )

    def predictions(self, predict: Predict) -> Any:
        every = [samples.predictions(predict, samples.size) for samples in self._all(None)]
        if any(isinstance(y, list) for y in every):
            return list(chain.from_iterable(every))
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


#: source of batches for training, evaluation or prediction
Source = ArraySource | IterableSource


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
