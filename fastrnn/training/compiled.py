"""The optimizer, loss and metrics of a model."""

from __future__ import annotations

from dataclasses import dataclass

from fastrnn.training.losses import Loss
from fastrnn.training.metrics import Metric
from fastrnn.training.optimizer import Optimizer


@dataclass(frozen=True)
class Compiled:
    """The arguments of `Sequential.compile`."""

    optimizer: Optimizer
    loss: Loss
    metrics: dict[str, Metric]  #: by name, as in a history
