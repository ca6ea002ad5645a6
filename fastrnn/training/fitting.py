"""A fit under way: epochs, batches, windows, steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastrnn.cells import Array
from fastrnn.training.batches import Batch, Samples, has_steps, turned
from fastrnn.training.callbacks import Callback, named
from fastrnn.training.history import History

if TYPE_CHECKING:
    from fastrnn.training.optimizer import Optimizer
    from fastrnn.training.sequential import Compiled, Sequential


class Options(NamedTuple):
    """Those of `Sequential.fit`, checked."""

    epochs: int
    batch_size: int
    shuffle: bool
    truncate: int | None
    stateful: bool
    threads: int | None


class Totals:
    """Losses and metrics, summed over batches so that their means are those of all samples."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._sums = {name: (0.0, 0) for name in ("loss", *compiled.metrics)}

    def add(self, loss: float, prediction: Array, batch: Batch) -> None:
        self._add("loss", loss * batch.weight, batch.weight)
        for name, metric in self._compiled.metrics.items():
            self._add(name, *metric(prediction, batch.y, batch.mask))

    def _add(self, name: str, total: float, count: int) -> None:
        so_far, counted = self._sums[name]
        self._sums[name] = so_far + total, counted + count

    def means(self, prefix: str = "") -> dict[str, float]:
        return {prefix + name: total / max(count, 1) for name, (total, count) in self._sums.items()}


def evaluate(model: Sequential, samples: Samples, batch_size: int, threads: int | None) -> Totals:
    totals = Totals(model.compiled)
    for batch in samples.batches(batch_size):
        y = model.run_forward(batch.x, lengths=batch.lengths, threads=threads).y
        totals.add(model.compiled.loss(y, batch.y, batch.mask), y, batch)
    return totals


def predict(model: Sequential, samples: Samples, batch_size: int, threads: int | None) -> Array:
    """Samples first, 0 past the lengths."""
    out: Array | None = None
    for i, batch in enumerate(samples.batches(batch_size)):
        y = model.run_forward(batch.x, lengths=batch.lengths, threads=threads).y
        if out is None:
            leading = samples.x.shape[: 1 + samples.stepwise]
            out = np.zeros((*leading, *y.shape[len(leading) :]), y.dtype)
        rows = out[i * batch_size : (i + 1) * batch_size]
        if samples.stepwise:
            rows = rows[:, : len(y)]
        rows[...] = turned(y)
        if batch.mask is not None:
            rows[np.arange(len(y)) >= batch.mask[:, None]] = 0
    assert out is not None  # there is at least one sample
    return out


def check_carried(model: Sequential, samples: Samples, options: Options) -> None:
    """Whether a state can go on from one window or batch to the next."""
    for option, used in (("truncate", options.truncate), ("stateful", options.stateful)):
        if not used:
            continue
        if not has_steps(samples.x):
            raise ValueError(f"{option}: x of shape {samples.x.shape} has no axis of time")
        for name, layer in zip(model.names, model.layers, strict=True):
            if getattr(layer, "bidirectional", False):
                raise ValueError(f"{option}: {name} is bidirectional, and must see the whole sequence")
    if options.truncate and not samples.stepwise:
        raise ValueError("truncate: expected a model that predicts every step, got one that predicts at the end")
    if options.stateful and options.shuffle:
        raise ValueError("stateful: the order of the samples matters, so expected shuffle=False")
    if options.stateful and samples.size % options.batch_size:
        got = f"{samples.size} samples in batches of {options.batch_size}"
        raise ValueError(f"stateful: expected batches of equal size, got {got}")


class Training:
    """A `fit` under way, as callbacks see it.

    Attributes
    ----------
    model : Sequential
    optimizer : Optimizer
    epoch, epochs : int
        Epochs that are done, and that will be.
    batch : int
        The batch of this epoch, counted from 1.
    logs : dict of float
        Losses and metrics by name: of this epoch's batches so far, and at its end also of the validation.
    names : list of str
        What an epoch's logs will hold.
    history : History
        The epochs that are done.
    rng : numpy.random.Generator
        Shuffles and drops out.
    batches_per_epoch : int
    stopped : bool
        Whether this epoch is the last.
    """

    def __init__(
        self,
        model: Sequential,
        samples: Samples,
        validation: Samples | None,
        options: Options,
        callbacks: list[Callback],
        rng: np.random.Generator,
    ) -> None:
        self.model, self.rng, self.epochs = model, rng, options.epochs
        self.optimizer: Optimizer = model.compiled.optimizer
        self.callbacks = named(callbacks)
        self.history, self.logs = History(), dict[str, float]()
        self.epoch, self.batch, self.stopped = 0, 0, False
        self.batches_per_epoch = math.ceil(samples.size / options.batch_size)
        names = ["loss", *model.compiled.metrics]
        self.names = names + [f"val_{name}" for name in names if validation is not None]
        self._samples, self._validation, self._options = samples, validation, options
        self._parameters = model.parameters()

    def stop(self) -> None:
        """Let this epoch be the last."""
        self.stopped = True

    def run(self) -> History:
        self._tell("on_train_begin")
        while self.epoch < self.epochs and not self.stopped:
            self._tell("on_epoch_begin")
            self.logs = self._one_epoch().means()
            if self._validation is not None:
                options = self._options
                totals = evaluate(self.model, self._validation, options.batch_size, options.threads)
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
        options, totals, state = self._options, Totals(self.model.compiled), None
        order = self.rng.permutation(self._samples.size) if options.shuffle else None
        for number, batch in enumerate(self._samples.batches(options.batch_size, order), 1):
            self.batch = number
            if not options.stateful:
                state = None
            for window in batch.windows(options.truncate):
                state = self._step(window, state, totals)
            if self.callbacks:
                self.logs = totals.means()
                self._tell("on_batch_end")
        return totals

    def _step(self, batch: Batch, state: Any, totals: Totals) -> Any:
        """One step of the optimizer; the final state."""
        if batch.weight == 0:  # empty sequences alone: nothing to learn, and the state stays
            return state
        model, compiled = self.model, self.model.compiled
        y, state, cache = model.run_forward(batch.x, state, batch.lengths, True, self.rng, self._options.threads)
        loss, dy = compiled.loss.gradient(y, batch.y, batch.mask)
        if not math.isfinite(loss):
            where = f"epoch {self.epoch + 1}, batch {self.batch}"
            raise FloatingPointError(f"loss: {loss} in {where}: {culprit(model, batch)}")
        totals.add(loss, y, batch)
        self.optimizer.step(self._parameters, model.run_backward(dy, cache)[1])
        model.changed()
        return state


def culprit(model: Sequential, batch: Batch) -> str:
    """Where the first number is that is not finite."""
    if not np.isfinite(batch.x).all():
        return "x holds NaN or infinity"
    if batch.y is not None and not np.isfinite(batch.y).all():
        return "y holds NaN or infinity"
    for name, layer in zip(model.names, model.layers, strict=True):
        for parameter, value in layer.parameters().items():
            if not np.isfinite(value).all():
                return (
                    f"{parameter} of {name} is not finite since an earlier step; "
                    "a smaller learning_rate or clip_norm=1.0 may help"
                )
    return "x, y and the weights are finite, and the predictions too large"
