"""Build recurrent layers from arrays under PyTorch's names; helpers that the converters share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from fastrnn import checks
from fastrnn.cells import Cell, members
from fastrnn.checks import as_array, describe, floating_array, prefix_of
from fastrnn.frameworks import Framework
from fastrnn.layers import Dense, Dropout, Layer
from fastrnn.layers.options import (
    NAMES,
    LayerOptions,
    features,
    options_of,
    parameter_names,
    parameter_shapes,
    suffixes,
)
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.rnn import layer_class
from fastrnn.packed import Part
from fastrnn.training.chain import Chain
from fastrnn.types import Array

Arrays = dict[str, Array]

Own = TypeVar("Own", bound=Layer)

#: parameters of each layer and direction in PyTorch's order
Parts = list[Part]


def expect_names(whose: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    """Check the names in a file or a foreign model, where a wrong name raises ValueError."""
    checks.expect_names(whose, given, wanted, ValueError)


def built(whose: str, cell: Cell, state: Mapping[str, Array], **options: Any) -> Recurrent:
    """Make a layer of these options with copies of these parameters, after checking them all."""
    told = LayerOptions(**options)
    if told.num_layers > len(state):
        raise ValueError(f"{whose}: num_layers is {told.num_layers}, but there are only {len(state)} arrays")
    names, shapes = parameter_names(told, cell), parameter_shapes(told, cell)
    expect_names(whose, state, [name for own in names for name in own.values()])
    for own, wanted in zip(names, shapes, strict=True):
        for key, name in own.items():
            a = state[name]
            if a.dtype != told.dtype:
                raise TypeError(f"{whose}: {name}: expected dtype {told.dtype}, got {describe(a.dtype)}")
            if a.shape != wanted[key]:
                raise ValueError(f"{whose}: {name}: expected shape {wanted[key]}, got {a.shape}")
    parts = [{key: np.array(state[name], order="C") for key, name in own.items()} for own in names]
    return layer_class(cell).from_parts(cell, parts, **options)


def stacked(whose: str, cell: Cell, state: Mapping[str, Array], *, prefix: str = "", **options: Any) -> Recurrent:
    """Make a layer, inferring sizes, depth, directions, biases and dtype from names and shapes."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in state:
            more = prefix_of([name], state)
            raise ValueError(f"{whose}: missing {name!r}" + (f"; pass prefix={prefix + more!r}" if more else ""))
        if state[name].ndim != 2:
            raise ValueError(f"{whose}: {name}: expected shape (G*H, ...), got {state[name].shape}")
    dtype = floating_array(f"{whose}: weight_ih_l0", state["weight_ih_l0"]).dtype
    (rows, H), G = state["weight_hh_l0"].shape, cell.G
    if "weight_hr_l0" in state:  # (P, H); weight_hh is (G*H, P)
        options["proj_size"], H = H, rows // G
    if rows != G * H or H < 1:
        shape = f"({G}*H, H)" if G > 1 else "(H, H)"
        raise ValueError(f"{whose}: weight_hh_l0: expected shape {shape} for cell {cell.name!r}, got {(rows, H)}")
    if not state["weight_ih_l0"].size:
        raise ValueError(f"{whose}: weight_ih_l0: expected at least 1 input, got shape {state['weight_ih_l0'].shape}")
    both = any(name.startswith("bias_hh") for name in state)
    options["bias"] = True if both else "input" if any(name.startswith("bias_ih") for name in state) else False
    options["bidirectional"] = any(name.endswith("_reverse") for name in state)
    layers = sum(name.startswith("weight_hh_l") and not name.endswith("_reverse") for name in state)
    sizes = {"input_size": state["weight_ih_l0"].shape[1], "hidden_size": H, "num_layers": layers}
    return built(whose, cell, state, **sizes, dtype=dtype, **options)


def assembled(whose: str, cell: Cell, parts: Parts, bidirectional: bool, **options: Any) -> Recurrent:
    """Make a layer with `stacked` from the parameters of each layer and direction."""
    ends = suffixes(len(parts) // (1 + bidirectional), bidirectional)
    state = {NAMES[key] + end: a for end, own in zip(ends, parts, strict=True) for key, a in own.items()}
    return stacked(whose, cell, state, **options)


def recurrent(layer: Recurrent, target: Framework) -> Recurrent:
    """Return the layer; raise ValueError if the target cannot express it."""
    cell = layer.stack.cell
    if cell.family not in target.classes or not (cell.builtin or (target.factories and cell.options)):
        known = ", ".join(c.name for family in target.classes for c in members(family))
        known += ", or of one that catalogue.lstm_with, gru_with or rnn_with made" if target.factories else ""
        raise ValueError(
            f"cell: {target.name} has no {cell.name}; expected a layer of a built-in cell: {known}; fastrnn.save "
            "supports any cell"
        )
    refuse(layer, target, "weight_dtype", layer.weight_dtype, None)
    refuse(layer, target, "zoneout", layer.zoneout, 0.0)
    refuse(layer, target, "heads", layer.heads, 1)
    options = ("return_sequences", "recurrent_dropout", "weight_drop", "proj_size")
    told = cell.options | {name: getattr(layer, name) for name in options}
    told |= {"merge": layer.merge} if layer.bidirectional else {}
    if target.mask_each and cell.G == 1:  # with one gate, a mask per gate is the same as one mask for all
        del told["recurrent_dropout"]
    for option, values in target.only.items():
        if option in told:
            refuse(layer, target, option, told[option], *values)
    return layer


def refuse(layer: Any, target: Framework, option: str, value: Any, *expected: Any) -> None:
    """Raise ValueError unless the option has one of the values that the target can express."""
    if value not in expected:
        wanted = " or ".join(map(repr, expected))
        raise ValueError(f"{option}: {target.name} cannot express {value!r} of {layer!r}; expected {wanted}")


def expect_layer(name: str, model: Any) -> None:
    if not isinstance(model, Layer):
        raise TypeError(f"{name}: expected a layer or a Sequential of fastrnn, got {type(model).__name__}")


def as_chain(name: str, model: Any) -> Chain:
    """Return the model itself, or a model of this one layer."""
    expect_layer(name, model)
    return model if isinstance(model, Chain) else Chain([model])


def leaves(model: Chain, prefix: str = "", title: str = "") -> Iterator[tuple[str, str, Layer]]:
    """Yield (prefix of parameter names, name in messages, layer) for the layers of a model and its nested models."""
    for i, (name, layer) in enumerate(zip(model.names, model.layers, strict=True)):
        if isinstance(layer, Chain):
            yield from leaves(layer, f"{prefix}{i}.", f"{title}{name}: ")
        else:
            yield f"{prefix}{i}.", title + name, layer


def one_dtype(layers: Iterable[Layer]) -> np.dtype[Any]:
    """Return the dtype of the layers that have one, float32 if none has; raise ValueError if they differ."""
    dtypes: set[np.dtype[Any]] = {layer.dtype for layer in layers if hasattr(layer, "dtype")}
    dtypes = dtypes or {np.dtype(np.float32)}
    if len(dtypes) > 1:
        raise ValueError(f"model: expected layers of one dtype, got {' and '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()


def unstacked(layer: Recurrent) -> list[Layer]:
    """Split a stack into single layers that share its parameters, with dropout between them."""
    options = options_of(layer) | {"dropout": 0.0}
    L, D, found = layer.num_layers, 1 + layer.bidirectional, list[Layer]()
    for i in range(L):
        own = {"num_layers": 1, "return_sequences": layer.return_sequences or i < L - 1}
        own |= {"input_size": features(layer)} if i else {}
        found += [Dropout(layer.dropout)] if i and layer.dropout else []
        parts = layer.stack.parts[i * D : (i + 1) * D]
        found.append(type(layer).from_parts(layer.stack.cell, parts, **options | own))
    return found


def as_numpy(name: str, value: Any) -> Array:
    """Return the values of a tensor of PyTorch, or of an array."""
    if hasattr(value, "detach"):
        if str(value.dtype) not in ("torch.float32", "torch.float64"):
            raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}")
        if value.is_meta or str(value.layout) != "torch.strided":
            got = "one on the device meta, which has no values" if value.is_meta else f"layout {value.layout}"
            raise TypeError(f"{name}: expected a dense tensor with values, got {got}")
        value = value.detach().cpu().numpy()
    return as_array(name, value)


def loaded(layer: Own, state: Mapping[str, Any]) -> Own:
    """Load these parameters into the layer and return it."""
    layer.load_state_dict(state)
    return layer


def dense_of(weight: Array, bias: Array | None, activation: str | None = None) -> Dense:
    """Make a layer of a weight (out, in) and a bias (out,)."""
    layer = Dense(weight.shape[1], len(weight), activation, bias=bias is not None, dtype=weight.dtype, rng=0)
    return loaded(layer, {"weight": weight} | ({} if bias is None else {"bias": bias}))


def kind_of(layer: Layer, kinds: Iterable[type[Layer]]) -> type[Layer]:
    """Return which of the classes fastrnn's own layer is; raise TypeError for foreign layers, which may do anything."""
    own = type(layer).__module__.partition(".")[0] == __name__.partition(".")[0]
    found = next((kind for kind in kinds if isinstance(layer, kind)), None)
    if found is None or not own:
        known = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"expected one of fastrnn's {known}, got {type(layer).__module__}.{type(layer).__name__}")
    return found
