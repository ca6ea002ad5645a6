"""A fit under way: epochs, batches, windows, steps; and the callbacks that hear of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Array
from fastrnn.training.batches import Batch, Samples, has_steps
from fastrnn.training.chain import Chain
from fastrnn.training.evaluation import Totals, evaluate
from fastrnn.training.history import History
from fastrnn.training.model import Model
from fastrnn.training.sources import Source


class Options(NamedTuple):
    """Those of `Sequential.fit`, checked."""

    epochs: int
    shuffle: bool
    truncate: int | None
    stateful: bool
    accumulate: int
    threads: int | None


def check_carried(model: Chain, samples: Samples, options: Options) -> None:
    """Whether a state can go on from one window or batch to the next."""
    for option, used in (("truncate", options.truncate), ("stateful", options.stateful)):
        if not used:
            continue
        if not has_steps(samples.x):
            raise ValueError(f"{option}: x of shape {samples.x.shape} has no axis of time")
        for name, layer in zip(model.names, model.layers, strict=True):
            if getattr(layer, "bidirectional", False):
                raise ValueError(f"{option}: {name} is bidirectional, and must see the whole sequence")
    if options.accumulate > 1 and (options.truncate or options.stateful):
        raise ValueError(f"accumulate: expected 1 with truncate or stateful, got {options.accumulate}")
    if options.truncate and not samples.stepwise:
        raise ValueError("truncate: expected a model that predicts every step, got one that predicts at the end")
    if options.stateful and options.shuffle:
        raise ValueError("stateful: the order of the samples matters, so expected shuffle=False")


class Callback:
    """Does something at some moments of a `fit`; a subclass overrides the moments that it is for.

    Each gets the `Training`: ``model``, ``epoch`` (epochs that are done), ``epochs``, ``logs`` (losses and metrics of
    this epoch so far), ``history``, ``rng`` and ``stop()``.

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
        """Before the first epoch, or the first after a resumption: then ``training.epoch`` is above 0."""

    def on_epoch_begin(self, training: Training) -> None:
        """Before an epoch."""

    def on_batch_end(self, training: Training) -> None:
        """After a batch, all its windows included."""

    def on_epoch_end(self, training: Training) -> None:
        """After an epoch and its validation."""

    def on_train_end(self, training: Training) -> None:
        """After the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep of it: arrays, and what JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, before `on_train_begin`."""


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
    batches_per_epoch : int or None
        None where x gives batches, and does not say how many.
    stopped : bool
        Whether this epoch is the last.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        validation: Source | None,
        options: Options,
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
        """Let this epoch be the last."""
        self.stopped = True

    def _train(self) -> None:
        """What is trained from now on."""
        model = self.model
        self._parameters = model.trainable_parameters()
        if not self._parameters and model.parameters():
            raise ValueError("trainable: every layer is frozen; set trainable = True of what fit is to train")
        found = [i for i, layer in enumerate(model.layers) if layer.trainable_parameters()]
        self._trained, self._first = [model.layers[i] for i in found], min(found, default=0)

    def run(self) -> History:
        for source in (self._source, self._validation):
            if source is not None:
                source.expect_epochs(self.epochs - self.epoch)
        self._tell("on_train_begin")
        while self.epoch < self.epochs and not self.stopped:
            self._tell("on_epoch_begin")
            self._train()  # a callback may have frozen a layer, or the contrary
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
        options, totals, state = self._options, Totals(self.model.compiled), None
        for number, batch in enumerate(self._source.epoch(self.rng if options.shuffle else None), 1):
            self.batch = number
            if not options.stateful:
                state = None
            for window in batch.windows(options.truncate):
                state = self._step(window, state, totals)
            if number % options.accumulate == 0:
                self._step_together()
            if self.callbacks:
                self.logs = totals.means()
                self._tell("on_batch_end")
        self._step_together()  # of what is left
        totals.expect_some("y")
        return totals

    def _step(self, batch: Batch, state: Any, totals: Totals) -> Any:
        """One step of the optimizer, or with `accumulate` a part of one; the final state."""
        if batch.empty:  # empty sequences alone: nothing to learn, and the state stays
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
        alone = self._options.accumulate == 1
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
        """One step by the gradients of several batches, each with its weight."""
        if self._weight:
            self._learn({name: g / self._weight for name, g in self._gathered.items()})
        self._gathered, self._weight = {}, 0.0

    def _learn(self, grads: dict[str, Array]) -> None:
        self.optimizer.step(self._parameters, grads)
        for layer in self._trained:
            layer.changed()


def named(callbacks: list[Callback]) -> dict[str, Callback]:
    """Each under its class and number, "EarlyStopping.0", as checkpoints have them."""
    names: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        names[f"{kind}.{sum(name.startswith(f'{kind}.') for name in names)}"] = callback
    return names


def culprit(model: Chain, batch: Batch) -> str:
    """Where the first number is that is not finite."""
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
                    f"{parameter} of {name} is not finite since an earlier step; "
                    "a smaller learning_rate or clip_norm=1.0 may help"
                )
    return "x, y and the weights are finite, and the predictions too large"
