"""Parameters of `fastrnn.torch`'s modules: changed, replaced, parametrized, given for one call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.torch_modules import both  # noqa: E402
from torch import nn  # noqa: E402

import fastrnn.torch  # noqa: E402


def close_inference(module: Any) -> bool:
    """Return whether it infers like torch.nn with its weights."""
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 2, 3)
    peer = nn.LSTM(3, 5, dtype=torch.float64)
    peer.load_state_dict(module.state_dict())
    with torch.inference_mode():
        return torch.allclose(module(x)[0], peer(x)[0], rtol=1e-12)


def by_step(module: Any, optimizer: Any) -> None:
    module(torch.ones(4, 2, 3, dtype=torch.float64))[0].sum().backward()
    assert close_inference(module)  # packs the weights that the step is about to change
    optimizer.step()


def replaced(module: Any) -> None:
    module.weight_hh_l0 = nn.Parameter(torch.zeros_like(module.weight_hh_l0))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda m: by_step(m, torch.optim.SGD(m.parameters(), 0.1)),
    "assign": lambda m: m.load_state_dict(nn.LSTM(3, 5, dtype=torch.float64).state_dict(), assign=True),
    "in place": lambda m: nn.init.zeros_(m.bias_hh_l0),
    "another parameter": replaced,
    "reset": lambda m: m.reset_parameters(),
    "there and back": lambda m: m.float().double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_inference_follows_the_weights(change: str) -> None:
    torch.manual_seed(0)
    module = fastrnn.torch.LSTM(3, 5, dtype=torch.float64)
    before = {name: a.clone() for name, a in module.state_dict().items()}
    assert close_inference(module)
    CHANGES[change](module)
    assert any(not torch.equal(before[name], a) for name, a in module.state_dict().items())
    assert close_inference(module)


def test_weights_are_packed_once() -> None:
    module, x = fastrnn.torch.LSTM(3, 5), torch.ones(4, 2, 3)
    with torch.no_grad():
        module(x)
        made = module._made
        module(x)
    assert module._made is made
    packed = made.stack.layers.packed()[1]
    with torch.inference_mode():
        module(x)
    assert module._made.stack.layers.packed()[1] is packed


def test_weights_of_inference_mode_are_not_kept() -> None:
    """PyTorch does not count their changes."""
    with torch.inference_mode():
        module, x = fastrnn.torch.GRU(3, 5), torch.ones(4, 2, 3)
        before, _ = module(x)
        module.weight_hh_l0.zero_()
        after, _ = module(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, fastrnn.torch.GRU.forward(copy.deepcopy(module), x)[0])


def test_a_transposed_parameter_may_change() -> None:
    """It is read through a copy, which must not outlive a change."""
    module, x = fastrnn.torch.RNN(3, 3), torch.randn(4, 2, 3)
    module.weight_hh_l0 = nn.Parameter(torch.randn(3, 3).t())
    for _ in range(2):
        peer = nn.RNN(3, 3)
        peer.load_state_dict(module.state_dict())
        assert torch.allclose(module(x)[0], peer(x)[0], atol=1e-6)
        with torch.no_grad():
            assert torch.allclose(module(x)[0], peer(x)[0], atol=1e-6)
            module.weight_hh_l0.mul_(0.5)


def test_functional_call_with_other_weights() -> None:
    """Results and gradients are those of the given weights."""
    module, x = fastrnn.torch.LSTM(3, 5), torch.randn(4, 2, 3)
    own = module(x)[0]
    weights = {name: torch.zeros_like(p, requires_grad=True) for name, p in module.named_parameters()}
    y, _ = torch.func.functional_call(module, weights, (x,))
    assert not y.any()
    assert not own.eq(y).any()
    (grad,) = torch.autograd.grad(y.sum(), weights["bias_ih_l0"])
    assert grad.any()
    assert torch.equal(module(x)[0], own)


def test_parametrized_weights_get_their_gradients() -> None:
    """Weights that are recomputed in every call."""
    torch.manual_seed(0)
    made = [nn.utils.parametrizations.weight_norm(m, "weight_hh_l0") for m in both("GRU", 3, 5, dtype=torch.float64)]
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    grads = [torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())) for m in made]
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(*grads, strict=True))
