"""Fast recurrent networks on a CPU, as functions, layers and models; at run time they need only NumPy."""

from typing import TYPE_CHECKING, Any

from fastrnn import initializers
from fastrnn.backends import config, get_num_threads, set_num_threads, show_config, use_backend, use_isa
from fastrnn.defined import cell
from fastrnn.functional import gru_backward, gru_forward, lstm_backward, lstm_forward, rnn_backward, rnn_forward
from fastrnn.layers import (
    GRU,
    LSTM,
    RNN,
    Activation,
    Dense,
    Dropout,
    Embedding,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    LastStep,
    LayerNormalization,
    Pool,
    Recurrent,
    RepeatVector,
    Stream,
)
from fastrnn.results import Cache, GRUGrads, GRUResult, LSTMGrads, LSTMResult, RNNGrads, RNNResult
from fastrnn.steps import gru_step, lstm_step, rnn_step

if TYPE_CHECKING:
    from fastrnn import catalogue as catalogue
    from fastrnn import convert as convert
    from fastrnn import training as training
    from fastrnn.convert import (
        from_equinox,
        from_flax,
        from_gates,
        from_haiku,
        from_keras,
        from_nam,
        from_onnx,
        from_rtneural,
        from_torch,
        load,
        quantize,
        save,
        to_c,
        to_keras,
        to_onnx,
        to_torch,
    )
    from fastrnn.training import Sequential

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        """Import rarely used, slow modules on first access."""
        from importlib import import_module

        if name == "__version__":
            return import_module("fastrnn.version").version()
        if name in ("catalogue", "convert", "training"):
            return import_module(f"fastrnn.{name}")
        if name in __all__:
            return getattr(import_module("fastrnn.training" if name == "Sequential" else "fastrnn.convert"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
    "LSTMGrads",
    "LSTMResult",
    "LastStep",
    "LayerNormalization",
    "Pool",
    "RNNGrads",
    "RNNResult",
    "Recurrent",
    "RepeatVector",
    "Sequential",
    "Stream",
    "__version__",
    "cell",
    "config",
    "from_equinox",
    "from_flax",
    "from_gates",
    "from_haiku",
    "from_keras",
    "from_nam",
    "from_onnx",
    "from_rtneural",
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
    "quantize",
    "rnn_backward",
    "rnn_forward",
    "rnn_step",
    "save",
    "set_num_threads",
    "show_config",
    "to_c",
    "to_keras",
    "to_onnx",
    "to_torch",
    "use_backend",
    "use_isa",
]
