"""JSON descriptions from which `convert.files` rebuilds layers, without their parameters."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from fastrnn.layers.base import Layer
from fastrnn.layers.options import LayerOptions
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.rnn import LAYERS
from fastrnn.training import weight_files
from fastrnn.training.chain import Chain
from fastrnn.version import version

Spec = dict[str, Any]

#: options of a recurrent layer that its file stores besides the cell
RECURRENT = tuple(field.name for field in fields(LayerOptions))


def save_model(path: str | os.PathLike[str], layer: Layer) -> None:
    """Save a layer or a model, weights and options; see `convert.save`."""
    spec = described(layer)
    layers = weight_files.kinds(layer) if isinstance(layer, Chain) else spec["class"]
    weight_files.write(path, layer.parameters(), {"layers": layers, "fastrnn": version(), "model": spec})


def described(layer: Layer) -> Spec:
    name, module = type(layer).__name__, type(layer).__module__
    if not isinstance(layer, Layer) or name not in DESCRIPTIONS or module.partition(".")[0] != "fastrnn":
        raise TypeError(f"layer: expected one of fastrnn's {', '.join(DESCRIPTIONS)}, got {module}.{name}")
    return {"class": name} | DESCRIPTIONS[name](layer) | ({} if layer.trainable else {"trainable": False})


def describe_recurrent(layer: Any) -> Spec:
    cell = layer.stack.cell
    options = {key: getattr(layer, key) for key in RECURRENT}
    shape: Spec = {"cell": cell.name, "gates": "".join(cell.gates)}
    if type(layer) is Recurrent:
        names = (cell.gates, cell.states, cell.parameters)
        shape |= dict(zip(("gates", "states", "parameters"), map(list, names), strict=True))
    return shape | options | {"dtype": str(layer.dtype)}


DESCRIPTIONS: dict[str, Callable[[Any], Spec]] = {
    **{layer.__name__: describe_recurrent for layer in (*LAYERS.values(), Recurrent)},
    "Dense": lambda d: {
        "input_size": d.input_size,
        "output_size": d.output_size,
        "activation": d.activation,
        "bias": d.bias is not None,
        "dtype": str(d.dtype),
    },
    "Embedding": lambda e: {
        "num_embeddings": e.num_embeddings,
        "embedding_dim": e.embedding_dim,
        "padding_idx": e.padding_idx,
        "sparse": e.sparse,
        "dtype": str(e.dtype),
    },
    "LayerNormalization": lambda n: {
        "input_size": n.input_size,
        "epsilon": n.epsilon,
        "scale": n.weight is not None,
        "center": n.bias is not None,
        "dtype": str(n.dtype),
    },
    "RepeatVector": lambda r: {"n": r.n, "batch_first": r.batch_first},
    **dict.fromkeys(
        ("LastStep", "GlobalAveragePooling1D", "GlobalMaxPooling1D"), lambda p: {"batch_first": p.batch_first}
    ),
    "Dropout": lambda d: {"rate": d.rate},
    "Activation": lambda a: {"activation": a.activation},
    "Sequential": lambda s: {"layers": [described(layer) for layer in s.layers]},
}
