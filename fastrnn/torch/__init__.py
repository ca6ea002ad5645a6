"""`torch.nn`'s LSTM, GRU and RNN on fastrnn's kernels; ``pip install 'fastrnn[torch]'``. float32 or float64, no units.

``fastrnn.torch.LSTM`` is a drop-in replacement for ``torch.nn.LSTM`` and a subclass of it; `replace` puts it into an
existing model, and `restore` undoes that.
"""

from __future__ import annotations

from fastrnn.extras import needed

needed("torch", "torch")

from fastrnn.torch.modules import GRU, LSTM, RNN, Recurrent  # noqa: E402
from fastrnn.torch.replacing import Report, replace, restore  # noqa: E402

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "Report", "replace", "restore"]
