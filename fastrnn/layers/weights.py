"""What a recurrent layer owns: parameters under PyTorch's names, packed for the kernels once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends
from fastrnn.call import Backend, Call, Prepared
from fastrnn.cells import CELLS, Array, Arrays
from fastrnn.checks import expect_room, generator, size
from fastrnn.initializers import GlorotUniform, Initializer, Orthogonal, RandomUniform, Zeros, chosen, initial
from fastrnn.layers.base import Layer
from fastrnn.layers.options import Settings, bfloat16

#: parameter of a call -> its name in a state_dict, before "_l0" or "_l0_reverse"
NAMES = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh", "p": "peephole"}

#: Keras' initial weights; it has no peepholes
KERAS: dict[str, Initializer] = {"W": GlorotUniform(), "U": Orthogonal(), "b": Zeros(), "b_rec": Zeros()}


class Quick(NamedTuple):
    """A call of inference that was described to the kernels once, for as long as nothing of it changes."""

    key: tuple[tuple[int, ...], int]  #: the shape of x, and threads
    packed: list[Any]  #: the parameters that it reads, packed for the backend and instruction set that it runs on
    run: Prepared | None  #: None until the same kind of call comes again


class Weighted(Settings, Layer):
    """The weights of a stack of recurrent layers, their packing, and calls of the kernels with them."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        initializer: Any = "torch",
        rng: Any = None,
        **settings: Any,
    ) -> None:
        if "weights" in settings:
            raise TypeError("weights: use weight_dtype='bfloat16'")
        super().__init__(**settings)
        self.input_size = size("input_size", input_size)
        self.hidden_size = size("hidden_size", hidden_size)
        self.num_layers = size("num_layers", num_layers)
        sizes = self.input_size, self.hidden_size
        expect_room("hidden_size", "input_size, hidden_size", sizes, 8 * self.hidden_size, sum(sizes))
        if self.num_layers > 1 and self.merge is None and self.bidirectional:
            raise ValueError("merge: None gives two outputs, of which the next layer cannot read; expected another")
        if self.num_layers == 1 and self.dropout:
            raise ValueError(f"dropout: it is between layers, and there is one; expected 0.0, got {self.dropout}")
        self._cell = CELLS[cell]
        self._packed: dict[tuple[str, str], list[Any]] = {}
        self._streamed: set[tuple[str, str]] = set()
        self._quick: Quick | None = None
        start, rng = self._initializers(initializer), generator(rng)
        self._weights = [self._initial(start, rng, I) for I in self._input_sizes() for _ in self._ways]

    @property
    def _ways(self) -> tuple[str, ...]:
        """What each direction's parameters end in."""
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def _features(self) -> int:
        """The last axis of y, or of both where there is a pair of them."""
        return self.hidden_size * (len(self._ways) if self.merge == "concat" else 1)

    def _input_sizes(self) -> list[int]:
        return [self.input_size] + [self._features] * (self.num_layers - 1)

    def _shapes(self, I: int) -> dict[str, tuple[int, ...]]:
        """Of one layer and direction's parameters, by their names in a call."""
        G, H = self._cell.G, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"W": (G * H, I), "U": (G * H, H)}
        if self.bias:
            shapes["b"] = (G * H,)
        if self.bias is True:
            shapes["b_rec"] = (G * H,)
        return shapes | ({"p": (len(self._cell.parameters) * H,)} if self._cell.parameters else {})

    def _initializers(self, initializer: Any) -> dict[str, Initializer]:
        uniform = RandomUniform(1 / np.sqrt(self.hidden_size))
        torch: dict[str, Initializer] = dict.fromkeys(self._shapes(self.input_size), uniform)
        return chosen(initializer, {"torch": torch, "keras": KERAS})

    def _initial(self, start: dict[str, Initializer], rng: Any, I: int) -> dict[str, Array | None]:
        shapes = self._shapes(I)
        new = {key: self._rounded(initial(start[key], key, shape, rng, self.dtype)) for key, shape in shapes.items()}
        return {key: new.get(key) for key in NAMES}

    def _rounded(self, value: Array) -> Array:
        """As this layer keeps a parameter: only the matrices are worth rounding."""
        return bfloat16(value) if self.weight_dtype and value.ndim == 2 else value

    def _names(self) -> list[dict[str, str]]:
        """For each layer and direction the names of its parameters, by those in a call."""
        ways = [f"_l{layer}{way}" for layer in range(self.num_layers) for way in self._ways]
        return [{key: NAMES[key] + way for key in self._shapes(1)} for way in ways]

    def parameters(self) -> dict[str, Array]:
        """The parameters themselves under PyTorch's names: weight_ih_l0 (G*H, I), weight_hh_l0, bias_ih_l0, ...

        Gates are stacked in PyTorch's order. Peepholes, which PyTorch does not have, are ``peephole_l0`` (3*H,). After
        changing one in place call `changed`.
        """
        pairs = zip(self._names(), self._weights, strict=True)
        return {name: value for names, own in pairs for key, name in names.items() if (value := own[key]) is not None}

    def changed(self) -> None:
        """Forget what was packed of the parameters: they were changed in place. Streams go on with the new ones."""
        for value in self.parameters().values():
            value[...] = self._rounded(value)
        for key in list(self._packed):
            if key in self._streamed:
                name, layout = key
                self._pack(backends.load(name), layout, self._packed[key])
            else:
                self._packed.pop(key, None)

    def _pack(self, backend: Backend, layout: str, packed: list[Any]) -> list[Any]:
        sizes = [I for I in self._input_sizes() for _ in self._ways]
        return [
            backend.pack(self._call(i, np.empty((0, 1, I), self.dtype)), layout, old)
            for i, (I, old) in enumerate(zip(sizes, packed, strict=True))
        ]

    def _prepared(self) -> tuple[Backend, list[Any]]:
        """The backend in use, and the parameters of each layer and direction packed for it."""
        backend = backends.current()
        key = (backend.name, backend.layout())
        packed = self._packed.get(key)
        if packed is None:
            # A thread that packed at the same time may have come first: load_state_dict must find what is used.
            packed = self._packed.setdefault(key, self._pack(backend, key[1], [None] * len(self._weights)))
        return backend, packed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}, "_streamed": set(), "_quick": None, "_cell": self._cell.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"_cell": CELLS[state["_cell"]]}

    def _call(
        self,
        i: int,
        x: Array,
        init: Arrays | None = None,
        packed: Any = None,
        y: Array | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        threads: int = 1,
        *,
        follows: bool = False,
        training: bool = False,
        checkpoint: int | None = None,
    ) -> Call:
        """The call of layer and direction number i, in PyTorch's order of them."""
        W, U, b, b_rec, p = self._weights[i].values()
        return Call(  # by position: twenty keywords take a twentieth of a tiny net's time
            self._cell,
            x,
            W,  # type: ignore[arg-type]  # never None
            U,
            b,
            b_rec,
            p,
            init or (None,) * len(self._cell.states),
            lengths,
            resets,
            self.bidirectional and i % 2 == 1,  # reverse
            False,  # batch_first: x is time-major here
            training,
            checkpoint,
            False,  # return_states
            threads,
            packed,
            y,
            self.weight_dtype is not None,  # bf16
            follows,
        )
