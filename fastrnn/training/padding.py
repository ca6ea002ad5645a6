"""Sequences of unequal length: padding, masks and lengths; and the time axis of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrnn.checks import among, as_array, describe, expect_shape, number, positive
from fastrnn.types import Array


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


class Sequences:
    """Sequences of unequal length that report their padded shape; each part of a batch is padded separately."""

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays, self.lengths = arrays, np.array([len(a) for a in arrays], np.int64)
        self.shape: tuple[int, ...] = (len(arrays), int(self.lengths.max()), *arrays[0].shape[1:])
        self.dtype, self.ndim, self.size = arrays[0].dtype, len(self.shape), math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, which: slice | Array) -> Sequences:
        return Sequences([self.arrays[n] for n in np.arange(len(self))[which]])

    def padded(self, steps: int | None = None) -> Array:
        """Return the sequences padded to `steps`, at least the longest length."""
        a = np.zeros((len(self), steps or self.shape[1], *self.shape[2:]), self.dtype)
        for row, own in zip(a, self.arrays, strict=True):
            row[: len(own)] = own
        return a


def similar(lengths: Array) -> list[Array]:
    """Group sequences by length so that padding a group to its longest at most doubles its steps."""
    groups, order = [], np.argsort(-lengths, kind="stable")
    while len(order):
        steps = lengths[order]
        size = np.count_nonzero(steps[0] * np.arange(1, len(steps) + 1) <= 2 * steps.cumsum())  # true, then false
        groups.append(order[:size])
        order = order[size:]
    return groups


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


def filler(value: float, dtype: np.dtype[Any]) -> Array:
    """Return the padding value in this dtype."""
    found = number("value", value)
    with np.errstate(all="ignore"):
        cast = np.asarray(found).astype(dtype)
    if dtype.kind in "iu" and cast != found:
        raise ValueError(f"value: expected a value that {dtype} can represent, got {value!r}")
    return cast


def taken(a: Any, which: slice | Array, lengths: Array | None) -> Array:
    """Return some samples; with their lengths, cut to the longest and zero past each."""
    if lengths is None:
        return a[which]  # type: ignore[no-any-return]
    longest = max(int(lengths.max()), 1)
    return a[which].padded(longest) if isinstance(a, Sequences) else zeros_after(a[which, :longest], lengths)


def zeros_after(a: Array, lengths: Array) -> Array:
    """Return (N, T, ...) with zeros past each length, so that padding, NaN above all, reaches no product."""
    padding = np.arange(a.shape[1]) >= lengths[:, None]
    if not a[padding].any():
        return a
    a = a.copy()
    a[padding] = 0
    return a


def has_steps(a: Any) -> bool:
    """Return whether x or y of a layer has a time axis: (T, B, F) or integer (T, B), but not (B, F)."""
    return a.ndim == 3 or (a.ndim == 2 and a.dtype.kind in "iu")


def turned(a: Any) -> Any:
    """Return a view with the first two axes swapped; an array without a time axis is returned as is."""
    return a.swapaxes(0, 1) if has_steps(a) else a
