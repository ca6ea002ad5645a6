"""One step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastrnn.call import Stepper
from fastrnn.cells import Array, Arrays
from fastrnn.checks import floats
from fastrnn.one_step import Form, arranged, flattened


class Stream:
    """A layer or model that takes one step at a time and keeps its state, made by ``stream(batch_size)`` of either.

    Its results have the bits of the layer's own on the whole sequence, or of a model's ``predict`` (with the NumPy and
    Numba backends those of layers alone). A layer with ``return_sequences=False`` gives, at every step, what it would
    give if the sequence ended there. With ``out`` a step allocates nothing, and it lets other Python threads run. A
    stream belongs to one thread at a time; it follows ``load_state_dict``, and stays with the backend and instruction
    set that were in use when it was made. It cannot be copied or pickled; `state` can.

    Attributes
    ----------
    step : callable
        ``step(x, out=None, state=None, reset=None)`` takes x (B, I), or (I,) if B is 1, and returns y (B, N), or (N,):
        a new array, or ``out``; N is the top layer's H. Of a model with an `Embedding` x is (B,) integers, or one
        integer. It starts from the stream's own state and updates it, or from ``state``, which is updated instead: of a
        layer one writable (L, B, H) array for each state of the cell, (h,) or (h, c); of a model as in `state`. The
        state of sequences whose ``reset`` (B,) is True is zeroed first. Raises TypeError for another dtype, ValueError
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
        self.step = stepper.step  # not a method here: another Python call would cost as much as a small net
        self._state, self._batch_size, self._form = state, batch_size, form

    @property
    def state(self) -> Any:
        """The state, a copy: h (L, B, H), or (h, c) of an LSTM; of a model a tuple with one or None for each layer.

        So a layer and a model take it themselves. It can be assigned.
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
            If it is no index into the batch.
        """
        B = self._batch_size
        try:
            chosen = np.arange(B)[list(sequences) if isinstance(sequences, tuple) else sequences]
        except (IndexError, TypeError, ValueError) as error:
            raise IndexError(f"sequences: expected an index or a mask into {B} of them, got {sequences!r}") from error
        if np.ndim(chosen) > 1:  # True, None, a mask of other axes: whatever was meant, it is not this
            raise IndexError(f"sequences: expected an index or a mask into {B} of them, got {sequences!r}")
        for own in self._state:
            own[:, chosen] = 0

    def __reduce__(self) -> NoReturn:
        """A copy would step this stream, on whose memory `step` is laid out, and show a state of its own."""
        raise TypeError("stream: cannot be copied or pickled; make another of the layer, and assign it this state")


def fill(own: Arrays, form: Form, state: Any, whose: str) -> None:
    """Take a state as a layer or a model has it: all of it, or nothing."""
    pairs = list(zip(own, flattened(form, state), strict=True))
    new = [floats("state", s, "(L, B, H)", array.shape, array.dtype, whose) for array, s in pairs]
    for array, s in zip(own, new, strict=True):
        array[...] = s
