"""Predict and evaluate samples batch by batch."""

from __future__ import annotations

from fastrnn.cells import Array
from fastrnn.training.batches import Batch, Samples, turned, zeros_after
from fastrnn.training.chain import Chain
from fastrnn.training.compiled import Compiled
from fastrnn.training.losses import Judged, Loss
from fastrnn.training.sources import Source


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
        """Raise ValueError if no target counts."""
        if not self._empty and not self._sums["loss"][1]:
            raise ValueError(f"{name}: expected a target that counts; each is NaN, ignored, or of weight zero")

    def means(self, prefix: str = "") -> dict[str, float]:
        return {prefix + name: total / (count or 1) for name, (total, count) in self._sums.items()}


class Fits:
    """Check samples against a model and its loss: run one sample through it, once, and check all targets."""

    def __init__(self, model: Chain, loss: Loss, threads: int | None, truncate: int | None = None) -> None:
        self._model, self._loss, self._threads, self._truncate = model, loss, threads, truncate
        self._tried: Array | None = None

    def __call__(self, name: str, samples: Samples) -> None:
        if self._tried is None:
            first = next(samples.batch(slice(0, 1)).windows(self._truncate))
            self._tried = self._model.run_forward(first.x, lengths=first.lengths, threads=self._threads, e=first.e).y
        K, dtype, steps = self._tried.shape[-1], self._tried.dtype, samples.leading[1:]
        samples.counting.expect_of(K, self._loss.classes, self._loss.probabilities)
        for y, weights in samples.targets():
            self._loss.expect_targets(name, y, (len(y), *steps, K), dtype, weights)


def evaluate(model: Chain, compiled: Compiled, source: Source, threads: int | None, name: str = "y") -> Totals:
    totals = Totals(compiled)
    for batch in source.epoch(None):
        y = model.run_forward(batch.x, lengths=batch.lengths, threads=threads, e=batch.e).y
        totals.add(compiled.loss.judge(y, batch.y, batch.mask, batch.weights), y, batch)
    totals.expect_some(name)
    return totals


def predict(model: Chain, source: Source, threads: int | None) -> Array:
    """Return predictions, batch-first, 0 past the lengths."""
    return source.joined(prediction(model, batch, threads) for batch in source.epoch(None))


def prediction(model: Chain, batch: Batch, threads: int | None) -> Array:
    y: Array = turned(model.run_forward(batch.x, lengths=batch.lengths, threads=threads, e=batch.e).y)
    return y if batch.mask is None else zeros_after(y, batch.mask)
