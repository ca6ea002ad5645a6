"""Training: `Sequential`, losses, metrics, optimizers, schedules, callbacks. Numbers are dimensionless."""

from fastrnn.training.callbacks import Checkpoint, EarlyStopping, ReduceLROnPlateau
from fastrnn.training.clipping import clip_by_norm, clip_by_value
from fastrnn.training.fitting import Callback, History, Training
from fastrnn.training.losses import BinaryCrossentropy, CategoricalCrossentropy, Loss, MeanSquaredError
from fastrnn.training.metrics import Accuracy, BinaryAccuracy, MeanAbsoluteError, Metric
from fastrnn.training.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from fastrnn.training.padding import from_mask, pad_sequences
from fastrnn.training.schedules import CosineDecay, ExponentialDecay, PiecewiseConstant
from fastrnn.training.sequential import Sequential

__all__ = [
    "SGD",
    "Accuracy",
    "Adam",
    "AdamW",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "Callback",
    "CategoricalCrossentropy",
    "Checkpoint",
    "CosineDecay",
    "EarlyStopping",
    "ExponentialDecay",
    "History",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Optimizer",
    "PiecewiseConstant",
    "RMSprop",
    "ReduceLROnPlateau",
    "Sequential",
    "Training",
    "clip_by_norm",
    "clip_by_value",
    "from_mask",
    "pad_sequences",
]
