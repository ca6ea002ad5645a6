"""Keras files that hold only weights: `save_weights` of Keras 1 and 2, and `.weights.h5`.

The model, or the cell, that receives the weights determines the layers. Older files store layers in the model's order;
newer ones number the layers within each class, and the order across classes is unknown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Cell
from fastrnn.checks import titled
from fastrnn.convert.keras_config import Piece
from fastrnn.convert.keras_hdf5 import expect_groups, item, opened
from fastrnn.convert.keras_layers import of_graphics_card, parts
from fastrnn.convert.keras_weights import Numbered, directions, listed, number, root_of, snake_case
from fastrnn.convert.stack import Arrays, assembled
from fastrnn.frameworks import CUDNN, KERAS, KERAS_1_GATES
from fastrnn.layers import Dense, Embedding, Layer, LayerNormalization
from fastrnn.layers.options import parameter_names
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training.chain import name_of
from fastrnn.types import Array

#: Stateless layers whose parameters are in Keras' order -> their possible names in Keras.
CLASSES: dict[type[Layer], tuple[str, ...]] = {
    Dense: ("dense", "time_distributed"),
    Embedding: ("embedding",),
    LayerNormalization: ("layer_normalization",),
}


class Stored(NamedTuple):
    """A layer whose weights are in the file."""

    name: str  #: its name in the model, if the file has it
    place: str  #: the path of its group in the file
    kind: str  #: its class in snake case; "" if the layers are in order
    model: str  #: the path of the model that it belongs to
    arrays: list[Array]
    names: list[str] | None = None  #: of the arrays, if the two directions may be in either order


class Wanted(NamedTuple):
    """A layer of a model, or one of a stack, that receives weights."""

    title: str
    kinds: tuple[str, ...]  #: its possible names in Keras
    kernel: tuple[int, ...]  #: the shape of its first array
    take: Callable[[Stored], Arrays]  #: returns parameters under the model's names


def load(path: str | os.PathLike[str], model: Any) -> None:
    """Do the work of `Sequential.load_keras_weights`."""
    with opened(path, "weights") as (file, _):
        stored, in_order = read(file)
    wanted = list(layers_of(model, "", ""))
    whose = f"path: {os.fspath(path)}"
    pairs = one_by_one(whose, stored, wanted) if in_order else by_class(whose, stored, wanted)
    state = model.state_dict()
    for own, layer in pairs:
        state |= layer.take(own)
    model.load_state_dict(state)


def one_layer(path: Any, cell: Cell, layer: str | None) -> Recurrent:
    """Make a layer of this cell from the layer of this name in a weights file."""
    with opened(path, "weights") as (file, archive):
        if "model_config" in file.attrs or archive is not None:
            raise ValueError(f"cell: expected None, because {os.fspath(path)} describes its layers")
        stored, _ = read(file)
    G, names = cell.G, ", ".join(one.name or one.place for one in stored)
    found = [one for one in stored if layer in (one.name, None)] or [one for one in stored if one.place == layer]
    if layer is None:
        found = [one for one in found if recurrent_sizes(one, G)]
    if len(found) != 1:
        raise ValueError(f"layer: expected one of {names}, got {layer!r}, which matches {len(found)}")
    (own,) = found
    if (sizes := recurrent_sizes(own, G)) is None:
        shapes = [a.shape for a in own.arrays]
        wanted = f"kernel (I, {G}*H), recurrent_kernel (H, {G}*H), bias"
        raise ValueError(f"layer {layer!r}: expected {wanted}, got arrays of shapes {shapes}")
    H, D = sizes
    ways = [direction(own, cell, H, arrays) for arrays in halves(own, D)]
    return assembled(own.place, cell, ways, D == 2, batch_first=True)


def recurrent_sizes(own: Stored, G: int) -> tuple[int, int] | None:
    """Return H and the number of directions of a layer's weights; None if it is another kind of layer."""
    n, each = len(own.arrays), {2, 3, 3 * G}
    D = 1 if n in each else 2 if n % 2 == 0 and n // 2 in each else 0
    if not D or any(a.ndim != 2 for a in own.arrays[:2]):
        return None
    H, GH = own.arrays[1].shape
    split = n // D == 3 * G > 3  # gate by gate
    return (H, D) if H >= 1 and GH == (1 if split else G) * H == own.arrays[0].shape[1] else None


def halves(own: Stored, D: int) -> list[list[Array]]:
    if D == 2 and own.names is not None:
        return list(directions(own.name, list(zip(own.names, own.arrays, strict=True))))
    return [own.arrays] if D == 1 else [own.arrays[: len(own.arrays) // 2], own.arrays[len(own.arrays) // 2 :]]


def direction(own: Stored, cell: Cell, H: int, arrays: list[Array], bias: bool | None = None) -> Arrays:
    """Return W, U, b, b_rec of one direction, in the layout of any Keras version."""
    kind, gates = KERAS.classes[cell.family], KERAS_1_GATES.get(cell.family, "")
    if gates and len(arrays) == 3 * len(gates):
        by_gate = {gate: arrays[3 * i : 3 * i + 3] for i, gate in enumerate(gates)}
        ordered = [by_gate[gate] for gate in KERAS.gates[cell.family]]
        arrays = [np.concatenate(same, axis=-1) for same in zip(*ordered, strict=True)]
    if len(arrays) == 3 and arrays[2].shape == (2 * cell.G * H,):
        kind = next((card for card, (plain, _) in CUDNN.items() if plain == kind), kind)
    config = {"name": own.name or own.place, "units": H, "use_bias": len(arrays) > 2 if bias is None else bias}
    return parts(of_graphics_card(Piece(kind, config, arrays)), cell)


def layers_of(model: Any, prefix: str, title: str) -> Iterator[Wanted]:
    """Yield the layers of a model that have parameters, in order."""
    for i, layer in enumerate(model.layers):
        names, own = f"{prefix}{i}.", title + name_of(i, layer)
        if hasattr(layer, "layers"):
            yield from layers_of(layer, names, f"{own}: ")
        elif isinstance(layer, Recurrent):
            yield from of_stack(layer, names, own)
        elif layer.parameters() and type(layer) in CLASSES:
            yield without_steps(layer, names, own)
        elif layer.parameters():
            raise TypeError(f"{own}: expected a layer that Keras has")


def without_steps(layer: Layer, prefix: str, title: str) -> Wanted:
    """Describe a stateless layer; our Dense stores (out, in)."""
    names = [prefix + name for name in layer.parameters()]
    turned = isinstance(layer, Dense)
    shapes = [a.T.shape if turned else a.shape for a in layer.parameters().values()]

    def take(own: Stored) -> Arrays:
        if [a.shape for a in own.arrays] != shapes:
            raise ValueError(f"{title}: expected arrays of shapes {shapes}, got {shapes_of(own)}")
        return {name: a.T if turned else a for name, a in zip(names, own.arrays, strict=True)}

    return Wanted(title, CLASSES[type(layer)], shapes[0], take)


def of_stack(layer: Recurrent, prefix: str, title: str) -> Iterator[Wanted]:
    """Yield each of a recurrent layer's ``num_layers``."""
    cell, D, H = layer.stack.cell, 1 + layer.bidirectional, layer.hidden_size
    names = parameter_names(layer, cell)
    if cell.family not in KERAS.classes or set().union(*names) - {"W", "U", "b", "b_rec"}:
        raise TypeError(f"{title}: expected a layer that Keras has, got {layer!r}")
    plain = KERAS.classes[cell.family]
    cards = [card for card, (kind, _) in CUDNN.items() if kind == plain]
    kinds = ("bidirectional",) if layer.bidirectional else tuple(map(snake_case, (plain, *cards)))
    for i in range(layer.num_layers):
        own_names = names[i * D : (i + 1) * D]

        def take(own: Stored, own_names: Any = own_names) -> Arrays:
            if len(own.arrays) % D:
                raise ValueError(f"{title}: expected weights of two directions, got {shapes_of(own)}")
            found: Arrays = {}
            for ours, arrays in zip(own_names, halves(own, D), strict=True):
                with titled(title):
                    part = direction(own, cell, H, arrays, bool(layer.bias))
                if "b_rec" in part and "b_rec" not in ours:
                    raise ValueError(f"{title}: expected bias=True, because {own.name or own.place} has two biases")
                part |= {"b_rec": np.zeros_like(part["b"])} if "b_rec" in ours and "b_rec" not in part else {}
                found |= {prefix + ours[key]: a for key, a in part.items()}
            return found

        I = layer.stack.parts[i * D]["W"].shape[1]
        yield Wanted(title, kinds, (I, cell.G * H), take)


def one_by_one(whose: str, stored: list[Stored], wanted: list[Wanted]) -> list[tuple[Stored, Wanted]]:
    """Pair layers in order."""
    if len(stored) != len(wanted):
        found, titles = (", ".join(names) for names in ([one.name for one in stored], [one.title for one in wanted]))
        raise ValueError(f"{whose}: expected weights of {len(wanted)} layers, {titles}, got those of {found}")
    return list(zip(stored, wanted, strict=True))


def by_class(whose: str, stored: list[Stored], wanted: list[Wanted]) -> list[tuple[Stored, Wanted]]:
    """Pair the layers of each class in order, or by shape if several classes or models match."""
    pairs, left = list[tuple[Stored, Wanted]](), stored
    for kinds in dict.fromkeys(one.kinds for one in wanted):
        takers = [one for one in wanted if one.kinds == kinds]
        given = [one for one in stored if one.kind in kinds]
        if len(given) != len(takers):
            places = ", ".join(one.place for one in given) or "none"
            titles = ", ".join(one.title for one in takers)
            raise ValueError(f"{whose}: expected weights of {' or '.join(kinds)} for {titles}, got {places}")
        if len({(one.kind, one.model) for one in given}) > 1:
            given = by_shape(whose, given, takers)
        pairs += zip(given, takers, strict=True)
        left = [one for one in left if one not in given]
    if left:
        raise ValueError(f"{whose}: found weights of {', '.join(one.place for one in left)}, which match no layer")
    return pairs


def by_shape(whose: str, given: list[Stored], takers: list[Wanted]) -> list[Stored]:
    fitting = [[one for one in given if [a.shape for a in one.arrays[:1]] == [taker.kernel]] for taker in takers]
    if any(len(some) != 1 for some in fitting) or len({some[0].place for some in fitting}) < len(takers):
        places = ", ".join(one.place for one in given)
        raise ValueError(f"{whose}: the order of the layers {places} is ambiguous, by the file and by their shapes")
    return [one for (one,) in fitting]


def shapes_of(own: Stored) -> str:
    return f"{own.name or own.place} with arrays of shapes {[a.shape for a in own.arrays]}"


def read(file: Any) -> tuple[list[Stored], bool]:
    """Return the layers that have weights, and whether they are in the model's order."""
    expect_groups(file)
    group = item(file, "model_weights") if "model_weights" in file else file
    if "layer_names" in group.attrs:
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs["layer_names"]]
        found = [(name, listed(group, name)) for name in names]
        return [
            Stored(name, name, "", "", [a for _, a in weights], [weight for weight, _ in weights])
            for name, weights in found
            if weights
        ], True
    if root_of(file) is None:
        raise ValueError("path: expected weights that Keras wrote, got neither layer_names nor layers")
    return list(numbered(file, "")), False


def numbered(group: Any, model: str) -> Iterator[Stored]:
    """Yield the layers of a model, those of each class in order."""
    root = root_of(group)
    keys = [] if root is None else [(re.sub("_[0-9]+$", "", key), key) for key in group[root]]
    for kind, key in sorted(keys, key=lambda pair: (pair[0], number(pair[1], pair[0]) or 0)):
        own, place = item(group, f"{root}/{key}"), f"{model}{key}"
        if root_of(own) is not None:
            yield from numbered(own, f"{place}/")
            continue
        if "cell" in own and "cells" in own["cell"]:
            raise ValueError(f"path: {place}: stacked cells are not supported; use from_keras with a whole model")
        name = own["vars"].attrs.get("name", "") if "vars" in own else ""
        arrays = Numbered(own).arrays({"config": {}})
        if arrays or datasets(own):
            yield Stored(str(name), place, kind, model, arrays)


def datasets(group: Any) -> list[str]:
    """Return the paths of all datasets, except a generator's state."""
    found: list[str] = []
    group.visititems(
        lambda path, one: found.append(path) if hasattr(one, "shape") and "seed_generator" not in path else None
    )
    return found
