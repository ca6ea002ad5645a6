"""Run a stack of layers on tensors: convert them to the kernels' arrays, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.cells import Cell
from fastrnn.cells.definition import by_key
from fastrnn.checks import rows
from fastrnn.packed import PackedStack, Tape
from fastrnn.types import Array, Arrays

Tensors = list[Tensor]

#: PyTorch's own functions, by the `key` of their cell.
TORCH_FUNCTIONS: dict[str, Any] = {
    "lstm": torch.lstm,
    "gru_after": torch.gru,
    "rnn_tanh": torch.rnn_tanh,
    "rnn_relu": torch.rnn_relu,
}


class Setting(NamedTuple):
    """The options that the sizes of the weights do not determine."""

    cell: str  #: its `key`
    bias: bool
    bidirectional: bool
    batch_first: bool
    projected: bool = False  #: whether there is an R

    @property
    def keys(self) -> list[str]:
        """The parameters' names in a call, for each layer and direction."""
        cell = self.recurrence
        there = {
            "W": True,
            "U": bool(cell.products),
            "b": self.bias,
            "b_rec": self.bias and bool(cell.products),
            "R": self.projected,
            "p": bool(cell.parameters),
        }
        return [key for key, given in there.items() if given]

    def widths(self, weights: Sequence[Tensor]) -> list[int]:
        """The number of units of each state; the first state is the output."""
        cell = self.recurrence
        H = weights[0].shape[0] // cell.G
        found = [H] * len(cell.states)
        if self.projected:
            found[0] = weights[self.keys.index("R")].shape[0]
        return found

    @property
    def recurrence(self) -> Cell:
        return by_key(self.cell)

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional

    def batch(self, given: Given) -> int:
        """B."""
        if given.lengths is not None:
            return given.lengths.shape[0]
        return given.x.shape[0 if self.batch_first else 1]

    def parts(self, weights: Sequence[Any]) -> list[dict[str, Any]]:
        """The weights of each layer and direction, by their names in a call."""
        keys = self.keys
        return [dict(zip(keys, weights[i : i + len(keys)], strict=True)) for i in range(0, len(weights), len(keys))]

    def shapes(self, given: Given) -> list[tuple[Any, ...]]:
        """The shapes of y and of each final state."""
        calls, B, widths = len(given.weights) // len(self.keys), self.batch(given), self.widths(given.weights)
        return [(*given.x.shape[:-1], self.directions * widths[0]), *[(calls, B, width) for width in widths]]


#: The numbers of initial states, weights, extra inputs and masks of a `Given`.
Sizes = tuple[int, int, int, int]


class Given(NamedTuple):
    """The tensor arguments of the recurrence, in the order of the operators' arguments.

    With lengths, x and the others are in a PackedSequence's layout: one axis N replaces T and B, as in a ragged
    `fastrnn.call.Call`.
    """

    x: Tensor  #: (T, B, I), or (B, T, I) with `batch_first`, like y; everything else is time-major
    init: Sequence[Tensor]  #: (L*D, B, H) for each of the cell's states (P units if projected), or none
    weights: Sequence[Tensor]  #: (G*H, I), (G*H, H), ... of each layer and direction in PyTorch's order
    lengths: Tensor | None = None  #: (B,), descending
    resets: Tensor | None = None  #: (T, B) booleans
    masks: Sequence[Tensor] = ()  #: one factor for the y of each layer but the last, of its shape, or none
    e: Sequence[Tensor] = ()  #: (T, B, H) for each of the cell's extra inputs

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> Given:
        """The inverse of `arguments`."""
        given = cls(*arguments)
        return given._replace(init=given.init or (), masks=given.masks or (), e=given.e or ())

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The operators' arguments, with None for empty lists: AOTInductor cannot tell them apart."""
        return *self[:1], self.init or None, *self[2:5], self.masks or None, self.e or None

    @property
    def leaves(self) -> Tensors:
        """The tensors that have gradients, in the order of `Stack.back`."""
        return [self.x, *self.init, *self.weights, *self.e]

    def on(self, leaves: Sequence[Tensor]) -> Given:
        """A copy with other leaves."""
        (x,), init, weights, e = parts(leaves, 1, len(self.init), len(self.weights))
        return self._replace(x=x, init=init, weights=weights, e=e)

    @property
    def sizes(self) -> Sizes:
        return len(self.init), len(self.weights), len(self.e), len(self.masks)

    @property
    def flat(self) -> list[Tensor | None]:
        """All tensors as a flat list; `unflat` is the inverse."""
        return [*self.leaves, *self.masks, self.lengths, self.resets]


def unflat(sizes: Sizes, flat: Sequence[Any]) -> tuple[Given, list[Any]]:
    """Rebuild a `Given`; also return the items after it."""
    (x,), init, weights, e, masks, (lengths, resets, *rest) = parts(flat, 1, *sizes)
    return Given(x, init, weights, lengths, resets, masks, e), rest


def parts(flat: Sequence[Any], *sizes: int) -> list[Any]:
    """Split into lists of these sizes, and one of the remaining items."""
    found, start = [], 0
    for size in sizes:
        found.append(flat[start : start + size])
        start += size
    return [*found, flat[start:]]


class Stack:
    """The layers made from the weights of a `Given`.

    Attributes
    ----------
    in_place : bool
        Whether the parameters are read in place, so that changes take effect.
    addresses : list of int
        Memory addresses of the parameters.
    """

    def __init__(self, setting: Setting, weights: Sequence[Tensor]) -> None:
        directions = (False, True)[: setting.directions]
        given = [lent(weight) for weight in weights]
        own = [np.ascontiguousarray(a) for a in given]
        self.in_place = all([a is b for a, b in zip(own, given, strict=True)])
        self.addresses, self.batch_first = addresses(weights), setting.batch_first
        self.layers = PackedStack(setting.recurrence, setting.parts(own), directions)

    def infer(self, given: Given, tape: Tape | None = None) -> Tensors:
        """Return y and each final state; weights are packed once, but not in training, which passes a tape."""
        y, final = self.layers.forward(
            self._time_major(given.x),
            states_of(given.init),
            steps_of(given.lengths),
            steps_of(given.resets),
            threads=threads(),
            batch_first=self.batch_first,
            tape=tape,
            e=inputs_of(given.e),
        )
        return [torch.from_numpy(a) for a in (self._turned(y), *final)]

    def train(self, given: Given, clean: bool = False) -> tuple[Tensors, Tensors, str]:
        """Run forward with dropout between layers; also return what `back` needs, fully initialised if `clean`.

        That is the input of each layer but the first, and the bytes that the kernels saved for each layer and
        direction; and a key, the names of the backend and of its layout: only their backward can read those bytes.
        """
        backend, D = backends.of(self.layers.cell), len(self.layers.directions)
        tape = Tape(backend, [array(mask) for mask in given.masks], clean=clean)
        outputs = self.infer(given, tape)
        kept = [call.x for call in tape.calls[D::D]] + [backend.to_bytes(saved) for saved in tape.saved]
        return outputs, [torch.from_numpy(a) for a in kept], f"{backend.name} {backend.layout()}"

    def back(self, given: Given, kept: Sequence[Tensor], key: str, grads: Sequence[Tensor | None]) -> Tensors:
        """Return dx and the gradients of each initial state, weight and extra input."""
        name, _, layout = key.partition(" ")
        backend, D, inner = backends.load(name), len(self.layers.directions), self.layers.num_layers - 1
        tape = Tape(backend, [array(mask) for mask in given.masks])
        tape.saved = [backend.from_bytes(memory.numpy(), layout) for memory in kept[inner:]]
        read = [self._time_major(given.x), *[a.numpy() for a in kept[:inner]]]
        states, lengths, resets = states_of(given.init), steps_of(given.lengths), steps_of(given.resets)
        e = inputs_of(given.e)
        for i in range(len(self.layers.parts)):
            own = None if states is None else tuple([s[i] for s in states])
            call = self.layers.call(
                i, read[i // D], own, lengths=lengths, resets=resets, threads=threads(), tape=tape, e=e
            )
            tape.calls.append(call)
        dy = None if grads[0] is None else self._time_major(grads[0])
        dfinal = [None if d is None else np.ascontiguousarray(array(d)) for d in grads[1:]]
        dx, dinit, dparts, de = self.layers.backward(tape, dy, dfinal)
        found = [self._turned(dx), *(dinit or ()), *[d for part in dparts for d in part.values()], *de]
        return [torch.from_numpy(a) for a in found]

    def _turned(self, a: Array) -> Array:
        return a.swapaxes(0, 1) if self.batch_first else a

    def _time_major(self, a: Tensor) -> Array:
        """A time-major array, as the kernels read it."""
        return rows(self._turned(array(a)))


def array(tensor: Tensor) -> Array:
    """A NumPy view of a tensor's memory; a copy if the tensor is lazily negated, as the imag of a conj is."""
    plain = tensor.detach() if tensor.requires_grad else tensor
    return (plain.resolve_neg() if plain.is_neg() else plain).numpy()


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    """The NumPy dtype of a tensor."""
    return np.dtype(np.float64 if tensor.dtype == torch.float64 else np.float32)


def lent(tensor: Tensor) -> Array:
    """Like `array`, but the tensor may release its memory, as FSDP2's parameters do.

    It is slower, and arrays that are kept across calls may then point to freed memory: see `addresses`.
    """
    return np.from_dlpack(tensor.detach().resolve_neg())


def states_of(init: Sequence[Tensor]) -> Arrays | None:
    return tuple([np.ascontiguousarray(array(s)) for s in init]) if init else None


def inputs_of(e: Sequence[Tensor]) -> Arrays:
    """(T, B, H), or (T, B, 1) for inputs that are the same for all units."""
    return tuple([rows(array(a)[..., :1] if a.stride(-1) == 0 else array(a)) for a in e]) if e else ()


def conjugate(sizes: Tensor, n: int) -> Tensor:
    """Lengths from batch_sizes, or these from descending lengths: how many are greater than 0, 1, ..., n - 1."""
    return torch.searchsorted(-sizes, -torch.arange(n))


def packed(a: Tensor, batch_sizes: Tensor) -> Tensor:
    """Pack (T, B, ...) into the data of a PackedSequence, by operators with all transforms and derivatives."""
    return torch.cat([a[t, :size] for t, size in enumerate(batch_sizes.tolist())])


def reordered(a: Tensor, source: Any, target: Any) -> Tensor:
    """Like `frameworks.reordered`, in torch operations."""
    chunks = dict(zip(source, a.chunk(len(source)), strict=True))
    return torch.cat([chunks[name] for name in target])


def steps_of(numbers: Tensor | None) -> Array | None:
    """The array of lengths or resets."""
    return None if numbers is None else np.ascontiguousarray(array(numbers))


def addresses(weights: Sequence[Tensor]) -> list[int]:
    return [weight.data_ptr() for weight in weights]


def threads() -> int:
    """The smaller of both libraries' numbers of threads: PyTorch's loaders set one for their workers."""
    return min(backends.get_num_threads(), torch.get_num_threads())
