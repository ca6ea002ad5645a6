"""What trains a model: losses, metrics, optimizers, schedules. Numbers are dimensionless."""

from fastrnn.training.clipping import clip_by_norm, clip_by_value
from fastrnn.training.losses import BinaryCrossentropy, CategoricalCrossentropy, Loss, MeanSquaredError
from fastrnn.training.metrics import Accuracy, BinaryAccuracy, MeanAbsoluteError, Metric
from fastrnn.training.optimizer import Optimizer
from fastrnn.training.optimizers import SGD, Adam, AdamW, RMSprop
from fastrnn.training.schedules import CosineDecay, ExponentialDecay, PiecewiseConstant

__all__ = [
    "SGD",
    "Accuracy",
    "Adam",
    "AdamW",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "CosineDecay",
    "ExponentialDecay",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Optimizer",
    "PiecewiseConstant",
    "RMSprop",
    "clip_by_norm",
    "clip_by_value",
]
