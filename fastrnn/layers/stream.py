"""Running a layer or model one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastrnn.call import Stepper
from fastrnn.checks import floats
from fastrnn.one_step import Form, arranged, flattened
from fastrnn.types import Array, Arrays


class Stream:
    """Runs a layer or model one step at a time and keeps its state; made by ``stream(batch_size)`` of either.

    Results are bit-identical to the layer's on the whole sequence, and to a model's ``predict`` (for models, not with
    the NumPy and Numba backends). A layer with ``return_sequences=False``, or a `LastStep`, returns, at every step,
    the output as if the sequence ended there. With ``out`` a step allocates nothing; a step releases the GIL. Only one
    thread at a time may use a stream; it follows ``load_state_dict``, and keeps the backend and instruction set in use
    when it was made. It cannot be copied or pickled; `state` can.

    Attributes
    ----------
    step : callable
        ``step(x, out=None, state=None, reset=None)`` takes x (B, I), or (I,) if B is 1, and returns y (B, N), or (N,):
        a new array, or ``out``; N is the top layer's H. For a model with an `Embedding` x is (B,) integers, or one
        integer. It updates the stream's own state, or ``state`` if given, in place: for a layer one writable (L, B, H)
        array per state of the cell, (h,) or (h, c); for a model as in `state`. The state of sequences whose ``reset``
        (B,) is True is zeroed first. Raises TypeError for another dtype, ValueError
        for another shape or for an ``out`` that shares memory with the state, RuntimeError while another thread is in
        a step.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> gru = fastrnn.GRU(3, 4, reset_after=True, rng=0)
    >>> x = np.ones((5, 3), np.float32)
    >>> stream = gru.stream()
    >>> steps = [stream.step(x_t) for x_t in x]
    >>> np.array_equal(steps, gru(x)[0])
    True
    >>> model = fastrnn.Sequential([gru, fastrnn.Dense(4, 2, "softmax", rng=1)])
    >>> stream = model.stream()
    >>> steps = [stream.step(x_t) for x_t in x]
    >>> np.array_equal(steps, model.predict(x[None])[0])
    True
    """

    step: Callable[..., Array]

    def __init__(self, stepper: Stepper, state: Arrays, batch_size: int, form: Form) -> None:
        self.step = stepper.step  # not a method: a second Python call would cost as much as a small network
        self._state, self._batch_size, self._form = state, batch_size, form

    @property
    def state(self) -> Any:
        """A copy of the state: h (L, B, H), or (h, c) of an LSTM; for a model a tuple with one or None for each layer.

        Layers and models take it in this form. It can be assigned.
        """
        return arranged(self._form, iter([s.copy() for s in self._state]))

    @state.setter
    def state(self, state: Any) -> None:
        fill(self._state, self._form, state, "the stream's")

    def reset(self, sequences: Any = slice(None)) -> None:
        """Zero the state of all sequences, or of some.

        Parameters
        ----------
        sequences : int, slice, sequence of ints or (B,) booleans, optional
            An index or a mask into the batch; all of it when absent.

        Raises
        ------
        IndexError
            If `sequences` is not an index into the batch.
        """
        B = self._batch_size
        try:
            chosen = np.arange(B)[list(sequences) if isinstance(sequences, tuple) else sequences]
        except (IndexError, TypeError, ValueError) as error:
            raise IndexError(f"sequences: expected an index or a mask into {B} of them, got {sequences!r}") from error
        if np.ndim(chosen) > 1:  # True, None or a mask with other axes
            raise IndexError(f"sequences: expected an index or a mask into {B} of them, got {sequences!r}")
        for own in self._state:
            own[:, chosen] = 0

    def __reduce__(self) -> NoReturn:
        """Refuse: a copy's `step` would still use this stream's memory."""
        raise TypeError("stream: cannot be copied or pickled; make a new one with layer.stream and assign its state")


def fill(own: Arrays, form: Form, state: Any, whose: str) -> None:
    """Set a state given in the layer's or model's form; after an error nothing is changed."""
    pairs = list(zip(own, flattened(form, state), strict=True))
    new = [floats("state", s, "(L, B, H)", array.shape, array.dtype, whose) for array, s in pairs]
    for array, s in zip(own, new, strict=True):
        array[...] = s
