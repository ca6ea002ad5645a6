"""PyTorch's recurrent modules and their state_dicts. The gates, names and shapes are ours already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn.cells import Array, Cell, find
from fastrnn.checks import as_array, boolean, named_cell
from fastrnn.convert.stack import Arrays, recurrent, stacked
from fastrnn.extras import needed
from fastrnn.frameworks import MODES, PYTORCH
from fastrnn.layers.recurrent import Recurrent

#: Names of what parametrizations, pruning and norms keep in the place of a weight.
PARAMETRIZED = re.compile(r"parametrizations\.|(weight|bias)_[ih][hr]\w*_(orig|g|v)$")


def from_torch(
    module_or_state_dict: Any, *, cell: str | None = None, prefix: str = "", batch_first: bool | None = None
) -> Recurrent:
    """A layer with the weights, and the options, of a PyTorch module.

    Parameters
    ----------
    module_or_state_dict : torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell or GRUCell, or the state_dict of one
        Also those of `fastrnn.torch`. A state_dict may hold tensors or arrays; sizes, layers, directions
        and biases are read off it.
    cell : {"lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity"}
        For a state_dict, which does not say; PyTorch's GRU is "gru_after". None with a module.
    prefix : str
        Of the names of a larger model's state_dict that are meant: "encoder.lstm.", say.
    batch_first : bool, optional
        Instead of the module's own; False for a state_dict and for a cell.

    Returns
    -------
    RNN, GRU or LSTM

    Raises
    ------
    TypeError
        For another kind of module, or weights that are neither float32 nor float64.
    ValueError
        For names and shapes that do not fit, and for what parametrizations keep; the message names them.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> rng = np.random.default_rng(0)
    >>> state = {"weight_ih_l0": rng.random((16, 3)), "weight_hh_l0": rng.random((16, 4))}
    >>> fastrnn.from_torch(state, cell="lstm")  # or fastrnn.from_torch(torch.nn.LSTM(3, 4))
    LSTM(3, 4, bias=False, dtype=float64) [lstm]
    """
    if batch_first is not None:
        boolean("batch_first", batch_first)
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {prefix!r:.80}")
    if isinstance(module_or_state_dict, Mapping):
        state = {
            name.removeprefix(prefix): as_numpy(name, value)
            for name, value in module_or_state_dict.items()
            if isinstance(name, str) and name.startswith(prefix)
        }
        if parametrized := next(filter(PARAMETRIZED.match, state), None):
            raise ValueError(f"state_dict: {parametrized!r} is what a weight is computed from; give the module itself")
        own = named_cell(cell)
        options: dict[str, Any] = {"batch_first": bool(batch_first)}
    else:
        if cell is not None or prefix:
            raise ValueError("cell, prefix: a module says itself what it is; expected them with a state_dict alone")
        own, state, options = read(module_or_state_dict)
        if batch_first is not None:
            options["batch_first"] = batch_first
    if "weight_ih" in state:  # of a cell, which has one layer and does not number it
        state = {f"{name}_l0": value for name, value in state.items()}
    return stacked("state_dict", own, state, **options)


def read(module: Any) -> tuple[Cell, Arrays, dict[str, Any]]:
    """A module's cell, its parameters as they are now, however parametrized, and its options."""
    nn = needed("torch", "torch").nn
    if isinstance(module, nn.RNNBase):
        if module.mode not in MODES:
            raise TypeError(f"module: expected torch.nn.RNN, GRU or LSTM, got {type(module).__name__}")
        family, activation = MODES[module.mode]
        ways = ("", "_reverse") if module.bidirectional else ("",)
        ends = [f"_l{layer}{way}" for layer in range(module.num_layers) for way in ways]
        dropout = module.dropout if module.num_layers > 1 else 0.0  # PyTorch has it between layers too
        options = {"batch_first": module.batch_first, "dropout": dropout}
    elif isinstance(module, nn.RNNCell | nn.LSTMCell | nn.GRUCell):
        family = next(f for f, kind in PYTORCH.classes.items() if isinstance(module, getattr(nn, f"{kind}Cell")))
        activation = getattr(module, "nonlinearity", None)
        ends, options = [""], {}
    else:
        raise TypeError(
            "module_or_state_dict: expected torch.nn.RNN, GRU, LSTM, one of their cells, or a state_dict, "
            f"got {type(module).__name__}"
        )
    projected = ("weight_hr",) if getattr(module, "proj_size", 0) else ()
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()), *projected)
    names = [kind + end for end in ends for kind in kinds]
    peepholes = [f"peephole{end}" for end in ends if hasattr(module, f"peephole{end}")]  # fastrnn.torch's
    told = {"reset_after": getattr(module, "reset_after", True), "peephole": bool(peepholes)}
    cell, names = find(family, activation=activation, **told), names + peepholes
    return cell, {name: as_numpy(name, getattr(module, name)) for name in names}, options


def as_numpy(name: str, value: Any) -> Array:
    """A tensor's values, or an array's."""
    if hasattr(value, "detach"):
        if str(value.dtype) not in ("torch.float32", "torch.float64"):
            raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}")
        value = value.detach().cpu().numpy()
    return as_array(name, value)


def to_torch(layer: Any) -> Any:
    """A PyTorch module with the weights and the options of a layer.

    PyTorch has two biases or none, so the second of a layer with ``bias="input"`` is zeros.

    Parameters
    ----------
    layer : RNN, GRU or LSTM

    Returns
    -------
    torch.nn.RNN, GRU or LSTM

    Raises
    ------
    TypeError
        For another layer.
    ValueError
        For what PyTorch does not have: peepholes, ``reset_after=False``, activations other than tanh and relu, a
        ``merge`` other than "concat", ``return_sequences=False``, recurrent dropout, zoneout, weight drop,
        bfloat16 weights. The message names it.
    ImportError
        If PyTorch is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> module = fastrnn.to_torch(fastrnn.LSTM(3, 4))  # doctest: +SKIP
    """
    layer = recurrent(layer, PYTORCH)
    cell, torch = layer.stack.cell, needed("torch", "torch")
    extra = {"nonlinearity": cell.options["activation"]} if "activation" in cell.options else {}
    extra |= {"proj_size": layer.proj_size} if layer.proj_size else {}
    module = getattr(torch.nn, PYTORCH.classes[cell.family])(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=bool(layer.bias),
        batch_first=layer.batch_first,
        dropout=layer.dropout,
        bidirectional=layer.bidirectional,
        dtype=getattr(torch, str(layer.dtype)),
        device="meta",  # draws no random numbers that would be thrown away
        **extra,
    ).to_empty(device="cpu")
    module.load_state_dict({name: torch.from_numpy(value) for name, value in torch_state(layer).items()})
    return module


def torch_state(layer: Recurrent) -> Arrays:
    """The layer's parameters, with PyTorch's second biases."""
    state = layer.state_dict()
    if layer.bias == "input":
        state |= {n.replace("_ih_", "_hh_"): np.zeros_like(b) for n, b in state.items() if n.startswith("bias_ih")}
    return state
