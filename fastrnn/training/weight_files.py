"""Weights in safetensors files, and what stands beside them.

The weights stand under the names of `Sequential.parameters`, which begin with a digit. What is not an array is JSON in
the file's metadata, under "fastrnn": the format's version, the layers, and whatever else the file is for. A checksum of
all that stands beside it, under "sha256"; a file without one is read all the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.cells import Array
from fastrnn.extras import needed
from fastrnn.training.chain import Chain

#: of the metadata
KEY, SUM, VERSION = "fastrnn", "sha256", 1

Tensors = dict[str, Array]


def kinds(model: Chain) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def save_weights(path: str | os.PathLike[str], model: Chain) -> None:
    write(path, model.parameters(), {"layers": kinds(model)})


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
    """What the user calls a file."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{argument}: expected the path of a file, a str or os.PathLike, got {path!r:.80}")
    if not os.fspath(path):
        raise ValueError(f"{argument}: expected the path of a file, got ''")
    return Path(path)


def expect_file(argument: str, path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{argument}: expected a file, got the directory {path}")


def expect_place(path: Path) -> None:
    """Where a file can be, or is already."""
    expect_file("path", path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no directory {path.parent}; make it first")


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a file that takes its place at the end: whoever stops in the middle still has that of before."""
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
    """All or nothing."""
    safetensors, numpy = needed("safetensors", "train"), needed("safetensors.numpy", "train")
    plain = json.dumps({"version": VERSION} | dict(metadata), default=np.ndarray.tolist)
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with replaced(path) as partial:
        try:
            numpy.save_file(tensors, partial, {KEY: plain, SUM: checksum(tensors, plain)})
        except safetensors.SafetensorError as error:  # of the system's, it has the words alone
            raise OSError(f"path: {os.fspath(path)} cannot be written ({error})") from error


def checksum(tensors: Tensors, plain: str) -> str:
    found = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        found.update(tensors[name].tobytes())
    return found.hexdigest()


def opened(argument: str, path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of any safetensors file."""
    safetensors = needed("safetensors", "train")
    expect_file(argument, file_path(argument, path))
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  # it cannot be iterated
    except (safetensors.SafetensorError, LookupError, TypeError, AttributeError) as error:  # the latter: odd dtypes
        raise ValueError(f"{argument}: {os.fspath(path)} is no safetensors file for NumPy ({error})") from error


def read(argument: str, path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, Any]]:
    tensors, metadata = opened(argument, path)
    if KEY not in metadata:
        raise ValueError(f"{argument}: {os.fspath(path)} was not written by fastrnn")
    if SUM in metadata and metadata[SUM] != checksum(tensors, metadata[KEY]):
        raise ValueError(f"{argument}: {os.fspath(path)} is damaged: it does not match its checksum")
    try:
        plain = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{argument}: {os.fspath(path)} has metadata that are no JSON ({error})") from error
    if not isinstance(plain, dict) or type(plain.get("version")) is not int:
        raise ValueError(f"{argument}: {os.fspath(path)} has metadata without a version")
    if plain["version"] > VERSION:
        raise ValueError(f"{argument}: {os.fspath(path)} has format version {plain['version']}, expected {VERSION}")
    return tensors, plain
