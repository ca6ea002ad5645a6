"""Convert Keras' recurrent layers: x is (B, T, I), a kernel (I, G*H), and its GRU has z first."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.convert import keras_files
from fastrnn.convert.keras_files import Piece
from fastrnn.convert.keras_options import ALONE, Taken, expect, flag, size, weights
from fastrnn.convert.keras_weights import count
from fastrnn.convert.stack import Arrays, assembled
from fastrnn.frameworks import (
    CUDNN,
    KERAS,
    KERAS_ACTIVATIONS,
    KERAS_CELLS,
    KERAS_FUNCTION_OPTIONS,
    KERAS_RNN,
    keras_cell,
    reordered,
    two_biases,
)
from fastrnn.layers.recurrent import Recurrent


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
    forward = one_of(keras_files.inner(piece, "layer", piece.weights[:half]))
    cell, options = checked_cell(forward, taken, backwards=False)
    key = "layer" if piece.config.get("backward_layer") is None else "backward_layer"
    backward = one_of(keras_files.inner(piece, key, piece.weights[half:]))
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
    cell = keras_files.inner(piece, "cell", piece.weights)
    if cell.kind != "StackedRNNCells":
        return [of_cell(piece, cell, top=True)]
    owned = cell.config.get("cells")
    if not isinstance(owned, list) or not owned:
        raise ValueError(f"{piece.title}: cells: expected a list of cells, got {owned!r:.80}")
    found, left = [], piece.weights
    for i, own in enumerate(owned):
        one = of_cell(piece, keras_files.wrapped(cell, "cells", own, left), top=i == len(owned) - 1)
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
