"""What code that knows `torch.nn`'s classes finds in fastrnn's, before and after `replace` and `restore`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.torch  # noqa: E402
from fastrnn.cells import find  # noqa: E402

KINDS = ["LSTM", "GRU", "RNN"]
X = torch.linspace(-1, 1, 24).reshape(4, 2, 3)


def made(kind: str, *sizes: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(nn, kind)(*(sizes or (3, 5)), **options)


def gradients(module: Any, x: Any = X) -> list[Any]:
    """y, and every gradient for random cotangents."""
    y, _ = module(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad((y * dy).sum(), list(module.parameters()))]


def assert_close(got: list[Any], expected: list[Any]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


class Last(nn.Module):
    """Tells the state of an LSTM from that of others by the class, as published models do."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any) -> Any:
        _, state = self.rnn(x)
        return state[0][-1] if isinstance(self.rnn, nn.LSTM) else state[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_is_one(kind: str) -> None:
    theirs, own = getattr(nn, kind), getattr(fastrnn.torch, kind)
    assert issubclass(own, theirs)
    model = Last(made(kind))
    expected = model(X)
    fastrnn.torch.replace(model)
    assert type(model.rnn) is own
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(X), expected)


def test_other_cells_are_none() -> None:
    module = fastrnn.torch.Recurrent(find("lstm"), 3, 5)
    assert isinstance(module, nn.RNNBase)
    assert not isinstance(module, nn.LSTM | nn.GRU | nn.RNN)
    call = torch.compile(lambda x: module(x)[0], fullgraph=True, backend="eager")
    assert torch.equal(call(X), module(X)[0])


def test_initialisers_see_it() -> None:
    def init(module: Any) -> None:
        if isinstance(module, nn.LSTM):
            nn.init.constant_(module.bias_hh_l0, 3.0)

    model = nn.Sequential(fastrnn.torch.LSTM(3, 5), fastrnn.torch.GRU(5, 5)).apply(init)
    assert (model[0].bias_hh_l0 == 3).all()
    assert not (model[1].bias_hh_l0 == 3).any()


def test_the_compiler_still_refuses_theirs() -> None:
    """It may look into fastrnn's modules, and into no others."""
    from torch._dynamo.exc import Unsupported

    fastrnn.torch.LSTM(3, 5)
    module = nn.LSTM(3, 5)
    with pytest.raises(Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(module, fullgraph=True, backend="eager")(X)
    assert torch._dynamo.config.allow_rnn is False


def test_the_compiler_is_not_imported(python: Any) -> None:
    """It takes seconds, so it is told of the modules when it comes: before them, or after."""
    run = "m = fastrnn.torch.GRU(3, 5); x = torch.ones(4, 2, 3)"
    check = "assert torch.equal(torch.compile(m, fullgraph=True, backend='eager')(x)[0], m(x)[0])"
    late = (
        f"import sys, torch, fastrnn.torch; {run}; m(x)[0].sum().backward(); assert 'torch._dynamo' not in sys.modules"
    )
    found = f"{late}; import importlib.util; importlib.util.find_spec('torch._dynamo')"
    for first in (late, found, f"import torch, torch._dynamo, fastrnn.torch; {run}"):
        done = python("-c", f"{first}; {check}")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole_by_default(kind: str) -> None:
    """A training step has no break at the layer, and none comes with other numbers of steps and sequences."""
    module = getattr(fastrnn.torch, kind)(3, 5, 2, bidirectional=True)

    def step(x: Any) -> Any:
        return module(x)[0].square().sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, backend="aot_eager")
    for T, B in ((4, 2), (6, 3), (9, 5), (1, 1), (0, 2)):
        x = torch.randn(T, B, 3)
        results = [torch.autograd.grad(call(x), list(module.parameters())) for call in (compiled, step)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch._dynamo.utils.counters["graph_break"]


class Wrapper(nn.Module):
    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_fx(kind: str) -> None:
    """A call of the module is one node, hooks and all, in a module that was replaced, made, copied or pickled."""
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


class Scaled(nn.LSTM):
    """Inherits the computation, and has things of its own."""

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
def test_classes_that_inherit_forward(kind: type) -> None:
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


def test_classes_that_compute_something_else() -> None:
    module = ProjectedStates(3, 5)
    assert "custom class" in fastrnn.torch.replace(module).kept[""]
    assert type(module) is ProjectedStates
    patched = nn.GRU(3, 5)
    patched.permute_hidden = lambda hx, permutation: hx  # type: ignore[method-assign]
    assert "permute_hidden was replaced" in fastrnn.torch.replace(patched).kept[""]


@pytest.mark.parametrize("kind", KINDS)
def test_restore(kind: str) -> None:
    """Parameters, hooks and results are those of before; and nothing of fastrnn stays."""
    module, calls = made(kind, 3, 5, 2, bidirectional=True), []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    expected, before, attributes = gradients(module), list(module.parameters()), set(vars(module))
    fastrnn.torch.replace(module)
    with torch.no_grad():
        module(X)  # which packs the weights
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
def test_restore_of_what_torch_has_and_has_not() -> None:
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
def test_parametrized(name: str) -> None:
    """Swapped under its parametrization, which may then be removed, and back."""
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


def test_pruned() -> None:
    modules = [made("LSTM"), made("LSTM")]
    fastrnn.torch.replace(modules[1])
    for module in modules:
        torch.manual_seed(3)
        prune.random_unstructured(module, "weight_hh_l0", 0.5)
    assert_close(gradients(modules[1]), gradients(modules[0]))
    prune.remove(modules[1], "weight_hh_l0")
    assert (modules[1].weight_hh_l0 == 0).sum() == 50
    torch.testing.assert_close(modules[1](X)[0], modules[0](X)[0])


@pytest.fixture
def swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapping")
def test_parameters_that_are_swapped() -> None:
    """In their place, without another object: nothing of the module may refer to them weakly."""
    module = fastrnn.torch.LSTM(3, 5)
    own = module.weight_hh_l0
    with torch.no_grad():
        module(X)
    gradients(module)
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


def test_fake_tensors() -> None:
    """Shapes alone, as with torch.nn's: made and called, and called with the weights of a module that exists."""
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


def test_sharded_by_fsdp(python: Any) -> None:
    """FSDP2 gathers parameters before a layer's forward and backward, and lets go of their memory between."""
    done = python(
        "-c",
        "import tempfile, torch, fastrnn.torch, torch.distributed as dist\n"
        "from torch import nn\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from torch.distributed.fsdp import fully_shard\n"
        "dist.init_process_group('gloo', init_method=f'file://{tempfile.mktemp()}', rank=0, world_size=1)\n"
        "mesh, found = init_device_mesh('cpu', (1,)), []\n"
        "x = torch.randn(7, 3, 4)\n"
        "for package in (nn, fastrnn.torch):\n"
        "    torch.manual_seed(0)\n"
        "    model = nn.ModuleList([package.LSTM(4, 5, 2, bidirectional=True), package.GRU(10, 6)])\n"
        "    def run(y):\n"
        "        for layer in model: y = layer(y)[0]\n"
        "        return y\n"
        "    for layer in model: fully_shard(layer, mesh=mesh)\n"
        "    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []\n"
        "    for _ in range(5):\n"
        "        optimizer.zero_grad()\n"
        "        run(x).square().mean().backward()\n"
        "        optimizer.step()\n"
        "        with torch.no_grad(): losses.append(run(x).square().mean().item())\n"
        "    found.append(torch.tensor(losses))\n"
        "torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=0)\n"
        "assert found[0][0] > 1.01 * found[0][-1] > 0\n"
        "dist.destroy_process_group()\n",
    )
    assert done.returncode == 0, done.stderr


def test_no_list_of_nothing_in_an_exported_program() -> None:
    """AOTInductor's programs cannot pass one to an operator."""
    module = fastrnn.torch.LSTM(3, 5).eval()
    with torch.no_grad():
        program = torch.export.export(module, (X,))
    (call,) = [node for node in program.graph.nodes if "recurrence" in str(node.target)]
    assert [] not in [list(a) for a in call.args if isinstance(a, list | tuple)]
    assert torch.equal(program.module()(X)[0], module(X)[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "peephole"])
def test_per_sample_gradients(kind: str, batch_first: bool) -> None:
    """Those of each sequence alone, for both reductions, and without the weights that are frozen."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    torch.manual_seed(0)
    own, options = ("LSTM", {"peephole": True}) if kind == "peephole" else (kind, {})
    module = getattr(fastrnn.torch, own)(
        3, 5, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64, **options
    )
    frozen = [module.weight_ih_l0, module.weight_hh_l1, list(module.parameters())[-1]]
    for parameter in frozen:
        parameter.requires_grad_(False)
    x = torch.randn(4, 3, 3, dtype=torch.float64).transpose(0, int(not batch_first)).contiguous().requires_grad_()
    axis, trained = int(not batch_first), [p for p in module.parameters() if p.requires_grad]
    dy = torch.randn(module(x)[0].shape, dtype=torch.float64)
    for reduction, factor in (("sum", 1), ("mean", 4)):
        for parameter in module.parameters():
            vars(parameter).pop("grad_sample", None)
        x.grad = None
        y, _ = call_for_per_sample_grads(module, loss_reduction=reduction, batch_first=batch_first)(x)
        y.backward(dy)
        assert torch.equal(y, module(x)[0])
        alone = [
            torch.autograd.grad(module(x.narrow(axis, b, 1))[0], [x, *trained], dy.narrow(axis, b, 1)) for b in range(4)
        ]
        dx, *expected = [torch.stack(parts) for parts in zip(*alone, strict=True)]
        torch.testing.assert_close(x.grad, dx.sum(0))
        for parameter, d in zip(trained, expected, strict=True):
            torch.testing.assert_close(parameter.grad_sample, factor * d)
        assert not any(hasattr(parameter, "grad_sample") for parameter in frozen)
    for parameter in trained:
        del parameter.grad_sample
    with pytest.raises(ValueError, match=r"^input: expected 2 sequences, .*, got 4"):
        call_for_per_sample_grads(module, batch_size=2, batch_first=batch_first)(x)


def test_per_sample_gradients_of_packed_sequences() -> None:
    """In the caller's order, as one sequence after the other gives them."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    torch.manual_seed(0)
    module = fastrnn.torch.GRU(3, 4, 2, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 5, 1, 5)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    packed.data.requires_grad_()
    y, h = call_for_per_sample_grads(module, batch_size=4, loss_reduction="sum", batch_first=False)(packed)
    (y.data.square().sum() + h.sum()).backward()
    dx = torch.nn.utils.rnn.unpack_sequence(packed._replace(data=packed.data.grad))
    for b, sequence in enumerate(sequences):
        alone = sequence.clone().requires_grad_()
        own, last = module(alone)
        loss = own.square().sum() + last.sum()
        of_x, *grads = torch.autograd.grad(loss, [alone, *module.parameters()])
        torch.testing.assert_close(dx[b], of_x)
        for (name, parameter), grad in zip(module.named_parameters(), grads, strict=True):
            torch.testing.assert_close(parameter.grad_sample[b], grad, msg=name)


def test_per_sample_gradients_with_dropout_and_resets() -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    module = fastrnn.torch.GRU(3, 5, 3, dropout=0.5)
    resets = torch.tensor([[0, 1], [1, 0], [0, 1], [0, 0]]).bool()
    torch.manual_seed(1)
    dy = torch.randn(4, 2, 5)
    torch.manual_seed(2)
    expected = torch.autograd.grad(module(X, resets=resets)[0], list(module.parameters()), dy)
    torch.manual_seed(2)
    call_for_per_sample_grads(module, loss_reduction="sum", batch_first=False)(X, resets=resets)[0].backward(dy)
    for parameter, d in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad_sample.sum(0), d)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantizers() -> None:
    """They look for exactly torch.nn's classes: that they pass fastrnn's by is told, and `restore` helps."""
    model = nn.Sequential(nn.LSTM(3, 5))
    fastrnn.torch.replace(model)
    with pytest.warns(
        UserWarning, match=r"fastrnn\.torch\.LSTM stays in float.*fastrnn\.torch\.restore\(model\) first"
    ):
        left = torch.ao.quantization.quantize_dynamic(model)
    assert type(left[0]) is fastrnn.torch.LSTM
    assert not hasattr(model[0], "qconfig")
    fastrnn.torch.restore(model)
    quantized = torch.ao.quantization.quantize_dynamic(model)
    assert "DynamicQuantizedLSTM" in str(quantized)
    torch.testing.assert_close(quantized(X)[0], model(X)[0].detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_made_without_memory(kind: str) -> None:
    """On the device "meta": shapes, and parameters that come later."""
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
def test_errors_are_caught_as_those_of_torch(what: str) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011  # which it is, is the question
        WRONG[what](nn.LSTM(3, 5))
    with pytest.raises(type(theirs.value)) as own:
        WRONG[what](fastrnn.torch.LSTM(3, 5))
    assert isinstance(own.value, TypeError | ValueError)
