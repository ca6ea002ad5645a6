"""The recurrence computed from the cells' equations, step by step on tensors, for what the kernels cannot compute.

Everything here consists of PyTorch operators, so all of its transforms and derivatives of any order work.
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
from fastrnn.torch.stack import Given, Setting, Tensors, conjugate, packed, parts

tell = functools.partial(slow.tell, "fastrnn.torch")


def transformed() -> bool:
    """Whether this thread is in a transform of torch.func or forward mode, where a tensor may be more than memory."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def reason(tensors: Sequence[Tensor | None]) -> str:
    """Why the equations must compute a layer on these tensors (or a backward on these gradients); "" if not."""
    if torch._C._are_functorch_transforms_active():
        return "torch.func's transforms (grad, vmap, jvp, ...)"
    if forward_ad._current_level >= 0:
        unpack: Any = forward_ad.unpack_dual
        if any([a is not None and unpack(a).tangent is not None for a in tensors]):
            return "forward-mode derivatives"
    return ""


def evaluate(setting: Setting, given: Given) -> Tensors:
    """Return y and each final state, as `Stack.train` does."""
    if given.lengths is not None and given.x.dim() == 3:
        return _padded(setting, given)
    cell, D = setting.recurrence, setting.directions
    x, init, weights, lengths, resets, masks, e = given
    below = x.transpose(0, 1) if setting.batch_first else x
    B, widths, parts = setting.batch(given), setting.widths(weights), setting.parts(weights)
    sizes = None if lengths is None else conjugate(lengths, int(lengths[0])).tolist()
    inputs = dict(zip(cell.inputs, e, strict=True))
    final: list[tuple[Tensor, ...]] = []
    for first in range(0, len(parts), D):
        above = []
        for call in range(first, first + D):
            state = tuple([s[call] for s in init]) or tuple([below.new_zeros(B, width) for width in widths])
            y, state = _direction(setting, below, state, parts[call], inputs, resets, sizes, backwards=call > first)
            above.append(y)
            final.append(state)
        below = torch.cat(above, -1)
        if masks and first + D < len(parts):
            below = below * masks[first // D]
    states = [torch.stack(each) for each in zip(*final, strict=True)]
    return [below.transpose(0, 1) if setting.batch_first else below, *states]


def _padded(setting: Setting, given: Given) -> Tensors:
    """`evaluate` of padded sequences with lengths in any order, by packing and unpacking them."""
    assert given.lengths is not None
    x = given.x.transpose(0, 1) if setting.batch_first else given.x
    T, B, _ = x.shape
    order = given.lengths.argsort(descending=True)
    lengths, back = given.lengths[order], order.argsort()
    sizes = conjugate(lengths, T)

    def in_order(a: Tensor) -> Tensor:
        return packed(a.index_select(1, order), sizes)

    y, *final = evaluate(
        setting._replace(batch_first=False),
        given._replace(
            x=in_order(x),
            init=[s.index_select(1, order) for s in given.init],
            lengths=lengths,
            resets=None if given.resets is None else in_order(given.resets),
            masks=[in_order(mask) for mask in given.masks],
            e=[in_order(a) for a in given.e],
        ),
    )
    steps = y.reshape(-1, y.shape[-1]).split_with_sizes(sizes.tolist())
    whole = torch.stack([pad(step, (0, 0, 0, B - len(step))) for step in steps]).index_select(1, back)
    return [whole.transpose(0, 1) if setting.batch_first else whole, *[s.index_select(1, back) for s in final]]


def _direction(
    setting: Setting,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: dict[str, Tensor],
    inputs: dict[str, Tensor],
    resets: Tensor | None,
    sizes: list[int] | None,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return y and the final states of one layer and direction, time-major; `sizes` are the batch sizes per step."""

    def steps(a: Tensor) -> Sequence[Tensor]:
        return a.unbind() if sizes is None else a.split_with_sizes(sizes)

    W, U, b, b_rec, p, R = [weights.get(key) for key in ("W", "U", "b", "b_rec", "p", "R")]
    xs, fresh = steps(x), None if resets is None else steps(resets)
    es = {name: steps(a) for name, a in inputs.items()}
    y: Tensors = []
    for t in range(len(xs) - 1, -1, -1) if backwards else range(len(xs)):
        n = len(xs[t])
        before = state if sizes is None else tuple([s[:n] for s in state])
        if fresh is not None:
            before = tuple([torch.where(fresh[t].unsqueeze(1), 0.0, s) for s in before])
        e = {name: a[t] for name, a in es.items()}
        after = setting.recurrence.evaluate(xs[t], before, W, U, b, b_rec, p, e, R)
        y.append(after[0])
        state = after if sizes is None else tuple([torch.cat((a, s[n:])) for a, s in zip(after, state, strict=True)])
    if not y:
        return x.new_empty((0, *state[0].shape)), state
    y = y[::-1] if backwards else y
    return torch.stack(y) if sizes is None else torch.cat(y), state


def gradient(setting: Setting, given: Given, grads: Sequence[Tensor]) -> Tensors:
    """Return differentiable gradients of the leaves, as `Stack.back` orders them.

    Uses `torch.func.vjp`, which treats the arguments as independent, whatever they were computed from.
    """

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(evaluate(setting, given.on(leaves)))

    pull: Any = torch.func.vjp(run, *given.leaves)[1]
    return list(pull(tuple(grads)))


def second_gradient(setting: Setting, given: Given, grads: Sequence[Tensor], seconds: Sequence[Tensor]) -> Tensors:
    """Return gradients of the leaves and of each of `grads`, from gradients of the results of `gradient`."""
    leaves = given.leaves

    def back(*arguments: Tensor) -> tuple[Tensor, ...]:
        own, grads = parts(arguments, len(leaves))
        return tuple(gradient(setting, given.on(own), grads))

    pull: Any = torch.func.vjp(back, *leaves, *grads)[1]
    return list(pull(tuple(seconds)))
