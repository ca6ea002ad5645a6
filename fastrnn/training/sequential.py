"""Layers one after another: a layer itself, and a model that is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastrnn.cells import Array
from fastrnn.checks import boolean, generator, positive
from fastrnn.layers.base import Layer
from fastrnn.training import checkpoint
from fastrnn.training.arguments import number
from fastrnn.training.batches import Samples, as_inputs, as_targets, turned
from fastrnn.training.callbacks import Callback, in_order
from fastrnn.training.chain import Chain
from fastrnn.training.fitting import Options, Training, check_carried, evaluate, predict
from fastrnn.training.history import History
from fastrnn.training.losses import Loss
from fastrnn.training.losses import loss as loss_of
from fastrnn.training.metrics import METRICS, Metric
from fastrnn.training.metrics import metric as metric_of
from fastrnn.training.optimizer import Optimizer
from fastrnn.training.optimizers import optimizer as optimizer_of
from fastrnn.training.summary import summary


@dataclass(frozen=True)
class Compiled:
    """What `Sequential.compile` was given."""

    optimizer: Optimizer
    loss: Loss
    metrics: dict[str, Metric]  #: by the names that a history has


class Sequential(Chain):
    """Layers, each reading what the one before gives; with `compile` and `fit`, a model to train.

    Arrays are samples first, (N, T, I): N sequences of T steps with I features, dimensionless; whether a layer has
    ``batch_first`` makes no difference here. Parameters have the layers' names behind their numbers, as
    torch.nn.Sequential has them: "0.weight_ih_l0", ...

    Parameters
    ----------
    layers : sequence of Layer
        At least one, each only once, also other `Sequential` models.

    Attributes
    ----------
    layers : tuple of Layer
    names : tuple of str
        What messages call them: "layer 0 (LSTM)", ...

    Raises
    ------
    TypeError, ValueError
        For what are not layers, or do not fit one on another; the message names the layer.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> model = fastrnn.Sequential([fastrnn.LSTM(3, 8, return_sequences=False, rng=0), fastrnn.Dense(8, 1, rng=1)])
    >>> model.compile("adam", "mse")
    >>> x = np.random.default_rng(2).standard_normal((64, 10, 3), dtype=np.float32)
    >>> y = x.mean(axis=(1, 2))[:, None]
    >>> history = model.fit(x, y, epochs=3, rng=3)
    >>> len(history.history["loss"]), model.predict(x).shape
    (3, (64, 1))
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self._compiled: Compiled | None = None

    def compile(
        self, optimizer: str | Optimizer = "adam", loss: str | Loss = "mse", metrics: Sequence[str | Metric] = ()
    ) -> None:
        """Say how to train.

        Parameters
        ----------
        optimizer : {"adam", "adamw", "rmsprop", "sgd"} or Optimizer
        loss : {"mse", "binary_crossentropy", "categorical_crossentropy"} or Loss
        metrics : list of {"accuracy", "binary_accuracy", "mae"} or Metric
            To watch, beside the loss.

        Raises
        ------
        TypeError, ValueError
            For something else.
        """
        if isinstance(metrics, str):
            raise TypeError(f"metrics: expected a list, got {metrics!r}")
        watched = [metric_of(which) for which in metrics]
        named = {metric_name(metric): metric for metric in watched}
        self._compiled = Compiled(optimizer_of(optimizer), loss_of(loss), named)

    @property
    def compiled(self) -> Compiled:
        """What `compile` was given."""
        if self._compiled is None:
            raise RuntimeError("this model has no loss and no optimizer yet: call compile(optimizer, loss) first")
        return self._compiled

    def fit(
        self,
        x: Any,
        y: Any,
        epochs: int = 1,
        batch_size: int = 32,
        *,
        lengths: Any = None,
        validation_data: tuple[Any, ...] | None = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        callbacks: Sequence[Callback] = (),
        truncate: int | None = None,
        stateful: bool = False,
        rng: Any = None,
        progress: bool = False,
        resume: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> History:
        """Train.

        Parameters
        ----------
        x : (N, T, I) array, (N, T) integers, (N, F), or a list of N arrays (T_n, ...), which are padded
            Inputs, of the layers' dtype (dimensionless).
        y : array
            Targets: (N, T, ...) where the model predicts every step, or a list of N arrays (T_n, ...); else (N, ...).
        epochs : int
            How often to go through all samples, those before a resumption included.
        batch_size : int
            Samples a step of the optimizer.
        lengths : (N,) integers, optional
            Valid steps of each sequence. What lies past them in x and y is not used and may be NaN.
        validation_data : (x, y) or (x, y, lengths), optional
            Evaluated after every epoch: "val_loss" and so on.
        validation_split : float
            Or take this part of the samples for that, the last ones, in [0, 1).
        shuffle : bool
            Take the samples in a new random order in every epoch.
        callbacks : list of Callback
        truncate : int, optional
            Truncated backpropagation through time [1]_: cut every batch into windows of so many steps. Each is one
            step of the optimizer; the state goes on from one to the next, the gradient does not come back.
        stateful : bool
            Each batch begins with the final states of the batch before, sample by sample, as one long sequence cut
            into batches; every epoch begins afresh. Needs ``shuffle=False`` and batches of equal size.
        rng : int or numpy.random.Generator, optional
            Of the order of samples and of dropout. The same number gives the same training, bit by bit.
        progress : bool
            Show a bar (tqdm).
        resume : path, optional
            Go on from this file of a `Checkpoint`, bit by bit as if there had been no interruption, if everything else
            is given as before: weights, optimizer, epoch, history, callbacks and rng are those of the file.
        threads : int, optional
            At most this many; `get_num_threads()` when absent.

        Returns
        -------
        History
            ``history.history["loss"][epoch]``: means over the samples as they were met, weights changing meanwhile.

        Raises
        ------
        RuntimeError
            Before `compile`.
        TypeError, ValueError
            For a wrong argument; the message names it, and the layer that does not take it.
        FloatingPointError
            When the loss is NaN or infinite; the weights are those before that step.
        ImportError
            If tqdm or safetensors is needed and not installed.

        References
        ----------
        .. [1] R. J. Williams, J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent
           network trajectories", Neural Computation 2, 1990.
        """
        for name, value in (("shuffle", shuffle), ("stateful", stateful)):
            boolean(name, value)
        truncate = None if truncate is None else positive("truncate", truncate)
        size = positive("batch_size", batch_size)
        options = Options(positive("epochs", epochs), size, bool(shuffle), truncate, bool(stateful), threads)
        samples, validation = self._split(self._samples(x, y, lengths), validation_data, validation_split)
        check_carried(self, samples, options)
        rng = generator(rng)
        training = Training(self, samples, validation, options, in_order(callbacks, progress), rng)
        if resume is not None:
            checkpoint.load_training(resume, training)
        return training.run()

    def evaluate(
        self, x: Any, y: Any, *, batch_size: int = 32, lengths: Any = None, threads: int | None = None
    ) -> dict[str, float]:
        """The loss and the metrics over all samples; they depend on `batch_size` by rounding alone.

        Parameters
        ----------
        x, y, batch_size, lengths, threads
            As for `fit`.

        Returns
        -------
        dict of float
            "loss", and the metrics by name.

        Raises
        ------
        RuntimeError
            Before `compile`.
        TypeError, ValueError
            For a wrong argument.
        """
        size = positive("batch_size", batch_size)
        return evaluate(self, self._samples(x, y, lengths), size, threads).means()

    def predict(self, x: Any, *, batch_size: int = 32, lengths: Any = None, threads: int | None = None) -> Array:
        """y of all samples, in their order; it does not depend on `batch_size` but by rounding.

        Parameters
        ----------
        x, batch_size, lengths, threads
            As for `fit`.

        Returns
        -------
        (N, T, K) array, 0 past the lengths, or (N, K)

        Raises
        ------
        TypeError, ValueError
            For a wrong argument.
        """
        size = positive("batch_size", batch_size)
        return predict(self, self._samples(x, None, lengths, targets=False), size, threads)

    def summary(self) -> str:
        """A table of the layers, the shapes that they give, samples first, and the numbers of their parameters.

        Returns
        -------
        str
            To be printed.

        Examples
        --------
        >>> import fastrnn
        >>> model = fastrnn.Sequential([fastrnn.LSTM(8, 16, return_sequences=False), fastrnn.Dense(16, 4, "softmax")])
        >>> print(model.summary())
        Layer    Output shape  Parameters
        ---------------------------------
        0 LSTM   (None, 16)         1,664
        1 Dense  (None, 4)             68
        ---------------------------------
        Total                       1,732
        """
        return summary(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to a safetensors file, all or nothing.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        """
        checkpoint.save_weights(path, self)

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Take the weights from a file of `save` or of a `Checkpoint`.

        Raises
        ------
        FileNotFoundError
            If there is none.
        KeyError, TypeError, ValueError
            For a file of something else, or of other layers, sizes or dtypes. After an error the model is as it was.
        ImportError
            If safetensors is not installed.
        """
        checkpoint.load_weights(path, self)

    def _samples(self, x: Any, y: Any, lengths: Any, prefix: str = "", targets: bool = True) -> Samples:
        """Checked, but for the sizes of targets, which the loss checks."""
        x, lengths = as_inputs(f"{prefix}x", x, lengths)
        stepwise = len(self.output_shape(turned(x).shape)) == 3
        y = as_targets(f"{prefix}y", y, x, lengths, stepwise) if targets else None
        return Samples(x, y, lengths, stepwise)

    def _split(self, samples: Samples, validation_data: Any, validation_split: float) -> tuple[Samples, Samples | None]:
        """What to train on, and what to validate with."""
        fraction = number("validation_split", validation_split, below=1)
        if validation_data is None:
            return samples.split(fraction) if fraction else (samples, None)
        if fraction:
            raise ValueError("validation_split: expected 0 beside validation_data")
        if not isinstance(validation_data, list | tuple) or len(validation_data) not in (2, 3):
            raise TypeError(f"validation_data: expected (x, y) or (x, y, lengths), got {validation_data!r:.80}")
        x, y, *lengths = validation_data
        return samples, self._samples(x, y, lengths[0] if lengths else None, "validation_data ")


def metric_name(metric: Any) -> str:
    """As `compile` would take it, or the class's own."""
    kinds = {kind: name for name, kind in METRICS.items()}
    return kinds.get(type(metric), type(metric).__name__)
