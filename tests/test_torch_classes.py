"""Code that relies on `torch.nn`'s classes: isinstance, torch.fx, initialisers, fake tensors, caught errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.torch_modules import KINDS, made  # noqa: E402
from torch import nn  # noqa: E402

import fastrnn.torch  # noqa: E402
from fastrnn.cells import find  # noqa: E402

X = torch.linspace(-1, 1, 24).reshape(4, 2, 3)


class Last(nn.Module):
    """Distinguishes the state of an LSTM from others by the class, as published models do."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any) -> Any:
        _, state = self.rnn(x)
        return state[0][-1] if isinstance(self.rnn, nn.LSTM) else state[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_an_instance_of_torchs_class(kind: str) -> None:
    theirs, own = getattr(nn, kind), getattr(fastrnn.torch, kind)
    assert issubclass(own, theirs)
    model = Last(made(kind))
    expected = model(X)
    fastrnn.torch.replace(model)
    assert type(model.rnn) is own
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(X), expected)


def test_layers_of_other_cells_are_not_lstm_gru_or_rnn() -> None:
    module = fastrnn.torch.Recurrent(find("lstm"), 3, 5)
    assert isinstance(module, nn.RNNBase)
    assert not isinstance(module, nn.LSTM | nn.GRU | nn.RNN)
    call = torch.compile(lambda x: module(x)[0], fullgraph=True, backend="eager")
    assert torch.equal(call(X), module(X)[0])


def test_initialisers_find_the_layers() -> None:
    def init(module: Any) -> None:
        if isinstance(module, nn.LSTM):
            nn.init.constant_(module.bias_hh_l0, 3.0)

    model = nn.Sequential(fastrnn.torch.LSTM(3, 5), fastrnn.torch.GRU(5, 5)).apply(init)
    assert (model[0].bias_hh_l0 == 3).all()
    assert not (model[1].bias_hh_l0 == 3).any()


class Wrapper(nn.Module):
    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_fx_traces_a_layer_as_one_node(kind: str) -> None:
    """A call of the module is one node, with hooks; for modules that were replaced, created, copied or pickled."""
    expected = made(kind)(X)[0]
    swapped, fresh, calls = Wrapper(made(kind)), getattr(fastrnn.torch, kind)(3, 5), []
    fastrnn.torch.replace(swapped)
    fresh.load_state_dict(swapped.rnn.state_dict())
    for rnn in (swapped.rnn, fresh, copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        rnn.register_forward_hook(lambda *_: calls.append("hook"))
        traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), Wrapper(rnn)))
        assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1.rnn"]
        calls.clear()
        torch.testing.assert_close(traced(X), expected)
        assert calls == ["hook"]
    assert fastrnn.torch.LSTM.__module__ == "fastrnn.torch.modules"


@pytest.fixture
def swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapping")
def test_parameters_may_be_swapped_in_place() -> None:
    """Parameters are replaced in the same object, so the module must not refer to them weakly."""
    module = fastrnn.torch.LSTM(3, 5)
    own = module.weight_hh_l0
    with torch.no_grad():
        module(X)
    module(X)[0].sum().backward()
    module.double()
    other = made("LSTM").double()
    module.load_state_dict(other.state_dict())
    assert module.weight_hh_l0 is own
    with torch.no_grad():
        torch.testing.assert_close(module(X.double())[0], other(X.double())[0])
        zeros = nn.Parameter(torch.zeros(20, 5, dtype=torch.float64))
        torch.utils.swap_tensors(module.weight_hh_l0, zeros)
        nn.init.zeros_(other.weight_hh_l0)
        torch.testing.assert_close(module(X.double())[0], other(X.double())[0])


def test_fake_tensors_have_torchs_shapes() -> None:
    """Only shapes, as for torch.nn: created and called, also with the weights of an existing module."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for kind in KINDS:
        results = []
        for package in (nn, fastrnn.torch):
            with FakeTensorMode():
                module = getattr(package, kind)(3, 5, 2, bidirectional=True, batch_first=True)
                y, state = module(torch.ones(2, 4, 3))
                y.sum().backward()
                results.append([y.shape, *[s.shape for s in (state if kind == "LSTM" else [state])]])
                assert module.weight_hh_l0.grad.shape == module.weight_hh_l0.shape
        assert results[0] == results[1]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_may_be_made_on_the_meta_device(kind: str) -> None:
    """On the device "meta" there are only shapes, and parameters come later."""
    theirs = made(kind, 3, 5, 2, bidirectional=True)
    with torch.device("meta"):
        fresh = getattr(fastrnn.torch, kind)(3, 5, 2, bidirectional=True)
        swapped = made(kind, 3, 5, 2, bidirectional=True)
    fastrnn.torch.replace(swapped)
    y, _ = fresh(X.to("meta"))
    y.sum().backward()
    assert (y.device.type, y.shape, fresh.weight_hh_l0.grad.shape) == ("meta", (4, 2, 10), theirs.weight_hh_l0.shape)
    with pytest.raises(TypeError, match="weights: expected a tensor on the CPU, got device meta"):
        fresh(X)
    fresh.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    swapped.load_state_dict(theirs.state_dict(), assign=True)
    for module in (fresh, swapped):
        torch.testing.assert_close(module(X)[0], theirs(X)[0])


WRONG: dict[str, Any] = {
    "dtype": lambda m: m(X.double()),
    "bfloat16": lambda m: m(X.bfloat16()),
    "whole numbers": lambda m: m(X.long()),
    "features": lambda m: m(X[:, :, :2]),
    "axes": lambda m: m(X[None]),
    "state's shape": lambda m: m(X, (torch.ones(1, 2, 4), torch.ones(1, 2, 5))),
    "state's axes": lambda m: m(X[:, 0], (torch.ones(1, 2, 5), torch.ones(1, 2, 5))),
    "state's dtype": lambda m: m(X, (torch.ones(1, 2, 5).double(), torch.ones(1, 2, 5))),
    "device": lambda m: m(X.to("meta")),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_have_the_classes_of_torch(what: str) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011  # which it is, is the question
        WRONG[what](nn.LSTM(3, 5))
    with pytest.raises(type(theirs.value)) as own:
        WRONG[what](fastrnn.torch.LSTM(3, 5))
    assert isinstance(own.value, TypeError | ValueError)
