"""Read and run one RNN, GRU or LSTM node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends, catalogue
from fastrnn.call import Call
from fastrnn.cells import Array, Arrays, Cell, find, members
from fastrnn.checks import checked_lengths, expect_dtype, expect_shape, floating_array, floats, rows
from fastrnn.convert.onnx_graph import attributes_of, is_recurrent, part, text
from fastrnn.frameworks import ATTRIBUTES, DEFAULTS, INPUTS, ONNX, WEIGHTS, onnx_activations
from fastrnn.onnx import activations
from fastrnn.packed import PackedStack

#: Whether each direction runs in reverse.
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

#: Family of built-in cells -> the factory of its variants, and the options besides clip that the factory takes.
MAKERS: dict[str, tuple[Callable[..., Cell], tuple[str, ...]]] = {
    "rnn": (catalogue.rnn_with, ()),
    "gru": (catalogue.gru_with, ("reset_after",)),
    "lstm": (catalogue.lstm_with, ("input_forget", "peephole")),
}


class Way(NamedTuple):
    """One direction of a node."""

    reverse: bool
    cell: Callable[[bool], Cell]  #: from whether there are peepholes
    odd: str  #: the options that no built-in cell has, or ""


class Recurrent:
    """A parsed RNN, GRU or LSTM node.

    Raises ValueError for attributes that the operator does not have, and for invalid values of its attributes.
    """

    def __init__(self, node: Any) -> None:
        self.op = str(node.op_type)
        if not is_recurrent(node):
            known = ", ".join(ONNX.families)
            raise ValueError(f"node: expected one of {known}, got {node.domain or 'ai.onnx'}.{self.op}")
        self.family = ONNX.families[self.op]
        self.states = members(self.family)[0].states
        names = INPUTS if len(self.states) == 2 else INPUTS[:-2]
        #: names of values in the graph: inputs by their name in the operator; outputs in order, "" if absent
        self.inputs = {name: str(value) for name, value in zip(names, node.input, strict=False) if value}
        self.outputs = tuple(node.output)
        if not self.inputs.keys() >= {"X", "W", "R"} or len(node.input) > len(names):
            raise ValueError(f"node: expected inputs X, W, R and of {', '.join(names[3:])}, got {list(node.input)}")
        if len(self.outputs) > (most := 1 + len(self.states)):
            raise ValueError(f"node: expected at most {most} outputs, got {list(self.outputs)}")
        given = attributes_of(node)
        if unknown := given.keys() - ATTRIBUTES[self.family]:
            raise ValueError(f"{min(map(str, unknown))}: {self.op} has no such attribute here (ONNX 7 and later)")
        direction = text(given.get("direction", b"forward"))
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
        self.batch_first = self._switch(given, "layout")
        self._linear_before_reset = self._switch(given, "linear_before_reset")
        self._input_forget = self._switch(given, "input_forget")
        self._clip: float | None = given.get("clip")
        if self._clip is not None and not self._clip > 0:
            raise ValueError(f"clip: expected a positive number, got {self._clip}")
        self.hidden_size: int | None = given.get("hidden_size")
        self.ways = self._ways(DIRECTIONS[direction], given)

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
        steps_of = checked_lengths(lengths, T, B, False, "sequence_lens")
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

    @staticmethod
    def _switch(given: dict[str, Any], name: str) -> bool:
        if given.get(name, 0) not in (0, 1):
            raise ValueError(f"{name}: expected 0 or 1, got {given[name]}")
        return bool(given.get(name, 0))

    def _ways(self, directions: tuple[bool, ...], given: dict[str, Any]) -> list[Way]:
        each = len(DEFAULTS[self.family])
        names = [text(name) for name in given.get("activations", [])]
        names = names or [*DEFAULTS[self.family] * len(directions)]
        if each == len(directions) == 1:
            names = names[:1]  # ONNX's own default for an RNN is a pair
        if len(names) != each * len(directions):
            raise ValueError(f"activations: expected {each * len(directions)} names, got {len(names)}: {names}")
        chosen = activations.chosen(names, given.get("activation_alpha", []), given.get("activation_beta", []))
        return [self._way(reverse, chosen[d * each : (d + 1) * each]) for d, reverse in enumerate(directions)]

    def _way(self, reverse: bool, chosen: list[activations.Chosen]) -> Way:
        known, functions = onnx_activations(self.family), tuple((a.name, a.arguments) for a in chosen)
        parts = [] if functions in known else [f"activations {', '.join(a.name for a in chosen)}"]
        parts += [] if self._clip is None else ["clip"]
        parts += ["input_forget"] if self._input_forget else []

        def built_in(peephole: bool) -> Cell:
            after = self._linear_before_reset
            return find(self.family, activation=known[functions], reset_after=after, peephole=peephole)

        def defined(peephole: bool) -> Cell:
            make, takes = MAKERS[self.family]
            after, coupled = self._linear_before_reset, self._input_forget
            options = {"reset_after": after, "input_forget": coupled, "peephole": peephole}
            return make(*chosen, clip=self._clip, **{name: options[name] for name in takes})

        return Way(reverse, defined if parts else built_in, " and ".join(parts))


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
        gates, D = ONNX.gates[node.family], len(node.ways)
        G = len(gates)
        GH = "H" if G == 1 else f"{G}*H"
        W, R = floating_array("W", W), floating_array("R", R)
        H = R.shape[-1] if R.ndim == 3 else 0
        if H < 1 or node.hidden_size not in (None, H):
            wanted = f"hidden_size = {node.hidden_size}" if node.hidden_size else "H >= 1"
            raise ValueError(f"R: expected shape (D, {GH}, H) with {wanted}, got {R.shape}")
        self.dtype, self.H, self.I = W.dtype, H, W.shape[-1]
        expect_shape("R", expect_dtype("R", R, W.dtype, "that of W"), f"(D, {GH}, H)", (D, G * H, H))
        expect_shape("W", W, f"(D, {GH}, I)", (D, G * H, self.I))
        if B is not None:
            B = floats("B", B, f"(D, {2 * G}*H)", (D, 2 * G * H), W.dtype, "that of W")
        if P is not None:
            P = floats("P", P, "(D, 3*H)", (D, 3 * H), W.dtype, "that of W")
        self.stacks = []
        for d, way in enumerate(node.ways):
            own = {name: a[d] for name, a in zip(WEIGHTS, (W, R, B, P), strict=True) if a is not None}
            cell = way.cell("P" in own)
            self.stacks.append(PackedStack(cell, [part(own, gates, cell)], (way.reverse,)))
        self._keep = keep
        self.again = self.stacks[0] if keep and D == 1 else None

    def packed(self) -> list[Any]:
        """Packed weights per direction for the backend in use, or None for weights that are not packed."""
        return [stack.packed()[1][0] if self._keep else None for stack in self.stacks]
