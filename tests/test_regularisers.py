"""Training with recurrent dropout, zoneout and weight drop: compared with autograd and the documented masks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.problems import THREADED, Arrays
from support.recurrent import in_dtype, problem, results
from support.regularised import ONE_EACH, RATES, draws, made, names_taken
from support.stacks import layer, named
from support.tolerance import assert_close, assert_rounded, assert_same_bits

import fastrnn
import fastrnn.inspect
from fastrnn.cells import CELLS
from fastrnn.cells.regularised import masked


def rnn(torch: Any, a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
    return (torch.tanh(a[0] + u(0, s[0])),)


def gru_after(torch: Any, a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
    r, z = (torch.sigmoid(a[k] + u(k, s[0])) for k in range(2))
    return (z * s[0] + (1 - z) * torch.tanh(a[2] + r * u(2, s[0])),)


def gru_before(torch: Any, a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
    r, z = (torch.sigmoid(a[k] + u(k, s[0])) for k in range(2))
    return (z * s[0] + (1 - z) * torch.tanh(a[2] + u(2, r * s[0])),)


def lstm(torch: Any, a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
    i, f, g, o = (a[k] + u(k, s[0]) for k in range(4))
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def rates(torch: Any, a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
    v = (1 - p) * s[1] + p * (a[0] + u(0, torch.tanh(s[1])) + e[0])
    return torch.tanh(v), v


def taken(torch: Any, a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
    return (e[0] * torch.tanh(a[0] + u(0, s[0])) + e[1],)


#: cell -> its textbook equations, from the gates' W x + b, products u(k, v), states, parameters and inputs
TEXTBOOK: dict[Any, Callable[..., Any]] = {
    "rnn_tanh": rnn,
    "gru_after": gru_after,
    "gru_before": gru_before,
    "lstm": lstm,
    own_cells.leaky_rates: rates,
    names_taken: taken,
}


def by_autograd(torch: Any, cell: Any, net: Any, given: Arrays, d: Arrays, seed: int) -> Arrays:
    """Return y, the final states and every gradient from a loop over tensors."""
    T, B, _ = given["x"].shape
    between, each = draws(net, T, B, seed)
    floats = net.parameters() | {name: a for name, a in given.items() if a.dtype.kind == "f"}
    leaf = {name: torch.tensor(a, requires_grad=True) for name, a in floats.items()}
    D, cells = 1 + net.bidirectional, net.stack.cell
    x, final = leaf["x"], []
    for number in range(net.num_layers):
        outputs = []
        for way in range(D):
            i, end = number * D + way, f"_l{number}{'_reverse' * way}"
            own = {key: torch.tensor(a) for key, a in each[i].items() if key != "zones"}
            zones = [torch.tensor(a) for a in each[i]["zones"]]
            W, b = (leaf[f"{name}_ih{end}"].chunk(cells.G) for name in ("weight", "bias"))
            U, b_rec = ((leaf[f"weight_hh{end}"] * own["U"]).chunk(cells.G), leaf[f"bias_hh{end}"].chunk(cells.G))
            state = [leaf[f"{name}0"][i] for name in cells.states]
            y: list[Any] = [None] * T
            for t in range(T)[:: -1 if way else 1]:
                before = [torch.where(torch.tensor(given["resets"][t])[:, None], 0.0, s) for s in state]
                new = TEXTBOOK[cell](
                    torch,
                    [x[t] @ w.T + c for w, c in zip(W, b, strict=True)],
                    lambda k, v: (v * own["h"]) @ U[k].T + b_rec[k],  # noqa: B023
                    before,
                    leaf.get(f"parameter{end}"),
                    [leaf[name][t] for name in cells.inputs],
                )
                after = [torch.where(zone[t], n, s) for zone, n, s in zip(zones, new, before, strict=True)]
                alive = torch.tensor(t < given["lengths"])[:, None]
                y[t] = torch.where(alive, after[0], 0.0)
                state = [torch.where(alive, n, s) for n, s in zip(after, state, strict=True)]
            outputs.append(torch.stack(y))
            final.append(state)
        x = torch.cat(outputs, -1)
        if between and number < len(between):
            x = x * torch.tensor(between[number])
    found = {"y": x} | {f"{n}_n": torch.stack([s[k] for s in final]) for k, n in enumerate(cells.states)}
    sum((a * torch.tensor(d[name])).sum() for name, a in found.items()).backward()
    return {name: a.detach().numpy() for name, a in found.items()} | {f"d{n}": a.grad.numpy() for n, a in leaf.items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cell", TEXTBOOK, ids=lambda cell: getattr(cell, "name", cell))
def test_gradients_are_those_of_autograd(cell: Any, seed: int, torch: Any) -> None:
    """Each alone, then all together, for stacks of random sizes."""
    rng = np.random.default_rng(seed)
    T, B, I, H, L = (int(n) for n in rng.integers(1, (9, 6, 5, 40, 4)))
    options = (ONE_EACH + [RATES] * 3)[seed] | {"dropout": 0.4 if L > 1 and seed % 2 else 0.0}
    net = made(cell, I, H, L, dtype=np.float64, bidirectional=bool(rng.integers(2)), rng=seed, **options)
    given, d = problem(net, T, B, seed)
    exact = by_autograd(torch, cell, net, given, d, seed)
    assert_close(results(net, given, d, seed, checkpoint=[None, 2, "auto"][seed % 3]), exact)


@pytest.mark.parametrize("cell", ["lstm", "gru_before", names_taken], ids=lambda cell: getattr(cell, "name", cell))
def test_a_mask_for_each_gate(cell: Any, backend: str, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fastrnn.keras` requests it, including the gradients of the masks."""
    plain = CELLS[cell] if isinstance(cell, str) else cell
    own, n = masked(plain, tuple([f"mask_{gate}" for gate in plain.products])), len(plain.inputs)

    def textbook(torch: Any, a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        return TEXTBOOK[cell](torch, a, lambda k, v: u(k, e[n + k] * v), s, p, e[:n])

    monkeypatch.setitem(TEXTBOOK, own, textbook)
    net = made(own, 3, 9, 2, dtype=np.float64, bidirectional=True)
    given, d = problem(net, 6, 5, 0)
    assert_close(results(net, given, d, 0), by_autograd(torch, own, net, given, d, 0))


def test_a_rate_for_each_state(torch: Any) -> None:
    for zoneout in ((0.6, 0.0), [0.0, 0.4], (0.7, 0.2)):
        net = layer("lstm", 3, 5, 2, dtype=np.float64, zoneout=zoneout)
        assert net.zoneout == tuple(zoneout)
        given, d = problem(net, 6, 4, 1)
        assert_close(results(net, given, d, 2), by_autograd(torch, "lstm", net, given, d, 2))


def test_every_implementation_is_the_reference(implementation: str) -> None:
    net = layer("lstm", 3, 9, 2, **RATES)
    given, d = problem(net, 6, 5, 0)

    def found(net: Any) -> Arrays:
        return results(net, given, d, 3) | {"inference": net(given["x"].astype(net.dtype))[0]}

    def exact() -> Arrays:
        with fastrnn.use_backend("numpy"):
            return found(in_dtype(net, np.float64))

    assert_rounded(found(net), exact(), exact)


@pytest.mark.parametrize("cell", own_cells.ALL, ids=lambda cell: cell.name)
def test_kernels_run_user_defined_cells(cell: Any, native: str) -> None:
    net = made(cell, 3, 5, 2, dtype=np.float64, **(RATES if cell.products else {"zoneout": 0.3}))
    given, d = problem(net, 6, 5, 0)
    with fastrnn.use_backend("numpy"):
        expected = results(net, given, d, 3)
    assert_close(results(net, given, d, 3), expected)


def test_checkpoints_have_the_same_bits(implementation: str) -> None:
    net = layer("lstm", 3, 9, 2, bidirectional=True, **RATES)
    given, d = problem(net, 7, 5, 0)
    expected = results(net, given, d, 1)
    for checkpoint in (1, 3, "auto"):
        assert_same_bits(results(net, given, d, 1, checkpoint=checkpoint), expected)


@pytest.mark.parametrize("sizes", THREADED)
@pytest.mark.parametrize("cell", ["lstm", "gru_before"])
def test_threads_have_the_same_bits(cell: str, sizes: tuple[int, int, int, int]) -> None:
    T, B, I, H = sizes
    net = layer(cell, I, H, **RATES)
    given, d = problem(net, T, B, 0)
    assert_same_bits(results(net, given, d, 1, threads=2), results(net, given, d, 1, threads=1))


def test_masks_are_the_same_in_any_layout(backend: str) -> None:
    """Masks are drawn in time-major order, whatever the caller's layout."""
    nets = [layer("lstm", 3, 9, 2, batch_first=batch_first, **RATES) for batch_first in (False, True)]
    x = np.random.default_rng(0).standard_normal((6, 4, 3), np.float32)

    def both_ways(net: Any, x: np.ndarray) -> Arrays:
        y, state, cache = net.forward(x, training=True, rng=1)
        back = net.backward(np.cos(y), cache)
        return named(y, state) | {"dx": back.dx} | back.grads

    expected, got = both_ways(nets[0], x), both_ways(nets[1], x.swapaxes(0, 1))
    assert_same_bits(got | {name: got[name].swapaxes(0, 1) for name in ("y", "dx")}, expected)
    expected, got = both_ways(nets[0], x[:, :1]), both_ways(nets[0], x[:, 0])
    alone = {"y": got["y"][:, None], "dx": got["dx"][:, None], "h_n": got["h_n"][:, None], "c_n": got["c_n"][:, None]}
    assert_same_bits(got | alone, expected)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_no_steps_and_no_sequences(sizes: tuple[int, int], backend: str) -> None:
    net = layer("lstm", 3, 9, 2, bidirectional=True, **RATES)
    given, d = problem(net, *sizes, 0)
    found = results(net, given, d, 1)
    for name in net.parameters():
        assert not found[f"d{name}"].any()
    assert found["y"].shape == (*sizes, 18)


@pytest.mark.parametrize("options", [*ONE_EACH, RATES])
def test_rng_determines_the_masks(options: dict[str, Any]) -> None:
    net = layer("gru_after", 3, 9, 2, **options)
    given, d = problem(net, 7, 5, 0)
    assert_same_bits(results(net, given, d, 1), results(net, given, d, 1))
    assert (results(net, given, d, 1)["y"] != results(net, given, d, 2)["y"]).any()


def test_rates_are_the_dropped_fraction() -> None:
    """40 sequences of 50 units: the h of the identity is multiplied by one mask repeatedly."""
    B, H = 40, 50
    net = fastrnn.RNN(1, H, activation="identity", bias=False, recurrent_dropout=0.2, dtype=np.float64)
    net.set_weights([np.zeros((H, 1)), np.eye(H)])
    y = net.forward(np.zeros((3, B, 1)), state=np.ones((1, B, H)), training=True, rng=0).y
    gone = y[0] == 0
    assert abs(gone.mean() - 0.2) < 0.05
    for t in range(3):
        np.testing.assert_allclose(y[t], np.where(gone, 0, 1.25 ** (t + 1)), rtol=1e-12)

    net = fastrnn.RNN(1, H, activation="identity", bias=False, zoneout=0.3, dtype=np.float64)
    net.set_weights([np.ones((H, 1)), np.zeros((H, H))])
    x = np.broadcast_to(np.arange(1.0, 21)[:, None, None], (20, B, 1)).copy()
    y = net.forward(x, training=True, rng=0).y
    stays = y != x
    assert abs(stays.mean() - 0.3) < 0.02
    before = np.concatenate([np.zeros((1, B, H)), y[:-1]])
    np.testing.assert_array_equal(y, np.where(stays, before, x))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru_after", "gru_before", "lstm"])
def test_recurrent_dropout_equals_keras(cell: str, keras: Any) -> None:
    """With one mask for all gates; Keras draws one for each."""
    net = layer(cell, 3, 5, dtype=np.float64, recurrent_dropout=0.4)
    plain = layer(cell, 3, 5, dtype=np.float64)
    plain.load_state_dict(net.state_dict())
    theirs = fastrnn.to_keras(plain)
    x = np.random.default_rng(0).standard_normal((6, 4, 3))
    _, [own] = draws(net, 6, 4, 1)
    mask = importlib.import_module("keras").ops.convert_to_tensor(own["h"])
    [recurrent] = theirs.layers if hasattr(theirs, "layers") else [theirs]
    recurrent.cell.recurrent_dropout, recurrent.cell.implementation = 0.4, 1
    one_each = cell != "rnn_tanh"
    recurrent.cell.get_recurrent_dropout_mask = lambda h: [mask] * 4 if one_each else mask
    expected = recurrent(np.ascontiguousarray(x.swapaxes(0, 1)), training=True).detach().numpy().swapaxes(0, 1)
    assert_close({"y": net.forward(x, training=True, rng=1).y}, {"y": expected.astype(np.float64)}, 5e-6)
