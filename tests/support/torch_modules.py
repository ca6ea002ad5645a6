"""Modules of `torch.nn` and of `fastrnn.torch`, and all results of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn.torch
from support.problems import Arrays

#: of what is computed by equations
slow = pytest.mark.filterwarnings(
    "ignore:fastrnn.torch. .*, which is slow:RuntimeWarning",
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",  # by forward mode
)

KINDS: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {}, "RNN": {"nonlinearity": "relu"}}

#: cell of the registry -> its module and keywords
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "rnn_sigmoid": ("RNN", {"nonlinearity": "sigmoid"}),
    "rnn_identity": ("RNN", {"nonlinearity": "identity"}),
    "lstm": ("LSTM", {}),
    "lstm_peephole": ("LSTM", {"peephole": True}),
    "gru_after": ("GRU", {}),
    "gru_before": ("GRU", {"reset_after": False}),
}


def both(kind: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Return torch.nn's module and fastrnn's, made from the same seed."""
    made = []
    for package in (nn, fastrnn.torch):
        torch.manual_seed(0)
        made.append(getattr(package, kind)(*sizes, **options))
    return made[0], made[1]


def drawn(seed: int, *shape: int) -> Any:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def as_given(states: Any) -> Any:
    """Some states, or none, as a module takes them."""
    return tuple(states) if len(states) > 1 else states[0] if states else None


def flat(result: Any) -> list[Any]:
    """y, which may be packed, and each final state."""
    y, final = result
    return [y.data if isinstance(y, PackedSequence) else y, *(final if isinstance(final, tuple) else (final,))]


def packing(module: Any, lengths: Any, **options: Any) -> Callable[..., Any]:
    """The module on padded sequences, which it gets packed."""

    def run(x: Any, hx: Any) -> Any:
        packed = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False)
        y, final = module(packed, hx, **options)
        y, found = pad_packed_sequence(y, module.batch_first, total_length=x.shape[int(module.batch_first)])
        assert torch.equal(found, lengths)
        return y, final

    return run


def everything(module: Any, x: Any, states: Any, run: Any = None, cotangents: Any = None) -> Arrays:
    """Outputs of `run`, the module's call by default, and every gradient by its name; random by seeds of their own."""
    leaves = {"x": x.clone().requires_grad_()}
    leaves |= {f"state {i}": s.clone().requires_grad_() for i, s in enumerate(states)}
    first, *given = leaves.values()
    torch.manual_seed(1)  # of dropout
    outputs = flat((run or module)(first, as_given(given)))
    leaves |= dict(module.named_parameters())
    cotangents = cotangents or [drawn(9 + i, *a.shape).to(a.dtype) for i, a in enumerate(outputs)]
    cotangents = [d.reshape(a.shape) for d, a in zip(cotangents, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    found = dict(zip(("y", "h_n", "c_n"), outputs, strict=False))
    found |= {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: a.detach().numpy() for name, a in found.items()}


def of_layer(layer: Any, x: Any, states: Any, **options: Any) -> Arrays:
    """What `everything` gives of a module with the layer's weights."""
    out = layer.forward(x, state=as_given(states), training=True, **options)
    outputs = flat(out[:2])
    dy, *dfinal = [drawn(9 + i, *a.shape) for i, a in enumerate(outputs)]
    back = layer.backward(dy, out.cache, dstate=as_given(dfinal))
    dstates = back.dstate if isinstance(back.dstate, tuple) else (back.dstate,)
    found = dict(zip(("y", "h_n", "c_n"), outputs, strict=False)) | {"dx": back.dx}
    found |= {f"dstate {i}": d for i, d in enumerate(dstates[: len(states)])}
    return found | {f"d{name}": d for name, d in back.grads.items()}


def assert_equal(got: Any, expected: Any) -> None:
    """But for roundings in float64."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def loss_and_gradients(module: Any, x: Any, call: Callable[..., Any]) -> list[Any]:
    x = x.clone().requires_grad_()
    y = call(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


def made(kind: str, *sizes: int, **options: Any) -> Any:
    """Return torch.nn's module, with the same weights in every call."""
    torch.manual_seed(0)
    return getattr(nn, kind)(*(sizes or (3, 5)), **options)
