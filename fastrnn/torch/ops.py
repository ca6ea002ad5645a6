"""The recurrence for PyTorch: two custom operators, and a faster path to the same functions for plain tensors.

`fastrnn::recurrence` returns y, the final states and, with `training`, everything that its backward needs beyond its
arguments, as tensors: the input of each layer but the first, the bytes that the kernels saved for each layer and
direction, and the name of those kernels. So autograd frees them, and checkpointing, hooks on saved tensors and the
compiler treat them like any other tensors. The size of what the kernels save is known before they run.
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
from fastrnn.torch import equations, exporting
from fastrnn.torch.stack import Given, Setting, Stack, Tensors, addresses, dtype_of, lent, parts, unflat
from fastrnn.types import Array
from fastrnn.unchanged import Watched

#: The fields of a Given come first, those of a Setting last.
_GIVEN = "Tensor x, Tensor[]? init, Tensor[] weights, Tensor? lengths, Tensor? resets, Tensor[]? masks, Tensor[]? e"
_SETTING = "str cell, bool bias, bool bidirectional, bool batch_first, bool projected"


def plain() -> bool:
    """Whether tensors are plain memory: no compiler, tracer, function transform or mode is active."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or equations.transformed()
    )


def taken(arguments: Sequence[Any]) -> tuple[Given, list[Any], Setting]:
    """Split an operator's arguments: the call's Given, the operator's own arguments, and the Setting."""
    given, own, setting = parts(arguments, len(Given._fields), len(arguments) - len(Given._fields + Setting._fields))
    return Given.of(given), list(own), Setting(*setting)


_is_batched = torch._C._functorch.is_legacy_batchedtensor


def one_by_one(run: Callable[[Sequence[Any]], Sequence[Tensor]], grads: Sequence[Any]) -> Sequence[Tensor]:
    """Run a backward on these gradients, one at a time if `is_grads_batched` or `vectorize` batches several.

    Those options use PyTorch's older vmap, which wraps tensors in others that kernels cannot read.
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


#: Longer than any key.
KEY_BYTES = 64


def spelled(key: str) -> Tensor:
    """Encode a key of `Stack.train` as a tensor of characters, because operators can return only tensors."""
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
    x, cell = given.x, setting.recurrence
    y, *final = [x.new_empty(shape) for shape in setting.shapes(given)]
    if not training:
        return [y, *final]
    calls, B, width = final[0].shape
    *steps, features = y.shape
    time_major = steps[::-1] if setting.batch_first else steps
    inner = [x.new_empty((*time_major, features)) for _ in range(calls // setting.directions - 1)]
    H, P = int(given.weights[0].shape[0]) // cell.G, int(width) if setting.projected else 0
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
        raise RuntimeError("fastrnn::recurrence: expected training=True for a backward, got False, which saves nothing")
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
    """Second derivatives, which the kernels do not have."""
    equations.tell("gradients of gradients")
    given, grads = unflat(ctx.sizes, ctx.saved_tensors)

    def back(seconds: Sequence[Any]) -> Tensors:
        return equations.second_gradient(ctx.setting, given, grads, seconds)

    found, (ddy, *ddfinal) = parts(one_by_one(back, seconds), len(given.leaves))
    return *_by_argument(given, found), [None] * ctx.kept, ddy, ddfinal, *_NONE


#: The gradient of a Setting.
_NONE = (None,) * len(Setting._fields)


def _by_argument(given: Given, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    """Arrange the gradients of the leaves of a Given by its arguments."""
    back = given.on(grads)
    return back._replace(lengths=None, resets=None, masks=[None] * len(given.masks)).arguments  # type: ignore[list-item]


recurrence.register_autograd(_backward, setup_context=_keep)
recurrence_backward.register_autograd(_backward_again, setup_context=_keep_again)


def watched(setting: Setting, given: Given, training: bool) -> Tensors:
    """Return y and each final state under a compiler, a tracer or a transform."""
    if torch.onnx.is_in_onnx_export():
        return exporting.to_onnx(setting, given)
    if why := equations.reason(given.leaves):
        equations.tell(why)
        return equations.evaluate(setting, given)
    outputs: Tensors = recurrence(*given.arguments, training, *setting)
    return outputs[: 1 + len(setting.recurrence.states)]


class Recurrence(torch.autograd.Function):
    """The same for plain tensors, without the dispatcher's path through Python, which takes longer than a small net."""

    @staticmethod
    def forward(ctx: Any, setting: Setting, stack: Stack, given: Given, *flat: Any) -> tuple[Tensor, ...]:
        """Autograd tracks `flat`, which holds the tensors of `given`."""
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
            if torch.is_grad_enabled():  # create_graph: use the operator, which has a gradient of its own
                dy, *dfinal = whole(setting, given, grads)
                found: Tensors = recurrence_backward(*given.arguments, [*kept, spelled(key)], dy, dfinal, *setting)
                return found
            moved = addresses(given.weights) != stack.addresses  # a hook on saved tensors may move them
            return (Stack(setting, given.weights) if moved else stack).back(given, kept, key, grads)

        return None, None, None, *one_by_one(back, grads), *[None] * (len(given.masks) + 2)


#: `Recurrence.apply` without its check for function transforms, which plain tensors do not need.
differentiable: Any = super(torch.autograd.Function, Recurrence).apply


class OptimizerSteps:
    """Counts the steps of all optimizers: fused ones change parameters without increasing their version counters."""

    count = 0

    @classmethod
    def one_more(cls, *_: Any) -> None:
        cls.count += 1


register_optimizer_step_post_hook(OptimizerSteps.one_more)


def versions(weights: Sequence[Tensor]) -> list[int] | None:
    """Version counters of the weights, or None if PyTorch does not track them."""
    try:
        return [OptimizerSteps.count, *[weight._version for weight in weights]]
    except RuntimeError:  # created in inference mode; checking each one first would take longer
        return None


class Made(NamedTuple):
    """A stack, and the state of the tensors that it was made from, to detect changes."""

    stack: Stack
    tensors: Tensors  #: kept alive, so that their memory is not reused
    known: tuple[Any, ...] | None  #: None for a stack that is used once
    watched: Watched  #: of views of the tensors, valid as long as their addresses are the same; empty if used once


def made(
    last: Made | None, setting: Setting, tensors: Tensors, *, packed: bool, weights: Callable[[Tensors], Tensors] = list
) -> Made:
    """Return a stack on these tensors as weights (or on `weights` of them), reusing the last one if it is still valid.

    With `packed` it is for inference, and is remade as soon as a tensor has changed, according to PyTorch's version
    counters or to the elements that `Watched` compares. Otherwise it reads the tensors in place and packs nothing.
    """
    changes = versions(tensors) if packed else []
    known = None if changes is None else (setting, tensors[0].dtype, addresses(tensors), changes)
    if last is not None and known is not None and last.known == known and last.watched.unchanged():
        return last
    held = [t.detach() for t in tensors]
    if packed and any([t.is_neg() for t in held]):
        known = None  # NumPy gets a copy of these
    views = [viewed(t) for t in held] if packed and known is not None else []
    watched = Watched(views)  # before packing, so that concurrent writes count as changes
    stack = Stack(setting, weights(tensors))
    return Made(stack, held, known if packed or stack.in_place else None, watched)


def viewed(tensor: Tensor) -> Array:
    """A view of a tensor's elements; bfloat16 is viewed as integers, because NumPy lacks the type."""
    return lent(tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor)


def whole(setting: Setting, given: Given, grads: Sequence[Tensor | None]) -> Tensors:
    """Gradients of y and of each final state, with zeros for those that autograd omits."""
    return [given.x.new_zeros(s) if d is None else d for d, s in zip(grads, setting.shapes(given), strict=True)]
