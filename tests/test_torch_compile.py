"""`fastrnn.torch` under PyTorch's compilers: torch.compile, torch.export, torch.jit."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.torch_modules import KINDS, loss_and_gradients  # noqa: E402
from torch import nn  # noqa: E402

import fastrnn.torch  # noqa: E402


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch itself
@pytest.mark.parametrize(
    ("backend", "dynamic", "proj_size"), [("aot_eager", True, 0), ("inductor", False, 0), ("aot_eager", True, 2)]
)
def test_a_module_compiles_to_one_graph(backend: str, dynamic: bool, proj_size: int) -> None:
    """The whole module is one graph, in training and inference, and for other numbers of steps."""
    torch.compiler.reset()  # or this counts among the recompilations of other modules
    torch.manual_seed(0)
    options: dict[str, Any] = {"bidirectional": True, "batch_first": True, "proj_size": proj_size}
    module, x = fastrnn.torch.LSTM(3, 5, 2, **options), torch.randn(2, 7, 3)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=backend)
    for steps in (7, 4):
        results = []
        for call in (compiled, module):
            y, (h, c) = call(x[:, :steps])
            loss = y.square().sum() + c.sum()
            results.append([y, h, c, *torch.autograd.grad(loss, list(module.parameters()))])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with torch.no_grad():
        assert torch.equal(compiled(x)[0], module(x)[0])


def test_compiled_dropout_has_the_same_masks() -> None:
    torch.compiler.reset()  # otherwise this counts among the recompilations of other tests' modules
    module, x = fastrnn.torch.GRU(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, module):
        torch.manual_seed(1)
        results.append(loss_and_gradients(module, x, lambda x, call=call: call(x)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


LSTM = fastrnn.torch.LSTM
X, S = torch.ones(4, 2, 3), torch.ones(1, 2, 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_works_and_scripting_raises_an_error(tmp_path: Any) -> None:
    """Traced without gradients, for any shape and from a file; with gradients, unchecked."""
    module, longer = LSTM(3, 5), torch.randn(7, 1, 3)
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(module, X), tmp_path / "traced")
        for x in (X, longer):
            assert torch.equal(torch.jit.load(tmp_path / "traced")(x)[0], module(x)[0])
    grads = []
    for call in (torch.jit.trace(module, X, check_trace=False), module):
        x = longer.clone().requires_grad_()
        call(x)[0].sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
    with pytest.raises(torch.jit.TracingCheckError):
        torch.jit.trace(module, X)
    for scripted in (module, nn.Sequential(nn.Identity(), module)):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script: .*fastrnn\.torch\.restore\(model\) first"):
            torch.jit.script(scripted)


def test_the_compiler_still_rejects_layers_of_torch() -> None:
    """It may trace fastrnn's modules, and no others."""
    from torch._dynamo.exc import Unsupported

    fastrnn.torch.LSTM(3, 5)
    module = nn.LSTM(3, 5)
    with pytest.raises(Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(module, fullgraph=True, backend="eager")(X)
    assert torch._dynamo.config.allow_rnn is False


def test_importing_fastrnn_torch_does_not_import_the_compiler(python: Any) -> None:
    """Importing it takes seconds, so fastrnn registers its modules when it is imported, before them or after."""
    run = "m = fastrnn.torch.GRU(3, 5); x = torch.ones(4, 2, 3)"
    unloaded = "assert 'torch._dynamo' not in sys.modules"
    check = "assert torch.equal(torch.compile(m, fullgraph=True, backend='eager')(x)[0], m(x)[0])"
    late = f"import sys, torch, fastrnn.torch; {run}; m(x)[0].sum().backward(); {unloaded}"
    found = f"{late}; import importlib.util; importlib.util.find_spec('torch._dynamo')"
    for first in (late, found, f"import torch, torch._dynamo, fastrnn.torch; {run}"):
        done = python("-c", f"{first}; {check}")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_compiles_without_a_graph_break(kind: str) -> None:
    """A training step has no graph break at the layer, also for other numbers of steps and sequences."""
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch itself
def test_an_exported_program_has_the_same_bits() -> None:
    """It passes no empty list, which AOTInductor's programs cannot pass to an operator."""
    module = fastrnn.torch.LSTM(3, 5).eval()
    with torch.no_grad():
        program = torch.export.export(module, (X,))
    (call,) = [node for node in program.graph.nodes if "recurrence" in str(node.target)]
    assert [] not in [list(a) for a in call.args if isinstance(a, list | tuple)]
    assert torch.equal(program.module()(2 * X)[0], module(2 * X)[0])
