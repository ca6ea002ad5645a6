"""`Sequential`, the public model class, and its training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastrnn.checks import boolean, fraction, generator, positive
from fastrnn.training.batches import FIELDS, Samples, Source, fields, gives_batches
from fastrnn.training.callbacks import in_order, load_training
from fastrnn.training.fitting import Callback, FitOptions, History, Training, check_carried, divides_state
from fastrnn.training.model import Model, TargetCheck
from fastrnn.training.targets import ClassWeights, checked_class_weights


class Sequential(Model):
    """A model of layers applied in sequence, trained with `compile` and `fit`.

    Arrays are batch-first, (N, T, I): N sequences of T steps with I features, dimensionless, whatever the layers'
    ``batch_first``. Parameter names are the layers' own, prefixed with the layer's index as in torch.nn.Sequential:
    "0.weight_ih_l0", ...

    Parameters
    ----------
    layers : sequence of Layer
        At least one, each only once; may include other `Sequential` models.

    Attributes
    ----------
    layers : tuple of Layer
    names : tuple of str
        Their names in messages: "layer 0 (LSTM)", ...

    Raises
    ------
    TypeError, ValueError
        If an element is not a layer, or sizes do not match; the message names the layer.

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
        """Train the model.

        Parameters
        ----------
        x : (N, T, I) array, (N, T) integers, (N, F), or a list of N arrays (T_n, ...)
            Inputs, of the layers' dtype (dimensionless). Arrays may be memory-mapped and are read batch by batch.
            A batch of sequences of unequal length runs in parts of similar length, in which padding at most doubles
            the number of steps; the gradients are those of the whole batch.
            Alternatively, an iterable of batches (x, y) or (x, y, sample_weight), or dicts of "x", "y", "lengths",
            "sample_weight" and "e": a generator, a list, a Keras Sequence (``__len__`` and ``__getitem__``), a torch
            DataLoader, or any other iterable.
        y : array, None if x yields batches
            Targets: (N, T, ...), or a list of N arrays (T_n, ...), if the model predicts every step; else (N, ...).
            NaN marks a missing target, which does not count.
        epochs : int
            Passes over all samples, including those before resuming.
        batch_size : int
            Samples per optimizer step; ignored if x yields batches.
        lengths : (N,) integers, optional
            Valid steps of each sequence. x and y are ignored past them and may be NaN there.
        sample_weight : (N,) or (N, T) array, or a list of N arrays (T_n,), optional
            Weight of each sample, or of each of its steps, at least 0, in the loss and the metrics, as in PyTorch's
            CrossEntropyLoss: ``sum(w * loss) / sum(w)`` over a batch. Targets of weight 0 are ignored.
        e : dict of arrays, optional
            Extra inputs of the layers' cells by name, such as the time since the last step: (N, T, H) or (N, T, 1), or
            a list of N arrays; or (N, H) or (N, 1), the same in every step. Layers that use the same name share it.
        class_weight : dict from classes to numbers, optional
            Weight of each class of target, 1 by default, multiplied by `sample_weight`. Also applies to the validation.
        ignore_index : int, optional
            Targets equal to this integer do not count, as in PyTorch; with None every target counts.
        steps_per_epoch : int, optional
            Batches per epoch, if x yields batches; needed if x is endless, or is a generator for several epochs. Each
            epoch continues where the one before ended, and an x that can be iterated again restarts at its end.
        validation_data : (x, y), (x, y, lengths), (x, y, lengths, sample_weight), or an iterable of batches, optional
            Evaluated after every epoch: "val_loss" and so on. lengths and sample_weight may be None. A dict of "x", "y"
            and so on is accepted too, with "e" for extra inputs.
        validation_steps : int, optional
            As `steps_per_epoch`.
        validation_split : float
            Alternatively, hold out this fraction of the samples, the last ones, for validation; in [0, 1).
        shuffle : bool
            Shuffle the samples, or the batches of a Sequence, before every epoch; other iterables keep their order.
        callbacks : list of Callback
        truncate : int, optional
            Truncated backpropagation through time [1]_: split every batch into windows of this many steps. Each is one
            optimizer step; the state is carried from one to the next, the gradient is not propagated back.
        stateful : bool
            Start each batch from the final states of the batch before, sample by sample, as one long sequence split
            into batches; states are reset every epoch. Needs ``shuffle=False`` and batches of equal size.
        accumulate : int
            Accumulate the gradients of this many batches for one optimizer step: the same as one batch of that many
            times the size, in the memory of one. Cannot be combined with `truncate` or `stateful`.
        rng : int or numpy.random.Generator, optional
            For the order of samples and dropout. The same int gives bit-identical training.
        progress : bool
            Show a progress bar (tqdm).
        resume : path, optional
            Resume from this file of a `Checkpoint`, with bit-identical results if all other arguments are as before.
            Weights, optimizer, epoch, history, callbacks and rng are restored from the file. A generator continues
            from its current position.
        threads : int, optional
            Maximum number of threads; `get_num_threads()` by default.

        Returns
        -------
        History
            ``history.history["loss"][epoch]``: means over the epoch's batches, computed while the weights change.

        Raises
        ------
        RuntimeError
            Before `compile`.
        TypeError, ValueError
            For a wrong argument, including a class or probability out of range anywhere in y: before the first step,
            or before the batch's step if x yields batches. The message names it, and the layer that rejects it.
        FloatingPointError
            If the loss is NaN or infinite; the weights are those before that step.
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
        options = FitOptions(positive("epochs", epochs), bool(shuffle), truncate, bool(stateful), accumulate, threads)
        class_weights = checked_class_weights(class_weight, ignore_index)
        check_targets = TargetCheck(self, self.compiled.loss, threads, truncate)

        def check(name: str, samples: Samples) -> None:
            check_carried(self, samples, options)
            check_targets(name, samples)

        steps = "steps_per_epoch", steps_per_epoch
        data = {"x": x, "y": y, "lengths": lengths, "sample_weight": sample_weight, "e": e}
        given = self._source(data, batch_size, class_weights, check=check, steps=steps)
        source, validation = given, None
        held_out = fraction("validation_split", validation_split)
        if validation_data is not None:
            if held_out:
                raise ValueError("validation_split: expected 0 with validation_data")
            validation = self._validation(validation_data, batch_size, class_weights, check_targets, validation_steps)
        elif validation_steps is not None:
            raise ValueError(f"validation_steps: expected None without validation_data, got {validation_steps}")
        elif held_out:
            source, validation = given.split(held_out)
        if stateful:
            source.expect_equal(whole=not divides_state(self))
        training = Training(self, source, validation, options, in_order(callbacks, progress), generator(rng))
        if resume is not None:
            load_training(resume, training)
        return training.run()

    def _validation(
        self, data: Any, batch_size: int, class_weights: ClassWeights, check: TargetCheck, steps: int | None
    ) -> Source:
        given = {"x": data}
        if isinstance(data, Mapping):
            given = fields("validation_data", data, targets=True)
        elif not gives_batches(data):
            if not isinstance(data, list | tuple) or len(data) not in (2, 3, 4):
                expected = "(x, y), (x, y, lengths) or (x, y, lengths, sample_weight), or an iterable of batches"
                raise TypeError(f"validation_data: expected {expected}, got {data!r:.80}")
            given = dict(zip(FIELDS, data, strict=False))
        named = "validation_steps", steps
        return self._source(given, batch_size, class_weights, check=check, steps=named, prefix="validation_data ")
