"""What recurrent layers can be told: checked here, kept as attributes of the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import among, boolean, floating, fraction


class Merge(NamedTuple):
    """What becomes of two directions' outputs, and each one's gradient from that of the result."""

    forward: Callable[[Array, Array], Any]
    backward: Callable[[Any, Array, Array], tuple[Any, Any]]


def half(a: Array) -> Array:
    halved: Array = a / a.dtype.type(2)
    return halved


MERGES: dict[str | None, Merge] = {
    "concat": Merge(
        lambda forward, backward: np.concatenate((forward, backward), axis=-1),
        lambda dy, forward, backward: (dy[..., : forward.shape[-1]], dy[..., forward.shape[-1] :]),
    ),
    "sum": Merge(np.add, lambda dy, forward, backward: (dy, dy)),
    "mul": Merge(np.multiply, lambda dy, forward, backward: (dy * backward, dy * forward)),
    "average": Merge(lambda forward, backward: half(forward + backward), lambda dy, *_: (half(dy), half(dy))),
    None: Merge(lambda forward, backward: (forward, backward), lambda dy, *_: dy),
}


class Options(TypedDict, total=False):
    """The keywords that all recurrent layers have; `layers.LSTM` describes them."""

    bias: bool | str
    batch_first: bool
    dropout: float
    bidirectional: bool
    merge: str | None
    return_sequences: bool
    dtype: Any
    weight_dtype: str | None
    initializer: Any
    rng: Any


@dataclass(eq=False, repr=False)
class Settings:
    """Those that last beyond the initial weights, with their defaults."""

    bias: bool | str = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    merge: str | None = "concat"
    return_sequences: bool = True
    weight_dtype: str | None = None
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        if isinstance(self.bias, str):
            if self.bias != "input":
                raise ValueError(f'bias: expected True, False or "input", got {self.bias!r}')
        else:
            boolean("bias", self.bias)
            self.bias = bool(self.bias)
        for name in ("batch_first", "bidirectional", "return_sequences"):
            boolean(name, getattr(self, name))
            setattr(self, name, bool(getattr(self, name)))
        self.dropout = fraction("dropout", self.dropout)
        if self.merge is not None and not isinstance(self.merge, str):
            raise TypeError(f"merge: expected a string or None, got {self.merge!r}")
        if self.merge not in MERGES:
            raise ValueError(f"merge: expected one of {', '.join(map(repr, MERGES))}, got {self.merge!r}")
        if self.weight_dtype is not None and not among(self.weight_dtype, ("bfloat16",)):
            raise ValueError(f'weight_dtype: expected None or "bfloat16", got {self.weight_dtype!r}')
        self.dtype = floating(self.dtype)
        if self.weight_dtype and self.dtype != np.float32:
            raise ValueError(f"weight_dtype: bfloat16 goes with float32 inputs and sums, got dtype {self.dtype}")

    def unusual(self) -> str:
        """The settings that are not the default's, as keywords."""
        given = [(f.name, getattr(self, f.name)) for f in fields(Settings) if f.name != "dtype"]
        defaults = {f.name: f.default for f in fields(Settings)}
        return "".join(f", {name}={value!r}" for name, value in given if value != defaults[name])


def bfloat16(a: Array) -> Array:
    """float32 rounded to the nearest value that bfloat16 has, ties to even; still as float32."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(a), a, rounded.view(np.float32))
