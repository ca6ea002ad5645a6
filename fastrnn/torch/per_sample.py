"""Gradients of each sequence of a batch, as `torch.nn.utils._per_sample_grad` asks for them."""

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

from fastrnn.torch.stack import Given, Setting, Stack, Tensors, parts


def unpacked(expanded: Sequence[Any]) -> Tensors:
    """The weights themselves."""
    unpack: Any = unpack_expanded_weight_or_tensor
    return [unpack(weight) for weight in expanded]


def run(setting: Setting, given: Given, expanded: Sequence[Any]) -> Tensors:
    """y and each final state; a backward leaves its gradients as `grad_sample` with the weights."""
    if given.lengths is not None:
        raise TypeError(
            "input: expected a tensor for per-sample gradients, got a PackedSequence; call it for each sequence"
        )
    B = setting.batch(given)
    sizes = {weight.batch_size for weight in expanded if type(weight) is ExpandedWeight}
    if sizes != {B}:
        raise ValueError(f"input: expected {sizes.pop()} sequences, which per-sample gradients are for, got {B}")
    apply: Any = _PerSample.apply
    return list(apply(setting, given, expanded, given.x, *given.init, *given.e, *expanded))


class _PerSample(torch.autograd.Function):
    """One forward of the batch, and one of each sequence again with its backward."""

    @staticmethod
    def forward(ctx: Any, setting: Setting, given: Given, expanded: Sequence[Any], *_: Any) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.known = setting, given, expanded
        return tuple(Stack(setting, given.weights).train(given)[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        setting, given, expanded = ctx.known
        stack, axis = Stack(setting, given.weights), 0 if setting.batch_first else 1
        axes = [axis, *[1] * (len(grads) - 1)]
        leaves: list[Tensors] = []
        for b in range(given.x.shape[axis]):
            own = _sequence(given, axis, b)
            _, kept, key = stack.train(own)
            one = [None if d is None else d.narrow(at, b, 1) for d, at in zip(grads, axes, strict=True)]
            leaves.append(stack.back(own, kept, key, one))
        found = [list(each) for each in zip(*leaves, strict=True)]
        (dx,), dinit, dweights, de = parts(found, 1, len(given.init), len(given.weights))
        for weight, d in zip(expanded, dweights, strict=True):
            set_grad_sample_if_exists(weight, lambda _, d=d: torch.stack(d))
        return None, None, None, torch.cat(dx, axis), *[torch.cat(d, 1) for d in (*dinit, *de)], *[None] * len(expanded)


def _sequence(given: Given, axis: int, b: int) -> Given:
    """What belongs to one of the batch."""
    init, masks, e = ([a.narrow(1, b, 1) for a in each] for each in (given.init, given.masks, given.e))
    resets = None if given.resets is None else given.resets.narrow(1, b, 1)
    return given._replace(x=given.x.narrow(axis, b, 1), resets=resets, init=init, masks=masks, e=e)
