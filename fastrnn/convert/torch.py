"""Convert PyTorch's recurrent modules, state_dicts and models. Gates, names and shapes are the same as ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastrnn.checks import boolean, named_cell, prefix_of
from fastrnn.convert.stack import as_chain, as_numpy, recurrent, stacked
from fastrnn.extras import needed
from fastrnn.frameworks import PYTORCH
from fastrnn.layers import Layer
from fastrnn.layers.recurrent import Recurrent

#: Names that parametrizations, pruning and norms store in place of a weight.
PARAMETRIZED = re.compile(r"parametrizations\.|(weight|bias)_[ih][hr]\w*_(orig|g|v)$")


def from_torch(
    module_or_state_dict: Any, *, cell: str | None = None, prefix: str = "", batch_first: bool | None = None
) -> Layer:
    """Make a layer with the weights and options of a PyTorch module.

    Parameters
    ----------
    module_or_state_dict : torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell or GRUCell, or the state_dict of one
        Also those of `fastrnn.torch`, and a model that `to_torch` made of a `Sequential`, trained or not. A state_dict
        may hold tensors or arrays; sizes, layers, directions and biases are inferred from it.
    cell : {"lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity"}
        Required for a state_dict, which does not store it; PyTorch's GRU is "gru_after". None with a module.
    prefix : str
        Prefix of the layer's names in the state_dict of a larger model, such as "encoder.lstm.".
    batch_first : bool, optional
        Overrides the module's own; False by default for a state_dict or a cell.

    Returns
    -------
    RNN, GRU or LSTM
        A `Sequential` for a model of `to_torch`.

    Raises
    ------
    TypeError
        For another kind of module, or weights that are neither float32 nor float64.
    ValueError
        For unexpected names or shapes, including those that parametrizations store; the message names them.

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
            raise ValueError(f"state_dict: {parametrized!r} is part of a parametrized weight; pass the module itself")
        if prefix and not state:
            found = prefix_of(["weight_ih_l0", "weight_ih"], module_or_state_dict)
            raise ValueError(f"prefix: no name begins with {prefix!r}; expected one such as {found!r}")
        own = named_cell(cell)
        options: dict[str, Any] = {"batch_first": bool(batch_first), "prefix": prefix}
    else:
        if cell is not None or prefix:
            raise ValueError("cell, prefix: expected None with a module; they are for a state_dict")
        needed("torch", "torch")
        from fastrnn.convert import torch_layers  # imported here because it imports PyTorch

        if torch_layers.is_model(module_or_state_dict):
            if batch_first is not None:
                raise ValueError(f"batch_first: expected None for a model, which is batch-first, got {batch_first}")
            return torch_layers.read_model(module_or_state_dict)
        own, state, options = torch_layers.read(module_or_state_dict)
        if batch_first is not None:
            options["batch_first"] = batch_first
    if "weight_ih" in state:  # a cell has a single layer without a number
        state = {f"{name}_l0": value for name, value in state.items()}
    return stacked("state_dict", own, state, **options)


def to_torch(layer: Any) -> Any:
    """Make a PyTorch module with the weights and options of a layer or a `Sequential`.

    PyTorch has two biases or none, so the second of a layer with ``bias="input"`` is zeros. A `Sequential` becomes a
    torch.nn.Sequential of torch.nn's modules, or small ones for layers that torch.nn lacks. Parameters have the model's
    names; a stack whose directions are not concatenated becomes a nested Sequential. Call it batch-first as
    ``module(x, lengths=None)``: it returns the same as `predict`, with gradients. `from_torch` converts it back.

    Parameters
    ----------
    layer : Layer
        A layer of fastrnn.

    Returns
    -------
    torch.nn.Module
        A torch.nn.RNN, GRU or LSTM for a recurrent layer.

    Raises
    ------
    TypeError
        For another layer.
    ValueError
        For features that PyTorch lacks: peepholes, ``reset_after=False``, activations other than tanh and relu,
        recurrent dropout, zoneout, weight drop, heads, `weight_dtype`; for a layer outside a `Sequential` also
        ``merge`` other than "concat", and ``return_sequences=False``. The message names it.
    ImportError
        If PyTorch is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> module = fastrnn.to_torch(fastrnn.LSTM(3, 4))  # doctest: +SKIP
    """
    needed("torch", "torch")
    from fastrnn.convert import torch_layers  # imported here because it imports PyTorch

    if isinstance(layer, Recurrent):
        return torch_layers.made_recurrent(recurrent(layer, PYTORCH), layer.batch_first)
    return torch_layers.made_model(as_chain("layer", layer))
