"""`resets=` of `fastrnn.torch`'s modules, compared with a loop over PyTorch's cells: outputs and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.tolerance import assert_close, assert_same_bits

import fastrnn

torch = pytest.importorskip("torch")

from support.torch_modules import as_given, assert_equal, drawn, everything, of_layer, packing, slow  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402

T, B, I, H = 6, 4, 3, 5

#: module -> PyTorch's cell for one step
STEPS: dict[str, Callable[..., Any]] = {"LSTM": torch.lstm_cell, "GRU": torch.gru_cell, "RNN": torch.rnn_tanh_cell}


def some_resets(seed: int = 0, *shape: int) -> Any:
    """Return resets at a third of the steps, including the first of the second sequence."""
    found = torch.tensor(np.random.default_rng(seed).random(shape or (T, B)) < 0.3)
    if not shape:
        found[0, 1] = True
    return found


def by_cells(module: Any, x: Any, hx: Any, resets: Any, lengths: Any = None) -> tuple[Any, Any]:
    """Return a module's results from a loop over PyTorch's cells; x (T, B, I)."""
    step, weights, D = STEPS[type(module).__name__], module.all_weights, 1 + module.bidirectional
    initial, final = (hx if isinstance(hx, tuple) else (hx,)), []
    lengths = torch.full((x.shape[1],), len(x)) if lengths is None else lengths
    above: list[Any] = []
    for call, own in enumerate(weights):
        every: list[Any] = [None] * len(x)
        state = tuple([s[call] for s in initial])
        for t in reversed(range(len(x))) if call % D else range(len(x)):
            before = tuple([s * ~resets[t][:, None] for s in state])
            after = step(x[t], before if len(before) > 1 else before[0], *own)
            alive = (t < lengths)[:, None]
            after = after if isinstance(after, tuple) else (after,)
            state = tuple([torch.where(alive, a, s) for a, s in zip(after, state, strict=True)])
            every[t] = after[0] * alive
        final.append(state)
        above.append(torch.stack(every))
        if len(above) == D:
            x, above = torch.cat(above, 2), []
    return x, as_given([torch.stack(s) for s in zip(*final, strict=True)])


def made(kind: str, **options: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return a module in float64, x (T, B, I), and initial states."""
    torch.manual_seed(0)
    module = getattr(fastrnn.torch, kind)(I, H, dtype=torch.float64, **options)
    calls = module.num_layers * (1 + module.bidirectional)
    return module, drawn(1, T, B, I), tuple([drawn(2 + i, calls, B, H) for i in range(len(module._cell.states))])


STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "batch first": {"num_layers": 2, "batch_first": True},
}

stacks = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())
kinds = pytest.mark.parametrize("kind", STEPS)


@stacks
@kinds
def test_equals_a_loop_over_cells(kind: str, options: dict[str, Any]) -> None:
    module, x, states = made(kind, **options)
    resets = some_resets()

    def run(x: Any, hx: Any) -> Any:
        if not module.batch_first:
            return module(x, hx, resets=resets)
        y, final = module(x.transpose(0, 1), hx, resets=resets.t())
        return y.transpose(0, 1), final

    got = everything(module, x, states, run)
    assert_close(got, everything(module, x, states, lambda x, hx: by_cells(module, x, hx, resets)))
    none = everything(module, x, states, lambda x, hx: by_cells(module, x, hx, torch.zeros_like(resets)))
    assert not np.allclose(got["y"], none["y"])


@kinds
def test_packed_sequences(kind: str) -> None:
    """Resets are in the order before packing; those past the end have no effect."""
    module, x, states = made(kind, num_layers=2, bidirectional=True)
    lengths, resets = torch.tensor([3, T, 1, 4]), some_resets()
    expected = everything(module, x, states, lambda x, hx: by_cells(module, x, hx, resets, lengths))
    assert_close(everything(module, x, states, packing(module, lengths, resets=resets)), expected)


@kinds
def test_one_sequence(kind: str) -> None:
    module, x, states = made(kind, num_layers=2)
    resets, one = some_resets(), tuple([s[:, :1] for s in states])

    def run(x: Any, hx: Any) -> Any:
        state = tuple([s[:, 0] for s in hx]) if isinstance(hx, tuple) else hx[:, 0]
        y, final = module(x[:, 0], state, resets=resets[:, 0])
        return y[:, None], tuple([s[:, None] for s in final]) if isinstance(final, tuple) else final[:, None]

    expected = everything(module, x[:, :1], one, lambda x, hx: by_cells(module, x, hx, resets[:, :1]))
    assert_close(everything(module, x[:, :1], one, run), expected)


@pytest.mark.parametrize("reverse", [False, True])
@kinds
def test_a_reset_at_the_start(kind: str, reverse: bool) -> None:
    """Neither the initial state, even if infinite, nor a gradient crosses it."""
    module, x, states = made(kind, bidirectional=True)
    resets, first = torch.zeros(T, B, dtype=torch.bool), T - 1 if reverse else 0
    resets[first, 1] = True
    infinite = tuple([s.clone() for s in states])
    for s in infinite:
        s[int(reverse), 1] = torch.inf
    found = [everything(module, x, given, lambda x, hx: module(x, hx, resets=resets)) for given in (states, infinite)]
    assert_same_bits(*found)
    for i in range(len(states)):
        assert [bool(a.any()) for a in found[0][f"dstate {i}"][int(reverse)]] == [True, False, True, True]


@pytest.mark.parametrize("cell", [own_cells.coupled_peephole_lstm, own_cells.slstm], ids=lambda cell: cell.name)
def test_equals_the_layer(cell: Any) -> None:
    """Outputs and gradients of a user's cell in PyTorch have the bits of `fastrnn.Recurrent`."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    module = fastrnn.torch.Recurrent(cell, I, H, dtype=torch.float64, **options)
    layer = fastrnn.Recurrent(cell, I, H, dtype=np.float64, **options)
    layer.load_state_dict(module.state_dict())
    x, resets = drawn(1, T, B, I), some_resets()
    got = everything(module, x, [], lambda x, hx: module(x, resets=resets))
    assert_same_bits(got, of_layer(layer, x, [], resets=resets))


def test_inference() -> None:
    module, x, states = made("LSTM", num_layers=2)
    resets = some_resets()
    expected = module(x, states, resets=resets)[0]
    with torch.no_grad():
        assert torch.equal(module(x, states, resets=resets)[0], expected)
        assert torch.equal(module(x, states, resets=torch.zeros_like(resets))[0], module(x, states)[0])


def test_compiled() -> None:
    """In one graph, in training and inference, for any number of steps, with and without resets."""
    torch.compiler.reset()
    module, _, _ = made("GRU", num_layers=2, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps in (T, 4):
        for resets in (some_resets(1, T, steps), None):
            found = []
            for call in (compiled, module):
                y, h = call(drawn(1, T, steps, I), resets=resets)
                found.append([y, h, *torch.autograd.grad(y.square().sum() + h.sum(), list(module.parameters()))])
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.no_grad():
        given = drawn(1, B, T, I), some_resets(2, B, T)
        assert torch.equal(compiled(given[0], resets=given[1])[0], module(given[0], resets=given[1])[0])
    torch.compiler.reset()


@slow
@kinds
def test_derivatives_by_equations(kind: str) -> None:
    """Second gradients, forward mode, and vmap over resets."""
    module, x, _ = made(kind, num_layers=2, bidirectional=True)
    resets = some_resets()

    def run(x: Any, *weights: Any) -> Any:
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        return torch.func.functional_call(module, named, (x,), {"resets": resets})[0]

    leaves = (x[:, :2].clone().requires_grad_(), *module.parameters())
    resets = resets[:, :2]
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
    several = torch.stack([resets, ~resets])
    got = torch.func.vmap(lambda resets: module(leaves[0], resets=resets)[0])(several)
    expected = torch.stack([module(leaves[0], resets=r)[0] for r in several])
    assert_equal(got, expected)


@slow
def test_resets_past_the_end_by_equations() -> None:
    """They do not change the final state."""
    module, x, states = made("LSTM", bidirectional=True)
    resets, packed = some_resets(), pack_padded_sequence(x, [T, 4, 3, 1])
    resets[4:, 1:] = True

    def run(data: Any) -> Any:
        y, (h, c) = module(PackedSequence(data, packed.batch_sizes), states, resets=resets)
        return y.data, h, c

    got, _ = torch.func.jvp(run, (packed.data,), (packed.data,))
    assert_equal(got, run(packed.data))


def test_unsupported_options_raise_an_error() -> None:
    module, x, _ = made("GRU")
    for wrong in (some_resets().int(), some_resets().numpy(), some_resets().to("meta"), [True]):
        with pytest.raises(TypeError, match=r"^resets: expected a tensor of torch\.bool on the CPU, got"):
            module(x, resets=wrong)
    with pytest.raises(ValueError, match=r"^resets: expected shape \(T, B\) = \(6, 4\), got \(4, 6\)"):
        module(x, resets=some_resets().t())
    with pytest.raises(ValueError, match=r"^resets: expected shape \(T,\) = \(6,\), got \(6, 4\)"):
        module(x[:, 0], resets=some_resets())
