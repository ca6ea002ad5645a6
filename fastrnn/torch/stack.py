"""A stack of layers on tensors: from them to the arrays that the kernels read, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.cells import Array, Arrays, Cell
from fastrnn.cells.definition import by_key
from fastrnn.checks import rows
from fastrnn.packed import PackedStack, Tape

Tensors = list[Tensor]


class Setting(NamedTuple):
    """What sizes of weights do not say."""

    cell: str  #: its `key`
    bias: bool
    bidirectional: bool
    batch_first: bool

    @property
    def keys(self) -> list[str]:
        """Parameters of each layer and direction, by their names in a call."""
        cell = self.recurrence
        there = {
            "W": True,
            "U": bool(cell.products),
            "b": self.bias,
            "b_rec": self.bias and bool(cell.products),
            "p": bool(cell.parameters),
        }
        return [key for key, given in there.items() if given]

    @property
    def recurrence(self) -> Cell:
        return by_key(self.cell)

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional


class Stack:
    """Layers of these parameters: (G*H, I), (G*H, H), ... of each layer and direction in PyTorch's order.

    x is (T, B, I), or (B, T, I) with `batch_first`, here and below; states are one (L*D, B, H) tensor for each of the
    cell's; masks are what each layer's y but the last's is multiplied with, (T, B, D*H), or none.

    Attributes
    ----------
    in_place : bool
        Whether the parameters are read where they are, so that their changes are seen.
    addresses : list of int
        Of the parameters.
    """

    def __init__(self, setting: Setting, weights: Sequence[Tensor]) -> None:
        keys, directions = setting.keys, (False, True)[: setting.directions]
        given = [array(weight) for weight in weights]
        own = [np.ascontiguousarray(a) for a in given]
        self.in_place = all([a is b for a, b in zip(own, given, strict=True)])
        self.addresses, self.batch_first = addresses(weights), setting.batch_first
        parts = [dict(zip(keys, own[i : i + len(keys)], strict=True)) for i in range(0, len(own), len(keys))]
        self.layers = PackedStack(setting.recurrence, parts, directions)

    def infer(self, x: Tensor, init: Sequence[Tensor], lengths: Tensor | None, tape: Tape | None = None) -> Tensors:
        """y and each final state, by weights that are packed once; those of a training, with a tape, are not."""
        y, final = self.layers.forward(
            self._time_major(x), states_of(init), steps_of(lengths), threads=threads(), batch_first=self.batch_first,
            tape=tape,
        )
        return [torch.from_numpy(a) for a in (self._turned(y), *final)]

    def train(
        self,
        x: Tensor,
        init: Sequence[Tensor],
        lengths: Tensor | None,
        masks: Sequence[Tensor],
        clean: bool = False,
    ) -> tuple[Tensors, Tensors, str]:
        """The same with dropout between layers; and what `back` needs, no byte of it undefined if it is to be `clean`.

        That is what each layer but the first reads, (T, B, D*H), and the bytes that the kernels kept of each layer and
        direction; and the name of the backend and that of its layout: only their backward can read those bytes.
        """
        backend, D = backends.of(self.layers.cell), len(self.layers.directions)
        tape = Tape(backend, [array(mask) for mask in masks], clean=clean)
        outputs = self.infer(x, init, lengths, tape)
        kept = [call.x for call in tape.calls[D::D]] + [backend.to_bytes(saved) for saved in tape.saved]
        return outputs, [torch.from_numpy(a) for a in kept], f"{backend.name} {backend.layout()}"

    def back(
        self,
        x: Tensor,
        init: Sequence[Tensor],
        lengths: Tensor | None,
        masks: Sequence[Tensor],
        kept: Sequence[Tensor],
        key: str,
        grads: Sequence[Tensor | None],
    ) -> Tensors:
        """dx, that of each initial state, and that of each weight."""
        name, _, layout = key.partition(" ")
        backend, D, inner = backends.load(name), len(self.layers.directions), self.layers.num_layers - 1
        tape = Tape(backend, [array(mask) for mask in masks])
        tape.saved = [backend.from_bytes(memory.numpy(), layout) for memory in kept[inner:]]
        read = [self._time_major(x), *[a.numpy() for a in kept[:inner]]]
        states, steps = states_of(init), steps_of(lengths)
        for i in range(len(self.layers.parts)):
            own = None if states is None else tuple([s[i] for s in states])
            tape.calls.append(self.layers.call(i, read[i // D], own, lengths=steps, threads=threads(), tape=tape))
        dy = None if grads[0] is None else self._time_major(grads[0])
        dfinal = [None if d is None else np.ascontiguousarray(array(d)) for d in grads[1:]]
        dx, dinit, dparts, _ = self.layers.backward(tape, dy, dfinal)
        found = [self._turned(dx), *(dinit or ()), *[d for part in dparts for d in part.values()]]
        return [torch.from_numpy(a) for a in found]

    def _turned(self, a: Array) -> Array:
        return a.swapaxes(0, 1) if self.batch_first else a

    def _time_major(self, a: Tensor) -> Array:
        """As the kernels read it."""
        return rows(self._turned(array(a)))


def array(tensor: Tensor) -> Array:
    """A NumPy array on the memory of a tensor; a copy of one that is only marked as negative, as imag of a conj is."""
    plain = tensor.detach() if tensor.requires_grad else tensor
    found: Array = (plain.resolve_neg() if plain.is_neg() else plain).numpy()
    return found


def states_of(init: Sequence[Tensor]) -> Arrays | None:
    return tuple([np.ascontiguousarray(array(s)) for s in init]) if init else None


def steps_of(lengths: Tensor | None) -> Array | None:
    return None if lengths is None else array(lengths)


def addresses(weights: Sequence[Tensor]) -> list[int]:
    return [weight.data_ptr() for weight in weights]


def threads() -> int:
    """At most as many as either library is told to use: PyTorch's loaders tell their workers to use one."""
    return min(backends.get_num_threads(), torch.get_num_threads())
