"""Random arguments of a cell's own forward and backward, and their results."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from support.problems import Arrays


def problem(cell: Any, sizes: tuple[int, int, int, int], seed: int = 0, **options: Any) -> SimpleNamespace:
    """Random float64 arguments, cotangents and options of a cell's forward and backward."""
    T, B, I, H = sizes
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / 2

    products, narrow = len(cell.products), ((T, B, H), (T, B, 1), (B, H), (B, 1))
    inputs: dict[str, Any] = {
        "x": drawn(T, B, I),
        "W": drawn(cell.G * H, I),
        "b": drawn(cell.G * H),
        **({"U": drawn(products * H, H), "b_rec": drawn(products * H)} if products else {}),
        **({"p": rng.random(len(cell.parameters) * H)} if cell.parameters else {}),
    }
    e = {name: rng.random(narrow[(k + seed) % 4]) for k, name in enumerate(cell.inputs)}
    init = tuple([drawn(B, H) for _ in cell.states])
    back = {
        "dy": drawn(T, B, H),
        "dfinal": tuple([drawn(B, H) for _ in cell.states]),
        "dstates": tuple([drawn(T, B, H) for _ in cell.states]),
    }
    if options.pop("lengths", False):
        options["lengths"] = rng.integers(0, T + 1, B)
    if options.pop("resets", False):
        options["resets"] = rng.random((T, B)) < 0.2
    return SimpleNamespace(cell=cell, inputs=inputs, e=e, init=init, back=back, options=options)


def as_dtype(value: Any, dtype: Any) -> Any:
    if isinstance(value, dict):
        return {k: as_dtype(v, dtype) for k, v in value.items()}
    return tuple([v.astype(dtype) for v in value]) if isinstance(value, tuple) else value.astype(dtype)


def results(p: SimpleNamespace, dtype: Any = np.float64, **more: Any) -> Arrays:
    """Return all results of forward and backward by name."""
    inputs, e, init, back = (as_dtype(v, dtype) for v in (p.inputs, p.e, p.init, p.back))
    out = p.cell.forward(**inputs, e=e or None, init=init, return_states=True, training=True, **p.options, **more)
    grads = p.cell.backward(back["dy"], out.cache, dfinal=back["dfinal"], dstates=back["dstates"])
    found = {"y": out.y}
    found |= {f"{s}_n": a for s, a in zip(p.cell.states, out.final, strict=True)}
    found |= {s: a for s, a in zip(p.cell.states, out.states, strict=True)}
    found |= {f"d{name}": getattr(grads, f"d{name}") for name in inputs}
    found |= {f"d{s}0": a for s, a in zip(p.cell.states, grads.dinit, strict=True)}
    return found | {f"d{name}": a for name, a in (grads.de or {}).items()}


def by_autograd(torch: Any, p: Any, step: Callable[..., Any] | None = None) -> Arrays:
    """Return the same as `results`, from a plain loop over tensors of the cell's equations or another step."""
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
