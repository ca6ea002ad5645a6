"""One step of stacked layers: the layers add their parts, and a backend runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend, DenseCall, Sessions, Stage, Stepper
from fastrnn.checks import expect_room, titled
from fastrnn.packed import PackedStack, stand_in
from fastrnn.types import Array, Arrays

#: Structure of a state: a recurrent layer's state names, None for a stateless layer, a list of these for a model.
Form = tuple[str, ...] | list[Any] | None


class Part(Protocol):
    """A part of a step, run as one backend stage: a `PackedStack` or a rowwise operation."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def floats(self) -> int: ...

    def stage(self, backend: Backend, B: int, threads: int) -> Stage: ...


class RowFunction(NamedTuple):
    """An activation without a matrix, as a part of a step."""

    function: str
    features: int
    step: OneStep

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.step.dtype

    @property
    def floats(self) -> int:
        return self.features

    def stage(self, backend: Backend, B: int, threads: int) -> DenseCall:
        return DenseCall(self.function, stand_in(1, B, self.features, self.dtype)[0])


class OneStep:
    """Parts of a step, each reading the output of the previous one; added by `layers.Layer.add_steps`."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.table: Array | None = None
        self._features: int | None = None
        self._dtype: np.dtype[Any] | None = None

    @property
    def features(self) -> int:
        """The number of features that the next part reads."""
        if self._features is None:
            raise ValueError("x: its number of features is unknown; expected a layer that defines it, such as Dense")
        return self._features

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all parts; float32 if none has one."""
        return self._dtype or np.dtype(np.float32)

    def reads(self, features: int | None) -> None:
        """Set the number of input features, if still unknown."""
        self._features = self._features or features

    def add(self, part: Part, features: int) -> None:
        """Add a part that outputs this many features."""
        if not isinstance(part, RowFunction):
            self._agree(part.dtype)
        self._features = features
        self.parts.append(part)

    def read(self, table: Array) -> None:
        """Look up x as row indices of a table."""
        if self.parts or self.table is not None:
            raise ValueError("x: an Embedding reads integers, which no layer outputs; expected it as the first layer")
        self._agree(table.dtype)
        self.table, self._features = table, table.shape[1]

    def _agree(self, dtype: np.dtype[Any]) -> None:
        if self._dtype not in (None, dtype):
            raise TypeError(f"dtype: expected {self._dtype}, that of the layers below, got {dtype}")
        self._dtype = dtype

    def stepper(self, B: int, threads: int | None, flat: Callable[[Any], Any]) -> tuple[Stepper, Arrays]:
        """Return a stepper for B rows, and the states that it updates; for `flat` see `call.Backend`."""
        room, (backend, stages) = self._room("batch_size", B), self._stages(B, threads)
        with room:
            states = tuple([np.zeros((L, B, width), self.dtype) for L, width in self._widths()])
            return backend.stepper(stages, self.table, states, B, flat), states

    def sessions(self, capacity: int, threads: int | None) -> tuple[Sessions, Arrays]:
        """Return sessions for `capacity` sequences, and the stores of their states."""
        room, (backend, stages) = self._room("capacity", capacity), self._stages(1, threads)
        with room:
            stores = tuple([np.zeros((capacity, L, 1, width), self.dtype) for L, width in self._widths()])
            return backend.sessions(stages, self.table, stores, capacity), stores

    def _room(self, name: str, n: int) -> titled:
        """Return a block whose errors name the argument; raise ValueError if no memory could hold n sequences."""
        floats = sum(part.floats for part in self.parts)
        expect_room(name, f"{name}, numbers per sequence", (n, floats), n, floats)
        return titled(name)

    def _stages(self, B: int, threads: int | None) -> tuple[Backend, list[Stage]]:
        """Return one backend for all parts (the one in use, if it has every cell) and the stages."""
        threads = backends.thread_count(threads)
        of = [backends.of(part.inference) for part in self.parts if isinstance(part, PackedStack)]
        backend = next((one for one in of if one is not backends.current()), backends.current())
        parts = self.parts or [RowFunction("identity", self.features, self)]
        return backend, [part.stage(backend, B, threads) for part in parts]

    def _widths(self) -> list[tuple[int, int]]:
        """Return the number of layers and of units of every state."""
        stacks = [part for part in self.parts if isinstance(part, PackedStack)]
        return [(stack.num_layers, width) for stack in stacks for width in stack.widths]


def arranged(form: Form, arrays: Iterator[Array]) -> Any:
    """Arrange a sequence of arrays in the form of a layer's or model's state."""
    if form is None:
        return None
    if isinstance(form, list):
        return tuple([arranged(own, arrays) for own in form])
    own = tuple([next(arrays) for _ in form])
    return own[0] if len(own) == 1 else own


def flattened(form: Form, state: Any) -> list[Any]:
    """Return the arrays of a state as a list: the inverse of `arranged`."""
    if form is None:
        if state is not None:
            raise TypeError(f"state: expected None for a layer without one, got {type(state).__name__}")
        return []
    given = (state,) if isinstance(form, tuple) and len(form) == 1 else state
    if not isinstance(given, tuple | list) or len(given) != len(form):
        each = "one for each layer" if isinstance(form, list) else ", ".join(form)
        got = f"{len(given)} of them" if isinstance(given, tuple | list) else type(given).__name__
        raise TypeError(f"state: expected a tuple ({each}), got {got}")
    if isinstance(form, tuple):
        return list(given)
    return [array for own, part in zip(form, given, strict=True) for array in flattened(own, part)]
