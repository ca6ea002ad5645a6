"""The recurrence by the cells' own equations, step by step on tensors: for what the kernels cannot compute.

Everything here is made of PyTorch's operators, so each of its transforms and derivatives of any order go through it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad

from fastrnn import slow
from fastrnn.torch.stack import Given, Setting, Tensors, parts

tell = functools.partial(slow.tell, "fastrnn.torch")


def transformed() -> bool:
    """Whether tensors may be more than memory to this thread: inside a transform of torch.func, or to forward mode."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def reason(tensors: Sequence[Tensor | None]) -> str:
    """Why a layer on these tensors, or its backward on these gradients, is for the equations; empty if it is not."""
    if torch._C._are_functorch_transforms_active():
        return "torch.func's transforms (grad, vmap, jvp, ...)"
    if forward_ad._current_level >= 0:
        unpack: Any = forward_ad.unpack_dual
        if any([a is not None and unpack(a).tangent is not None for a in tensors]):
            return "forward-mode derivatives"
    return ""


def evaluate(setting: Setting, given: Given) -> Tensors:
    """y and each final state, as `Stack.train` has them."""
    cell, keys, D = setting.recurrence, setting.keys, setting.directions
    x, init, weights, lengths, resets, masks, e = given
    below = x.transpose(0, 1) if setting.batch_first else x
    T, B, _ = below.shape
    widths, calls = setting.widths(weights), len(weights) // len(keys)
    valid = None if lengths is None else torch.arange(T).unsqueeze(1) < lengths
    if valid is not None:  # whatever stands behind the end has no gradient, not even the NaN that 0 * inf would be
        below = torch.where(valid.unsqueeze(2), below, 0.0)
        e = [torch.where(valid.unsqueeze(2), a, 0.5) for a in e]  # where logarithms and reciprocals have gradients
    inputs = dict(zip(cell.inputs, e, strict=True))
    final: list[tuple[Tensor, ...]] = []
    for first in range(0, calls, D):
        above = []
        for call in range(first, first + D):
            own = dict(zip(keys, weights[call * len(keys) :], strict=False))
            state = tuple([s[call] for s in init]) or tuple([below.new_zeros(B, width) for width in widths])
            y, state = _direction(setting, below, state, own, inputs, valid, resets, backwards=call > first)
            above.append(y)
            final.append(state)
        below = torch.cat(above, 2)
        if masks and first + D < calls:
            below = below * masks[first // D]
    states = [torch.stack(each) for each in zip(*final, strict=True)]
    return [below.transpose(0, 1) if setting.batch_first else below, *states]


def _direction(
    setting: Setting,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: dict[str, Tensor],
    inputs: dict[str, Tensor],
    valid: Tensor | None,
    resets: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y and the final states of one layer in one direction, time-major."""
    W, U, b, b_rec, p, R = [weights.get(key) for key in ("W", "U", "b", "b_rec", "p", "R")]
    y: Tensors = []
    for t in range(len(x) - 1, -1, -1) if backwards else range(len(x)):
        before = state
        if resets is not None:
            before = tuple([torch.where(resets[t].unsqueeze(1), 0.0, s) for s in state])
        e = {name: a[t] for name, a in inputs.items()}
        after = setting.recurrence.evaluate(x[t], before, W, U, b, b_rec, p, e, R)
        if valid is None:
            y.append(after[0])
            state = after
        else:
            alive = valid[t].unsqueeze(1)
            y.append(torch.where(alive, after[0], 0.0))
            state = tuple([torch.where(alive, a, s) for a, s in zip(after, state, strict=True)])
    if not y:
        return x.new_empty((0, *state[0].shape)), state
    return torch.stack(y[::-1] if backwards else y), state


def padded(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """`pad_packed_sequence` for every transform and derivative, which PyTorch's own has not: (T, B, N) and lengths."""
    B = int(batch_sizes[0])
    steps = [pad(step, (0, 0, 0, B - len(step))) for step in data.split_with_sizes(batch_sizes.tolist())]
    return torch.stack(steps), (batch_sizes > torch.arange(B).unsqueeze(1)).sum(1)


def packed(y: Tensor, batch_sizes: Tensor) -> Tensor:
    """The data of `pack_padded_sequence`, likewise."""
    return torch.cat([y[t, :size] for t, size in enumerate(batch_sizes.tolist())])


def gradient(setting: Setting, given: Given, grads: Sequence[Tensor]) -> Tensors:
    """Gradients of the leaves, as `Stack.back` has them, which can be differentiated.

    By `torch.func.vjp`, which takes the arguments as independent of each other, whatever they were computed from.
    """

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(evaluate(setting, given.on(leaves)))

    pull: Any = torch.func.vjp(run, *given.leaves)[1]
    return list(pull(tuple(grads)))


def second_gradient(setting: Setting, given: Given, grads: Sequence[Tensor], seconds: Sequence[Tensor]) -> Tensors:
    """From gradients of what `gradient` returns to those of the leaves, and of each of `grads`."""
    leaves = given.leaves

    def back(*arguments: Tensor) -> tuple[Tensor, ...]:
        own, grads = parts(arguments, len(leaves))
        return tuple(gradient(setting, given.on(own), grads))

    pull: Any = torch.func.vjp(back, *leaves, *grads)[1]
    return list(pull(tuple(seconds)))
