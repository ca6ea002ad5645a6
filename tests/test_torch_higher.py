"""Derivatives that `fastrnn.torch` computes from equations: second gradients, forward mode, torch.func."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from support import own_cells

torch = pytest.importorskip("torch")

from support.torch_modules import assert_equal, flat, slow  # noqa: E402
from torch import nn  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402

pytestmark = slow

#: Modules of input size 3 and hidden size 4: class, and options.
MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 2}),
    "peephole": ("LSTM", {"peephole": True}),
    "GRU": ("GRU", {}),
    "GRU before": ("GRU", {"reset_after": False}),
    "RNN": ("RNN", {}),
    "own": ("Recurrent", {"cell": own_cells.coupled_peephole_lstm}),
    "four states": ("Recurrent", {"cell": own_cells.slstm}),
}

every = pytest.mark.parametrize("kind", MODULES)


def made(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    name, chosen = MODULES[kind]
    return getattr(fastrnn.torch, name)(input_size=3, hidden_size=4, dtype=torch.float64, **chosen, **options)


def peers(kind: str = "LSTM", **options: Any) -> tuple[Any, Any]:
    """Return fastrnn's module and torch.nn's, with the same weights."""
    ours, (name, chosen) = made(kind, **options), MODULES[kind]
    theirs = getattr(nn, name)(3, 4, dtype=torch.float64, **chosen, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def inputs(*shape: int) -> Any:
    torch.manual_seed(1)
    return torch.randn(*(shape or (5, 2, 3)), dtype=torch.float64)


def loss(module: Any) -> Callable[..., Any]:
    """Return a loss of y and every final state, nonlinear in all."""
    return lambda *given: sum((a + 0.5).pow(3).sum() for a in flat(module(*given)))


def of_weights(module: Any) -> tuple[Callable[..., Any], list[Any]]:
    """Return the outputs as a function of x and the weights, and its arguments."""
    names = [name for name, _ in module.named_parameters()]

    def run(x: Any, *weights: Any) -> Any:
        return tuple(flat(torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))))

    return run, list(module.parameters())


STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "batch first": {"num_layers": 2, "batch_first": True, "bias": False},
}

stacks = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())


@every
def test_gradients_of_gradients(kind: str) -> None:
    """Finite differences of first gradients, for x, every weight and the incoming gradients."""
    run, weights = of_weights(made(kind, num_layers=2, bidirectional=True))
    x = inputs(3, 2, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(run, (x, *weights), fast_mode=True)


@every
def test_forward_mode(kind: str) -> None:
    """Finite differences, and the product of reverse mode's Jacobian."""
    run, weights = of_weights(made(kind))
    x = inputs(3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True, check_forward_ad=True)


@stacks
@pytest.mark.parametrize("kind", ["LSTM", "projected", "GRU", "RNN"])
def test_second_and_third_gradients(kind: str, options: dict[str, Any]) -> None:
    """A penalty on gradients, and one on its gradients, compared with torch.nn."""
    found = []
    for module in peers(kind, **options):
        x = inputs().requires_grad_()
        value = loss(module)(x)
        leaves = [x, *module.parameters()]
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            found.append([g.detach() for g in grads])
            value = sum(g.square().sum() for g in grads)
    for got, expected in zip(found[:3], found[3:], strict=True):
        assert_equal(got, expected)


def test_create_graph_does_not_change_first_gradients() -> None:
    """They are the kernels', bit for bit, and no slow code has run."""
    module = made("LSTM", num_layers=2)
    leaves = list(module.parameters())
    plain, kept = (torch.autograd.grad(loss(module)(inputs()), leaves, create_graph=c) for c in (False, True))
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(plain, kept, strict=True))


def test_second_gradient_where_inputs_depend_on_each_other() -> None:
    """The same weights in two calls, one of which reads the other's result."""
    found = []
    for module in peers(num_layers=1):
        x = inputs(5, 2, 3).requires_grad_()
        value = loss(module)(module(x)[0][..., :3])
        (dW,) = torch.autograd.grad(value, module.weight_ih_l0, create_graph=True)
        found.append(torch.autograd.grad(dW.square().sum(), [x, *module.parameters()]))
    assert_equal(*found)


def test_second_gradient_with_states_and_lengths() -> None:
    found = []
    for module in peers("GRU", num_layers=2, bidirectional=True):
        x, h = inputs(5, 3, 3).requires_grad_(), inputs(4, 3, 4).requires_grad_()
        packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
        first = torch.autograd.grad(loss(module)(packed, h), [x, h], create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, h, *module.parameters()]))
    assert_equal(*found)


@pytest.mark.parametrize("output", range(3))
@pytest.mark.parametrize("kind", ["LSTM", "projected"])
def test_second_gradients_of_one_output(kind: str, output: int) -> None:
    """y or a final state alone: zeros stand for the gradients of the others."""
    found = []
    for module in peers(kind, num_layers=2, bidirectional=True):
        leaves = list(module.parameters())
        first = torch.autograd.grad(flat(module(inputs()))[output].pow(3).sum(), leaves, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    assert_equal(*found)


@pytest.mark.parametrize("kind", ["LSTM", "projected"])
def test_second_gradient_with_dropout(kind: str) -> None:
    found = []
    for module in peers(kind, num_layers=3, dropout=0.5):
        x = inputs().requires_grad_()
        torch.manual_seed(2)
        (dx,) = torch.autograd.grad(loss(module)(x), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [x, *module.parameters()]))
    assert_equal(*found)


@stacks
def test_transforms(options: dict[str, Any]) -> None:
    """grad, vjp, jvp, jacrev, jacfwd, hessian and a product with a Hessian, compared with torch.nn."""
    ours, theirs = map(loss, peers(**options))
    x, v = inputs(2, 2, 3), inputs(2, 2, 3) + 1

    def product(f: Any) -> Any:
        return torch.func.jvp(torch.func.grad(f), (x,), (v,))

    for transform in ("grad", "jacrev", "jacfwd", "hessian"):
        got = getattr(torch.func, transform)(ours)(x)
        assert_equal(got, getattr(torch.func, "jacrev" if transform == "jacfwd" else transform)(theirs)(x))
    assert_equal(torch.func.vjp(ours, x)[1](torch.tensor(2.0).double()), (2 * torch.func.grad(theirs)(x),))
    assert_equal(torch.func.jvp(ours, (x,), (v,)), torch.func.jvp(theirs, (x,), (v,)))
    assert_equal(product(ours), product(theirs))


@every
def test_values_and_gradients_are_the_kernels(kind: str) -> None:
    module = made(kind, num_layers=2, bidirectional=True)
    run, weights = of_weights(module)
    got, pull = torch.func.vjp(run, inputs(), *weights)
    x = inputs().requires_grad_()
    expected = run(x, *weights)
    assert_equal(got, expected)
    grads = torch.autograd.grad([a.square().sum() for a in expected], [x, *weights])
    assert_equal(pull(tuple(2 * a for a in got)), grads)


@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_over_inputs(dim: int) -> None:
    """Along any dimension."""
    module, x = made("LSTM", num_layers=2, bidirectional=True), inputs(3, 5, 2, 3)
    with torch.no_grad():
        each = [module(a) for a in x.unbind(dim)]
        y, (h, c) = torch.func.vmap(module, in_dims=dim)(x)
    assert_equal(y, torch.stack([y for y, _ in each]))
    assert_equal(h, torch.stack([h for _, (h, _) in each]))
    assert_equal(c, torch.stack([c for _, (_, c) in each]))


def test_gradients_of_each_sequence() -> None:
    module = made("GRU")
    weights, x = dict(module.named_parameters()), inputs(5, 4, 3)

    def one(weights: Any, x: Any) -> Any:
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    got = torch.func.vmap(torch.func.grad(one), in_dims=(None, 1))(weights, x)
    for i in range(4):
        expected = torch.autograd.grad(one(weights, x[:, i]), list(weights.values()))
        assert_equal([g[i] for g in got.values()], list(expected))


@every
def test_vmap_over_weights(kind: str) -> None:
    """An ensemble, as in the documentation of torch.func."""
    name, chosen = MODULES[kind]
    ensemble = [getattr(fastrnn.torch, name)(input_size=3, hidden_size=4, dtype=torch.float64, **chosen) for _ in "abc"]
    parameters, buffers = torch.func.stack_module_state(ensemble)
    base, x = copy.deepcopy(ensemble[0]).to("meta"), inputs()

    def run(parameters: Any, buffers: Any) -> Any:
        return torch.func.functional_call(base, (parameters, buffers), (x,))[0]

    assert_equal(torch.func.vmap(run)(parameters, buffers), torch.stack([module(x)[0] for module in ensemble]))


def test_vmap_over_no_step() -> None:
    y, _ = torch.func.vmap(made("LSTM"))(inputs(3, 0, 2, 3))
    assert y.shape == (3, 0, 2, 4)


def test_vmap_with_dropout() -> None:
    """Different masks for each, if requested."""
    module, x = made("LSTM", num_layers=2, dropout=0.5), inputs().expand(3, 5, 2, 3)
    y, _ = torch.func.vmap(module, randomness="different")(x)
    assert not torch.equal(y[0], y[1])
    y, _ = torch.func.vmap(module, randomness="same")(x)
    assert_equal(y[0], y[1])


def test_packed_sequences() -> None:
    """Forward mode and transforms of their data, which PyTorch's own packing does not support."""
    module = made("LSTM", num_layers=2, bidirectional=True)
    packed = pack_padded_sequence(inputs(5, 3, 3), torch.tensor([2, 5, 3]), enforce_sorted=False)

    def run(data: Any) -> Any:
        return loss(module)(packed._replace(data=data))

    data = packed.data.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(data), data)
    assert_equal(torch.func.grad(run)(packed.data), grad)
    assert_equal(torch.func.jvp(run, (packed.data,), (grad,))[1], grad.square().sum())
    assert_equal(torch.func.vmap(run)(torch.stack([packed.data, 2 * packed.data]))[0], run(packed.data))


def test_dual_numbers_propagate() -> None:
    """A tangent of the input, the state, a weight or a gradient propagates; without one the kernels run."""
    module, x, h = made("GRU"), inputs(), inputs(1, 2, 4)
    plain = module(x, h)[0]
    with forward_ad.dual_level():
        assert torch.equal(module(x, h)[0], plain)
        for given in ((x, h), (h, x)):
            a, other = given
            dual = forward_ad.make_dual(a, torch.ones_like(a))
            y, _ = module(dual, other) if a is x else module(other, dual)
            assert forward_ad.unpack_dual(y).tangent.any()
            assert_equal(forward_ad.unpack_dual(y).primal, plain)
    leaf = x.clone().requires_grad_()
    y, _ = module(leaf, h)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
        (dx,) = torch.autograd.grad(y, leaf, dual)
        primal, tangent = forward_ad.unpack_dual(dx)
        assert_equal(tangent, primal)  # a gradient is linear in the incoming gradient


def test_batched_gradients() -> None:
    """`is_grads_batched`: the kernels compute the gradients one by one; differentiable, too."""
    several, found = torch.stack([inputs(5, 2, 8), inputs(5, 2, 8) ** 2, -inputs(5, 2, 8)]), []
    ours, theirs = peers(num_layers=2, bidirectional=True)
    for module, batched in ((ours, True), (theirs, False)):
        x = inputs().requires_grad_()
        y, leaves = module(x)[0], [x, *module.parameters()]
        if batched:
            first = torch.autograd.grad(y, leaves, several, is_grads_batched=True, create_graph=True)
        else:
            each = [torch.autograd.grad(y, leaves, dy, create_graph=True) for dy in several]
            first = [torch.stack(parts) for parts in zip(*each, strict=True)]
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([*[g.detach() for g in first], *second])
    assert_equal(*found)


@pytest.mark.parametrize("kind", ["GRU", "projected"])
def test_batched_gradients_alone(kind: str) -> None:
    """Without `create_graph`, for some outputs only, they are the kernels', bit for bit."""
    module, x = made(kind, num_layers=2), inputs().requires_grad_()
    _, *final = flat(module(x))
    h = final[-1]
    leaves, several = [x, *module.parameters()], inputs(3, *h.shape)
    got = torch.autograd.grad(h, leaves, several, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(h, leaves, dh, retain_graph=True) for dh in several]
    assert all(torch.equal(a, torch.stack(parts)) for a, parts in zip(got, zip(*each, strict=True), strict=True))


@pytest.mark.parametrize("what", ["jacobian", "hessian"])
def test_vectorized(what: str) -> None:
    """`torch.autograd.functional`, compared with torch.nn's without vectorize."""
    ours, theirs = (lambda x, m=m: loss(m)(x) if what == "hessian" else m(x)[0] for m in peers(num_layers=2))
    compute = getattr(torch.autograd.functional, what)
    assert_equal(compute(ours, inputs(3, 2, 3), vectorize=True), compute(theirs, inputs(3, 2, 3)))


def test_batched_gradients_of_the_operator() -> None:
    """As in the graph of a compiled module."""
    module, x = made("LSTM"), inputs().requires_grad_()
    given = fastrnn.torch.stack.Given(x, [], list(module.parameters()))
    setting = fastrnn.torch.stack.Setting("lstm", True, False, False)
    y = fastrnn.torch.ops.recurrence(*given.arguments, True, *setting)[0]
    several = inputs(3, 5, 2, 4)
    (got,) = torch.autograd.grad(y, x, several, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in several]
    assert torch.equal(got, torch.stack(expected))


def test_compiled_transforms() -> None:
    module, x = made("LSTM"), inputs()
    expected = torch.func.grad(loss(module))(x)
    assert_equal(torch.compile(torch.func.grad(loss(module)), backend="aot_eager")(x), expected)
    torch.compiler.reset()  # otherwise untraceable code here is skipped in other tests, too


def test_it_says_so_once(python: Callable[..., Any]) -> None:
    """For each reason; and not for a first gradient alone."""
    code = """
import warnings, torch, fastrnn.torch
module, x = fastrnn.torch.LSTM(3, 4), torch.ones(5, 2, 3, requires_grad=True)
def told(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in found if w.category is RuntimeWarning]
def loss(x):
    return module(x)[0].square().sum()
def twice():
    (dx,) = torch.autograd.grad(loss(x), x, create_graph=True)
    dx.sum().backward()
def dual():
    with torch.autograd.forward_ad.dual_level():
        module(torch.autograd.forward_ad.make_dual(x, x))
assert not told(lambda: torch.autograd.grad(loss(x), x, create_graph=True))
for call in (twice, dual, lambda: torch.func.grad(loss)(x), lambda: torch.func.vmap(loss)(x[None])):
    print(*told(call), sep=", ")
    assert not told(call)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    slow = "are computed by the cell's equations, step by step, which is slow"
    reasons = "gradients of gradients", "forward-mode derivatives", "torch.func's transforms (grad, vmap, jvp, ...)"
    assert done.stdout.splitlines() == [*[f"fastrnn.torch: {reason} {slow}" for reason in reasons], ""]
