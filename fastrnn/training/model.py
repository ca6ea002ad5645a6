"""A model: layers with a loss, metrics and an optimizer; evaluation, prediction and files. `Sequential` trains it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from fastrnn.checks import by_name, positive
from fastrnn.layers.base import Layer, Shape
from fastrnn.training import batches, weight_files
from fastrnn.training.batches import ArraySource, Batch, IterableSource, Samples, Source
from fastrnn.training.chain import Chain, keeps_steps
from fastrnn.training.losses import LOSSES, Judged, Loss
from fastrnn.training.metrics import Metric, metric_name
from fastrnn.training.metrics import metric as metric_of
from fastrnn.training.optimizers import OPTIMIZERS, Optimizer
from fastrnn.training.padding import has_steps
from fastrnn.training.targets import ClassWeights, checked_class_weights
from fastrnn.types import Array


@dataclass(frozen=True)
class Compiled:
    """The arguments of `Sequential.compile`."""

    optimizer: Optimizer
    loss: Loss
    metrics: dict[str, Metric]  #: by name, as in a history


class Model(Chain):
    """A Chain with compile, predict, evaluate and save; see `Sequential`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self._mark: bytes | None = None  # identifies the model, its copies and its pickles to optimizers; `fit` sets it
        self._compiled: Compiled | None = None

    def compile(
        self,
        optimizer: str | Optimizer = "adam",
        loss: str | Loss = "mse",
        metrics: Sequence[str | Metric | Callable[[Array, Array], Any]] = (),
    ) -> None:
        """Set the optimizer, loss and metrics for training.

        Parameters
        ----------
        optimizer : {"adam", "adamw", "rmsprop", "sgd"} or Optimizer
            An Optimizer must not have trained another model; if it has trained this one, `fit` continues from its
            state.
        loss : {"mse", "binary_crossentropy", "categorical_crossentropy"} or Loss
        metrics : list of {"accuracy", "binary_accuracy", "mae"}, Metric or functions
            Reported besides the loss. A function ``f(y_true, y_pred)``, reported under its own name, gets the N steps
            that count of a batch, or of a part of one (see `fit`), (N, K) each, or (N,) classes, and returns one number
            per step, (N,), or per element, or a single number, the mean of these steps.

        Raises
        ------
        TypeError, ValueError
            For any other argument, or the optimizer of another model.
        """
        if isinstance(metrics, str) or not isinstance(metrics, Iterable):
            raise TypeError(f"metrics: expected a list, got {metrics!r}")
        watched = [metric_of(which) for which in metrics]
        named: dict[str, Metric] = {}
        for metric in watched:
            if named.setdefault(metric_name(metric), metric) != metric:
                raise ValueError(f"metrics: expected one of each name, got two of {metric_name(metric)!r}")
        chosen = by_name("optimizer", optimizer, Optimizer, OPTIMIZERS)
        chosen.expect_of(self._mark)
        self._compiled = Compiled(chosen, by_name("loss", loss, Loss, LOSSES), named)

    def take_optimizer(self) -> None:
        """Claim the optimizer of `compile`, which then cannot train another model."""
        self._mark = self._mark or os.urandom(16)
        self.compiled.optimizer.belong(self._mark, self.parameters())

    @property
    def compiled(self) -> Compiled:
        """The arguments of `compile`."""
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
        """Compute the loss and the metrics over all samples; `batch_size` affects them only through rounding.

        Parameters
        ----------
        x, y, batch_size, lengths, sample_weight, e, class_weight, ignore_index, threads
            As for `fit`.
        steps : int, optional
            If x yields batches: use only this many, for instance if it is endless.

        Returns
        -------
        dict of float
            "loss" and the metrics, by name.

        Raises
        ------
        RuntimeError
            Before `compile`.
        TypeError, ValueError
            For a wrong argument.
        """
        compiled = self.compiled
        check = TargetCheck(self, compiled.loss, threads)
        given = {"x": x, "y": y, "lengths": lengths, "sample_weight": sample_weight, "e": e}
        class_weights = checked_class_weights(class_weight, ignore_index)
        source = self._source(given, batch_size, class_weights, check=check, steps=("steps", steps))
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
    ) -> Any:
        """Predict y for all samples, in order; bit-identical for every `batch_size` (except with the NumPy backend).

        Parameters
        ----------
        x, batch_size, lengths, e, threads
            As for `fit`. Batches may also be arrays x in place of (x, y), whose y is ignored; a list is read as
            sequences here.
        steps : int, optional
            As for `evaluate`.

        Returns
        -------
        (N, T, K) array, 0 past the lengths, or (N, K)
            If x yields batches, T is that of the longest. For a list of sequences, or batches of such lists, a list of
            N arrays (T_n, K) in place of (N, T, K).

        Raises
        ------
        TypeError, ValueError
            For a wrong argument.
        """
        given = {"x": x, "lengths": lengths, "e": e}
        source = self._source(given, batch_size, ClassWeights(), check=None, steps=("steps", steps))
        return source.predictions(lambda part: predicted(self, part, threads))

    def summary(self) -> str:
        """Return a table of the layers, their output shapes (batch-first) and parameter counts.

        Returns
        -------
        str
            For printing.

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
        rows = [("Layer", "Output shape", "Parameters")]
        total, trained, shape = 0, 0, self.input_shape
        for i, layer in enumerate(self.layers):
            shape = layer.output_shape(shape)
            count = sum(p.size for p in layer.parameters().values())
            total += count
            trained += sum(p.size for p in layer.trainable_parameters().values())
            rows.append((f"{i} {type(layer).__name__}", str(samples_first(shape)), f"{count:,}"))
        rows.append(("Total" if trained == total else f"Total, {total - trained:,} frozen", "", f"{total:,}"))
        return table(rows, (2,))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write layers, options and weights to a safetensors file, which `fastrnn.load` reads.

        The same as ``fastrnn.save(path, model)``. The arguments of `compile` are not stored.

        Parameters
        ----------
        path : path

        Raises
        ------
        TypeError
            If the model or a layer is of a class outside fastrnn; `save_weights` accepts any class.
        OSError
            If the file cannot be written; FileNotFoundError if the directory does not exist.
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
        weight_files.save_model(path, self)

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write only the weights to a safetensors file, atomically; `load_weights` reads them.

        Parameters
        ----------
        path : path

        Raises
        ------
        OSError
            If the file cannot be written; FileNotFoundError if the directory does not exist.
        ImportError
            If safetensors is not installed.
        """
        weight_files.save_weights(path, self)

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Load the weights from a file of `save_weights`, `save` or a `Checkpoint`.

        Parameters
        ----------
        path : path

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        KeyError, TypeError, ValueError
            If it is another kind of file, or has other layers, sizes or dtypes. On an error the model is unchanged.
        ImportError
            If safetensors is not installed.
        """
        weight_files.load_weights(path, self)

    def load_keras_weights(self, path: str | os.PathLike[str]) -> None:
        """Load the weights of a Keras model with the same layers, from a file of its ``save_weights``.

        Weights are assigned to layers in order; one layer with ``num_layers`` takes those of as many Keras layers.
        Files of Keras 1 and 2 (``.h5``) store the model's order. Those of Keras 2 and 3 (``.weights.h5``) number the
        layers within each class, so shapes must tell several classes (such as Dense and TimeDistributed) or several
        models apart. If Keras has one bias and the layer two, the second is set to zeros.

        Parameters
        ----------
        path : path
            The file of a whole model works too.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        TypeError, ValueError
            If it is another kind of file, has other layers, sizes or dtypes, or the assignment is ambiguous. On an
            error the model is unchanged.
        ImportError
            If h5py is not installed.

        Examples
        --------
        >>> import fastrnn
        >>> model = fastrnn.Sequential([fastrnn.LSTM(3, 8, return_sequences=False), fastrnn.Dense(8, 2)])
        >>> model.load_keras_weights("model.weights.h5")  # doctest: +SKIP
        """
        from fastrnn.convert import keras_weights_only  # imported here because models do not need its imports

        keras_weights_only.load(path, self)

    def _source(
        self,
        given: dict[str, Any],
        batch_size: int,
        class_weights: ClassWeights,
        *,
        check: Callable[[str, Samples], None] | None,
        steps: tuple[str, int | None],
        prefix: str = "",
    ) -> Source:
        """Return the source of batches; they have targets if `check` is given, which is called with y's name."""
        x, size = given["x"], positive("batch_size", batch_size)
        argument, number = steps
        number = None if number is None else positive(argument, number)
        if not batches.gives_batches(x) or (check is None and isinstance(x, list)):
            if number is not None:
                raise ValueError(f"{argument}: expected None if {prefix}x is an array or a list, got {number}")
            samples = self._samples(given, class_weights, prefix, check is not None)
            if check is not None:
                check(f"{prefix}y", samples)
            return ArraySource(samples, size)
        for name, value in given.items():
            if name != "x" and value is not None:
                raise ValueError(f"{prefix}{name}: expected None, because x yields batches with their own {name}")

        def read(batch: str, given: Any) -> Samples:
            name, targets = f"{prefix}{batch}", check is not None
            samples = self._samples(batches.fields(name, given, targets), class_weights, f"{name} ", targets)
            if check is not None:
                check(f"{name} y", samples)
            return samples

        return IterableSource(f"{prefix}x", x, read, number, argument)

    def _samples(self, given: dict[str, Any], class_weights: ClassWeights, prefix: str, targets: bool) -> Samples:
        """Return checked samples; the loss checks the sizes of targets."""
        x, lengths = batches.as_inputs(f"{prefix}x", given["x"], given.get("lengths"))
        shape = (x.shape[1], x.shape[0], *x.shape[2:]) if has_steps(x) else x.shape
        found = self.output_shape(shape)
        stepwise = has_steps(x) and keeps_steps(self, shape)
        samples = Samples(x, None, lengths, stepwise, found[0] if len(found) == 3 and not stepwise else None)
        samples = samples._replace(e=batches.as_extras(f"{prefix}e", given.get("e"), self.inputs, samples))
        if not targets:
            return samples
        y = batches.as_targets(f"{prefix}y", given["y"], samples)
        samples = samples._replace(y=y, class_weights=class_weights)
        weights = batches.as_weights(f"{prefix}sample_weight", given.get("sample_weight"), samples)
        return samples._replace(weights=weights)


class Totals:
    """Losses and metrics, summed over batches so that their means are over all samples."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._sums = {name: (0.0, 0.0) for name in ("loss", *compiled.metrics)}
        self._empty = True

    def add(self, judged: Judged, prediction: Array, batch: Batch) -> None:
        self._empty &= batch.empty
        self._add("loss", judged.loss * judged.weight, judged.weight)
        for name, metric in self._compiled.metrics.items():
            self._add(name, *metric(prediction, batch.y, batch.mask, batch.weights))

    def _add(self, name: str, total: float, count: float) -> None:
        so_far, counted = self._sums[name]
        self._sums[name] = so_far + total, counted + count

    def expect_some(self, name: str) -> None:
        """Raise ValueError if no target is valid."""
        if not self._empty and not self._sums["loss"][1]:
            raise ValueError(f"{name}: expected at least one valid target; all are NaN, ignored, or have weight zero")

    def means(self, prefix: str = "") -> dict[str, float]:
        return {prefix + name: total / (count or 1) for name, (total, count) in self._sums.items()}


class TargetCheck:
    """Check samples against a model and its loss: run one sample through it, once, and check all targets."""

    def __init__(self, model: Chain, loss: Loss, threads: int | None, truncate: int | None = None) -> None:
        self._model, self._loss, self._threads, self._truncate = model, loss, threads, truncate
        self._tried: Array | None = None

    def __call__(self, name: str, samples: Samples) -> None:
        if self._tried is None:
            first = next(samples.batch(slice(0, 1)).windows(self._truncate))
            self._tried = predicted(self._model, first, self._threads)
        K, dtype, axes = self._tried.shape[-1], self._tried.dtype, len(samples.leading)
        samples.class_weights.expect_of(K, self._loss.classes, self._loss.probabilities)
        for y, weights in samples.targets():
            self._loss.expect_targets(name, y, (*y.shape[:axes], K), dtype, weights)


def evaluate(model: Chain, compiled: Compiled, source: Source, threads: int | None, name: str = "y") -> Totals:
    totals = Totals(compiled)
    for part in chain.from_iterable(source.epoch(None)):
        y = predicted(model, part, threads)
        totals.add(compiled.loss.judge(y, part.y, part.mask, part.weights), y, part)
    totals.expect_some(name)
    return totals


def predicted(model: Chain, batch: Batch, threads: int | None) -> Array:
    y: Array = model.run_forward(batch.x, lengths=batch.lengths, threads=threads, e=batch.e).y
    return y


def samples_first(shape: Shape) -> Shape:
    return (shape[1], shape[0], *shape[2:]) if len(shape) == 3 else shape


def table(rows: Sequence[Sequence[str]], numbers: Sequence[int], total: bool = True) -> str:
    """Format rows of equal length: first a header, last a total if `total`; columns in `numbers` align right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([f"{text:{'>' if i in numbers else ''}{wide[i]}}" for i, text in enumerate(row)]).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    lines[1:1] = [rule]
    lines[-1:] = [rule, lines[-1]] if total else lines[-1:]
    return "\n".join(lines)
