"""`torch.nn`'s LSTM, GRU and RNN on fastrnn's kernels; ``pip install 'fastrnn[torch]'``. Dimensionless, float32 or 64.

``fastrnn.torch.LSTM`` stands where ``torch.nn.LSTM`` stood, and is one to ``isinstance``; `replace` puts it there in a
model that exists, and `restore` takes it out again.
"""

from __future__ import annotations

from fastrnn.extras import needed

needed("torch", "torch")

from fastrnn.torch.modules import GRU, LSTM, RNN, Recurrent  # noqa: E402
from fastrnn.torch.replacing import Report, replace, restore  # noqa: E402

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "Report", "replace", "restore"]
