"""The training loop: epochs, batches, windows, steps; its callbacks and its history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from fastrnn.layers.base import Layer, Stateless
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training.batches import Batch, Samples, Source
from fastrnn.training.chain import Chain
from fastrnn.training.model import Model, Totals, evaluate
from fastrnn.training.padding import has_steps
from fastrnn.types import Array


class FitOptions(NamedTuple):
    """Checked options of `Sequential.fit`."""

    epochs: int
    shuffle: bool
    truncate: int | None
    stateful: bool
    accumulate: int
    threads: int | None


def check_carried(model: Chain, samples: Samples, options: FitOptions) -> None:
    """Raise ValueError if the state cannot be carried from one window or batch to the next."""
    for option, used in (("truncate", options.truncate), ("stateful", options.stateful)):
        if not used:
            continue
        if not has_steps(samples.x):
            raise ValueError(f"{option}: needs x with a time axis, got shape {samples.x.shape}")
        for name, layer in zip(model.names, model.layers, strict=True):
            if getattr(layer, "bidirectional", False):
                raise ValueError(f"{option}: {name} is bidirectional, so it needs the whole sequence")
    if options.accumulate > 1 and (options.truncate or options.stateful):
        raise ValueError(f"accumulate: expected 1 with truncate or stateful, got {options.accumulate}")
    if options.truncate and not samples.stepwise:
        raise ValueError("truncate: expected a model that predicts every step, got one that predicts once per sequence")
    if options.stateful and options.shuffle:
        raise ValueError("stateful: expected shuffle=False, because the order of the samples matters")


@dataclass
class History:
    """Losses and metrics of every epoch, by name.

    Attributes
    ----------
    history : dict of lists of float
        ``history["loss"][epoch]``; also each metric by name, and with validation the same names after ``"val_"``.

    Examples
    --------
    >>> from fastrnn.training import History
    >>> history = History()
    >>> history.append({"loss": 0.5})
    >>> history.append({"loss": 0.25})
    >>> history
    History of 2 epochs: loss 0.25
    """

    history: dict[str, list[float]] = field(default_factory=dict)

    def append(self, logs: Mapping[str, float]) -> None:
        """Add the logs of one epoch.

        Parameters
        ----------
        logs : mapping of names to floats
        """
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __len__(self) -> int:
        return len(self.history.get("loss", ()))

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"History of {len(self)} epochs" + (f": {last}" if last else "")


class Callback:
    """Base class of callbacks, whose methods `fit` calls; a subclass overrides those that it needs.

    Each method gets the `Training`: ``model``, ``epoch`` (completed epochs), ``epochs``, ``logs`` (losses and metrics
    of this epoch so far), ``history``, ``rng`` and ``stop()``.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> class Shout(fastrnn.training.Callback):
    ...     def on_epoch_end(self, training):
    ...         print("epoch", training.epoch, "is done")
    >>> model = fastrnn.Sequential([fastrnn.Dense(2, 1, rng=0)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32), callbacks=[Shout()])
    epoch 1 is done
    """

    def on_train_begin(self, training: Training) -> None:
        """Run before the first epoch, or the first after resuming: then ``training.epoch`` is above 0."""

    def on_epoch_begin(self, training: Training) -> None:
        """Run before an epoch."""

    def on_batch_end(self, training: Training) -> None:
        """Run after a batch and all its windows."""

    def on_epoch_end(self, training: Training) -> None:
        """Run after an epoch and its validation."""

    def on_train_end(self, training: Training) -> None:
        """Run after the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store in a checkpoint: arrays and JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; called before `on_train_begin`."""


class Training:
    """A running `fit`, as callbacks see it.

    Attributes
    ----------
    model : Sequential
    optimizer : Optimizer
    epoch, epochs : int
        Completed epochs, and their final number.
    batch : int
        The batch of this epoch, counted from 1.
    logs : dict of float
        Losses and metrics by name: over this epoch's batches so far, and at its end also of the validation.
    names : list of str
        The names in an epoch's final logs.
    history : History
        The completed epochs.
    rng : numpy.random.Generator
        For shuffling and dropout.
    batches_per_epoch : int or None
        None if x yields an unknown number of batches.
    stopped : bool
        Whether this epoch is the last.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        validation: Source | None,
        options: FitOptions,
        callbacks: list[Callback],
        rng: np.random.Generator,
    ) -> None:
        self.model, self.rng, self.epochs = model, rng, options.epochs
        self.optimizer = model.compiled.optimizer
        model.take_optimizer()
        self.callbacks = named(callbacks)
        self.history, self.logs = History(), dict[str, float]()
        self.epoch, self.batch, self.stopped = 0, 0, False
        self.batches_per_epoch = source.batches_per_epoch
        names = ["loss", *model.compiled.metrics]
        self.names = names + [f"val_{name}" for name in names if validation is not None]
        self._source, self._validation, self._options = source, validation, options
        self._train()
        self._gathered: dict[str, Any] = {}
        self._weight = 0.0

    def stop(self) -> None:
        """Stop training after this epoch."""
        self.stopped = True

    def _train(self) -> None:
        """Find the layers and parameters to train."""
        model = self.model
        self._parameters = model.trainable_parameters()
        if not self._parameters and model.parameters():
            raise ValueError("trainable: every layer is frozen; set trainable = True on the layers to train")
        found = [i for i, layer in enumerate(model.layers) if layer.trainable_parameters()]
        self._trained, self._first = [model.layers[i] for i in found], min(found, default=0)

    def run(self) -> History:
        for source in (self._source, self._validation):
            if source is not None:
                source.expect_epochs(self.epochs - self.epoch)
        self._tell("on_train_begin")
        while self.epoch < self.epochs and not self.stopped:
            self._tell("on_epoch_begin")
            self._train()  # a callback may have frozen or unfrozen a layer
            self.logs = self._one_epoch().means()
            if self._validation is not None:
                threads, name = self._options.threads, "validation_data y"
                totals = evaluate(self.model, self.model.compiled, self._validation, threads, name)
                self.logs |= totals.means("val_")
            self.epoch += 1
            self.history.append(self.logs)
            self._tell("on_epoch_end")
        self._tell("on_train_end")
        return self.history

    def _tell(self, moment: str) -> None:
        for callback in self.callbacks.values():
            getattr(callback, moment)(self)

    def _one_epoch(self) -> Totals:
        options, totals, carried = self._options, Totals(self.model.compiled), None
        for number, batch in enumerate(self._source.epoch(self.rng if options.shuffle else None), 1):
            self.batch = number
            states = split_state(carried, batch)
            alone = options.accumulate == len(batch) == 1
            for windows in zip_longest(*[part.windows(options.truncate) for part in batch]):
                parts = [part for part in windows if part is not None]  # the longest first, and so with their states
                going = zip(parts, states, strict=False)
                states[: len(parts)] = [self._step(part, state, totals, alone) for part, state in going]
                if number % options.accumulate == 0:
                    self._step_together()
            carried = joined_state(states, batch) if options.stateful else None
            if self.callbacks:
                self.logs = totals.means()
                self._tell("on_batch_end")
        self._step_together()  # the remaining batches
        totals.expect_some("y")
        return totals

    def _step(self, batch: Batch, state: Any, totals: Totals, alone: bool) -> Any:
        """Make one optimizer step, or unless `alone` a part of `_step_together`; return the final state."""
        if batch.empty:  # only empty sequences: nothing to learn, and the state is unchanged
            return state
        model, loss = self.model, self.model.compiled.loss
        threads = self._options.threads
        y, state, cache = model.run_forward(batch.x, state, batch.lengths, True, self.rng, threads, batch.e)
        judged = loss.judge(y, batch.y, batch.mask, batch.weights)
        if not math.isfinite(judged.loss):
            where = f"epoch {self.epoch + 1}, batch {self.batch}"
            raise FloatingPointError(f"loss: {judged.loss} in {where}: {culprit(model, batch)}")
        totals.add(judged, y, batch)
        if judged.weight == 0:  # no target that counts
            return state
        dy = judged.gradient if alone else judged.gradient * judged.weight
        every = model.run_backward(dy, cache, first=self._first).grads
        grads = {name: every[name] for name in self._parameters}
        if alone:
            self._learn(grads)
        else:
            self._weight += judged.weight
            before = self._gathered
            self._gathered = {name: g + before[name] if name in before else g for name, g in grads.items()}
        return state

    def _step_together(self) -> None:
        """Make one optimizer step with the weighted mean of the gradients of several batches, or parts of one."""
        if self._weight:
            self._learn({name: g / self._weight for name, g in self._gathered.items()})
        self._gathered, self._weight = {}, 0.0

    def _learn(self, grads: dict[str, Array]) -> None:
        self.optimizer.step(self._parameters, grads)
        for layer in self._trained:
            layer.changed()


def divides_state(layer: Layer) -> bool:
    """Return whether the layer's state is known to be None or to have the batch in axis 1."""
    if isinstance(layer, Chain):
        return all(map(divides_state, layer.layers))
    return isinstance(layer, Recurrent | Stateless)


def rows_of(batch: list[Batch]) -> list[Array]:
    """Return the positions of each part's samples in a batch in order."""
    first = min([part.which.min() for part in batch])
    return [part.which - first for part in batch]


def split_state(state: Any, batch: list[Batch]) -> list[Any]:
    """Split a model's state by the parts of a batch."""
    if state is None or len(batch) == 1:
        return [state] * len(batch)

    def some(state: Any, rows: Array) -> Any:
        if isinstance(state, tuple):
            return tuple([some(s, rows) for s in state])
        return None if state is None else state[:, rows]

    return [some(state, rows) for rows in rows_of(batch)]


def joined_state(states: list[Any], batch: list[Batch]) -> Any:
    """Join the states of the parts of a batch; a part that never ran, for it is empty, has None for zeros."""
    if len(batch) == 1:
        return states[0]
    rows = rows_of(batch)

    def whole(states: list[Any]) -> Any:
        first = next((state for state in states if state is not None), None)
        if isinstance(first, tuple):
            return tuple([whole([s and s[i] for s in states]) for i in range(len(first))])
        if first is None:
            return None
        found = np.zeros((len(first), sum(map(len, rows)), *first.shape[2:]), first.dtype)
        for own, state in zip(rows, states, strict=True):
            if state is not None:
                found[:, own] = state
        return found

    return whole(states)


def named(callbacks: list[Callback]) -> dict[str, Callback]:
    """Return callbacks by class name and number, "EarlyStopping.0", as checkpoints store them."""
    names: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        names[f"{kind}.{sum(name.startswith(f'{kind}.') for name in names)}"] = callback
    return names


def culprit(model: Chain, batch: Batch) -> str:
    """Say where the first non-finite number is."""
    if not np.isfinite(batch.x).all():
        return "x holds NaN or infinity"
    for name, a in batch.e.items():
        if not np.isfinite(a).all():
            return f"e {name!r} holds NaN or infinity"
    y = batch.y if batch.weights is None or batch.y is None else batch.y[batch.weights > 0]
    if y is not None and np.isinf(y).any():
        return "y holds infinity"
    for name, layer in zip(model.names, model.layers, strict=True):
        for parameter, value in layer.parameters().items():
            if not np.isfinite(value).all():
                return (
                    f"{parameter} of {name} became non-finite in an earlier step; "
                    "a smaller learning_rate or clip_norm=1.0 may help"
                )
    return "x, y and the weights are finite, but the predictions are too large"
