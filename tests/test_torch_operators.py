"""The operators under `fastrnn.torch`'s modules, and PyTorch's autograd: its own checks, checkpointing, kept graphs."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from support.torch_modules import CELLS, loss_and_gradients  # noqa: E402

import fastrnn.torch  # noqa: E402
from fastrnn.torch import ops  # noqa: E402
from fastrnn.torch.stack import Given  # noqa: E402


def test_backend_may_change_before_backward() -> None:
    module, x = fastrnn.torch.GRU(3, 5, 2, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    grads = []
    for name in ("native", "numpy") if fastrnn.backends.available_isas() else ("numpy",):
        with fastrnn.use_backend(name):
            y, _ = module(x)
        with fastrnn.use_backend("numpy"):
            grads.append(torch.autograd.grad(y.square().sum(), list(module.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(grads[0], grads[-1], strict=True))


def given_to_op(cell: str, **options: Any) -> tuple[Any, ...]:
    """Return small float64 arguments of the operator, all of which require gradients."""
    kind, chosen = CELLS[cell]
    H, P = 3, options.get("proj_size", 0)
    masked, lengths, resets = options.pop("masked", False), options.pop("lengths", None), options.pop("resets", None)
    torch.manual_seed(0)
    module = getattr(fastrnn.torch, kind)(2, H, dtype=torch.float64, **chosen, **options)
    D = 1 + module.bidirectional

    def leaf(*shape: int) -> Any:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    x = leaf(2, 4, 2) if module.batch_first else leaf(4, 2, 2)
    widths = [P or H, H][: len(module._cell.states)]
    init = [leaf(module.num_layers * D, 2, width) for width in widths]
    masks = [2 * torch.rand(4, 2, (P or H) * D, dtype=torch.float64)] * (module.num_layers - 1) if masked else []
    setting = ops.Setting(module._cell.key, module.bias, module.bidirectional, module.batch_first, P > 0)
    return *Given(x, init, list(module.parameters()), lengths, resets, masks).arguments, True, *setting


def test_an_instruction_set_may_have_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for another processor may call its only one "portable"; dispatch.c names a new one."""
    native = pytest.importorskip("fastrnn.backends.native")
    index, gradients = native._isas[native.current_isa()], []
    for name in (native.current_isa(), "portable"):
        monkeypatch.setattr(native, "_isas", {name: index})
        monkeypatch.setattr(native, "_isa", name)
        torch.manual_seed(0)
        module, x = fastrnn.torch.GRU(3, 5, 2), torch.randn(4, 2, 3)
        plain = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
        given = given_to_op("gru_after", num_layers=2)
        as_operator = torch.autograd.grad(ops.recurrence(*given)[0].square().sum(), given[2])
        gradients.append([*plain, *as_operator])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


OPERATIONS: dict[str, dict[str, Any]] = {
    "lstm": {"num_layers": 2, "bidirectional": True},
    "projected": {"cell": "lstm", "proj_size": 2, "num_layers": 2, "bidirectional": True, "masked": True},
    "lstm_peephole": {"lengths": torch.tensor([2, 4]), "resets": torch.tensor([[1, 0], [0, 1], [0, 1], [0, 0]]).bool()},
    "gru_after": {
        "num_layers": 2,
        "batch_first": True,
        "masked": True,
        "resets": torch.tensor([[0, 0, 1, 0], [1, 0, 1, 1]]).bool().t(),
    },
    "gru_before": {"bidirectional": True, "batch_first": True},
    "rnn_tanh": {"bias": False},
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operators_pass_opcheck(operation: str) -> None:
    arguments = given_to_op(**{"cell": operation} | OPERATIONS[operation])
    torch.library.opcheck(ops.recurrence, arguments)
    given, _, setting = ops.taken(arguments)
    states = 1 + len(given.init)
    with torch.no_grad():
        torch.library.opcheck(ops.recurrence, (*given.arguments, False, *setting))
        y, *rest = ops.recurrence(*arguments)
        back = (*given.arguments, rest[states - 1 :], y, rest[: states - 1], *setting)
        torch.library.opcheck(ops.recurrence_backward, back)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("way", ["operator", "module"])
def test_gradients_are_finite_differences(way: str, operation: str) -> None:
    """For x, the states and every weight, with and without the dispatcher."""
    given, _, setting = ops.taken(given_to_op(**{"cell": operation} | OPERATIONS[operation]))
    states = 1 + len(given.init)

    def by_operator(*leaves: Any) -> Any:
        return tuple(ops.recurrence(*given.on(leaves).arguments, True, *setting)[:states])

    def by_module(*leaves: Any) -> Any:
        own = given.on(leaves)
        return ops.Recurrence.apply(setting, ops.Stack(setting, own.weights), own, *own.flat)

    assert torch.autograd.gradcheck(by_operator if way == "operator" else by_module, given.leaves)


def test_activation_checkpointing_has_the_same_gradients() -> None:
    """The saved data are dropped and recomputed with the same dropout, and the gradients are the same."""
    module, x = fastrnn.torch.LSTM(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3)
    torch.manual_seed(1)
    expected = loss_and_gradients(module, x, lambda x: module(x)[0])
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        torch.manual_seed(1)
        got = loss_and_gradients(
            module, x, lambda x: torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
        )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not [t for t in kept if t.dtype == torch.uint8]


def test_saved_tensors_may_be_moved() -> None:
    """Hooks may return saved tensors at another address, and weights as they were then."""
    module, x = fastrnn.torch.LSTM(3, 5, 2), torch.randn(4, 2, 3)

    def shifted(t: Any) -> Any:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    expected = loss_and_gradients(module, x, lambda x: module(x)[0])

    def call(x: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, shifted):
            y, _ = module(x)
        with torch.no_grad():
            module.weight_hh_l0.add_(1.0)
        return y

    assert all(torch.equal(a, b) for a, b in zip(loss_and_gradients(module, x, call), expected, strict=True))


def test_a_kept_graph_gives_the_same_gradients_again() -> None:
    module, x = fastrnn.torch.LSTM(3, 5), torch.randn(4, 2, 3)
    y, (_, c) = module(x)
    first = torch.autograd.grad(y.sum(), module.weight_hh_l0, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), module.weight_hh_l0, retain_graph=True)[0], first)
    torch.autograd.grad(c.sum(), module.weight_hh_l0)  # of a final state alone
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), module.weight_hh_l0)


def test_a_weight_that_changed_before_backward_is_an_error() -> None:
    module = fastrnn.torch.LSTM(3, 5)
    y, _ = module(torch.randn(4, 2, 3))
    with torch.no_grad():
        module.weight_hh_l0.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
