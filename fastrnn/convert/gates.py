"""In which order each framework stacks its gates, and from one order to another; the one place that knows.

A gate has one letter: an LSTM's i, f, g (Keras' and ONNX's c), o; a GRU's r, z and n (their h); the RNN's only one h.
"""

from __future__ import annotations

import numpy as np

from fastrnn.cells import Array

#: framework -> family of cells -> its gates, first to last. PyTorch's are ours.
GATES = {
    "fastrnn": {"rnn": "h", "gru": "rzn", "lstm": "ifgo"},
    "torch": {"rnn": "h", "gru": "rzn", "lstm": "ifgo"},
    "keras": {"rnn": "h", "gru": "zrn", "lstm": "ifgo"},
    "onnx": {"rnn": "h", "gru": "zrn", "lstm": "iofg"},
}

#: framework -> its peepholes, for those that have any
PEEPHOLES = {"fastrnn": "ifo", "onnx": "iof"}


def rearranged(a: Array, source: str, target: str, axis: int = 0) -> Array:
    """With the equal parts that are stacked along an axis, a letter each, in another order: a new array."""
    parts = dict(zip(source, np.split(a, len(source), axis), strict=True))
    return np.concatenate([parts[letter] for letter in target], axis)


def reordered(a: Array, family: str, source: str, target: str, axis: int = 0) -> Array:
    """From one framework's order of gates along an axis to another's: a new array.

    Examples
    --------
    >>> import numpy as np
    >>> reordered(np.array([1, 2, 3, 4]), "lstm", "fastrnn", "onnx")  # i, f, g, o to i, o, f, g
    array([1, 4, 2, 3])
    """
    return rearranged(a, GATES[source][family], GATES[target][family], axis)


def reordered_peepholes(a: Array, source: str, target: str) -> Array:
    """From one framework's order of peepholes along the first axis to another's: a new array."""
    return rearranged(a, PEEPHOLES[source], PEEPHOLES[target])


def flipped(a: Array, family: str = "gru") -> Array:
    """Our W, U or bias of a GRU whose z says how much is written, not kept: sigmoid(-a) = 1 - sigmoid(a)."""
    gates = GATES["fastrnn"][family]
    H, z = len(a) // len(gates), gates.index("z")
    new = a.copy()
    np.negative(new[z * H : (z + 1) * H], out=new[z * H : (z + 1) * H])
    return new
