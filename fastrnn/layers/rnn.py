"""The layers that people use. They infer; what trains is the functional interface. Numbers are dimensionless."""

from __future__ import annotations

from typing import Unpack

from fastrnn.layers.recurrent import Options, Recurrent
from fastrnn.run import gru_cell, rnn_cell


class LSTM(Recurrent):
    """Long short-term memory layers, with the weights packed once; `lstm_forward` has the equations and papers.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        Layers stacked on one another.
    bias : bool
        Whether there are bias_ih and bias_hh.
    batch_first : bool
        Take and return (B, T, ...); states stay (L*D, B, H).
    dropout : float
        Only 0.0: layers infer.
    bidirectional : bool
        A second direction from the end of each sequence to its start, with weights of its own.
    merge : {"concat", "sum", "mul", "average", None}
        What becomes of the two directions' outputs in every layer; None returns a pair.
    peephole : bool
        Let the gates see the cell state.
    dtype : float32 or float64
        Of the weights, inputs and outputs.
    weights : "bfloat16", optional
        Round W and U to bfloat16 (8 significant bits) and keep them so, half the bytes to read for each step; float32
        only. Sums are float32; instruction set x86-64-v4-bf16 rounds x and h for the products as well.
    rng : int or numpy.random.Generator, optional
        For the initial weights, uniform within 1 / sqrt(H) as PyTorch has them.

    Raises
    ------
    TypeError, ValueError
        For an option that is not one of these; the message names the argument.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> lstm = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True, rng=0)
    >>> y, (h_n, c_n) = lstm(np.ones((5, 2, 3), np.float32), lengths=[5, 2])
    >>> y.shape, c_n.shape
    ((5, 2, 8), (4, 2, 4))
    >>> lstm.load_state_dict(lstm.state_dict())  # or that of a torch.nn.LSTM
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        peephole: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__("lstm_peephole" if peephole else "lstm", input_size, hidden_size, num_layers, **options)


class GRU(Recurrent):
    """Gated recurrent unit layers, with the weights packed once; `gru_forward` has the equations and papers.

    Parameters
    ----------
    reset_after : bool
        Which of the two GRUs; True is PyTorch's, cuDNN's and Keras 3's. There is no default.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge, dtype, weights, rng
        As for `LSTM`.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> y, h_n = fastrnn.GRU(3, 4, reset_after=True)(np.ones((5, 2, 3), np.float32))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(gru_cell(reset_after), input_size, hidden_size, num_layers, **options)


class RNN(Recurrent):
    """Vanilla recurrent layers, with the weights packed once; `rnn_forward` has the equation and paper.

    Parameters
    ----------
    activation : {"tanh", "relu", "sigmoid", "identity"}
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge, dtype, weights, rng
        As for `LSTM`.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> y, h_n = fastrnn.RNN(3, 4, activation="relu")(np.ones((5, 2, 3), np.float32))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        activation: str = "tanh",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(rnn_cell(activation), input_size, hidden_size, num_layers, **options)
