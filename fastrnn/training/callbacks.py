"""Callbacks: early stopping, learning rate reduction, checkpoints, a progress bar.

A checkpoint is a weight file (`weight_files`), and can be loaded as one, with additions: the optimizer's state under
"optimizer.", arrays of callbacks under "callbacks.<name>.", and epoch, rng, history, optimizer and callbacks in the
metadata.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.checks import among, boolean, count, finite, fraction, positive
from fastrnn.extras import needed
from fastrnn.training import weight_files
from fastrnn.training.fitting import Callback, History, Training
from fastrnn.types import Array


class Best:
    """Track the best value of one loss or metric."""

    def __init__(self, monitor: str, mode: str | None, min_delta: float = 0.0) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor: expected the name of a loss or metric, got {monitor!r}")
        if mode is not None and not among(mode, ("min", "max")):
            raise ValueError(f'mode: expected "min", "max" or None, got {mode!r}')
        self.monitor, self.mode, self.min_delta = monitor, mode, min_delta
        self.sign = 1.0 if mode == "max" or (mode is None and monitor.endswith("accuracy")) else -1.0
        self.forget()

    def forget(self) -> None:
        self.value = -self.sign * math.inf

    def begin(self, training: Training) -> None:
        """Check the name, and forget the value of an earlier training unless this one resumes."""
        if self.monitor not in training.names:
            raise ValueError(f"monitor: expected one of {', '.join(training.names)}, got {self.monitor!r}")
        if training.epoch == 0:
            self.forget()

    def improved(self, training: Training) -> bool:
        """Return whether this epoch is better by more than `min_delta`; NaN never is."""
        value = training.logs[self.monitor]
        if not self.sign * (value - self.value) > self.min_delta:
            return False
        self.value = value
        return True


class EarlyStopping(Callback):
    """Stop when a loss or metric has stopped improving.

    Parameters
    ----------
    monitor : str
        Name in the history.
    patience : int
        Stop after this many consecutive epochs without improvement.
    min_delta : float
        Only changes larger than this count as improvement.
    restore_best : bool
        Restore the weights of the best epoch when training ends, whether stopped early or not.
    mode : {"min", "max", None}
        Whether lower or higher is better; None means "max" for names that end in "accuracy", else "min".

    Attributes
    ----------
    best : float
        Best value so far.
    best_epoch : int
        Epoch of the best value, counted from 1; 0 if there is none yet.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, and in `fit` if the history has no such monitor.

    Examples
    --------
    >>> from fastrnn.training import EarlyStopping
    >>> stopping = EarlyStopping("val_accuracy", patience=3)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best: bool = True,
        *,
        mode: str | None = None,
    ) -> None:
        boolean("restore_best", restore_best)
        self.patience, self.restore_best = positive("patience", patience), bool(restore_best)
        self._best = Best(monitor, mode, finite("min_delta", min_delta, 0))
        self.best_epoch = self._wait = 0
        self._weights: dict[str, Array] = {}

    @property
    def best(self) -> float:
        return self._best.value

    def on_train_begin(self, training: Training) -> None:
        self._best.begin(training)
        if training.epoch == 0:
            self.best_epoch, self._wait, self._weights = 0, 0, {}
        elif self._wait >= self.patience:
            training.stop()

    def on_epoch_end(self, training: Training) -> None:
        if self._best.improved(training):
            self.best_epoch, self._wait = training.epoch, 0
            if self.restore_best:
                self._weights = training.model.state_dict()
            return
        self._wait += 1
        if self._wait >= self.patience:
            training.stop()

    def on_train_end(self, training: Training) -> None:
        if self._weights:
            training.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "wait": self._wait} | self._weights

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = dict(state)
        self._best.value = float(weights.pop("best"))
        self.best_epoch, self._wait = index(weights.pop("best_epoch")), index(weights.pop("wait"))
        self._weights = weights

    def __repr__(self) -> str:
        options = f"{self._best.monitor!r}, patience={self.patience}, min_delta={self._best.min_delta}"
        return f"EarlyStopping({options}, restore_best={self.restore_best}, mode={self._best.mode!r})"


class ReduceLROnPlateau(Callback):
    """Lower the learning rate when a loss or metric has stopped improving, as Keras' callback of this name.

    Parameters
    ----------
    monitor : str
        Name in the history.
    factor : float
        The rate is multiplied by this, in [0, 1).
    patience : int
        Lower the rate after this many consecutive epochs without improvement, then start counting again.
    min_delta : float
        Only changes larger than this count as improvement.
    cooldown : int
        Do not count this many epochs after the rate was lowered.
    min_lr : float
        Lower bound of the rate.
    mode : {"min", "max", None}
        As for `EarlyStopping`.

    Attributes
    ----------
    best : float
        Best value so far.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, and in `fit` if the history has no such monitor, or the optimizer's learning
        rate is a schedule.

    Examples
    --------
    >>> from fastrnn.training import ReduceLROnPlateau
    >>> lower = ReduceLROnPlateau("val_loss", factor=0.5, patience=5)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        *,
        mode: str | None = None,
    ) -> None:
        self.factor, self.patience = fraction("factor", factor), positive("patience", patience)
        self.cooldown, self.min_lr = count("cooldown", cooldown), finite("min_lr", min_lr, 0)
        self._best = Best(monitor, mode, finite("min_delta", min_delta, 0))
        self._wait = self._cooling = 0
        self._rate: float | None = None  # from a checkpoint, set when training resumes

    @property
    def best(self) -> float:
        return self._best.value

    def on_train_begin(self, training: Training) -> None:
        self._best.begin(training)
        if callable(training.optimizer.learning_rate):
            raise ValueError("learning_rate: expected a number with ReduceLROnPlateau, got a schedule")
        if training.epoch == 0:
            self._wait = self._cooling = 0
        elif self._rate is not None:
            training.optimizer.learning_rate = self._rate

    def on_epoch_end(self, training: Training) -> None:
        if self._cooling:
            self._cooling, self._wait = self._cooling - 1, 0
        if self._best.improved(training):
            self._wait = 0
        elif not self._cooling:
            self._wait += 1
            if self._wait >= self.patience and training.optimizer.rate > self.min_lr:
                training.optimizer.learning_rate = max(training.optimizer.rate * self.factor, self.min_lr)
                self._wait, self._cooling = 0, self.cooldown
        self._rate = training.optimizer.rate

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "wait": self._wait, "cooling": self._cooling, "learning_rate": self._rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best.value, self._rate = float(state["best"]), float(state["learning_rate"])
        self._wait, self._cooling = index(state["wait"]), index(state["cooling"])

    def __repr__(self) -> str:
        options = f"factor={self.factor}, patience={self.patience}, min_delta={self._best.min_delta}"
        rest = f"cooldown={self.cooldown}, min_lr={self.min_lr}, mode={self._best.mode!r}"
        return f"ReduceLROnPlateau({self._best.monitor!r}, {options}, {rest})"


class Checkpoint(Callback):
    """Write a checkpoint after epochs, from which ``fit(..., resume=path)`` resumes with bit-identical results.

    It runs after all other callbacks, whatever their order, so that it saves their current states.

    Parameters
    ----------
    path : str or path
        A safetensors file. ``{epoch}`` is replaced by the number of completed epochs; without it, each checkpoint
        overwrites the last.
    every : int
        Write every this many epochs.
    best_only : bool
        Write only when `monitor` is better than at every earlier write.
    monitor : str, optional
        With `best_only`, the name in the history; "val_loss" by default.
    mode : {"min", "max", None}
        As for `EarlyStopping`.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, and in `fit` if the history has no such monitor.
    OSError
        In `fit`, before the first epoch, if the directory does not exist, or the path is a directory.
    ImportError
        In `fit`, if safetensors is not installed.

    Examples
    --------
    >>> from fastrnn.training import Checkpoint
    >>> checkpoint = Checkpoint("model-{epoch}.safetensors", every=10)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int = 1,
        best_only: bool = False,
        *,
        monitor: str | None = None,
        mode: str | None = None,
    ) -> None:
        boolean("best_only", best_only)
        if not best_only and (monitor is not None or mode is not None):
            raise ValueError("monitor, mode: expected None without best_only=True")
        self.path, self.every = str(weight_files.file_path("path", path)), positive("every", every)
        self._best = Best("val_loss" if monitor is None else monitor, mode) if best_only else None

    def on_train_begin(self, training: Training) -> None:
        needed("safetensors.numpy", "train")
        if "{epoch}" not in str(Path(self.path).parent):
            weight_files.expect_place(self._file(training.epoch + 1))
        if self._best:
            self._best.begin(training)

    def on_epoch_end(self, training: Training) -> None:
        if training.epoch % self.every == 0 and (self._best is None or self._best.improved(training)):
            save_training(self._file(training.epoch), training)

    def _file(self, epoch: int) -> Path:
        return Path(self.path.replace("{epoch}", str(epoch)))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best.value} if self._best else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._best:
            self._best.value = float(state["best"])

    def __repr__(self) -> str:
        best = self._best and f", best_only=True, monitor={self._best.monitor!r}, mode={self._best.mode!r}"
        return f"Checkpoint({self.path!r}, every={self.every}{best or ''})"


class Progress(Callback):
    """Show a tqdm progress bar; ``fit(..., progress=True)`` adds it."""

    def on_train_begin(self, training: Training) -> None:
        batches = training.batches_per_epoch
        total = initial = None
        if batches is not None:
            total, initial = training.epochs * batches, training.epoch * batches
        self._bar = needed("tqdm.auto", "train").tqdm(total=total, initial=initial or 0, unit="batch")

    def on_batch_end(self, training: Training) -> None:
        self._bar.update()

    def on_epoch_end(self, training: Training) -> None:
        shown = {name: f"{value:.4g}" for name, value in training.logs.items()}
        self._bar.set_postfix({"epoch": f"{training.epoch}/{training.epochs}"} | shown)

    def on_train_end(self, training: Training) -> None:
        self._bar.close()


def in_order(callbacks: Any, progress: Any) -> list[Callback]:
    """Return the callbacks of `fit` as a checked list, checkpoints last."""
    boolean("progress", progress)
    found = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
    for callback in found:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks: expected a list of Callback, got {callback!r}")
    found += [Progress()] if progress else []
    return sorted(found, key=lambda callback: isinstance(callback, Checkpoint))


def save_training(path: str | os.PathLike[str], training: Training) -> None:
    """Write everything that later epochs depend on, except the data and the arguments of `fit`."""
    tensors = dict(training.model.parameters())
    tensors |= weight_files.prefixed("optimizer.", training.optimizer.state_dict())
    plain: dict[str, dict[str, Any]] = {}
    for name, callback in training.callbacks.items():
        state = callback.state_dict()
        arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
        tensors |= weight_files.prefixed(f"callbacks.{name}.", arrays)
        if state:
            plain[name] = {key: value for key, value in state.items() if key not in arrays}
    metadata = {
        "layers": weight_files.kinds(training.model),
        "epoch": training.epoch,
        "rng": training.rng.bit_generator.state,
        "history": training.history.history,
        "optimizer": type(training.optimizer).__name__,
        "callbacks": plain,
    }
    weight_files.write(path, tensors, metadata)


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
    tensors, metadata = weight_files.read("resume", path)
    if "epoch" not in metadata:
        raise ValueError(f"resume: expected a file that Checkpoint wrote, got {os.fspath(path)}, with weights only")
    weight_files.expect("resume", path, "the optimizer", metadata["optimizer"], type(training.optimizer).__name__)
    stateful = [name for name, callback in training.callbacks.items() if callback.state_dict()]
    weight_files.expect("resume", path, "the callbacks with a state", sorted(metadata["callbacks"]), sorted(stateful))
    generator = training.rng.bit_generator
    weight_files.expect("resume", path, "the generator", metadata["rng"]["bit_generator"], type(generator).__name__)

    weight_files.take_weights("resume", path, training.model, tensors, metadata)
    training.optimizer.load_state_dict(weight_files.under("optimizer.", tensors))
    for name, plain in metadata["callbacks"].items():
        training.callbacks[name].load_state_dict(plain | weight_files.under(f"callbacks.{name}.", tensors))
    history = {name: [float(value) for value in values] for name, values in metadata["history"].items()}
    epochs = {len(values) for values in history.values()}
    weight_files.expect("resume", path, "epochs in its history", epochs, {metadata["epoch"]})
    generator.state = metadata["rng"]
    training.epoch, training.history = metadata["epoch"], History(history)
