"""PyTorch as an independent oracle in float64: RNN, LSTM and reset-after GRU with every gradient; layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.problems import Arrays, Problem, batch_first, forward, make, run
from support.stacks import as_given, layer, named, states
from support.tolerance import assert_close, assert_same_bits

import fastrnn

WEIGHTS = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh"}
MODULES = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru_after": ("GRU", {}),
}


def by_torch(torch: Any, problem: Problem) -> Arrays:
    """Return the same as `run`, from a torch module and its autograd.

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
        problem = problem.changed(lengths=np.maximum(problem.inputs["lengths"], 1))  # torch cannot pack empty sequences
    assert_close(run(problem), by_torch(torch, problem))


@pytest.mark.parametrize("cell", MODULES)
def test_without_biases_and_states(cell: str, torch: Any, implementation: str) -> None:
    problem = make(cell, (9, 5, 7, 15), seed=5, biases=(), states=())
    assert_close(run(problem), by_torch(torch, problem))


@pytest.mark.parametrize("cell", MODULES)
def test_tensors_as_arguments(cell: str, torch: Any, backend: str) -> None:
    """Tensors are arrays through DLPack: the same bits as for NumPy arrays, contiguous or not."""
    problem = batch_first(make(cell, (9, 5, 7, 15), dtype=np.float32, lengths=True))
    tensors = {name: torch.from_numpy(a) for name, a in problem.inputs.items()}
    tensors["x"] = tensors["x"].transpose(0, 1).contiguous().transpose(0, 1)
    assert_same_bits(forward(problem.changed(**tensors)), forward(problem))


LAYERS = [(n, way) for n in (1, 3) for way in (False, True)]
LENGTHS = [3, 9, 1, 5, 9, 2, 4]


def same_layers(torch: Any, cell: str, num_layers: int, **options: Any) -> tuple[Any, Any]:
    """Return a torch module in float64, and a layer with its parameters."""
    kind, chosen = MODULES[cell]
    module = getattr(torch.nn, kind)(5, 33, num_layers, dtype=torch.float64, **chosen, **options)
    net = layer(cell, 5, 33, num_layers, dtype=np.float64, **options)
    net.load_state_dict(module.state_dict())
    return module, net


def random_state(cell: str, num_layers: int, bidirectional: bool) -> Any:
    return states(cell, num_layers * (1 + bidirectional), 7, 33, dtype=np.float64)


def in_torch(torch: Any, state: Any) -> Any:
    return as_given(tuple(torch.tensor(s) for s in state))


def outputs(y: Any, final: Any) -> Arrays:
    final = tuple(s.detach().numpy() for s in (final if isinstance(final, tuple) else (final,)))
    return named(y.detach().numpy(), final)


def in_torch_forward(torch: Any, module: Any, x: Any, state: Any, lengths: Any) -> tuple[Any, Any]:
    """Return a module's y and final states, for these lengths if given."""
    if lengths is None:
        return module(x, state)
    rnn, first = torch.nn.utils.rnn, module.batch_first
    packed = rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=first, enforce_sorted=False)
    y, final = module(packed, state)
    return rnn.pad_packed_sequence(y, batch_first=first, total_length=x.shape[int(first)])[0], final


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("num_layers", "bidirectional"), LAYERS)
@pytest.mark.parametrize("cell", MODULES)
def test_layers(
    cell: str, num_layers: int, bidirectional: bool, batch_first: bool, bias: bool, torch: Any, implementation: str
) -> None:
    """With and without initial states and lengths, which in PyTorch are packed sequences padded with zeros again."""
    torch.manual_seed(0)
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    module, net = same_layers(torch, cell, num_layers, **options)
    shapes = [{name: tuple(a.shape) for name, a in one.state_dict().items()} for one in (net, module)]
    assert shapes[0] == shapes[1]
    x, state = np.random.default_rng(1).standard_normal((9, 7, 5)), random_state(cell, num_layers, bidirectional)
    x = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
    assert_close(named(*net(x)), outputs(*module(torch.tensor(x))))
    given = torch.tensor(x), in_torch(torch, state)
    for lengths in (None, LENGTHS):
        exact = outputs(*in_torch_forward(torch, module, *given, lengths))
        assert_close(named(*net(x, as_given(state), lengths=lengths)), exact)
        assert_close(named(*net(*given, lengths=lengths)), exact)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("num_layers", "bidirectional"), LAYERS)
@pytest.mark.parametrize("cell", MODULES)
def test_training_layers(
    cell: str, num_layers: int, bidirectional: bool, batch_first: bool, lengths: Any, torch: Any, native: str
) -> None:
    """Every gradient of a stack by name, from y and the final states."""
    torch.manual_seed(0)
    module, net = same_layers(torch, cell, num_layers, bidirectional=bidirectional, batch_first=batch_first)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((7, 9, 5) if batch_first else (9, 7, 5))
    state = random_state(cell, num_layers, bidirectional)
    y, final, cache = net.forward(x, state=as_given(state), lengths=lengths, training=True)
    dy = rng.standard_normal(y.shape)
    dstate = tuple(rng.standard_normal(s.shape) for s in state)
    back = net.backward(dy, cache, dstate=as_given(dstate))

    leaves = [torch.tensor(a, requires_grad=True) for a in (x, *state)]
    given, parameters = as_given(tuple(leaves[1:])), dict(module.named_parameters())
    exact_y, exact_final = in_torch_forward(torch, module, leaves[0], given, lengths)
    assert_close(named(y, final), outputs(exact_y, exact_final))
    finals = exact_final if isinstance(exact_final, tuple) else (exact_final,)
    loss = sum((a * torch.tensor(d)).sum() for a, d in zip((exact_y, *finals), (dy, *dstate), strict=True))
    exact = torch.autograd.grad(loss, leaves + list(parameters.values()))
    names = ["x", "h0", "c0"][: len(leaves)] + list(parameters)
    dinit = back.dstate if isinstance(back.dstate, tuple) else (back.dstate,)
    got = dict(zip(names, (back.dx, *dinit), strict=False)) | back.grads
    assert_close(got, {name: g.numpy() for name, g in zip(names, exact, strict=True)})


@pytest.mark.parametrize("activation", [None, "sigmoid", "tanh", "relu", "softmax"])
def test_dense(activation: str | None, torch: Any) -> None:
    torch.manual_seed(0)
    linear, net = torch.nn.Linear(5, 7, dtype=torch.float64), fastrnn.Dense(5, 7, activation, dtype=np.float64)
    net.load_state_dict(linear.state_dict())
    rng = np.random.default_rng(6)
    x, dy = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 7))
    y, _, cache = net.forward(x, training=True)
    back = net.backward(dy, cache)
    leaf = torch.tensor(x, requires_grad=True)
    a = linear(leaf)
    functions = {None: lambda a: a, "softmax": lambda a: torch.softmax(a, -1)}
    exact = functions.get(activation, getattr(torch, activation or "", None))(a)
    gradients = torch.autograd.grad(exact, [leaf, linear.weight, linear.bias], torch.tensor(dy))
    expected = dict(zip(("x", "weight", "bias"), (g.numpy() for g in gradients), strict=True))
    assert_close({"y": y, "x": back.dx} | back.grads, {"y": exact.detach().numpy()} | expected)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding(padding_idx: int | None, torch: Any) -> None:
    torch.manual_seed(0)
    module = torch.nn.Embedding(6, 3, padding_idx, dtype=torch.float64)
    net = fastrnn.Embedding(6, 3, padding_idx, dtype=np.float64)
    net.load_state_dict(module.state_dict())
    x, dy = np.array([[0, 2, 5, 2], [1, 1, 0, 2]]), np.random.default_rng(7).standard_normal((2, 4, 3))
    y, _, cache = net.forward(torch.tensor(x), training=True)
    exact = module(torch.tensor(x))
    exact.backward(torch.tensor(dy))
    got = {"y": y} | net.backward(dy, cache).grads
    assert_close(got, {"y": exact.detach().numpy(), "weight": module.weight.grad.numpy()})


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout(bidirectional: bool, torch: Any, native: str) -> None:
    """The masks differ, but their effects have the same mean and spread."""
    torch.manual_seed(0)
    module, net = same_layers(torch, "lstm", 2, bidirectional=bidirectional, dropout=0.4)
    x = np.random.default_rng(8).standard_normal((5, 600, 5))
    exact, got = module(torch.tensor(x))[0].detach().numpy(), net.forward(x, training=True, rng=0).y
    calm = net(x)[0]
    np.testing.assert_allclose(calm, module.eval()(torch.tensor(x))[0].detach().numpy(), rtol=0, atol=1e-12)
    assert np.std(got - calm) == pytest.approx(np.std(exact - calm), rel=0.05)
    assert np.mean(got - calm) == pytest.approx(np.mean(exact - calm), abs=0.01)
