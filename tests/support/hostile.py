"""Invalid arguments that calls must reject, and unusual ones that are valid.

An error's message begins with the name of the argument (in a `Sequential`, after the name of the layer).
"""

from __future__ import annotations

import array
import ctypes
import mmap
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastrnn
from support.problems import call, make

T, B, I, H = SIZES = (5, 3, 2, 4)
ALL = make("lstm_peephole", SIZES, dtype=np.float32, lengths=True, resets=True, return_cells=True)
GIVEN = ALL.inputs | ALL.cotangents
FLOATS = [name for name in GIVEN if name not in ("lengths", "resets")]


class Producer:
    """A DLPack producer that returns what it was given."""

    def __init__(self, produce: Callable[[], Any]) -> None:
        self.produce = produce

    def __dlpack__(self, **_: Any) -> Any:
        return self.produce()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class Undeclared:
    def __dlpack__(self) -> Any:
        return object()


class Subclass(np.ndarray):
    """An array class on which every operation fails."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a method of the subclass was called")

    def __getitem__(self, _: Any) -> Any:
        raise AssertionError("a method of the subclass was called")


class Index:
    def __init__(self, n: Any) -> None:
        self.n = n

    def __index__(self) -> Any:
        return self.n

    def __repr__(self) -> str:  # in a test's name, which is to be the same in every process
        """for a test's name, which must be the same in every process"""
        return f"Index({self.n!r})"


def refuse() -> Any:
    raise RuntimeError("the tensor requires grad")


def released(a: np.ndarray) -> memoryview:
    view = memoryview(a.copy())
    view.release()
    return view


def structured(a: np.ndarray) -> np.ndarray:
    return np.zeros(a.shape, [("a", "f4"), ("b", "f4")])


Spoil = Callable[[np.ndarray], Any]

#: values that are not arrays of x's dtype, whatever they represent
NO_ARRAY: dict[str, Spoil] = {
    "generator": lambda a: (row for row in a),
    "set": lambda a: {1.0, 2.0},
    "lists": lambda a: a.tolist(),
    "bytes": lambda a: a.tobytes(),
    "text": lambda a: "0.5" * a.size,
    "scalar": lambda a: np.float32(1),
    "huge integer": lambda a: 10**400,
    "ellipsis": lambda a: ...,
    "type": lambda a: np.ndarray,
    "function": lambda a: a.astype,
    "masked": lambda a: np.ma.array(a, mask=a > 0),
    "masked nothing": np.ma.array,
    "structured": structured,
    "records": lambda a: structured(a).view(np.recarray),
    "complex": lambda a: a.astype(np.complex64),
    "bool": lambda a: a > 0,
    "object": lambda a: a.astype(object),
    "int": lambda a: a.astype(np.int32),
    "half": lambda a: a.astype(np.float16),
    "long double": lambda a: a.astype(np.longdouble),
    "void": lambda a: a.view("V4"),
    "time": lambda a: a.astype("m8[s]"),
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "no axes, object": lambda a: np.array(a, dtype=object)[(slice(None),) * a.ndim].sum() * np.ones((), object),
    "released": released,
    "producer of nothing": lambda a: Producer(lambda: None),
    "producer of junk": lambda a: Producer(object),
    "producer that refuses": lambda a: Producer(refuse),
    "producer of no device": lambda a: Undeclared(),
    "cache": lambda a: call(ALL, training=True)[0].cache,
}

#: arrays of the correct dtype and a shape that no argument has
NO_SHAPE: dict[str, Spoil] = {
    "no axes": lambda a: np.float32(1) * np.ones((), np.float32),
    "empty": lambda a: a[:0].reshape(0),
    "no rows": lambda a: a[..., :0],
    "four axes": lambda a: a.reshape(1, 1, 1, -1),
    "64 axes": lambda a: a.reshape((1,) * 63 + (-1,)),
    "one short": lambda a: a[..., :-1],
    "bytes of floats": lambda a: array.array("f", a.ravel()[:-1].tolist()),
    "petabytes": lambda a: np.broadcast_to(a.ravel()[:1], (2**50,)),
}

#: unusual values that are valid arrays
SOME_ARRAY: dict[str, Spoil] = {
    "subclass": lambda a: a.copy().view(Subclass),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"?" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "a field": lambda a: as_field(a),
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "Fortran's order": np.asfortranarray,
    "buffer": lambda a: memoryview(a),
    "ctypes": lambda a: as_ctypes(a),
    "producer": lambda a: Producer(a.__dlpack__),
    "dtype with metadata": lambda a: a.astype(np.dtype(a.dtype, metadata={"unit": "1"})),
    "mapped": lambda a: mapped(a),
}


def as_field(a: np.ndarray) -> np.ndarray:
    """Return a field of packed records, whose strides are not multiples of the element size."""
    records = np.zeros(a.shape, np.dtype([("flag", "u1"), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def as_ctypes(a: np.ndarray) -> Any:
    kind: Any = {"f": ctypes.c_float, "l": ctypes.c_int64, "?": ctypes.c_bool}[a.dtype.char]
    for n in reversed(a.shape):
        kind = kind * n
    return kind.from_buffer_copy(np.ascontiguousarray(a))


def mapped(a: np.ndarray) -> np.ndarray:
    memory = mmap.mmap(-1, a.nbytes)
    memory.write(a.tobytes())
    return np.frombuffer(memory, a.dtype).reshape(a.shape)


class Case(NamedTuple):
    """A call that must be rejected."""

    name: str  #: the argument, with whose name the message begins
    what: str
    hostile: Callable[[], Any]
    errors: type[Exception] | tuple[type[Exception], ...] = (TypeError, ValueError)


def table(cases: list[Case]) -> Any:
    """Return test parameters."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.name}: {case.what}") for case in cases])


def refused(case: Case) -> None:
    with pytest.raises(case.errors) as caught:
        case.hostile()
    assert re.match(rf"['\"]?(layer \d \(\w+\): )?{re.escape(case.name)}\b.*[:;]", str(caught.value)), caught.value
    assert len(str(caught.value)) < 500


def zeros(*shape: int) -> np.ndarray:
    """Return zeros of any size without allocating them."""
    return np.broadcast_to(np.zeros(1, np.float32), shape)


def rnn_weights(hidden: int = H) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((hidden, I), np.float32), np.zeros((hidden, hidden), np.float32)


LSTM = fastrnn.LSTM(I, H, rng=0)
PAIR = fastrnn.LSTM(I, H, bidirectional=True, merge=None, rng=0)
DENSE = fastrnn.Dense(I, 5, "softmax", rng=0)
ONE = np.zeros((2, B, H), np.float32)


OPTIONS: dict[str, dict[str, Any]] = {
    "threads": {"0": 0, "-1": -1, "2.0": 2.0, "text": "2", "True": True, "NaN": np.nan, "array": np.array([2])}
    | {"array of floats": np.array(2.0), "array of two": np.array([1, 2]), "-2**70": -(2**70), "list": [2]}
    | {"index of text": Index("2"), "index of 0": Index(0), "numpy 0": np.int8(0), "complex": 1j, "bytes": b"2"},
    "checkpoint": {"0": 0, "-1": -1, "2.0": 2.0, "text": "2", "True": True, "array of two": np.array([1, 2])}
    | {"array of text": np.array(["auto", "auto"]), "-2**70": -(2**70), "bytes": b"auto", "AUTO": "AUTO", "list": []},
    "reverse": {"1": 1, "text": "no", "array": np.array(True), "float": 0.0, "list": []},
    "batch_first": {"1": 1, "text": "no", "array": np.array(True), "lambda": lambda: True},
    "return_cells": {"1": 1, "text": "no", "array": np.array([True])},
    "lengths": {
        "text": "abc",
        "bytes": b"abc",
        "float": [1.0, 2.0, 3.0],
        "nested": [[1], [2], [3]],
        "ragged": [[1], []],
    }
    | {"huge": [2**100, 1, 1], "T + 1": [6, 1, 1], "-1": [1, -1, 1], "NaN": [np.nan, 1, 1], "bool": [True, False, True]}
    | {"2**63": np.array([2**63, 0, 0], np.uint64), "minimum": [-(2**63), 1, 1], "masked": np.ma.array([1, 1, 1])}
    | {"dict": {0: 1, 1: 1, 2: 1}, "generator": (i for i in range(3)), "None in it": [None, 1, 1], "scalar": 2}
    | {
        "complex": np.ones(3, complex),
        "time": np.ones(3, "m8[s]"),
        "one short": [1, 1],
        "arrays": [np.ones(3, int)] * 3,
    },
    "resets": {
        "text": "abc",
        "ints": np.zeros((T, B), int),
        "floats": np.zeros((T, B)),
        "turned": np.zeros((B, T), bool),
    }
    | {"ragged": [[True], []], "masked": np.ma.zeros((T, B), bool), "one step": np.zeros(B, bool), "True": True}
    | {
        "bytes": np.zeros((T, B), np.uint8),
        "object": np.zeros((T, B), object),
        "set": {True},
        "None in it": [[None] * B] * T,
    },
}
