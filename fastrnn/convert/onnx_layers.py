"""Write layers as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastrnn import layers
from fastrnn.cells import Cell
from fastrnn.convert.onnx_nodes import Nodes, Value
from fastrnn.convert.stack import Arrays, Parts, recurrent
from fastrnn.frameworks import ONNX, onnx_attributes, reordered
from fastrnn.layers import Layer
from fastrnn.layers.options import features
from fastrnn.layers.recurrent import Recurrent

#: a node's matrices -> our names
WEIGHTS = (("W", "W"), ("R", "U"))

#: a function of `Dense` and `Activation` -> the operator, and its attributes; the identity needs none
OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "softmax": ("Softmax", {"axis": -1}),
}


def write_recurrent(nodes: Nodes, layer: Recurrent, x: Value, prefix: str) -> Value:
    [y] = write_directions(nodes, recurrent(layer, ONNX), x, prefix)
    return y


def write_directions(nodes: Nodes, layer: Recurrent, x: Value, prefix: str) -> list[Value]:
    """Write all layers of the stack; return the top's output, or one per direction with ``merge=None``."""
    L, D, states = layer.num_layers, 1 + layer.bidirectional, layer.stack.cell.states
    shape = [L * D, nodes.batch, layer.hidden_size]
    initial = [nodes.input(f"{prefix}{s}0", layer.dtype, shape) for s in states] if nodes.given else []
    parts = [[f"{name}_{i}" for i in range(L)] for name in initial]
    for name, each in zip(initial, parts, strict=True):
        nodes.add_moved("Split", name, f"{prefix}sizes", [D] * L, *each, axis=0)
    read, made = nodes.turned(x, True).name, list[str]()
    for i in range(L):
        top = i == L - 1
        last = top and not layer.return_sequences
        finals = [f"{prefix}{s}_of{i}" for s in (states if nodes.kept else states[:last])]
        write_node(
            nodes, layer, i, prefix, [read, *[each[i] for each in parts]], ["" if last else f"{prefix}Y{i}", *finals]
        )
        made = joined(nodes, layer, finals[0] if last else f"{prefix}Y{i}", 0 if last else 1, f"{prefix}y{i}")
        read = made[0]
        if layer.dropout and not top:
            read = nodes.add_moved("Dropout", read, f"{prefix}rate", layer.dropout, f"{prefix}dropped{i}")
    for s in states if nodes.kept else ():
        nodes.final[nodes.add("Concat", [f"{prefix}{s}_of{i}" for i in range(L)], f"{prefix}{s}_n", axis=0)] = shape
    return [Value(name, x.steps if layer.return_sequences else None, True) for name in made]


def write_node(nodes: Nodes, layer: Recurrent, i: int, prefix: str, reads: list[str], outputs: list[str]) -> None:
    """Write the stack's i-th layer; `reads` is X, then the initial states."""
    cell, D = layer.stack.cell, 1 + layer.bidirectional
    weights = node_weights(layer.stack.parts[i * D : (i + 1) * D], cell)
    names = {name: nodes.constant(f"{prefix}{name}{i}", a) for name, a in weights.items()}
    x, *initial = reads
    inputs = [x, names["W"], names["R"], names.get("B", ""), nodes.lengths, *(initial or [""] * len(cell.states))]
    inputs += [names["P"]] if "P" in names else []
    attributes = onnx_attributes(cell, layer.hidden_size, D)
    nodes.add(ONNX.classes[cell.family], inputs, *outputs, name=f"{prefix}layer{i}", **attributes)


def joined(nodes: Nodes, layer: Recurrent, made: str, axis: int, result: str) -> list[str]:
    """Remove the axis of directions, by the layer's merge."""
    merge = layer.merge if layer.bidirectional else None
    if not layer.bidirectional:
        return [nodes.add_moved("Squeeze", made, f"axis{axis}", [axis], result)]
    if merge is None:
        which = [nodes.constant(f"direction{d}", np.array(d)) for d in (0, 1)]
        return [
            nodes.add("Gather", [made, index], result + end, axis=axis)
            for index, end in zip(which, ends(layer), strict=True)
        ]
    if merge == "concat":
        perm, flat = ((0, 2, 1, 3), [0, 0, features(layer)]) if axis else ((1, 0, 2), [0, features(layer)])
        turned = nodes.add("Transpose", [made], f"{made}_turned", perm=perm)
        return [nodes.add("Reshape", [turned, nodes.constant(f"shape_of_{result}", np.array(flat))], result)]
    reduction = {ours: name for name, ours in ONNX.merges.items()}[merge]
    return [nodes.add_moved(reduction, made, f"axis{axis}", [axis], result, keepdims=0)]


def ends(layer: Recurrent) -> tuple[str, ...]:
    """Return the suffixes of the names of a layer's outputs."""
    return ("_forward", "_backward") if layer.bidirectional and layer.merge is None else ("",)


def node_weights(parts: Parts, cell: Cell) -> Arrays:
    """Return W, R and, if present, B and P of a node from the parameters of each direction."""
    orders = cell.gates, ONNX.gates[cell.family]
    made = {name: np.stack([with_zeros(own[key], *orders) for own in parts]) for name, key in WEIGHTS}
    if "b" in parts[0]:
        halves = [(own["b"], own.get("b_rec", np.zeros_like(own["b"]))) for own in parts]
        made["B"] = np.stack([np.hstack([with_zeros(b, *orders) for b in both]) for both in halves])
    if "p" in parts[0]:
        made["P"] = np.stack([with_zeros(own["p"], cell.parameters, ONNX.peepholes) for own in parts])
    return made


def with_zeros(a: Any, source: Sequence[str], target: Sequence[str]) -> Any:
    """Return `reordered` with zeros for gates that only the target has: the operator ignores a coupled gate."""
    missing = [name for name in target if name not in source]
    zeros = np.zeros((len(a) // len(source) * len(missing), *a.shape[1:]), a.dtype)
    return reordered(np.concatenate([a, zeros]), [*source, *missing], target)


def write_dense(nodes: Nodes, layer: layers.Dense, x: Value, prefix: str) -> Value:
    weight = nodes.constant(f"{prefix}weight", np.ascontiguousarray(layer.weight.T))
    name = nodes.add("MatMul", [x.name, weight], f"{prefix}product")
    if layer.bias is not None:
        name = nodes.add("Add", [name, nodes.constant(f"{prefix}bias", layer.bias)], f"{prefix}sum")
    return write_activation(nodes, layer, x._replace(name=name), prefix)


def write_activation(nodes: Nodes, layer: layers.Dense | layers.Activation, x: Value, prefix: str) -> Value:
    if layer.activation not in OPERATORS:
        return x
    kind, attributes = OPERATORS[layer.activation]
    return x._replace(name=nodes.add(kind, [x.name], f"{prefix}{layer.activation}", **attributes))


def write_embedding(nodes: Nodes, layer: layers.Embedding, x: Value, prefix: str) -> Value:
    table = nodes.constant(f"{prefix}weight", layer.weight)
    return x._replace(name=nodes.add("Gather", [table, x.name], f"{prefix}rows", axis=0))


def write_normalization(nodes: Nodes, layer: layers.LayerNormalization, x: Value, prefix: str) -> Value:
    def mean(name: str) -> str:
        return nodes.add_moved("ReduceMean", name, "last_axis", [-1], f"{name}_mean", keepdims=1)

    centred = nodes.add("Sub", [x.name, mean(x.name)], f"{prefix}centred")
    variance = mean(nodes.add("Mul", [centred, centred], f"{prefix}squares"))
    epsilon = nodes.constant(f"{prefix}epsilon", np.array(layer.epsilon, layer.dtype))
    deviation = nodes.add("Sqrt", [nodes.add("Add", [variance, epsilon], f"{prefix}variance")], f"{prefix}deviation")
    name = nodes.add("Div", [centred, deviation], f"{prefix}normalized")
    if layer.weight is not None:
        name = nodes.add("Mul", [name, nodes.constant(f"{prefix}weight", layer.weight)], f"{prefix}scaled")
    if layer.bias is not None:
        name = nodes.add("Add", [name, nodes.constant(f"{prefix}bias", layer.bias)], f"{prefix}shifted")
    return x._replace(name=name)


def write_last(nodes: Nodes, layer: layers.LastStep, x: Value, prefix: str) -> Value:
    x = nodes.turned(x, False)
    if not nodes.lengths:
        index = nodes.constant("last", np.array(-1))
        return Value(nodes.add("Gather", [x.name, index], f"{prefix}last", axis=1), None)
    index = nodes.add("Sub", [nodes.each_length, "one"], f"{prefix}index")
    x = masked(nodes, x, nodes.add("Equal", [nodes.each_step, index], f"{prefix}is_last"), 0)
    return Value(nodes.add_moved("ReduceSum", x.name, "axis1", [1], f"{prefix}last", keepdims=0), None)


def write_mean(nodes: Nodes, layer: layers.GlobalAveragePooling1D, x: Value, prefix: str) -> Value:
    x = nodes.turned(x, False)
    if not nodes.lengths:
        return Value(nodes.add_moved("ReduceMean", x.name, "axis1", [1], f"{prefix}mean", keepdims=0), None)
    x = masked(nodes, x, nodes.mask, 0)
    total = nodes.add_moved("ReduceSum", x.name, "axis1", [1], f"{prefix}total", keepdims=0)
    kind = nodes.kind(nodes.dtype)
    counts = [nodes.add("Cast", [name], f"{prefix}{name}_real", to=kind) for name in (nodes.each_length, "one")]
    return Value(nodes.add("Div", [total, nodes.add("Max", counts, f"{prefix}counts")], f"{prefix}mean"), None)


def write_max(nodes: Nodes, layer: layers.GlobalMaxPooling1D, x: Value, prefix: str) -> Value:
    x = nodes.turned(x, False)
    if not nodes.lengths:
        return Value(nodes.add_moved("ReduceMax", x.name, "axis1", [1], f"{prefix}max", keepdims=0), None)
    x = masked(nodes, x, nodes.mask, -np.inf)
    y = Value(nodes.add_moved("ReduceMax", x.name, "axis1", [1], f"{prefix}max", keepdims=0), None)
    return masked(nodes, y, nodes.add("Less", ["zero", nodes.each_length], f"{prefix}some"), 0)


def masked(nodes: Nodes, x: Value, mask: str, other: float) -> Value:
    """Return x where the mask over its first axes is true, and `other` elsewhere."""
    integers = x.name == "x" and nodes.integers
    if x.steps is not None and not integers:
        mask = nodes.add_moved("Unsqueeze", mask, "axis2", [2], f"{x.name}_mask")
    padding = nodes.constant(f"padding_of_{x.name}", np.array(other, np.int64 if integers else nodes.dtype))
    return x._replace(name=nodes.add("Where", [mask, x.name, padding], f"{x.name}_masked"))


def write_repetition(nodes: Nodes, layer: layers.RepeatVector, x: Value, prefix: str) -> Value:
    one = nodes.add_moved("Unsqueeze", x.name, "axis1", [1], f"{prefix}one")
    shape = nodes.constant(f"{prefix}repeats", np.array([1, layer.n, 1]))
    return Value(nodes.add("Expand", [one, shape], f"{prefix}repeated"), layer.n)


#: class of a layer -> its writer
WRITERS: dict[type[Layer], Callable[[Nodes, Any, Value, str], Value]] = {
    Recurrent: write_recurrent,
    layers.Dense: write_dense,
    layers.Embedding: write_embedding,
    layers.Dropout: lambda nodes, layer, x, prefix: x,
    layers.Activation: write_activation,
    layers.LayerNormalization: write_normalization,
    layers.LastStep: write_last,
    layers.GlobalAveragePooling1D: write_mean,
    layers.GlobalMaxPooling1D: write_max,
    layers.RepeatVector: write_repetition,
}
