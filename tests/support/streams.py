"""Helpers for the tests of streams."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.problems import Arrays
from support.stacks import named

X = np.ones((3, 5), np.float32)
Y = np.ones((3, 17), np.float32)
S = np.ones((2, 3, 17), np.float32)


def sequence(net: Any, T: int, B: int, seed: Any = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((T, B, net.input_size)).astype(net.dtype)


def streamed(stream: Any, x: np.ndarray, **options: Any) -> Arrays:
    """Return the expected `named(*net(x))`, computed step by step."""
    steps = [stream.step(x_t, **options) for x_t in x]
    return named(np.stack(steps), stream.state)


class Tensor:
    """An object with only DLPack."""

    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def __dlpack__(self, **options: Any) -> Any:
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.a.__dlpack_device__()
