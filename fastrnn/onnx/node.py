"""Run one RNN, GRU or LSTM node.

References
----------
.. [1] ONNX, "Operators": RNN, GRU, LSTM, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends, catalogue
from fastrnn.call import Call
from fastrnn.cells import Cell, clip, relu, sigmoid, softplus, tanh, where
from fastrnn.checks import checked_lengths, expect_dtype, floating_array, floats, rows
from fastrnn.convert.onnx_reader import Direction, RecurrentNode
from fastrnn.packed import PackedStack
from fastrnn.types import Array, Arrays

#: Family of built-in cells -> the factory of its variants, and the options besides clip that the factory takes.
MAKERS: dict[str, tuple[Callable[..., Cell], tuple[str, ...]]] = {
    "rnn": (catalogue.rnn_with, ()),
    "gru": (catalogue.gru_with, ("reset_after",)),
    "lstm": (catalogue.lstm_with, ("input_forget", "peephole")),
}

#: The functions of `frameworks.ONNX_ACTIVATIONS` [1]_; each takes a, then its alpha and beta.
ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": relu,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "affine": lambda a, alpha, beta: alpha * a + beta,
    "leakyrelu": lambda a, alpha: where(a < 0, alpha * a, a),
    "thresholdedrelu": lambda a, alpha: where(a < alpha, 0, a),
    "scaledtanh": lambda a, alpha, beta: alpha * tanh(beta * a),
    "hardsigmoid": lambda a, alpha, beta: clip(a * alpha + beta, 0, 1),
    "elu": catalogue.elu,
    "softsign": catalogue.softsign,
    "softplus": softplus,
}


@dataclass(frozen=True)
class Chosen:
    """One activation of a node, with the alpha and beta that it takes."""

    name: str
    arguments: tuple[float, ...] = ()

    def __call__(self, a: Any) -> Any:
        """f(a)."""
        return ACTIVATIONS[self.name](a, *self.arguments)


class Way(NamedTuple):
    """One direction of a node."""

    reverse: bool
    cell: Callable[[bool], Cell]  #: from whether there are peepholes
    odd: str  #: the options that no built-in cell has, or ""


class Recurrent(RecurrentNode):
    """A recurrent node with the cells that run it."""

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.ways = [self._way(direction) for direction in self.directions]

    @property
    def runs_in_kernels(self) -> bool:
        return all(backends.in_kernels(way.cell(False)) for way in self.ways)

    @property
    def why(self) -> str:
        """The options that keep the node out of the kernels, or ""."""
        return "" if self.runs_in_kernels else next((way.odd for way in self.ways if way.odd), "")

    def run(
        self, X: Any, lengths: Any, h: Any, c: Any, *, weights: Weights, threads: int | None = None
    ) -> tuple[Array, ...]:
        """Return Y, Y_h and, for an LSTM, Y_c, in the node's layout."""
        x = X = expect_dtype("X", floating_array("X", X), weights.dtype, "that of W")
        D, H, I = len(self.ways), weights.H, weights.I
        if x.ndim != 3 or x.shape[2] != I:
            layout = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(f"X: expected shape {layout} with I = {I}, got {x.shape}")
        x = rows(x.swapaxes(0, 1) if self.batch_first else x)
        T, B, _ = x.shape
        init = [self._state(name, s, (D, B, H), x.dtype) for name, s in (("initial_h", h), ("initial_c", c))]
        steps_of = checked_lengths(lengths, T, B, name="sequence_lens")
        states = self._of_sequences(init[: len(self.states)], T, steps_of)
        threads = backends.thread_count(threads)
        again = weights.again if lengths is None else None
        if again and (run := again.prepared((X.shape, threads))):
            outputs = run(X, None if all(s is None for s in states) else tuple(states))
            if outputs is not None:
                y, last = outputs
                return y[:, :, None] if self.batch_first else y[:, None], *self._laid_out(last)
        y, by_direction = self._output(T, D, B, H, x.dtype)
        calls = [
            stack.call(
                0,
                x,
                tuple([None if s is None else s[d] for s in states]),
                packed=packed,
                y=by_direction[d],
                lengths=steps_of,
                threads=threads,
            )
            for d, (stack, packed) in enumerate(zip(weights.stacks, weights.packed(), strict=True))
        ]
        results = self._forward(calls)
        if again:
            again.prepare((X.shape, threads), self.batch_first, True)
        final = [s[None] for s in results[0]] if D == 1 else [np.stack(s) for s in zip(*results, strict=True)]
        return y, *self._laid_out(final)

    def _laid_out(self, states: Iterable[Array]) -> list[Array]:
        """Convert from (D, B, H) to the node's layout."""
        return [s.swapaxes(0, 1) if self.batch_first else s for s in states]

    def _forward(self, calls: list[Call]) -> list[Arrays]:
        """The final states of each direction; two directions on one backend run in parallel."""
        first, *others = [backends.of(call.cell) for call in calls]
        if all(backend is first for backend in others):
            return [result.final for result in first.forward(calls)]
        return [backends.of(call.cell).forward([call])[0].final for call in calls]

    def _output(self, T: int, D: int, B: int, H: int, dtype: Any) -> tuple[Array, list[Array]]:
        """Y, and its (T, B, H) view for each direction."""
        if self.batch_first:
            y = np.empty((B, T, D, H), dtype)
            return y, [y[:, :, d].swapaxes(0, 1) for d in range(D)]
        y = np.empty((T, D, B, H), dtype)
        return y, [y[:, d] for d in range(D)]

    def _state(self, name: str, s: Any, shape: tuple[int, int, int], dtype: Any) -> Array | None:
        """(D, B, H)"""
        if s is None:
            return None
        D, B, H = shape
        if self.batch_first:
            return np.ascontiguousarray(floats(name, s, "(B, D, H)", (B, D, H), dtype, "that of X").swapaxes(0, 1))
        return floats(name, s, "(D, B, H)", shape, dtype, "that of X")

    @staticmethod
    def _of_sequences(states: list[Array | None], T: int, lengths: Array | None) -> list[Array | None]:
        """Zero the initial states of empty sequences, whose final state is 0 in ONNX Runtime."""
        if T == 0:
            return [None] * len(states)
        if lengths is None or lengths.all():
            return states
        return [None if s is None else np.where(lengths[:, None] > 0, s, 0) for s in states]

    def _way(self, direction: Direction) -> Way:
        unusual, chosen = self.unusual(direction), [Chosen(*function) for function in direction.functions]

        def defined(peephole: bool) -> Cell:
            make, takes = MAKERS[self.family]
            after, coupled = self.linear_before_reset, self.input_forget
            options = {"reset_after": after, "input_forget": coupled, "peephole": peephole}
            return make(*chosen, clip=self.clip, **{name: options[name] for name in takes})

        words = {"activations": f"activations {', '.join(own.name for own in chosen)}"}
        odd = " and ".join(words.get(name, name) for name in unusual)
        return Way(direction.reverse, defined if odd else partial(self.builtin_cell, direction), odd)


class Weights:
    """A node's parameters in fastrnn's gate order, per direction.

    With `keep` they are packed for the kernels at the first use and reused.

    Attributes
    ----------
    stacks : list of PackedStack
        One single-layer stack per direction, because their cells may differ.
    again : PackedStack or None
        The stack that caches prepared calls: that of a node with one direction and kept weights.
    """

    def __init__(self, node: Recurrent, W: Any, R: Any, B: Any, P: Any, *, keep: bool = False) -> None:
        weights = node.checked_weights(W, R, B, P)
        self.dtype, self.H, self.I = weights["W"].dtype, weights["R"].shape[-1], weights["W"].shape[-1]
        self.stacks = []
        for d, way in enumerate(node.ways):
            cell = way.cell("P" in weights)
            self.stacks.append(PackedStack(cell, [node.part(weights, d, cell)], (way.reverse,)))
        self._keep = keep
        self.again = self.stacks[0] if keep and len(node.ways) == 1 else None

    def packed(self) -> list[Any]:
        """Packed weights per direction for the backend in use, or None for weights that are not packed."""
        return [stack.packed()[1][0] if self._keep else None for stack in self.stacks]
