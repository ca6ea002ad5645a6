"""Recurrent cells of the JAX libraries Flax, Equinox and Haiku, from their parameter trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn.cells import Array, find
from fastrnn.checks import as_array, boolean
from fastrnn.convert.by_gate import from_gates
from fastrnn.convert.stack import assembled
from fastrnn.frameworks import HAIKU_GATES, PYTORCH
from fastrnn.layers.recurrent import Recurrent

Tree = Mapping[str, Any]


def from_flax(params: Any, *, activation: str | None = None, batch_first: bool = False) -> Recurrent:
    """Make a layer with the parameters of a recurrent cell of Flax.

    Parameters
    ----------
    params : mapping
        For ``flax.linen``, the result of ``init`` of an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, also inside
        an ``RNN``; for ``flax.nnx``, ``nnx.to_pure_dict(nnx.state(cell))``. From a larger model, pass the subtree of
        one cell.
    activation : {"tanh", "relu", "sigmoid", "identity"}, optional
        Activation of a SimpleCell, which its parameters do not determine; "tanh" by default.
    batch_first : bool
        The layer's option.

    Returns
    -------
    RNN, GRU or LSTM

    Raises
    ------
    TypeError, ValueError
        For another cell (such as MGUCell), or a tree that is not of one cell; the message names its content.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> rng = np.random.default_rng(0)
    >>> dense = lambda *shape: {"kernel": rng.random(shape), "bias": rng.random(shape[-1])}
    >>> fastrnn.from_flax({"params": {"i": dense(3, 4), "h": {"kernel": rng.random((4, 4))}}})
    RNN(3, 4, bias='input', dtype=float64) [rnn_tanh]
    """
    tree = one_cell(params)
    fused = {name.removeprefix("dense_"): own for name, own in tree.items() if name in ("dense_i", "dense_h")}
    parts = by_gate(fused) if len(fused) == 2 else dict(tree)
    two = any("bias" in own for name, own in parts.items() if name[:1] == "i")
    words = {"i": ("W", "b"), "h": ("U", "b_rec" if two else "b")}
    gates: dict[str, Any] = {}
    for name, own in parts.items():
        if name[:1] not in words or not isinstance(own, Mapping) or not own.keys() <= {"kernel", "bias"}:
            raise ValueError(
                f"params: expected the parameters of one recurrent cell, got {name!r} among {', '.join(tree)}"
            )
        for kind, key in zip(("kernel", "bias"), words[name[0]], strict=True):
            if kind in own:
                gates["_".join(filter(None, (key, name[1:].rstrip("_"))))] = np.asarray(own[kind])
    told: dict[str, Any] = gates | ({"reset_after": True} if "U_z" in gates else {})
    return from_gates(**told, activation=activation, transposed=True, batch_first=batch_first)


def one_cell(params: Any) -> Tree:
    """Unwrap levels with a single subtree, such as "params" and "cell"."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a mapping, as init returns, got {type(params).__name__}")
    tree: Tree = params
    while len(tree) == 1 and isinstance(inner := next(iter(tree.values())), Mapping):
        tree = inner
    return tree


def by_gate(fused: Mapping[str, Tree]) -> dict[str, Tree]:
    """Split the two fused products into one per gate."""
    H, GH = np.shape(fused["h"]["kernel"])
    gates = next((gates for gates in PYTORCH.gates.values() if len(gates) * H == GH), "")
    if not gates:
        raise ValueError(f"params: dense_h: expected a kernel (H, G*H) with G = 1, 3 or 4, got {(H, GH)}")
    names = gates if len(gates) > 1 else ("",)
    return {
        side + name: {kind: np.split(np.asarray(a), len(names), axis=-1)[i] for kind, a in own.items()}
        for side, own in fused.items()
        for i, name in enumerate(names)
    }


def from_equinox(cell: Any, *, batch_first: bool = False) -> Recurrent:
    """Make a layer with the parameters of a recurrent cell of Equinox.

    Parameters
    ----------
    cell : equinox.nn.LSTMCell or GRUCell
    batch_first : bool
        The layer's option.

    Returns
    -------
    GRU or LSTM

    Raises
    ------
    TypeError
        For another object, or parameters that are neither float32 nor float64.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.from_equinox(equinox.nn.GRUCell(3, 4, key=key))  # doctest: +SKIP
    """
    boolean("batch_first", batch_first)
    names = ("weight_ih", "weight_hh", "bias")
    if not all(hasattr(cell, name) for name in names):
        raise TypeError(f"cell: expected equinox.nn.LSTMCell or GRUCell, got {type(cell).__name__}")
    own = find("gru", reset_after=True) if hasattr(cell, "bias_n") else find("lstm", peephole=False)
    W, U, b = (None if (a := getattr(cell, name)) is None else as_array(name, np.asarray(a)) for name in names)
    part = {key: a for key, a in (("W", W), ("U", U), ("b", b)) if a is not None}
    if b is not None and hasattr(cell, "bias_n"):
        bias_n = np.asarray(cell.bias_n)
        part["b_rec"] = np.concatenate([np.zeros_like(bias_n)] * (own.G - 1) + [bias_n])
    return assembled("cell", own, [part], False, batch_first=batch_first)


def from_haiku(params: Any, *, module: str | None = None, batch_first: bool = False) -> Recurrent:
    """Make a layer with the parameters of a recurrent core of Haiku.

    Haiku's LSTM adds 1 to its forget gate; here that is part of the bias. The GRU is that of Cho et al.,
    ``reset_after=False``; its update gate is the share of the candidate, so that gate's weights are negated. The
    VanillaRNN uses relu.

    Parameters
    ----------
    params : mapping
        The result of ``init`` of an LSTM, GRU or VanillaRNN.
    module : str, optional
        The name of one of several modules: "policy/~/lstm".
    batch_first : bool
        The layer's option.

    Returns
    -------
    RNN, GRU or LSTM

    Raises
    ------
    TypeError, ValueError
        For another core, or parameters that are not of one core; the message names the modules found.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> fastrnn.from_haiku({"lstm/linear": {"w": np.ones((3 + 4, 16)), "b": np.zeros(16)}})
    LSTM(3, 4, bias='input', dtype=float64) [lstm]
    """
    boolean("batch_first", batch_first)
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a mapping, as init returns, got {type(params).__name__}")
    found = {name: own for name, own in params.items() if module is None or f"{name}/".startswith(f"{module}/")}
    if not all(isinstance(name, str) and isinstance(own, Mapping) for name, own in found.items()):
        found = {}
    arrays = {name: {key: np.asarray(a) for key, a in own.items()} for name, own in sorted(found.items())}
    kinds = [(name.rpartition("/")[2], sorted(own)) for name, own in arrays.items()]
    stored = list(arrays.values())
    if len(kinds) == 1 and kinds[0][1] == ["b", "w_h", "w_i"]:
        return haiku_gru(stored[0], batch_first)
    if kinds == [("linear", ["b", "w"])] and "/" in next(iter(arrays)) and stored[0]["b"].size % 4 == 0:
        return haiku_lstm(stored[0]["w"], stored[0]["b"], batch_first)
    if [name for name, _ in kinds] == ["linear", "linear_1"] and len({name.rpartition("/")[0] for name in arrays}) == 1:
        return haiku_rnn(stored[0], stored[1], batch_first)
    names = ", ".join(map(str, params)) or "none"
    raise ValueError(f"params: expected those of one LSTM, GRU or VanillaRNN, got {names}; select one with module=")


def haiku_rnn(linear: Mapping[str, Array], linear_1: Mapping[str, Array], batch_first: bool) -> Recurrent:
    """Convert the linear modules of x and of h."""
    biases = {key: own["b"] for key, own in (("b", linear), ("b_rec", linear_1)) if "b" in own}
    gates: dict[str, Any] = {"W": linear["w"], "U": linear_1["w"]} | biases
    return from_gates(**gates, activation="relu", transposed=True, batch_first=batch_first)


def haiku_lstm(w: Array, b: Array, batch_first: bool) -> Recurrent:
    H = w.shape[1] // 4
    gates = gates_of("lstm", W=w[:-H], U=w[-H:], b=b)
    return from_gates(**gates | {"b_f": gates["b_f"] + b.dtype.type(1)}, transposed=True, batch_first=batch_first)


def haiku_gru(own: Mapping[str, Array], batch_first: bool) -> Recurrent:
    gates = gates_of("gru", W=own["w_i"], U=own["w_h"], b=own["b"])
    return from_gates(**gates, reset_after=False, update="write", transposed=True, batch_first=batch_first)


def gates_of(family: str, **arrays: Array) -> dict[str, Any]:
    """Split arrays of all gates, in Haiku's order, into one per gate, named as for `from_gates`."""
    order = HAIKU_GATES[family]
    split = {name: zip(order, np.split(a, len(order), axis=-1), strict=True) for name, a in arrays.items()}
    return {f"{name}_{gate}": part for name, parts in split.items() for gate, part in parts}
