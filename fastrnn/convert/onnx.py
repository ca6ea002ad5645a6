"""ONNX's RNN, GRU and LSTM nodes: gates in an order of their own, both biases in one array, an axis of directions."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.checks import boolean
from fastrnn.convert.onnx_graph import Graph, Link, is_recurrent, options_of, parsed, parts_of_node, title
from fastrnn.convert.stack import Arrays, Parts, assembled, recurrent
from fastrnn.extras import needed
from fastrnn.frameworks import ONNX, onnx_functions, reordered, spelled
from fastrnn.layers.options import features
from fastrnn.layers.recurrent import Recurrent

#: of the models that are written: the opset in which reductions take their axes as an input, and its IR
OPSET, IR = 18, 8

#: a node's matrices, and what they are here
WEIGHTS = (("W", "W"), ("R", "U"))


def from_onnx(path_or_model: Any, node: str | None = None) -> Recurrent:
    """A layer with the weights of a model's RNN, GRU or LSTM nodes.

    Nodes that stand on one another, with nothing between them but what joins the directions (and dropout), are one
    layer of so many ``num_layers``. It is ``batch_first`` if the first node's X is the transpose of something, or its
    ``layout`` is 1; it has ``return_sequences=False`` if the last node's Y is not there. Initial states and lengths are
    given in the call of the layer. Nodes of the same weights, as the branches of an If have them, count as one.

    Parameters
    ----------
    path_or_model : path or onnx.ModelProto
        Weights must be constants, or put together from constants.
    node : str, optional
        The name of one node, or of an output of it, that alone is meant; needed where there are several that do not
        stand on one another.

    Returns
    -------
    RNN, GRU or LSTM

    Raises
    ------
    TypeError
        For another object, or weights that are neither float32 nor float64.
    ValueError
        For what has no counterpart (``clip``, ``input_forget``, other ``activations``, a lone reverse direction), for
        weights that are computed, and for nodes that are no chain; the message names the node and what it is.
    ImportError
        If onnx is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.from_onnx("model.onnx")  # doctest: +SKIP
    """
    onnx = needed("onnx", "onnx")
    graph = Graph(loaded(onnx, path_or_model))
    nodes = [one for one in graph.nodes if is_recurrent(one)]
    if not nodes:
        raise ValueError("path_or_model: expected a model with an RNN, GRU or LSTM node, got one without")
    for one in nodes:
        if len(one.input) < 3 or not all(one.input[:3]):
            raise ValueError(f"{title(one)}: expected inputs X, W and R, got {list(one.input)}")
    if node is not None:
        nodes = [one for one in nodes if node in (one.name, *one.output)]
        if len(nodes) != 1:
            raise ValueError(f"node: expected the name of one recurrent node, got {node!r}, which {len(nodes)} have")
        return layer_of(graph, nodes, [])
    links = {id(one): link for one in nodes if (link := graph.link(one)) is not None}
    tops = [one for one in nodes if all(link.below is not one for link in links.values())]
    if not links and (layer := only_one(graph, nodes)) is not None:
        return layer
    if len(tops) != 1:
        raise ValueError(f"node: expected which one is meant of {', '.join(map(title, nodes))}, which are no one chain")
    stack, between = tops, list[Link]()
    while len(stack) < len(nodes) and (link := links.get(id(stack[0]))) is not None:
        stack, between = [link.below, *stack], [link, *between]
    if len(stack) != len(nodes):
        raise ValueError(f"node: expected which one is meant of {', '.join(map(title, nodes))}, which branch")
    return layer_of(graph, stack, between)


def only_one(graph: Graph, nodes: list[Any]) -> Recurrent | None:
    """The layer that every one of the nodes is, if they are one: the branches of an If have a copy each."""
    first, *others = [layer_of(graph, [node], []) for node in nodes]
    own = first.parameters()
    for other in others:
        same = other.parameters()
        if repr(other) != repr(first) or any(a.tobytes() != same[name].tobytes() for name, a in own.items()):
            return None
    return first


def loaded(onnx: Any, path_or_model: Any) -> Any:
    if isinstance(path_or_model, onnx.ModelProto):
        return path_or_model
    if not isinstance(path_or_model, str | os.PathLike):
        raise TypeError(f"path_or_model: expected a path or onnx.ModelProto, got {type(path_or_model).__name__}")
    return parsed(f"path_or_model: {os.fspath(path_or_model)}", onnx.load, os.fspath(path_or_model))


def layer_of(graph: Graph, nodes: list[Any], links: list[Link]) -> Recurrent:
    """One layer of these nodes, from below."""
    cell, bidirectional, layout = options_of(graph, nodes[0])
    merge, last = after_top(graph, nodes[-1], layout)
    parts: Parts = []
    for node in nodes:
        if (other := options_of(graph, node)) != (cell, bidirectional, layout):
            raise ValueError(f"{title(node)}: expected {cell, bidirectional, layout} as the first node, got {other}")
        parts += parts_of_node(graph, node, cell, 1 + bidirectional)
    options: dict[str, Any] = {"batch_first": layout == 1 or graph.turned(nodes[0]), "return_sequences": not last}
    if links:
        rates, merges = {link.rate for link in links}, {link.merge for link in links}
        if len(rates) > 1 or (bidirectional and (len(merges) > 1 or merge not in (*merges, "any"))):
            raise ValueError(f"{title(nodes[-1])}: expected one dropout and one merge, got {rates} and {merges, merge}")
        options["dropout"], merge = rates.pop(), merges.pop()
    if bidirectional:
        options["merge"] = "concat" if merge == "any" else merge
    return assembled("model", cell, parts, bidirectional, **options)


def after_top(graph: Graph, node: Any, layout: int) -> tuple[str | None, bool]:
    """What becomes of the top's two directions, "any" if it does not show, and whether there is its last step alone."""
    names = [*node.output, "", ""]
    last = not names[0] and bool(names[1])
    readers = graph.consumers[names[1] if last else names[0]]
    axis = (1 if layout else 0) if last else (2 if layout else 1)
    merges = {merge for one in readers if (merge := graph.reduction(one, axis))}
    if len(merges) == 1:
        return merges.pop(), last
    return (None if {graph.index(one, axis) for one in readers} >= {0, 1} else "any"), last


def to_onnx(layer: Any, *, lengths: bool = False, state: bool = False) -> Any:
    """A model that computes in ONNX what the layer does.

    Its input is "x" (T, B, I), or (B, T, I) with ``batch_first``, T and B being free; its outputs are "y" ("y_forward"
    and "y_backward" with ``merge=None``), "h_n" and for an LSTM "c_n", all as the layer gives them.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
    lengths : bool
        An input "sequence_lens" (B,), int32.
    state : bool
        Inputs "h0" and for an LSTM "c0", (L*D, B, H); else the initial states are zeros.

    Returns
    -------
    onnx.ModelProto
        Of opset 18. Save it by ``onnx.save``. ONNX Runtime computes in float32 alone.

    Raises
    ------
    TypeError
        For another layer.
    ValueError
        For `proj_size`, bfloat16 weights, and zoneout.
    ImportError
        If onnx is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> model = fastrnn.to_onnx(fastrnn.LSTM(3, 4))  # doctest: +SKIP
    """
    boolean("lengths", lengths)
    boolean("state", state)
    return Writer(needed("onnx", "onnx"), recurrent(layer, ONNX)).model(lengths, state)


class Writer:
    """Nodes and constants of a model, as they come."""

    def __init__(self, onnx: Any, layer: Recurrent) -> None:
        self._onnx, self._layer = onnx, layer
        self._nodes: list[Any] = []
        self._constants: Arrays = {}
        self._D = 1 + layer.bidirectional
        self._states = layer.stack.cell.states

    def model(self, lengths: bool, state: bool) -> Any:
        helper, layer = self._onnx.helper, self._layer
        L, H = layer.num_layers, layer.hidden_size
        initial = {s: self._split(f"{s}0") for s in self._states} if state else {}
        x = self._node("Transpose", ["x"], "x_by_time", perm=(1, 0, 2)) if layer.batch_first else "x"
        for i in range(L):
            top = i == L - 1
            self._layer_node(i, x, lengths, [names[i] for names in initial.values()])
            if not top or layer.return_sequences:
                x = self._joined(f"Y{i}", 1, "y" if top and not layer.batch_first else f"y{i}")
            else:
                self._joined(f"h_of{i}", 0, "y")
            if layer.dropout and not top:
                rate = self._constant("rate", np.array(layer.dropout))
                x = self._node("Dropout", [x, rate], f"dropped{i}")
        if layer.return_sequences and layer.batch_first:
            for end in self._ends():
                self._node("Transpose", [f"y{L - 1}{end}"], f"y{end}", perm=(1, 0, 2))
        for s in self._states:
            self._node("Concat", [f"{s}_of{i}" for i in range(L)], f"{s}_n", axis=0)

        batch = ["B", "T"] if layer.batch_first else ["T", "B"]
        states: list[Any] = [L * self._D, "B", H]
        inputs = [self._value("x", [*batch, layer.input_size])]
        if lengths:
            inputs.append(helper.make_tensor_value_info("sequence_lens", self._onnx.TensorProto.INT32, ["B"]))
        inputs += [self._value(f"{s}0", states) for s in initial]
        steps = batch if layer.return_sequences else ["B"]
        outputs = [self._value(f"y{end}", [*steps, features(layer)]) for end in self._ends()]
        outputs += [self._value(f"{s}_n", states) for s in self._states]
        constants = [self._onnx.numpy_helper.from_array(a, name) for name, a in self._constants.items()]
        graph = helper.make_graph(self._nodes, layer.stack.cell.name, inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)

    def _ends(self) -> tuple[str, ...]:
        """What the names of the outputs of every step end in."""
        return ("_forward", "_backward") if self._D == 2 and self._layer.merge is None else ("",)

    def _layer_node(self, i: int, x: str, lengths: bool, initial: list[str]) -> None:
        layer = self._layer
        cell = layer.stack.cell
        parts = layer.stack.parts[i * self._D : (i + 1) * self._D]
        weights = {name: self._constant(f"{name}{i}", a) for name, a in node_weights(parts, cell).items()}
        names = [x, weights["W"], weights["R"], weights.get("B", ""), "sequence_lens" if lengths else ""]
        names += initial or [""] * len(self._states)
        names += [weights["P"]] if "P" in weights else []
        attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
        if layer.bidirectional:
            attributes["direction"] = "bidirectional"
        if "reset_after" in cell.options:
            attributes["linear_before_reset"] = int(cell.options["reset_after"])
        if "activation" in cell.options:
            attributes["activations"], alpha, beta = spelled(onnx_functions(cell), self._D)
            attributes |= {"activation_alpha": alpha, "activation_beta": beta} if alpha else {}
        unused = i == layer.num_layers - 1 and not layer.return_sequences
        outputs = ["" if unused else f"Y{i}", *[f"{s}_of{i}" for s in self._states]]
        kind = ONNX.classes[cell.family]
        self._nodes.append(self._onnx.helper.make_node(kind, names, outputs, name=f"layer{i}", **attributes))

    def _joined(self, name: str, axis: int, result: str) -> str:
        """Without the axis of directions."""
        merge = self._layer.merge
        if self._D == 1:
            return self._node("Squeeze", [name, self._constant(f"axis{axis}", np.array([axis]))], result)
        if merge is None:
            for end, which in zip(self._ends(), (0, 1), strict=True):
                index = self._constant(f"direction{which}", np.array(which))
                self._node("Gather", [name, index], result + end, axis=axis)
            return result
        if merge == "concat":
            perm, flat = ((0, 2, 1, 3), [0, 0, -1]) if axis else ((1, 0, 2), [0, -1])
            turned = self._node("Transpose", [name], f"{name}_turned", perm=perm)
            return self._node("Reshape", [turned, self._constant(f"flat{axis}", np.array(flat))], result)
        reduction = {ours: name for name, ours in ONNX.merges.items()}[merge]
        axes = self._constant(f"axis{axis}", np.array([axis]))
        return self._node(reduction, [name, axes], result, keepdims=0)

    def _split(self, name: str) -> list[str]:
        """A stack's initial states, layer by layer."""
        L = self._layer.num_layers
        names = [f"{name}_{i}" for i in range(L)]
        sizes = self._constant("sizes", np.full(L, self._D))
        self._nodes.append(self._onnx.helper.make_node("Split", [name, sizes], names, axis=0))
        return names

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _constant(self, name: str, value: Any) -> str:
        self._constants[name] = value
        return name

    def _value(self, name: str, shape: list[Any]) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(self._layer.dtype)
        return self._onnx.helper.make_tensor_value_info(name, kind, shape)


def node_weights(parts: Parts, cell: Cell) -> Arrays:
    """W, R, B and P of a node, as far as they are there, from what each direction has."""
    orders = cell.gates, ONNX.gates[cell.family]
    made = {name: np.stack([reordered(own[key], *orders) for own in parts]) for name, key in WEIGHTS}
    if "b" in parts[0]:
        halves = [(own["b"], own.get("b_rec", np.zeros_like(own["b"]))) for own in parts]
        made["B"] = np.stack([np.hstack([reordered(b, *orders) for b in both]) for both in halves])
    if "p" in parts[0]:
        made["P"] = np.stack([reordered(own["p"], cell.parameters, ONNX.peepholes) for own in parts])
    return made
