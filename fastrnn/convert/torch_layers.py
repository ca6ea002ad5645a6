"""Convert between layers and PyTorch modules; only `convert.torch` imports it, because it imports PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fastrnn import layers
from fastrnn.cells import Cell, find
from fastrnn.checks import titled
from fastrnn.convert import torch_modules
from fastrnn.convert.stack import Arrays, as_numpy, kind_of, loaded, recurrent, stacked, unstacked
from fastrnn.frameworks import MODES, PYTORCH, PYTORCH_IN_MODELS
from fastrnn.layers import Layer
from fastrnn.layers.options import suffixes
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training import Sequential
from fastrnn.training.chain import Chain


def read(module: Any) -> tuple[Cell, Arrays, dict[str, Any]]:
    """Return a module's cell, its current parameters (also if parametrized), and its options."""
    if isinstance(module, nn.RNNBase):
        if module.mode not in MODES:
            raise TypeError(f"module: expected torch.nn.RNN, GRU or LSTM, got {type(module).__name__}")
        family, activation = MODES[module.mode]
        ends = suffixes(module.num_layers, module.bidirectional)
        dropout = module.dropout if module.num_layers > 1 else 0.0  # PyTorch also applies it between layers
        options = {"batch_first": module.batch_first, "dropout": dropout}
    elif isinstance(module, nn.RNNCell | nn.LSTMCell | nn.GRUCell):
        family = next(f for f, kind in PYTORCH.classes.items() if isinstance(module, getattr(nn, f"{kind}Cell")))
        activation = getattr(module, "nonlinearity", None)
        ends, options = [""], {}
    else:
        raise TypeError(
            "module_or_state_dict: expected torch.nn.RNN, GRU, LSTM, one of their cells, or a state_dict, as "
            f"torch.load reads it from a file, got {type(module).__name__}"
        )
    projected = ("weight_hr",) if getattr(module, "proj_size", 0) else ()
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()), *projected)
    names = [kind + end for end in ends for kind in kinds]
    peepholes = [f"peephole{end}" for end in ends if hasattr(module, f"peephole{end}")]  # fastrnn.torch's
    told = {"reset_after": getattr(module, "reset_after", True), "peephole": bool(peepholes)}
    cell, names = find(family, activation=activation, **told), names + peepholes
    return cell, {name: as_numpy(name, getattr(module, name)) for name in names}, options


def is_model(module: Any) -> bool:
    """Return whether `to_torch` made the module from a `Sequential`."""
    return isinstance(module, torch_modules.Sequential)


def read_model(model: Any, dtype: Any = np.float32) -> Layer:
    """Convert a model; layers without parameters get the dtype of those that have some."""
    dtype = next((as_numpy(name, value).dtype for name, value in model.state_dict().items()), dtype)
    return Sequential([read_layer(module, then, dtype) for module, then in zip(model, model.then, strict=True)])


def read_layer(module: Any, then: Any, dtype: Any) -> Layer:
    if is_model(module):
        return read_model(module, dtype)
    if isinstance(module, nn.RNNBase):
        cell, state, options = read(module)
        return stacked("state_dict", cell, state, **options, merge=then.merge, return_sequences=then.return_sequences)
    state = {name: as_numpy(name, value) for name, value in module.state_dict().items()}
    if isinstance(module, nn.Linear):
        options = {"bias": module.bias is not None, "dtype": state["weight"].dtype, "rng": 0}
        return loaded(layers.Dense(module.in_features, module.out_features, then.activation, **options), state)
    if isinstance(module, nn.Embedding):
        sizes = module.num_embeddings, module.embedding_dim, module.padding_idx
        sparse = True if module.sparse else None  # PyTorch's default carries no information
        return loaded(layers.Embedding(*sizes, sparse=sparse, dtype=state["weight"].dtype, rng=0), state)
    if isinstance(module, nn.Dropout):
        return layers.Dropout(module.p)
    if isinstance(module, nn.LayerNorm):
        (size,), given = module.normalized_shape, {"scale": "weight" in state, "center": "bias" in state}
        return loaded(layers.LayerNormalization(size, module.eps, **given, dtype=dtype), state)
    if isinstance(module, torch_modules.RepeatVector):
        return layers.RepeatVector(module.n)
    if isinstance(module, torch_modules.OverTime):
        return next(kind for kind in OVER_TIME if kind.__name__ == type(module).__name__)()
    if (activation := torch_modules.activation_of(module)) is None:
        raise TypeError(f"module: expected a module that to_torch makes, got {module!r:.80}")
    return layers.Activation(activation)


def made_model(model: Chain) -> Any:
    modules, then = [], []
    for title, layer in zip(model.names, model.layers, strict=True):
        with titled(title):
            module = made_model(layer) if isinstance(layer, Chain) else MAKERS[kind_of(layer, MAKERS)](layer)
        processed = isinstance(module, nn.RNNBase | nn.Linear)
        told = [name for name in torch_modules.Then._fields if processed and hasattr(layer, name)]
        modules.append(module)
        then.append(torch_modules.Then(**{name: getattr(layer, name) for name in told}))
    return torch_modules.Sequential(modules, then)


def in_model(layer: Recurrent) -> Any:
    """Return the batch-first module of a recurrent layer."""
    recurrent(layer, PYTORCH_IN_MODELS)
    if layer.bidirectional and layer.num_layers > 1 and layer.merge not in PYTORCH.only["merge"]:
        return made_model(Chain(unstacked(layer)))
    return made_recurrent(layer, True)


def made_recurrent(layer: Recurrent, batch_first: bool) -> Any:
    cell = layer.stack.cell
    extra = {"nonlinearity": cell.options["activation"]} if "activation" in cell.options else {}
    extra |= {"proj_size": layer.proj_size} if layer.proj_size else {}
    sizes = layer.input_size, layer.hidden_size, layer.num_layers
    options = {"batch_first": batch_first, "dropout": layer.dropout, "bidirectional": layer.bidirectional}
    made = getattr(nn, PYTORCH.classes[cell.family])
    return filled(made, layer, torch_state(layer), *sizes, bias=bool(layer.bias), **options, **extra)


def filled(made: Any, layer: Any, state: Arrays, *sizes: int, **options: Any) -> Any:
    """Make a module of the layer's dtype with this state."""
    dtype = getattr(torch, str(layer.dtype))
    # The meta device skips drawing random numbers, which would be discarded.
    module = made(*sizes, dtype=dtype, device="meta", **options).to_empty(device="cpu")
    module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return module


def made_dense(layer: layers.Dense) -> Any:
    sizes = layer.input_size, layer.output_size
    return filled(nn.Linear, layer, layer.state_dict(), *sizes, bias=layer.bias is not None)


def made_embedding(layer: layers.Embedding) -> Any:
    sizes = layer.num_embeddings, layer.embedding_dim
    return filled(nn.Embedding, layer, layer.state_dict(), *sizes, padding_idx=layer.padding_idx)


def made_normalization(layer: layers.LayerNormalization) -> Any:
    scale, center = layer.weight is not None, layer.bias is not None
    if center and not scale:
        raise ValueError("scale: PyTorch has no LayerNorm with a bias and without a weight; expected True, got False")
    options = {"elementwise_affine": scale, "bias": center}
    return filled(nn.LayerNorm, layer, layer.state_dict(), layer.input_size, eps=layer.epsilon, **options)


#: Layers that reduce steps to a vector. PyTorch has no modules for them; those of `torch_modules` have the same names.
OVER_TIME = (layers.LastStep, layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D)

#: class of a layer -> the function that makes its module
MAKERS: dict[type[Layer], Callable[[Any], Any]] = {
    Recurrent: in_model,
    layers.Dense: made_dense,
    layers.Embedding: made_embedding,
    layers.Dropout: lambda layer: nn.Dropout(layer.rate),
    layers.Activation: lambda layer: copy.deepcopy(torch_modules.ACTIVATION_MODULES[layer.activation]),
    layers.LayerNormalization: made_normalization,
    **dict.fromkeys(OVER_TIME, lambda layer: getattr(torch_modules, type(layer).__name__)()),
    layers.RepeatVector: lambda layer: torch_modules.RepeatVector(layer.n),
}


def torch_state(layer: Recurrent) -> Arrays:
    """Return the layer's parameters, with PyTorch's second biases."""
    state = layer.state_dict()
    if layer.bias == "input":
        state |= {n.replace("_ih_", "_hh_"): np.zeros_like(b) for n, b in state.items() if n.startswith("bias_ih")}
    return state
