"""Read the layers of a Keras model: a class name, a configuration and weights each.

A `.keras` file is a zip of config.json and model.weights.h5; an older `.h5` stores the configuration as an attribute.
Nested models are flattened.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from fastrnn.cells import Array
from fastrnn.convert.keras_h5 import Named
from fastrnn.convert.keras_weights import (
    Config,
    Live,
    Numbered,
    Store,
    expect_groups,
    is_model,
    item,
    layers_of,
    name,
    plain,
)
from fastrnn.extras import needed
from fastrnn.frameworks import KERAS, KERAS_2

#: errors from reading files that are not models
BROKEN: tuple[type[Exception], ...] = (
    *(KeyError, IndexError, TypeError, AttributeError, OSError, RuntimeError, EOFError, MemoryError),
    *(json.JSONDecodeError, UnicodeError),
)


BARE = (
    "expected a .keras file, or the .h5 file of a whole model. From a file of weights, load_keras_weights(path) of "
    'a Sequential loads all, and from_keras(path, cell="lstm", layer="its name") one layer; in Keras, '
    'model.load_weights(path) and model.save("model.keras") make a whole one'
)


class Piece(NamedTuple):
    """A Keras layer."""

    kind: str  #: its class
    config: Config
    weights: list[Array]

    @property
    def title(self) -> str:
        return f"layer {self.config.get('name')!r} ({self.kind})"


def read(path: str | os.PathLike[str], layer: str | None) -> list[Piece]:
    """Read all layers of a model's file, or the one named `layer`."""
    with opened(path, "model") as (file, archive):
        expect_groups(file)
        if archive is not None:
            made = json.loads(member(archive, "metadata.json")) if "metadata.json" in archive.namelist() else {}
            model = as_meant(json.loads(member(archive, "config.json")), made.get("keras_version", "3"))
            return pieces(model, Numbered(file), layer)
        if "model_config" not in file.attrs:
            raise ValueError(f"path: {os.fspath(path)} does not hold a model; {BARE}")
        model = as_meant(json.loads(file.attrs["model_config"]), file.attrs.get("keras_version", "1"))
        return pieces(model, Named(item(file, "model_weights")), layer)


@contextmanager
def opened(path: str | os.PathLike[str], content: str) -> Iterator[tuple[Any, Any]]:
    """Open an HDF5 file, or the one in a `.keras` file; yield it and the archive or None. Errors name the path."""
    import zipfile  # imported here to keep `import fastrnn` fast
    import zlib

    h5py = needed("h5py", "keras-files")
    broken: tuple[type[Exception], ...] = (*BROKEN, zipfile.BadZipFile, zlib.error)
    try:
        with ExitStack() as files:
            archive = files.enter_context(zipfile.ZipFile(path)) if zipfile.is_zipfile(path) else None
            source = path if archive is None else io.BytesIO(member(archive, "model.weights.h5"))
            yield files.enter_context(h5py.File(source, "r")), archive
    except FileNotFoundError:
        raise
    except broken as error:
        whose = f"path: {os.fspath(path)} is not a Keras {content} file"
        raise ValueError(f"{whose} ({type(error).__name__}: {error})") from error


def member(archive: Any, name: str) -> bytes:
    """Read a file of the archive, unless its compression ratio is suspicious; Keras does not compress."""
    info = archive.getinfo(name)
    if info.file_size > 100 * info.compress_size:
        raise ValueError(f"path: {name} expands from {info.compress_size} to {info.file_size} bytes")
    return bytes(archive.read(name))


def of_model(model: Any, layer: str | None) -> list[Piece]:
    """Return all layers of an in-memory model, or the one named `layer`."""
    kind = "Sequential" if any(base.__name__ == "Sequential" for base in type(model).__mro__) else "Functional"
    try:
        config = as_meant(plain(model), version(model))
    except NotImplementedError:
        config = {}
    if not isinstance(config, dict) or "layers" not in config:
        raise TypeError(f"model_or_path: expected a Sequential or functional model, got {type(model).__name__}")
    return pieces({"class_name": kind, "config": config}, Live(model), layer)


def of_layer(layer: Any) -> Piece:
    return Piece(type(layer).__name__, as_meant(plain(layer), version(layer)), Live(layer).arrays({}))


def version(layer: Any) -> Any:
    """Return the version of the Keras package that this layer or model belongs to."""
    packages = [base.__module__.partition(".")[0] for base in type(layer).__mro__]
    own = next((name for name in packages if name in ("keras", "tf_keras", "tensorflow")), "keras")
    return getattr(sys.modules.get(own), "__version__", "3")


def as_meant(config: Any, version: Any) -> Any:
    """Translate a configuration to names that are the same for every Keras version."""
    version = version.decode() if isinstance(version, bytes) else str(version)
    functions = KERAS_2 if version.partition(".")[0] in ("1", "2") else {}
    #: option -> name -> our name; an .h5 has layers of `fastrnn.keras` under their registered names
    words = dict.fromkeys(("activation", "recurrent_activation"), functions)
    words["class_name"] = {f"fastrnn>{kind}": kind for kind in KERAS.families}
    return renamed(config, words)


def renamed(config: Any, words: dict[str, dict[str, str]]) -> Any:
    if isinstance(config, list):
        return [renamed(one, words) for one in config]
    if not isinstance(config, dict):
        return config
    return {
        key: words.get(key, {}).get(value, value) if isinstance(value, str) else renamed(value, words)
        for key, value in config.items()
    }


def inner(piece: Piece, key: str, weights: list[Array]) -> Piece:
    """Return the layer or cell that a layer wraps."""
    return wrapped(piece, key, piece.config.get(key), weights)


def wrapped(piece: Piece, key: str, own: Any, weights: list[Array]) -> Piece:
    if not isinstance(own, dict) or not isinstance(own.get("config"), dict):
        raise ValueError(f"{piece.title}: {key}: expected a layer, got {own!r:.80}")
    return Piece(str(own.get("class_name")), own["config"], weights)


def pieces(model: Config, store: Store, wanted: str | None) -> list[Piece]:
    """Return the layers in the order of application, or only the wanted one, anywhere in the model."""
    found = list(in_order(model, store) if wanted is None else everywhere(model, store))
    if wanted is not None:
        found = [(one, own) for one, own in found if name(one) == wanted]
        if len(found) != 1:
            raise ValueError(f"layer: expected the name of one layer, got {wanted!r}, which matches {len(found)}")
    return [Piece(one["class_name"], one["config"], own.arrays(one)) for one, own in found]


def in_order(model: Config, store: Store) -> Iterator[tuple[Config, Store]]:
    """Yield the layers in order, each with the store of its weights."""
    layers = layers_of(model)
    parts = {id(one): part for one, part in zip(layers, store.parts(layers), strict=True)}
    for one in layers if model["class_name"] == "Sequential" else chain(model["config"]):
        if is_model(one):
            yield from in_order(one, parts[id(one)])
        else:
            yield one, parts[id(one)]


def everywhere(model: Config, store: Store) -> Iterator[tuple[Config, Store]]:
    """Yield all layers, however connected, each with the store of its weights."""
    layers = layers_of(model)
    for one, part in zip(layers, store.parts(layers), strict=True):
        if is_model(one):
            yield from everywhere(one, part)
        else:
            yield one, part


def chain(config: Config) -> list[Config]:
    """Return the layers of a functional model in order; raise ValueError if they are not a single chain."""
    after: dict[str, Config] = {}
    implied = masks(config["layers"])
    layers = [one for one in config["layers"] if name(one) not in implied]
    start = [one for one in layers if not one["inbound_nodes"]]
    for one in layers:
        if not one["inbound_nodes"]:
            continue
        calls = [call for call in histories(one["inbound_nodes"]) if call[0] not in implied]
        title = f"layer {name(one)!r} ({one['class_name']})"
        if len(one["inbound_nodes"]) != 1 or len(calls) != 1 or calls[0][2] != 0:
            raise ValueError(f"{title}: expected a chain, with one call on one output, got {calls!r:.200}")
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


def masks(layers: list[Config]) -> set[str]:
    """Return the operations that Masking and ``mask_zero`` imply, which Keras 3 stores along with their readers."""
    makers: list[Any] = []
    for one in layers:
        if one["class_name"] in ("Masking", "Embedding"):
            value = one["config"].get("mask_value") if one["class_name"] == "Masking" else 0
            makers += [([call[0]], [value]) for call in histories(one["inbound_nodes"])]
    found: set[str] = set()
    for one in layers:
        calls = [call[0] for call in histories(one["inbound_nodes"])]
        compares = one["class_name"] == "NotEqual" and (calls, one["inbound_nodes"][0]["args"][1:]) in makers
        if compares or (one["class_name"] == "Any" and found.issuperset(calls)):
            found.add(name(one))
    return found


def histories(node: Any) -> Iterator[list[Any]]:
    """Yield every [layer, call, output] that a node refers to, in the format of Keras 3 or 2."""
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
