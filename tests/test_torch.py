"""PyTorch as an independent oracle, in float64: RNN, LSTM and reset-after GRU with every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from problems import Arrays, Problem, batch_first, forward, make, run
from tolerance import assert_close, assert_same_bits

WEIGHTS = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh"}
MODULES = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru_after": ("GRU", {}),
}


@pytest.fixture(scope="module")
def torch(oracle: Callable[[str], Any]) -> Any:
    return oracle("torch")


def by_torch(torch: Any, problem: Problem) -> Arrays:
    """What `run` returns, from a torch module and its autograd.

    Torch runs backwards only as the second direction of a bidirectional layer, so that is what a reverse problem
    becomes; and sequences of unequal length have to be packed.
    """
    reverse, lengths = problem.options.get("reverse", False), problem.inputs.get("lengths")
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in problem.inputs.items() if a.dtype.kind == "f"}
    kind, options = MODULES[problem.cell]
    (T, _, I), H = problem.inputs["x"].shape, problem.inputs["U"].shape[1]
    module = getattr(torch.nn, kind)(I, H, bias="b" in tensors, bidirectional=reverse, dtype=torch.float64, **options)
    last = "_l0_reverse" if reverse else "_l0"
    given = {WEIGHTS[name] + last: t for name, t in tensors.items() if name in WEIGHTS}

    states = [name for name in ("h", "c") if f"{name}0" in tensors]
    start = [torch.stack([tensors[f"{s}0"]] * (1 + reverse)) for s in states]
    x = tensors["x"]
    if lengths is not None:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    start = tuple(start) if len(start) == 2 else start[0] if start else None
    y, final = torch.func.functional_call(module, given, (x, start))
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    final = final if isinstance(final, tuple) else (final,)
    outputs = {"y": y[..., -H:]} | dict(zip(("h_n", "c_n"), (s[-1] for s in final), strict=False))

    loss = sum((outputs[name[1:]] * torch.tensor(d)).sum() for name, d in problem.cotangents.items())
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    return {name: a.detach().numpy() for name, a in outputs.items()} | {
        f"d{name}": g.numpy() for name, g in zip(tensors, gradients, strict=True)
    }


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("sizes", [(13, 7, 5, 33), (4, 33, 17, 3), (1, 1, 1, 1), (31, 2, 3, 64)])
def test_outputs_and_gradients(
    sizes: tuple[int, int, int, int], lengths: bool, reverse: bool, cell: str, torch: Any, implementation: str
) -> None:
    problem = make(cell, sizes, seed=4, lengths=lengths, reverse=reverse)
    if lengths:
        problem = problem.changed(lengths=np.maximum(problem.inputs["lengths"], 1))  # torch packs no empty sequence
    assert_close(run(problem), by_torch(torch, problem))


@pytest.mark.parametrize("cell", MODULES)
def test_without_biases_and_states(cell: str, torch: Any, implementation: str) -> None:
    problem = make(cell, (9, 5, 7, 15), seed=5, biases=(), states=())
    assert_close(run(problem), by_torch(torch, problem))


@pytest.mark.parametrize("cell", MODULES)
def test_takes_tensors(cell: str, torch: Any, implementation: str) -> None:
    """Tensors are arrays by DLPack: the same bits as their NumPy twins, also when they do not lie in order."""
    problem = batch_first(make(cell, (9, 5, 7, 15), dtype=np.float32, lengths=True))
    tensors = {name: torch.from_numpy(a) for name, a in problem.inputs.items()}
    tensors["x"] = tensors["x"].transpose(0, 1).contiguous().transpose(0, 1)
    assert_same_bits(forward(problem.changed(**tensors)), forward(problem))
