"""Checkpoints: files from which an interrupted training resumes.

A checkpoint is a weight file (`weight_files`), and can be loaded as one, with additions: the optimizer's state under
"optimizer.", arrays of callbacks under "callbacks.<name>.", and epoch, rng, history, optimizer and callbacks in the
metadata.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastrnn.training.fitting import Training
from fastrnn.training.history import History
from fastrnn.training.weight_files import expect, kinds, prefixed, read, take_weights, under, write


def save_training(path: str | os.PathLike[str], training: Training) -> None:
    """Write everything that later epochs depend on, except the data and the arguments of `fit`."""
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
    """Restore a training from a checkpoint; on an error the model and the optimizer are unchanged."""
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
    finally:
        model.take_optimizer()


def take_training(path: str | os.PathLike[str], training: Training) -> None:
    tensors, metadata = read("resume", path)
    if "epoch" not in metadata:
        raise ValueError(f"resume: expected a file that Checkpoint wrote, got {os.fspath(path)}, with weights only")
    expect("resume", path, "the optimizer", metadata["optimizer"], type(training.optimizer).__name__)
    stateful = [name for name, callback in training.callbacks.items() if callback.state_dict()]
    expect("resume", path, "the callbacks with a state", sorted(metadata["callbacks"]), sorted(stateful))
    generator = training.rng.bit_generator
    expect("resume", path, "the generator", metadata["rng"]["bit_generator"], type(generator).__name__)

    take_weights("resume", path, training.model, tensors, metadata)
    training.optimizer.load_state_dict(under("optimizer.", tensors))
    for name, plain in metadata["callbacks"].items():
        training.callbacks[name].load_state_dict(plain | under(f"callbacks.{name}.", tensors))
    history = {name: [float(value) for value in values] for name, values in metadata["history"].items()}
    expect("resume", path, "epochs in its history", {len(values) for values in history.values()}, {metadata["epoch"]})
    generator.state = metadata["rng"]
    training.epoch, training.history = metadata["epoch"], History(history)
