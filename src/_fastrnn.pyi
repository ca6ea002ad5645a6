from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastrnn.call import Call, Gradients

Array = np.ndarray[Any, np.dtype[Any]]

compiler: str

def isas() -> dict[str, int]: ...
def set_cpus(n: int) -> None: ...
def cells() -> dict[str, tuple[int, int, int]]: ...

# (cell, call, y, final, c_all, saved)
Job = tuple[int, Call, Array | None, tuple[Array, ...], Array | None, Any]
Scratch = Callable[[int], Array]

def saved_bytes(isa: int, cell: int, call: Call) -> int: ...
def packed_bytes(isa: int, cell: int, call: Call) -> int: ...
def pack(isa: int, cell: int, call: Call, packed: Array) -> None: ...
def forward(isa: int, jobs: Sequence[Job], scratch: Scratch) -> None: ...
def backward(
    isa: int,
    cell: int,
    call: Call,
    scratch: Scratch,
    saved: Array,
    dy: Array | None,
    dfinal: tuple[Array | None, ...],
    dc: Array | None,
    grads: Gradients,
) -> None: ...
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
        empty: Callable[..., Array],
    ) -> None: ...
    def step(self, x: Any, out: Any = None, state: Any = None) -> Array: ...
