"""Arrays whose memory is used again: touching fresh pages costs as much as computing what is written to them.

The C library keeps small freed arrays and returns large ones to the system, which clears the pages for the next call.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any, NamedTuple

import numpy as np

ALIGN = 64  #: of the kernels' arrays, in bytes; see FRNN_ALIGN in fastrnn.h

BYTE = np.dtype(np.uint8)

LARGE = 128 << 10  #: bytes from which on the C library may return freed memory to the system

LIMIT = 256 << 20  #: bytes of freed arrays that are kept

ROOMS = 64  #: freed arrays that are kept: a search passes over all


class Room(NamedTuple):
    """Memory that several arrays have had, one after the other."""

    memory: np.ndarray
    address: int


_spare: dict[int, Room] = {}  #: by address, oldest first
_spare_lock = threading.RLock()  # reentrant, because __del__ may run at any point, even while this thread has the lock


def _after_fork() -> None:
    """Replace the lock: another thread may have held it at the fork, and does not exist in the child."""
    global _spare_lock
    _spare_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Loan:
    """The base of NumPy arrays in a room; when nothing refers to it any more, the room is spare again."""

    __slots__ = ("dtype", "room", "shape")

    def __init__(self, room: Room, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.room, self.shape, self.dtype = room, shape, dtype

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "data": (self.room.address, False),
            "shape": self.shape,
            "typestr": self.dtype.str,
        }

    def __del__(self) -> None:
        with _spare_lock:
            _spare[self.room.address] = self.room
            while len(_spare) > ROOMS or sum([room.memory.size for room in list(_spare.values())]) > LIMIT:
                _spare.pop(next(iter(_spare), 0), None)


def room_for(n: int) -> Room:
    """Return a spare room for n bytes, or a new one."""
    with _spare_lock:
        for place, room in reversed(list(_spare.items())):
            taken = _spare.pop(place, None) if n <= room.memory.size <= 2 * n else None
            if taken:
                return taken
    memory = aligned(n)
    return Room(memory, address(memory))


def address(memory: np.ndarray) -> int:
    first: int = memory.__array_interface__["data"][0]
    return first


def aligned(n: int) -> np.ndarray:
    """Return n uninitialised bytes at an aligned address."""
    memory = np.empty(n + ALIGN, np.uint8)
    start = -address(memory) % ALIGN
    return memory[start : start + n]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an uninitialised array, as NumPy's `empty` does; a large one in memory that is used again."""
    n = math.prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if n < LARGE else np.asarray(Loan(room_for(n), shape, dtype))
