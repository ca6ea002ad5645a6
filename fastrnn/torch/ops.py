"""The recurrence as PyTorch sees it: two custom operators, and a shorter way to the same functions for plain tensors.

`fastrnn::recurrence` returns y, the final states and, with `training`, everything that its backward needs beside its
arguments, as tensors: what each layer but the first reads, the bytes that the kernels kept of each layer and direction,
and which kernels those were. So autograd frees them, and checkpointing, hooks on saved tensors and the compiler treat
them like any others. What the kernels keep has a size that is known before they run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastrnn import backends
from fastrnn.cells import Array, Arrays
from fastrnn.torch import equations, exporting
from fastrnn.torch.stack import Given, Setting, Stack, Tensors, addresses, dtype_of, lent, parts, unflat
from fastrnn.unchanged import contents, spread

#: A Given comes first, a Setting last, each as its fields.
_GIVEN = "Tensor x, Tensor[]? init, Tensor[] weights, Tensor? lengths, Tensor? resets, Tensor[]? masks, Tensor[]? e"
_SETTING = "str cell, bool bias, bool bidirectional, bool batch_first, bool projected"


def plain() -> bool:
    """Whether tensors are memory and nothing else: no compiler, tracer, function transform or mode looks on."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or equations.transformed()
    )


def taken(arguments: Sequence[Any]) -> tuple[Given, list[Any], Setting]:
    """An operator's arguments: what the call is given, what is the operator's own, and the setting."""
    given, own, setting = parts(arguments, len(Given._fields), len(arguments) - len(Given._fields + Setting._fields))
    return Given.of(given), list(own), Setting(*setting)


_is_batched = torch._C._functorch.is_legacy_batchedtensor


def one_by_one(run: Callable[[Sequence[Any]], Sequence[Tensor]], grads: Sequence[Any]) -> Sequence[Tensor]:
    """What a backward makes of these gradients: for each in turn where `is_grads_batched` or `vectorize` has several.

    That is PyTorch's older vmap, which wraps tensors in others that no kernel can read.
    """
    several = [d is not None and _is_batched(d) for d in grads]
    if True not in several:
        return run(grads)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    pairs = zip(grads, several, strict=True)
    apart = [torch._remove_batch_dim(d, level, 0, 0) if batched else itertools.repeat(d) for d, batched in pairs]
    found = [run(own) for own in zip(*apart, strict=False)]
    return [torch._add_batch_dim(torch.stack(parts), 0, level) for parts in zip(*found, strict=True)]


#: Longer than any.
KEY_BYTES = 64


def spelled(key: str) -> Tensor:
    """A key of `Stack.train` as a tensor of its characters: operators return nothing but tensors."""
    return torch.frombuffer(bytearray(key.ljust(KEY_BYTES), "ascii"), dtype=torch.uint8)


def read(key: Tensor) -> str:
    return key.numpy().tobytes().decode().rstrip()


@torch.library.custom_op(
    "fastrnn::recurrence",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_GIVEN}, bool training, {_SETTING}) -> Tensor[]",
)
def recurrence(*arguments: Any) -> Tensors:
    given, (training,), setting = taken(arguments)
    stack = Stack(setting, given.weights)
    if not training and not given.masks:
        return stack.infer(given)
    outputs, kept, key = stack.train(given, clean=True)
    return [*outputs, *kept, spelled(key)] if training else outputs


@torch.library.custom_op(
    "fastrnn::recurrence_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_GIVEN}, Tensor[] kept, Tensor dy, Tensor[] dfinal, {_SETTING}) -> Tensor[]",
)
def recurrence_backward(*arguments: Any) -> Tensors:
    given, ((*kept, key), dy, dfinal), setting = taken(arguments)
    return Stack(setting, given.weights).back(given, kept, read(key), [dy, *dfinal])


@recurrence.register_fake
def _(*arguments: Any) -> Tensors:
    given, (training,), setting = taken(arguments)
    x, _, weights, *_ = given
    keys, cell, D, widths = setting.keys, setting.recurrence, setting.directions, setting.widths(weights)
    calls, B, steps = len(weights) // len(keys), setting.batch(given), x.shape[:-1]
    y = x.new_empty((*steps, D * widths[0]))
    final = [x.new_empty((calls, B, width)) for width in widths]
    if not training:
        return [y, *final]
    time_major = steps[::-1] if setting.batch_first else steps
    inner = [x.new_empty((*time_major, D * widths[0])) for _ in range(calls // D - 1)]
    H, P = int(weights[0].shape[0]) // cell.G, int(widths[0]) if setting.projected else 0
    n = backends.of(cell).room(cell, dtype_of(x), H, P, math.prod(steps), B)
    sizes = [torch.library.get_ctx().new_dynamic_size() if n is None else n for _ in range(calls)]
    saved = [x.new_empty((size,), dtype=torch.uint8) for size in sizes]
    return [y, *final, *inner, *saved, x.new_empty((KEY_BYTES,), dtype=torch.uint8)]


@recurrence_backward.register_fake
def _(*arguments: Any) -> Tensors:
    given, _, setting = taken(arguments)

    def time_major(a: Tensor) -> Tensor:
        return a.new_empty((a.shape[1], a.shape[0], a.shape[2])).transpose(0, 1)

    x, *rest = given.leaves
    dx = time_major(x) if setting.batch_first else x.new_empty(x.shape)
    return [dx, *[a.new_empty(a.shape) for a in rest]]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    given, (ctx.training,), ctx.setting = taken(inputs)
    ctx.sizes = given.sizes
    ctx.save_for_backward(*given.flat, *output[1 + len(ctx.setting.recurrence.states) :])


def _backward(ctx: Any, grads: Tensors) -> tuple[Any, ...]:
    if not ctx.training:
        raise RuntimeError("fastrnn::recurrence: it ran with training=False, which keeps nothing for a backward")
    given, kept = unflat(ctx.sizes, ctx.saved_tensors)
    grads = grads[: 1 + len(ctx.setting.recurrence.states)]

    def back(grads: Sequence[Any]) -> Tensors:
        if why := equations.reason(grads):
            equations.tell(why)
            return equations.gradient(ctx.setting, given, grads)
        found: Tensors = recurrence_backward(*given.arguments, kept, grads[0], grads[1:], *ctx.setting)
        return found

    return *_by_argument(given, one_by_one(back, grads)), None, *_NONE


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    given, (kept, dy, dfinal), ctx.setting = taken(inputs)
    ctx.sizes, ctx.kept = given.sizes, len(kept)
    ctx.save_for_backward(*given.flat, dy, *dfinal)


def _backward_again(ctx: Any, seconds: Tensors) -> tuple[Any, ...]:
    """The kernels have no gradient of a gradient."""
    equations.tell("gradients of gradients")
    given, grads = unflat(ctx.sizes, ctx.saved_tensors)

    def back(seconds: Sequence[Any]) -> Tensors:
        return equations.second_gradient(ctx.setting, given, grads, seconds)

    found, (ddy, *ddfinal) = parts(one_by_one(back, seconds), len(given.leaves))
    return *_by_argument(given, found), [None] * ctx.kept, ddy, ddfinal, *_NONE


#: The gradient of a Setting.
_NONE = (None,) * len(Setting._fields)


def _by_argument(given: Given, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    """The gradient of each argument of a Given, from those of its leaves."""
    back = given.on(grads)
    return back._replace(lengths=None, resets=None, masks=[None] * len(given.masks)).arguments  # type: ignore[list-item]


recurrence.register_autograd(_backward, setup_context=_keep)
recurrence_backward.register_autograd(_backward_again, setup_context=_keep_again)


def watched(setting: Setting, given: Given, training: bool) -> Tensors:
    """y and each final state, where something looks on: a compiler, a tracer, a transform."""
    if torch.onnx.is_in_onnx_export():
        return exporting.to_onnx(setting, given)
    if why := equations.reason(given.leaves):
        equations.tell(why)
        return equations.evaluate(setting, given)
    outputs: Tensors = recurrence(*given.arguments, training, *setting)
    return outputs[: 1 + len(setting.recurrence.states)]


class Recurrence(torch.autograd.Function):
    """The same for plain tensors, without the dispatcher's way through Python, which takes longer than a small net."""

    @staticmethod
    def forward(ctx: Any, setting: Setting, stack: Stack, given: Given, *flat: Any) -> tuple[Tensor, ...]:
        """`flat` is that of `given`, for autograd to see."""
        outputs, kept, key = stack.train(given)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*flat, *kept)
        ctx.known = setting, stack, given.sizes, key
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        setting, stack, sizes, key = ctx.known
        given, kept = unflat(sizes, ctx.saved_tensors)

        def back(grads: Sequence[Any]) -> Tensors:
            if why := equations.reason(grads):
                equations.tell(why)
                return equations.gradient(setting, given, whole(setting, given, grads))
            if torch.is_grad_enabled():  # create_graph: by the operator, which has a gradient of its own
                dy, *dfinal = whole(setting, given, grads)
                found: Tensors = recurrence_backward(*given.arguments, [*kept, spelled(key)], dy, dfinal, *setting)
                return found
            moved = addresses(given.weights) != stack.addresses  # by a hook on saved tensors
            return (Stack(setting, given.weights) if moved else stack).back(given, kept, key, grads)

        return None, None, None, *one_by_one(back, grads), *[None] * (len(given.masks) + 2)


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
    """Numbers that are others when one of the weights was changed as a tensor; None if nobody counts that."""
    try:
        return [Steps.count, *[weight._version for weight in weights]]
    except RuntimeError:  # made in inference mode; to ask each of them first would take longer than to look at it
        return None


class Made(NamedTuple):
    """A stack, and what is known of the tensors that it was made of."""

    stack: Stack
    tensors: Tensors  #: held, so that nothing else can come to lie there
    known: tuple[Any, ...] | None  #: None for a stack of one use
    samples: Arrays  #: views of some elements of each tensor, valid as long as it has the same address
    seen: list[int | None]  #: what those were


def made(
    last: Made | None,
    setting: Setting,
    tensors: Tensors,
    *,
    packed: bool,
    weights: Callable[[Tensors], Tensors] = list,
) -> Made:
    """A stack on the weights that these tensors are, or that `weights` makes of them: the last one, if it still is.

    With `packed` it is for inference, and another one as soon as a tensor has changed, by what PyTorch counts or by a
    look at some elements. Else it reads the tensors where they are and packs nothing.
    """
    changes = versions(tensors) if packed else []
    known = None if changes is None else (setting, tensors[0].dtype, addresses(tensors), changes)
    if last is not None and known is not None and last.known == known and contents(last.samples) == last.seen:
        return last
    held = [t.detach() for t in tensors]
    if packed and any([t.is_neg() for t in held]):
        known = None  # of those NumPy has a copy
    samples = tuple([sample(t) for t in held]) if packed and known is not None else ()
    seen = contents(samples)  # before they are packed: what is written meanwhile is a change
    stack = Stack(setting, weights(tensors))
    return Made(stack, held, known if packed or stack.in_place else None, samples, seen)


def sample(tensor: Tensor) -> Array:
    """A view of some elements, of bfloat16 as integers, because NumPy has no such type."""
    return spread(lent(tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor))


def whole(setting: Setting, given: Given, grads: Sequence[Tensor | None]) -> Tensors:
    """Gradients of y and of each final state, zeros for those that autograd leaves out."""
    x, _, weights, *_ = given
    calls, B, widths = len(weights) // len(setting.keys), setting.batch(given), setting.widths(weights)
    shapes = [(*x.shape[:-1], setting.directions * widths[0]), *[(calls, B, width) for width in widths]]
    return [x.new_zeros(s) if d is None else d for d, s in zip(grads, shapes, strict=True)]
