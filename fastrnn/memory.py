"""Arrays whose memory is used again: touching fresh pages costs as much as computing what is written to them.

The C library keeps small freed arrays and returns large ones to the system, which clears the pages for the next call.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

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


#: By address, oldest first. Single operations on it are atomic, and no lock guards several: garbage may be collected in
#: the middle of them, and a finalizer may wait for a thread that waits for the lock.
_spare: dict[int, Room] = {}


class Loan:
    """The base of NumPy arrays in a room; when nothing refers to it any more, the room is spare again."""

    __slots__ = ("dtype", "room", "shape")

    def __init__(self, room: Room, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.room, self.shape, self.dtype = room, shape, dtype

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "data": (self.room.address, False), "shape": self.shape, "typestr": self.dtype.str}

    def __reduce__(self) -> NoReturn:
        """Refuse: the end of a copy would make the room spare."""
        raise TypeError(f"cannot copy or pickle {type(self).__name__}; copy the array instead")

    def __del__(self) -> None:
        _spare[self.room.address] = self.room
        rooms = list(_spare.values())
        while len(rooms) > ROOMS or sum([room.memory.size for room in rooms]) > LIMIT:
            _spare.pop(rooms.pop(0).address, None)


def room_for(n: int) -> Room:
    """Return a spare room for n bytes, or a new one."""
    for room in reversed(list(_spare.values())):
        taken = _spare.pop(room.address, None) if n <= room.memory.size <= 2 * n else None
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
