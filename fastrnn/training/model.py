"""What a model can do, but for its training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastrnn.cells import Array
from fastrnn.checks import positive
from fastrnn.layers.base import Layer
from fastrnn.training import weight_files
from fastrnn.training.batches import Samples, as_extras, as_inputs, as_targets, as_weights, has_steps
from fastrnn.training.chain import Chain, keeps_steps
from fastrnn.training.compiled import Compiled
from fastrnn.training.description import save_model
from fastrnn.training.evaluation import Fits, evaluate, predict
from fastrnn.training.losses import Loss
from fastrnn.training.losses import loss as loss_of
from fastrnn.training.metrics import Metric, metric_name
from fastrnn.training.metrics import metric as metric_of
from fastrnn.training.optimizer import Optimizer
from fastrnn.training.optimizers import optimizer as optimizer_of
from fastrnn.training.sources import Arrays, Given, Source, fields, gives_batches
from fastrnn.training.summary import summary
from fastrnn.training.targets import Counting, counting


class Model(Chain):
    """A chain that is told how to train, predicts, is judged, and goes into a file; `Sequential` describes it."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self._mark: bytes | None = None  # by which its optimizers know it, copies and pickles too; `fit` makes it
        self._compiled: Compiled | None = None

    def compile(
        self,
        optimizer: str | Optimizer = "adam",
        loss: str | Loss = "mse",
        metrics: Sequence[str | Metric | Callable[[Array, Array], Any]] = (),
    ) -> None:
        """Say how to train.

        Parameters
        ----------
        optimizer : {"adam", "adamw", "rmsprop", "sgd"} or Optimizer
            An Optimizer that no other model was trained with; with the one of before, `fit` goes on from its state.
        loss : {"mse", "binary_crossentropy", "categorical_crossentropy"} or Loss
        metrics : list of {"accuracy", "binary_accuracy", "mae"}, Metric or functions
            To watch, beside the loss. A function ``f(y_true, y_pred)``, named as it is, gets the N steps of a batch
            that count, (N, K) each, or (N,) classes, and returns a number for each step, (N,), for each element, or
            one, the mean of the batch.

        Raises
        ------
        TypeError, ValueError
            For something else, and for the optimizer of another model.
        """
        if isinstance(metrics, str) or not isinstance(metrics, Iterable):
            raise TypeError(f"metrics: expected a list, got {metrics!r}")
        watched = [metric_of(which) for which in metrics]
        named: dict[str, Metric] = {}
        for metric in watched:
            if named.setdefault(metric_name(metric), metric) != metric:
                raise ValueError(f"metrics: expected one of each name, got two of {metric_name(metric)!r}")
        chosen = optimizer_of(optimizer)
        chosen.expect_of(self._mark)
        self._compiled = Compiled(chosen, loss_of(loss), named)

    def take_optimizer(self) -> None:
        """Train with the optimizer of `compile` from now on, which is then no other model's."""
        self._mark = self._mark or os.urandom(16)
        self.compiled.optimizer.belong(self._mark, self.parameters())

    @property
    def compiled(self) -> Compiled:
        """What `compile` was given."""
        if self._compiled is None:
            raise RuntimeError("this model has no loss and no optimizer yet: call compile(optimizer, loss) first")
        return self._compiled

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int = 32,
        lengths: Any = None,
        sample_weight: Any = None,
        e: Mapping[str, Any] | None = None,
        class_weight: Mapping[int, float] | None = None,
        ignore_index: int | None = -100,
        steps: int | None = None,
        threads: int | None = None,
    ) -> dict[str, float]:
        """The loss and the metrics over all samples; they depend on `batch_size` by rounding alone.

        Parameters
        ----------
        x, y, batch_size, lengths, sample_weight, e, class_weight, ignore_index, threads
            As for `fit`.
        steps : int, optional
            Take so many batches of an x that gives batches, where it has no end.

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
        compiled = self.compiled
        check = Fits(self, compiled.loss, threads)
        given = {"x": x, "y": y, "lengths": lengths, "sample_weight": sample_weight, "e": e}
        counted = counting(class_weight, ignore_index)
        source = self._source(given, batch_size, counted, check=check, steps=("steps", steps))
        return evaluate(self, compiled, source, threads).means()

    def predict(
        self,
        x: Any,
        *,
        batch_size: int = 32,
        lengths: Any = None,
        e: Mapping[str, Any] | None = None,
        steps: int | None = None,
        threads: int | None = None,
    ) -> Array:
        """y of all samples, in their order; `batch_size` does not change a bit of it (but with the NumPy backend).

        Parameters
        ----------
        x, batch_size, lengths, e, threads
            As for `fit`. What gives batches may also give arrays x in place of (x, y), whose y is not used; a list is
            sequences here.
        steps : int, optional
            As for `evaluate`.

        Returns
        -------
        (N, T, K) array, 0 past the lengths, or (N, K)
            T is the longest batch's where x gives batches.

        Raises
        ------
        TypeError, ValueError
            For a wrong argument.
        """
        given = {"x": x, "lengths": lengths, "e": e}
        source = self._source(given, batch_size, Counting(), check=None, steps=("steps", steps))
        return predict(self, source, threads)

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
        """Write the model, layers, options and weights, to a safetensors file; `fastrnn.load` makes it again.

        The same as ``fastrnn.save(path, model)``. What `compile` was given is not in the file.

        Parameters
        ----------
        path : path

        Raises
        ------
        TypeError
            For a layer, or a model, of a class that is not fastrnn's; `save_weights` takes any.
        OSError
            If the file cannot be written there; FileNotFoundError if there is no such directory.
        ImportError
            If safetensors is not installed.

        Examples
        --------
        >>> import os, tempfile, fastrnn
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> fastrnn.Sequential([fastrnn.LSTM(3, 4), fastrnn.Dense(4, 1)]).save(path)
        >>> fastrnn.load(path)
        Sequential([LSTM(3, 4, dtype=float32) [lstm], Dense(4, 1, dtype=float32)])
        """
        save_model(path, self)

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write the weights alone to a safetensors file, all or nothing; `load_weights` takes them.

        Parameters
        ----------
        path : path

        Raises
        ------
        OSError
            If the file cannot be written there; FileNotFoundError if there is no such directory.
        ImportError
            If safetensors is not installed.
        """
        weight_files.save_weights(path, self)

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Take the weights from a file of `save_weights`, of `save` or of a `Checkpoint`.

        Parameters
        ----------
        path : path

        Raises
        ------
        FileNotFoundError
            If there is none.
        KeyError, TypeError, ValueError
            For a file of something else, or of other layers, sizes or dtypes. After an error the model is as it was.
        ImportError
            If safetensors is not installed.
        """
        weight_files.load_weights(path, self)

    def load_keras_weights(self, path: str | os.PathLike[str]) -> None:
        """Take the weights of a model of the same layers in Keras, from a file of its ``save_weights``.

        Layers with weights take them in order; one of ``num_layers`` stands for as many of Keras'. In files of Keras 1
        and 2 (``.h5``) that is the model's order. In those of Keras 2 and 3 (``.weights.h5``) layers of each class are
        numbered, and shapes must tell those of several classes (Dense and TimeDistributed, say) or of several models
        apart. Where Keras has one bias, the second of a layer of two is zeros.

        Parameters
        ----------
        path : path
            Also of a whole model's file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        TypeError, ValueError
            For a file of something else, of other layers, sizes or dtypes, and where it is not sure whose the weights
            are. After an error the model is as it was.
        ImportError
            If h5py is not installed.

        Examples
        --------
        >>> import fastrnn
        >>> model = fastrnn.Sequential([fastrnn.LSTM(3, 8, return_sequences=False), fastrnn.Dense(8, 2)])
        >>> model.load_keras_weights("model.weights.h5")  # doctest: +SKIP
        """
        from fastrnn.convert import keras_bare  # here, because it imports what models do without

        keras_bare.load(path, self)

    def _source(
        self,
        given: dict[str, Any],
        batch_size: int,
        counting: Counting,
        *,
        check: Callable[[str, Samples], None] | None,
        steps: tuple[str, int | None],
        prefix: str = "",
    ) -> Source:
        """Where batches come from; with `check`, which is given what messages call y, they have targets."""
        x, size = given["x"], positive("batch_size", batch_size)
        argument, number = steps
        number = None if number is None else positive(argument, number)
        if not gives_batches(x) or (check is None and isinstance(x, list)):
            if number is not None:
                raise ValueError(f"{argument}: expected None with an array or a list as {prefix}x, got {number}")
            samples = self._samples(given, counting, prefix, check is not None)
            if check is not None:
                check(f"{prefix}y", samples)
            return Arrays(samples, size)
        for name, value in given.items():
            if name != "x" and value is not None:
                raise ValueError(f"{prefix}{name}: expected None, since x gives batches with their own {name}")

        def read(batch: str, given: Any) -> Samples:
            name, targets = f"{prefix}{batch}", check is not None
            samples = self._samples(fields(name, given, targets), counting, f"{name} ", targets)
            if check is not None:
                check(f"{name} y", samples)
            return samples

        return Given(f"{prefix}x", x, read, number, argument)

    def _samples(self, given: dict[str, Any], counting: Counting, prefix: str, targets: bool) -> Samples:
        """Checked, but for the sizes of targets, which the loss checks."""
        x, lengths = as_inputs(f"{prefix}x", given["x"], given.get("lengths"))
        shape = (x.shape[1], x.shape[0], *x.shape[2:]) if has_steps(x) else x.shape
        found = self.output_shape(shape)
        stepwise = has_steps(x) and keeps_steps(self, shape)
        samples = Samples(x, None, lengths, stepwise, found[0] if len(found) == 3 and not stepwise else None)
        samples = samples._replace(e=as_extras(f"{prefix}e", given.get("e"), self.inputs, samples))
        if not targets:
            return samples
        samples = samples._replace(y=as_targets(f"{prefix}y", given["y"], samples), counting=counting)
        return samples._replace(weights=as_weights(f"{prefix}sample_weight", given.get("sample_weight"), samples))
