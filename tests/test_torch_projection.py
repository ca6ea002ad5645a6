"""`fastrnn.torch` with proj_size, compared with `torch.nn.LSTM` in float64 for every kind of call."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_close, assert_rounded, assert_same_bits

import fastrnn

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402
from fastrnn.torch import ops  # noqa: E402
from fastrnn.torch.stack import Given  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:fastrnn.torch. .*, which is slow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),  # from forward_ad
]

T, B, I, H, P = 5, 4, 3, 7, 4

STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "stack": {"num_layers": 3, "bias": False},
    "both ways": {"num_layers": 2, "bidirectional": True},
    "batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "dropout": {"num_layers": 3, "bidirectional": True, "dropout": 0.5},
}

stacks = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())


def peers(dtype: Any = torch.float64, **options: Any) -> tuple[Any, Any]:
    """Return torch.nn's module and fastrnn's, made from the same seed."""
    made = []
    for package in (nn, fastrnn.torch):
        torch.manual_seed(0)
        made.append(package.LSTM(I, H, proj_size=P, dtype=dtype, **options))
    return made[0], made[1]


def drawn(seed: int, *shape: int) -> Any:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def inputs(module: Any) -> tuple[Any, tuple[Any, Any]]:
    """Return x and the initial states for a module's options."""
    calls = module.num_layers * (1 + module.bidirectional)
    x = drawn(1, B, T, I) if module.batch_first else drawn(1, T, B, I)
    return x, (drawn(2, calls, B, P), drawn(3, calls, B, H))


def flat(result: Any) -> list[Any]:
    """Return y, which may be packed, and each final state."""
    y, final = result
    return [y.data if isinstance(y, PackedSequence) else y, *final]


def everything(module: Any, *given: Any, lengths: Any = None, **options: Any) -> dict[str, np.ndarray]:
    """Return outputs and every gradient by name; dropout uses a seed."""
    first, states = given if given else inputs(module)
    leaves = {name: a.clone().requires_grad_() for name, a in zip(("x", "h0", "c0"), (first, *states), strict=True)}
    x, h0, c0 = leaves.values()
    if lengths is not None:
        x = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False)
    torch.manual_seed(4)
    outputs = flat(module(x, (h0, c0), **options))
    leaves |= dict(module.named_parameters())
    cotangents = [drawn(5 + i, *a.shape) for i, a in enumerate(outputs)]
    cotangents = [d.to(a.dtype) for d, a in zip(cotangents, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    found = dict(zip(("y", "h_n", "c_n"), outputs, strict=True))
    found |= {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: a.detach().numpy() for name, a in found.items()}


@stacks
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 5, 1, 3])], ids=["whole", "packed"])
def test_equals_torch(options: dict[str, Any], lengths: Any, backend: str) -> None:
    theirs, ours = peers(**options)
    assert_close(everything(ours, lengths=lengths), everything(theirs, lengths=lengths))
    x, states = inputs(ours)
    ours.eval()
    expected, _ = theirs.eval()(x, states)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(ours(x, states)[0], expected, rtol=1e-9, atol=1e-12)


def test_one_sequence_and_no_state() -> None:
    theirs, ours = peers(num_layers=2)
    x, (h, c) = inputs(ours)
    for given in ((x,), (x[:, 0],), (x[:, 0], (h[:, 0], c[:, 0]))):
        for got, expected in zip(flat(ours(*given)), flat(theirs(*given)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_float32() -> None:
    theirs, ours = peers(num_layers=2, bidirectional=True)
    single = ours.float()
    theirs.load_state_dict(single.state_dict())
    x, states = inputs(ours)
    given = x.float(), tuple([s.float() for s in states])
    got = everything(single, *given)
    assert {a.dtype for a in got.values()} == {np.dtype(np.float32)}
    wide = given[0].double(), tuple([s.double() for s in given[1]])
    exact = everything(theirs, *wide)
    assert_rounded(got, exact, lambda: everything(ours.double(), *wide))


def test_equals_the_layer() -> None:
    """Outputs and gradients have the bits of `fastrnn.LSTM`, with resets."""
    _, module = peers(num_layers=2, bidirectional=True)
    layer = fastrnn.LSTM(I, H, 2, proj_size=P, bidirectional=True, dtype=np.float64)
    layer.load_state_dict(module.state_dict())
    resets = torch.rand(T, B, generator=torch.manual_seed(0)) < 0.4
    assert resets.any()
    got, (x, states) = everything(module, resets=resets), inputs(module)
    out = layer.forward(x, state=states, resets=resets, training=True)
    dy, *dstate = [drawn(5 + i, *a.shape) for i, a in enumerate((out.y, *out.state))]
    back = layer.backward(dy, out.cache, dstate=tuple(dstate))
    expected = {"y": out.y, "h_n": out.state[0], "c_n": out.state[1]}
    expected |= {"dx": back.dx, "dh0": back.dstate[0], "dc0": back.dstate[1]}
    assert_same_bits(got, expected | {f"d{name}": g for name, g in back.grads.items()})


def arguments(**options: Any) -> tuple[Any, ...]:
    """Return arguments of the operator, all of which require gradients."""
    module = peers(**options)[1]
    x, states = inputs(module)
    masks = [2 * torch.rand(T, B, P * (1 + module.bidirectional)).double()] * (module.num_layers - 1)
    given = Given(x.requires_grad_(), [s.requires_grad_() for s in states], list(module.parameters()), masks=masks)
    return *given.arguments, True, *ops.Setting("lstm", module.bias, module.bidirectional, module.batch_first, True)


@stacks
def test_opcheck(options: dict[str, Any]) -> None:
    """Including the shapes that the operators predict without running."""
    given, _, setting = ops.taken(arguments(**options))
    torch.library.opcheck(ops.recurrence, (*given.arguments, True, *setting))
    with torch.no_grad():
        torch.library.opcheck(ops.recurrence, (*given.arguments, False, *setting))
        y, h, c, *kept = ops.recurrence(*given.arguments, True, *setting)
        torch.library.opcheck(ops.recurrence_backward, (*given.arguments, kept, y, [h, c], *setting))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # from the compiler
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 5, 1, 3])], ids=["whole", "packed"])
def test_compiled(lengths: Any) -> None:
    """In one graph, in training and inference, and for another number of steps."""
    torch.compiler.reset()
    _, module = peers(num_layers=2, bidirectional=True)
    compiled = torch.compile(module, fullgraph=lengths is None, dynamic=True, backend="aot_eager")
    x, states = inputs(module)
    for steps in (T, T + 2) if lengths is None else (T,):
        given = torch.cat([x, x])[:steps], states
        found = []
        for call in (compiled, module):
            call.train()
            found.append(everything(call, *given, lengths=lengths))
        assert_same_bits(*[{name.replace("_orig_mod.", ""): a for name, a in f.items()} for f in found])
        with torch.no_grad():
            assert torch.equal(compiled(*given)[0], module(*given)[0])
    torch.compiler.reset()


@stacks
def test_second_gradients(options: dict[str, Any]) -> None:
    """A penalty on gradients, compared with torch.nn."""
    found = []
    for module in peers(**options):
        x, states = inputs(module)
        leaves = [x.requires_grad_(), *[s.requires_grad_() for s in states], *module.parameters()]
        torch.manual_seed(4)
        value = sum((a + 0.5).pow(3).sum() for a in flat(module(x, states)))
        first = torch.autograd.grad(value, leaves, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("output", range(3))
def test_second_gradients_of_one_output(output: int) -> None:
    """y or a final state; the gradients of the others are zeros."""
    found = []
    for module in peers(num_layers=2, bidirectional=True):
        leaves = list(module.parameters())
        first = torch.autograd.grad(flat(module(*inputs(module)))[output].pow(3).sum(), leaves, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_derivatives_by_equations() -> None:
    """Forward mode and second gradients by finite differences, with resets and lengths; vmap of inputs."""
    _, module = peers(num_layers=2, bidirectional=True)
    x, states = inputs(module)
    names = list(dict(module.named_parameters()))
    resets = torch.rand(T, B, generator=torch.manual_seed(0)) < 0.4
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 1, 3]), enforce_sorted=False)

    def run(data: Any, h: Any, c: Any, *weights: Any) -> Any:
        named = dict(zip(names, weights, strict=True))
        given = packed._replace(data=data), (h, c)
        return tuple(flat(torch.func.functional_call(module, named, given, {"resets": resets})))

    leaves = [a.clone().requires_grad_() for a in (packed.data, *states)] + list(module.parameters())
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
    several = drawn(9, 3, T, B, I)
    got = torch.func.vmap(lambda x: module(x, states)[0])(several)
    torch.testing.assert_close(got, torch.stack([module(x, states)[0] for x in several]), rtol=1e-9, atol=1e-12)


def test_batched_gradients() -> None:
    """The kernels', bit for bit, and those of a final state alone."""
    _, module = peers()
    x, states = inputs(module)
    leaves = list(module.parameters())
    for output in flat(module(x, states)):
        several = drawn(9, 2, *output.shape)
        got = torch.autograd.grad(output, leaves, several, is_grads_batched=True, retain_graph=True)
        each = [torch.autograd.grad(output, leaves, d, retain_graph=True) for d in several]
        assert all(torch.equal(a, torch.stack(parts)) for a, parts in zip(got, zip(*each, strict=True), strict=True))


def test_attributes() -> None:
    theirs, ours = peers(num_layers=2, bidirectional=True)
    assert repr(ours) == repr(theirs) == "LSTM(3, 7, proj_size=4, num_layers=2, bidirectional=True)"
    shapes = {name: tuple(a.shape) for name, a in theirs.state_dict().items()}
    assert {name: tuple(a.shape) for name, a in ours.state_dict().items()} == shapes
    assert (shapes["weight_hr_l0"], shapes["weight_hh_l1_reverse"]) == ((P, H), (4 * H, P))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    nn.init.ones_(theirs.weight_hr_l0)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert ours.weight_hr_l0.eq(1).all()


def test_copies() -> None:
    _, module = peers(num_layers=2, bidirectional=True)
    x, states = inputs(module)
    with torch.no_grad():
        y, _ = module(x, states)
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
        for other in copies:
            assert torch.equal(other(x, states)[0], y)
            other.weight_hr_l1.zero_()
            assert not other(x, states)[0][..., :P].any()
        assert torch.equal(module(x, states)[0], y)


def test_replace() -> None:
    """Also back into a NumPy layer."""
    model, _ = peers(num_layers=2, bidirectional=True)
    expected = everything(model)
    assert str(fastrnn.torch.replace(model)).startswith("(the model): fastrnn.torch.LSTM(3, 7, proj_size=4")
    assert type(model) is fastrnn.torch.LSTM
    assert_close(everything(model), expected)
    layer = fastrnn.from_torch(model)
    assert (layer.proj_size, layer.hidden_size) == (P, H)
    x, states = inputs(model)
    with torch.no_grad():
        expected = {"y": layer(x.numpy(), tuple([s.numpy() for s in states]))[0]}
        assert_same_bits({"y": model(x, states)[0].numpy()}, expected)


def test_peepholes() -> None:
    """Those of the cell state have H units."""
    torch.manual_seed(0)
    module = fastrnn.torch.LSTM(I, H, proj_size=P, peephole=True, dtype=torch.float64)
    assert list(dict(module.named_parameters()))[-2:] == ["weight_hr_l0", "peephole_l0"]
    layer = fastrnn.from_torch(module)
    out = layer.forward(inputs(module)[0], state=inputs(module)[1], training=True)
    got = everything(module)
    assert_same_bits({"y": got["y"]}, {"y": out.y})
    dy, *dstate = [drawn(5 + i, *a.shape) for i, a in enumerate((out.y, *out.state))]
    back = layer.backward(dy, out.cache, dstate=tuple(dstate))
    assert_same_bits({name: got[f"d{name}"] for name in back.grads}, back.grads)


def test_other_cells_with_a_projection() -> None:
    """Cells with one product of h equal the layer, by the kernels and by the equations; others raise an error."""
    torch.manual_seed(0)
    cell = fastrnn.catalogue.cifg_lstm_input
    module = fastrnn.torch.Recurrent(cell, I, H, 2, bidirectional=True, proj_size=P, dtype=torch.float64)
    layer = fastrnn.Recurrent(cell, I, H, 2, bidirectional=True, proj_size=P, dtype=np.float64)
    layer.load_state_dict(module.state_dict())
    x, states = inputs(module)
    out = layer.forward(x, state=states, training=True)
    got = everything(module)
    assert_same_bits({"y": got["y"], "c_n": got["c_n"]}, {"y": out.y, "c_n": out.state[1]})
    several = torch.func.vmap(lambda x: module(x, states)[0])(x[None])
    assert_close({"y": several[0].detach().numpy()}, {"y": out.y})
    with pytest.raises(ValueError, match=r"^proj_size: li_gru reads h outside a single product with U"):
        fastrnn.torch.Recurrent(fastrnn.catalogue.li_gru, I, H, proj_size=P)


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": fastrnn.torch.LSTM(2, 16, proj_size=6), "head": nn.Linear(6, 1)})
    optimizer, x = torch.optim.Adam(model.parameters(), 0.01), torch.randn(6, 64, 2)
    losses = []
    for _ in range(150):
        prediction = model["head"](model["lstm"](x)[0][-1])
        losses.append((prediction - x[0, :, :1]).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_unsupported_options_raise_an_error() -> None:
    for size, message in ((5, "smaller than hidden_size"), (-1, "positive integer or zero")):
        with pytest.raises(ValueError, match=f"proj_size .*{message}"):  # PyTorch's own
            fastrnn.torch.LSTM(3, 5, proj_size=size)
    for kind in (fastrnn.torch.GRU, fastrnn.torch.RNN):
        with pytest.raises(ValueError, match=r"^proj_size: expected 0 .only an LSTM has it, .*, got 2"):
            kind(3, 5, proj_size=2)
    module, x = fastrnn.torch.LSTM(3, 5, proj_size=2), torch.ones(4, 2, 3)
    h, c = torch.ones(1, 2, 2), torch.ones(1, 2, 5)
    with pytest.raises(ValueError, match=r"^hx: expected shape \(1, 2, 2\), got \(1, 2, 5\)"):
        module(x, (c, c))
    with pytest.raises(ValueError, match=r"^hx: expected shape \(1, 2, 5\), got \(1, 2, 2\)"):
        module(x, (h, h))
    by_position = nn.GRU(3, 5, 1, True, False, 0.0, False, 2)  # PyTorch accepts it but cannot call it
    assert str(fastrnn.torch.replace(by_position)) == "(the model): kept, proj_size=2 is only for an LSTM"
