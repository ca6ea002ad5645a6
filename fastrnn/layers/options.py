"""Options of recurrent layers, and the names and shapes of the parameters that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.checks import among, boolean, expect_room, floating, fraction, size
from fastrnn.merges import MERGES
from fastrnn.weight_dtypes import LONGEST_ROW, WEIGHT_DTYPES

#: parameter of a call -> its name in a state_dict, before "_l0" or "_l0_reverse"
NAMES = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh", "R": "weight_hr", "p": "peephole"}


@dataclass(frozen=True, eq=False, repr=False)
class LayerOptions:
    """Options of a recurrent layer other than its cell and initial weights; `layers.LSTM` documents them.

    They are checked here and become attributes of the layer.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool | str = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    merge: str | None = "concat"
    return_sequences: bool = True
    weight_dtype: str | None = None
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, ...] = 0.0
    weight_drop: float = 0.0
    proj_size: int = 0
    heads: int = 1
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        for name in ("batch_first", "bidirectional", "return_sequences"):
            boolean(name, getattr(self, name))
            self._take(name, bool(getattr(self, name)))
        if isinstance(self.bias, str):
            if self.bias != "input":
                raise ValueError(f'bias: expected True, False or "input", got {self.bias!r}')
        else:
            boolean("bias", self.bias)
            self._take("bias", bool(self.bias))
        for name in ("dropout", "recurrent_dropout", "weight_drop"):
            self._take(name, fraction(name, getattr(self, name)))
        given = self.zoneout if isinstance(self.zoneout, tuple | list) else (self.zoneout,)
        rates = tuple([fraction("zoneout", rate) for rate in given])
        self._take("zoneout", rates if given is self.zoneout else rates[0])
        if self.merge is not None and not isinstance(self.merge, str):
            raise TypeError(f"merge: expected a string or None, got {self.merge!r}")
        if self.merge not in MERGES:
            raise ValueError(f"merge: expected one of {', '.join(map(repr, MERGES))}, got {self.merge!r}")
        if self.weight_dtype is not None and not among(self.weight_dtype, tuple(WEIGHT_DTYPES)):
            raise ValueError(f'weight_dtype: expected None, "bfloat16" or "int8", got {self.weight_dtype!r}')
        self._take("dtype", floating(self.dtype))
        for name in ("input_size", "hidden_size", "num_layers"):
            self._take(name, size(name, getattr(self, name)))
        if isinstance(self.proj_size, bool) or self.proj_size != 0:
            self._take("proj_size", size("proj_size", self.proj_size))
        self._check_together()

    def _take(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _check_together(self) -> None:
        I, H = self.input_size, self.hidden_size
        expect_room("hidden_size", "input_size, hidden_size", (I, H), 8 * H, I + H)
        if self.proj_size and (self.recurrent_dropout or np.any(self.zoneout)):
            raise ValueError(
                f"proj_size: not supported with recurrent_dropout or zoneout; expected 0.0 for both, got "
                f"{self.recurrent_dropout} and {self.zoneout}"
            )
        self._take("heads", checked_heads(self.heads, H, self.proj_size))
        if self.proj_size >= H:
            raise ValueError(f"proj_size: expected less than hidden_size, {H}, or 0 for none, got {self.proj_size}")
        if self.weight_dtype and self.dtype != np.float32:
            raise ValueError(f"weight_dtype: {self.weight_dtype} needs dtype float32, got {self.dtype}")
        if self.weight_dtype == "int8":
            if self.heads > 1:
                raise ValueError(f"heads: not supported with weight_dtype int8; expected 1, got {self.heads}")
            if max(I, H) > LONGEST_ROW:
                name = "input_size" if I > H else "hidden_size"
                raise ValueError(f"{name}: expected at most {LONGEST_ROW} with weight_dtype int8, got {max(I, H)}")
        if self.num_layers > 1 and self.merge is None and self.bidirectional:
            raise ValueError("merge: None gives a pair, which the next layer cannot read; expected another value")
        if self.num_layers == 1 and self.dropout:
            raise ValueError(f"dropout: acts between layers, and num_layers is 1; expected 0.0, got {self.dropout}")

    def unusual(self) -> str:
        """Return the non-default options, except sizes and dtype, as keyword text."""
        given = [(f, getattr(self, f.name)) for f in fields(LayerOptions)[3:-1]]
        return "".join(f", {f.name}={value!r}" for f, value in given if value != f.default)


def options_of(layer: LayerOptions) -> dict[str, Any]:
    """Return a layer's options by name, with which `from_parts` makes another."""
    return {field.name: getattr(layer, field.name) for field in fields(LayerOptions)}


def features(options: LayerOptions) -> int:
    """Return the size of y's last axis, or of each output in a pair."""
    width = options.proj_size or options.hidden_size
    return 2 * width if options.bidirectional and options.merge == "concat" else width


def stems(cell: Cell) -> dict[str, str]:
    """Map the name of each parameter in a `Call` to its name in a state_dict, without the layer suffix."""
    return NAMES if "peephole" in cell.options else NAMES | {"p": "parameter"}


def expect_projects(cell: Cell) -> None:
    """Raise ValueError if the cell does not support `proj_size`."""
    if not cell.program.projects:
        raise ValueError(f"proj_size: {cell.name} reads {cell.states[0]} outside a single product with U; expected 0")


def checked_heads(heads: Any, hidden_size: int, proj_size: int) -> int:
    n = size("heads", heads)
    if hidden_size % n:
        raise ValueError(f"heads: expected a divisor of hidden_size, {hidden_size}, got {n}")
    if n > 1 and proj_size:
        raise ValueError(f"heads: not supported with proj_size; expected 1 with proj_size={proj_size}, got {n}")
    return n


def parameter_names(options: LayerOptions, cell: Cell) -> list[dict[str, str]]:
    """Return, for each layer and direction in PyTorch's order, its parameters' names by their names in a `Call`."""
    ends, stem = suffixes(options.num_layers, options.bidirectional), stems(cell)
    return [
        {key: stem[key] + end for key in own} for end, own in zip(ends, parameter_shapes(options, cell), strict=True)
    ]


def suffixes(num_layers: int, bidirectional: bool) -> list[str]:
    """Return the ends of parameter names, for each layer and direction in PyTorch's order."""
    return [f"_l{layer}{way}" for layer in range(num_layers) for way in ("", "_reverse")[: 1 + bidirectional]]


def parameter_shapes(options: LayerOptions, cell: Cell) -> list[dict[str, tuple[int, ...]]]:
    """Return their shapes, likewise."""
    G, N, H, D = cell.G, len(cell.products), options.hidden_size, 1 + options.bidirectional
    rows = {"W": G * H, "U": N * H, "b": G * H * bool(options.bias), "b_rec": N * H * (options.bias is True)}
    rows |= {"R": options.proj_size, "p": len(cell.parameters) * H}
    found = []
    for i in range(options.num_layers * D):
        I = options.input_size if i < D else features(options)
        columns = {"W": (I,), "U": (options.proj_size or H // options.heads,), "R": (H,)}
        found.append({key: (n, *columns.get(key, ())) for key, n in rows.items() if n})
    return found
