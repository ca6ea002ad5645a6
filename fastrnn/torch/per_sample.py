"""Per-sample gradients for `torch.nn.utils._per_sample_grad`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight as ExpandedWeight
from torch.nn.utils._expanded_weights.expanded_weights_utils import (
    set_grad_sample_if_exists,
    unpack_expanded_weight_or_tensor,
)

from fastrnn.torch.stack import Given, Setting, Stack, Tensors, conjugate, parts


def unpacked(expanded: Sequence[Any]) -> Tensors:
    """Return the plain weights."""
    unpack: Any = unpack_expanded_weight_or_tensor
    return [unpack(weight) for weight in expanded]


def run(setting: Setting, given: Given, expanded: Sequence[Any], into: Tensor | None) -> Tensors:
    """Return y and each final state; backward stores its gradients as `grad_sample` of the weights.

    `into` are the caller's indices of the sequences in this batch.
    """
    B = setting.batch(given)
    sizes = {weight.batch_size for weight in expanded if type(weight) is ExpandedWeight}
    if sizes != {B}:
        raise ValueError(f"input: expected {sizes.pop()} sequences, as call_for_per_sample_grads says, got {B}")
    apply: Any = _PerSample.apply
    return list(apply(setting, given, expanded, into, given.x, *given.init, *given.e, *expanded))


class _PerSample(torch.autograd.Function):
    """One forward for the batch; backward runs forward and backward again for each sequence."""

    @staticmethod
    def forward(
        ctx: Any, setting: Setting, given: Given, expanded: Sequence[Any], into: Tensor | None, *_: Any
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.known = setting, given, expanded, into
        return tuple(Stack(setting, given.weights).train(given)[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        setting, given, expanded, into = ctx.known
        stack, by_sequence = Stack(setting, given.weights), _Batch(setting, given)
        leaves: list[Tensors] = []
        for b in range(setting.batch(given)):
            own = by_sequence.given(b)
            _, kept, key = stack.train(own)
            dy, *dfinal = grads
            one = [None if dy is None else by_sequence.one(dy, b, by_sequence.axis)]
            one += [None if d is None else d.narrow(1, b, 1) for d in dfinal]
            leaves.append(stack.back(own, kept, key, one))
        found = [list(each) for each in zip(*leaves, strict=True)]
        (dx,), dinit, dweights, de = parts(found, 1, len(given.init), len(given.weights))
        for weight, d in zip(expanded, dweights, strict=True):
            each = torch.stack(d) if into is None else torch.stack(d)[into.argsort()]
            set_grad_sample_if_exists(weight, lambda _, each=each: each)
        states, inputs = [torch.cat(d, 1) for d in dinit], [by_sequence.all(d) for d in de]
        return None, None, None, None, by_sequence.all(dx, by_sequence.axis), *states, *inputs, *[None] * len(expanded)


class _Batch:
    """Access to the sequences of a batch one by one."""

    def __init__(self, setting: Setting, given: Given) -> None:
        self._given, self.axis = given, 0 if setting.batch_first else 1
        self._rows: Tensors = []  #: row indices of each sequence in the data of a PackedSequence
        if given.lengths is not None:
            sizes = conjugate(given.lengths, int(given.lengths[0]))
            first = sizes.cumsum(0) - sizes
            self._rows = [first[:n] + b for b, n in enumerate(given.lengths.tolist())]

    def one(self, a: Tensor, b: int, axis: int = 1) -> Tensor:
        """Select sequence b from a tensor with one entry per step."""
        return a[self._rows[b]] if self._rows else a.narrow(axis, b, 1)

    def all(self, each: Tensors, axis: int = 1) -> Tensor:
        """Join one tensor per sequence into that of the batch; the inverse of `one`."""
        if not self._rows:
            return torch.cat(each, axis)
        whole = torch.cat(each)
        return torch.empty_like(whole).index_copy_(0, torch.cat(self._rows), whole)

    def given(self, b: int) -> Given:
        given = self._given
        return given._replace(
            x=self.one(given.x, b, self.axis),
            init=[s.narrow(1, b, 1) for s in given.init],
            lengths=None if given.lengths is None else given.lengths[b : b + 1],
            resets=None if given.resets is None else self.one(given.resets, b),
            masks=[self.one(a, b) for a in given.masks],
            e=[self.one(a, b) for a in given.e],
        )
