"""PyTorch's autograd of a cell's own equations as an oracle, float64, at random sizes and options."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.cell_problems import by_autograd, problem, results
from support.tolerance import assert_close

import fastrnn
from fastrnn.cells import CELLS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cell", own_cells.ALL, ids=lambda cell: cell.name)
def test_gradients_are_differences(cell: Any, seed: int, oracle: Callable[[str], Any]) -> None:
    rng = np.random.default_rng(seed)
    sizes = tuple(int(n) for n in rng.integers(1, (9, 6, 5, 40)))
    chosen = {name: bool(rng.integers(2)) for name in ("lengths", "resets", "reverse")}
    p = problem(cell, sizes, seed, **chosen, checkpoint=[None, 1, 2, "auto"][seed])
    assert_close(results(p), by_autograd(oracle("torch"), p))


def modules(torch: Any, **options: Any) -> tuple[Any, Any]:
    """Return a module of a user's GRU and fastrnn.torch's own, with the same parameters."""
    import fastrnn.torch

    mine = fastrnn.torch.Recurrent(own_cells.gru, 5, 9, dtype=torch.float64, **options)
    theirs = fastrnn.torch.GRU(5, 9, dtype=torch.float64, **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}]
)
def test_a_users_gru_equals_the_built_in_module(options: dict[str, Any], torch: Any) -> None:
    """Outputs and gradients, in eager mode, compiled, pickled and copied."""
    torch.compiler.reset()  # otherwise this counts among the recompilations of other tests' modules
    mine, theirs = modules(torch, **options)
    x = torch.randn(4, 4, 5, dtype=torch.float64)
    again = pickle.loads(pickle.dumps(mine))
    for module in (mine, again, torch.compile(mine, backend="aot_eager", fullgraph=True)):
        given, expected = (x.clone().requires_grad_() for _ in range(2))
        for net, a in ((module, given), (theirs, expected)):
            net.zero_grad()
            y, h = net(a)
            ((y**2).sum() + h.sum()).backward()
        assert torch.equal(given.grad, expected.grad)
        for p, q in zip(module.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    torch.compiler.reset()


@pytest.mark.parametrize("cell", [CELLS["lstm_peephole"], own_cells.coupled_peephole_lstm], ids=lambda cell: cell.name)
def test_names_of_parameters_equal_the_layers(cell: Any, torch: Any) -> None:
    import fastrnn.torch

    assert set(fastrnn.torch.Recurrent(cell, 3, 4).state_dict()) == set(fastrnn.Recurrent(cell, 3, 4).state_dict())


def with_inputs(torch: Any, cell: Any, shapes: list[tuple[int, ...]], **options: Any) -> tuple[Any, list[Any]]:
    """Return a module of input size 2 and hidden size 3, and extra inputs of alternating shapes."""
    import fastrnn.torch

    torch.manual_seed(0)
    module = fastrnn.torch.Recurrent(cell, 2, 3, dtype=torch.float64, **options)
    e = [torch.rand(shapes[k % len(shapes)], dtype=torch.float64) for k in range(len(cell.inputs))]
    return module, [a.requires_grad_() for a in e]


def named(cell: Any, e: Any) -> Any:
    return dict(zip(cell.inputs, e, strict=True)) or None


@pytest.mark.parametrize("cell", own_cells.ALL, ids=lambda cell: cell.name)
def test_gradients_are_finite_differences(cell: Any, torch: Any) -> None:
    """For every parameter and extra input of the cell."""
    module, e = with_inputs(torch, cell, [(3, 2, 3), (2, 1), (3, 2, 1), (2, 3)])
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    names, n = [name for name, _ in module.named_parameters()], len(e)

    def run(x: Any, *rest: Any) -> Any:
        weights, options = dict(zip(names, rest[n:], strict=True)), {"e": named(cell, rest[:n])}
        return torch.func.functional_call(module, weights, (x,), options)[0]

    assert torch.autograd.gradcheck(run, (x, *e, *module.parameters()))


WITH_INPUTS = [c for c in own_cells.ALL if c.inputs]
with_extra_inputs = pytest.mark.parametrize("cell", WITH_INPUTS, ids=lambda cell: cell.name)


@pytest.mark.parametrize("form", ["time-major", "batch first", "one sequence", "packed"])
@with_extra_inputs
def test_extra_inputs_equal_the_layers(cell: Any, form: str, torch: Any) -> None:
    """Outputs and every gradient equal those of `fastrnn.Recurrent`, for a bidirectional stack with resets."""

    T, B, H, rnn = 5, 4, 3, torch.nn.utils.rnn
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": form == "batch first"}
    steps, every, once = {
        "batch first": ((B, T), (B, T), (B,)),
        "one sequence": ((T,), (T,), ()),
    }.get(form, ((T, B), (T, B), (B,)))
    module, e = with_inputs(torch, cell, [(*every, H), (*once, 1), (*every, 1), (*once, H)], **options)
    layer = fastrnn.Recurrent(cell, 2, H, dtype=np.float64, **options)
    layer.load_state_dict(module.state_dict())
    x = torch.randn(*steps, 2, dtype=torch.float64, requires_grad=True)
    resets, lengths = torch.rand(steps) < 0.3, torch.tensor([2, T, 3, 1]) if form == "packed" else None
    packed = x if lengths is None else rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, final = module(packed, resets=resets, e=named(cell, e))
    y = y if lengths is None else rnn.pad_packed_sequence(y)[0]
    final = final if isinstance(final, tuple) else (final,)
    dy, *dfinal = (torch.randn_like(a) for a in (y, *final))
    grads = torch.autograd.grad([y, *final], [x, *e, *module.parameters()], [dy, *dfinal])
    given = {"lengths": lengths, "resets": resets, "e": named(cell, [a.detach() for a in e])}
    expected = layer.forward(x.detach(), training=True, **given)
    back = layer.backward(dy, expected.cache, dstate=tuple(dfinal) if len(dfinal) > 1 else dfinal[0])
    names = ["x", *cell.inputs, *dict(module.named_parameters())]
    got = {"y": y.detach().numpy()} | {name: g.numpy() for name, g in zip(names, grads, strict=True)}
    assert_close(got, {"y": expected.y, "x": back.dx} | back.de | back.grads)
    with torch.no_grad():
        inferred = module(packed, resets=resets, e=named(cell, e))[0]
        assert torch.equal(inferred if lengths is None else rnn.pad_packed_sequence(inferred)[0], y)


def test_compiled_extra_inputs(torch: Any) -> None:
    torch.compiler.reset()
    cell = own_cells.recurrent_dropout
    module, e = with_inputs(torch, cell, [(4, 5, 3), (4, 1), (4, 5, 1), (4, 3)], batch_first=True, num_layers=2)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    found = []
    for call in (torch.compile(module, backend="aot_eager", fullgraph=True), module):
        y, _ = call(x, e=named(cell, e))
        found.append([y, *torch.autograd.grad(y.square().sum(), [*e, *module.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:fastrnn.torch. .*, which is slow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # from forward mode
@with_extra_inputs
def test_extra_inputs_by_equations(cell: Any, torch: Any) -> None:
    """Second gradients, forward mode, and vmap over one of them."""
    module, e = with_inputs(torch, cell, [(3, 2, 3), (2, 1)], num_layers=2)
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    def run(*e: Any) -> Any:
        return module(x, e=named(cell, e))[0]

    assert torch.autograd.gradgradcheck(run, e, fast_mode=True)
    assert torch.autograd.gradcheck(run, e, fast_mode=True, check_forward_ad=True)
    first, *rest = (a.detach() for a in e)
    each = torch.stack([first, first / 2])
    expected = torch.stack([run(a, *rest) for a in each])
    torch.testing.assert_close(torch.func.vmap(lambda a: run(a, *rest))(each), expected, rtol=1e-9, atol=1e-12)


def test_unsupported_arguments_raise_an_error(torch: Any) -> None:
    import fastrnn.torch

    x, keep = torch.ones(5, 2, 3), torch.ones(2, 4)
    for module, e, error, message in (
        (own_cells.zoneout, None, ValueError, "^e: missing 'keep'$"),
        (own_cells.zoneout, {"keep": keep, "drop": keep}, ValueError, "^e: unexpected 'drop'$"),
        (own_cells.min_gru, {"keep": keep}, ValueError, "^e: unexpected 'keep'$"),
        (own_cells.zoneout, [keep], TypeError, "^e: expected a mapping"),
        (own_cells.zoneout, {"keep": 0.5}, TypeError, "^keep: expected a tensor, got float"),
        (own_cells.zoneout, {"keep": keep.double()}, TypeError, "^keep: expected dtype torch.float32, the input's"),
        (own_cells.zoneout, {"keep": keep.int()}, TypeError, "^keep: expected torch.float32 or torch.float64"),
        (own_cells.zoneout, {"keep": keep.t()}, ValueError, r"^keep: expected .* shapes \(5, 2, 4\), .*\(2, 1\)"),
    ):
        with pytest.raises(error, match=message):
            fastrnn.torch.Recurrent(module, 3, 4)(x, e=e)
    with pytest.raises(TypeError, match=r"cell: expected a cell made by fastrnn\.cell"):
        fastrnn.torch.Recurrent("gru", 3, 4)
    module = fastrnn.torch.Recurrent(own_cells.slstm, 3, 4)
    with pytest.raises(TypeError, match="hx: expected a tuple of 4 tensors"):
        module(torch.ones(5, 2, 3), torch.ones(1, 2, 4))
