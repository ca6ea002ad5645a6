"""Many sequences, of which any take a step together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np

from fastrnn.call import Sessions
from fastrnn.cells import Array, Arrays
from fastrnn.layers.stream import fill
from fastrnn.one_step import Form, arranged


class Pool:
    """Sessions of a layer or a model, each with a state of its own, made by ``pool(capacity)`` of either.

    Any of them take a step together, which is much faster than one after the other; each has the bits that it has
    alone. Several threads may use a pool at once, each for other sessions. A pool follows ``load_state_dict`` and stays
    with the backend and instruction set in use when it was made, as a `Stream`; nor can it be copied or pickled.

    Attributes
    ----------
    capacity : int
        Sessions that can be open at a time.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> gru = fastrnn.GRU(3, 4, reset_after=True, rng=0)
    >>> pool = gru.pool(100)
    >>> a, b, c = pool.open(), pool.open(), pool.open()
    >>> pool.step([a, b, c], np.ones((3, 3), np.float32)).shape
    (3, 4)
    >>> y = pool.step([c, a], np.zeros((2, 3), np.float32))
    >>> saved = pool.state(a)  # h (1, 1, 4)
    >>> pool.close(a)
    >>> d = pool.open(saved)
    >>> len(pool), d in pool, a in pool
    (3, True, False)
    """

    def __init__(self, sessions: Sessions, stores: Arrays, capacity: int, form: Form) -> None:
        self.capacity = capacity
        self._sessions, self._stores, self._form = sessions, stores, form
        self._new = itertools.count()
        self._free = list(range(capacity - 1, -1, -1))
        self._open: dict[int, int] = {}  # session -> its place in the stores
        # Likewise, of those in no call. A call takes its own out, and puts them back: dicts do that safely for threads.
        self._idle: dict[int, int] = {}

    def open(self, state: Any = None) -> int:
        """Begin a session.

        Parameters
        ----------
        state : as `state` gives it, optional
            Zeros when absent.

        Returns
        -------
        int
            By which the other methods know it; never used again after `close`.

        Raises
        ------
        RuntimeError
            If as many are open as the pool has room for.
        TypeError, ValueError
            For another state.
        """
        try:
            slot = self._free.pop()
        except IndexError as error:
            message = f"open: all {self.capacity} sessions are open; close some, or make a larger pool"
            raise RuntimeError(message) from error
        try:
            self._set(slot, state)
        except Exception:
            self._free.append(slot)
            raise
        session = next(self._new)
        self._open[session] = self._idle[session] = slot
        return session

    def close(self, session: int) -> None:
        """End a session, and free its place.

        Parameters
        ----------
        session : int

        Raises
        ------
        KeyError
            If it is not open.
        RuntimeError
            While another thread is in a call with it.
        """
        (slot,) = self._take([session])
        del self._open[session]
        self._free.append(slot)

    def step(self, sessions: Iterable[int], x: Any, out: Any = None) -> Array:
        """One step of these sessions.

        Parameters
        ----------
        sessions : n integers
            Each once, in any order.
        x : (n, I) array, or (n,) integers for a model with an `Embedding`
            Their inputs; of one session also (I,), or an integer.
        out : (n, N) array, optional
            Where to write y.

        Returns
        -------
        y : (n, N) array
            A new array, or `out`; (N,) for such an x of one session.

        Raises
        ------
        KeyError
            For a session that is not open.
        ValueError
            For one that is there twice; for another shape.
        TypeError
            For another dtype.
        RuntimeError
            While another thread is in a call with one of them.
        """
        own = sessions.tolist() if isinstance(sessions, np.ndarray) else sessions
        if not isinstance(own, list | tuple):
            raise TypeError(f"sessions: expected a sequence of integers, got {sessions!r:.80}")
        slots = self._take(own)
        try:
            return self._sessions.step(slots, x, out)
        finally:
            self._idle.update(zip(own, slots, strict=True))

    def state(self, session: int) -> Any:
        """A copy of a session's state, for `open` or `restore`; it can be pickled.

        Parameters
        ----------
        session : int

        Returns
        -------
        array, tuple or None
            As a layer or a model has it for a batch of one: h (L, 1, H), (h, c), or a tuple with one for each layer.

        Raises
        ------
        KeyError, RuntimeError
            As `close`.
        """
        (slot,) = self._take([session])
        try:
            return arranged(self._form, iter([store[slot].copy() for store in self._stores]))
        finally:
            self._idle[session] = slot

    def restore(self, session: int, state: Any = None) -> None:
        """Give a session another state.

        Parameters
        ----------
        session : int
        state : as `state` gives it, optional
            Zeros when absent.

        Raises
        ------
        KeyError, RuntimeError
            As `close`.
        TypeError, ValueError
            For another state.
        """
        (slot,) = self._take([session])
        try:
            self._set(slot, state)
        finally:
            self._idle[session] = slot

    def __len__(self) -> int:
        """Sessions that are open."""
        return len(self._open)

    def __contains__(self, session: object) -> bool:
        return session in self._open

    def _set(self, slot: int, state: Any) -> None:
        own = tuple([store[slot] for store in self._stores])
        if state is not None:
            fill(own, self._form, state, "the pool's")
            return
        for array in own:
            array[...] = 0

    def _take(self, sessions: list[int] | tuple[int, ...]) -> list[int]:
        """Their places in the stores; nobody else gets at these until they are put back."""
        slots: list[int] = []
        idle = self._idle
        try:
            for session in sessions:
                slots.append(idle.pop(session))
        except (KeyError, TypeError):  # what is no integer may have no hash
            taken = list(sessions[: len(slots)])
            idle.update(zip(taken, slots, strict=True))
            self._refuse(sessions[len(slots)], taken)
        return slots

    def _refuse(self, session: Any, taken: list[int]) -> NoReturn:
        if isinstance(session, bool) or not isinstance(session, int | np.integer):
            raise TypeError(f"sessions: expected integers that open gave, got {session!r:.80}")
        if session in taken:
            raise ValueError(f"sessions: expected each once, got {session} twice")
        if session in self._open:
            raise RuntimeError(f"sessions: another thread is in a call with session {session}")
        raise KeyError(f"sessions: {session} is not open")

    def __reduce__(self) -> NoReturn:
        raise TypeError("pool: cannot be copied or pickled; make another of the layer, and open it these states")
