"""Recurrent cells of the JAX libraries Flax, Equinox and Haiku, from their parameter trees."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn.cells import find
from fastrnn.checks import as_array, boolean, expect_dtype, expect_shape, floating_array
from fastrnn.convert.by_gate import from_gates
from fastrnn.convert.stack import Arrays, assembled, expect_names
from fastrnn.frameworks import HAIKU_GATES, PYTORCH
from fastrnn.layers.recurrent import Recurrent
from fastrnn.types import Array

Tree = Mapping[str, Any]

#: names of a Flax cell's products of x and of h, for each gate or fused
FLAX = re.compile("dense_[ih]|[ih][a-z_]*")


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
    for name, own in tree.items():
        if not isinstance(own, Mapping) or not FLAX.fullmatch(str(name)) or not own.keys() <= {"kernel", "bias"}:
            raise ValueError(
                f"params: expected the parameters of one recurrent cell, got {name!r} among {', '.join(map(str, tree))}"
            )
        if "kernel" not in own:
            raise ValueError(f"params: {name}: missing 'kernel'")
    parts = by_gate(tree) if tree.keys() == {"dense_i", "dense_h"} else arrays_of(tree, 1)
    two = any("bias" in own for name, own in parts.items() if name[0] == "i")
    words = {"i": ("W", "b"), "h": ("U", "b_rec" if two else "b")}
    gates: dict[str, Any] = {}
    for name, own in parts.items():
        for kind, key in zip(("kernel", "bias"), words[name[0]], strict=True):
            if kind in own:
                gates["_".join(filter(None, (key, name[1:].rstrip("_"))))] = own[kind]
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


def arrays_of(tree: Tree, G: int) -> dict[str, Arrays]:
    """Return the arrays of products of x, whose names have an i, and of h, each of G gates."""
    sides = {name: name.removeprefix("dense_")[0] for name in tree}
    for side in "ih":
        own = [name for name in tree if sides[name] == side]
        having = [name for name in own if "bias" in tree[name]]
        if lacking := [name for name in own if name not in having and having not in ([], ["hn"])]:
            raise ValueError(f"params: {lacking[0]}: missing 'bias', which {having[0]} has")
    if set(sides.values()) != {"i", "h"}:
        raise ValueError(f"params: expected kernels of x and of h, got {', '.join(tree) or 'none'}")
    wide = f"{G}*H" if G > 1 else "H"
    shapes = {"ikernel": f"(I, {wide})", "hkernel": f"(H, {wide})", "ibias": f"({wide},)", "hbias": f"({wide},)"}
    given = {f"{name}: {kind}": a for name, own in tree.items() for kind, a in own.items()}
    wanted = {f"{name}: {kind}": shapes[sides[name] + kind] for name, own in tree.items() for kind in own}
    arrays = checked("params", given, wanted)
    return {name: {kind: arrays[f"{name}: {kind}"] for kind in own} for name, own in tree.items()}


def by_gate(fused: Tree) -> dict[str, Arrays]:
    """Split two fused products into one per gate."""
    shape = as_array("params: dense_h: kernel", fused["dense_h"]["kernel"], sequence=True).shape
    gates = next(
        (gates for gates in PYTORCH.gates.values() if shape[1:] == tuple(len(gates) * H for H in shape[:1])), ""
    )
    if not gates:
        raise ValueError(f"params: dense_h: expected a kernel (H, G*H) with G = 1, 3 or 4, got {shape}")
    names = gates if len(gates) > 1 else ("",)
    return {
        side.removeprefix("dense_") + name: {kind: np.split(a, len(names), axis=-1)[i] for kind, a in own.items()}
        for side, own in arrays_of(fused, len(names)).items()
        for i, name in enumerate(names)
    }


def checked(whose: str, given: Mapping[str, Any], wanted: Mapping[str, str]) -> Arrays:
    """Return a cell's arrays; raise unless they are of one dtype, and of shapes that fit each other.

    Each is `wanted` with a shape in terms of I and H, such as "(I, 3*H)".
    """
    expect_names(whose, given, wanted)
    titles = {name: f"{whose}: {name}" for name in wanted}
    arrays = {name: floating_array(titles[name], as_array(titles[name], given[name], sequence=True)) for name in wanted}
    axes = {name: meaning.strip("(),").split(", ") for name, meaning in wanted.items()}
    found: dict[str, int] = {}
    for name, a in arrays.items():
        if a.ndim != len(axes[name]):
            raise ValueError(f"{titles[name]}: expected shape {wanted[name]}, got {a.shape}")
        found = dict(zip(axes[name], a.shape, strict=True)) | found
    H = found["H"] if "H" in found else found["4*H"] // 4
    I = found["I"] if "I" in found else found["I + H"] - H
    if min(I, H) < 1:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise ValueError(f"{whose}: expected I and H of at least 1, got {shapes}")
    known = {"I": I, "I + H": I + H, "H": H} | {f"{G}*H": G * H for G in (3, 4)}
    dtype = next(iter(arrays.values())).dtype
    for name, a in arrays.items():
        expect_dtype(titles[name], a, dtype, "that of the others")
        expect_shape(titles[name], a, wanted[name], tuple(known[axis] for axis in axes[name]))
    return arrays


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
    given = {name: a for name in (*names, "bias_n") if (a := getattr(cell, name, None)) is not None}
    wanted = {"weight_ih": f"({own.G}*H, I)", "weight_hh": f"({own.G}*H, H)"}
    if given.keys() & {"bias", "bias_n"}:
        wanted |= {"bias": f"({own.G}*H,)"} | ({"bias_n": "(H,)"} if hasattr(cell, "bias_n") else {})
    arrays = checked("cell", given, wanted)
    part = {key: arrays[name] for key, name in zip("WUb", names, strict=True) if name in arrays}
    if "bias_n" in arrays:
        part["b_rec"] = np.concatenate([np.zeros_like(arrays["bias_n"])] * (own.G - 1) + [arrays["bias_n"]])
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
    if not all(
        isinstance(own, Mapping) and all(isinstance(n, str) for n in (name, *own)) for name, own in found.items()
    ):
        found = {}
    modules = sorted(found)
    given = {f"{name}: {key}": a for name in modules for key, a in found[name].items()}
    kinds = [name.rpartition("/")[2] for name in modules]
    if len(modules) == 1 and found[modules[0]].keys() >= {"w_i", "w_h"}:
        return haiku_gru(modules[0], given, batch_first)
    if kinds == ["linear"] and "/" in modules[0]:
        return haiku_lstm(modules[0], given, batch_first)
    if kinds == ["linear", "linear_1"] and len({name.rpartition("/")[0] for name in modules}) == 1:
        return haiku_rnn(modules[0], modules[1], given, batch_first)
    names = ", ".join(map(str, params)) or "none"
    raise ValueError(f"params: expected those of one LSTM, GRU or VanillaRNN, got {names}; select one with module=")


def haiku_rnn(linear: str, linear_1: str, given: Mapping[str, Any], batch_first: bool) -> Recurrent:
    """Convert the linear modules of x and of h; either may have no bias."""
    wanted = {f"{linear}: w": "(I, H)", f"{linear_1}: w": "(H, H)"}
    wanted |= {name: "(H,)" for name in (f"{linear}: b", f"{linear_1}: b") if name in given}
    arrays = checked("params", given, wanted)
    names = {"W": f"{linear}: w", "U": f"{linear_1}: w", "b": f"{linear}: b", "b_rec": f"{linear_1}: b"}
    gates: dict[str, Any] = {key: arrays[name] for key, name in names.items() if name in arrays}
    return from_gates(**gates, activation="relu", transposed=True, batch_first=batch_first)


def haiku_lstm(module: str, given: Mapping[str, Any], batch_first: bool) -> Recurrent:
    w, b = checked("params", given, {f"{module}: w": "(I + H, 4*H)", f"{module}: b": "(4*H,)"}).values()
    H = len(b) // 4
    gates = gates_of("lstm", W=w[:-H], U=w[-H:], b=b)
    return from_gates(**gates | {"b_f": gates["b_f"] + b.dtype.type(1)}, transposed=True, batch_first=batch_first)


def haiku_gru(module: str, given: Mapping[str, Any], batch_first: bool) -> Recurrent:
    wanted = {f"{module}: w_i": "(I, 3*H)", f"{module}: w_h": "(H, 3*H)", f"{module}: b": "(3*H,)"}
    W, U, b = checked("params", given, wanted).values()
    gates = gates_of("gru", W=W, U=U, b=b)
    return from_gates(**gates, reset_after=False, update="write", transposed=True, batch_first=batch_first)


def gates_of(family: str, **arrays: Array) -> dict[str, Any]:
    """Split arrays of all gates, in Haiku's order, into one per gate, named as for `from_gates`."""
    order = HAIKU_GATES[family]
    split = {name: zip(order, np.split(a, len(order), axis=-1), strict=True) for name, a in arrays.items()}
    return {f"{name}_{gate}": part for name, parts in split.items() for gate, part in parts}
