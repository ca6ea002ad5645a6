"""Export a layer or a model to ONNX."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastrnn.checks import boolean, size, titled
from fastrnn.convert.onnx_layers import WRITERS, ends, masked, write_directions
from fastrnn.convert.onnx_nodes import OPSET, Axis, Nodes, Value, checked_opset
from fastrnn.convert.stack import as_chain, kind_of, leaves, one_dtype, recurrent
from fastrnn.extras import needed
from fastrnn.frameworks import ONNX
from fastrnn.layers import Embedding
from fastrnn.layers.options import features
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training.chain import Chain
from fastrnn.training.weight_files import replaced


def to_onnx(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    opset: int = OPSET,
    lengths: bool = False,
    state: bool = False,
    batch: int | str = "B",
    steps: int | str | None = "T",
) -> Any:
    """Convert a layer or a `Sequential` to an ONNX model.

    For a `Sequential` the input is "x" (B, T, I), or (B, T) int64 for an `Embedding`, and the output "y" is that of
    `predict`. For a single recurrent layer the input is "x" (T, B, I), or (B, T, I) with ``batch_first``, and the
    outputs are "y" ("y_forward" and "y_backward" with ``merge=None``), "h_n" and for an LSTM "c_n", as the layer
    returns them.

    Supported cells are those with an ONNX operator: the built-in ones, and those of `fastrnn.catalogue.lstm_with`,
    `gru_with` and `rnn_with`, also clipped or coupled, with functions that ONNX has. `Dropout` and everything else that
    only acts in training is omitted; dropout between the layers of a stack becomes a node.

    Parameters
    ----------
    model : Layer
        A layer of fastrnn.
    path : path, optional
        Also write the model to this file.
    opset : int
        Version of the operators, 11 to 26, and at most what the onnx package supports.
    lengths : bool
        Add an input "sequence_lens" (B,), int32: y is 0 past them, and x is ignored there.
    state : bool
        Add inputs "h0" and for an LSTM "c0", (L*D, B, H); by default the initial states are zeros. For a `Sequential`
        they are "0.h0" and so on by the layer's index, and the final states, "0.h_n", are outputs. The final state of a
        sequence of length 0 is 0, as in ONNX Runtime.
    batch, steps : int or str
        An int fixes an axis of x, a string names a dynamic one. ``steps=None`` is for a model whose x has no time axis,
        (B, I).

    Returns
    -------
    onnx.ModelProto
        ONNX Runtime supports recurrent layers only in float32.

    Raises
    ------
    TypeError
        If `model` is not a layer of fastrnn, or for a wrong argument.
    ValueError
        For a cell without an ONNX operator, `proj_size`, heads, `weight_dtype`, zoneout; the message names the layer.
    OSError
        If the file cannot be written; FileNotFoundError if the directory does not exist.
    ImportError
        If onnx is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> model = fastrnn.Sequential([fastrnn.LSTM(3, 16, return_sequences=False), fastrnn.Dense(16, 4, "softmax")])
    >>> fastrnn.to_onnx(model, "model.onnx", batch=1)  # doctest: +SKIP
    """
    boolean("lengths", lengths)
    boolean("state", state)
    batch, steps = axis("batch", batch), None if steps is None else axis("steps", steps)
    onnx = needed("onnx", "onnx")
    nodes = Nodes(onnx, checked_opset(onnx, opset), batch, "sequence_lens" if lengths else "", state)
    if isinstance(model, Recurrent):
        write_alone(nodes, recurrent(model, ONNX), steps)
    else:
        write_chain(nodes, as_chain("model", model), steps)
    for name, shape in nodes.final.items():
        nodes.output(name, name, nodes.dtype, shape)
    made = nodes.model()
    if path is not None:
        with replaced(path) as partial:
            onnx.save(made, os.fspath(partial))
    return made


def axis(name: str, value: Any) -> Axis:
    return value if isinstance(value, str) and value else size(name, value)


def write_alone(nodes: Nodes, layer: Recurrent, steps: Axis | None) -> None:
    """Write a single recurrent layer, in its own layout and with its states."""
    nodes.name, nodes.dtype, nodes.kept = layer.stack.cell.name, layer.dtype, True
    leading = axes(nodes, steps) if layer.batch_first else axes(nodes, steps)[::-1]
    x = Value(nodes.input("x", layer.dtype, [*leading, layer.input_size]), steps, not layer.batch_first)
    if nodes.lengths:
        nodes.input(nodes.lengths, np.int32, [nodes.batch])
    for y, end in zip(write_directions(nodes, layer, x, ""), ends(layer), strict=True):
        shape = [*(leading if layer.return_sequences else [nodes.batch]), features(layer)]
        nodes.output(nodes.turned(y, x.time_major).name, f"y{end}", layer.dtype, shape)


def write_chain(nodes: Nodes, model: Chain, steps: Axis | None) -> None:
    """Write a chain of layers, batch-first."""
    layers, shape = list(leaves(model)), model.input_shape
    nodes.dtype, nodes.integers = one_dtype(layer for _, _, layer in layers), isinstance(layers[0][2], Embedding)
    if len(shape) == 2 and not nodes.integers:  # vectors, from which the model makes steps
        steps = None
    elif nodes.integers or any(isinstance(layer, Recurrent) for _, _, layer in layers):
        axes(nodes, steps)
    leading = [nodes.batch] if steps is None else [nodes.batch, steps]
    width = [] if nodes.integers else [shape[-1] or "I"]
    x = Value(nodes.input("x", np.int64 if nodes.integers else nodes.dtype, [*leading, *width]), steps)
    if nodes.lengths:
        write_mask(nodes, x)
    if nodes.lengths and nodes.integers:  # indices past the lengths may be outside an embedding's table
        x = masked(nodes, x, nodes.mask, 0)
    for prefix, title, layer in layers:
        with titled(title):
            x = WRITERS[kind_of(layer, WRITERS)](nodes, layer, x, prefix)
        if x.steps is None:  # later steps are no longer those of x
            nodes.lengths = ""
    y = nodes.turned(x, False)
    if nodes.lengths:
        y = masked(nodes, y, nodes.mask, 0)
    last = model.output_shape(shape)[-1] or "I"
    nodes.output(y.name, "y", nodes.dtype, [nodes.batch, *([] if y.steps is None else [y.steps]), last])


def axes(nodes: Nodes, steps: Axis | None) -> list[Axis]:
    if steps is None:
        raise ValueError("steps: expected a number or a name, because x of this model has a time axis, got None")
    return [nodes.batch, steps]


def write_mask(nodes: Nodes, x: Value) -> None:
    """Write the mask of the steps of x within the lengths."""
    if x.steps is None:
        raise ValueError("lengths: expected False, because x of this model has no time axis, got True")
    nodes.input(nodes.lengths, np.int32, [nodes.batch])
    zero, one = nodes.constant("zero", np.array(0)), nodes.constant("one", np.array(1))
    steps = nodes.add("Gather", [nodes.add("Shape", [x.name], "shape"), one], "steps")
    nodes.each_step = nodes.add("Range", [zero, steps, one], "each_step")
    lengths = nodes.add("Cast", [nodes.lengths], "lengths", to=nodes.kind(np.int64))
    nodes.each_length = nodes.add_moved("Unsqueeze", lengths, "axis1", [1], "each_length")
    nodes.mask = nodes.add("Less", [nodes.each_step, nodes.each_length], "mask")
