"""Convert the user's samples to the time-major batches that a model reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import (
    among,
    as_array,
    checked_lengths,
    describe,
    expect_mapping,
    expect_names,
    expect_shape,
    number,
    positive,
)
from fastrnn.training.targets import Counting, expect_weights, numbers

#: extra inputs of cells by their names
Extras = Mapping[str, Array]

#: elements of y that are checked at a time
PART = 2**20


def pad_sequences(
    sequences: Sequence[Any],
    maxlen: int | None = None,
    *,
    padding: str = "post",
    truncating: str = "post",
    value: float = 0,
) -> tuple[Array, Array]:
    """Stack sequences of unequal length, padding the shorter ones at the end or at the start.

    Parameters
    ----------
    sequences : sequence of N arrays (T_n, ...)
        Equal dtypes, and equal shapes except for the length; values are dimensionless.
    maxlen : int, optional
        T; longer sequences are truncated. The longest length by default.
    padding : {"post", "pre"}
        Pad at the end or at the start. ``lengths=`` of layers and of `fit` needs "post". Use "pre" (Keras' default)
        for a model that was trained on such arrays without a mask and so reads the padding as steps; pass no lengths.
    truncating : {"post", "pre"}
        Drop the last steps, or the first ones (Keras' default).
    value : number
        Padding value.

    Returns
    -------
    x : (N, T, ...) array
    lengths : (N,) int64 array
        T_n, at most T.

    Raises
    ------
    TypeError
        If the dtypes differ, a sequence is not an array, or an argument has the wrong type.
    ValueError
        If there are no sequences, shapes differ after the first axis, an argument is wrong, or the dtype cannot
        represent `value`.

    See Also
    --------
    from_mask : Convert padding at the start, or between steps, to `lengths`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import pad_sequences
    >>> sequences = [np.array([1, 2, 3]), np.array([4])]
    >>> x, lengths = pad_sequences(sequences)
    >>> x
    array([[1, 2, 3],
           [4, 0, 0]])
    >>> lengths
    array([3, 1])
    >>> pad_sequences(sequences, maxlen=2, padding="pre", truncating="pre")[0]
    array([[2, 3],
           [0, 4]])
    """
    for name, side in (("padding", padding), ("truncating", truncating)):
        if not among(side, ("post", "pre")):
            raise ValueError(f'{name}: expected "post" or "pre", got {side!r:.80}')
    arrays = alike("", sequences)
    first = arrays[0]
    T = max([len(a) for a in arrays]) if maxlen is None else positive("maxlen", maxlen)
    lengths = np.array([min(len(a), T) for a in arrays], np.int64)
    x = np.full((len(arrays), T, *first.shape[1:]), filler(value, first.dtype), first.dtype)
    for row, a, steps in zip(x, arrays, lengths, strict=True):
        kept = slice(len(a) - steps, None) if truncating == "pre" else slice(steps)
        row[T - steps if padding == "pre" else 0 :][:steps] = a[kept]
    return x, lengths


def alike(argument: str, sequences: Sequence[Any]) -> list[Array]:
    """Return the sequences as arrays, which must agree in dtype and, except for the length, in shape."""
    arrays = [as_array(f"{argument}sequence {n}", s, sequence=True) for n, s in enumerate(sequences)]
    if not arrays:
        raise ValueError(f"{argument or 'sequences: '}expected at least one sequence, got none")
    first = arrays[0]
    for n, a in enumerate(arrays):
        if a.ndim == 0 or a.shape[1:] != first.shape[1:]:
            expected = ("T", *first.shape[1:])
            raise ValueError(f"{argument}sequence {n}: expected shape ({', '.join(map(str, expected))}), got {a.shape}")
        if a.dtype != first.dtype:
            raise TypeError(f"{argument}sequence {n}: expected dtype {first.dtype}, that of sequence 0, got {a.dtype}")
    return arrays


class Sequences:
    """Sequences of unequal length that report their padded shape; each batch is padded separately."""

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays, self.lengths = arrays, np.array([len(a) for a in arrays], np.int64)
        self.shape: tuple[int, ...] = (len(arrays), int(self.lengths.max()), *arrays[0].shape[1:])
        self.dtype, self.ndim, self.size = arrays[0].dtype, len(self.shape), math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, which: slice | Array) -> Sequences:
        return Sequences([self.arrays[n] for n in np.arange(len(self))[which]])

    def first(self, steps: int) -> Array:
        """Return the sequences padded to (N, steps, ...); `steps` is at least the longest length."""
        a = np.zeros((len(self), steps, *self.shape[2:]), self.dtype)
        for row, own in zip(a, self.arrays, strict=True):
            row[: len(own)] = own
        return a


def first_steps(a: Any, steps: int) -> Array:
    """Return the first steps, (N, steps, ...), of (N, T, ...)."""
    found: Array = a.first(steps) if isinstance(a, Sequences) else a[:, :steps]
    return found


def filler(value: float, dtype: np.dtype[Any]) -> Array:
    """Return the padding value in this dtype."""
    found = number("value", value)
    with np.errstate(all="ignore"):
        cast = np.asarray(found).astype(dtype)
    if dtype.kind in "iu" and cast != found:
        raise ValueError(f"value: expected a value that {dtype} can represent, got {value!r}")
    return cast


def from_mask(x: Any, mask: Any) -> tuple[Array, Array]:
    """Convert a mask of valid steps, anywhere in the sequence, to post-padding and lengths, as layers and `fit` use.

    A recurrent network that skips masked steps, as Keras' layers do, computes the same from both.

    Parameters
    ----------
    x : (N, T, ...) array
        Inputs, or targets per step, with padding at the start, at the end or between steps.
    mask : (N, T) booleans
        True where a step is valid, as in Keras: ``x != 0`` for integer inputs of an embedding.

    Returns
    -------
    x : (N, T, ...) array
        A new array: the valid steps of each sequence in order, then zeros.
    lengths : (N,) int64 array

    Raises
    ------
    TypeError, ValueError
        If x or the mask has the wrong shape or dtype; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import from_mask
    >>> x = np.array([[0, 0, 5], [1, 0, 2]])
    >>> from_mask(x, x != 0)
    (array([[5, 0, 0],
           [1, 2, 0]]), array([1, 2]))

    Put outputs y back where the mask has the steps:

    >>> y, lengths = from_mask(x, x != 0)
    >>> z = np.zeros_like(y)
    >>> z[x != 0] = y[np.arange(3) < lengths[:, None]]
    >>> z
    array([[0, 0, 5],
           [1, 0, 2]])
    """
    x, mask = as_array("x", x, sequence=True), as_array("mask", mask, sequence=True)
    if x.ndim < 2:
        raise ValueError(f"x: expected shape (N, T, ...), got {x.shape}")
    if mask.dtype != np.bool_:
        raise TypeError(f"mask: expected booleans, got {describe(mask.dtype)}; pass mask.astype(bool)")
    expect_shape("mask", mask, "(N, T)", x.shape[:2])
    lengths = mask.sum(axis=1, dtype=np.int64)
    found = np.zeros_like(x)
    found[np.arange(x.shape[1]) < lengths[:, None]] = x[mask]
    return found, lengths


def has_steps(a: Any) -> bool:
    """Return whether x or y of a layer has a time axis: (T, B, F) or integer (T, B), but not (B, F)."""
    return a.ndim == 3 or (a.ndim == 2 and a.dtype.kind in "iu")


def turned(a: Any) -> Any:
    """Return a view with the first two axes swapped; an array without a time axis is returned as is."""
    return a.swapaxes(0, 1) if has_steps(a) else a


class Batch(NamedTuple):
    """Time-major samples for one forward pass."""

    x: Array  #: (T, B, I), (T, B) of integers, or (B, F)
    y: Array | None  #: (T, B, ...) if `stepwise`, else (B, ...)
    lengths: Array | None  #: (B,)
    stepwise: bool  #: whether there is a prediction, and so a target, for every step of x
    weights: Array | None = None  #: weights of the predictions, (T, B) or (B,)
    e: Extras = MappingProxyType({})  #: extra inputs of cells by name, (T, B, ...) or (B, ...)

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
    weights: Array | None = None  #: weights of the predictions, shaped like `leading`
    counting: Counting = Counting()
    e: Extras = MappingProxyType({})  #: extra inputs of cells by name, (N, T, ...) or (N, ...)

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

    def batch(self, which: slice | Array) -> Batch:
        """Return a time-major batch; with lengths, cut to the longest sequence and zero past each length."""
        some = self.take(which)
        x, y, lengths, weights, e = some.x, some.y, some.lengths, some.weights, some.e
        if lengths is not None:
            longest = max(int(lengths.max()), 1)
            x = zeros_after(first_steps(x, longest), lengths)
            e = {name: zeros_after(a[:, :longest], lengths) if has_steps(a) else a for name, a in e.items()}
            if self.stepwise:
                y = None if y is None else zeros_after(first_steps(y, longest), lengths)
                weights = None if weights is None else weights[:, :longest]
        if len(self.leading) == 2:
            y, weights = (None if a is None else a.swapaxes(0, 1) for a in (y, weights))
        if y is not None:
            weights = self.counting.weights(y, weights, len(self.leading))
        return Batch(turned(x), y, lengths, self.stepwise, weights, {name: turned(a) for name, a in e.items()})

    def batches(self, size: int, order: Array | None = None) -> Iterator[Batch]:
        """Yield all samples in batches, in the given order if there is one."""
        for start in range(0, self.size, size):
            which = slice(start, start + size)
            yield self.batch(which if order is None else order[which])

    def targets(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield y and its weights (0 past each length) for all samples, a few MB at a time."""
        assert self.y is not None
        some = max(PART // max(math.prod(self.y.shape[1:]), 1), 1)
        for start in range(0, self.size, some):
            part = self.take(slice(start, start + some))
            y, lengths, weights = part.y, part.lengths, part.weights
            assert y is not None
            if lengths is not None and self.stepwise:
                T = self.y.shape[1]
                y, valid = first_steps(y, T), np.arange(T) < lengths[:, None]
                weights = valid if weights is None else np.where(valid, weights, 0)
            yield y, self.counting.weights(y, weights, len(self.leading))

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
    if x.ndim not in (2, 3):
        raise ValueError(f"{name}: expected shape (N, T, I), (N, T) of integers, or (N, F), got {x.shape}")
    if x.size == 0:
        raise ValueError(f"{name}: expected at least one sample of one step and one feature, got shape {x.shape}")
    if lengths is None:
        return x, None
    if not has_steps(x):
        raise ValueError(f"lengths: expected None, because {name} of shape {x.shape} has no time axis")
    return x, checked_lengths(lengths, x.shape[1], len(x), False)


def as_targets(name: str, y: Any, samples: Samples) -> Any:
    """Return y as (N, T, ...), or a list as `Sequences`, if the model predicts every step; else (N, ...)."""
    if samples.stepwise and samples.lengths is not None and isinstance(y, list | tuple):
        found: Any = as_x(name, y, samples)
    else:
        found = as_array(name, steps_of(name, y, samples), sequence=True)
    leading = samples.leading
    if found.shape[: len(leading)] != leading:
        meaning = "(N, T, ...)" if len(leading) == 2 else "(N, ...)"
        shape = ", ".join([*map(str, leading), "..."])
        one = samples.stepwise and len(found) == samples.size
        hint = "; for one target per sequence, give the last recurrent layer return_sequences=False" if one else ""
        raise ValueError(f"{name}: expected shape {meaning} = ({shape}), got {found.shape}{hint}")
    return found


def as_weights(name: str, weights: Any, samples: Samples) -> Array | None:
    """Return weights as (N, T) if the model predicts every step, with (N,) broadcast over steps; else (N,)."""
    if weights is None:
        return None
    leading = samples.leading
    if isinstance(weights, list | tuple) and any(map(np.ndim, weights)):
        weights = steps_of(name, weights, samples)
    w = numbers(name, weights)
    if w.shape not in (leading, leading[:1]):
        meaning = "(N,) or (N, T)" if len(leading) == 2 else "(N,)"
        expected = " or ".join(map(str, dict.fromkeys((leading[:1], leading))))
        raise ValueError(f"{name}: expected shape {meaning} = {expected}, got {w.shape}")
    if w.ndim < len(leading):
        w = np.broadcast_to(w[:, None], leading)
    elif samples.lengths is not None and samples.stepwise:
        w = zeros_after(w, samples.lengths)
    expect_weights(name, w)
    return w


def expect_extras(name: str, e: Any, names: Sequence[str]) -> None:
    """Raise unless e maps exactly these names."""
    e = {} if e is None else e
    expect_mapping(name, e)
    expect_names(name, e, names, ValueError)


def as_extras(name: str, e: Any, names: Sequence[str], samples: Samples) -> Extras:
    """Return extra inputs by name, (N, T, ...) or (N, ...); lists are padded as x is."""
    expect_extras(name, e, names)
    found: dict[str, Array] = {}
    for key in names:
        own = f"{name} {key!r}"
        a = e[key]
        a = found[key] = as_array(own, padded_as_x(own, a, samples) if isinstance(a, list | tuple) else a)
        if a.ndim not in (2, 3) or a.shape[: a.ndim - 1] != samples.x.shape[: a.ndim - 1]:
            N, T = samples.x.shape[:2]
            expected = f"(N, T, H), (N, T, 1), (N, H) or (N, 1) with N, T = {N}, {T}"
            raise ValueError(f"{own}: expected shape {expected}, got {a.shape}")
    return found


def steps_of(name: str, a: Any, samples: Samples) -> Any:
    """Pad `a` if it is a list with values for every step of x."""
    return padded_as_x(name, a, samples) if samples.stepwise and isinstance(a, list | tuple) else a


def padded_as_x(name: str, sequences: Sequence[Any], samples: Samples) -> Array:
    """Pad a list with values for every step of x, whose lengths it must have."""
    a = as_x(name, sequences, samples)
    return a.first(a.shape[1])


def as_x(name: str, sequences: Sequence[Any], samples: Samples) -> Sequences:
    """Return such a list as `Sequences`, not padded."""
    a = Sequences(alike(f"{name}: ", sequences))
    expected = np.full(samples.size, samples.x.shape[1]) if samples.lengths is None else samples.lengths
    for n, (got, wanted) in enumerate(zip(a.lengths, expected, strict=False)):
        if got != wanted:
            raise ValueError(f"{name}: expected {wanted} steps in sequence {n}, as x has, got {got}")
    return a


def zeros_after(a: Array, lengths: Array) -> Array:
    """Return (N, T, ...) with zeros past each length, so that padding, NaN above all, reaches no product."""
    padding = np.arange(a.shape[1]) >= lengths[:, None]
    if not a[padding].any():
        return a
    a = a.copy()
    a[padding] = 0
    return a
