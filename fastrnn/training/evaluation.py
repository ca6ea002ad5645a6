"""What a model makes of samples, batch by batch, and how good that is."""

from __future__ import annotations

from fastrnn.cells import Array
from fastrnn.training.batches import Batch, Samples, zeros_after
from fastrnn.training.chain import Chain
from fastrnn.training.compiled import Compiled
from fastrnn.training.losses import Loss
from fastrnn.training.sources import Source


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


class Fits:
    """That samples go with a model and its loss: one of them is tried, once, and all targets are looked at."""

    def __init__(self, model: Chain, loss: Loss, threads: int | None, truncate: int | None = None) -> None:
        self._model, self._loss, self._threads, self._truncate = model, loss, threads, truncate
        self._tried: Array | None = None

    def __call__(self, name: str, samples: Samples) -> None:
        if self._tried is None:
            first = next(samples.batch(slice(0, 1)).windows(self._truncate))
            self._tried = self._model.run_forward(first.x, lengths=first.lengths, threads=self._threads).y
        steps, K, dtype = self._tried.ndim - 1, self._tried.shape[-1], self._tried.dtype
        for y in samples.targets():
            self._loss.expect_targets(name, y, (*y.shape[:steps], K), dtype)


def evaluate(model: Chain, compiled: Compiled, source: Source, threads: int | None) -> Totals:
    totals = Totals(compiled)
    for batch in source.epoch(None):
        y = model.run_forward(batch.x, lengths=batch.lengths, threads=threads).y
        totals.add(compiled.loss(y, batch.y, batch.mask), y, batch)
    return totals


def predict(model: Chain, source: Source, threads: int | None) -> Array:
    """Samples first, 0 past the lengths."""
    return source.joined(prediction(model, batch, threads) for batch in source.epoch(None))


def prediction(model: Chain, batch: Batch, threads: int | None) -> Array:
    y: Array = model.run_forward(batch.x, lengths=batch.lengths, threads=threads).y
    if not batch.stepwise:
        return y
    y = y.swapaxes(0, 1)
    return y if batch.lengths is None else zeros_after(y, batch.lengths)
