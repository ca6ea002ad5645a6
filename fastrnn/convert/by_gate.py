"""Weights stored as one array per gate, as in recurrent networks written by hand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fastrnn.cells import Cell, find, members
from fastrnn.checks import among, as_array, boolean
from fastrnn.convert.stack import Arrays, assembled
from fastrnn.frameworks import BY_HAND
from fastrnn.layers.recurrent import Recurrent
from fastrnn.run import gru_cell, rnn_cell
from fastrnn.types import Array

NAME = re.compile("(W|U|b_rec|b|p)(?:_?([ifgcorznh]))?")


def from_gates(
    *,
    reset_after: bool | None = None,
    update: str | None = None,
    activation: str | None = None,
    transposed: bool | None = None,
    batch_first: bool = False,
    **gates: Any,
) -> Recurrent:
    """Make a layer from one array per gate; the names determine the cell.

    Parameters
    ----------
    Wi, Wf, Wc, Wo, Ui, ..., bi, ... : arrays
        An LSTM: input weights W (H, I), recurrent weights U (H, H) and optional biases b (H,) of the input, forget,
        candidate and output gate. The candidate is c or g. ``pi``, ``pf``, ``po`` (H,) are peepholes.
    Wr, Wz, Wh, Ur, ..., br, ... : arrays
        A GRU: reset gate, update gate, and the candidate, with letter h, n or none (``W``, ``U``, ``b``).
    W, U, b : arrays
        A vanilla RNN.
    b_rec_i, ... : (H,) arrays
        A second bias, added to the recurrent product. Names may have an underscore before the letter: ``W_i``. If only
        some of the biases are given, the others are zeros: a GRUCell of Flax or Equinox has only ``b_rec_n`` of these.
    reset_after : bool
        For a GRU, where it is required: whether the reset gate acts after the recurrent product.
    update : {"keep", "write"}, optional
        For a GRU, the meaning of z: "keep" is h' = z h + (1-z) n, the default, as in fastrnn and PyTorch; "write" is
        h' = (1-z) h + z n, converted to the other by negating that gate's weights.
    activation : {"tanh", "relu", "sigmoid", "identity"}, optional
        For a vanilla RNN; "tanh" by default.
    transposed : bool, optional
        True if W is (I, H) and U is used as ``h @ U``. By default inferred from the shape of W, unless I = H.
    batch_first : bool
        The layer's option.

    Returns
    -------
    RNN, GRU or LSTM

    Raises
    ------
    TypeError
        If an argument is not a float32 or float64 array, or a GRU has no `reset_after`.
    ValueError
        For an unknown name, a missing gate, or a wrong shape; the message names it.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> Wz, Wr, W = np.random.default_rng(0).standard_normal((3, 4, 2))
    >>> Uz, Ur, U = np.random.default_rng(1).standard_normal((3, 4, 4))
    >>> fastrnn.from_gates(Wz=Wz, Wr=Wr, W=W, Uz=Uz, Ur=Ur, U=U, reset_after=False, update="write")
    GRU(2, 4, bias=False, dtype=float64) [gru_before]
    """
    boolean("batch_first", batch_first)
    given = {name: NAME.fullmatch(name) for name in gates}
    unknown = [name for name, match in given.items() if match is None]
    if unknown or not gates:
        raise ValueError(f"gates: expected names like Wi, U_f, bo, got {', '.join(unknown) or 'none'}")
    matches = {name: (match[1], match[2] or "") for name, match in given.items() if match}
    peephole = any(key == "p" for key, _ in matches.values())
    cell = cell_of_gates({letter for _, letter in matches.values()}, reset_after, update, activation, peephole)
    found: dict[str, Arrays] = {}
    for name, (key, letter) in matches.items():
        gate = BY_HAND[cell.family][letter]
        if gate in found.setdefault(key, {}):
            raise ValueError(f"{name}: gate {gate} is already given under another name")
        found[key][gate] = as_array(name, gates[name])
    if not {"W", "U"} <= found.keys():
        raise ValueError(f"gates: expected W and U, got {', '.join(found)}")
    a = next(iter(found["U"].values()))
    zeros = np.zeros(a.shape[-1:], a.dtype)
    for key in ("b", "b_rec") if "b_rec" in found else ("b",) if "b" in found else ():
        found[key] = dict.fromkeys(cell.gates, zeros) | found.get(key, {})
    for key, own in found.items():
        expected = cell.parameters if key == "p" else cell.gates
        if missing := set(expected) ^ own.keys():
            each = f"one array for each gate of {', '.join(expected)}" if expected else "none"
            raise ValueError(f"{key}: expected {each}; check {', '.join(missing)}")
    turned = orientation(found["W"], found["U"], transposed)
    parts = {key: stacked_gates(key, own, cell, turned) for key, own in found.items()}
    if update == "write":
        parts = {key: flipped(a, cell) for key, a in parts.items()}
    return assembled("gates", cell, [parts], False, batch_first=batch_first)


def cell_of_gates(letters: set[str], reset_after: Any, update: Any, activation: Any, peephole: bool) -> Cell:
    family = next((family for family, own in BY_HAND.items() if letters <= own.keys()), None)
    if family is None:
        raise ValueError(f"gates: expected i f c o, r z h, or none, got {', '.join(sorted(letters))}, not of one cell")
    options = members(family)[0].options
    for name, value, option, owner in (
        ("reset_after", reset_after, "reset_after", "GRU"),
        ("update", update, "reset_after", "GRU"),
        ("activation", activation, "activation", "vanilla RNN"),
    ):
        if value is not None and option not in options:
            gates = f"the gates of the {family.upper()}"
            raise ValueError(f"{name}: expected None (only for a {owner}), because these are {gates}; got {value!r}")
    if update is not None and not among(update, ("keep", "write")):
        raise ValueError(f'update: expected "keep" or "write", got {update!r}')
    if "reset_after" in options:
        return gru_cell(reset_after)
    if "activation" in options:
        return rnn_cell("tanh" if activation is None else activation)
    return find(family, peephole=peephole)


def orientation(W: Arrays, U: Arrays, transposed: Any) -> bool:
    """Return whether W is (I, H), and U is used as ``h @ U``."""
    if transposed is not None:
        boolean("transposed", transposed)
        return bool(transposed)
    shape, H = next(iter(W.values())).shape, next(iter(U.values())).shape[-1:]
    if shape == H * 2:
        raise ValueError(f"transposed: expected True (x @ W) or False (W @ x), because W is square, {shape}")
    return bool(shape[-1:] == H)


def stacked_gates(key: str, own: Arrays, cell: Cell, transposed: bool) -> Array:
    """Stack the arrays of all gates in our order."""
    arrays = [own[gate] for gate in (cell.parameters if key == "p" else cell.gates)]
    if key not in ("W", "U"):  # in hand-written code a bias may be a column or a row
        arrays = [a.reshape(-1) if max(a.shape, default=0) == a.size else a for a in arrays]
    elif transposed:
        arrays = [a.T for a in arrays]
    if len({(a.shape, a.dtype) for a in arrays}) > 1:
        raise ValueError(
            f"{key}: expected one shape and dtype for all gates, got {[(a.shape, a.dtype) for a in arrays]}"
        )
    if arrays[0].ndim != (2 if key in ("W", "U") else 1):
        raise ValueError(f"{key}: expected shape {'(H, I)' if key == 'W' else '(H, ...)'}, got {arrays[0].shape}")
    return np.concatenate(arrays)


def flipped(a: Array, cell: Cell) -> Array:
    """Convert W, U or bias of a GRU from update="write" to "keep": sigmoid(-a) = 1 - sigmoid(a)."""
    new = a.copy()
    z = np.split(new, cell.G)[cell.gates.index("z")]
    np.negative(z, out=z)
    return new
