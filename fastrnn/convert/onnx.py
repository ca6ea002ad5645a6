"""Convert ONNX's RNN, GRU and LSTM nodes: another gate order, both biases in one array, an axis of directions."""

from __future__ import annotations

import os
from typing import Any

from fastrnn.checks import boolean
from fastrnn.convert.onnx_chain import chain_of
from fastrnn.convert.onnx_graph import (
    Graph,
    Link,
    direction_axis,
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
    """Make a layer with the weights of a model's RNN, GRU or LSTM nodes, or convert the whole model to a `Sequential`.

    Stacked nodes, with only dropout and nodes that join the directions between them, become one layer with that many
    ``num_layers``. It is ``batch_first`` if the first node's X is transposed, or its ``layout`` is 1; it has
    ``return_sequences=False`` if the last node has no Y. Initial states and lengths are passed in calls of the layer.
    Nodes with equal weights, as in the branches of an If, count as one.

    Parameters
    ----------
    path_or_model : path or onnx.ModelProto
        Weights must be constants, or computed from constants only.
    node : str, optional
        Convert only the node with this name or output; needed if there are several nodes that do not form a stack.
    whole : bool
        Convert every node. The model must be a chain of recurrent nodes (a layer each), products with a bias (`Dense`),
        rows of a table (`Embedding`), Sigmoid, Tanh, Relu, Softmax and Dropout, with transposes between them. The
        result is batch-first, whatever the model's layout.

    Returns
    -------
    RNN, GRU or LSTM
        A `Sequential` with `whole`.

    Raises
    ------
    TypeError
        For another object, or weights that are neither float32 nor float64.
    ValueError
        For unsupported features (``clip``, ``input_forget``, other ``activations``, a single reverse direction),
        computed weights, and nodes that do not form a chain; the message names the node and the reason. With `whole`
        also for any other operator, and a model with several outputs.
    ImportError
        If onnx is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.from_onnx("model.onnx")  # doctest: +SKIP
    """
    boolean("whole", whole)
    if whole and node is not None:
        raise ValueError(f"node: expected None with whole=True, got {node!r}")
    onnx = needed("onnx", "onnx")
    model = loaded(onnx, path_or_model)
    graph = Graph(model)
    if whole:
        return chain_of(graph, model)
    nodes = [one for one in graph.nodes if is_recurrent(one)]
    if not nodes:
        why = without_recurrent(graph.nodes)
        raise ValueError(f"path_or_model: expected a model with an RNN, GRU or LSTM node, found none{why}")
    for one in nodes:
        expect_inputs(one)
    if node is not None:
        nodes = [one for one in nodes if node in (one.name, *one.output)]
        if len(nodes) != 1:
            raise ValueError(f"node: expected the name of one recurrent node, got {node!r}, which matches {len(nodes)}")
        return layer_of(graph, nodes, [])
    links = {id(one): link for one in nodes if (link := graph.link(one)) is not None}
    tops = [one for one in nodes if all(link.below is not one for link in links.values())]
    if not links and (layer := only_one(graph, nodes)) is not None:
        return layer
    if len(tops) != 1:
        raise ValueError(f"node: expected one of {', '.join(map(title, nodes))}, because they do not form a stack")
    stack, between = tops, list[Link]()
    while len(stack) < len(nodes) and (link := links.get(id(stack[0]))) is not None:
        stack, between = [link.below, *stack], [link, *between]
    if len(stack) != len(nodes):
        raise ValueError(f"node: expected one of {', '.join(map(title, nodes))}, because they branch")
    return layer_of(graph, stack, between)


def only_one(graph: Graph, nodes: list[Any]) -> Recurrent | None:
    """Return the layer of the nodes if all are equal, else None: each branch of an If has a copy."""
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
    """Make one layer of these nodes, from the bottom up."""
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
    """Return the merge of the top's two directions ("any" if unknown), and whether only its last step is used."""
    names = [*node.output, "", ""]
    last = not names[0] and bool(names[1])
    readers = graph.consumers[names[1] if last else names[0]]
    axis = direction_axis(layout, last)
    merges = {merge for one in readers if (merge := graph.reduction(one, axis))}
    if len(merges) == 1:
        return merges.pop(), last
    return (None if {graph.index(one, axis) for one in readers} >= {0, 1} else "any"), last
