"""Convert Keras layers, and reject unsupported ones.

In a recurrent layer x is (B, T, I), a kernel (I, G*H), and the GRU has z first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastrnn import layers
from fastrnn.cells import Cell
from fastrnn.convert.keras_config import Piece, count, inner, wrapped
from fastrnn.convert.keras_options import ALONE, LENGTHS, Taken, expect, flag, size, weights
from fastrnn.convert.stack import Arrays, assembled, dense_of, loaded
from fastrnn.frameworks import (
    CUDNN,
    KERAS,
    KERAS_ACTIVATIONS,
    KERAS_CELLS,
    KERAS_FUNCTION_OPTIONS,
    KERAS_RNN,
    keras_activation,
    keras_cell,
    reordered,
    two_biases,
)
from fastrnn.functions import FUNCTIONS
from fastrnn.layers import Layer
from fastrnn.layers.recurrent import Recurrent

#: Keras' names of the functions of Dense and Activation.
PLAIN = tuple(map(keras_activation, FUNCTIONS))

#: Layers that only act in training and are not supported.
NOISE = (
    *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
    "ActivityRegularization",
)


def converted(piece: Piece, taken: Taken) -> list[Layer]:
    """Return our layers: none for a layer without effect, several for stacked cells."""
    if piece.kind == KERAS_RNN:
        return [layer for one in cells(piece) for layer in converted(one, taken)]
    made = counterparts(piece, taken)
    for layer in made:
        if layer.parameters():
            layer.trainable = trained(piece)
    return made


def trained(piece: Piece) -> bool:
    """Return whether Keras trains the layer and the layers that it wraps."""
    wrapped = [piece.config.get(key) for key in ("layer", "backward_layer")]
    inner = {one["config"].get("trainable", True) for one in wrapped if isinstance(one, dict)}
    if len(inner) > 1:
        raise ValueError(f"{piece.title}: trainable: expected the same for both directions, got only one frozen")
    return piece.config.get("trainable", True) is not False and inner != {False}


def counterparts(piece: Piece, taken: Taken) -> list[Layer]:
    kinds: dict[str, Callable[[Piece, Taken], Layer]] = {
        **dict.fromkeys((*KERAS.families, *CUDNN), one_direction),
        "Bidirectional": two_directions,
        "TimeDistributed": time_distributed,
        "Dense": dense,
        "Embedding": embedding,
        "Dropout": dropout,
        "Activation": activation,
        "ReLU": relu,
        "Softmax": softmax,
        "LayerNormalization": normalization,
        "RepeatVector": repeat,
        "GlobalAveragePooling1D": pooling,
        "GlobalMaxPooling1D": pooling,
    }
    if piece.kind in ("InputLayer", "Identity") or (piece.kind == "Masking" and taken.lengths):
        return []
    if piece.kind in NOISE:
        if taken.inference:
            return []
        raise ValueError(f"{piece.title}: not supported; inference=True drops layers that only act in training")
    if piece.kind not in kinds:
        hint = LENGTHS if piece.kind == "Masking" else f"expected one of {', '.join(kinds)}; {ALONE}"
        raise ValueError(f"{piece.title}: not supported; {hint}")
    return [kinds[piece.kind](piece, taken)]


def check_masks(pieces: Sequence[Piece]) -> None:
    """Raise ValueError unless lengths in calls are equivalent: they must affect all recurrent layers and no others."""
    recurrent: Piece | None = None
    masked = False
    for piece in pieces:
        masks = piece.kind == "Masking" or (piece.kind == "Embedding" and bool(piece.config.get("mask_zero")))
        if masks and recurrent is not None:
            raise ValueError(f"{piece.title}: expected before every recurrent layer, got after {recurrent.title}")
        if masked and piece.kind == "Softmax":
            raise ValueError(f"{piece.title}: expected no mask, because Keras applies the mask of steps to features")
        if masked and piece.kind == "GlobalMaxPooling1D":
            raise ValueError(f"{piece.title}: expected no mask, because Keras ignores it in this layer")
        masked |= masks
        masked &= piece.kind != "GlobalAveragePooling1D"
        if piece.kind in (*KERAS.families, *CUDNN, KERAS_RNN, "Bidirectional"):
            recurrent = piece
            own = piece.config.get("layer") if piece.kind == "Bidirectional" else {"config": piece.config}
            masked &= bool(((own or {}).get("config") or {}).get("return_sequences"))


def one_direction(piece: Piece, taken: Taken) -> Recurrent:
    piece = of_graphics_card(piece)
    cell, options = checked_cell(piece, taken, backwards=False)
    return assembled(piece.title, cell, [parts(piece, cell)], False, **options)


def two_directions(piece: Piece, taken: Taken) -> Recurrent:
    expect(piece, taken)
    merge = piece.config.get("merge_mode", "concat")
    if not isinstance(merge, str | None) or merge not in KERAS.merges:
        known = ", ".join(map(repr, KERAS.merges))
        raise ValueError(f"{piece.title}: merge_mode: expected one of {known}, got {merge!r}")
    half = len(piece.weights) // 2
    forward = one_of(inner(piece, "layer", piece.weights[:half]))
    cell, options = checked_cell(forward, taken, backwards=False)
    key = "layer" if piece.config.get("backward_layer") is None else "backward_layer"
    backward = one_of(inner(piece, key, piece.weights[half:]))
    if key == "backward_layer" and (other := checked_cell(backward, taken, backwards=True)) != (cell, options):
        raise ValueError(f"{backward.title}: expected the options of {forward.title}, {cell, options}, got {other}")
    both = [parts(forward, cell), parts(backward, cell)]
    return assembled(piece.title, cell, both, True, merge=KERAS.merges[merge], **options)


def one_of(piece: Piece) -> Piece:
    """Return the single recurrent layer that a Bidirectional wraps."""
    if piece.kind != KERAS_RNN:
        return of_graphics_card(piece)
    found = cells(piece)
    if len(found) != 1:
        raise ValueError(f"{piece.title}: cell: expected one cell in a Bidirectional, got {len(found)}")
    return found[0]


def checked_cell(piece: Piece, taken: Taken, backwards: bool) -> tuple[Cell, dict[str, Any]]:
    """Return our cell, and the layer's options."""
    if piece.kind not in KERAS.families:
        raise ValueError(f"{piece.title}: expected one of {', '.join(KERAS.families)}")
    family = KERAS.families[piece.kind]
    functions = KERAS_FUNCTION_OPTIONS[family]
    expected = dict.fromkeys(functions, KERAS_ACTIVATIONS) | {"go_backwards": (backwards,)}
    dropout = piece.config.get("recurrent_dropout", 0)
    same = len(KERAS.gates[family]) == 1  # with one gate, a mask per gate is the same as one mask for all
    config = expect(piece, taken, **expected, **({"recurrent_dropout": (dropout,)} if same else {}))
    after = flag(piece, "reset_after", False)  # the behaviour before Keras had the option
    cell = keras_cell(family, reset_after=after, **{name: config[name] for name in functions if name in config})
    options = {"batch_first": True, "return_sequences": flag(piece, "return_sequences", False)}
    return cell, options | ({"recurrent_dropout": dropout} if same else {})


def parts(piece: Piece, cell: Cell) -> Arrays:
    """Return W, U, b, b_rec of one direction."""
    H = size(piece, "units")
    GH = cell.G * H
    bias = [("bias", (2, GH) if two_biases(cell) else (GH,))] if flag(piece, "use_bias", True) else []
    arrays = weights(piece, ("kernel", (None, GH)), ("recurrent_kernel", (H, GH)), *bias)
    W, U, *b = [reordered(a, KERAS.gates[cell.family], cell.gates, axis=-1) for a in arrays]
    biases = np.atleast_2d(*b) if b else []
    return {"W": W.T, "U": U.T} | dict(zip(("b", "b_rec"), biases, strict=False))


def of_graphics_card(piece: Piece) -> Piece:
    """Convert a CuDNN layer to the plain one that Keras would load its weights into; return other layers unchanged.

    Each gate's kernel (I, H) is stored as (H, I), and its recurrent kernel is transposed. There are two biases; the
    plain LSTM has their sum.
    """
    if piece.kind not in CUDNN:
        return piece
    (kind, options), H = CUDNN[piece.kind], size(piece, "units")
    G = len(KERAS.gates[KERAS.families[kind]])
    shapes = ("kernel", (None, G * H)), ("recurrent_kernel", (H, G * H)), ("bias", (2 * G * H,))
    kernel, recurrent_kernel, bias = weights(piece, *shapes)
    arrays = [
        np.hstack([gate.reshape(H, -1).T for gate in np.split(kernel, G, axis=1)]),
        np.hstack([gate.T for gate in np.split(recurrent_kernel, G, axis=1)]),
        bias.reshape(2, -1) if options.get("reset_after") else bias.reshape(2, -1).sum(axis=0),
    ]
    return Piece(kind, piece.config | options, arrays)


def cells(piece: Piece) -> list[Piece]:
    """Return a layer for each cell of an RNN; all but the last return every step."""
    cell = inner(piece, "cell", piece.weights)
    if cell.kind != "StackedRNNCells":
        return [of_cell(piece, cell, top=True)]
    owned = cell.config.get("cells")
    if not isinstance(owned, list) or not owned:
        raise ValueError(f"{piece.title}: cells: expected a list of cells, got {owned!r:.80}")
    found, left = [], piece.weights
    for i, own in enumerate(owned):
        one = of_cell(piece, wrapped(cell, "cells", own, left), top=i == len(owned) - 1)
        found.append(one._replace(weights=left[: count(own)]))
        left = left[count(own) :]
    return found


def of_cell(piece: Piece, cell: Piece, top: bool) -> Piece:
    """Return the layer that is equivalent to an RNN of this cell."""
    if cell.kind not in KERAS_CELLS:
        raise ValueError(f"{piece.title}: cell: expected one of {', '.join(KERAS_CELLS)}, got {cell.kind}; {ALONE}")
    options = {key: value for key, value in piece.config.items() if key != "cell"}
    options |= {} if top else {"return_sequences": True}
    options |= {"trainable": False} if cell.config.get("trainable") is False else {}
    return Piece(KERAS_CELLS[cell.kind], cell.config | options, cell.weights)


def time_distributed(piece: Piece, taken: Taken) -> Layer:
    """Convert the wrapped layer: our stateless layers already act on every step."""
    expect(piece, taken)
    own = inner(piece, "layer", piece.weights)
    if own.kind not in ("Dense", "Activation", "Dropout"):
        raise ValueError(f"{own.title}: not supported in a TimeDistributed; expected Dense")
    (layer,) = converted(own, taken)
    return layer


def dense(piece: Piece, taken: Taken) -> layers.Dense:
    config = expect(piece, taken, activation=PLAIN)
    units, bias = size(piece, "units"), flag(piece, "use_bias", True)
    kernel, *b = weights(piece, ("kernel", (None, units)), *([("bias", (units,))] if bias else []))
    return dense_of(kernel.T, b[0] if bias else None, config.get("activation"))


def embedding(piece: Piece, taken: Taken) -> layers.Embedding:
    expect(piece, taken)
    n, E = size(piece, "input_dim"), size(piece, "output_dim")
    (table,) = weights(piece, ("embeddings", (n, E)))
    return loaded(layers.Embedding(n, E, dtype=table.dtype, rng=0), {"weight": table})


def dropout(piece: Piece, taken: Taken) -> layers.Dropout:
    expect(piece, taken)
    rate = piece.config.get("rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"{piece.title}: rate: expected a number in [0, 1), got {rate!r:.80}")
    return layers.Dropout(rate)


def activation(piece: Piece, taken: Taken) -> layers.Activation:
    return layers.Activation(expect(piece, taken, activation=PLAIN).get("activation", ""))


def normalization(piece: Piece, taken: Taken) -> layers.LayerNormalization:
    config = expect(piece, taken, axis=(-1, [-1], 2, [2]))
    scale, center = (flag(piece, key, True) for key in ("scale", "center"))
    epsilon = config.get("epsilon")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise ValueError(f"{piece.title}: epsilon: expected a number, got {epsilon!r:.80}")
    if not scale and not center:
        raise ValueError(f"{piece.title}: scale, center: expected one of them, which gives the number of features")
    names = [name for name, there in (("weight", scale), ("bias", center)) if there]
    found = dict(zip(names, weights(piece, *[(name, (None,)) for name in names]), strict=True))
    first = found[names[0]]
    return loaded(layers.LayerNormalization(len(first), epsilon, scale=scale, center=center, dtype=first.dtype), found)


def repeat(piece: Piece, taken: Taken) -> layers.RepeatVector:
    expect(piece, taken)
    return layers.RepeatVector(size(piece, "n"), batch_first=True)


def pooling(piece: Piece, taken: Taken) -> Layer:
    expect(piece, taken, data_format=("channels_last",))
    kind: Callable[..., Layer] = getattr(layers, piece.kind)  # its name is the same as Keras'
    return kind(batch_first=True)


def relu(piece: Piece, taken: Taken) -> layers.Activation:
    expect(piece, taken)
    return layers.Activation("relu")


def softmax(piece: Piece, taken: Taken) -> layers.Activation:
    expect(piece, taken, axis=(-1,))
    return layers.Activation("softmax")
