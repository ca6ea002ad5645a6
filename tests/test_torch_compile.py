"""`fastrnn.torch` under PyTorch's compilers: torch.compile, torch.export, torch.jit."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.torch_modules import loss_and_gradients  # noqa: E402
from torch import nn  # noqa: E402

import fastrnn.torch  # noqa: E402


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by itself
@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", True), ("inductor", False)])
def test_a_module_compiles_to_one_graph(backend: str, dynamic: bool) -> None:
    """The whole module is one graph, in training and inference, also for another number of steps."""
    torch.manual_seed(0)
    module, x = fastrnn.torch.LSTM(3, 5, 2, bidirectional=True, batch_first=True), torch.randn(2, 7, 3)
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
    torch.compiler.reset()  # or this counts among the recompilations of other tests' modules
    module, x = fastrnn.torch.GRU(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, module):
        torch.manual_seed(1)
        results.append(loss_and_gradients(module, x, lambda x, call=call: call(x)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by itself
def test_an_exported_program_has_the_same_bits() -> None:
    module, x = fastrnn.torch.LSTM(3, 5).eval(), torch.randn(4, 2, 3)
    with torch.no_grad():
        exported = torch.export.export(module, (x,)).module()
        assert torch.equal(exported(2 * x)[0], module(2 * x)[0])


LSTM = fastrnn.torch.LSTM
X, S = torch.ones(4, 2, 3), torch.ones(1, 2, 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_works_and_scripting_is_refused(tmp_path: Any) -> None:
    """Traced without gradients, for any shape and from a file; with them, unchecked; scripted, not at all."""
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
