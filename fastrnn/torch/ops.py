"""The recurrence as PyTorch sees it: two custom operators, and a shorter way to the same functions for plain tensors.

`fastrnn::recurrence` returns y, the final states and, with `training`, everything that its backward needs beside its
arguments, as tensors: what each layer but the first reads, the bytes that the kernels kept of each layer and direction,
and which kernels those were. So autograd frees them, and checkpointing, hooks on saved tensors and the compiler treat
them like any others. What the kernels keep depends on the lengths, and its size is known only when they ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastrnn.torch import equations
from fastrnn.torch.stack import Setting, Stack, Tensors, addresses

#: The arguments in common; a Setting comes as its four fields.
_GIVEN = "Tensor x, Tensor[] init, Tensor[] weights, Tensor? lengths, Tensor[] masks"
_SETTING = "str cell, bool bias, bool bidirectional, bool batch_first"

def plain() -> bool:
    """Whether tensors are memory and nothing else: no compiler, tracer, function transform or mode looks on."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or equations.transformed()
    )


def spelled(key: str) -> Tensor:
    """A key of `Stack.train` as a tensor of its characters: operators return nothing but tensors."""
    return torch.frombuffer(bytearray(key, "ascii"), dtype=torch.uint8)


@torch.library.custom_op(
    "fastrnn::recurrence",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_GIVEN}, bool training, {_SETTING}) -> Tensor[]",
)
def recurrence(
    x: Tensor, init: Tensors, weights: Tensors, lengths: Tensor | None, masks: Tensors, training: bool, *setting: Any
) -> Tensors:
    stack = Stack(Setting(*setting), weights)
    if not training and not masks:
        return stack.infer(x, init, lengths)
    outputs, kept, key = stack.train(x, init, lengths, masks, clean=True)
    return [*outputs, *kept, spelled(key)] if training else outputs


@torch.library.custom_op(
    "fastrnn::recurrence_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_GIVEN}, Tensor[] kept, Tensor dy, Tensor[] dfinal, {_SETTING}) -> Tensor[]",
)
def recurrence_backward(
    x: Tensor, init: Tensors, weights: Tensors, lengths: Tensor | None, masks: Tensors, kept: Tensors, dy: Tensor,
    dfinal: Tensors, *setting: Any,
) -> Tensors:
    stack = Stack(Setting(*setting), weights)
    *rest, key = kept
    return stack.back(x, init, lengths, masks, rest, key.numpy().tobytes().decode(), [dy, *dfinal])


@recurrence.register_fake
def _(
    x: Tensor, init: Tensors, weights: Tensors, lengths: Tensor | None, masks: Tensors, training: bool, *setting: Any
) -> Tensors:
    found = Setting(*setting)
    calls, H, D = len(weights) // len(found.keys), weights[0].shape[0] // found.recurrence.G, found.directions
    T, B = (x.shape[1], x.shape[0]) if found.batch_first else (x.shape[0], x.shape[1])
    y = x.new_empty((*x.shape[:2], D * H))
    final = [x.new_empty((calls, B, H)) for _ in found.recurrence.states]
    if not training:
        return [y, *final]
    inner = [x.new_empty((T, B, D * H)) for _ in range(calls // D - 1)]
    size = torch.library.get_ctx().new_dynamic_size
    saved_and_key = [x.new_empty((size(),), dtype=torch.uint8) for _ in range(calls + 1)]
    return [y, *final, *inner, *saved_and_key]


@recurrence_backward.register_fake
def _(
    x: Tensor, init: Tensors, weights: Tensors, lengths: Tensor | None, masks: Tensors, kept: Tensors, dy: Tensor,
    dfinal: Tensors, *setting: Any,
) -> Tensors:
    def time_major(a: Tensor) -> Tensor:
        return a.new_empty((a.shape[1], a.shape[0], a.shape[2])).transpose(0, 1)

    dx = time_major(x) if Setting(*setting).batch_first else x.new_empty(x.shape)
    return [dx, *[a.new_empty(a.shape) for a in (*init, *weights)]]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    x, init, weights, lengths, masks, training, *setting = inputs
    states = len(Setting(*setting).recurrence.states)
    ctx.sizes = len(init), len(weights), len(masks)
    ctx.setting, ctx.training = Setting(*setting), training
    ctx.save_for_backward(x, lengths, *init, *weights, *masks, *output[1 + states :])


def _backward(ctx: Any, grads: Tensors) -> tuple[Any, ...]:
    if not ctx.training:
        raise RuntimeError("fastrnn::recurrence: it ran with training=False, which keeps nothing for a backward")
    x, lengths, *rest = ctx.saved_tensors
    i, w, m = ctx.sizes
    init, weights, masks, kept = parts(rest, i, w, m)
    dy, *dfinal = grads = grads[: 1 + len(ctx.setting.recurrence.states)]
    if why := equations.reason(grads):
        equations.tell(why)
        dx, *found = equations.gradient(ctx.setting, x, init, weights, lengths, masks, grads)
    else:
        dx, *found = recurrence_backward(x, init, weights, lengths, masks, kept, dy, dfinal, *ctx.setting)
    return dx, found[:i], found[i:], None, [None] * m, None, None, None, None, None


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    x, init, weights, lengths, masks, kept, dy, dfinal, *setting = inputs
    ctx.sizes = len(init), len(weights), len(masks)
    ctx.setting, ctx.kept = Setting(*setting), len(kept)
    ctx.save_for_backward(x, lengths, *init, *weights, *masks, dy, *dfinal)


def _backward_again(ctx: Any, seconds: Tensors) -> tuple[Any, ...]:
    """The kernels have no gradient of a gradient."""
    equations.tell("gradients of gradients")
    x, lengths, *rest = ctx.saved_tensors
    i, w, m = ctx.sizes
    init, weights, masks, grads = parts(rest, i, w, m)
    dx, *found = equations.second_gradient(ctx.setting, x, init, weights, lengths, masks, grads, seconds)
    dinit, dweights, (ddy, *ddfinal) = parts(found, i, w)
    return dx, dinit, dweights, None, [None] * m, [None] * ctx.kept, ddy, ddfinal, None, None, None, None


recurrence.register_autograd(_backward, setup_context=_keep)
recurrence_backward.register_autograd(_backward_again, setup_context=_keep_again)


def watched(
    setting: Setting, x: Tensor, init: Sequence[Tensor], weights: Sequence[Tensor], lengths: Tensor | None,
    masks: Sequence[Tensor], training: bool,
) -> Tensors:
    """y and each final state, where something looks on: a compiler, a tracer, a transform."""
    if why := equations.reason([x, *init, *weights]):
        equations.tell(why)
        return equations.evaluate(setting, x, init, weights, lengths, masks)
    outputs: Tensors = recurrence(x, init, weights, lengths, masks, training, *setting)
    return outputs[: 1 + len(setting.recurrence.states)]


class Recurrence(torch.autograd.Function):
    """The same for plain tensors, without the dispatcher's way through Python, which takes longer than a small net."""

    @staticmethod
    def forward(
        ctx: Any, setting: Setting, stack: Stack, sizes: tuple[int, int, int], x: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        i, w, m = sizes
        outputs, kept, key = stack.train(x, rest[:i], rest[i + w + m], rest[i + w : i + w + m])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *rest, *kept)
        ctx.known = setting, stack, sizes, key
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        setting, stack, (i, w, m), key = ctx.known
        x, *rest = ctx.saved_tensors
        init, weights, masks, (lengths, *kept) = parts(rest, i, w, m)
        if why := equations.reason(grads):
            equations.tell(why)
            given = whole(setting, x, weights, grads)
            dx, *found = equations.gradient(setting, x, init, weights, lengths, masks, given)
        elif torch.is_grad_enabled():  # create_graph: by the operator, which has a gradient of its own
            dy, *dfinal = whole(setting, x, weights, grads)
            kept.append(spelled(key))
            dx, *found = recurrence_backward(x, init, weights, lengths, masks, kept, dy, dfinal, *setting)
        else:
            if addresses(weights) != stack.addresses:  # a hook on saved tensors has put them elsewhere
                stack = Stack(setting, weights)
            dx, *found = stack.back(x, init, lengths, masks, kept, key, grads)
        return None, None, None, dx, *found, *[None] * (m + 1)


#: `Recurrence.apply` less its look at function transforms, which plain tensors know nothing of.
differentiable: Any = super(torch.autograd.Function, Recurrence).apply


class Steps:
    """How often any optimizer stepped: the fused ones change parameters, and do not count it as a change of them."""

    count = 0

    @classmethod
    def one_more(cls, *_: Any) -> None:
        cls.count += 1


register_optimizer_step_post_hook(Steps.one_more)


def versions(weights: Sequence[Tensor]) -> list[int] | None:
    """Numbers that are others when one of the weights has changed; None if nobody counts that."""
    if any([weight.is_inference() for weight in weights]):
        return None
    return [Steps.count, *[weight._version for weight in weights]]


class Made(NamedTuple):
    """A stack, and what is known of the tensors that it was made of."""

    stack: Stack
    tensors: Tensors  #: held, so that nothing else can come to lie there
    known: tuple[Any, ...] | None  #: None for a stack of one use


def made(
    last: Made | None,
    setting: Setting,
    tensors: Tensors,
    *,
    packed: bool,
    weights: Callable[[Tensors], Tensors] = list,
) -> Made:
    """A stack on the weights that these tensors are, or that `weights` makes of them: the last one, if it still is.

    With `packed` it is for inference, and another one as soon as a tensor has changed. Else it reads the tensors where
    they are and packs nothing: what comes next may change them, and not tell.
    """
    changes = versions(tensors) if packed else []
    known = None if changes is None else (setting, tensors[0].dtype, addresses(tensors), changes)
    if last is not None and known is not None and last.known == known:
        return last
    stack = Stack(setting, weights(tensors))
    return Made(stack, [t.detach() for t in tensors], known if packed or stack.in_place else None)


def parts(flat: Sequence[Any], *sizes: int) -> list[Any]:
    """Lists of these sizes, and one of what is left."""
    found, start = [], 0
    for size in sizes:
        found.append(flat[start : start + size])
        start += size
    return [*found, flat[start:]]


def whole(setting: Setting, x: Tensor, weights: Tensors, grads: Sequence[Tensor | None]) -> Tensors:
    """Gradients of y and of each final state, zeros for those that autograd leaves out."""
    B = x.shape[0] if setting.batch_first else x.shape[1]
    H, calls = weights[0].shape[0] // setting.recurrence.G, len(weights) // len(setting.keys)
    shapes = [(*x.shape[:2], setting.directions * H)] + [(calls, B, H)] * (len(grads) - 1)
    return [x.new_zeros(s) if d is None else d for d, s in zip(grads, shapes, strict=True)]
