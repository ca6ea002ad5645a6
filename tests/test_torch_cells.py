"""PyTorch's autograd of a cell's own equations as an oracle, float64, at random sizes and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import own_cells
import pytest
from test_cells import problem, results
from tolerance import assert_close

Arrays = dict[str, np.ndarray]


def by_autograd(torch: Any, p: Any) -> Arrays:
    """What `results` returns, by a plain loop over tensors."""
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
        after = cell.evaluate(x[t], before, *weights, e)
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
