"""Open Keras' files, and read groups and arrays of HDF5 in them.

A `.keras` file is a zip of config.json and model.weights.h5. External links are not followed, and only data stored in
the file is read.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from fastrnn.extras import needed
from fastrnn.types import Array

#: errors from reading files that are not models
BROKEN: tuple[type[Exception], ...] = (
    *(KeyError, IndexError, TypeError, AttributeError, OSError, RuntimeError, EOFError, MemoryError),
    *(json.JSONDecodeError, UnicodeError),
)


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
    except FileNotFoundError as error:
        raise FileNotFoundError(f"path: {os.fspath(path)}: file not found") from error
    except broken as error:
        whose = f"path: {os.fspath(path)} is not a Keras {content} file"
        raise ValueError(f"{whose} ({type(error).__name__}: {error})") from error


def member(archive: Any, name: str) -> bytes:
    """Read a file of the archive, unless its compression ratio is suspicious; Keras does not compress."""
    info = archive.getinfo(name)
    if info.file_size > 100 * info.compress_size:
        raise ValueError(f"path: {name} expands from {info.compress_size} to {info.file_size} bytes")
    return bytes(archive.read(name))


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
