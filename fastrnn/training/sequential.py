"""The model that people use, and its training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastrnn.checks import boolean, generator, positive
from fastrnn.training import checkpoint
from fastrnn.training.arguments import number
from fastrnn.training.batches import Samples
from fastrnn.training.callbacks import in_order
from fastrnn.training.evaluation import expect_targets
from fastrnn.training.fitting import Callback, Options, Training, check_carried
from fastrnn.training.history import History
from fastrnn.training.model import Model


class Sequential(Model):
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

    def fit(
        self,
        x: Any,
        y: Any,
        epochs: int = 1,
        *,
        batch_size: int = 32,
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
            For a wrong argument, a class or a probability out of range anywhere in y included: before the first step.
            The message names it, and the layer that does not take it.
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
        loss = self.compiled.loss
        given = self._samples(x, y, lengths)
        samples, validation = self._split(given, validation_data, validation_split)
        check_carried(self, samples, options)
        first = next(given.batch(slice(0, 1)).windows(truncate))
        prediction = self.run_forward(first.x, lengths=first.lengths, threads=threads).y
        expect_targets("y", given, prediction, loss)
        if validation is not None and validation_data is not None:
            expect_targets("validation_data y", validation, prediction, loss)
        rng = generator(rng)
        training = Training(self, samples, validation, options, in_order(callbacks, progress), rng)
        if resume is not None:
            checkpoint.load_training(resume, training)
        return training.run()

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
