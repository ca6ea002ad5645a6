"""The LSTM, GRU and RNN layers. Numbers are dimensionless."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from fastrnn.cells import Cell, find
from fastrnn.checks import boolean, finite
from fastrnn.layers.recurrent import Recurrent
from fastrnn.run import gru_cell, rnn_cell

P = ParamSpec("P")


def renamed(init: Callable[P, None]) -> Callable[P, None]:
    """Wrap a constructor so that an old keyword raises an error that names the new one."""

    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        if "weights" in options:
            raise TypeError("weights: use weight_dtype='bfloat16' or 'int8'")
        init(*args, **options)

    return checked


class LSTM(Recurrent):
    """Long short-term memory layers; `lstm_forward` gives the equations and papers.

    Calling the layer runs inference, with weights packed once; `forward` with ``training=True`` and `backward` train.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        Number of stacked layers.
    bias : bool or "input"
        True has bias_ih and bias_hh, as in PyTorch; "input" has only bias_ih, as in Keras.
    batch_first : bool
        Take and return (B, T, ...); states stay (L*D, B, H).
    dropout : float
        In training, the probability in [0, 1) that a value passed between two stacked layers is set to 0.
    bidirectional : bool
        Add a second direction, from the end of each sequence to its start, with its own weights.
    merge : {"concat", "sum", "mul", "average", None}
        How each layer combines the outputs of its two directions; None returns a pair.
    return_sequences : bool
        Whether y holds every step, (T, B, ...), or only h after each sequence's last valid step, (B, ...). The last
        step of the second direction is at the sequence's start.
    peephole : bool
        Add peephole connections from the cell state to the gates.
    dtype : float32 or float64
        Dtype of the weights, inputs and outputs.
    weight_dtype : "bfloat16" or "int8", optional
        Round the matrices to it and pack them as such, for inference with dtype float32. "bfloat16" (8 significant
        bits) halves the bytes read per step. Sums are float32; the instruction set x86-64-v4-bf16 also rounds x and h
        in the products. "int8" quarters them: each row of weights becomes integers from -127 to 127 times a scale, and
        x and h are rounded to 16-bit integers times a scale of that sequence and step. Sums are exact, so
        the results have the same bits on every instruction set. "int8" is not supported with `heads`, nor for cells
        that average over hidden units.
    recurrent_dropout : float
        In training, the probability in [0, 1) that a unit of the vector multiplied by U is set to 0; the others are
        scaled by 1 / (1 - recurrent_dropout) [1]_. One mask per sequence, for all steps and gates (Keras draws one per
        gate); h is not masked where it is used without U, as in Keras.
    zoneout : float or tuple of float
        In training, the probability in [0, 1) that a unit of a state keeps its previous value in a step [2]_: one
        number for all states, or one for each, (h, c). h is computed from c before zoneout, as in the paper; haste has
        (p, 0.0). Inference uses the expectation, p * before + (1 - p) * after. The masks are (T, B, H) for each state,
        layer and direction, and stay in memory until backward, even with `checkpoint`.
    weight_drop : float
        In training, the probability in [0, 1) that an element of U is 0 throughout a call; the others are scaled by
        1 / (1 - weight_drop) [3]_.
    proj_size : int
        P, less than H: h is projected to P units by ``weight_hr_l0`` (P, H) after every step, as in PyTorch [4]_. y and
        h are P wide, and weight_hh is (4*H, P); c stays H wide. 0 is no projection. Not supported with
        recurrent_dropout or zoneout.
    heads : int
        Number of heads, each H / heads consecutive units that read only their own part of h [5]_. The recurrent weights
        are weight_hh (4*H, H / heads), row r of each gate being that of unit r, and cost 1 / heads of the time. Not
        supported with proj_size.
    forget_bias : float, optional
        Initial bias of the forget gate: its part of bias_ih is set to this value, and of bias_hh to 0.
    initializer : {"torch", "keras"} or dict
        "torch": everything uniform within 1 / sqrt(H). "keras": W Glorot-uniform, U orthogonal, biases 0, an LSTM's
        `forget_bias` 1, and peepholes as with "torch". A dict maps any of "W", "U", "b", "b_rec" and "p" to one of
        `fastrnn.initializers`; the others are as with "torch".
    rng : int or numpy.random.Generator, optional
        For the initial weights.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid; the message names it.

    References
    ----------
    .. [1] Y. Gal, Z. Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
       NeurIPS 2016.
    .. [2] D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR 2017.
    .. [3] S. Merity, N. S. Keskar, R. Socher, "Regularizing and optimizing LSTM language models", ICLR 2018.
    .. [4] H. Sak, A. Senior, F. Beaufays, "Long short-term memory based recurrent neural network architectures for
       large vocabulary speech recognition", 2014, eq. 1-6.
    .. [5] M. Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, on the sLSTM's heads.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> lstm = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True, rng=0)
    >>> y, (h_n, c_n) = lstm(np.ones((5, 2, 3), np.float32), lengths=[5, 2])
    >>> y.shape, c_n.shape
    ((5, 2, 8), (4, 2, 4))
    >>> lstm.load_state_dict(lstm.state_dict())  # or that of a torch.nn.LSTM

    Training: the gradients of the sum of y.

    >>> y, state, cache = lstm.forward(np.ones((5, 2, 3), np.float32), training=True)
    >>> dx, dstate, grads = lstm.backward(np.ones_like(y), cache)
    >>> lstm.parameters()["weight_ih_l0"][...] -= 0.1 * grads["weight_ih_l0"]
    >>> lstm.changed()
    """

    @renamed
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: str | None = "concat",
        return_sequences: bool = True,
        peephole: bool = False,
        dtype: Any = np.float32,
        weight_dtype: str | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, ...] = 0.0,
        weight_drop: float = 0.0,
        proj_size: int = 0,
        heads: int = 1,
        forget_bias: float | None = None,
        initializer: Any = "torch",
        rng: Any = None,
    ) -> None:
        boolean("peephole", peephole)
        super().__init__(
            find("lstm", peephole=bool(peephole)),
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            merge=merge,
            return_sequences=return_sequences,
            dtype=dtype,
            weight_dtype=weight_dtype,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            weight_drop=weight_drop,
            proj_size=proj_size,
            heads=heads,
            initializer=initializer,
            rng=rng,
        )
        if forget_bias is not None:
            self._set_forget_bias(finite("forget_bias", forget_bias))
        elif self.bias and initializer == "keras":
            self._set_forget_bias(1.0)

    def _set_forget_bias(self, value: float) -> None:
        if not self.bias:
            raise ValueError(f"forget_bias: needs a bias; expected None with bias=False, got {value}")
        f = self.stack.cell.gates.index("f")
        for own in self.stack.parts:
            for key in own.keys() & {"b", "b_rec"}:
                np.split(own[key], self.stack.cell.G)[f][...] = value if key == "b" else 0


class GRU(Recurrent):
    """Gated recurrent unit layers, with the weights packed once; `gru_forward` gives the equations and papers.

    Parameters
    ----------
    reset_after : bool
        Which of the two GRU variants; True is that of PyTorch, cuDNN, Keras 3 and TensorFlow 2. Required.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge, return_sequences, dtype,
    weight_dtype, recurrent_dropout, zoneout, weight_drop, heads, initializer, rng
        As for `LSTM`.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> y, h_n = fastrnn.GRU(3, 4, reset_after=True)(np.ones((5, 2, 3), np.float32))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (1, 2, 4))
    """

    @renamed
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool | None = None,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: str | None = "concat",
        return_sequences: bool = True,
        dtype: Any = np.float32,
        weight_dtype: str | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, ...] = 0.0,
        weight_drop: float = 0.0,
        heads: int = 1,
        initializer: Any = "torch",
        rng: Any = None,
    ) -> None:
        super().__init__(
            gru_cell(reset_after),
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            merge=merge,
            return_sequences=return_sequences,
            dtype=dtype,
            weight_dtype=weight_dtype,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            weight_drop=weight_drop,
            heads=heads,
            initializer=initializer,
            rng=rng,
        )


class RNN(Recurrent):
    """Vanilla recurrent layers, with the weights packed once; `rnn_forward` gives the equation and paper.

    Parameters
    ----------
    activation : {"tanh", "relu", "sigmoid", "identity"}
        "linear" is an alias of "identity".
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge, return_sequences, dtype,
    weight_dtype, recurrent_dropout, zoneout, weight_drop, heads, initializer, rng
        As for `LSTM`.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> y, h_n = fastrnn.RNN(3, 4, activation="relu")(np.ones((5, 2, 3), np.float32))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (1, 2, 4))
    """

    @renamed
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        activation: str = "tanh",
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: str | None = "concat",
        return_sequences: bool = True,
        dtype: Any = np.float32,
        weight_dtype: str | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, ...] = 0.0,
        weight_drop: float = 0.0,
        heads: int = 1,
        initializer: Any = "torch",
        rng: Any = None,
    ) -> None:
        super().__init__(
            rnn_cell(activation),
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            merge=merge,
            return_sequences=return_sequences,
            dtype=dtype,
            weight_dtype=weight_dtype,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            weight_drop=weight_drop,
            heads=heads,
            initializer=initializer,
            rng=rng,
        )


#: Family of cells -> its layer class.
LAYERS: dict[str, type[Recurrent]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


def layer_class(cell: Cell) -> type[Recurrent]:
    return LAYERS.get(cell.family, Recurrent) if cell.builtin else Recurrent


def of_cell(cell: Cell, *sizes: int, **options: Any) -> Recurrent:
    kind: Any = layer_class(cell)
    return Recurrent(cell, *sizes, **options) if kind is Recurrent else kind(*sizes, **cell.options, **options)
