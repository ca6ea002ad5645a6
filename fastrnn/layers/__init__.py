"""Layers, which own weights. Each has a forward and directly below it its backward; numbers are dimensionless."""

from fastrnn.layers.activation import Activation
from fastrnn.layers.base import Back, Layer, Output
from fastrnn.layers.dense import Dense
from fastrnn.layers.dropout import Dropout
from fastrnn.layers.embedding import Embedding
from fastrnn.layers.gradients import RowGradient
from fastrnn.layers.normalization import LayerNormalization
from fastrnn.layers.over_time import GlobalAveragePooling1D, GlobalMaxPooling1D, LastStep, RepeatVector
from fastrnn.layers.pool import Pool
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.rnn import GRU, LSTM, RNN
from fastrnn.layers.stream import Stream

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Back",
    "Dense",
    "Dropout",
    "Embedding",
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
    "LastStep",
    "Layer",
    "LayerNormalization",
    "Output",
    "Pool",
    "Recurrent",
    "RepeatVector",
    "RowGradient",
    "Stream",
]
