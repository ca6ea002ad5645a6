"""Weights and checkpoints as safetensors files.

The weights stand under the names of `Sequential.parameters`, which begin with a digit; a checkpoint has the
optimizer's state beside them under "optimizer.", and arrays of callbacks under "callbacks.<name>.". What is not an
array is JSON in the file's metadata, under "fastrnn": the format's version and layers, and in a checkpoint epoch, rng,
history, optimizer and callbacks. So a checkpoint is a file of weights too. A checksum of all that stands beside it,
under "sha256"; a file without one is read all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn.cells import Array
from fastrnn.extras import needed
from fastrnn.training.history import History

if TYPE_CHECKING:
    from fastrnn.training.fitting import Training
    from fastrnn.training.sequential import Sequential

#: of the metadata
KEY, SUM, VERSION = "fastrnn", "sha256", 1

Tensors = dict[str, Array]


def kinds(model: Sequential) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def save_weights(path: str | os.PathLike[str], model: Sequential) -> None:
    write(path, model.parameters(), {"layers": kinds(model)})


def load_weights(path: str | os.PathLike[str], model: Sequential) -> None:
    tensors, metadata = read("path", path)
    take_weights("path", path, model, tensors, metadata)


def save_training(path: str | os.PathLike[str], training: Training) -> None:
    """Everything that the epochs to come depend on, but for the data and the arguments of `fit`."""
    tensors = dict(training.model.parameters())
    tensors |= prefixed("optimizer.", training.optimizer.state_dict())
    plain: dict[str, dict[str, Any]] = {}
    for name, callback in training.callbacks.items():
        state = callback.state_dict()
        arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
        tensors |= prefixed(f"callbacks.{name}.", arrays)
        if state:
            plain[name] = {key: value for key, value in state.items() if key not in arrays}
    metadata = {
        "layers": kinds(training.model),
        "epoch": training.epoch,
        "rng": training.rng.bit_generator.state,
        "history": training.history.history,
        "optimizer": type(training.optimizer).__name__,
        "callbacks": plain,
    }
    write(path, tensors, metadata)


def load_training(path: str | os.PathLike[str], training: Training) -> None:
    """Go on from there, or leave the model and the optimizer as they are."""
    model, optimizer = training.model, training.optimizer
    weights, steps = model.state_dict(), optimizer.state_dict()
    try:
        take_training(path, training)
    except OSError:
        raise
    except Exception as error:
        model.load_state_dict(weights)
        optimizer.load_state_dict(steps)
        if str(error).startswith("resume: "):
            raise
        raise ValueError(f"resume: {os.fspath(path)} does not fit, or is damaged: {error!r}") from error


def take_training(path: str | os.PathLike[str], training: Training) -> None:
    tensors, metadata = read("resume", path)
    if "epoch" not in metadata:
        raise ValueError(f"resume: expected a file that Checkpoint wrote, got weights alone in {os.fspath(path)}")
    expect(path, "the optimizer", metadata["optimizer"], type(training.optimizer).__name__)
    stateful = [name for name, callback in training.callbacks.items() if callback.state_dict()]
    expect(path, "the callbacks with a state", sorted(metadata["callbacks"]), sorted(stateful))
    generator = training.rng.bit_generator
    expect(path, "the generator", metadata["rng"]["bit_generator"], type(generator).__name__)

    take_weights("resume", path, training.model, tensors, metadata)
    training.optimizer.load_state_dict(under("optimizer.", tensors))
    for name, plain in metadata["callbacks"].items():
        training.callbacks[name].load_state_dict(plain | under(f"callbacks.{name}.", tensors))
    history = {name: [float(value) for value in values] for name, values in metadata["history"].items()}
    expect(path, "epochs in its history", {len(values) for values in history.values()}, {metadata["epoch"]})
    generator.state = metadata["rng"]
    training.epoch, training.history = metadata["epoch"], History(history)


def take_weights(
    argument: str, path: str | os.PathLike[str], model: Sequential, tensors: Tensors, metadata: dict[str, Any]
) -> None:
    expect(path, "layers", metadata.get("layers"), kinds(model), argument)
    model.load_state_dict({name: value for name, value in tensors.items() if name[:1].isdigit()})


def expect(path: str | os.PathLike[str], what: str, found: Any, wanted: Any, argument: str = "resume") -> None:
    if found != wanted:
        raise ValueError(f"{argument}: {os.fspath(path)} has {what} {found}, expected {wanted}")


def prefixed(prefix: str, tensors: Mapping[str, Array]) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """All or nothing: whoever stops in the middle still has the file of before."""
    numpy = needed("safetensors.numpy", "train")
    plain = json.dumps({"version": VERSION} | dict(metadata), default=np.ndarray.tolist)
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    partial = Path(path).with_name(Path(path).name + ".partial")
    numpy.save_file(tensors, partial, {KEY: plain, SUM: checksum(tensors, plain)})
    os.replace(partial, path)


def checksum(tensors: Tensors, plain: str) -> str:
    found = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        found.update(tensors[name].tobytes())
    return found.hexdigest()


def read(argument: str, path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, Any]]:
    safetensors = needed("safetensors", "train")
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it cannot be iterated
    except (safetensors.SafetensorError, LookupError, TypeError, AttributeError) as error:  # the latter: odd dtypes
        raise ValueError(f"{argument}: {os.fspath(path)} is no safetensors file for NumPy ({error})") from error
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
