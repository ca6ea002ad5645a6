"""`Recurrent`, the base of all recurrent layers: parameters, checks, calls, training, streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from fastrnn import backends
from fastrnn.call import Prepared
from fastrnn.cells import Cell
from fastrnn.checks import (
    Layout,
    as_array,
    boolean,
    checked_checkpoint,
    checked_inputs,
    checked_lengths,
    checked_resets,
    checked_x,
    expect_dtype,
    expect_heads,
    expect_room,
    expect_shape,
    floats,
    generator,
    rows,
)
from fastrnn.initializers import GlorotUniform, Initializer, Orthogonal, RandomUniform, Zeros, chosen, initial
from fastrnn.layers.base import Back, BackOfInputs, Layer, LayerCache, Output, Shape, checked_shape
from fastrnn.layers.dropout import mask
from fastrnn.layers.options import LayerOptions, expect_projects, features, parameter_names, parameter_shapes
from fastrnn.layers.regularised import Regularised
from fastrnn.merges import MERGES
from fastrnn.one_step import Form, OneStep
from fastrnn.packed import PackedStack, Part, Tape
from fastrnn.run import as_given
from fastrnn.types import Array, Arrays
from fastrnn.weight_dtypes import dequantized

#: Keras' initializers; Keras has no peepholes
KERAS_INITIALIZERS: dict[str, Initializer] = {"W": GlorotUniform(), "U": Orthogonal(), "b": Zeros(), "b_rec": Zeros()}


class Taped(NamedTuple):
    """Data that a training forward saves: a layer's `LayerCache.kept`."""

    tape: Tape
    layout: Layout


class Recurrent(LayerOptions, Layer):
    """Recurrent layers with any cell, with weights packed once.

    Parameters
    ----------
    cell : Cell
        As `fastrnn.cell` makes it, or one of `fastrnn.cells.CELLS`.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, merge, return_sequences, dtype
        As for `LSTM`.
    weight_dtype, recurrent_dropout, zoneout, weight_drop, proj_size, heads, initializer, rng
        As for `LSTM`. A cell's own parameters start at the values that the cell defines, else they are initialised like
        the weights; an initializer for "p" applies to all of them.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    If the cell has extra inputs, pass them as ``e``, a dict, to calls of the layer and to `fit` and `predict` of a
    `Sequential` that contains it; every layer and direction gets the same. Such a layer cannot be streamed.

    States are passed and returned as a tuple in the cell's order, or as one array if there is only one. Parameters are
    named as in `LSTM`; a cell's own are ``parameter_l0`` (P*H,), in their order.

    Dropout and zoneout act where ``rng.random(shape, np.float32)`` is below the rate. Masks are time-major and drawn in
    this order: those of `dropout`, from the bottom layer up; then for each layer and direction, in the order of the
    parameters, `weight_drop` with the shape of U, `recurrent_dropout` (B, H), and `zoneout` (T, B, H) for each state
    whose rate is above 0.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> from fastrnn.cells import sigmoid, tanh
    >>> @fastrnn.cell(gates="fn", states="h")
    ... def minimal_gated_unit(x, U, s):
    ...     f = sigmoid(x.f + U.f @ s.h)
    ...     return (1 - f) * s.h + f * tanh(x.n + U.n @ (f * s.h))
    >>> layer = fastrnn.Recurrent(minimal_gated_unit, 3, 4, num_layers=2)
    >>> y, h = layer(np.ones((5, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 2, 4))
    """

    stack: PackedStack  #: the parameters, and the code that runs them

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: str | None = "concat",
        return_sequences: bool = True,
        dtype: Any = np.float32,
        weight_dtype: str | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, ...] = 0.0,
        weight_drop: float = 0.0,
        proj_size: int = 0,
        heads: int = 1,
        initializer: Any = "torch",
        rng: Any = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            merge,
            return_sequences,
            weight_dtype,
            recurrent_dropout,
            zoneout,
            weight_drop,
            proj_size,
            heads,
            dtype,
        )
        if not isinstance(cell, Cell):
            raise TypeError(f"cell: expected a cell made by fastrnn.cell, got {cell!r:.80}")
        if self.proj_size:
            expect_projects(cell)
        shapes = parameter_shapes(self, cell)
        torch: dict[str, Initializer] = dict.fromkeys(shapes[0], RandomUniform(1 / np.sqrt(self.hidden_size)))
        start, rng = chosen(initializer, {"torch": torch, "keras": KERAS_INITIALIZERS}), generator(rng)
        parts = [{key: self._initial(start[key], key, own[key], rng) for key in own} for own in shapes]
        for part in parts:
            if cell.starts and start["p"] is torch["p"]:
                cell.begin(part["p"])
        self._hold(cell, parts)

    def _initial(self, f: Initializer, key: str, shape: tuple[int, ...], rng: Any) -> Array:
        """Initialise a parameter; each head of U on its own, (N*D, D), like U of a smaller layer."""
        if key != "U" or self.heads == 1:
            return initial(f, key, shape, rng, self.dtype)
        D = shape[1]
        own = [initial(f, key, (shape[0] // self.heads, D), rng, self.dtype) for _ in range(self.heads)]
        return np.stack([a.reshape(-1, D, D) for a in own], axis=1).reshape(shape)

    @classmethod
    def from_parts(cls, cell: Cell, parts: list[Part], **options: Any) -> Self:
        """Make a layer from arrays with the shapes from `parameter_shapes`; they are not copied."""
        layer = cls.__new__(cls)
        LayerOptions.__init__(layer, **options)
        layer._hold(cell, parts)
        return layer

    def _hold(self, cell: Cell, parts: list[Part]) -> None:
        expect_heads(cell, self.heads)
        if self.weight_dtype == "int8" and cell.program.means:
            raise ValueError(f"weight_dtype: int8 is not supported for {cell.name}, which averages over hidden units")
        zoneout = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * len(cell.states)
        self._regularised = Regularised(cell, self.recurrent_dropout, zoneout, self.weight_drop)
        directions = (False, True) if self.bidirectional else (False,)
        self.stack = PackedStack(
            cell,
            parts,
            directions,
            merge=self.merge,
            weight_dtype=self.weight_dtype,
            inference=self._regularised.inference,
            watched=True,
        )
        self._names = parameter_names(self, self.stack.cell)
        self.inputs = cell.inputs

    def parameters(self) -> dict[str, Array]:
        """Return the parameters, not copies, by PyTorch's names: weight_ih_l0 (G*H, I), weight_hh_l0, bias_ih_l0, ...

        Gates are stacked in PyTorch's order. Peepholes, which PyTorch does not have, are ``peephole_l0`` (3*H,), the
        parameters of a custom cell ``parameter_l0`` (P*H,). After changing one in place call `changed`: calls notice a
        change by themselves, but not every change of a few elements, and streams notice none.

        The matrices of a layer with int8 weights are read-only copies: `load_state_dict` replaces its weights.
        """
        return {name: dequantized(a) for name, a in self._named(self.stack.parts).items()}

    def _load(self, new: Mapping[str, Array]) -> None:
        for name, value in self._named(self.stack.parts).items():
            value[...] = new[name]
        self.changed()

    def _named(self, parts: list[Part]) -> dict[str, Array]:
        """Return one array per parameter, by the parameters' names."""
        pairs = zip(self._names, parts, strict=True)
        return {name: part[key] for names, part in pairs for key, name in names.items()}

    def changed(self) -> None:
        """Repack the parameters after they were changed in place. Open streams use the new ones."""
        self.stack.invalidate()

    def __call__(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        *,
        resets: Any = None,
        threads: int | None = None,
        e: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Any]:
        """Run over time.

        Parameters
        ----------
        x : (T, B, I) array, (B, T, I) with ``batch_first``, or (T, I) for one sequence
            Inputs, of the layer's dtype.
        state : (L*D, B, H) array, or for an LSTM a pair of them, optional
            Initial h, or (h, c), of L layers in D directions, in PyTorch's order; zeros when absent.
        lengths : (B,) integers, optional
            Valid steps of each sequence, 0..T in any order.
        resets : (T, B) booleans, optional
            Zero the state before these steps, in the direction of travel.
        threads : int, optional
            At most this many; `get_num_threads()` when absent. The result does not depend on it.
        e : dict of arrays, optional
            The cell's extra inputs by name: (T, B, H) or (T, B, 1), laid out like x, or (B, H) or (B, 1).

        Returns
        -------
        y : (T, B, H) array, (T, B, 2*H) with two directions concatenated, or a pair with ``merge=None``
            The top layer's hidden states, laid out like x; exactly 0 past a sequence's length. With
            ``return_sequences=False`` there is no axis T: y is the hidden state after each sequence's last valid step.
        state : (L*D, B, H) array, or for an LSTM a pair of them
            After each sequence's last valid step in the direction of travel.

        Raises
        ------
        TypeError, ValueError
            If an argument is not an array, or has the wrong dtype or shape; the message names it.
        """
        kind = None
        plain = lengths is None and resets is None and e is None and not self.inputs
        if plain and type(x) is np.ndarray and (threads is None or type(threads) is int):
            kind = x.shape, backends.get_num_threads() if threads is None else threads
            run = self.stack.prepared(kind)
            outputs = None if run is None else self._at_once(run, x, state)
            if outputs is not None:
                return outputs
        outputs = self._run(*self._checked(x, state, lengths, resets, threads, e))
        if kind is not None:  # the next call of this kind can skip the checks
            self.stack.prepare(kind, self.batch_first, self.return_sequences)
        return outputs

    def _at_once(self, run: Prepared, x: Array, state: Any) -> tuple[Any, Any] | None:
        """Run a prepared call; return None if x or the state need the general path."""
        states = self.stack.cell.states
        alone = len(states) == 1
        if state is not None:
            state = (state,) if alone else state
            if type(state) is not tuple or len(state) != len(states):
                return None
        outputs = run(x, state)
        return None if outputs is None else (outputs[0], outputs[1][0] if alone else outputs[1])

    def forward(
        self,
        x: Any,
        *,
        state: Any = None,
        lengths: Any = None,
        resets: Any = None,
        training: bool = False,
        checkpoint: Any = None,
        rng: Any = None,
        threads: int | None = None,
        e: Mapping[str, Any] | None = None,
    ) -> Output:
        """Run over time; with ``training=True`` also save what `backward` needs.

        Parameters
        ----------
        x, state, lengths, resets, threads, e
            As for a call of the layer.
        training : bool
            Return a cache, and draw the masks of dropout, zoneout and weight drop.
        checkpoint : int or "auto", optional
            In training, save only the state of every `checkpoint`-th step; see `lstm_forward`.
        rng : int or numpy.random.Generator, optional
            For the masks.

        Returns
        -------
        Output
            ``y`` and ``state``, as a call of the layer returns them, and ``cache``.

        Raises
        ------
        TypeError, ValueError
            As for a call of the layer; also for training with bfloat16 or int8 weights.
        """
        boolean("training", training)
        if not training:
            if checkpoint is not None:
                raise ValueError("checkpoint: needs training=True; got training=False")
            return Output(*self(x, state, lengths, resets=resets, threads=threads, e=e), None)
        if self.weight_dtype is not None:
            raise ValueError(
                f"weight_dtype: a layer with {self.weight_dtype} weights is for inference only; got training=True"
            )
        given, layout = self._checked(x, state, lengths, resets, threads, e)
        T, B, _ = given["x"].shape
        own = self._regularised
        rng = generator(rng) if self.dropout or own.draws else None
        between = range(self.num_layers - 1 if self.dropout else 0)
        masks = [mask((T, B, features(self)), self.dropout, rng, self.dtype) for _ in between]
        calls = self.stack.parts if own.draws else []
        drawn = [own.draw(part.get("U"), (T, B, self.hidden_size), rng, self.dtype) for part in calls]
        tape = Tape(backends.of(own.training), masks, checked_checkpoint(checkpoint, T), own.training, drawn)
        return Output(*self._run(given, layout, tape), LayerCache(self, Taped(tape, layout)))

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        """Backpropagate through time and down the stack for `forward`, any number of times.

        Parameters
        ----------
        dy : array shaped like y, or None
            Gradient of a scalar with respect to y, a pair of them with ``merge=None``; ignored past a sequence's
            length.
        cache : LayerCache
            The cache from this layer's ``forward(..., training=True)``. Its x, state, resets and the parameters must be
            unchanged since.
        dstate : shaped like the final state, optional
            Gradient with respect to the final state.

        Returns
        -------
        Back
            ``dx``, ``dstate`` of the initial state (None if none was given), and ``grads`` by the parameters' names.
            If the cell has extra inputs, the attribute ``de`` has their gradients by name.

        Raises
        ------
        TypeError, ValueError
            If the cache is of another layer, a sample of elements shows that x or a parameter has changed since, a
            gradient has the wrong dtype or shape, or both gradients are None.
        """
        tape, layout = self._own(cache)
        if dy is None and dstate is None:
            raise ValueError("dy: expected a gradient here or in dstate, got None for both")
        T, B, _ = tape.calls[0].x.shape
        dfinal = self._checked_state(dstate, B, layout, "dstate") or (None,) * len(self.stack.cell.states)
        dy = self._checked_dy(dy, T, B, layout)
        if not self.return_sequences and dy is not None:
            dy, dfinal = None, (self._with_last(dfinal[0], dy, tape), *dfinal[1:])
        dx, dinit, dparts, de = self.stack.backward(tape, dy, dfinal)
        first, names = tape.calls[0], self.stack.cell.inputs
        inputs = zip(names, de, first.e[: len(names)], first.fixed[: len(names)], strict=True)
        given = {name: as_given(d, a, fixed, layout) for name, d, a, fixed in inputs}
        kind = BackOfInputs if given else Back
        found = kind(layout.restore(dx), self._states_of_caller(dinit, layout), self._named(dparts))
        if isinstance(found, BackOfInputs):
            found.de = given
        return found

    def _with_last(self, dh: Array | None, dy: Any, tape: Tape) -> Array:
        """Return the gradient of every final h; y is the top layer's."""
        D = len(self.stack.directions)
        top = [states[0] for states in tape.final[-D:]]
        given = np.stack(MERGES[self.merge].backward(dy, *top) if D > 1 else [dy])
        whole = np.zeros((len(tape.final), *top[0].shape), self.dtype) if dh is None else dh.copy()
        whole[-D:] = given if dh is None else dh[-D:] + given  # not 0 + given: zeros keep their signs
        return whole

    def output_shape(self, shape: Shape) -> Shape:
        shape = checked_shape(shape)
        if len(shape) != 3 or shape[-1] != self.input_size:
            raise ValueError(f"x: expected shape (T, B, {self.input_size}), time-major, got {shape}")
        if self.bidirectional and self.merge is None:
            raise ValueError("merge: None gives a pair of outputs, which have no single shape; expected another value")
        return (*shape[0 if self.return_sequences else 1 : 2], features(self))

    def _checked(
        self, x: Any, state: Any, lengths: Any, resets: Any, threads: Any, e: Any = None
    ) -> tuple[dict[str, Any], Layout]:
        """Return the arguments of the stack's forward, and the caller's layout."""
        x = expect_dtype("x", as_array("x", x), self.dtype, "the layer's")
        x, layout = checked_x(x, self.batch_first, self.input_size)
        T, B, I = x.shape
        H = features(self)
        expect_room("x", "T, B, I, H", (T, B, I, H), T, B, I + 8 * H)
        given = {
            "x": x,
            "lengths": checked_lengths(lengths, T, B, layout),
            "resets": checked_resets(resets, T, B, layout),
            "threads": backends.thread_count(threads),
            "init": self._checked_state(state, B, layout),
        }
        if e is not None or self.inputs:
            sizes = T, B, self.hidden_size
            given["e"], given["fixed"] = checked_inputs(self.stack.cell, e, sizes, self.dtype, layout)
        return given, layout

    def _run(self, given: dict[str, Any], layout: Layout, tape: Tape | None = None) -> tuple[Any, Any]:
        """Return y and the state in the caller's layout."""
        y, final = self.stack.forward(**given, batch_first=layout.batch_first, tape=tape)
        if not self.return_sequences:
            h = final[0][-len(self.stack.directions) :].copy()
            y = MERGES[self.merge].forward(*h) if self.bidirectional else h[0]
        restore = layout.restore if self.return_sequences else layout.restore_state
        y = tuple([restore(a) for a in y]) if isinstance(y, tuple) else restore(y)
        return y, self._states_of_caller(final, layout)

    def _states_of_caller(self, states: Arrays | None, layout: Layout) -> Any:
        """Convert states to the caller's layout: the inverse of `_checked_state`."""
        if states is None:
            return None
        whole = tuple([s[:, 0] for s in states]) if layout.unbatched else states
        return whole[0] if len(whole) == 1 else whole

    def _checked_dy(self, dy: Any, T: int, B: int, layout: Layout) -> Any:
        """Return dy, time-major; a pair if `_run` returned a pair."""
        if dy is None:
            return None
        pair = self.bidirectional and self.merge is None
        if pair and (not isinstance(dy, tuple | list) or len(dy) != 2):
            raise TypeError(f"dy: expected a pair, one for each direction, got {type(dy).__name__}")
        shape = layout.every_step(T, B, features(self))[1]
        if not self.return_sequences:
            shape = shape[-1:] if layout.unbatched else (B, features(self))
        arrays = []
        for d in dy if pair else (dy,):
            a = expect_shape("dy", expect_dtype("dy", as_array("dy", d), self.dtype, "the layer's"), "that of y", shape)
            arrays.append(rows(layout.time_major(a)) if self.return_sequences else a.reshape(B, -1))
        return tuple(arrays) if pair else arrays[0]

    def _checked_state(self, state: Any, B: int, layout: Layout, name: str = "state") -> Arrays | None:
        """Return (L*D, B, H) for each state of the cell."""
        if state is None:
            return None
        unbatched, names = layout.unbatched, self.stack.cell.states
        if len(names) > 1 and (not isinstance(state, tuple | list) or len(state) != len(names)):
            got = f"{len(state)} of them" if isinstance(state, tuple | list) else type(state).__name__
            raise TypeError(f"{name}: expected a tuple ({', '.join(names)}), got {got}")
        shape = (len(self.stack.parts), *(() if unbatched else (B,)))
        meaning = "(L*D, H)" if unbatched else "(L*D, B, H)"
        given = zip(names, self.stack.widths, state if len(names) > 1 else (state,), strict=True)
        arrays = [
            floats(f"{name} {which}", s, meaning, (*shape, width), self.dtype, "the layer's")
            for which, width, s in given
        ]
        return tuple([a[:, None] if unbatched else a for a in arrays])

    def add_steps(self, step: OneStep) -> Form:
        if self.bidirectional:
            raise ValueError("stream: a bidirectional layer needs the whole sequence; call the layer instead")
        if self.inputs:
            raise ValueError("stream: the cell has extra inputs, which a step cannot take; call the layer instead")
        step.add(self.stack, features(self))
        return self.stack.cell.states

    def __repr__(self) -> str:
        depth = "" if self.num_layers == 1 else f", num_layers={self.num_layers}"
        sizes = f"{self.input_size}, {self.hidden_size}{depth}"
        return f"{type(self).__name__}({sizes}{self.unusual()}, dtype={self.dtype}) [{self.stack.cell.name}]"
