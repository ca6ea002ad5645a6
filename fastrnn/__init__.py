"""Recurrent networks on a CPU, at the speed the hardware allows, with nothing but NumPy installed."""

from typing import TYPE_CHECKING

from fastrnn import initializers
from fastrnn.backends import config, get_num_threads, set_num_threads, show_config, use_backend, use_isa
from fastrnn.convert import (
    from_gates,
    from_keras,
    from_onnx,
    from_torch,
    load,
    save,
    to_keras,
    to_onnx,
    to_torch,
)
from fastrnn.functional import gru_backward, gru_forward, lstm_backward, lstm_forward, rnn_backward, rnn_forward
from fastrnn.layers import GRU, LSTM, RNN, Activation, Dense, Dropout, Embedding, Stream
from fastrnn.results import Cache, GRUGrads, GRUResult, LSTMGrads, LSTMResult, RNNGrads, RNNResult
from fastrnn.steps import gru_step, lstm_step, rnn_step
from fastrnn.training import Sequential

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """The version, when it is asked for: what finds it out takes as long to import as half of fastrnn."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("fastrnn")
        except PackageNotFoundError:  # run from a checkout
            return "0+unknown"


__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Cache",
    "Dense",
    "Dropout",
    "Embedding",
    "GRUGrads",
    "GRUResult",
    "LSTMGrads",
    "LSTMResult",
    "RNNGrads",
    "RNNResult",
    "Sequential",
    "Stream",
    "__version__",
    "config",
    "from_gates",
    "from_keras",
    "from_onnx",
    "from_torch",
    "get_num_threads",
    "gru_backward",
    "gru_forward",
    "gru_step",
    "initializers",
    "load",
    "lstm_backward",
    "lstm_forward",
    "lstm_step",
    "rnn_backward",
    "rnn_forward",
    "rnn_step",
    "save",
    "set_num_threads",
    "show_config",
    "to_keras",
    "to_onnx",
    "to_torch",
    "use_backend",
    "use_isa",
]
