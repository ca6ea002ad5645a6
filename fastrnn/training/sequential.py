"""The model that people use, and its training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastrnn.checks import boolean, generator, positive
from fastrnn.training import checkpoint
from fastrnn.training.arguments import number
from fastrnn.training.batches import Samples
from fastrnn.training.callbacks import in_order
from fastrnn.training.evaluation import Fits
from fastrnn.training.fitting import Callback, Options, Training, check_carried
from fastrnn.training.history import History
from fastrnn.training.model import Model
from fastrnn.training.sources import FIELDS, Source, fields, gives_batches
from fastrnn.training.targets import Counting, counting


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
        y: Any = None,
        epochs: int = 1,
        *,
        batch_size: int = 32,
        lengths: Any = None,
        sample_weight: Any = None,
        e: Mapping[str, Any] | None = None,
        class_weight: Mapping[int, float] | None = None,
        ignore_index: int | None = -100,
        steps_per_epoch: int | None = None,
        validation_data: Any = None,
        validation_steps: int | None = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        callbacks: Sequence[Callback] = (),
        truncate: int | None = None,
        stateful: bool = False,
        accumulate: int = 1,
        rng: Any = None,
        progress: bool = False,
        resume: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> History:
        """Train.

        Parameters
        ----------
        x : (N, T, I) array, (N, T) integers, (N, F), or a list of N arrays (T_n, ...), which are padded batch by batch
            Inputs, of the layers' dtype (dimensionless). Arrays may be mapped from a disk, and are read batch by batch.
            Or what gives batches (x, y) or (x, y, sample_weight), or dicts of "x", "y", "lengths", "sample_weight" and
            "e": a generator, a list of them, a Sequence as Keras has it (``__len__`` and ``__getitem__``), a torch
            DataLoader, or another iterable.
        y : array, None if x gives batches
            Targets: (N, T, ...) where the model predicts every step, or a list of N arrays (T_n, ...); else (N, ...).
            One that is NaN is missing, and does not count.
        epochs : int
            How often to go through all samples, those before a resumption included.
        batch_size : int
            Samples a step of the optimizer; an x that gives batches has made them.
        lengths : (N,) integers, optional
            Valid steps of each sequence. What lies past them in x and y is not used and may be NaN.
        sample_weight : (N,) or (N, T) array, or a list of N arrays (T_n,), optional
            How much a sample counts, or each of its steps, at least 0, for the loss and the metrics, as in PyTorch's
            CrossEntropyLoss: ``sum(w * loss) / sum(w)`` over a batch. What has weight 0 may be anything in y.
        e : dict of arrays, optional
            Extra inputs of the layers' cells by name, such as the time since the last step: (N, T, H) or (N, T, 1), or
            a list of N arrays; or (N, H) or (N, 1), the same in every step. Layers that name the same one share it.
        class_weight : dict from classes to numbers, optional
            The same by the class of the target, 1 for a class that is not named; times `sample_weight`. It holds for
            the validation too.
        ignore_index : int, optional
            Targets of this integer do not count, as in PyTorch; None has every target count.
        steps_per_epoch : int, optional
            Batches an epoch of an x that gives them, where it has no end, or is a generator for several epochs: each
            goes on where the one before ended, and an x that can be had again begins again at its end.
        validation_data : (x, y), (x, y, lengths), (x, y, lengths, sample_weight), or what gives batches, optional
            Evaluated after every epoch: "val_loss" and so on. lengths and sample_weight may be None. A dict of "x", "y"
            and the like, with "e" where there are extra inputs, will do too.
        validation_steps : int, optional
            As `steps_per_epoch`.
        validation_split : float
            Or take this part of the samples for that, the last ones, in [0, 1).
        shuffle : bool
            Take the samples in a new random order in every epoch, or the batches of a Sequence; other iterables have
            their own order.
        callbacks : list of Callback
        truncate : int, optional
            Truncated backpropagation through time [1]_: cut every batch into windows of so many steps. Each is one
            step of the optimizer; the state goes on from one to the next, the gradient does not come back.
        stateful : bool
            Each batch begins with the final states of the batch before, sample by sample, as one long sequence cut
            into batches; every epoch begins afresh. Needs ``shuffle=False`` and batches of equal size.
        accumulate : int
            Take the gradients of so many batches together for one step of the optimizer, as those of one batch of so
            many times the size, in the memory of one. With neither `truncate` nor `stateful`.
        rng : int or numpy.random.Generator, optional
            Of the order of samples and of dropout. The same number gives the same training, bit by bit.
        progress : bool
            Show a bar (tqdm).
        resume : path, optional
            Go on from this file of a `Checkpoint`, bit by bit as if there had been no interruption, if everything else
            is given as before: weights, optimizer, epoch, history, callbacks and rng are those of the file. A generator
            goes on from where it is.
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
            For a wrong argument, a class or a probability out of range anywhere in y included: before the first step,
            or before that of the batch if x gives batches. The message names it, and the layer that does not take it.
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
        accumulate = positive("accumulate", accumulate)
        options = Options(positive("epochs", epochs), bool(shuffle), truncate, bool(stateful), accumulate, threads)
        counted = counting(class_weight, ignore_index)
        fits = Fits(self, self.compiled.loss, threads, truncate)

        def check(name: str, samples: Samples) -> None:
            check_carried(self, samples, options)
            fits(name, samples)

        steps = "steps_per_epoch", steps_per_epoch
        data = {"x": x, "y": y, "lengths": lengths, "sample_weight": sample_weight, "e": e}
        given = self._source(data, batch_size, counted, check=check, steps=steps)
        source, validation = given, None
        fraction = number("validation_split", validation_split, below=1)
        if validation_data is not None:
            if fraction:
                raise ValueError("validation_split: expected 0 beside validation_data")
            validation = self._validation(validation_data, batch_size, counted, fits, validation_steps)
        elif validation_steps is not None:
            raise ValueError(f"validation_steps: expected None without validation_data, got {validation_steps}")
        elif fraction:
            source, validation = given.split(fraction)
        if stateful:
            source.expect_equal()
        training = Training(self, source, validation, options, in_order(callbacks, progress), generator(rng))
        if resume is not None:
            checkpoint.load_training(resume, training)
        return training.run()

    def _validation(self, data: Any, batch_size: int, counted: Counting, fits: Fits, steps: int | None) -> Source:
        given = {"x": data}
        if isinstance(data, Mapping):
            given = fields("validation_data", data, targets=True)
        elif not gives_batches(data):
            if not isinstance(data, list | tuple) or len(data) not in (2, 3, 4):
                expected = "(x, y), (x, y, lengths) or (x, y, lengths, sample_weight), or what gives batches"
                raise TypeError(f"validation_data: expected {expected}, got {data!r:.80}")
            given = dict(zip(FIELDS, data, strict=False))
        named = "validation_steps", steps
        return self._source(given, batch_size, counted, check=fits, steps=named, prefix="validation_data ")
