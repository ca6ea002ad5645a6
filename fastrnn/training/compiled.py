"""How a model is trained and judged."""

from __future__ import annotations

from dataclasses import dataclass

from fastrnn.training.losses import Loss
from fastrnn.training.metrics import Metric
from fastrnn.training.optimizer import Optimizer


@dataclass(frozen=True)
class Compiled:
    """What `Sequential.compile` was given."""

    optimizer: Optimizer
    loss: Loss
    metrics: dict[str, Metric]  #: by the names that a history has
