"""Read and write safetensors files of weights and metadata.

Weights are stored under the names of `Sequential.parameters`, which begin with a digit. Everything else is JSON in the
file's metadata, under "fastrnn": the format version, the layers, for a whole model their descriptions, from which
`convert.files` rebuilds them, and other data of the file's kind. A checksum of both is stored under "sha256"; a file
without one is accepted. Matrices of layers with int8 weights are stored as int8, with each row's scale beside them;
the metadata lists them under "int8".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.checks import expect_shape
from fastrnn.extras import needed
from fastrnn.layers.base import Layer
from fastrnn.layers.options import LayerOptions
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.rnn import LAYERS
from fastrnn.training.chain import Chain
from fastrnn.types import Array
from fastrnn.version import version
from fastrnn.weight_dtypes import int8_codes

#: keys of the metadata, and the format version
KEY, SUM, VERSION = "fastrnn", "sha256", 1

#: end of the name of an int8 matrix's scales
SCALE = ".scale"

Tensors = dict[str, Array]


def kinds(model: Chain) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def save_weights(path: str | os.PathLike[str], model: Chain) -> None:
    write_layers(path, model, {"layers": kinds(model)})


def load_weights(path: str | os.PathLike[str], model: Chain) -> None:
    tensors, metadata = read("path", path)
    take_weights("path", path, model, tensors, metadata)


def take_weights(
    argument: str, path: str | os.PathLike[str], model: Chain, tensors: Tensors, metadata: dict[str, Any]
) -> None:
    expect(argument, path, "layers", metadata.get("layers"), kinds(model))
    model.load_state_dict({name: value for name, value in tensors.items() if name[:1].isdigit()})


def expect(argument: str, path: str | os.PathLike[str], what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ValueError(f"{argument}: {os.fspath(path)} has {what} {found}, expected {wanted}")


def prefixed(prefix: str, tensors: Mapping[str, Array]) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def file_path(argument: str, path: Any) -> Path:
    """Return the user's path, checked."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{argument}: expected the path of a file, a str or os.PathLike, got {path!r:.80}")
    if not os.fspath(path):
        raise ValueError(f"{argument}: expected the path of a file, got ''")
    return Path(path)


def expect_file(argument: str, path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{argument}: expected a file, got the directory {path}")


def expect_place(path: Path) -> None:
    """Raise OSError if no file can be written at this path."""
    expect_file("path", path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: the directory {path.parent} does not exist; create it first")


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, moved to `path` at the end, so that an interrupted write keeps the old file."""
    path = file_path("path", path)
    expect_place(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):  # Path's own raises for a name that is too long
            partial.unlink()
        raise


def write(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write the file atomically."""
    safetensors, numpy = needed("safetensors", "train"), needed("safetensors.numpy", "train")
    plain = json.dumps({"version": VERSION} | dict(metadata), default=np.ndarray.tolist)
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with replaced(path) as partial:
        try:
            numpy.save_file(tensors, partial, {KEY: plain, SUM: checksum(tensors, plain)})
        except safetensors.SafetensorError as error:  # system errors come as this, without an errno
            raise OSError(f"path: {os.fspath(path)} cannot be written ({error})") from error


def write_layers(path: str | os.PathLike[str], layer: Layer, metadata: Mapping[str, Any]) -> None:
    """Write the weights of a layer or a model, of int8 layers in a quarter of the bytes."""
    tensors, narrow = dict(layer.parameters()), list[str]()
    for name in int8_names(layer):
        codes, scales = int8_codes(tensors[name])
        if np.isfinite(scales).all():
            narrow.append(name)
            tensors |= {name: codes, name + SCALE: scales}
    write(path, tensors, dict(metadata) | ({"int8": narrow} if narrow else {}))


def int8_names(layer: Layer, prefix: str = "") -> list[str]:
    if isinstance(layer, Chain):
        return [name for i, part in enumerate(layer.layers) for name in int8_names(part, f"{prefix}{i}.")]
    if not isinstance(layer, Recurrent) or layer.weight_dtype != "int8":
        return []
    return [prefix + name for name in layer.parameters() if name.startswith("weight_")]


def widened(argument: str, path: str | os.PathLike[str], tensors: Tensors, names: Any) -> Tensors:
    """Return the tensors with float32 matrices in place of the int8 ones of these names."""
    whole = dict(tensors)
    for name in map(str, names if isinstance(names, list) else [names]):
        codes, scales = whole.get(name), whole.pop(name + SCALE, None)
        if (
            codes is None
            or scales is None
            or (codes.ndim, codes.dtype, scales.dtype) != (2, np.dtype("int8"), np.dtype("float32"))
        ):
            raise ValueError(f"{argument}: {os.fspath(path)}: {name}: expected an int8 matrix and float32 scales")
        expect_shape(f"{argument}: {os.fspath(path)}: {name}{SCALE}", scales, "(rows, 1)", (len(codes), 1))
        whole[name] = codes * scales
    return whole


def checksum(tensors: Tensors, plain: str) -> str:
    found = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        found.update(tensors[name].tobytes())
    return found.hexdigest()


def opened(argument: str, path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors and the metadata of any safetensors file."""
    safetensors = needed("safetensors", "train")
    expect_file(argument, file_path(argument, path))
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  # it cannot be iterated
    except (safetensors.SafetensorError, LookupError, TypeError, AttributeError) as error:  # the latter: odd dtypes
        raise ValueError(f"{argument}: {os.fspath(path)} is not a safetensors file for NumPy ({error})") from error


def read(argument: str, path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, Any]]:
    return checked(argument, path, *opened(argument, path))


def checked(
    argument: str, path: str | os.PathLike[str], tensors: Tensors, metadata: Mapping[str, str]
) -> tuple[Tensors, dict[str, Any]]:
    """Return the arrays of a file that fastrnn wrote, and its metadata."""
    if KEY not in metadata:
        raise ValueError(f"{argument}: {os.fspath(path)} was not written by fastrnn")
    if SUM in metadata and metadata[SUM] != checksum(tensors, metadata[KEY]):
        raise ValueError(f"{argument}: {os.fspath(path)} is damaged: it does not match its checksum")
    try:
        plain = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{argument}: {os.fspath(path)} has metadata that is not JSON ({error})") from error
    if not isinstance(plain, dict) or type(plain.get("version")) is not int:
        raise ValueError(f"{argument}: {os.fspath(path)} has metadata without a format version")
    if plain["version"] > VERSION:
        raise ValueError(f"{argument}: {os.fspath(path)} has format version {plain['version']}, expected {VERSION}")
    return widened(argument, path, tensors, plain.get("int8", [])), plain


Spec = dict[str, Any]

#: options of a recurrent layer that its file stores besides the cell
RECURRENT = tuple(field.name for field in fields(LayerOptions))

#: class of a layer -> the names of its options in a file
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys([layer.__name__ for layer in LAYERS.values()], ("cell", "gates", *RECURRENT)),
    "Recurrent": ("cell", "gates", "states", "parameters", *RECURRENT),
    "Dense": ("input_size", "output_size", "activation", "bias", "dtype"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx", "sparse", "dtype"),
    "LayerNormalization": ("input_size", "epsilon", "scale", "center", "dtype"),
    "RepeatVector": ("n", "batch_first"),
    **dict.fromkeys(("LastStep", "GlobalAveragePooling1D", "GlobalMaxPooling1D"), ("batch_first",)),
    "Dropout": ("rate",),
    "Activation": ("activation",),
    "Sequential": ("layers",),
}

#: option -> its value in a file, if that is not the layer's attribute of this name
VALUES: dict[str, Callable[[Any], Any]] = {
    "cell": lambda layer: layer.stack.cell.name,
    "gates": lambda layer: (list if type(layer) is Recurrent else "".join)(layer.stack.cell.gates),
    "states": lambda layer: list(layer.stack.cell.states),
    "parameters": lambda layer: list(layer.stack.cell.parameters),
    "bias": lambda layer: layer.bias if isinstance(layer, Recurrent) else layer.bias is not None,
    "scale": lambda layer: layer.weight is not None,
    "center": lambda layer: layer.bias is not None,
    "dtype": lambda layer: str(layer.dtype),
    "layers": lambda model: [described(layer) for layer in model.layers],
}


def save_model(path: str | os.PathLike[str], layer: Layer) -> None:
    """Save a layer or a model, weights and options; see `convert.save`."""
    spec = described(layer)
    layers = kinds(layer) if isinstance(layer, Chain) else spec["class"]
    write_layers(path, layer, {"layers": layers, "fastrnn": version(), "model": spec})


def described(layer: Layer) -> Spec:
    name, module = type(layer).__name__, type(layer).__module__
    if not isinstance(layer, Layer) or name not in OPTIONS or module.partition(".")[0] != "fastrnn":
        raise TypeError(f"layer: expected one of fastrnn's {', '.join(OPTIONS)}, got {module}.{name}")
    options = {key: VALUES[key](layer) if key in VALUES else getattr(layer, key) for key in OPTIONS[name]}
    return {"class": name} | options | ({} if layer.trainable else {"trainable": False})
