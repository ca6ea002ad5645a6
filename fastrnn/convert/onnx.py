"""ONNX's RNN, GRU and LSTM nodes: gates in an order of their own, both biases in one array, an axis of directions."""

from __future__ import annotations

import os
from typing import Any

from fastrnn.checks import boolean
from fastrnn.convert.onnx_chain import chain_of
from fastrnn.convert.onnx_graph import (
    Graph,
    Link,
    expect_inputs,
    is_recurrent,
    options_of,
    parsed,
    parts_of_node,
    title,
    without_recurrent,
)
from fastrnn.convert.stack import Parts, assembled
from fastrnn.extras import needed
from fastrnn.layers import Layer
from fastrnn.layers.recurrent import Recurrent


def from_onnx(path_or_model: Any, node: str | None = None, *, whole: bool = False) -> Layer:
    """A layer with the weights of a model's RNN, GRU or LSTM nodes, or the whole model as a `Sequential`.

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
    whole : bool
        Read every node: a chain of recurrent ones, a layer each, of products with a bias (`Dense`), rows of a table
        (`Embedding`), Sigmoid, Tanh, Relu, Softmax and Dropout, with what turns axes between them. Samples are first
        in what comes of it, whatever the model has.

    Returns
    -------
    RNN, GRU or LSTM
        A `Sequential` with `whole`.

    Raises
    ------
    TypeError
        For another object, or weights that are neither float32 nor float64.
    ValueError
        For what has no counterpart (``clip``, ``input_forget``, other ``activations``, a lone reverse direction), for
        weights that are computed, and for nodes that are no chain; the message names the node and what it is. With
        `whole` also for any other operator, and for a model of several outputs.
    ImportError
        If onnx is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.from_onnx("model.onnx")  # doctest: +SKIP
    """
    boolean("whole", whole)
    if whole and node is not None:
        raise ValueError(f"node: expected None beside whole=True, got {node!r}")
    onnx = needed("onnx", "onnx")
    model = loaded(onnx, path_or_model)
    graph = Graph(model)
    if whole:
        return chain_of(graph, model)
    nodes = [one for one in graph.nodes if is_recurrent(one)]
    if not nodes:
        why = without_recurrent(graph.nodes)
        raise ValueError(f"path_or_model: expected a model with an RNN, GRU or LSTM node, got one without{why}")
    for one in nodes:
        expect_inputs(one)
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
