"""Where the weights of a Keras model are: in layers that are there, or in HDF5 files.

In model.weights.h5 of a `.keras` file each layer's variables are numbered; `keras_h5` reads the older files.
Links out of a file are not followed, and nothing is read that the file does not hold.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from fastrnn.cells import Array
from fastrnn.extras import needed
from fastrnn.frameworks import CUDNN, KERAS, KERAS_CELLS, KERAS_RNN

Config = dict[str, Any]

MODELS = ("Sequential", "Functional", "Model")

#: whose classes are Keras' own, or have the options of Keras' own
PACKAGES = ("keras", "tf_keras", "tensorflow", "fastrnn")

#: How many weights a layer has beside its bias. Of those with others it is not known, and they have no counterpart.
COUNTS = dict.fromkeys((*KERAS.families, *KERAS_CELLS, *CUDNN), 2) | {"Dense": 1, "Embedding": 1}


class Store(Protocol):
    """Where the weights of a model are, or of a layer."""

    def parts(self, layers: list[Config]) -> list[Store]:
        """Of a model: those of its layers, which are given in the model's order."""
        ...

    def arrays(self, layer: Config) -> list[Array]:
        """Of a layer: its weights in Keras' order."""
        ...


class Live:
    """A `Store`: a model, or a layer, that is there."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def parts(self, layers: list[Config]) -> list[Store]:
        own = {layer.name: layer for layer in self._layer.layers}
        return [Live(own.get(name(one))) for one in layers]

    def arrays(self, layer: Config) -> list[Array]:
        return [] if self._layer is None else [np.asarray(a) for a in self._layer.get_weights()]


class Numbered:
    """A `Store`: model.weights.h5. A group has its layer's name as an attribute, or is called by class and number.

    The numbers leave gaps: TensorFlow 2.13 counts a layer with weights twice, and so numbers only say the order.
    """

    def __init__(self, group: Any) -> None:
        self._group = group

    def parts(self, layers: list[Config]) -> list[Store]:
        return self._paired(root_of(self._group), layers)

    def arrays(self, layer: Config) -> list[Array]:
        return [] if self._group is None else list(self._below(layer))

    def _below(self, layer: Config) -> Iterator[Array]:
        """Its own variables, and those of the layers and cells in it."""
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
        """Each of these layers with its group: that of its name, or the next one of its class."""
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
    """A `Store`: a layer of which it is not known which group of a file is its own."""

    def __init__(self, groups: list[str], layers: int) -> None:
        self._message = f"the file has weights in {', '.join(groups)}, and the model {layers} layers of this class"

    def parts(self, layers: list[Config]) -> list[Store]:
        return [self for _ in layers]

    def arrays(self, layer: Config) -> list[Array]:
        raise ValueError(f"layer {name(layer)!r} ({layer['class_name']}): {self._message}")


def root_of(group: Any) -> str | None:
    """Where a model's layers are, if it is one."""
    return next((root for root in ("layers", "_layer_checkpoint_dependencies") if root in group), None)


def snake_case(kind: str) -> str:
    """A class's name as Keras calls groups."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<!^)(?=[A-Z][a-z])", "_", kind).lower()


def number(group: str, kind: str) -> int | None:
    """Which of its class a group is, 0 without a number; None if it is of another class."""
    match = re.fullmatch(rf"{re.escape(kind)}(?:_([0-9]+))?", group)
    return None if match is None else int(match[1] or 0)


def leaves(layer: Config) -> Iterator[Config]:
    if not is_model(layer):
        yield layer
        return
    for one in layers_of(layer):
        yield from leaves(one)


def count(layer: Config) -> int:
    """How many weights a layer or a cell has."""
    kind, config = layer["class_name"], layer["config"]
    if kind in ("Bidirectional", "TimeDistributed"):
        return (2 if kind == "Bidirectional" else 1) * count(config["layer"])
    if kind == KERAS_RNN:
        return count(config["cell"])
    if kind == "StackedRNNCells":
        return sum(count(cell) for cell in config["cells"])
    if kind == "LayerNormalization":
        return sum(config.get(name, True) is not False for name in ("scale", "center"))
    biased = kind in COUNTS and kind != "Embedding" and config.get("use_bias", True) is not False
    return COUNTS.get(kind, 0) + biased


def layers_of(model: Config) -> list[Config]:
    """In the model's order, which need not be that in which they are applied."""
    kind, config = model["class_name"], model["config"]
    if kind not in MODELS:
        raise ValueError(f"model: expected a Sequential or functional model, got {kind!r:.80}")
    layers: list[Config] = config if isinstance(config, list) else config["layers"]  # a list in Keras before 2.2
    for one in layers:
        kinds = dict | list if is_model(one) else dict
        if not isinstance(one["class_name"], str) or not isinstance(one["config"], kinds):
            raise TypeError(f"expected a class and a configuration of each layer, got {one!r:.80}")
        package = str(one.get("module") or "keras").partition(".")[0]
        if package not in PACKAGES:
            raise ValueError(f"layer {name(one)!r} ({one['class_name']} of {package}): has no counterpart")
    return layers


def is_model(layer: Config) -> bool:
    return layer["class_name"] in MODELS


def name(layer: Config) -> str:
    config = layer["config"]
    return str((config if isinstance(config, dict) else {}).get("name", layer.get("name")))


def plain(layer: Any) -> Any:
    """Its configuration as a file would have it: tuples are lists."""
    return json.loads(json.dumps(layer.get_config(), default=str))


def expect_groups(file: Any) -> None:
    """A ValueError, unless there are groups wherever groups are looked for: arrays have a place of their own."""
    h5py = needed("h5py", "keras-files")

    def look(path: str, found: Any) -> None:
        top, *below = path.split("/")
        of_layers = top in ("layers", "_layer_checkpoint_dependencies") and below[-2:-1] != ["vars"]
        if isinstance(found, h5py.Dataset) and (of_layers or (top == "model_weights" and len(below) < 2)):
            raise ValueError(f"path: {path} is an array of shape {found.shape}, expected a group")

    file.visititems(look)


def item(group: Any, path: str) -> Any:
    """A member of the group, of this very file."""
    h5py = needed("h5py", "keras-files")
    for part in path.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"path: {path} in {group.name} is a link, which is not followed")
        group = group[part]
    return group


def values(dataset: Any) -> Array:
    """What is stored, if it is in the file; Keras neither compresses nor scatters."""
    try:
        if dataset.id.get_storage_size() == dataset.nbytes and not dataset.external and not dataset.is_virtual:
            return np.asarray(dataset[()])
    except ValueError as error:  # of a type that NumPy does not have
        raise ValueError(f"path: {dataset.name}: {error}") from error
    raise ValueError(f"path: {dataset.name} of shape {dataset.shape} is not stored in the file")
