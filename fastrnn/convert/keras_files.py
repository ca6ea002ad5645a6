"""What a Keras model consists of: a class name, a configuration and weights for each layer.

A `.keras` file is a zip of config.json and model.weights.h5, where each layer's variables are numbered; an older `.h5`
holds the configuration as an attribute, and for each layer the names of its weights in order. Links out of a file are
not followed, and nothing is read that the file does not hold.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Array
from fastrnn.extras import needed

Config = dict[str, Any]

#: where the variables of a layer are in its group of a `.keras` file, by its class
PLACES = {
    **dict.fromkeys(("SimpleRNN", "GRU", "LSTM"), ("cell",)),
    "Bidirectional": ("forward_layer/cell", "backward_layer/cell"),
    "TimeDistributed": ("layer",),
}

#: what a file that is no model's may lead to
BROKEN: tuple[type[Exception], ...] = (
    *(KeyError, IndexError, TypeError, AttributeError, OSError, RuntimeError, EOFError, MemoryError),
    *(json.JSONDecodeError, UnicodeDecodeError),
)

MODELS = ("Sequential", "Functional", "Model")


class Piece(NamedTuple):
    """One layer of Keras'."""

    kind: str  #: its class
    config: Config
    weights: list[Array]

    @property
    def title(self) -> str:
        return f"layer {self.config.get('name')!r} ({self.kind})"


def read(path: str | os.PathLike[str]) -> list[Piece]:
    """The layers of a model's file."""
    import zipfile  # here, for the sake of those who import fastrnn for something else
    import zlib

    h5py = needed("h5py", "keras")
    broken: tuple[type[Exception], ...] = (*BROKEN, zipfile.BadZipFile, zlib.error)
    whose = f"path: {os.fspath(path)}"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                model = json.loads(member(archive, "config.json"))
                weights = io.BytesIO(member(archive, "model.weights.h5"))
            with h5py.File(weights, "r") as file:
                expect_groups(file)
                return pieces(model, numbered(file))
        with h5py.File(path, "r") as file:
            expect_groups(file)
            if "model_config" not in file.attrs:
                raise ValueError(f"{whose} holds no model; expected a .keras file, or the .h5 file of a whole model")
            return pieces(json.loads(file.attrs["model_config"]), by_name(file))
    except FileNotFoundError:
        raise
    except broken as error:
        raise ValueError(f"{whose} is no model that Keras wrote ({type(error).__name__}: {error})") from error


def member(archive: Any, name: str) -> bytes:
    """A file of the archive, unless it would be large beyond proportion; Keras does not compress."""
    info = archive.getinfo(name)
    if info.file_size > 100 * info.compress_size:
        raise ValueError(f"path: {name} would be {info.file_size} bytes, from {info.compress_size} in the file")
    return bytes(archive.read(name))


def of_model(model: Any) -> list[Piece]:
    """The layers of a model that is there."""
    kind = "Sequential" if any(base.__name__ == "Sequential" for base in type(model).__mro__) else "Functional"
    try:
        config = plain(model)
    except NotImplementedError:
        config = {}
    if not isinstance(config, dict) or "layers" not in config:
        raise TypeError(f"model_or_path: expected a Sequential or functional model, got {type(model).__name__}")
    live = {layer.name: layer for layer in model.layers}
    return pieces({"class_name": kind, "config": config}, lambda name, _: arrays(live[name]) if name in live else [])


def of_layer(layer: Any) -> Piece:
    return Piece(type(layer).__name__, plain(layer), arrays(layer))


def plain(layer: Any) -> Any:
    """Its configuration as a file would have it: tuples are lists."""
    return json.loads(json.dumps(layer.get_config(), default=str))


def arrays(layer: Any) -> list[Array]:
    return [np.asarray(a) for a in layer.get_weights()]


def inner(piece: Piece, key: str, weights: list[Array]) -> Piece:
    """The layer that a layer wraps."""
    own = piece.config.get(key)
    if not isinstance(own, dict) or not isinstance(own.get("config"), dict):
        raise ValueError(f"{piece.title}: {key}: expected a layer, got {own!r:.80}")
    return Piece(str(own.get("class_name")), own["config"], weights)


def pieces(model: Config, weights: Callable[[str, str], list[Array]]) -> list[Piece]:
    """The layers in the order in which they are applied; `weights` gives those of a layer by its name and class."""
    kind, config = model["class_name"], model["config"]
    if kind not in MODELS:
        raise ValueError(f"model: expected a Sequential or functional model, got {kind!r:.80}")
    layers = config if isinstance(config, list) else config["layers"]  # a list in Keras before 2.2
    ordered = layers if kind == "Sequential" else chain(config)
    for one in ordered:
        if not isinstance(one["class_name"], str) or not isinstance(one["config"], dict):
            raise TypeError(f"expected a class and a configuration of each layer, got {one!r:.80}")
    return [Piece(one["class_name"], one["config"], weights(name(one), one["class_name"])) for one in ordered]


def name(layer: Config) -> str:
    return str(layer["config"].get("name", layer.get("name")))


def chain(config: Config) -> list[Config]:
    """The layers of a functional model that are one chain, in order."""
    after: dict[str, Config] = {}
    start = [one for one in config["layers"] if not one["inbound_nodes"]]
    for one in config["layers"]:
        if not one["inbound_nodes"]:
            continue
        calls = list(histories(one["inbound_nodes"]))
        title = f"layer {name(one)!r} ({one['class_name']})"
        if len(one["inbound_nodes"]) != 1 or len(calls) != 1 or calls[0][1:3] != [0, 0]:
            raise ValueError(f"{title}: expected a chain, in which it is called once on one output, got {calls!r:.200}")
        if calls[0][0] in after:
            other = name(after[calls[0][0]])
            raise ValueError(f"{title}: expected a chain; {other!r} reads the same layer's output, {calls[0][0]!r}")
        after[calls[0][0]] = one
    if len(start) != 1:
        raise ValueError(f"model: expected one input, got {[name(one) for one in start]}")
    ordered = start
    while name(ordered[-1]) in after:
        ordered.append(after.pop(name(ordered[-1])))
    outputs = config["output_layers"]
    outputs = outputs if outputs and isinstance(outputs[0], list) else [outputs]
    if after or len(outputs) != 1 or outputs[0][0] != name(ordered[-1]) or outputs[0][2] != 0:
        raise ValueError(f"model: expected one output, that of the last layer in a chain, got {outputs!r:.200}")
    return ordered


def histories(node: Any) -> Iterator[list[Any]]:
    """Every [layer, call, output] that something in a node refers to, in Keras 3's writing or in Keras 2's."""
    if isinstance(node, dict) and "keras_history" in node:
        yield node["keras_history"]
    elif isinstance(node, dict):
        for one in node.values():
            yield from histories(one)
    elif isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and all(type(i) is int for i in node[1:3]):
            yield node[:3]
            node = node[3:]
        for one in node:
            yield from histories(one)


def numbered(file: Any) -> Callable[[str, str], list[Array]]:
    """Of model.weights.h5: a group has its layer's name as an attribute, or is called by its class and a number."""
    root = next((r for r in ("layers", "_layer_checkpoint_dependencies") if r in file), None)
    groups = {} if root is None else {key: item(file, f"{root}/{key}") for key in file[root]}
    named = {group["vars"].attrs.get("name"): group for group in groups.values() if "vars" in group}
    seen: Counter[str] = Counter()

    def weights(name: str, kind: str) -> list[Array]:
        snake = re.sub(r"(?<=[a-z0-9])([A-Z])|(?<!^)([A-Z])(?=[a-z])", lambda m: f"_{m[0]}", kind).lower()
        counted = f"{snake}_{seen[snake]}" if seen[snake] else snake
        seen[snake] += 1
        group = named.get(name, groups.get(counted))
        if group is None:
            return []
        places = [f"{place}/vars".lstrip("/") for place in PLACES.get(kind, ("",))]
        found = [item(group, place) for place in places if place in group]
        return [values(item(one, str(i))) for one in found for i in range(len(one))]

    return weights


def by_name(file: Any) -> Callable[[str, str], list[Array]]:
    """Of an `.h5` file."""
    root = item(file, "model_weights")

    def weights(name: str, kind: str) -> list[Array]:
        if name not in root:
            return []
        group = item(root, name)
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs["weight_names"]]
        return [values(item(group, one)) for one in names]

    return weights


def expect_groups(file: Any) -> None:
    """A ValueError, unless there are groups wherever groups are looked for: arrays have a place of their own."""
    h5py = needed("h5py", "keras")

    def look(path: str, found: Any) -> None:
        top, *below = path.split("/")
        of_layers = top in ("layers", "_layer_checkpoint_dependencies") and below[-2:-1] != ["vars"]
        if isinstance(found, h5py.Dataset) and (of_layers or (top == "model_weights" and len(below) < 2)):
            raise ValueError(f"path: {path} is an array of shape {found.shape}, expected a group")

    file.visititems(look)


def item(group: Any, path: str) -> Any:
    """A member of the group, of this very file."""
    h5py = needed("h5py", "keras")
    for part in path.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"path: {path} in {group.name} is a link, which is not followed")
        group = group[part]
    return group


def values(dataset: Any) -> Array:
    """What is stored, if it is in the file; Keras neither compresses nor scatters."""
    if dataset.id.get_storage_size() != dataset.nbytes or dataset.external or dataset.is_virtual:
        raise ValueError(f"path: {dataset.name} of shape {dataset.shape} is not stored in the file")
    return np.asarray(dataset[()])
