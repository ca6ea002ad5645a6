"""Stepping many sequences together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from fastrnn.call import Sessions
from fastrnn.layers.stream import fill
from fastrnn.one_step import Form, arranged
from fastrnn.types import Array, Arrays

#: The type of sessions in `Pool.step`'s fast path.
INT = frozenset([int])


class Pool:
    """Sessions of a layer or model, each with its own state; made by ``pool(capacity)`` of either.

    Any of them can take a step together, much faster than one after the other and with bit-identical results. Several
    threads may use a pool at once, for different sessions. Like a `Stream`, a pool follows ``load_state_dict``, keeps
    the backend and instruction set in use when it was made, and cannot be copied or pickled.

    Attributes
    ----------
    capacity : int
        Maximum number of open sessions.

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
        self._unused = iter(range(capacity))
        self._free: list[int] = []  # slots of closed sessions
        self._open: dict[int, int] = {}  # session -> its slot in the stores
        # The sessions not in use by a call: calls pop theirs and put them back; dict operations are thread-safe.
        self._idle: dict[int, int] = {}

    def open(self, state: Any = None) -> int:
        """Open a session.

        Parameters
        ----------
        state : as `state` gives it, optional
            Zeros when absent.

        Returns
        -------
        int
            The session's identifier, never reused after `close`.

        Raises
        ------
        RuntimeError
            If `capacity` sessions are open.
        TypeError, ValueError
            If the state has the wrong form, shape or dtype.
        """
        try:
            slot: int | None = self._free.pop()
        except IndexError:
            slot = next(self._unused, None)
        if slot is None:
            raise RuntimeError(f"open: all {self.capacity} sessions are open; close some, or make a larger pool")
        try:
            self._set(slot, state)
        except Exception:
            self._free.append(slot)
            raise
        session = next(self._new)
        self._open[session] = self._idle[session] = slot
        return session

    def close(self, session: int) -> None:
        """Close a session and free its slot.

        Parameters
        ----------
        session : int

        Raises
        ------
        KeyError
            If the session is not open.
        RuntimeError
            If another thread is in a call with it.
        """
        (slot,) = self._take([session])
        del self._open[session]
        self._free.append(slot)

    def step(self, sessions: Sequence[int] | Array, x: Any, out: Any = None) -> Array:
        """Run one step of these sessions.

        Parameters
        ----------
        sessions : list, tuple, range or array of n integers
            Distinct sessions, in any order.
        x : (n, I) array, or (n,) integers for a model with an `Embedding`
            Their inputs; (I,) or an integer is accepted for one session.
        out : (n, N) array, optional
            Where to write y.

        Returns
        -------
        y : (n, N) array
            A new array, or `out`; (N,) if x is (I,) or an integer.

        Raises
        ------
        KeyError
            If a session is not open.
        ValueError
            If a session is given twice, or a shape is wrong.
        TypeError
            If a dtype is wrong.
        RuntimeError
            If another thread is in a call with one of them.
        """
        own = sessions if isinstance(sessions, list | tuple) else listed(sessions)
        slots = self._take(own)
        try:
            return self._sessions.step(slots, x, out)
        finally:
            self._idle.update(zip(own, slots, strict=True))

    def state(self, session: int) -> Any:
        """Return a copy of a session's state, for `open` or `restore`; it can be pickled.

        Parameters
        ----------
        session : int

        Returns
        -------
        array, tuple or None
            In the layer's or model's form, for a batch of one: h (L, 1, H), (h, c), or a tuple with one per layer.

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
        """Set a session's state.

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
            If the state has the wrong form, shape or dtype.
        """
        (slot,) = self._take([session])
        try:
            self._set(slot, state)
        finally:
            self._idle[session] = slot

    def __len__(self) -> int:
        """Return the number of open sessions."""
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
        """Return their slots in the stores, exclusively until they are put back in `_idle`."""
        if not INT.issuperset(map(type, sessions)):
            expect_integers(sessions)  # True, of a mask, and 1.0 would pass for session 1
        slots: list[int] = []
        idle = self._idle
        try:
            for session in sessions:
                slots.append(idle.pop(session))
        except KeyError:
            taken = list(sessions[: len(slots)])
            idle.update(zip(taken, slots, strict=True))
            self._refuse(sessions[len(slots)], taken)
        return slots

    def _refuse(self, session: int, taken: list[int]) -> NoReturn:
        if session in taken:
            raise ValueError(f"sessions: expected distinct sessions, got {session} twice")
        if session in self._open:
            raise RuntimeError(f"sessions: another thread is in a call with session {session}")
        raise KeyError(f"sessions: {session} is not open")

    def __reduce__(self) -> NoReturn:
        raise TypeError("pool: cannot be copied or pickled; make a new one and open sessions with these states")


def listed(sessions: Any) -> list[int]:
    """Return sessions that are given in an array or a range as a list."""
    if isinstance(sessions, range):
        return list(sessions)
    if not isinstance(sessions, np.ndarray) or sessions.ndim != 1:
        message = "sessions: expected a sequence of integers (list, tuple, range or array), got"
        raise TypeError(f"{message} {sessions!r:.80}")
    own: list[int] = sessions.tolist()
    return own


def expect_integers(sessions: Any) -> None:
    for session in sessions:
        if isinstance(session, bool) or not isinstance(session, int | np.integer):
            raise TypeError(f"sessions: expected integers returned by open, got {session!r:.80}")
