"""`fastrnn.torch.replace` and `restore`: replaced modules, kept modules with the reason, and nothing else changes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.torch_modules import KINDS, made  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

import fastrnn.torch  # noqa: E402
from fastrnn.cells import find  # noqa: E402


class Own(nn.LSTM):
    def forward(self, *given: Any) -> Any:
        return super().forward(*given)


def test_replace_swaps_layers_and_keeps_training() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True),
            "gru": nn.GRU(10, 5, batch_first=True),
            "rnn": nn.RNN(5, 5, nonlinearity="relu", batch_first=True),
            "projected": nn.LSTM(3, 5, proj_size=2),
            "own": Own(3, 5),
            "bfloat": nn.GRU(3, 5, dtype=torch.bfloat16),
            "unmade": nn.GRU(3, 5, device="meta"),
            "cell": nn.LSTMCell(3, 5),
            "linear": nn.Linear(5, 1),
        }
    )
    model["patched"] = nn.GRU(3, 5)
    model["patched"].forward = model["gru"].forward
    x, calls = torch.randn(2, 7, 3), []
    model["gru"].register_forward_hook(lambda *_: calls.append("hook"))
    used = [p for name in ("lstm", "gru", "rnn", "linear") for p in model[name].parameters()]
    optimizer = torch.optim.SGD(used, 0.1)

    def step() -> float:
        y = model["linear"](model["rnn"](model["gru"](model["lstm"](x)[0])[0])[0])
        optimizer.zero_grad()
        loss = (y - 1).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    twin, expected = copy.deepcopy(model.state_dict()), [step() for _ in range(3)]
    model.load_state_dict(twin)
    report = fastrnn.torch.replace(model)
    assert list(report.swapped) == ["lstm", "gru", "rnn", "projected", "unmade"]
    assert report.swapped["gru"] == "fastrnn.torch.GRU(10, 5, batch_first=True)"
    assert list(report.kept) == ["own", "bfloat", "cell", "patched"]
    why = ["Own is a custom class", "torch.bfloat16", "single steps", "its method forward was replaced"]
    assert all(part in reason for part, reason in zip(why, report.kept.values(), strict=True))
    assert [p is q for p, q in zip(used, optimizer.param_groups[0]["params"], strict=True)]
    assert [step() for _ in range(3)] == pytest.approx(expected, rel=1e-5)
    assert calls == ["hook"] * 6
    assert isinstance(model["lstm"], fastrnn.torch.LSTM)
    assert fastrnn.torch.replace(model).swapped == {}
    assert str(fastrnn.torch.replace(nn.Linear(1, 1))) == "no recurrent modules"


def test_replace_takes_a_layer_itself() -> None:
    module, x = nn.GRU(3, 5), torch.randn(4, 2, 3)
    expected = module(x)[0]
    assert str(fastrnn.torch.replace(module)) == "(the model): fastrnn.torch.GRU(3, 5)"
    assert type(module) is fastrnn.torch.GRU
    assert torch.allclose(module(x)[0], expected, atol=1e-6)
    with pytest.raises(TypeError, match="model: expected"):
        fastrnn.torch.replace("model")  # type: ignore[arg-type]


X = torch.linspace(-1, 1, 24).reshape(4, 2, 3)


def gradients(module: Any, x: Any = X) -> list[Any]:
    """Return y, and every gradient for random cotangents."""
    y, _ = module(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad((y * dy).sum(), list(module.parameters()))]


def assert_close(got: list[Any], expected: list[Any]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


class Scaled(nn.LSTM):
    """Inherits the computation, and has its own attributes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = nn.Parameter(torch.ones(1))
        self.modes: list[bool] = []

    def train(self, mode: bool = True) -> Any:
        if hasattr(self, "modes"):
            self.modes.append(mode)
        return super().train(mode)


class Twice(Scaled):
    pass


class ProjectedStates(nn.GRU):
    def permute_hidden(self, hx: Any, permutation: Any) -> Any:
        return 2 * super().permute_hidden(hx, permutation)


@pytest.mark.parametrize("kind", [Scaled, Twice])
def test_replace_takes_classes_that_inherit_forward(kind: type) -> None:
    torch.manual_seed(0)
    module: Any = kind(3, 5, 2, bidirectional=True)
    expected = module(X)[0]
    report = fastrnn.torch.replace(module)
    assert report.swapped == {"": f"{kind.__name__}(3, 5, num_layers=2, bidirectional=True), by fastrnn.torch"}
    assert isinstance(module, kind)
    assert isinstance(module, fastrnn.torch.LSTM)
    module.eval()
    assert module.modes == [False]
    torch.testing.assert_close(module(X)[0], expected)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(X)[0], module(X)[0])
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(stored, weights_only=False)):
        assert type(twin) is type(module)
        assert torch.equal(twin(X)[0], module(X)[0])
        assert twin.scale is not module.scale
    assert fastrnn.torch.replace(module).swapped == {}
    assert list(fastrnn.torch.restore(module).swapped) == [""]
    assert type(module) is kind
    assert torch.equal(module(X)[0], expected)


def test_replace_keeps_classes_that_compute_something_else() -> None:
    module = ProjectedStates(3, 5)
    assert "custom class" in fastrnn.torch.replace(module).kept[""]
    assert type(module) is ProjectedStates
    patched = nn.GRU(3, 5)
    patched.permute_hidden = lambda hx, permutation: hx  # type: ignore[method-assign]
    assert "permute_hidden was replaced" in fastrnn.torch.replace(patched).kept[""]


@pytest.mark.parametrize("kind", KINDS)
def test_restore_undoes_replace(kind: str) -> None:
    """Parameters, hooks and results are as before, and no reference to fastrnn remains."""
    module, calls = made(kind, 3, 5, 2, bidirectional=True), []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    expected, before, attributes = gradients(module), list(module.parameters()), set(vars(module))
    fastrnn.torch.replace(module)
    with torch.no_grad():
        module(X)  # packs the weights
    fastrnn.torch.restore(module)
    assert type(module) is getattr(nn, kind)
    assert set(vars(module)) == attributes
    assert all(a is b for a, b in zip(module.parameters(), before, strict=True))
    calls.clear()
    assert all(torch.equal(a, b) for a, b in zip(gradients(module), expected, strict=True))
    assert calls == ["hook"]
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert not torch.func.functional_call(module, zeros, (X,))[0].any()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_restore_keeps_layers_that_torch_lacks() -> None:
    class Derived(fastrnn.torch.GRU):
        pass

    model = nn.ModuleDict(
        {
            "gru": fastrnn.torch.GRU(3, 5),
            "projected": fastrnn.torch.LSTM(3, 5, proj_size=2),
            "peephole": fastrnn.torch.LSTM(3, 5, peephole=True),
            "before": fastrnn.torch.GRU(3, 5, reset_after=False),
            "sigmoid": fastrnn.torch.RNN(3, 5, nonlinearity="sigmoid"),
            "own": fastrnn.torch.Recurrent(find("lstm"), 3, 5),
            "derived": Derived(3, 5),
            "linear": nn.Linear(3, 5),
        }
    )
    expected = {name: model[name](X)[0].detach() for name in ("gru", "projected")}
    report = fastrnn.torch.restore(model)
    assert report.swapped == {"gru": "torch.nn.GRU(3, 5)", "projected": "torch.nn.LSTM(3, 5, proj_size=2)"}
    assert list(report.kept) == ["peephole", "before", "sigmoid", "own", "derived"]
    assert report.kept["before"] == "torch.nn has no gru_before"
    for name, y in expected.items():
        torch.testing.assert_close(model[name](X)[0].detach(), y)
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got str"):
        fastrnn.torch.restore("model")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l1_reverse"])
def test_parametrized_layers_are_replaced_and_restored(name: str) -> None:
    """Replaced under the parametrization, which may then be removed, and restored."""
    expected = gradients(parametrizations.weight_norm(made("GRU", 3, 5, 2, bidirectional=True), name))
    module = parametrizations.weight_norm(made("GRU", 3, 5, 2, bidirectional=True), name)
    fastrnn.torch.replace(module)
    assert isinstance(module, fastrnn.torch.GRU)
    assert parametrize.type_before_parametrizations(module) is fastrnn.torch.GRU
    assert_close(gradients(module), expected)
    fastrnn.torch.restore(module)
    assert not isinstance(module, fastrnn.torch.GRU)
    assert_close(gradients(module), expected)
    fastrnn.torch.replace(module)
    parametrize.remove_parametrizations(module, name)
    assert type(module) is fastrnn.torch.GRU
    torch.testing.assert_close(module(X)[0].detach(), expected[0])


def test_a_replaced_layer_may_be_pruned() -> None:
    modules = [made("LSTM"), made("LSTM")]
    fastrnn.torch.replace(modules[1])
    for module in modules:
        torch.manual_seed(3)
        prune.random_unstructured(module, "weight_hh_l0", 0.5)
    assert_close(gradients(modules[1]), gradients(modules[0]))
    prune.remove(modules[1], "weight_hh_l0")
    assert (modules[1].weight_hh_l0 == 0).sum() == 50
    torch.testing.assert_close(modules[1](X)[0], modules[0](X)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantizers_require_restore() -> None:
    """They look for the exact classes of torch.nn; a warning says so, and `restore` helps."""
    model = nn.Sequential(nn.LSTM(3, 5))
    fastrnn.torch.replace(model)
    message = r"fastrnn\.torch\.LSTM stays in float.*fastrnn\.torch\.restore\(model\) first"
    with pytest.warns(UserWarning, match=message):
        left = torch.ao.quantization.quantize_dynamic(model)
    assert type(left[0]) is fastrnn.torch.LSTM
    assert not hasattr(model[0], "qconfig")
    fastrnn.torch.restore(model)
    quantized = torch.ao.quantization.quantize_dynamic(model)
    assert "DynamicQuantizedLSTM" in str(quantized)
    torch.testing.assert_close(quantized(X)[0], model(X)[0].detach(), atol=0.02, rtol=0)
