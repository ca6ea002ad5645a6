from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.call import Call, Gradients

Array = np.ndarray[Any, np.dtype[Any]]

compiler: str

def isas() -> dict[str, int]: ...
def cells() -> dict[str, tuple[int, int, int]]: ...
def saved_bytes(isa: int, cell: int, call: Call) -> int: ...
def forward(
    isa: int,
    cell: int,
    call: Call,
    scratch: Callable[[int], Array],
    y: Array,
    final: tuple[Array, ...],
    c_all: Array | None,
    saved: Array | None,
) -> None: ...
def backward(
    isa: int,
    cell: int,
    call: Call,
    scratch: Callable[[int], Array],
    saved: Array,
    dy: Array | None,
    dfinal: tuple[Array | None, ...],
    dc: Array | None,
    grads: Gradients,
) -> None: ...
def activation(isa: int, name: str, x: Array, y: Array) -> None: ...
def spend(isa: int, rounds: int) -> float: ...
def read_all(isa: int, x: Array, times: int) -> float: ...
