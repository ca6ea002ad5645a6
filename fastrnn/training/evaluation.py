"""What a model makes of samples, batch by batch, and how good that is."""

from __future__ import annotations

import numpy as np

from fastrnn.cells import Array
from fastrnn.training.batches import Batch, Samples, turned
from fastrnn.training.chain import Chain
from fastrnn.training.compiled import Compiled
from fastrnn.training.losses import Loss


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


def expect_targets(name: str, samples: Samples, prediction: Array, loss: Loss) -> None:
    """That all targets go with what the model predicts; `prediction` is that of some samples, time-major."""
    assert samples.y is not None
    shape = *samples.x.shape[: prediction.ndim - 1], prediction.shape[-1]
    loss.expect_targets(name, samples.y, shape, prediction.dtype)


def evaluate(model: Chain, compiled: Compiled, samples: Samples, batch_size: int, threads: int | None) -> Totals:
    totals = Totals(compiled)
    for number, batch in enumerate(samples.batches(batch_size)):
        y = model.run_forward(batch.x, lengths=batch.lengths, threads=threads).y
        if number == 0:
            expect_targets("y", samples, y, compiled.loss)
        totals.add(compiled.loss(y, batch.y, batch.mask), y, batch)
    return totals


def predict(model: Chain, samples: Samples, batch_size: int, threads: int | None) -> Array:
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
