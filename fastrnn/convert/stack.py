"""A recurrent layer from arrays under PyTorch's names, and what a converter has to know of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.cells import CELLS, Array
from fastrnn.checks import DTYPES, describe
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.rnn import of_cell
from fastrnn.layers.weights import NAMES

Arrays = dict[str, Array]

#: one dict of W, U, b, b_rec, p, as far as they are there, for each layer and direction in PyTorch's order
Parts = list[Arrays]


def expect_names(whose: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    """Of a file or another's model, where a wrong name is a wrong value."""
    checks.expect_names(whose, given, wanted, ValueError)


def built(
    whose: str,
    cell: str,
    state: Mapping[str, Array],
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    **options: Any,
) -> Recurrent:
    """A layer of these sizes and options with copies of these parameters, all checked first."""
    if num_layers > len(state):
        raise ValueError(f"{whose}: num_layers is {num_layers}, and there are only {len(state)} arrays")
    layer = of_cell(cell, 1, 1, num_layers, rng=0, **options)  # nothing large before all has been checked
    layer.input_size, layer.hidden_size = input_size, hidden_size
    sizes = [I for I in layer._input_sizes() for _ in layer._ways]
    shapes = [layer._shapes(I) for I in sizes]
    names = layer._names()
    expect_names(whose, state, [name for own in names for name in own.values()])
    for own, wanted in zip(names, shapes, strict=True):
        for key, name in own.items():
            a = state[name]
            if a.dtype != layer.dtype:
                raise TypeError(f"{whose}: {name}: expected dtype {layer.dtype}, got {describe(a.dtype)}")
            if a.shape != wanted[key]:
                raise ValueError(f"{whose}: {name}: expected shape {wanted[key]}, got {a.shape}")
    layer._weights = [
        {key: layer._rounded(np.array(state[own[key]], order="C")) if key in own else None for key in NAMES}
        for own in names
    ]
    return layer


def stacked(whose: str, cell: str, state: Mapping[str, Array], **options: Any) -> Recurrent:
    """A layer whose sizes, depth, directions, biases and dtype are what names and shapes say."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in state:
            raise ValueError(f"{whose}: missing {name!r}")
        if state[name].ndim != 2:
            raise ValueError(f"{whose}: {name}: expected shape (G*H, ...), got {state[name].shape}")
    dtype = state["weight_ih_l0"].dtype
    if dtype not in DTYPES:
        raise TypeError(f"{whose}: weight_ih_l0: expected dtype float32 or float64, got {describe(dtype)}")
    (rows, H), G = state["weight_hh_l0"].shape, CELLS[cell].G
    if rows != G * H or H < 1:
        shape = f"({G}*H, H)" if G > 1 else "(H, H)"
        raise ValueError(f"{whose}: weight_hh_l0: expected shape {shape} for cell {cell!r}, got {(rows, H)}")
    if not state["weight_ih_l0"].size:
        raise ValueError(f"{whose}: weight_ih_l0: expected at least 1 input, got shape {state['weight_ih_l0'].shape}")
    both = any(name.startswith("bias_hh") for name in state)
    options["bias"] = True if both else "input" if any(name.startswith("bias_ih") for name in state) else False
    options["bidirectional"] = any(name.endswith("_reverse") for name in state)
    layers = sum(name.startswith("weight_hh_l") and not name.endswith("_reverse") for name in state)
    sizes = {"input_size": state["weight_ih_l0"].shape[1], "hidden_size": H, "num_layers": layers}
    return built(whose, cell, state, **sizes, dtype=dtype, **options)


def assembled(whose: str, cell: str, parts: Parts, bidirectional: bool, **options: Any) -> Recurrent:
    """`stacked`, from what each layer and direction has; an LSTM with peepholes if there are any."""
    if cell == "lstm" and any("p" in own for own in parts):
        cell = "lstm_peephole"
    ways = ("", "_reverse") if bidirectional else ("",)
    suffixes = [f"_l{layer}{way}" for layer in range(len(parts) // len(ways)) for way in ways]
    state = {NAMES[key] + end: a for end, own in zip(suffixes, parts, strict=True) for key, a in own.items()}
    return stacked(whose, cell, state, **options)


def parts_of(layer: Recurrent) -> Parts:
    """The layer's own arrays."""
    return [{key: a for key, a in own.items() if a is not None} for own in layer._weights]


def recurrent(layer: Any, target: str) -> Recurrent:
    """The layer, which the target is able to express as far as it is a recurrent one of float weights."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected an RNN, GRU or LSTM of fastrnn, got {type(layer).__name__}")
    refuse(layer, target, "weight_dtype", layer.weight_dtype, None)
    return layer


def refuse(layer: Any, target: str, option: str, value: Any, *expected: Any) -> None:
    """A ValueError, unless the option has one of the values that the target can express."""
    if value not in expected:
        wanted = " or ".join(map(repr, expected))
        raise ValueError(f"{option}: {target} cannot express {value!r} of {layer!r}; expected {wanted}")


def cell_of(layer: Recurrent) -> str:
    return layer._cell.name


def features_of(layer: Recurrent) -> int:
    """The last axis of y, or of both where there is a pair of them."""
    return layer._features
