"""One step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastrnn.call import Stepper
from fastrnn.cells import Array, Arrays
from fastrnn.checks import floats


class Stream:
    """A layer that takes one step at a time and keeps its state, made by ``layer.stream(batch_size)``.

    Its results have the bits of the layer's own on the whole sequence. With ``out`` a step allocates nothing, and it
    lets other Python threads run. A stream belongs to one thread at a time; it follows ``load_state_dict``, and stays
    with the backend and instruction set that were in use when it was made. It cannot be copied or pickled; `state` can.

    Attributes
    ----------
    step : callable
        ``step(x, out=None, state=None)`` takes x (B, I), or (I,) if B is 1, and returns the top layer's h (B, H), or
        (H,): a new array, or ``out``. It starts from the stream's own state and updates it, or from ``state``, one
        writable (L, B, H) array for each state of the cell, (h,) or (h, c), which are updated instead.
        Raises TypeError for another dtype, ValueError for another shape or for an ``out`` that shares memory with
        the state, RuntimeError while another thread is in a step.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> gru = fastrnn.GRU(3, 4, reset_after=True, rng=0)
    >>> x = np.ones((5, 3), np.float32)
    >>> stream = gru.stream()
    >>> steps = [stream.step(x_t) for x_t in x]
    >>> np.array_equal(steps, gru(x)[0])
    True
    """

    step: Callable[..., Array]

    def __init__(self, stepper: Stepper, state: Arrays) -> None:
        self.step = stepper.step  # not a method here: another Python call would cost as much as a small net
        self._state = state

    @property
    def state(self) -> Any:
        """The state, a copy, as a layer takes it: h (L, B, H), or (h, c) of an LSTM. It can be assigned."""
        copies = tuple([s.copy() for s in self._state])
        return copies[0] if len(copies) == 1 else copies

    @state.setter
    def state(self, state: Any) -> None:
        given = (state,) if len(self._state) == 1 else state
        if not isinstance(given, tuple | list) or len(given) != len(self._state):
            raise TypeError(f"state: expected a pair (h, c), got {type(state).__name__}")
        pairs = list(zip(self._state, given, strict=True))
        new = [floats("state", s, "(L, B, H)", own.shape, own.dtype, "the stream's") for own, s in pairs]
        for own, s in zip(self._state, new, strict=True):
            own[...] = s

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
        B = self._state[0].shape[1]
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
