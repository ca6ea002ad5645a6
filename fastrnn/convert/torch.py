"""PyTorch's recurrent modules and their state_dicts. The gates, names and shapes are ours already."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrnn.cells import Array, Cell, find
from fastrnn.checks import as_array, boolean, named_cell
from fastrnn.convert.stack import Arrays, as_chain, kind_of, loaded, recurrent, stacked, unstacked
from fastrnn.extras import needed
from fastrnn.frameworks import MODES, PYTORCH, PYTORCH_IN_MODELS
from fastrnn.layers import Activation, Dense, Dropout, Embedding, Layer
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training import Sequential
from fastrnn.training.chain import Chain

#: Names of what parametrizations, pruning and norms keep in the place of a weight.
PARAMETRIZED = re.compile(r"parametrizations\.|(weight|bias)_[ih][hr]\w*_(orig|g|v)$")


def from_torch(
    module_or_state_dict: Any, *, cell: str | None = None, prefix: str = "", batch_first: bool | None = None
) -> Layer:
    """A layer with the weights, and the options, of a PyTorch module.

    Parameters
    ----------
    module_or_state_dict : torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell or GRUCell, or the state_dict of one
        Also those of `fastrnn.torch`, and what `to_torch` makes of a `Sequential`, trained or not. A state_dict may
        hold tensors or arrays; sizes, layers, directions and biases are read off it.
    cell : {"lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity"}
        For a state_dict, which does not say; PyTorch's GRU is "gru_after". None with a module.
    prefix : str
        Of the names of a larger model's state_dict that are meant: "encoder.lstm.", say.
    batch_first : bool, optional
        Instead of the module's own; False for a state_dict and for a cell.

    Returns
    -------
    RNN, GRU or LSTM
        A `Sequential` for a model of `to_torch`.

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
        if is_model(module_or_state_dict):
            if batch_first is not None:
                raise ValueError(f"batch_first: a model is samples first; expected None, got {batch_first}")
            return read_model(module_or_state_dict)
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


def is_model(module: Any) -> bool:
    """Whether it is what `to_torch` makes of a `Sequential`."""
    needed("torch", "torch")
    from fastrnn.convert.torch_modules import Sequential  # here, because it imports PyTorch

    return isinstance(module, Sequential)


def read_model(model: Any) -> Layer:
    return Sequential([read_layer(module, then) for module, then in zip(model, model.then, strict=True)])


def read_layer(module: Any, then: Any) -> Layer:
    from fastrnn.convert.torch_modules import activation_of

    nn = needed("torch", "torch").nn
    if is_model(module):
        return read_model(module)
    if isinstance(module, nn.RNNBase):
        cell, state, options = read(module)
        return stacked("state_dict", cell, state, **options, merge=then.merge, return_sequences=then.return_sequences)
    state = {name: as_numpy(name, value) for name, value in module.state_dict().items()}
    if isinstance(module, nn.Linear):
        options = {"bias": module.bias is not None, "dtype": state["weight"].dtype, "rng": 0}
        return loaded(Dense(module.in_features, module.out_features, then.activation, **options), state)
    if isinstance(module, nn.Embedding):
        sizes = module.num_embeddings, module.embedding_dim, module.padding_idx
        sparse = True if module.sparse else None  # the default there says nothing
        return loaded(Embedding(*sizes, sparse=sparse, dtype=state["weight"].dtype, rng=0), state)
    if isinstance(module, nn.Dropout):
        return Dropout(module.p)
    if (activation := activation_of(module)) is None:
        raise TypeError(f"module: expected one that to_torch makes, got {module!r:.80}")
    return Activation(activation)


def as_numpy(name: str, value: Any) -> Array:
    """A tensor's values, or an array's."""
    if hasattr(value, "detach"):
        if str(value.dtype) not in ("torch.float32", "torch.float64"):
            raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}")
        value = value.detach().cpu().numpy()
    return as_array(name, value)


def to_torch(layer: Any) -> Any:
    """A PyTorch module with the weights and the options of a layer, or of a `Sequential`.

    PyTorch has two biases or none, so the second of a layer with ``bias="input"`` is zeros. A `Sequential` becomes a
    torch.nn.Sequential of torch.nn's modules, whose parameters have the model's names; a stack whose directions are
    not concatenated is a Sequential of its own. It is called as ``module(x, lengths=None)``, samples first, and gives
    what `predict` gives, with a gradient; `from_torch` takes it back.

    Parameters
    ----------
    layer : Layer
        One of fastrnn's own.

    Returns
    -------
    torch.nn.Module
        A torch.nn.RNN, GRU or LSTM for a recurrent layer.

    Raises
    ------
    TypeError
        For another layer.
    ValueError
        For what PyTorch does not have: peepholes, ``reset_after=False``, activations other than tanh and relu,
        recurrent dropout, zoneout, weight drop, bfloat16 weights; of a layer that is in no `Sequential` also a
        ``merge`` other than "concat", and ``return_sequences=False``. The message names it.
    ImportError
        If PyTorch is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> module = fastrnn.to_torch(fastrnn.LSTM(3, 4))  # doctest: +SKIP
    """
    needed("torch", "torch")
    if isinstance(layer, Recurrent):
        return made_recurrent(recurrent(layer, PYTORCH), layer.batch_first)
    return made_model(as_chain("layer", layer))


def made_model(model: Chain) -> Any:
    from fastrnn.convert.torch_modules import Sequential, Then  # here, because it imports PyTorch

    nn = needed("torch", "torch").nn
    modules, then = [], []
    for title, layer in zip(model.names, model.layers, strict=True):
        try:
            module = made_model(layer) if isinstance(layer, Chain) else MAKERS[kind_of(layer, MAKERS)](layer)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{title}: {error}") from error
        told = [name for name in Then._fields if hasattr(layer, name) and isinstance(module, nn.RNNBase | nn.Linear)]
        modules.append(module)
        then.append(Then(**{name: getattr(layer, name) for name in told}))
    return Sequential(modules, then)


def in_model(layer: Recurrent) -> Any:
    """The module of a recurrent layer, samples first."""
    recurrent(layer, PYTORCH_IN_MODELS)
    if layer.bidirectional and layer.num_layers > 1 and layer.merge not in PYTORCH.only["merge"]:
        return made_model(unstacked(layer))
    return made_recurrent(layer, True)


def made_recurrent(layer: Recurrent, batch_first: bool) -> Any:
    cell, nn = layer.stack.cell, needed("torch", "torch").nn
    extra = {"nonlinearity": cell.options["activation"]} if "activation" in cell.options else {}
    extra |= {"proj_size": layer.proj_size} if layer.proj_size else {}
    sizes = layer.input_size, layer.hidden_size, layer.num_layers
    options = {"batch_first": batch_first, "dropout": layer.dropout, "bidirectional": layer.bidirectional}
    made = getattr(nn, PYTORCH.classes[cell.family])
    return filled(made, layer, torch_state(layer), *sizes, bias=bool(layer.bias), **options, **extra)


def filled(made: Any, layer: Any, state: Arrays, *sizes: int, **options: Any) -> Any:
    """A module of the layer's dtype with this state."""
    torch = needed("torch", "torch")
    dtype = getattr(torch, str(layer.dtype))
    # The meta device draws no random numbers, which would be thrown away.
    module = made(*sizes, dtype=dtype, device="meta", **options).to_empty(device="cpu")
    module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return module


def made_dense(layer: Dense) -> Any:
    made = needed("torch", "torch").nn.Linear
    return filled(made, layer, layer.state_dict(), layer.input_size, layer.output_size, bias=layer.bias is not None)


def made_embedding(layer: Embedding) -> Any:
    made, sizes = needed("torch", "torch").nn.Embedding, (layer.num_embeddings, layer.embedding_dim)
    return filled(made, layer, layer.state_dict(), *sizes, padding_idx=layer.padding_idx)


def made_activation(layer: Activation) -> Any:
    from fastrnn.convert.torch_modules import FUNCTIONS

    return copy.deepcopy(FUNCTIONS[layer.activation])


#: What makes the module of a layer, by its class.
MAKERS: dict[type[Layer], Callable[[Any], Any]] = {
    Recurrent: in_model,
    Dense: made_dense,
    Embedding: made_embedding,
    Dropout: lambda layer: needed("torch", "torch").nn.Dropout(layer.rate),
    Activation: made_activation,
}


def torch_state(layer: Recurrent) -> Arrays:
    """The layer's parameters, with PyTorch's second biases."""
    state = layer.state_dict()
    if layer.bias == "input":
        state |= {n.replace("_ih_", "_hh_"): np.zeros_like(b) for n, b in state.items() if n.startswith("bias_ih")}
    return state
