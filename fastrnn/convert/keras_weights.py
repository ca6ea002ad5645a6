"""Find the weights of a Keras model: in in-memory layers, or in HDF5 files.

In model.weights.h5 of a `.keras` file each layer's variables are numbered. In an older `.h5` file each layer or nested
model lists the names of its weights, of which the frozen ones come last: per half of a Bidirectional, per cell, or even
per weight. A configuration need not say which are frozen, so weights are assigned by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from fastrnn.convert.keras_config import Config, count, leaves, name
from fastrnn.convert.keras_hdf5 import item, values
from fastrnn.frameworks import KERAS_RNN
from fastrnn.types import Array

Weights = list[tuple[str, Array]]  #: (name, array)

#: Names of a layer's weights in Keras 2 and 3, in their order.
ROLES = ("embeddings", "gamma", "beta", "kernel", "recurrent_kernel", "bias")

SURE = 'in Keras, model.save("model.keras") writes a file without this ambiguity'


class Store(Protocol):
    """The store of the weights of a model or a layer."""

    def parts(self, layers: list[Config]) -> list[Store]:
        """Return the stores of a model's layers, given in the model's order."""
        ...

    def arrays(self, layer: Config) -> list[Array]:
        """Return a layer's weights in Keras' order."""
        ...


class Live:
    """A `Store` of an in-memory model or layer."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def parts(self, layers: list[Config]) -> list[Store]:
        own = {layer.name: layer for layer in self._layer.layers}
        return [Live(own.get(name(one))) for one in layers]

    def arrays(self, layer: Config) -> list[Array]:
        return [] if self._layer is None else [np.asarray(a) for a in self._layer.get_weights()]


class Numbered:
    """A `Store` in model.weights.h5. A group has its layer's name as an attribute, or is named by class and number.

    Numbers only give the order and may have gaps: TensorFlow 2.13 counts a layer with weights twice.
    """

    def __init__(self, group: Any) -> None:
        self._group = group

    def parts(self, layers: list[Config]) -> list[Store]:
        return self._paired(root_of(self._group), layers)

    def arrays(self, layer: Config) -> list[Array]:
        return [] if self._group is None else list(self._below(layer))

    def _below(self, layer: Config) -> Iterator[Array]:
        """Yield the layer's variables, and those of the layers and cells in it."""
        if "vars" in self._group:
            own = item(self._group, "vars")
            yield from (values(item(own, str(i))) for i in range(len(own)))
        for part in ("cell", "forward_layer", "backward_layer", "layer"):
            if part in self._group:
                wrapped = layer["config"].get("cell" if part == "cell" else "layer", layer)
                yield from Numbered(item(self._group, part))._below(wrapped)
        if "cells" in self._group:
            cells = layer["config"]["cells"]
            for cell, store in zip(cells, self._paired("cells", cells), strict=True):
                yield from store.arrays(cell)

    def _paired(self, root: str | None, layers: list[Config]) -> list[Store]:
        """Pair each layer with its group: the one with its name, or the next of its class."""
        groups = {} if root is None else {key: item(self._group, f"{root}/{key}") for key in self._group[root]}
        names = {key: group["vars"].attrs.get("name") for key, group in groups.items() if "vars" in group}
        shared = Counter(map(name, layers)) + Counter(names.values())  # one here and one there; cells may share one
        keys = {own: key for key, own in names.items() if own is not None and shared[own] == 2}
        stores: dict[int, Store] = {}
        for one in layers:
            key = keys.get(name(one))
            stores[id(one)] = Numbered(None if key is None else groups[key])
        for kind in {snake_case(one["class_name"]) for one in layers}:
            numbers = {key: number(key, kind) for key in groups.keys() - keys.values()}
            rest = sorted((n, key) for key, n in numbers.items() if n is not None)
            left = [one for one in layers if name(one) not in keys and snake_case(one["class_name"]) == kind]
            weighty = [one for one in left if any(map(count, leaves(one)))]
            own = next((some for some in (left, weighty) if len(some) == len(rest)), None)
            if own is not None:
                stores |= {id(one): Numbered(groups[key]) for one, (_, key) in zip(own, rest, strict=True)}
            elif rest:
                stores |= {id(one): Unpaired([key for _, key in rest], len(left)) for one in left}
        return [stores[id(one)] for one in layers]


class Unpaired:
    """A `Store` of a layer whose group in the file is ambiguous."""

    def __init__(self, groups: list[str], layers: int) -> None:
        self._message = f"the file has weights in {', '.join(groups)}, but the model has {layers} layers of this class"

    def parts(self, layers: list[Config]) -> list[Store]:
        return [self for _ in layers]

    def arrays(self, layer: Config) -> list[Array]:
        raise ValueError(f"layer {name(layer)!r} ({layer['class_name']}): {self._message}")


def root_of(group: Any) -> str | None:
    """Return the key of a model's layers, or None if the group is not a model."""
    return next((root for root in ("layers", "_layer_checkpoint_dependencies") if root in group), None)


def snake_case(kind: str) -> str:
    """Convert a class name to snake case, as Keras names groups."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<!^)(?=[A-Z][a-z])", "_", kind).lower()


def number(group: str, kind: str) -> int | None:
    """Return the number of a group within its class, 0 if it has none; None for another class."""
    match = re.fullmatch(rf"{re.escape(kind)}(?:_([0-9]+))?", group)
    return None if match is None else int(match[1] or 0)


class Named:
    """A `Store` of the file."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def parts(self, layers: list[Config]) -> list[Store]:
        return [Listed(one, listed(self._group, name(one))) for one in layers]

    def arrays(self, layer: Config) -> list[Array]:
        return []


def listed(model: Any, layer: str) -> Weights:
    """Return the weights that a layer's group lists, sorted by `ROLES` per owner; empty if it has no group."""
    if layer not in model:
        return []
    group = item(model, layer)
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs["weight_names"]]
    owners = [owner_and_role(one)[0] for one in names]
    names.sort(key=lambda one: (owners.index(owner_and_role(one)[0]), owner_and_role(one)[1]))
    return [(one, values(item(group, one))) for one in names]


def owner_and_role(weight: str) -> tuple[str, int]:
    """Return the part of a weight's name that its cell or layer determines, and its index in `ROLES`."""
    match = re.fullmatch(rf"(|.*/)({'|'.join(ROLES)})((?:_[0-9]+)?(?::[0-9]+)?)", weight)
    return (weight, 0) if match is None else (match[1] + match[3], ROLES.index(match[2]))


class Listed:
    """A `Store` of the weights of a layer, or of all layers of a nested model."""

    def __init__(self, layer: Config, weights: Weights) -> None:
        self._layer, self._weights = layer, weights

    def parts(self, layers: list[Config]) -> list[Store]:
        owned = shared_out(self._layer, list(leaves(self._layer)), self._weights)
        return [Listed(one, [w for leaf in leaves(one) for w in owned[id(leaf)]]) for one in layers]

    def arrays(self, layer: Config) -> list[Array]:
        if layer["class_name"] == "Bidirectional":
            return [a for way in directions(name(layer), self._weights) for a in way]
        if layer["class_name"] == KERAS_RNN and layer["config"]["cell"]["class_name"] == "StackedRNNCells":
            cells = layer["config"]["cell"]["config"]["cells"]
            owned = shared_out(layer, cells, self._weights)
            return [a for cell in cells for _, a in owned[id(cell)]]
        return [a for _, a in self._weights]


def shared_out(whole: Config, parts: list[Config], weights: Weights) -> dict[int, Weights]:
    """Assign weights to the layers of a model, or the cells of a layer: by name, or in order if all are trained."""
    owners = [[one for one in parts if name(one) in weight.split("/")] for weight, _ in weights]
    owned: dict[int, Weights] = {id(one): [] for one in parts}
    if all(len(some) == 1 for some in owners):
        for (own,), weight in zip(owners, weights, strict=True):
            owned[id(own)].append(weight)
        return owned
    title = f"layer {name(whole)!r} ({whole['class_name']})"
    if len({flag for one in parts if count(one) for flag in flags(one)}) > 1:
        names = ", ".join(weight for weight, _ in weights)
        unsure = f"because names do not determine the owners of {names:.200}"
        raise ValueError(f"{title}: trainable: expected all of it frozen or nothing, {unsure}; {SURE}")
    left = weights
    for one in parts:
        owned[id(one)], left = left[: count(one)], left[count(one) :]
    if left:
        raise ValueError(f"{title}: found {len(left)} weights that cannot be assigned to its layers")
    return owned


def directions(layer: str, weights: Weights) -> tuple[list[Array], list[Array]]:
    """Split weights into those of a Bidirectional's forward layer, whose name is fixed, and those of the other."""
    paths = [weight.split("/") for weight, _ in weights]
    level = next((own for own in zip(*paths, strict=False) if len(set(own)) > 1), [""] * len(paths))  # where they vary
    forward = [a for own, (_, a) in zip(level, weights, strict=True) if own.startswith("forward_")]
    backward = [a for own, (_, a) in zip(level, weights, strict=True) if not own.startswith("forward_")]
    if len(forward) != len(backward):
        names = ", ".join(weight for weight, _ in weights)
        raise ValueError(f"layer {layer!r}: expected half of its weights in 'forward_...', got {names:.200}; {SURE}")
    return forward, backward


def flags(config: Any) -> Iterator[bool]:
    """Yield every `trainable` in a configuration."""
    if isinstance(config, dict) and "trainable" in config:
        yield config["trainable"] is not False
    for one in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from flags(one)
