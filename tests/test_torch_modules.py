"""`fastrnn.torch` beside `torch.nn`: outputs and gradients, what PyTorch does with a module, and what is refused."""

from __future__ import annotations

import copy
import doctest
import io
import pickle
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import Arrays, Problem, make, run
from support.tolerance import assert_rounded, assert_same_bits

import fastrnn

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402
from fastrnn.torch import modules, ops, replacing  # noqa: E402
from fastrnn.torch.stack import Given  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {}, "RNN": {"nonlinearity": "relu"}}

#: cell of the registry -> the module that has it, and its keywords
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "rnn_sigmoid": ("RNN", {"nonlinearity": "sigmoid"}),
    "rnn_identity": ("RNN", {"nonlinearity": "identity"}),
    "lstm": ("LSTM", {}),
    "lstm_peephole": ("LSTM", {"peephole": True}),
    "gru_after": ("GRU", {}),
    "gru_before": ("GRU", {"reset_after": False}),
}


def both(kind: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and fastrnn's, made from the same seed."""
    made = []
    for package in (nn, fastrnn.torch):
        torch.manual_seed(0)
        made.append(getattr(package, kind)(*sizes, **options))
    return made[0], made[1]


def flat(final: Any) -> tuple[Any, ...]:
    return final if isinstance(final, tuple) else (final,)


def everything(module: Any, x: Any, hx: Any, cotangents: Any, lengths: Any, seed: int = 1) -> Arrays:
    """Outputs, and every gradient by its name; with dropout from the seed."""
    leaves = {"x": x.clone().requires_grad_()}
    leaves |= {f"state {i}": s.clone().requires_grad_() for i, s in enumerate(hx or ())}
    first, *states = leaves.values()
    state = None if hx is None else states[0] if len(states) == 1 else tuple(states)
    given: Any = first
    if lengths is not None:
        given = pack_padded_sequence(first, lengths, module.batch_first, enforce_sorted=False)
    torch.manual_seed(seed)
    y, final = module(given, state)
    if lengths is not None:
        y, found = pad_packed_sequence(y, module.batch_first, total_length=x.shape[int(module.batch_first)])
        assert torch.equal(found, lengths)
    outputs = dict(zip(("y", "h_n", "c_n"), (y, *flat(final)), strict=False))
    leaves |= dict(module.named_parameters())
    loss = sum((a * d.reshape(a.shape)).sum() for a, d in zip(outputs.values(), cotangents, strict=True))
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {name: a.detach().numpy() for name, a in outputs.items()} | {
        f"d{name}": g.numpy() for name, g in zip(leaves, grads, strict=True)
    }


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    T=st.integers(1, 7),
    B=st.integers(1, 5),
    I=st.integers(1, 5),
    H=st.sampled_from([1, 3, 8, 17]),
    num_layers=st.integers(1, 3),
    options=st.fixed_dictionaries({name: st.booleans() for name in ("bias", "batch_first", "bidirectional")}),
    dropout=st.sampled_from([0.0, 0.4, 1.0]),
    form=st.sampled_from(["batch", "batch", "one", "packed"]),
    state=st.booleans(),
    single=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_like_torch(
    kind: str,
    T: int,
    B: int,
    I: int,
    H: int,
    num_layers: int,
    options: Any,
    dropout: float,
    form: str,
    state: bool,
    single: bool,
    training: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    options |= KINDS[kind] | {"dropout": dropout if num_layers > 1 else 0.0}
    results = []
    for dtype in (torch.float32, torch.float64)[1 - single :]:
        module, own = both(kind, I, H, num_layers, **options)
        calls, D, batch = num_layers * (1 + own.bidirectional), 1 + own.bidirectional, () if form == "one" else (B,)
        steps = (T,) if form == "one" else (B, T) if own.batch_first else (T, B)
        shapes = [(*steps, D * H), *[(calls, *batch, H)] * len(own._cell.states)]
        rng = np.random.default_rng(seed)
        x, *draws = [
            torch.tensor(rng.standard_normal(s, np.float32), dtype=dtype) for s in [(*steps, I), *shapes, *shapes[1:]]
        ]
        cotangents, hx = draws[: len(shapes)], draws[len(shapes) :] if state else None
        lengths = torch.tensor(rng.permutation(np.r_[T, rng.integers(1, T + 1, B - 1)])) if form == "packed" else None
        for one in (module, own):
            one.to(dtype).train(training)
            results.append(everything(one, x, hx, cotangents, lengths))
    *_, exact, got = results
    assert_rounded(got, exact, lambda: everything(own, x, hx, cotangents, lengths))
    if single:
        assert_rounded(results[1], exact, lambda: everything(own, x, hx, cotangents, lengths))


@pytest.mark.parametrize("lengths", [[4], [1, 1, 1], [5, 5, 5], [2, 40, 1, 3], [3, 3, 2, 1]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_like_torch(kind: str, lengths: list[int]) -> None:
    """In any order, of any shape, through a stack with dropout in two directions; inference gives the same bits."""
    options = KINDS[kind] | {"num_layers": 3, "bidirectional": True, "dropout": 0.5}
    module, own = both(kind, 3, 17, dtype=torch.float64, **options)
    rng, B, T = np.random.default_rng(sum(lengths)), len(lengths), max(lengths)
    states = [(6, B, 17)] * len(own._cell.states)
    x, *draws = [torch.tensor(rng.standard_normal(s)) for s in [(T, B, 3), (T, B, 34), *states, *states]]
    cotangents, hx = draws[: 1 + len(states)], draws[1 + len(states) :]
    given = x, hx, cotangents, torch.tensor(lengths)
    exact, got = everything(module, *given), everything(own, *given)
    assert_rounded(got, exact, lambda: everything(own, *given))
    own.eval()
    trained = everything(own, *given)
    packed, state = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), tuple(hx)
    with torch.no_grad():
        y, final = own(packed, state if len(state) > 1 else state[0])
    outputs = dict(zip(("y", "h_n", "c_n"), (pad_packed_sequence(y)[0], *flat(final)), strict=False))
    assert_same_bits({name: a.numpy() for name, a in outputs.items()}, {name: trained[name] for name in outputs})


def test_memory_of_one_long_sequence_among_short_ones() -> None:
    """Padded it would be 90 times the steps."""
    packed = pack_sequence([torch.ones(2000, 8), *[torch.ones(2, 8)] * 99])
    module = fastrnn.torch.GRU(8, 16, 2, dropout=0.5, bidirectional=True)
    module(pack_sequence([torch.ones(3, 8)]))[0].data.sum().backward()  # what is kept from call to call
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        tracemalloc.start()
        module(packed)[0].data.sum().backward()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    masks = sum(event.self_cpu_memory_usage for event in profile.key_averages() if event.self_cpu_memory_usage > 0)
    assert peak + masks < 60 * len(packed.data) * (8 + 2 * 16) * 4 < 100 * 2000 * 32 * 4


def module_of(problem: Problem) -> Any:
    """A module with the problem's weights; a reverse problem's is the second direction of two."""
    kind, options = CELLS[problem.cell]
    (_, _, I), H = problem.inputs["x"].shape, problem.inputs["U"].shape[1]
    module = getattr(fastrnn.torch, kind)(I, H, dtype=torch.float64, **options)
    names = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh", "p": "peephole"}
    module.load_state_dict(
        {f"{name}_l0": torch.tensor(problem.inputs[key]) for key, name in names.items() if key in problem.inputs}
    )
    return module


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell(cell: str, native: str) -> None:
    """The bits of the functional interface, on every instruction set."""
    same_bits(cell)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_python(cell: str) -> None:
    with fastrnn.use_backend("numpy"):
        same_bits(cell)


def same_bits(cell: str) -> None:
    problem = make(cell, (5, 3, 4, 17), seed=1)
    module, expected = module_of(problem), run(problem)
    states = [torch.tensor(problem.inputs[name])[None] for name in ("h0", "c0") if name in problem.inputs]
    cotangents = [torch.tensor(d) for name in ("dy", "dh_n", "dc_n") if (d := problem.cotangents.get(name)) is not None]
    found = everything(module, torch.tensor(problem.inputs["x"]), states, cotangents, None)
    names = {"y": "y", "h_n": "h_n", "c_n": "c_n", "dx": "dx", "dstate 0": "dh0", "dstate 1": "dc0"}
    names |= {"dweight_ih_l0": "dW", "dweight_hh_l0": "dU", "dbias_ih_l0": "db", "dbias_hh_l0": "db_rec"}
    names |= {"dpeephole_l0": "dp"}
    got = {names[key]: a.reshape(expected[names[key]].shape) for key, a in found.items()}
    assert_same_bits(got, expected)


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
    """Small arguments of the operator, in float64, all of which ask for gradients."""
    kind, chosen = CELLS[cell]
    masked, lengths, resets = options.pop("masked", False), options.pop("lengths", None), options.pop("resets", None)
    torch.manual_seed(0)
    module = getattr(fastrnn.torch, kind)(2, 3, dtype=torch.float64, **chosen, **options)
    D = 1 + module.bidirectional

    def leaf(*shape: int) -> Any:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    x = leaf(2, 4, 2) if module.batch_first else leaf(4, 2, 2)
    init = [leaf(module.num_layers * D, 2, 3) for _ in module._cell.states]
    masks = [2 * torch.rand(4, 2, 3 * D, dtype=torch.float64)] * (module.num_layers - 1) if masked else []
    setting = ops.Setting(module._cell.key, module.bias, module.bidirectional, module.batch_first)
    return *Given(x, init, list(module.parameters()), lengths, resets, masks).arguments, True, *setting


def test_instruction_set_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for another processor calls its only one "portable"; a new one has the name that dispatch.c gives it."""
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


OPERATIONS = {
    "lstm": {"num_layers": 2, "bidirectional": True},
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


@pytest.mark.parametrize("cell", OPERATIONS)
def test_opcheck(cell: str) -> None:
    arguments = given_to_op(cell, **OPERATIONS[cell])
    torch.library.opcheck(ops.recurrence, arguments)
    given, _, setting = ops.taken(arguments)
    states = 1 + len(given.init)
    with torch.no_grad():
        torch.library.opcheck(ops.recurrence, (*given.arguments, False, *setting))
        y, *rest = ops.recurrence(*arguments)
        back = (*given.arguments, rest[states - 1 :], y, rest[: states - 1], *setting)
        torch.library.opcheck(ops.recurrence_backward, back)


@pytest.mark.parametrize("cell", OPERATIONS)
@pytest.mark.parametrize("way", ["operator", "module"])
def test_gradcheck(way: str, cell: str) -> None:
    """By finite differences: of x, the states and every weight, with and without the dispatcher."""
    given, _, setting = ops.taken(given_to_op(cell, **OPERATIONS[cell]))
    states = 1 + len(given.init)

    def by_operator(*leaves: Any) -> Any:
        return tuple(ops.recurrence(*given.on(leaves).arguments, True, *setting)[:states])

    def by_module(*leaves: Any) -> Any:
        own = given.on(leaves)
        return ops.Recurrence.apply(setting, ops.Stack(setting, own.weights), own, *own.flat)

    assert torch.autograd.gradcheck(by_operator if way == "operator" else by_module, given.leaves)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by itself
@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", True), ("inductor", False)])
def test_compile(backend: str, dynamic: bool) -> None:
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


def test_compiled_dropout() -> None:
    torch.compiler.reset()  # or this counts among the recompilations of other tests' modules
    module, x = fastrnn.torch.GRU(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, module):
        torch.manual_seed(1)
        results.append(loss_and_gradients(module, x, lambda x, call=call: call(x)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by itself
def test_export() -> None:
    module, x = fastrnn.torch.LSTM(3, 5).eval(), torch.randn(4, 2, 3)
    with torch.no_grad():
        exported = torch.export.export(module, (x,)).module()
        assert torch.equal(exported(2 * x)[0], module(2 * x)[0])


def close_inference(module: Any) -> bool:
    """Whether it infers as torch.nn's does with its weights."""
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 2, 3)
    peer = nn.LSTM(3, 5, dtype=torch.float64)
    peer.load_state_dict(module.state_dict())
    with torch.inference_mode():
        return torch.allclose(module(x)[0], peer(x)[0], rtol=1e-12)


def by_step(module: Any, optimizer: Any) -> None:
    module(torch.ones(4, 2, 3, dtype=torch.float64))[0].sum().backward()
    assert close_inference(module)  # which packs what the step is about to change
    optimizer.step()


def replaced(module: Any) -> None:
    module.weight_hh_l0 = nn.Parameter(torch.zeros_like(module.weight_hh_l0))


def set_data(module: Any) -> None:
    module.weight_hh_l0.data = torch.zeros_like(module.weight_hh_l0)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda m: by_step(m, torch.optim.SGD(m.parameters(), 0.1)),
    "adam, fused": lambda m: by_step(m, torch.optim.Adam(m.parameters(), 0.1, fused=True)),
    "load": lambda m: m.load_state_dict(nn.LSTM(3, 5, dtype=torch.float64).state_dict()),
    "assign": lambda m: m.load_state_dict(nn.LSTM(3, 5, dtype=torch.float64).state_dict(), assign=True),
    "in place": lambda m: nn.init.zeros_(m.bias_hh_l0),
    "another parameter": replaced,
    "its data": set_data,
    "in its data": lambda m: m.weight_hh_l0.data.zero_(),
    "reset": lambda m: m.reset_parameters(),
    "there and back": lambda m: m.float().double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_inference_follows_the_weights(change: str) -> None:
    torch.manual_seed(0)
    module = fastrnn.torch.LSTM(3, 5, dtype=torch.float64)
    before = {name: a.clone() for name, a in module.state_dict().items()}
    assert close_inference(module)
    CHANGES[change](module)
    assert any(not torch.equal(before[name], a) for name, a in module.state_dict().items())
    assert close_inference(module)


def test_weights_are_packed_once() -> None:
    module, x = fastrnn.torch.LSTM(3, 5), torch.ones(4, 2, 3)
    with torch.no_grad():
        module(x)
        made = module._made
        module(x)
    assert module._made is made
    packed = made.stack.layers.packed()[1]
    with torch.inference_mode():
        module(x)
    assert module._made.stack.layers.packed()[1] is packed


def test_tensors_marked_as_negative() -> None:
    """The imaginary part of a conjugate is memory with a sign to come; gradients through spectra arrive so."""
    theirs = nn.GRU(3, 4)
    ours = fastrnn.torch.GRU(3, 4)
    ours.load_state_dict(theirs.state_dict())

    def negated(*shape: int) -> Any:
        found = torch.complex(torch.zeros(shape), torch.randn(shape)).conj().imag
        assert found.is_neg()
        return found

    x, h, dy = negated(5, 2, 3), negated(1, 2, 4), negated(5, 2, 4)
    results = []
    for module in (theirs, ours):
        leaf = torch.zeros(5, 2, 3, requires_grad=True)
        y, _ = module(leaf + x, h)
        y.backward(dy)
        with torch.no_grad():
            results.append([y, leaf.grad, module.weight_hh_l0.grad, *module(x, h)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_weights_of_inference_mode() -> None:
    """Nobody counts their changes, so nothing is kept of them."""
    with torch.inference_mode():
        module, x = fastrnn.torch.GRU(3, 5), torch.ones(4, 2, 3)
        before, _ = module(x)
        module.weight_hh_l0.zero_()
        after, _ = module(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, fastrnn.torch.GRU.forward(copy.deepcopy(module), x)[0])


def test_weights_that_lie_elsewise() -> None:
    """A transposed parameter is read through a copy, which must not outlive a change."""
    module, x = fastrnn.torch.RNN(3, 3), torch.randn(4, 2, 3)
    module.weight_hh_l0 = nn.Parameter(torch.randn(3, 3).t())
    for _ in range(2):
        peer = nn.RNN(3, 3)
        peer.load_state_dict(module.state_dict())
        assert torch.allclose(module(x)[0], peer(x)[0], atol=1e-6)
        with torch.no_grad():
            assert torch.allclose(module(x)[0], peer(x)[0], atol=1e-6)
            module.weight_hh_l0.mul_(0.5)


def test_functional_call() -> None:
    """Other weights for one call, and gradients of those."""
    module, x = fastrnn.torch.LSTM(3, 5), torch.randn(4, 2, 3)
    own = module(x)[0]
    weights = {name: torch.zeros_like(p, requires_grad=True) for name, p in module.named_parameters()}
    y, _ = torch.func.functional_call(module, weights, (x,))
    assert not y.any()
    assert not own.eq(y).any()
    (grad,) = torch.autograd.grad(y.sum(), weights["bias_ih_l0"])
    assert grad.any()
    assert torch.equal(module(x)[0], own)


def test_parametrized_weights() -> None:
    """Weights that are computed anew for every call."""
    torch.manual_seed(0)
    made = [nn.utils.parametrizations.weight_norm(m, "weight_hh_l0") for m in both("GRU", 3, 5, dtype=torch.float64)]
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    grads = [torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())) for m in made]
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(*grads, strict=True))


def loss_and_gradients(module: Any, x: Any, call: Callable[..., Any]) -> list[Any]:
    x = x.clone().requires_grad_()
    y = call(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


def test_activation_checkpointing() -> None:
    """What the kernels kept is dropped and computed again, with the same dropout, for the same gradients."""
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


def test_saved_tensors_may_move() -> None:
    """Hooks may bring what was saved back at another address, and the weights as they were then."""
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


def test_graph_may_be_kept() -> None:
    module, x = fastrnn.torch.LSTM(3, 5), torch.randn(4, 2, 3)
    y, (_, c) = module(x)
    first = torch.autograd.grad(y.sum(), module.weight_hh_l0, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), module.weight_hh_l0, retain_graph=True)[0], first)
    torch.autograd.grad(c.sum(), module.weight_hh_l0)  # of a final state alone
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), module.weight_hh_l0)


def test_a_weight_that_changed_before_backward() -> None:
    module = fastrnn.torch.LSTM(3, 5)
    y, _ = module(torch.randn(4, 2, 3))
    with torch.no_grad():
        module.weight_hh_l0.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_outputs_share_no_memory_with_inputs() -> None:
    module, x, h = fastrnn.torch.GRU(3, 5), torch.randn(0, 2, 3), torch.randn(1, 2, 5)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            _, h_n = module(x, h)
            assert torch.equal(h_n, h)
            assert h_n.data_ptr() != h.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind: str) -> None:
    _, module = both(kind, 3, 5, 2, bidirectional=True)
    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        y = module(x)[0]
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
        for other in copies:
            assert torch.equal(other(x)[0], y)
            other.weight_hh_l0.zero_()
            assert not torch.equal(other(x)[0], y)
        assert torch.equal(module(x)[0], y)


def test_attributes() -> None:
    """What code finds in a module of torch.nn, it finds here."""
    for kind in KINDS:
        module, own = both(kind, 3, 5, 2, bidirectional=True, batch_first=True, dropout=0.25, bias=False)
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "mode")
        assert {n: getattr(own, n) for n in names} == {n: getattr(module, n) for n in names}
        assert repr(own) == repr(module)
        assert list(own.state_dict()) == list(module.state_dict())
        assert [len(w) for w in own.all_weights] == [len(w) for w in module.all_weights]
        own.load_state_dict(module.state_dict())
        module.load_state_dict(own.state_dict())
        own.flatten_parameters()
    peephole = fastrnn.torch.LSTM(3, 5, 1, True, True, peephole=True)
    assert {n: tuple(p.shape) for n, p in peephole.named_parameters() if "peephole" in n} == {"peephole_l0": (15,)}
    assert repr(peephole) == "LSTM(3, 5, batch_first=True, peephole=True)"
    assert repr(fastrnn.torch.GRU(3, 5, reset_after=False)) == "GRU(3, 5, reset_after=False)"
    assert repr(fastrnn.torch.RNN(3, 5, 1, "sigmoid")) == "RNN(3, 5, nonlinearity='sigmoid')"
    assert fastrnn.torch.RNN(3, 5, 1, "linear").nonlinearity == "identity"


def test_threads_share_a_module() -> None:
    module, xs = fastrnn.torch.LSTM(3, 17), [torch.randn(9, 2, 3) for _ in range(8)]
    expected = [loss_and_gradients(module, x, lambda x: module(x)[0]) for x in xs]
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(20):
            with torch.no_grad():
                y = module(xs[i])[0]
            got[i] = [y, *loss_and_gradients(module, xs[i], lambda x: module(x)[0])[1:]]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, one in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(got[i], one, strict=True))


class Own(nn.LSTM):
    def forward(self, *given: Any) -> Any:
        return super().forward(*given)


def test_replace() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True),
            "gru": nn.GRU(10, 5, batch_first=True),
            "rnn": nn.RNN(5, 5, nonlinearity="relu", batch_first=True),
            "projected": nn.LSTM(3, 5, proj_size=2),
            "own": Own(3, 5),
            "bfloat": nn.GRU(3, 5, dtype=torch.bfloat16),
            "unmade": nn.GRU(3, 5, device="meta"),
            "cell": nn.LSTMCell(3, 5),
            "linear": nn.Linear(5, 1),
        }
    )
    model["patched"] = nn.GRU(3, 5)
    model["patched"].forward = model["gru"].forward
    x, calls = torch.randn(2, 7, 3), []
    model["gru"].register_forward_hook(lambda *_: calls.append("hook"))
    used = [p for name in ("lstm", "gru", "rnn", "linear") for p in model[name].parameters()]
    optimizer = torch.optim.SGD(used, 0.1)

    def step() -> float:
        y = model["linear"](model["rnn"](model["gru"](model["lstm"](x)[0])[0])[0])
        optimizer.zero_grad()
        loss = (y - 1).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    twin, expected = copy.deepcopy(model.state_dict()), [step() for _ in range(3)]
    model.load_state_dict(twin)
    report = fastrnn.torch.replace(model)
    assert list(report.swapped) == ["lstm", "gru", "rnn", "projected", "unmade"]
    assert report.swapped["gru"] == "fastrnn.torch.GRU(10, 5, batch_first=True)"
    assert list(report.kept) == ["own", "bfloat", "cell", "patched"]
    why = ["Own is a custom class", "torch.bfloat16", "single steps", "its method forward was replaced"]
    assert all(part in reason for part, reason in zip(why, report.kept.values(), strict=True))
    assert [p is q for p, q in zip(used, optimizer.param_groups[0]["params"], strict=True)]
    assert [step() for _ in range(3)] == pytest.approx(expected, rel=1e-5)
    assert calls == ["hook"] * 6
    assert isinstance(model["lstm"], fastrnn.torch.LSTM)
    assert fastrnn.torch.replace(model).swapped == {}
    assert str(fastrnn.torch.replace(nn.Linear(1, 1))) == "no recurrent modules"


def test_replace_a_layer_itself() -> None:
    module, x = nn.GRU(3, 5), torch.randn(4, 2, 3)
    expected = module(x)[0]
    assert str(fastrnn.torch.replace(module)) == "(the model): fastrnn.torch.GRU(3, 5)"
    assert type(module) is fastrnn.torch.GRU
    assert torch.allclose(module(x)[0], expected, atol=1e-6)
    with pytest.raises(TypeError, match="model: expected"):
        fastrnn.torch.replace("model")  # type: ignore[arg-type]


LSTM = fastrnn.torch.LSTM
X, S = torch.ones(4, 2, 3), torch.ones(1, 2, 5)

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "bfloat16 weights": (lambda: LSTM(3, 5, dtype=torch.bfloat16), TypeError, r"bfloat16; convert with \.float"),
    "peephole": (lambda: LSTM(3, 5, peephole=1), TypeError, "peephole"),
    "reset_after": (lambda: fastrnn.torch.GRU(3, 5, reset_after=None), TypeError, "reset_after"),
    "nonlinearity": (lambda: fastrnn.torch.RNN(3, 5, nonlinearity="gelu"), ValueError, "nonlinearity: expected .*gelu"),
    "bfloat16": (lambda: LSTM(3, 5)(X.bfloat16()), TypeError, r"input: .* got torch.bfloat16; convert with \.float"),
    "moved": (lambda: LSTM(3, 5).bfloat16()(X), TypeError, "weights: .* got torch.bfloat16"),
    "meta": (lambda: LSTM(3, 5)(X.to("meta")), TypeError, "input: .* got device meta"),
    "another dtype": (lambda: LSTM(3, 5)(X.double()), TypeError, "input: expected dtype torch.float32"),
    "inputs": (lambda: LSTM(4, 5)(X), ValueError, r"input: expected shape \(T, B, I\) .* I = 4, got \(4, 2, 3\)"),
    "axes": (lambda: LSTM(3, 5, batch_first=True)(X[0, 0]), ValueError, r"input: expected shape \(B, T, I\)"),
    "packed": (lambda: LSTM(4, 5)(pack_padded_sequence(X, [4, 2])), ValueError, r"data of shape \(N, 4\)"),
    "an array": (lambda: LSTM(3, 5)(X.numpy()), TypeError, "^input: expected a tensor or a Packed.*, got ndarray"),
    "nothing": (lambda: LSTM(3, 5)(None), TypeError, "^input: expected a tensor or a PackedSequence, got NoneType"),
    "one state": (lambda: LSTM(3, 5)(X, S), TypeError, "hx: expected a tuple of 2 tensors"),
    "two states": (lambda: fastrnn.torch.GRU(3, 5)(X, (S, S)), TypeError, "hx: expected a tensor, got tuple"),
    "shape": (lambda: LSTM(3, 5)(X, (S, S[:, :1])), ValueError, r"hx: expected shape \(1, 2, 5\), got \(1, 1, 5\)"),
    "state's dtype": (lambda: LSTM(3, 5)(X, (S, S.double())), TypeError, "hx: expected dtype torch.float32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    call, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        call()


def packed_by_hand(**fields: Any) -> PackedSequence:
    """Sequences of lengths 2, 4 and 3, with some of the fields in another's place: PyTorch checks none of them."""
    return PackedSequence._make((PACKED._asdict() | fields).values())


PACKED = pack_sequence([torch.ones(n, 3) for n in (2, 4, 3)], enforce_sorted=False)  # batch_sizes [3, 3, 2, 1]
INDEX = torch.tensor

MALFORMED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no sequence at a step": ({"batch_sizes": INDEX([3, 0, 6])}, ValueError, r"^batch_sizes: .* got \[3, 0, 6\]"),
    "none at the end": ({"batch_sizes": INDEX([3, 3, 3, 0])}, ValueError, "^batch_sizes: expected positive"),
    "rising": ({"batch_sizes": INDEX([1, 2, 3, 3])}, ValueError, "^batch_sizes: .* never increase"),
    "rising within": ({"batch_sizes": INDEX([3, 2, 3, 1])}, ValueError, "^batch_sizes: .* never increase"),
    "negative": ({"batch_sizes": INDEX([6, 5, -2])}, ValueError, "^batch_sizes: expected positive"),
    "negative first": ({"batch_sizes": INDEX([-1, 10])}, ValueError, "^batch_sizes: expected positive"),
    "more than the rows": ({"batch_sizes": INDEX([3, 3, 3, 1])}, ValueError, "^batch_sizes: .* the sum 9"),
    "fewer than the rows": ({"batch_sizes": INDEX([3, 3, 2])}, ValueError, "^batch_sizes: .* the sum 9"),
    "a sum that overflows": ({"batch_sizes": INDEX([2**62] * 4 + [9])}, ValueError, "^batch_sizes: .* the sum 9"),
    "no steps": ({"batch_sizes": INDEX([], dtype=torch.int64)}, ValueError, r"^batch_sizes: .* got \[\]"),
    "int32": ({"batch_sizes": PACKED.batch_sizes.int()}, TypeError, "^batch_sizes: expected .*int64.* got torch.int32"),
    "floats": ({"batch_sizes": PACKED.batch_sizes.double()}, TypeError, "^batch_sizes: .* got torch.float64"),
    "two axes": ({"batch_sizes": PACKED.batch_sizes[None]}, TypeError, r"^batch_sizes: .* 1-D .* \(1, 4\)"),
    "no axis": ({"batch_sizes": INDEX(9)}, TypeError, r"^batch_sizes: .* of shape \(\)"),
    "sizes elsewhere": ({"batch_sizes": PACKED.batch_sizes.to("meta")}, TypeError, "^batch_sizes: .* on meta"),
    "a list": ({"batch_sizes": [3, 3, 2, 1]}, TypeError, "^batch_sizes: .* got list"),
    "no sizes": ({"batch_sizes": None}, TypeError, "^batch_sizes: .* got NoneType"),
    "no data": ({"data": None}, TypeError, "^data: expected a tensor, got NoneType"),
    "an array": ({"data": PACKED.data.numpy()}, TypeError, "^data: expected a tensor, got ndarray"),
    "whole numbers": ({"data": PACKED.data.long()}, TypeError, "^data: expected .* got torch.int64"),
    "data elsewhere": ({"data": PACKED.data.to("meta")}, TypeError, "^data: expected .* got device meta"),
    "sparse data": ({"data": PACKED.data.to_sparse()}, TypeError, "^data: expected a dense tensor, got .*sparse_coo"),
    "data of one axis": ({"data": PACKED.data[:, 0]}, ValueError, r"^input: expected data .* got \(9,\)"),
    "a number": ({"data": torch.tensor(1.0)}, ValueError, r"^input: expected data of shape \(N, 3\), got \(\)"),
    "data of three axes": ({"data": PACKED.data[:, None]}, ValueError, r"^input: expected data .* got \(9, 1, 3\)"),
    "one row less": ({"data": PACKED.data[:-1]}, ValueError, "^batch_sizes: .* the sum 8"),
    "no rows": ({"data": PACKED.data[:0]}, ValueError, "^batch_sizes: .* the sum 0"),
    "far outside": ({"sorted_indices": INDEX([1, 2, 10**12])}, ValueError, "^sorted_indices: expected each of 0 to 2"),
    "from the end": ({"sorted_indices": INDEX([1, 2, -3])}, ValueError, "^sorted_indices: expected each of 0 to 2"),
    "twice": ({"sorted_indices": INDEX([1, 2, 2])}, ValueError, r"^sorted_indices: .* once, got \[1, 2, 2\]"),
    "too short": ({"sorted_indices": INDEX([1, 0])}, ValueError, "^sorted_indices: expected each of 0 to 2"),
    "too long": ({"unsorted_indices": INDEX([2, 0, 1, 3])}, ValueError, "^unsorted_indices: expected each of 0 to 2"),
    "outside": ({"unsorted_indices": INDEX([2, 0, 3])}, ValueError, "^unsorted_indices: expected each of 0 to 2"),
    "back from the end": ({"unsorted_indices": INDEX([-1, 0, 1])}, ValueError, "^unsorted_indices: .* 0 to 2 once"),
    "alone": ({"sorted_indices": None, "unsorted_indices": INDEX([0, 0, 1])}, ValueError, "^unsorted_indices: .* once"),
    "no inverse": ({"unsorted_indices": INDEX([0, 1, 2])}, ValueError, "^unsorted_indices: expected the inverse of"),
    "float indices": ({"sorted_indices": INDEX([1.0, 2.0, 0.0])}, TypeError, "^sorted_indices: .* got torch.float32"),
    "indices elsewhere": ({"unsorted_indices": INDEX([2, 0, 1]).to("meta")}, TypeError, "^unsorted_indices: .* meta"),
    "listed indices": ({"sorted_indices": [1, 2, 0]}, TypeError, "^sorted_indices: .* got list"),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("grad", [True, False])
def test_malformed_packed_sequences(what: str, grad: bool) -> None:
    fields, error, message = MALFORMED[what]
    for module in (LSTM(3, 5), fastrnn.torch.GRU(3, 5, 2, dropout=0.5, bidirectional=True)):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
            module(packed_by_hand(**fields))


def test_malformed_packed_sequences_in_transforms_and_compiled() -> None:
    module = LSTM(3, 5)

    def run(data: Any) -> Any:
        return module(packed_by_hand(data=data, batch_sizes=INDEX([3, 0, 6])))[0].data.sum()

    for call in (torch.func.grad(run), torch.compile(run, backend="eager")):
        with pytest.raises(ValueError, match=r"^batch_sizes: expected"):
            call(PACKED.data)


def test_compiled_for_batches_of_any_lengths() -> None:
    """Of two batches the compiler learns that lengths differ; from then on it compiles nothing for another."""
    module, counted = LSTM(3, 5), torch._dynamo.utils.counters["stats"]
    compiled, graphs = torch.compile(lambda packed: module(packed)[0].data, backend="eager"), []
    for T in range(4, 16):
        packed = pack_sequence([torch.randn(n, 3) for n in (2, T, T - 1)], enforce_sorted=False)
        with torch.no_grad():
            assert torch.equal(compiled(packed), module(packed)[0].data)
        graphs.append(counted["unique_graphs"])
    assert graphs[1] == graphs[-1]


@pytest.mark.parametrize("B", [2, 4])
def test_states_of_another_batch_than_the_packed(B: int) -> None:
    """They are looked at before they are put in the order of the sequences, which would take three of four."""
    with pytest.raises(ValueError, match=rf"^hx: expected shape \(1, 3, 5\), got \(1, {B}, 5\)"):
        LSTM(3, 5)(PACKED, (torch.ones(1, B, 5), torch.ones(1, B, 5)))


def test_packed_sequences_in_odd_memory() -> None:
    """Strides, unlike numbers, may be anything; and either order may be absent."""
    module = fastrnn.torch.GRU(3, 5)
    strided = {name: None if a is None else torch.stack([a, a - 9], 1)[:, 0] for name, a in PACKED._asdict().items()}
    y, h = module(PACKED)
    again, h_again = module(packed_by_hand(**strided))
    assert torch.equal(again.data, y.data)
    assert torch.equal(h_again, h)
    assert torch.equal(module(packed_by_hand(sorted_indices=None))[1], h)
    assert torch.equal(module(packed_by_hand(sorted_indices=None, unsorted_indices=None))[1][:, [2, 0, 1]], h)


def test_autocast_is_told_what_to_do() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"torch\.autocast"):
        LSTM(3, 5)(nn.Linear(3, 3)(X))


def test_autocast_leaves_float32() -> None:
    module = LSTM(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(X)[0]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(X)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_and_scripted(tmp_path: Any) -> None:
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


def test_nothing_leaks() -> None:
    """A training step leaves no tensor behind, also where its graph is thrown away."""
    import gc

    module = fastrnn.torch.LSTM(3, 5, 2)

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor | np.ndarray) for o in gc.get_objects())

    def steps() -> None:
        for _ in range(3):
            module(X)[0].sum().backward()
            module(X)

    steps()
    before = alive()
    steps()
    assert alive() == before


def test_fastrnn_alone_imports_no_torch(python: Callable[..., Any]) -> None:
    done = python("-c", "import sys, fastrnn; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
    done = python("-c", "import sys; sys.modules['torch'] = None; import fastrnn.torch")
    assert "torch is not installed; pip install 'fastrnn[torch]' brings it" in done.stderr


@pytest.mark.parametrize("module", [modules, replacing])
def test_docstrings(module: Any) -> None:
    failed, attempted = doctest.testmod(module)
    assert (attempted > 0, failed) == (True, 0)
