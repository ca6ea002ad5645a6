"""PyTorch's module inputs for RNN, GRU and LSTM (`torch.testing`): fastrnn's modules give torch.nn's results."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # torch.testing imports it

from torch.testing._internal.common_modules import module_db  # noqa: E402

import fastrnn.torch  # noqa: E402

THEIRS = (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM)
MODULES = {info.module_cls: info for info in module_db if info.module_cls in THEIRS}


def tensors(value: Any) -> list[Any]:
    """Return all tensors in nested tuples and PackedSequences, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [a for part in value for a in tensors(part)] if isinstance(value, tuple | list) else []


def inputs_of(kind: Any, dtype: Any, training: bool) -> list[Any]:
    info = MODULES[kind]
    return info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")  # for torch.nn's
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["64", "32"])
@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_outputs_and_gradients(kind: Any, dtype: Any, tolerance: float, training: bool) -> None:
    torch.manual_seed(0)
    tried = 0
    for given in inputs_of(kind, dtype, training):
        made, call = given.constructor_input, given.forward_input
        if made.kwargs.get("dropout"):  # random; tests/test_torch.py compares it
            continue
        theirs = kind(*made.args, **made.kwargs, dtype=dtype).train(training)
        ours = copy.deepcopy(theirs)
        fastrnn.torch.replace(torch.nn.ModuleList([ours]))
        assert isinstance(ours, getattr(fastrnn.torch, kind.__name__))
        found = []
        for module in (theirs, ours):
            args = [copy.deepcopy(a) for a in call.args]
            outputs = tensors(module(*args, **call.kwargs))
            cotangents = [
                torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(1)) for a in outputs
            ]
            leaves = [a for a in tensors(args) if a.requires_grad] + list(module.parameters())
            loss = sum((a * d).sum() + (a**2).sum() for a, d in zip(outputs, cotangents, strict=True))
            grads = torch.autograd.grad(loss, leaves)
            found.append([*outputs, *grads])
        for got, expected in zip(found[1], found[0], strict=True):
            assert (got - expected).norm() <= tolerance * expected.norm()
        tried += 1
    assert tried >= 8
