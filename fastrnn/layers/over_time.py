"""Layers between sequences and single vectors: last step, pooling over time, and repetition."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.checks import boolean, checked_lengths, floating_array, size
from fastrnn.layers.base import Shape, Stateless, checked_shape
from fastrnn.one_step import Form, OneStep
from fastrnn.types import Array


class OverTime(Stateless):
    """Reduce each sequence's valid steps to one vector; zeros for an empty sequence. Subclasses implement how.

    Parameters
    ----------
    batch_first : bool
        Take (B, T, F) instead of (T, B, F); `Sequential` handles both.
    """

    def __init__(self, *, batch_first: bool = False) -> None:
        boolean("batch_first", batch_first)
        self.batch_first = bool(batch_first)

    def output_shape(self, shape: Shape) -> Shape:
        shape = checked_shape(shape)
        self._expect_steps(shape, "(T, B, F)")
        return shape[1:]

    def _expect_steps(self, shape: Shape, expected: str) -> None:
        if len(shape) != 3:
            raise ValueError(f"x: expected shape {expected}, steps of sequences, got {shape}")

    def _read(self, x: Any, lengths: Any) -> tuple[Array, Array]:
        """Return x as (T, B, F), and which of its steps are valid."""
        x = floating_array("x", x)
        self._expect_steps(x.shape, "(B, T, F)" if self.batch_first else "(T, B, F)")
        x = self._turned(x)
        T, B, _ = x.shape
        lengths = checked_lengths(lengths, T, B)
        return x, np.arange(T)[:, None] < (np.full(B, T) if lengths is None else lengths)

    def _turned(self, a: Array) -> Array:
        """Swap between the caller's layout and (T, B, F)."""
        return a.swapaxes(0, 1) if self.batch_first else a

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'batch_first=True' if self.batch_first else ''})"


class GlobalAveragePooling1D(OverTime):
    """The mean over each sequence's valid steps, (T, B, F) -> (B, F); zeros for an empty sequence.

    Parameters
    ----------
    batch_first : bool
        Take (B, T, F) instead of (T, B, F); `Sequential` handles both.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> pooling = fastrnn.GlobalAveragePooling1D()
    >>> x = np.array([[[1.0], [2.0]], [[3.0], [9.0]]])  # 2 steps of 2 sequences
    >>> pooling.forward(x, lengths=[2, 1]).y.tolist()
    [[2.0], [2.0]]
    """

    def _forward(self, x: tuple[Array, Array], training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        steps, valid = x
        total = np.where(valid[:, :, None], steps, 0).sum(axis=0, dtype=np.float64)
        return (total / counts(valid)).astype(steps.dtype), {"valid": valid}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        valid = kept["valid"]
        each: Array = (dy / counts(valid)).astype(dy.dtype)
        return self._turned(np.where(valid[:, :, None], each, np.zeros_like(each))), {}


def counts(valid: Array) -> Array:
    """Return the number of valid steps, at least 1, as (B, 1)."""
    found: Array = np.maximum(valid.sum(axis=0), 1)[:, None]
    return found


class Chosen(OverTime):
    """Select one valid step, separately for each feature."""

    def _choose(self, x: Array, valid: Array) -> Array:
        """Return the selected steps, (B, F) or (B, 1); arbitrary for an empty sequence."""
        raise NotImplementedError

    def _forward(self, x: tuple[Array, Array], training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        steps, valid = x
        if not len(steps):
            return np.zeros(steps.shape[1:], steps.dtype), {"valid": valid}
        chosen = self._choose(steps, valid)
        y = np.take_along_axis(steps, chosen[None], axis=0)[0]
        return np.where(valid.any(axis=0, keepdims=True).T, y, np.zeros_like(y)), {"valid": valid, "chosen": chosen}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        valid = kept["valid"]
        dx = np.zeros((len(valid), *dy.shape), dy.dtype)
        if len(valid):
            some = np.where(valid.any(axis=0, keepdims=True).T, dy, np.zeros_like(dy))
            np.put_along_axis(dx, np.broadcast_to(kept["chosen"], dy.shape)[None], some[None], axis=0)
        return self._turned(dx), {}


class GlobalMaxPooling1D(Chosen):
    """The maximum over each sequence's valid steps, (T, B, F) -> (B, F); zeros for an empty sequence.

    In a tie the first step gets the gradient.

    Parameters
    ----------
    batch_first : bool
        Take (B, T, F) instead of (T, B, F); `Sequential` handles both.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> pooling = fastrnn.GlobalMaxPooling1D()
    >>> x = np.array([[[1.0], [2.0]], [[3.0], [9.0]]])  # 2 steps of 2 sequences
    >>> pooling.forward(x, lengths=[2, 1]).y.tolist()
    [[3.0], [2.0]]
    """

    def _choose(self, x: Array, valid: Array) -> Array:
        chosen: Array = np.where(valid[:, :, None], x, -np.inf).argmax(axis=0)
        return chosen


class LastStep(Chosen):
    """Each sequence's last valid step, (T, B, F) -> (B, F); zeros for an empty sequence.

    Like ``return_sequences=False`` of a recurrent layer, but usable after any layer; for a bidirectional layer, both
    directions are taken at the sequence's end. In a stream or pool every step is the last one so far.

    Parameters
    ----------
    batch_first : bool
        Take (B, T, F) instead of (T, B, F); `Sequential` handles both.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> last = fastrnn.LastStep()
    >>> x = np.array([[[1.0], [2.0]], [[3.0], [9.0]]])  # 2 steps of 2 sequences
    >>> last.forward(x, lengths=[2, 1]).y.tolist()
    [[3.0], [2.0]]
    """

    def _choose(self, x: Array, valid: Array) -> Array:
        return counts(valid) - 1

    def add_steps(self, step: OneStep) -> Form:
        return None


class RepeatVector(Stateless):
    """Repeat a vector for n steps, (B, F) -> (n, B, F), as between an encoder and a decoder.

    Parameters
    ----------
    n : int
        Number of steps.
    batch_first : bool
        Return (B, n, F); `Sequential` handles both.

    Raises
    ------
    TypeError, ValueError
        If n is not a positive integer, or x has the wrong shape.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> encoder, decoder = fastrnn.LSTM(3, 8, return_sequences=False, rng=0), fastrnn.LSTM(8, 8, rng=1)
    >>> model = fastrnn.Sequential([encoder, fastrnn.RepeatVector(5), decoder, fastrnn.Dense(8, 2, rng=2)])
    >>> model.predict(np.ones((4, 10, 3), np.float32)).shape
    (4, 5, 2)
    """

    def __init__(self, n: int, *, batch_first: bool = False) -> None:
        boolean("batch_first", batch_first)
        self.n, self.batch_first = size("n", n), bool(batch_first)

    def output_shape(self, shape: Shape) -> Shape:
        shape = checked_shape(shape)
        self._expect_vectors(shape)
        return (self.n, *shape)

    def _expect_vectors(self, shape: Shape) -> None:
        if len(shape) != 2:
            raise ValueError(f"x: expected shape (B, F), one vector per sequence, got {shape}")

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        x = floating_array("x", x)
        self._expect_vectors(x.shape)
        return np.repeat(x[:, None] if self.batch_first else x[None], self.n, axis=int(self.batch_first)), {}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        dx: Array = dy.sum(axis=int(self.batch_first))
        return dx, {}

    def __repr__(self) -> str:
        return f"RepeatVector({self.n}{', batch_first=True' if self.batch_first else ''})"
