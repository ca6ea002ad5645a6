from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fastrnn.call import Call, Gradients

Array = np.ndarray[Any, np.dtype[Any]]

compiler: str

def isas() -> dict[str, int]: ...
def set_cpus(n: int) -> None: ...
def set_retreat(on: bool) -> None: ...
def cells() -> dict[str, tuple[int, int, int]]: ...
def vector(isa: int) -> tuple[int, bool]: ...

class Compiled:
    def __init__(
        self,
        isa: int,
        itemsize: int,
        shape: dict[str, int | list[int]],
        forward: Sequence[int],
        backward: Sequence[int],
        code: object,
    ) -> None: ...

# One of the built-in cells by its index, or one compiled elsewhere.
AnyCell = int | Compiled
# (cell, call, states of every step, final, saved)
Job = tuple[AnyCell, Call, tuple[Array | None, ...], tuple[Array, ...], Any]
# (cell, call, saved, gradients of the states of every step, dfinal, grads)
BackwardJob = tuple[AnyCell, Call, Array, tuple[Array | None, ...], tuple[Array | None, ...], Gradients]

class Scratch(Protocol):
    def take(self, n: int) -> Array: ...
    def give(self, memory: Array) -> None: ...

def saved_bytes(isa: int, cell: AnyCell, call: Call) -> int: ...
def packed_bytes(isa: int, cell: AnyCell, call: Call) -> int: ...
def pack(isa: int, cell: AnyCell, call: Call, packed: Array) -> None: ...
def forward(isa: int, jobs: Sequence[Job], scratch: Scratch) -> None: ...
def backward(isa: int, jobs: Sequence[BackwardJob], scratch: Scratch) -> None: ...
def glance(arrays: tuple[Array | None, ...]) -> list[int | None]: ...
def xla_handlers() -> dict[str, object]: ...
def activation(isa: int, name: str, x: Array, y: Array) -> None: ...
def spend(isa: int, rounds: int) -> float: ...
def read_all(isa: int, x: Array, times: int) -> float: ...

class Stepper:
    def __init__(
        self,
        isa: int,
        jobs: Sequence[Job],
        scratch: Scratch,
        check: Callable[[str, Any, tuple[int, ...], Any, bool], Array],
        check_state: Callable[[Any, int, tuple[int, ...], Any], tuple[Array, ...]],
        empty: Callable[..., Array],
    ) -> None: ...
    def step(self, x: Any, out: Any = None, state: Any = None) -> Array: ...

class Prepared:
    def __init__(
        self,
        isa: int,
        jobs: Sequence[Job],
        scratch: Scratch,
        empty: Callable[..., Array],
        x_shape: tuple[int, ...],
        batch_first: bool,
        every_step: bool,
    ) -> None: ...
    def __call__(self, x: Any, state: Any = None) -> tuple[Array, tuple[Array, ...]] | None: ...
