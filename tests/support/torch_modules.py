"""Modules of `torch.nn` and of `fastrnn.torch`, and all results of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn.torch
from support.problems import Arrays

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


def flat(final: Any) -> tuple[Any, ...]:
    return final if isinstance(final, tuple) else (final,)


def everything(module: Any, x: Any, hx: Any, cotangents: Any, lengths: Any, seed: int = 1) -> Arrays:
    """Return outputs and every gradient by name; dropout uses the seed."""
    leaves = {"x": x.clone().requires_grad_()}
    leaves |= {f"state {i}": s.clone().requires_grad_() for i, s in enumerate(hx or ())}
    first, *states = leaves.values()
    state = None if hx is None else states[0] if len(states) == 1 else tuple(states)
    given: Any = first
    if lengths is not None:
        given = pack_padded_sequence(first, lengths, module.batch_first, enforce_sorted=False)
    torch.manual_seed(seed)
    y, final = module(given, state)
    if lengths is not None:
        y, found = pad_packed_sequence(y, module.batch_first, total_length=x.shape[int(module.batch_first)])
        assert torch.equal(found, lengths)
    outputs = dict(zip(("y", "h_n", "c_n"), (y, *flat(final)), strict=False))
    leaves |= dict(module.named_parameters())
    loss = sum((a * d.reshape(a.shape)).sum() for a, d in zip(outputs.values(), cotangents, strict=True))
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {name: a.detach().numpy() for name, a in outputs.items()} | {
        f"d{name}": g.numpy() for name, g in zip(leaves, grads, strict=True)
    }


def loss_and_gradients(module: Any, x: Any, call: Callable[..., Any]) -> list[Any]:
    x = x.clone().requires_grad_()
    y = call(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


def made(kind: str, *sizes: int, **options: Any) -> Any:
    """Return torch.nn's module, with the same weights in every call."""
    torch.manual_seed(0)
    return getattr(nn, kind)(*(sizes or (3, 5)), **options)
