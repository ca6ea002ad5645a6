"""Recurrent dropout, zoneout and weight drop, against PyTorch's autograd with the masks that are documented."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.problems import THREADED, Arrays
from support.stacks import as_given, layer, named, states
from support.tolerance import assert_close, assert_rounded, assert_same_bits, relative_error

import fastrnn
import fastrnn.inspect
from fastrnn import training
from fastrnn.cells import CELLS, tanh
from fastrnn.cells.regularised import masked

RATES: dict[str, Any] = {"recurrent_dropout": 0.5, "zoneout": 0.3, "weight_drop": 0.25}
ONE_EACH = [{name: rate} for name, rate in RATES.items()]


@fastrnn.cell(gates="n", states="h", inputs=("mask", "zone_h"))
def names_taken(x: Any, U: Any, s: Any, e: Any) -> Any:
    return e.mask * tanh(x.n + U.n @ s.h) + e.zone_h


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


#: cell -> its textbook, of the gates' W x + b, the products u(k, v), states, parameter and inputs
TEXTBOOK: dict[Any, Callable[..., Any]] = {
    "rnn_tanh": rnn,
    "gru_after": gru_after,
    "gru_before": gru_before,
    "lstm": lstm,
    own_cells.leaky_rates: rates,
    names_taken: taken,
}


def made(cell: Any, *sizes: int, **options: Any) -> Any:
    return layer(cell, *sizes, **options) if isinstance(cell, str) else fastrnn.Recurrent(cell, *sizes, **options)


def draws(net: Any, T: int, B: int, seed: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """What is kept, scaled where it is: between layers, and in each layer and direction, as `Recurrent` tells it."""
    rng = np.random.default_rng(seed)
    H, ways, names = net.hidden_size, 1 + net.bidirectional, net.stack.cell.states

    def kept(shape: tuple[int, ...], rate: float) -> np.ndarray:
        return (rng.random(shape, np.float32) >= rate) / (1 - rate)

    between = [kept((T, B, ways * H), net.dropout) for _ in range(net.num_layers - 1) if net.dropout]
    zoneout = net.zoneout if isinstance(net.zoneout, tuple) else (net.zoneout,) * len(names)
    each = []
    for _ in range(net.num_layers * ways):
        own: dict[str, Any] = {"U": 1.0, "h": 1.0}
        if net.weight_drop:
            own["U"] = kept((len(net.stack.cell.products) * H, H), net.weight_drop)
        if net.recurrent_dropout:
            own["h"] = kept((B, H), net.recurrent_dropout)
        own["zones"] = [kept((T, B, H), rate) > 0 if rate else np.full((T, B, H), True) for rate in zoneout]
        each.append(own)
    return between, each


def by_autograd(torch: Any, cell: Any, net: Any, given: Arrays, d: Arrays, seed: int) -> Arrays:
    """y, the final states and every gradient, by a loop over tensors."""
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


def problem(net: Any, T: int, B: int, seed: int) -> tuple[Arrays, Arrays]:
    """Everything that a call can be given, and cotangents of everything that it gives."""
    rng = np.random.default_rng(seed)
    H, ways, cell = net.hidden_size, 1 + net.bidirectional, net.stack.cell
    given = {"x": rng.standard_normal((T, B, net.input_size))}
    given |= {f"{name}0": rng.standard_normal((net.num_layers * ways, B, H)) for name in cell.states}
    given |= {name: rng.standard_normal((T, B, H)) for name in cell.inputs}
    d = {"y": rng.standard_normal((T, B, ways * H))}
    d |= {f"{name}_n": rng.standard_normal((net.num_layers * ways, B, H)) for name in cell.states}
    given, d = ({name: a.astype(net.dtype) for name, a in arrays.items()} for arrays in (given, d))
    return given | {"lengths": rng.integers(0, T + 1, B), "resets": rng.random((T, B)) < 0.2}, d


def results(net: Any, given: Arrays, d: Arrays, seed: int, **options: Any) -> Arrays:
    """What `by_autograd` returns."""
    cell = net.stack.cell
    e = {name: given[name] for name in cell.inputs} or None
    state = as_given(tuple([given[f"{name}0"] for name in cell.states]))
    options |= {"lengths": given["lengths"], "resets": given["resets"], "e": e}
    y, final, cache = net.forward(given["x"], state=state, training=True, rng=seed, **options)
    back = net.backward(d["y"], cache, dstate=as_given(tuple([d[f"{name}_n"] for name in cell.states])))
    finals, dstates = (s if isinstance(s, tuple) else (s,) for s in (final, back.dstate))
    found = {"y": y} | {f"{n}_n": s for n, s in zip(cell.states, finals, strict=True)} | {"dx": back.dx}
    found |= {f"d{name}0": s for name, s in zip(cell.states, dstates, strict=True)}
    found |= {f"d{name}": a for name, a in back.grads.items()}
    return found | {f"d{name}": a for name, a in getattr(back, "de", {}).items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cell", TEXTBOOK, ids=lambda cell: getattr(cell, "name", cell))
def test_gradients(cell: Any, seed: int, torch: Any) -> None:
    """One after the other alone, then all together, of stacks at random sizes."""
    rng = np.random.default_rng(seed)
    T, B, I, H, L = (int(n) for n in rng.integers(1, (9, 6, 5, 40, 4)))
    options = (ONE_EACH + [RATES] * 3)[seed] | {"dropout": 0.4 if L > 1 and seed % 2 else 0.0}
    net = made(cell, I, H, L, dtype=np.float64, bidirectional=bool(rng.integers(2)), rng=seed, **options)
    given, d = problem(net, T, B, seed)
    exact = by_autograd(torch, cell, net, given, d, seed)
    assert_close(results(net, given, d, seed, checkpoint=[None, 2, "auto"][seed % 3]), exact)


@pytest.mark.parametrize("cell", ["lstm", "gru_before", names_taken], ids=lambda cell: getattr(cell, "name", cell))
def test_a_mask_for_each_gate(cell: Any, implementation: str, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fastrnn.keras` asks for it, with the gradients of the masks themselves."""
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


def test_implementations(implementation: str) -> None:
    net = layer("lstm", 3, 9, 2, **RATES)
    wide = layer("lstm", 3, 9, 2, dtype=np.float64, **RATES)
    wide.load_state_dict({name: a.astype(np.float64) for name, a in net.state_dict().items()})
    given, d = problem(net, 6, 5, 0)
    doubles = [{n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in p.items()} for p in (given, d)]

    def exact() -> Arrays:
        with fastrnn.use_backend("numpy"):
            return results(wide, *doubles, 3) | {"inference": wide(doubles[0]["x"])[0]}

    assert_rounded(results(net, given, d, 3) | {"inference": net(given["x"])[0]}, exact(), exact)


@pytest.mark.parametrize("cell", own_cells.ALL, ids=lambda cell: cell.name)
def test_kernels_run_every_cell(cell: Any, native: str) -> None:
    net = made(cell, 3, 5, 2, dtype=np.float64, **(RATES if cell.products else {"zoneout": 0.3}))
    given, d = problem(net, 6, 5, 0)
    with fastrnn.use_backend("numpy"):
        expected = results(net, given, d, 3)
    assert_close(results(net, given, d, 3), expected)


def test_checkpoints(implementation: str) -> None:
    net = layer("lstm", 3, 9, 2, bidirectional=True, **RATES)
    given, d = problem(net, 7, 5, 0)
    expected = results(net, given, d, 1)
    for checkpoint in (1, 3, "auto"):
        assert_same_bits(results(net, given, d, 1, checkpoint=checkpoint), expected)


@pytest.mark.parametrize("sizes", THREADED)
@pytest.mark.parametrize("cell", ["lstm", "gru_before"])
def test_threads(cell: str, sizes: tuple[int, int, int, int]) -> None:
    T, B, I, H = sizes
    net = layer(cell, I, H, **RATES)
    given, d = problem(net, T, B, 0)
    assert_same_bits(results(net, given, d, 1, threads=2), results(net, given, d, 1, threads=1))


def test_layouts(backend: str) -> None:
    """Masks are drawn time-major, whatever the caller's layout."""
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
def test_nothing_to_do(sizes: tuple[int, int], backend: str) -> None:
    net = layer("lstm", 3, 9, 2, bidirectional=True, **RATES)
    given, d = problem(net, *sizes, 0)
    found = results(net, given, d, 1)
    for name in net.parameters():
        assert not found[f"d{name}"].any()
    assert found["y"].shape == (*sizes, 18)


@pytest.mark.parametrize("options", [*ONE_EACH, RATES])
def test_the_rng_decides(options: dict[str, Any]) -> None:
    net = layer("gru_after", 3, 9, 2, **options)
    given, d = problem(net, 7, 5, 0)
    assert_same_bits(results(net, given, d, 1), results(net, given, d, 1))
    assert (results(net, given, d, 1)["y"] != results(net, given, d, 2)["y"]).any()


def test_what_stays_and_what_goes() -> None:
    """Of 40 sequences of 50 units: h of the identity is multiplied with one mask over and over."""
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


@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.5}, {"weight_drop": 0.5}, {"zoneout": (0.0, 0.0)}])
def test_inference_of_what_is_dropped_is_the_plain_layer(options: dict[str, Any], backend: str) -> None:
    plain, net = layer("lstm", 3, 9, 2), layer("lstm", 3, 9, 2, **options)
    x = np.random.default_rng(0).standard_normal((6, 2, 3), np.float32)
    expected = named(*plain(x))
    for _ in range(3):  # the third is described to the kernels
        assert_same_bits(named(*net(x)), expected)
    stream = net.stream(2)
    assert_same_bits({"y": np.array([stream.step(x_t) for x_t in x])}, {"y": expected["y"]})
    if not any(options.values()) or "zoneout" in options:
        given, d = problem(net, 6, 2, 0)
        assert_same_bits(results(net, given, d, 0), results(plain, given, d, 0))


def test_inference_of_zoneout_is_its_expectation(backend: str) -> None:
    zoneout = (0.3, 0.6)
    net = fastrnn.LSTM(3, 5, zoneout=zoneout, dtype=np.float64, rng=0)
    W, U, b, b_rec = net.get_weights()
    x = np.random.default_rng(0).standard_normal((6, 2, 3))
    state = states("lstm", 2, 5, dtype=np.float64)
    y, final = net(x, tuple([s[None] for s in state]))
    stream = net.stream(2)
    stream.state = tuple([s[None] for s in state])
    for t in range(6):
        after = fastrnn.lstm_step(x[t], *state, W, U, b, b_rec)
        state = tuple([p * old + (1 - p) * new for p, old, new in zip(zoneout, state, after, strict=True)])
        assert_close({"y": y[t]}, {"y": state[0]})
        assert_same_bits({"y": stream.step(x[t])}, {"y": y[t]})
    assert_close(named(y[-1], final), named(state[0], tuple([s[None] for s in state])))
    assert_same_bits(named(*net(x)), named(*net(x)))


def test_expectation_of_zoneout() -> None:
    """The mean over many maskings of one step is what inference has, within its own spread."""
    many = 20000
    net = fastrnn.GRU(3, 4, reset_after=True, zoneout=0.3, dtype=np.float64, rng=0)
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((1, 1, 3)).repeat(many, 1), rng.standard_normal((1, 1, 4)).repeat(many, 1)
    y = net.forward(x, state=h, training=True, rng=1).y[0]
    spread = y.std(axis=0) / many**0.5
    assert (spread > 0).all()
    assert (abs(y.mean(axis=0) - net(x, h)[0][0, 0]) < 5 * spread).all()


def test_inspect_sees_inference() -> None:
    net = fastrnn.GRU(3, 5, 2, reset_after=True, dtype=np.float64, rng=0, dropout=0.5, **RATES)
    x = np.random.default_rng(0).standard_normal((6, 2, 3))
    found = fastrnn.inspect.gates(net, x)
    assert list(found) == ["r", "z", "n", "h"]
    assert_close({"h": found["h"]}, {"h": net(x)[0]})
    norms = fastrnn.inspect.gradient_norms(net, x)
    assert norms.shape == (6, 2)
    np.testing.assert_allclose(norms[-1], 1, rtol=1e-12)


def test_bfloat16_weights(backend: str) -> None:
    net = fastrnn.LSTM(8, 40, weight_dtype="bfloat16", rng=0, **RATES)
    wide = fastrnn.LSTM(8, 40, **RATES)
    wide.load_state_dict(net.state_dict())
    x = np.random.default_rng(0).standard_normal((5, 2, 8), np.float32)
    assert relative_error(net(x)[0], wide(x)[0].astype(np.float64)) < 2e-2
    with pytest.raises(ValueError, match="weight_dtype"):
        net.forward(x, training=True)


def mean_task() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((64, 10, 3), np.float32)
    return x, x.mean(axis=(1, 2))[:, None] * 5


def model(seed: int, **options: Any) -> training.Sequential:
    lstm = fastrnn.LSTM(3, 16, return_sequences=False, initializer="keras", rng=seed, **options)
    made = training.Sequential([lstm, fastrnn.Dense(16, 1, rng=seed + 1)])
    made.compile(training.Adam(0.01), "mse")
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{n: r / 2} for n, r in RATES.items()] + [{n: 0.1 for n in RATES}])
def test_fit_learns(options: dict[str, Any], seed: int) -> None:
    x, y = mean_task()
    net = model(seed, **options)
    before = net.evaluate(x, y)["loss"]
    net.fit(x, y, epochs=30, batch_size=16, rng=seed)
    assert net.evaluate(x, y)["loss"] < 0.1 * before


def test_fit_is_determined_by_its_rng() -> None:
    x, y = mean_task()
    nets = [model(0, **RATES) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        net.fit(x, y, epochs=2, rng=seed)
    assert_same_bits(nets[0].state_dict(), nets[1].state_dict())
    assert any((a != b).any() for a, b in zip(nets[0].get_weights(), nets[2].get_weights(), strict=True))


@pytest.mark.parametrize("cell", ["lstm", names_taken], ids=str)
def test_copies_and_files(cell: Any, tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("safetensors")
    net = made(cell, 3, 5, 2, rng=0, **RATES | ({"zoneout": (0.3, 0.1)} if cell == "lstm" else {}))
    path = tmp_path / "layer.safetensors"
    fastrnn.save(path, net)
    given, d = problem(net, 6, 4, 0)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fastrnn.load(path, cell=names_taken)):
        assert repr(twin) == repr(net)
        assert {name: getattr(twin, name) for name in RATES} == {name: getattr(net, name) for name in RATES}
        assert_same_bits(results(twin, given, d, 1), results(net, given, d, 1))
        e = {name: given[name] for name in net.stack.cell.inputs} or None
        assert_same_bits({"y": twin(given["x"], e=e)[0]}, {"y": net(given["x"], e=e)[0]})


def test_repr() -> None:
    net = fastrnn.LSTM(3, 4, recurrent_dropout=0.1, zoneout=(0, 0.2), weight_drop=0.3)
    said = "recurrent_dropout=0.1, zoneout=(0.0, 0.2), weight_drop=0.3"
    assert repr(net) == f"LSTM(3, 4, {said}, dtype=float32) [lstm]"


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [1.0, -0.1, np.nan, "a", True, None])
def test_refused_rates(name: str, value: Any) -> None:
    error = ValueError if isinstance(value, float) else TypeError
    for given in [value, (0.1, value)] if name == "zoneout" else [value]:
        with pytest.raises(error, match=f"^{name}: expected a number"):
            fastrnn.LSTM(3, 4, **{name: given})


def test_refused_for_the_cell() -> None:
    with pytest.raises(ValueError, match=r"^zoneout: .* one for each of the states h, c, got \(0.1,\)"):
        fastrnn.LSTM(3, 4, zoneout=(0.1,))
    for name in ("recurrent_dropout", "weight_drop"):
        with pytest.raises(ValueError, match=f"^{name}: cell min_gru has no product with U"):
            fastrnn.Recurrent(own_cells.min_gru, 3, 4, **{name: 0.1})


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("options", ONE_EACH)
def test_refused_by_pytorch(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=f"^{name}: PyTorch cannot express"):
        fastrnn.to_torch(fastrnn.LSTM(3, 4, **options))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru_after", "gru_before", "lstm"])
def test_recurrent_dropout_is_that_of_keras(cell: str, keras: Any) -> None:
    """With one mask for all gates, of which Keras draws one each."""
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
