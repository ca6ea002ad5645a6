"""Audio effect models in the JSON formats of RTNeural and Neural Amp Modeler (NAM)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn.cells import find
from fastrnn.checks import among, positive
from fastrnn.convert.keras_config import Piece
from fastrnn.convert.keras_layers import converted
from fastrnn.convert.keras_options import Taken
from fastrnn.convert.stack import assembled, dense_of
from fastrnn.frameworks import NAM, RTNEURAL
from fastrnn.training import Sequential
from fastrnn.types import Array


def from_rtneural(path: Any) -> Sequential:
    """Read a model of LSTM, GRU, dense and activation layers from an RTNeural JSON file.

    Arrays and layers follow Keras: the layers are ``batch_first`` and return every step.

    Parameters
    ----------
    path : path, or mapping
        The file, or its content as `json.load` returns it.

    Returns
    -------
    Sequential

    Raises
    ------
    TypeError, ValueError
        For another kind of file, an unsupported layer, or arrays of wrong shapes; the message names it.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> rng = np.random.default_rng(0)
    >>> arrays = [rng.random((1, 16)).tolist(), rng.random((4, 16)).tolist(), rng.random(16).tolist()]
    >>> lstm = {"type": "lstm", "activation": "", "shape": [None, None, 4], "weights": arrays}
    >>> fastrnn.from_rtneural({"in_shape": [None, None, 1], "layers": [lstm]})
    Sequential([LSTM(1, 4, bias='input', batch_first=True, dtype=float32) [lstm]])
    """
    whose, model = read(path)
    if "state_dict" in model:
        hint = 'pass its arrays to from_torch(state_dict, cell="lstm", prefix="rec.")'
        raise ValueError(f"{whose} holds a PyTorch state_dict; {hint}, each as np.asarray(..., np.float32)")
    layers = model.get("layers")
    if not isinstance(layers, list) or not layers or not all(isinstance(one, Mapping) for one in layers):
        raise ValueError(f"{whose}: layers: expected a list of layers, got {layers!r:.80}")
    pieces = [piece_of(whose, i, one) for i, one in enumerate(layers)]
    return Sequential([layer for piece in pieces for layer in converted(piece, Taken())])


def piece_of(whose: str, i: int, layer: Mapping[str, Any]) -> Piece:
    """Return the Keras layer with these weights."""
    kind, shape, stored = layer.get("type"), layer.get("shape"), layer.get("weights") or []
    if not isinstance(stored, list | tuple):
        raise ValueError(f"{whose}: layers[{i}]: weights: expected a list of arrays, got {stored!r:.80}")
    arrays = [floats(f"{whose}: layers[{i}]: weights", a) for a in stored]
    if not among(kind, RTNEURAL):
        raise ValueError(f"{whose}: layers[{i}]: type: expected one of {', '.join(RTNEURAL)}, got {kind!r:.80}")
    units = shape[-1] if isinstance(shape, list) and shape else None
    config = {"name": f"{i}", "units": units, "use_bias": len(arrays) > 1}
    recurrent, activation = len(arrays) == 3, layer.get("activation") or "linear"
    config |= {"return_sequences": True} if recurrent else {"activation": activation}
    config |= {"reset_after": True} if recurrent and arrays[2].ndim == 2 else {}
    return Piece(RTNEURAL[str(kind)], config, arrays)


def from_nam(path: Any) -> tuple[Sequential, list[Any]]:
    """Read an LSTM model and its initial state from a ``.nam`` file.

    Parameters
    ----------
    path : path, or mapping
        The file, or its content as `json.load` returns it.

    Returns
    -------
    model : Sequential
        An LSTM and a Dense; x is (N, T, I), usually with I = 1 sample per step.
    state : list
        Initial states of the layers for one sequence: ``model.forward(x, state=state)``.

    Raises
    ------
    TypeError, ValueError
        For another kind of file, another architecture, or a number of weights that does not match the sizes.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> config = {"input_size": 1, "hidden_size": 2, "num_layers": 1}
    >>> weights = np.random.default_rng(0).random(8 * (1 + 2) + 8 + 2 + 2 + 2 + 1).tolist()
    >>> model, state = fastrnn.from_nam({"architecture": "LSTM", "config": config, "weights": weights})
    >>> model.forward(np.zeros((1, 5, 1), np.float32), state=state).y.shape
    (1, 5, 1)
    """
    whose, file = read(path)
    if not among(file.get("architecture"), NAM):
        raise ValueError(f"{whose}: architecture: expected {', '.join(NAM)}, got {file.get('architecture')!r:.80}")
    cell, config = find(NAM[file["architecture"]], peephole=False), file.get("config")
    if not isinstance(config, Mapping):
        raise ValueError(f"{whose}: config: expected sizes, got {config!r:.80}")
    I, H, L = (
        positive(f"{whose}: config: {key}", config.get(key)) for key in ("input_size", "hidden_size", "num_layers")
    )
    left, G = floats(f"{whose}: weights", file.get("weights")), cell.G
    sizes = [G * H * ((H if i else I) + H) + G * H + 2 * H for i in range(L)]
    out, rest = divmod(left.size - sum(sizes), H + 1)
    if left.ndim != 1 or out < 1 or rest:
        raise ValueError(f"{whose}: weights: expected {sum(sizes)} numbers and a multiple of {H + 1}, got {left.size}")
    parts, states = [], []
    for i in range(L):
        own, left = np.split(left, [sizes[i]])
        matrix, b, h, c = np.split(own, [sizes[i] - (G + 2) * H, sizes[i] - 2 * H, sizes[i] - H])
        W, U = np.split(matrix.reshape(G * H, -1), [H if i else I], axis=1)
        parts.append({"W": W, "U": U, "b": b})
        states.append((h, c))
    weight, bias = np.split(left, [out * H])
    dense = dense_of(weight.reshape(out, H), bias)
    model = Sequential([assembled("weights", cell, parts, False, batch_first=True), dense])
    return model, [tuple(np.stack(s)[:, None] for s in zip(*states, strict=True)), None]


def read(path: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the file's name in messages, and its content."""
    if isinstance(path, Mapping):
        return "path", path
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a path, or a mapping of a JSON file, got {type(path).__name__}")
    whose = f"path: {os.fspath(path)}"
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{whose} is not JSON ({error})") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{whose}: expected a model, got {found!r:.80}")
    return whose, found


def floats(whose: str, value: Any) -> Array:
    """Return a float32 array from nested lists."""
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{whose}: expected nested lists of numbers ({error})") from error
