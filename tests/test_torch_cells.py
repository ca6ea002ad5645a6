"""PyTorch's autograd of a cell's own equations as an oracle, float64, at random sizes and options."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import own_cells
import pytest
from test_cells import problem, results
from tolerance import assert_close

from fastrnn.cells import CELLS

Arrays = dict[str, np.ndarray]


def by_autograd(torch: Any, p: Any, step: Callable[..., Any] | None = None) -> Arrays:
    """What `results` returns, by a plain loop over tensors, of the cell's own equations or of another step."""
    cell, options = p.cell, p.options
    given = p.inputs | p.e | {f"{s}0": a for s, a in zip(cell.states, p.init, strict=True)}
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in given.items()}
    x, state = tensors["x"], tuple([tensors[f"{s}0"] for s in cell.states])
    T, B, _ = x.shape
    lengths = torch.tensor(options.get("lengths", np.full(B, T)))
    resets = torch.tensor(options.get("resets", np.zeros((T, B), bool)))
    every: list[Any] = [None] * T
    for t in range(T - 1, -1, -1) if options.get("reverse") else range(T):
        before = tuple([torch.where(resets[t][:, None], 0.0, s) for s in state])
        e = {n: tensors[n][t] if tensors[n].ndim == 3 else tensors[n] for n in cell.inputs}
        weights = [tensors.get(n) for n in ("W", "U", "b", "b_rec", "p")]
        after = (step or cell.evaluate)(x[t], before, *weights, e)
        alive = (t < lengths)[:, None]
        every[t] = [torch.where(alive, a, torch.zeros_like(a)) for a in after]
        state = tuple([torch.where(alive, a, s) for a, s in zip(after, state, strict=True)])
    states = [torch.stack([after[k] for after in every]) for k in range(len(cell.states))]
    loss = (states[0] * torch.tensor(p.back["dy"])).sum()
    for k, final in enumerate(state):
        loss = loss + (final * torch.tensor(p.back["dfinal"][k])).sum()
        loss = loss + (states[k] * torch.tensor(p.back["dstates"][k])).sum()
    loss.backward()
    found = {"y": states[0]} | dict(zip(cell.states, states, strict=True))
    found |= {f"{s}_n": a for s, a in zip(cell.states, state, strict=True)}
    return {name: a.detach().numpy() for name, a in found.items()} | {
        f"d{name}": a.grad.numpy() if a.grad is not None else np.zeros(a.shape) for name, a in tensors.items()
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cell", own_cells.ALL, ids=lambda cell: cell.name)
def test_gradients(cell: Any, seed: int, oracle: Callable[[str], Any]) -> None:
    rng = np.random.default_rng(seed)
    sizes = tuple(int(n) for n in rng.integers(1, (9, 6, 5, 40)))
    chosen = {name: bool(rng.integers(2)) for name in ("lengths", "resets", "reverse")}
    p = problem(cell, sizes, seed, **chosen, checkpoint=[None, 1, 2, "auto"][seed])
    assert_close(results(p), by_autograd(oracle("torch"), p))


@pytest.fixture
def torch(oracle: Callable[[str], Any]) -> Any:
    return oracle("torch")


def modules(torch: Any, **options: Any) -> tuple[Any, Any]:
    """A module of a user's GRU and fastrnn.torch's own, of the same parameters."""
    import fastrnn.torch

    mine = fastrnn.torch.Recurrent(own_cells.gru, 5, 9, dtype=torch.float64, **options)
    theirs = fastrnn.torch.GRU(5, 9, dtype=torch.float64, **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}]
)
def test_a_module_is_the_built_in_one(options: dict[str, Any], torch: Any) -> None:
    """Outputs and gradients of a user's GRU, eager, compiled, pickled and copied, are those of the built-in."""
    torch.compiler.reset()  # or this counts among the recompilations of other tests' modules
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
def test_names_of_parameters_are_the_layers(cell: Any, torch: Any) -> None:
    import fastrnn.torch

    assert set(fastrnn.torch.Recurrent(cell, 3, 4).state_dict()) == set(fastrnn.Recurrent(cell, 3, 4).state_dict())


@pytest.mark.parametrize("cell", [c for c in own_cells.ALL if not c.inputs], ids=lambda cell: cell.name)
def test_gradients_of_a_module(cell: Any, torch: Any) -> None:
    """By finite differences, of every parameter that the cell has."""
    import fastrnn.torch

    torch.manual_seed(0)
    module = fastrnn.torch.Recurrent(cell, 2, 3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def run(x: Any, *weights: Any) -> Any:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *module.parameters()))


def test_what_a_module_refuses(torch: Any) -> None:
    import fastrnn.torch

    with pytest.raises(ValueError, match=r"cell: zoneout has extra inputs \(keep\)"):
        fastrnn.torch.Recurrent(own_cells.zoneout, 3, 4)
    with pytest.raises(TypeError, match=r"cell: expected what fastrnn\.cell makes"):
        fastrnn.torch.Recurrent("gru", 3, 4)
    module = fastrnn.torch.Recurrent(own_cells.slstm, 3, 4)
    with pytest.raises(TypeError, match="hx: expected a tuple of 4 tensors"):
        module(torch.ones(5, 2, 3), torch.ones(1, 2, 4))
