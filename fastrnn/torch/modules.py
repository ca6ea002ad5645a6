"""`torch.nn`'s recurrent modules, computed by fastrnn."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from fastrnn.cells import Cell, find
from fastrnn.checks import boolean, expect_heads
from fastrnn.layers.options import checked_heads, expect_projects, stems
from fastrnn.run import RNN_ACTIVATIONS, gru_cell, rnn_cell
from fastrnn.torch.recurrent import Base


class LSTM(Base, nn.LSTM):
    """`torch.nn.LSTM`, computed by fastrnn; `fastrnn.lstm_forward` has the equations and papers.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for `torch.nn.LSTM`; with the same ``torch.manual_seed``, initial weights and dropout are identical to its.
        CPU only, float32 or float64.
    proj_size : int
        P, less than H: h is projected to P units by ``weight_hr_l0`` (P, H) after every step. y and h have P units, and
        weight_hh is (4*H, P); c keeps H units. 0 means no projection.
    peephole : bool
        Add peephole connections from the cell state to the gates i, f, o, with weights ``peephole_l0`` (3*H,) and so on
        for each layer and direction; their initial values are uniform in +-1/sqrt(H).

    Raises
    ------
    TypeError, ValueError
        For an invalid option.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> lstm = fastrnn.torch.LSTM(3, 4, num_layers=2, bidirectional=True)
    >>> y, (h_n, c_n) = lstm(torch.ones(5, 2, 3))
    >>> y.shape, c_n.shape
    (torch.Size([5, 2, 8]), torch.Size([4, 2, 4]))
    >>> y.sum().backward()
    >>> lstm.weight_ih_l0.grad.shape
    torch.Size([16, 3])
    >>> lstm.load_state_dict(torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True).state_dict())
    <All keys matched successfully>
    """

    peephole = False
    _cells: ClassVar = {peephole: find("lstm", peephole=peephole) for peephole in (False, True)}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        peephole: bool = False,
    ) -> None:
        boolean("peephole", peephole)
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        if peephole:
            self.peephole = True
            self._add_peepholes()

    def _add_peepholes(self) -> None:
        for names in self._all_weights:
            name = names[0].replace("weight_ih", "peephole")
            p = self.weight_hh_l0.new_empty(3 * self.hidden_size)  # type: ignore[operator]  # a Parameter
            self.register_parameter(name, nn.Parameter(nn.init.uniform_(p, -(bound := self.hidden_size**-0.5), bound)))
            names.append(name)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    @property
    def _cell(self) -> Cell:
        return self._cells[self.peephole]

    def extra_repr(self) -> str:
        return super().extra_repr() + (", peephole=True" if self.peephole else "")


def expect_no_projection(proj_size: int) -> None:
    if proj_size:
        raise ValueError(f"proj_size: expected 0 (only an LSTM has it, as in torch.nn), got {proj_size}")


class GRU(Base, nn.GRU):
    """`torch.nn.GRU`, computed by fastrnn; `fastrnn.gru_forward` has the equations and papers.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for `LSTM`.
    proj_size : int
        0; only an LSTM has projections, as in `torch.nn`.
    reset_after : bool
        Which of the two GRUs: True for `torch.nn.GRU`'s, False for the paper's and ONNX's default.

    Raises
    ------
    TypeError, ValueError
        For an invalid option.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> y, h_n = fastrnn.torch.GRU(3, 4, batch_first=True)(torch.ones(2, 5, 3))
    >>> y.shape, h_n.shape
    (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """

    reset_after = True
    _cells: ClassVar = {after: find("gru", reset_after=after) for after in (False, True)}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int = 0,
        reset_after: bool = True,
    ) -> None:
        gru_cell(reset_after)
        expect_no_projection(proj_size)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        if not reset_after:
            self.reset_after = False

    @property
    def _cell(self) -> Cell:
        return self._cells[self.reset_after]

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class RNN(Base, nn.RNN):
    """`torch.nn.RNN`, computed by fastrnn; `fastrnn.rnn_forward` has the equation and paper.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for `LSTM`.
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"}
        The last two are not in `torch.nn`; "linear" is an alias of "identity".
    proj_size : int
        0; only an LSTM has projections, as in `torch.nn`.

    Raises
    ------
    TypeError, ValueError
        For an invalid option.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> y, h_n = fastrnn.torch.RNN(3, 4, nonlinearity="sigmoid")(torch.ones(5, 2, 3))
    >>> y.shape, h_n.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    _cells: ClassVar = {activation: find("rnn", activation=activation) for activation in RNN_ACTIVATIONS}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int = 0,
    ) -> None:
        cell = rnn_cell(nonlinearity, "nonlinearity")
        expect_no_projection(proj_size)
        super().__init__(
            "RNN_TANH",
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity: str = cell.options["activation"]
        self.mode = cell.name.upper()

    @property
    def _cell(self) -> Cell:
        return self._cells[self.nonlinearity]

    def extra_repr(self) -> str:
        told = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"
        return super().extra_repr() + told


class Recurrent(Base):
    """Recurrent layers of any cell, as a module like `torch.nn.LSTM`.

    Parameters
    ----------
    cell : Cell
        From `fastrnn.cell`, or one of `fastrnn.cells.CELLS`.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        As for `LSTM`; ``proj_size`` only for a cell that reads h in exactly one product.
    heads : int
        As for `fastrnn.LSTM`: weight_hh has H / heads columns.

    Raises
    ------
    TypeError, ValueError
        For a non-cell, and for a ``proj_size`` or ``heads`` that the cell does not support; the message names the
        argument.

    Notes
    -----
    Weights are named as for `LSTM`; a cell's own parameters are ``parameter_l0`` (P*H,). States are a tensor, or a
    tuple in the cell's order. If the cell has extra inputs, pass them as ``e``, a dict.

    Examples
    --------
    >>> import torch, fastrnn, fastrnn.torch
    >>> from fastrnn.cells import sigmoid, tanh
    >>> @fastrnn.cell(gates="zh", states="h")
    ... def min_gru(x, U, s):
    ...     return (1 - sigmoid(x.z)) * s.h + sigmoid(x.z) * tanh(x.h)
    >>> y, h_n = fastrnn.torch.Recurrent(min_gru, 3, 4, num_layers=2)(torch.ones(5, 2, 3))
    >>> y.shape, h_n.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        heads: int = 1,
    ) -> None:
        if not isinstance(cell, Cell):
            raise TypeError(f"cell: expected a cell made by fastrnn.cell, got {cell!r:.80}")
        if proj_size:
            expect_projects(cell)
        super().__init__(
            "RNN_TANH",
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        self.cell, self.mode = cell, cell.key
        self.heads = checked_heads(heads, hidden_size, proj_size)
        expect_heads(cell, self.heads)
        self._resize()

    def _resize(self) -> None:
        """Replace the parameters of a plain RNN by those of this cell."""
        H, cell, bound = self.hidden_size, self.cell, self.hidden_size**-0.5
        inputs, products = cell.G * H, len(cell.products) * H
        rows = {"weight_ih": inputs, "weight_hh": products, "bias_ih": inputs, "bias_hh": products}
        rows["weight_hr"] = self.proj_size
        for names in self._all_weights:
            plain: dict[str, Any] = {name: self._parameters.pop(name) for name in names}
            like = plain[names[0]].detach()
            shapes = {name: (rows[name.partition("_l")[0]], *a.shape[1:]) for name, a in plain.items()}
            shapes[names[1]] = (products, self.proj_size or H // self.heads)
            shapes[names[0].replace("weight_ih", stems(cell)["p"])] = (len(cell.parameters) * H,)
            names[:] = [name for name, shape in shapes.items() if shape[0]]
            for name in names:
                new = nn.init.uniform_(like.new_empty(shapes[name]), -bound, bound)
                if name.startswith(stems(cell)["p"]):
                    cell.begin(new)
                self.register_parameter(name, nn.Parameter(new))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    @property
    def _cell(self) -> Cell:
        return self.cell

    def extra_repr(self) -> str:
        return f"{self.cell.name}, {super().extra_repr()}" + (f", heads={self.heads}" if self.heads > 1 else "")
