"""Convert ONNX's RNN, GRU and LSTM nodes: another gate order, both biases in one array, an axis of directions."""

from __future__ import annotations

from typing import Any

from fastrnn.checks import boolean
from fastrnn.convert.onnx_chain import chain_of
from fastrnn.convert.onnx_graph import Graph, Link, direction_axis, options_of, parts_of_node, recurrent_node
from fastrnn.convert.onnx_reader import is_recurrent, opened, title, without_recurrent
from fastrnn.convert.stack import Parts, assembled
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
    path_or_model : path, bytes or onnx.ModelProto
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
    model = opened("path_or_model", path_or_model)
    graph = Graph(model)
    if whole:
        return chain_of(graph, model)
    nodes = [one for one in graph.nodes if is_recurrent(one)]
    if not nodes:
        why = without_recurrent(graph.nodes)
        raise ValueError(f"path_or_model: expected a model with an RNN, GRU or LSTM node, found none{why}")
    for one in nodes:
        recurrent_node(one)
    if node is not None:
        found = [one for one in nodes if node in (one.name, *one.output)]
        if len(found) != 1:
            known = ", ".join(map(title, nodes))
            raise ValueError(f"node: expected one of {known}, got {node!r}, which matches {len(found)}")
        return layer_of(graph, found, [])
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


def layer_of(graph: Graph, nodes: list[Any], links: list[Link]) -> Recurrent:
    """Make one layer of these nodes, from the bottom up."""
    cell, bidirectional, batch_first = options = options_of(nodes[0])
    merge, last = after_top(graph, nodes[-1], batch_first)
    parts: Parts = []
    for node in nodes:
        if (other := options_of(node)) != options:
            raise ValueError(f"{title(node)}: expected {options} as the first node, got {other}")
        parts += parts_of_node(graph, node, cell)
    told: dict[str, Any] = {"batch_first": batch_first or graph.turned(nodes[0]), "return_sequences": not last}
    if links:
        rates, merges = {link.rate for link in links}, {link.merge for link in links}
        if len(rates) > 1 or (bidirectional and (len(merges) > 1 or merge not in (*merges, "any"))):
            raise ValueError(f"{title(nodes[-1])}: expected one dropout and one merge, got {rates} and {merges, merge}")
        told["dropout"], merge = rates.pop(), merges.pop()
    if bidirectional:
        told["merge"] = "concat" if merge == "any" else merge
    return assembled("model", cell, parts, bidirectional, **told)


def after_top(graph: Graph, node: Any, batch_first: bool) -> tuple[str | None, bool]:
    """Return the merge of the top's two directions ("any" if unknown), and whether only its last step is used."""
    names = [*node.output, "", ""]
    last = not names[0] and bool(names[1])
    readers = graph.consumers[names[1] if last else names[0]]
    axis = direction_axis(batch_first, last)
    merges = {merge for one in readers if (merge := graph.reduction(one, axis))}
    if len(merges) == 1:
        return merges.pop(), last
    return (None if {graph.index(one, axis) for one in readers} >= {0, 1} else "any"), last
