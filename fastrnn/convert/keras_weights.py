"""Find the weights of a Keras model: in in-memory layers, or in HDF5 files.

In model.weights.h5 of a `.keras` file each layer's variables are numbered; `keras_h5` reads the older files.
External links are not followed, and only data stored in the file is read.
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

#: packages whose layers are Keras' own, or have the same options
PACKAGES = ("keras", "tf_keras", "tensorflow", "fastrnn")

#: Number of weights of a layer besides its bias. Other layers with weights are not supported.
COUNTS = dict.fromkeys((*KERAS.families, *KERAS_CELLS, *CUDNN), 2) | {"Dense": 1, "Embedding": 1}


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


def leaves(layer: Config) -> Iterator[Config]:
    if not is_model(layer):
        yield layer
        return
    for one in layers_of(layer):
        yield from leaves(one)


def count(layer: Config) -> int:
    """Return the number of weights of a layer or a cell."""
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
    """Return the layers in the model's order, which may differ from the order of application."""
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
            raise ValueError(f"layer {name(one)!r} ({one['class_name']} of {package}): not supported")
    return layers


def is_model(layer: Config) -> bool:
    return layer["class_name"] in MODELS


def name(layer: Config) -> str:
    config = layer["config"]
    return str((config if isinstance(config, dict) else {}).get("name", layer.get("name")))


def plain(layer: Any) -> Any:
    """Return the configuration as a file stores it: tuples become lists."""
    return json.loads(json.dumps(layer.get_config(), default=str))


def expect_groups(file: Any) -> None:
    """Raise ValueError if there is an array where a group is expected."""
    h5py = needed("h5py", "keras-files")

    def look(path: str, found: Any) -> None:
        top, *below = path.split("/")
        of_layers = top in ("layers", "_layer_checkpoint_dependencies") and below[-2:-1] != ["vars"]
        if isinstance(found, h5py.Dataset) and (of_layers or (top == "model_weights" and len(below) < 2)):
            raise ValueError(f"path: {path} is an array of shape {found.shape}, expected a group")

    file.visititems(look)


def item(group: Any, path: str) -> Any:
    """Return a member of the group, in the same file."""
    h5py = needed("h5py", "keras-files")
    for part in path.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"path: {path} in {group.name} is a link, which is not followed")
        group = group[part]
    return group


def values(dataset: Any) -> Array:
    """Return the stored array, if it is in the file itself; Keras does not use compression or external storage."""
    try:
        if dataset.id.get_storage_size() == dataset.nbytes and not dataset.external and not dataset.is_virtual:
            return np.asarray(dataset[()])
    except ValueError as error:  # for a type that NumPy lacks
        raise ValueError(f"path: {dataset.name}: {error}") from error
    raise ValueError(f"path: {dataset.name} of shape {dataset.shape} is not stored in the file")
