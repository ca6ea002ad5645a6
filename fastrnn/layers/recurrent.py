"""What all recurrent layers have in common: directions, stacks, training, streams."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn import backends
from fastrnn.call import Call, Prepared, empty
from fastrnn.cells import Array, Arrays
from fastrnn.checks import (
    as_array,
    boolean,
    checked_checkpoint,
    checked_lengths,
    checked_resets,
    every_step,
    expect_dtype,
    expect_room,
    expect_shape,
    floats,
    generator,
    rows,
    size,
    time_major,
)
from fastrnn.layers.base import Back, Cache, Output, Shape, checked_shape
from fastrnn.layers.options import MERGES
from fastrnn.layers.stream import Stream
from fastrnn.layers.tape import Layout, States, Tape, added, total
from fastrnn.layers.weights import Quick, Weighted
from fastrnn.run import callers


def first_of_unbatched(a: Array, unbatched: bool, batch_first: bool) -> Array:
    """What `callers` is for outputs of every step, for one of the last."""
    return a[0] if unbatched else a


def shaped(T: int, B: int, features: int, dtype: Any) -> Array:
    """A (T, B, features) array that takes the memory of one row."""
    return np.lib.stride_tricks.as_strided(np.zeros(features, dtype), (T, B, features), (0, 0, dtype.itemsize))


class Recurrent(Weighted):
    """What `RNN`, `GRU` and `LSTM` have in common; they say what the arguments mean."""

    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, *, resets: Any = None, threads: int | None = None
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
            Start afresh before these steps, in the direction of travel.
        threads : int, optional
            At most this many; `get_num_threads()` when absent. The result does not depend on it.

        Returns
        -------
        y : (T, B, H) array, (T, B, 2*H) from two directions concatenated, or a pair with ``merge=None``
            The top layer's hidden states, laid out like x; exactly 0 past a sequence's length. With
            ``return_sequences=False`` without the axis T: after each sequence's last valid step.
        state : (L*D, B, H) array, or for an LSTM a pair of them
            After each sequence's last valid step in the direction of travel.

        Raises
        ------
        TypeError, ValueError
            For what is not an array, or of another dtype or shape; the message names the argument.
        """
        plain = lengths is None and resets is None and (threads is None or type(threads) is int)
        quick = self._quick_for(x, threads) if plain and type(x) is np.ndarray and not self.bidirectional else None
        if quick is not None and quick.run is not None:
            outputs = self._quickly(quick.run, x, state)
            if outputs is not None:
                return outputs
        given = x
        x, init, options, layout = self._checked(x, state, lengths, resets, threads)
        y, states = self._given(self._run(x, init, options, layout), layout)
        if quick is not None and quick.run is None:  # the second of its kind: the next need not be checked again
            self._quick = quick if self._quick is not quick else self._described(quick, given, options["threads"])
        return y, states

    def _quick_for(self, x: Array, threads: int | None) -> Quick:
        """The one that is kept, or if that is for another kind of call a new one without `run`."""
        _, packed = self._prepared()  # those of the backend and instruction set in use, and of no other
        key = (x.shape, backends.get_num_threads() if threads is None else threads)
        quick = self._quick
        return quick if quick and quick.key == key and quick.packed is packed else Quick(key, packed, None)

    def _quickly(self, run: Prepared, x: Array, state: Any) -> tuple[Any, Any] | None:
        """What a call gives; None where the general way has to look at x or the state."""
        alone = len(self._cell.states) == 1
        if state is not None:
            state = (state,) if alone else state
            if type(state) is not tuple or len(state) != len(self._cell.states):
                return None
        outputs = run(x, state)
        return None if outputs is None else (outputs[0], outputs[1][0] if alone else outputs[1])

    def _described(self, quick: Quick, x: Array, threads: int) -> Quick:
        """With its `run`. Arrays of the right shapes stand in for x and for what is written."""
        batch_first = self.batch_first and x.ndim == 3
        T, B, _ = time_major(x, x.ndim == 2, batch_first).shape
        y = shaped(T, B, self.hidden_size, self.dtype)
        calls = [
            self._call(i, shaped(T, B, I, self.dtype), None, quick.packed[i], y, threads=threads, follows=i > 0)
            for i, I in enumerate(self._input_sizes())
        ]
        return quick._replace(run=backends.current().prepared(calls, x.shape, batch_first, self.return_sequences))

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
    ) -> Output:
        """Run over time, and with ``training=True`` keep what `backward` needs.

        Parameters
        ----------
        x, state, lengths, resets, threads
            As for a call of the layer.
        training : bool
            Keep a cache, and drop out between layers.
        checkpoint : int or "auto", optional
            In training, keep the state of every `checkpoint`-th step only; see `lstm_forward`.
        rng : int or numpy.random.Generator, optional
            For dropout.

        Returns
        -------
        Output
            ``y`` and ``state``, as a call of the layer gives them, and ``cache``.

        Raises
        ------
        TypeError, ValueError
            As a call of the layer; also for the training of bfloat16 weights.
        """
        boolean("training", training)
        if not training:
            if checkpoint is not None:
                raise ValueError("checkpoint: only a forward with training=True keeps anything; got training=False")
            return Output(*self(x, state, lengths, resets=resets, threads=threads), None)
        if self.weight_dtype is not None:
            raise ValueError(
                f"weight_dtype: a layer of {self.weight_dtype} weights is for inference; got training=True"
            )
        x, init, options, layout = self._checked(x, state, lengths, resets, threads)
        options |= {"training": True, "checkpoint": checked_checkpoint(checkpoint, len(x))}
        merge = MERGES[self.merge] if self.bidirectional else None
        rng = generator(rng) if self.dropout else None
        tape = Tape(backends.current(), merge, self.dropout, rng, layout)
        return Output(*self._given(self._run(x, init, options, layout, tape), layout), Cache(self, tape))

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        """Backpropagate through time and down the stack what `forward` did, as often as you like.

        Parameters
        ----------
        dy : array shaped like y, or None
            Gradient of a scalar with respect to y, a pair of them with ``merge=None``; what it holds past a
            sequence's length does not matter.
        cache : Cache
            Of this layer's own ``forward(..., training=True)``. What it refers to, x, the state, resets and the
            parameters, must be as it was then.
        dstate : shaped like the final state, optional
            Gradient with respect to the final state.

        Returns
        -------
        Back
            ``dx``, ``dstate`` of the initial state (None if none was given), and ``grads`` by the parameters' names.

        Raises
        ------
        TypeError, ValueError
            For another cache, or one whose x or parameters were changed since, as far as some elements of each tell;
            for gradients of another dtype or shape, or none at all.
        """
        tape: Tape = self._own(cache)
        if dy is None and dstate is None:
            raise ValueError("dy: expected it or dstate, got None for both")
        D, (T, B, _) = len(self._ways), tape.calls[0].x.shape
        dfinal = self._each(self._checked_state(dstate, B, tape.layout, "dstate"))
        dy = self._checked_dy(dy, T, B, tape.layout)
        dys: list[Array | None] = [None] * D
        if self.return_sequences:
            dys = tape.parted(dy, [call.output() for call in tape.calls[-D:]])
        else:  # y is the top's final h, whose gradients these are
            dhs = tape.parted(dy, [states[0] for states in tape.final[-D:]])
            dfinal[-D:] = [(added(dh, d), *rest) for (dh, *rest), d in zip(dfinal[-D:], dhs, strict=True)]
        grads = tape.backward(dys, dfinal)
        dx = callers(total([g.dx for g in grads[:D]]), *tape.layout)
        dinit = None if tape.calls[0].init[0] is None else self._stacked([g.dinit for g in grads], tape.layout)
        parts = zip(self._names(), grads, strict=True)
        return Back(dx, dinit, {name: getattr(g, f"d{key}") for names, g in parts for key, name in names.items()})

    def output_shape(self, shape: Shape) -> Shape:
        shape = checked_shape(shape)
        if len(shape) != 3 or shape[-1] != self.input_size:
            raise ValueError(f"x: expected shape (T, B, {self.input_size}), got {shape}")
        if self.bidirectional and self.merge is None:
            raise ValueError("merge: None gives a pair of outputs, which have no one shape")
        return (*shape[0 if self.return_sequences else 1 : 2], self._features)

    def _checked(
        self, x: Any, state: Any, lengths: Any, resets: Any, threads: Any
    ) -> tuple[Array, Arrays | None, dict[str, Any], Layout]:
        """x, time-major, the initial states, what else the calls are told, and how the caller lays things out."""
        x = expect_dtype("x", as_array("x", x), self.dtype, "the layer's")
        unbatched = x.ndim == 2
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            expected = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(f"x: expected shape {expected} or (T, I) with I = {self.input_size}, got {x.shape}")
        layout = unbatched, self.batch_first and not unbatched
        x = rows(time_major(x, *layout))
        T, B, I = x.shape
        H = self._features
        expect_room("x", "T, B, I, H", (T, B, I, H), T, B, I + 8 * H)
        options = {
            "lengths": checked_lengths(lengths, T, B, unbatched),
            "resets": checked_resets(resets, T, B, *layout),
            "threads": backends.thread_count(threads),
        }
        return x, self._checked_state(state, B, layout), options, layout

    def _run(
        self, x: Array, init: Arrays | None, options: dict[str, Any], layout: Layout, tape: Tape | None = None
    ) -> tuple[Any, list[Arrays]]:
        """y, time-major, and every call's final states; in training the tape takes what backward needs."""
        backend, packed = self._prepared() if tape is None else (tape.backend, [None] * len(self._weights))
        T, B, _ = x.shape
        D, H = 1 + self.bidirectional, self.hidden_size
        drops = tape is not None and tape.rate > 0
        final: list[Arrays] = []
        stack: list[Call] = []
        for layer in range(self.num_layers):
            top = layer == self.num_layers - 1
            y: Any = empty(T, B, H * D, self.dtype, layout[1] and top)
            for d in range(D):
                i = layer * D + d
                state = None if init is None else tuple([s[i] for s in init])
                part = y[:, :, d * H : (d + 1) * H] if D == 2 else y
                stack.append(self._call(i, x, state, packed[i], part, follows=len(stack) > d, **options))
            if D == 2 or drops or top:  # other layers go up together
                results = backend.forward(stack)
                final += [result.final for result in results]
                if tape is not None:
                    tape.add(stack, results)
                stack = []
            if D == 2 and self.merge != "concat":
                y = MERGES[self.merge].forward(y[:, :, :H], y[:, :, H:])
            x = tape.dropped(y) if tape is not None and drops and not top else y
        return x, final

    def _given(self, outputs: tuple[Any, list[Arrays]], layout: Layout) -> tuple[Any, Any]:
        """y and the state as the caller gets them."""
        y, final = outputs
        if not self.return_sequences:
            h = [states[0] for states in final[-len(self._ways) :]]
            y = MERGES[self.merge].forward(*h) if self.bidirectional else h[0].copy()
        of_caller = callers if self.return_sequences else first_of_unbatched
        y = tuple([of_caller(a, *layout) for a in y]) if isinstance(y, tuple) else of_caller(y, *layout)
        return y, self._stacked(final, layout)

    def _stacked(self, states: list[Any], layout: Layout) -> Any:
        """(L*D, B, H), or a pair of them: the way back from `_each` and `_checked_state`."""
        alone = len(states) == 1
        whole = [s[None] for s in states[0]] if alone else [np.stack(s) for s in zip(*states, strict=True)]
        if layout[0]:
            whole = [s[:, 0] for s in whole]
        return whole[0] if len(whole) == 1 else tuple(whole)

    def _each(self, states: Arrays | None) -> list[States]:
        """What each layer and direction has of them."""
        if states is None:
            return [(None,) * len(self._cell.states)] * len(self._weights)
        return [tuple([s[i] for s in states]) for i in range(len(self._weights))]

    def _checked_dy(self, dy: Any, T: int, B: int, layout: Layout) -> Any:
        """Time-major, shaped like what `_run` gave; a pair where that was one."""
        if dy is None:
            return None
        pair = self.bidirectional and self.merge is None
        if pair and (not isinstance(dy, tuple | list) or len(dy) != 2):
            raise TypeError(f"dy: expected a pair, one for each direction, got {type(dy).__name__}")
        shape = every_step(T, B, (self._features,), *layout)[1]
        if not self.return_sequences:
            shape = shape[-1:] if layout[0] else (B, self._features)
        arrays = []
        for d in dy if pair else (dy,):
            a = expect_shape("dy", expect_dtype("dy", as_array("dy", d), self.dtype, "the layer's"), "that of y", shape)
            arrays.append(rows(time_major(a, *layout)) if self.return_sequences else a.reshape(B, -1))
        return tuple(arrays) if pair else arrays[0]

    def _checked_state(self, state: Any, B: int, layout: Layout, name: str = "state") -> Arrays | None:
        """(L*D, B, H) for each state of the cell."""
        if state is None:
            return None
        unbatched, names = layout[0], self._cell.states
        if len(names) > 1 and (not isinstance(state, tuple | list) or len(state) != len(names)):
            raise TypeError(f"{name}: expected a pair ({', '.join(names)}), got {type(state).__name__}")
        shape = (self.num_layers * len(self._ways), *(() if unbatched else (B,)), self.hidden_size)
        meaning = "(L*D, H)" if unbatched else "(L*D, B, H)"
        given = zip(names, state if len(names) > 1 else (state,), strict=True)
        arrays = [floats(f"{name} {which}", s, meaning, shape, self.dtype, "the layer's") for which, s in given]
        return tuple([a[:, None] if unbatched else a for a in arrays])

    def stream(self, batch_size: int = 1, *, threads: int | None = None) -> Stream:
        """One step at a time, the state kept inside; see `Stream`.

        Parameters
        ----------
        batch_size : int
            B, sequences side by side.
        threads : int, optional
            As for a call of the layer.

        Returns
        -------
        Stream

        Raises
        ------
        TypeError
            For what is no integer.
        ValueError
            For a bidirectional layer, which must see a sequence's end first, and for less than 1.
        """
        if self.bidirectional:
            raise ValueError("stream: a bidirectional layer needs the whole sequence; call the layer instead")
        threads = backends.thread_count(threads)
        backend, packed = self._prepared()
        self._streamed.add((backend.name, backend.layout()))
        B = size("batch_size", batch_size)
        sizes = B, self.input_size, self.hidden_size
        expect_room("batch_size", "batch_size, I, H", sizes, B, self.input_size + 8 * self.hidden_size)
        state = tuple([np.zeros((self.num_layers, B, self.hidden_size), self.dtype) for _ in self._cell.states])
        calls: list[Call] = []
        for layer, I in enumerate(self._input_sizes()):
            top = layer == self.num_layers - 1
            x = np.zeros((1, B, I), self.dtype) if layer == 0 else calls[-1].y
            assert x is not None  # only the top has none
            y = None if top else np.empty((1, B, self.hidden_size), self.dtype)
            init = tuple([s[layer] for s in state])
            calls.append(self._call(layer, x, init, packed=packed[layer], y=y, threads=threads))
        return Stream(backend.stepper(calls), state)

    def __repr__(self) -> str:
        depth = "" if self.num_layers == 1 else f", num_layers={self.num_layers}"
        sizes = f"{self.input_size}, {self.hidden_size}{depth}"
        return f"{type(self).__name__}({sizes}{self.unusual()}, dtype={self.dtype}) [{self._cell.name}]"
