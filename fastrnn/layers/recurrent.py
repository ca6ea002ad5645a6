"""What all layers have in common: weights under PyTorch's names, packed once; directions; stacks; streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend, Call, empty
from fastrnn.cells import CELLS, Array, Arrays
from fastrnn.checks import (
    as_array,
    boolean,
    checked_lengths,
    checked_resets,
    checked_threads,
    expect_dtype,
    floating,
    floats,
    positive,
    rows,
    time_major,
)
from fastrnn.layers.base import Layer
from fastrnn.layers.stream import Stream
from fastrnn.run import callers

#: parameter of a call -> its name in a state_dict, before "_l0" or "_l0_reverse"
NAMES = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh", "p": "peephole"}

#: what becomes of two directions' outputs, which stand side by side, "concat", to begin with
MERGES: dict[str | None, Callable[[Array, Array], Any]] = {
    "sum": np.add,
    "mul": np.multiply,
    "average": lambda forward, backward: (forward + backward) / forward.dtype.type(2),
    None: lambda forward, backward: (forward, backward),
}


def bfloat16(a: Array) -> Array:
    """float32 rounded to the nearest value that bfloat16 has, ties to even; still as float32."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(a), a, rounded.view(np.float32))


class Options(TypedDict, total=False):
    """The keywords that all layers have; `layers.LSTM` describes them."""

    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    merge: str | None
    dtype: Any
    weights: str | None
    rng: Any


def thread_count(threads: Any) -> int:
    return checked_threads(backends.get_num_threads() if threads is None else threads)


class Recurrent(Layer):
    """What `RNN`, `GRU` and `LSTM` have in common; they say what the arguments mean."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: str | None = "concat",
        dtype: Any = np.float32,
        weights: str | None = None,
        rng: Any = None,
    ) -> None:
        for name, value in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            boolean(name, value)
        if dropout != 0.0:
            raise ValueError(f"dropout: layers infer and do not train yet, so expected 0.0, got {dropout!r}")
        if merge is not None and not isinstance(merge, str):
            raise TypeError(f"merge: expected a string or None, got {merge!r}")
        if merge not in ("concat", *MERGES):
            raise ValueError(f"merge: expected one of {', '.join(map(repr, ('concat', *MERGES)))}, got {merge!r}")
        self.num_layers = positive("num_layers", num_layers)
        if merge is None and bidirectional and self.num_layers > 1:
            raise ValueError("merge: None gives two outputs, of which the next layer cannot read; expected another")
        if weights not in (None, "bfloat16"):
            raise ValueError(f'weights: expected None or "bfloat16", got {weights!r}')
        if weights and floating(dtype) != np.float32:
            raise ValueError(f"weights: bfloat16 goes with float32 inputs and sums, got dtype {np.dtype(dtype)}")
        self.input_size = positive("input_size", input_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.bias, self.batch_first, self.bidirectional = bool(bias), bool(batch_first), bool(bidirectional)
        self.merge, self.dtype, self.weights = merge, floating(dtype), weights
        self._cell = CELLS[cell]
        self._packed: dict[tuple[str, str], list[Any]] = {}
        rng = np.random.default_rng(rng)
        self._weights = [self._initial(rng, I) for I in self._input_sizes() for _ in self._ways]

    @property
    def _ways(self) -> tuple[str, ...]:
        """What each direction's parameters end in."""
        return ("", "_reverse") if self.bidirectional else ("",)

    def _input_sizes(self) -> list[int]:
        joined = self.hidden_size * (len(self._ways) if self.merge == "concat" else 1)
        return [self.input_size] + [joined] * (self.num_layers - 1)

    def _initial(self, rng: np.random.Generator, I: int) -> dict[str, Array | None]:
        """PyTorch's default: everything uniform within 1 / sqrt(H)."""
        G, H = self._cell.G, self.hidden_size

        def uniform(*shape: int) -> Array:
            values: Array = rng.uniform(-1, 1, shape) / np.sqrt(H)
            return values.astype(self.dtype)

        return {
            "W": self._rounded(uniform(G * H, I)),
            "U": self._rounded(uniform(G * H, H)),
            "b": uniform(G * H) if self.bias else None,
            "b_rec": uniform(G * H) if self.bias else None,
            "p": uniform(3 * H) if self._cell.peepholes else None,
        }

    def _rounded(self, value: Array) -> Array:
        """As this layer keeps a parameter: only the matrices are worth rounding."""
        return bfloat16(value) if self.weights and value.ndim == 2 else value

    def parameters(self) -> dict[str, Array]:
        """The parameters themselves under PyTorch's names: weight_ih_l0 (G*H, I), weight_hh_l0, bias_ih_l0, ...

        Gates are stacked in PyTorch's order. Peepholes, which PyTorch does not have, are ``peephole_l0`` (3*H,). After
        changing one in place call `changed`.
        """
        ways = [f"_l{layer}{way}" for layer in range(self.num_layers) for way in self._ways]
        return {
            NAMES[key] + way: value
            for way, weights in zip(ways, self._weights, strict=True)
            for key, value in weights.items()
            if value is not None
        }

    def changed(self) -> None:
        """Pack the parameters anew: they were changed in place. Streams of this layer go on with the new ones."""
        for value in self.parameters().values():
            value[...] = self._rounded(value)
        for (backend, layout), packed in self._packed.items():
            with backends.using(backend, layout) as module:
                self._pack(module, packed)

    def _pack(self, backend: Backend, packed: list[Any]) -> list[Any]:
        sizes = [I for I in self._input_sizes() for _ in self._ways]
        return [
            backend.pack(self._call(i, np.empty((0, 1, I), self.dtype)), old)
            for i, (I, old) in enumerate(zip(sizes, packed, strict=True))
        ]

    def _prepared(self) -> tuple[Backend, list[Any]]:
        """The backend in use, and the parameters of each layer and direction packed for it."""
        backend = backends.current()
        key = (backend.name, backend.layout())
        if key not in self._packed:
            # A thread that packed at the same time may have come first: load_state_dict must find what is used.
            self._packed.setdefault(key, self._pack(backend, [None] * len(self._weights)))
        return backend, self._packed[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}, "_cell": self._cell.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"_cell": CELLS[state["_cell"]]}

    def _call(
        self,
        i: int,
        x: Array,
        init: tuple[Array | None, ...] | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        threads: int = 1,
        packed: Any = None,
        y: Array | None = None,
        follows: bool = False,
    ) -> Call:
        """The call of layer and direction number i, in PyTorch's order of them."""
        W, U, b, b_rec, p = self._weights[i].values()
        return Call(
            cell=self._cell.name,
            x=x,
            W=W,  # type: ignore[arg-type]  # never None, nor is U
            U=U,  # type: ignore[arg-type]
            b=b,
            b_rec=b_rec,
            p=p,
            init=init or (None,) * len(self._cell.states),
            lengths=lengths,
            resets=resets,
            reverse=self.bidirectional and i % 2 == 1,
            batch_first=False,
            training=False,
            checkpoint=None,
            return_cells=False,
            threads=threads,
            packed=packed,
            y=y,
            bf16=self.weights is not None,
            follows=follows,
        )

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
            The top layer's hidden states, laid out like x; exactly 0 past a sequence's length.
        state : (L*D, B, H) array, or for an LSTM a pair of them
            After each sequence's last valid step in the direction of travel.

        Raises
        ------
        TypeError, ValueError
            For what is not an array, or of another dtype or shape; the message names the argument.
        """
        x = expect_dtype("x", as_array("x", x), self.dtype, "the layer's")
        unbatched = x.ndim == 2
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            layout = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(f"x: expected shape {layout} or (T, I) with I = {self.input_size}, got {x.shape}")
        batch_first = self.batch_first and not unbatched
        x = rows(time_major(x, unbatched, batch_first))
        T, B, _ = x.shape
        init = self._checked_state(state, B, unbatched)
        lengths = checked_lengths(lengths, T, B, unbatched)
        resets = checked_resets(resets, T, B, unbatched, batch_first)
        y, final = self._run(x, init, batch_first, (lengths, resets, thread_count(threads)))
        if unbatched:
            final = tuple([s[:, 0] for s in final])
        return (
            tuple([callers(a, unbatched, batch_first) for a in y])
            if isinstance(y, tuple)
            else callers(y, unbatched, batch_first),
            final[0] if len(final) == 1 else final,
        )

    def _run(
        self, x: Array, init: Arrays | None, batch_first: bool, options: tuple[Any, Any, int]
    ) -> tuple[Any, Arrays]:
        """y, time-major, and the final states; options are lengths, resets and threads."""
        backend, packed = self._prepared()
        T, B, _ = x.shape
        D, H = 1 + self.bidirectional, self.hidden_size
        final: list[Arrays] = []
        stack: list[Call] = []
        for layer in range(self.num_layers):
            top = layer == self.num_layers - 1
            y: Any = empty(T, B, H * D, self.dtype, batch_first and top)
            for d in range(D):
                i = layer * D + d
                state = None if init is None else tuple([s[i] for s in init])
                half = y[:, :, d * H : (d + 1) * H] if D == 2 else y
                stack.append(self._call(i, x, state, *options, packed[i], half, layer > 0 and D == 1))
            if D == 2 or top:  # layers of one direction go up together
                final += [result.final for result in backend.forward(stack)]
                stack = []
            if D == 2 and self.merge != "concat":
                y = MERGES[self.merge](y[:, :, :H], y[:, :, H:])
            x = y
        if len(final) == 1:
            return x, tuple([s[None] for s in final[0]])
        return x, tuple([np.stack(s) for s in zip(*final, strict=True)])

    def _checked_state(self, state: Any, B: int, unbatched: bool) -> Arrays | None:
        """(L*D, B, H) for each state of the cell."""
        if state is None:
            return None
        names = self._cell.states
        if len(names) > 1 and (not isinstance(state, tuple | list) or len(state) != len(names)):
            raise TypeError(f"state: expected a pair ({', '.join(names)}), got {type(state).__name__}")
        shape = (self.num_layers * len(self._ways), *(() if unbatched else (B,)), self.hidden_size)
        meaning = "(L*D, H)" if unbatched else "(L*D, B, H)"
        given = zip(names, state if len(names) > 1 else (state,), strict=True)
        arrays = [floats(f"state {name}", s, meaning, shape, self.dtype, "the layer's") for name, s in given]
        return tuple([a[:, None] if unbatched else a for a in arrays])

    def stream(self, batch_size: int = 1, *, threads: int | None = None) -> Stream:
        """One step at a time, the state kept inside; see `Stream`.

        Raises
        ------
        ValueError
            For a bidirectional layer, which must see a sequence's end first.
        """
        if self.bidirectional:
            raise ValueError("stream: a bidirectional layer needs the whole sequence; call the layer instead")
        threads = thread_count(threads)
        backend, packed = self._prepared()
        B = positive("batch_size", batch_size)
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
        named: dict[str, Any] = {"num_layers": (self.num_layers, 1), "bias": (self.bias, True)}
        named |= {"batch_first": (self.batch_first, False), "weights": (self.weights, None)}
        named |= {"bidirectional": (self.bidirectional, False), "merge": (self.merge, "concat")}
        options = "".join(f", {name}={value!r}" for name, (value, default) in named.items() if value != default)
        sizes = f"{self.input_size}, {self.hidden_size}"
        return f"{type(self).__name__}({sizes}{options}, dtype={self.dtype}) [{self._cell.name}]"
