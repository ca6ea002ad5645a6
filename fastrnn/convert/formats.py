"""Readers and writers of model files by file extension, for the command line, whose options messages name.

A new file format is a new row in `READERS` or `WRITERS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastrnn import catalogue
from fastrnn.cells import Cell, members
from fastrnn.convert.audio import from_rtneural
from fastrnn.convert.c import to_c
from fastrnn.convert.files import layer_in, save
from fastrnn.convert.keras import from_keras
from fastrnn.convert.onnx import from_onnx
from fastrnn.convert.onnx_writer import to_onnx
from fastrnn.convert.quantization import quantize
from fastrnn.convert.torch import from_torch
from fastrnn.extras import needed
from fastrnn.frameworks import PYTORCH
from fastrnn.layers import Layer
from fastrnn.training import weight_files

#: name of a recurrent module's first weights in a state_dict; the group is the module's prefix
FIRST = re.compile(r"(.*?)weight_ih(?:_l0)?")

#: keys under which training checkpoints store the state_dict
NESTED = ("state_dict", "model_state_dict")


class Format(NamedTuple):
    """A file format."""

    run: Callable[..., Any]  #: called with the path, and for a writer the model
    takes: tuple[str, ...]  #: accepted options


def read(path: str, *, weight_dtype: str | None = None, **options: Any) -> Layer:
    """Read the layer or the `Sequential` in a file, quantised if `weight_dtype` is given."""
    reader = format_of("MODEL", path, READERS)
    expect_taken(options, path, reader.takes)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: {'a directory, not a file' if os.path.isdir(path) else 'file not found'}")
    made: Layer = reader.run(path, **options)
    return made if weight_dtype is None else quantize(made, weight_dtype)


def convert(source: str, target: str, *, weight_dtype: str | None = None, **options: Any) -> Layer:
    """Read one file, write the other, and return the model; each side gets the options that it accepts."""
    reader, writer = format_of("IN", source, READERS), format_of("OUT", target, WRITERS)
    expect_taken(options, f"{source} or {target}", reader.takes + writer.takes)
    own = {name: options[name] for name in reader.takes if name in options}
    model = read(source, weight_dtype=weight_dtype, **own)
    writer.run(target, model, **{name: options[name] for name in writer.takes if name in options})
    return model


def format_of(argument: str, path: str, formats: Mapping[str, Format]) -> Format:
    found = formats.get(Path(path).suffix.lower())
    if found is None:
        raise ValueError(f"{argument}: expected a file name ending in {', '.join(formats)}, got {path!r}")
    return found


def expect_taken(options: Mapping[str, Any], path: str, takes: tuple[str, ...]) -> None:
    if others := options.keys() - set(takes):
        known = ", ".join(map(spelled, dict.fromkeys((*takes, "weight_dtype"))))
        raise ValueError(f"{spelled(min(others))}: not an option of {path}; expected {known}")


def spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_onnx(path: str, layer: str | None = None) -> Layer:
    return from_onnx(path, whole=True) if layer is None else from_onnx(path, layer)


def read_torch(path: str, **options: Any) -> Layer:
    """Read a state_dict, or a checkpoint that contains one; nothing in the file is executed."""
    torch = needed("torch", "torch")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch does not document which errors a bad file raises
        why = str(error).partition(".")[0] or type(error).__name__
        raise ValueError(f"{path}: expected a file of torch.save(module.state_dict(), path) ({why})") from error
    for key in NESTED:
        state = state.get(key, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a state_dict, got {type(state).__name__}")
    return of_state(path, state, **options)


def read_safetensors(path: str, **options: Any) -> Layer:
    """Read fastrnn's own file, or one with PyTorch's names."""
    tensors, metadata = weight_files.opened("path", path)
    if weight_files.KEY not in metadata:
        return of_state(path, tensors, **options)
    if options:
        raise ValueError(f"{spelled(min(options))}: expected no options, because {path} describes its own content")
    cells = [own for own in vars(catalogue).values() if isinstance(own, Cell)]
    return layer_in(path, tensors, metadata, cells)


def of_state(
    path: str, state: Mapping[str, Any], cell: str | None = None, prefix: str | None = None, batch_first: bool = False
) -> Layer:
    """Convert a state_dict of arrays or tensors: its only recurrent module, or the one with the prefix."""
    found = {match[1]: name for name in state if isinstance(name, str) and (match := FIRST.fullmatch(name))}
    if not found:
        raise ValueError(f"{path}: expected weight_ih_l0 of a recurrent module, got {', '.join(map(str, state))!s:.80}")
    if prefix is None and len(found) > 1:
        raise ValueError(f"--prefix: expected one of {', '.join(map(repr, found))}, because {path} has several modules")
    begin = next(iter(found)) if prefix is None else prefix
    if begin not in found:
        raise ValueError(f"--prefix: expected one of {', '.join(map(repr, found))}, got {begin!r}")
    told = cell_of(state, begin, found[begin]) if cell is None else cell
    return from_torch(dict(state), cell=told, prefix=begin, batch_first=batch_first)


def cell_of(state: Mapping[str, Any], prefix: str, first: str) -> str:
    """Return PyTorch's only cell with this number of gates."""
    projection, U = state.get(f"{prefix}weight_hr_l0"), state[first.replace("weight_ih", "weight_hh")]
    G = U.shape[0] // (U if projection is None else projection).shape[1]
    families = [family for family, gates in PYTORCH.gates.items() if len(gates) == G]
    cells = [cell for family in families for cell in members(family)]
    names = [c.name for c in cells if all(v in PYTORCH.only.get(name, (v,)) for name, v in c.options.items())]
    if len(names) != 1:
        raise ValueError(f"--cell: expected one of {', '.join(names)}, because a state_dict does not store it")
    return names[0]


STATE = ("cell", "prefix", "batch_first")
KERAS = Format(from_keras, ("layer", "inference", "lengths", "state"))

READERS = {
    ".safetensors": Format(read_safetensors, STATE),
    **dict.fromkeys((".keras", ".h5", ".hdf5"), KERAS),
    ".onnx": Format(read_onnx, ("layer",)),
    **dict.fromkeys((".pt", ".pth"), Format(read_torch, STATE)),
    ".json": Format(from_rtneural, ()),
}

WRITERS = {
    ".safetensors": Format(save, ()),
    ".onnx": Format(lambda path, model, **options: to_onnx(model, path, **options), ("opset", "lengths", "state")),
    ".c": Format(lambda path, model, **options: to_c(model, path, **options), ("name",)),
}
