"""Recurrent products by heads: U is block-diagonal, and only its blocks are stored; a dense U is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.problems import Arrays
from support.recurrent import assert_one_result, assert_roundings, problem, randomized, results
from support.tolerance import assert_close, assert_same_bits

import fastrnn
import fastrnn.inspect
from fastrnn import catalogue, slow
from fastrnn.cells import CELLS, Cell
from fastrnn.layers.options import options_of

#: T, B, I, units of a head, heads
SIZES = [
    (5, 3, 4, 7, 3),
    (4, 1, 3, 1, 5),
    (3, 2, 5, 9, 1),
    (6, 9, 2, 16, 4),
    (4, 1, 6, 32, 3),
    (4, 17, 3, 5, 8),
    (3, 1, 3, 24, 5),
    (2, 70, 3, 40, 2),
    (3, 5, 2, 131, 2),
]

#: Cells of one phase and of several, with parameters, extra inputs, and means of all units.
OWN = [own_cells.minimal_gated_unit, own_cells.in_turns, own_cells.normalised, catalogue.slstm]
BUILTIN = [cell for cell in CELLS.values() if cell.products]


def dense(U: np.ndarray, heads: int) -> np.ndarray:
    """Expand U (N*H, D) to (N*H, H), with zeros between units of different heads."""
    D = U.shape[1]
    H = D * heads
    whole = np.zeros((len(U), H), U.dtype)
    for row, values in enumerate(U):
        start = row % H // D * D
        whole[row, start : start + D] = values
    return whole


def blocks(dU: np.ndarray, heads: int) -> np.ndarray:
    """Reduce a dense gradient to the blocks."""
    H = dU.shape[1]
    D = H // heads
    starts = [row % H // D * D for row in range(len(dU))]
    return np.stack([row[start : start + D] for row, start in zip(dU, starts, strict=True)])


def layer_of(cell: Cell, sizes: tuple[int, ...], dtype: Any = np.float64, **options: Any) -> fastrnn.Recurrent:
    """Two directions of one layer."""
    _, _, I, D, heads = sizes
    options |= {"heads": heads, "dtype": dtype, "bidirectional": True}
    net: fastrnn.Recurrent = randomized(fastrnn.Recurrent(cell, I, D * heads, **options))
    return net


def with_zeros(net: fastrnn.Recurrent) -> fastrnn.Recurrent:
    """The same by a dense U."""
    parts = [part | {"U": dense(part["U"], net.heads)} for part in net.stack.parts]
    return fastrnn.Recurrent.from_parts(net.stack.cell, parts, **options_of(net) | {"heads": 1})


def reference(net: fastrnn.Recurrent, given: Arrays, d: Arrays) -> Arrays:
    with fastrnn.use_backend("numpy"):
        found = results(with_zeros(net), given, d)
    return {name: blocks(a, net.heads) if "dweight_hh" in name else a for name, a in found.items()}


@pytest.mark.parametrize("k", range(len(SIZES)))
def test_equals_a_dense_u_with_zeros(k: int, backend: str) -> None:
    """Outputs and every gradient equal those of the dense U; the cells alternate."""
    cells = BUILTIN + OWN
    for cell in (cells[k % len(cells)], cells[-1 - k % len(OWN)]):
        for options in ({}, {"checkpoint": 2}):
            net = layer_of(cell, SIZES[k])
            given, d = problem(net, *SIZES[k][:2], k)
            assert_close(results(net, given, d, **options), reference(net, given, d))


def test_every_cell(backend: str) -> None:
    for k, cell in enumerate(BUILTIN):
        net = layer_of(cell, (3, 3, 2, 6, 3))
        given, d = problem(net, 3, 3, k)
        assert_close(results(net, given, d), reference(net, given, d))


@pytest.mark.parametrize("k", range(len(SIZES)))
def test_roundings(k: int, native: str) -> None:
    """Every instruction set in both dtypes, on one thread and two."""
    net = layer_of(BUILTIN[k % len(BUILTIN)], SIZES[k], np.float32)
    assert_roundings(net, *problem(net, *SIZES[k][:2], 1))


@pytest.mark.parametrize("cell", [CELLS["lstm"], CELLS["gru_before"]], ids=lambda cell: cell.name)
@pytest.mark.parametrize("sizes", [(6, 1, 64, 128, 4), (9, 12, 5, 20, 3), (5, 66, 40, 50, 2)], ids=str)
def test_bits(cell: Cell, sizes: tuple[int, ...], native: str) -> None:
    """The same on any number of threads, with checkpoints, in inference, in a stream, and for a sequence alone."""
    layer = layer_of(cell, sizes, np.float32)
    given, d = problem(layer, *sizes[:2])
    assert_one_result(layer, given, d)
    x = given["x"]
    whole = layer.forward(x, training=True)
    assert_same_bits({"y": layer(x)[0]}, {"y": whole.y})
    assert_same_bits({"y": layer(x[:, -1])[0]}, {"y": whole.y[:, -1]})
    one = fastrnn.Recurrent(cell, layer.input_size, layer.hidden_size, 2, heads=layer.heads, rng=0)
    y, state = one(x)
    for _ in range(3):  # the general path, and the prepared one
        assert_same_bits({"y": one(x)[0]}, {"y": y})
    stream = one.stream(x.shape[1])
    assert_same_bits({"y": np.stack([stream.step(x_t) for x_t in x])}, {"y": y})
    final = stream.state if isinstance(state, tuple) else (stream.state,)
    pairs = zip(final, state if isinstance(state, tuple) else (state,), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_a_head_is_a_layer_of_its_rows(implementation: str) -> None:
    """Each head equals a layer with the weights of its units."""
    D, heads, G = 6, 3, 4
    whole = fastrnn.LSTM(5, heads * D, heads=heads, dtype=np.float64, rng=0)
    x, dy = (np.random.default_rng(1).standard_normal(shape) for shape in ((4, 2, 5), (4, 2, heads * D)))
    y, (h, c), cache = whole.forward(x, training=True)
    dx, _, grads = whole.backward(dy, cache)
    for k in range(heads):
        own = fastrnn.LSTM(5, D, dtype=np.float64)
        rows = np.concatenate([np.arange(D) + g * heads * D + k * D for g in range(G)])
        own.load_state_dict({name: a[rows] for name, a in whole.state_dict().items()})
        expected = own.forward(x, training=True)
        part = slice(k * D, (k + 1) * D)
        back = own.backward(dy[..., part], expected.cache)
        got = {"y": y[..., part], "h": h[..., part], "c": c[..., part]} | {n: d[rows] for n, d in grads.items()}
        assert_close(got, {"y": expected.y, "h": expected.state[0], "c": expected.state[1]} | back.grads)
        dx = dx - back.dx
    assert abs(dx).max() < 1e-12  # the gradient of x is the sum over heads


@pytest.mark.parametrize("D", [6, 72, 100, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_heads_have_the_bits_of_single_layers(dtype: type, D: int, native: str) -> None:
    """Whatever vectors their units are in, and whatever chains their terms are in."""
    rng, heads = np.random.default_rng(D), 3
    W, U, x = (rng.uniform(-0.3, 0.3, s).astype(dtype) for s in ((heads * D, 5), (heads * D, D), (4, 2, 5)))
    y = fastrnn.rnn_forward(x, W, U, heads=heads).y
    for k in range(heads):
        part = slice(k * D, (k + 1) * D)
        assert_same_bits({"y": y[..., part]}, {"y": fastrnn.rnn_forward(x, W[part], U[part]).y})


def test_one_unit_per_head(native: str) -> None:
    """The recurrence is then elementwise, as in an IndRNN."""
    rnn = fastrnn.RNN(3, 37, heads=37, dtype=np.float64, rng=0)
    own = rnn.parameters()
    same = fastrnn.Recurrent(catalogue.ind_rnn_tanh, 3, 37, bias="input", dtype=np.float64)
    p, b = own["weight_hh_l0"][:, 0], own["bias_ih_l0"] + own["bias_hh_l0"]
    same.load_state_dict({"weight_ih_l0": own["weight_ih_l0"], "bias_ih_l0": b, "parameter_l0": p})
    x = np.random.default_rng(1).standard_normal((6, 3, 3))
    assert_close({"y": rnn(x)[0]}, {"y": same(x)[0]})


def test_functions(backend: str) -> None:
    rng = np.random.default_rng(0)
    x, W, U, b = (rng.standard_normal(shape) for shape in ((4, 2, 3), (24, 3), (24, 2), (24,)))
    out = fastrnn.lstm_forward(x, W, U, b, heads=3, training=True)
    same = fastrnn.lstm_forward(x, W, dense(U, 3), b, training=True)
    assert_close({"y": out.y, "c": out.c_n}, {"y": same.y, "c": same.c_n})
    dU, other = (fastrnn.lstm_backward(same.y, result.cache).dU for result in (out, same))
    assert_close({"dU": dU}, {"dU": blocks(other, 3)})
    for run in (fastrnn.rnn_forward, partial(fastrnn.gru_forward, reset_after=False)):
        rows = slice(0, 18 if isinstance(run, partial) else 6)
        assert_close({"y": run(x, W[rows], U[rows], heads=3).y}, {"y": run(x, W[rows], dense(U[rows], 3)).y})


def test_slstm_of_xlstm(backend: str, oracle: Callable[[str], Any]) -> None:
    """In that package R is (heads, D, 4, D), with the multiplied unit first and gates in our order."""
    torch = oracle("torch")
    T, B, I, D, heads = 7, 3, 4, 5, 3
    H = heads * D
    rng = np.random.default_rng(0)
    arrays = {"x": (T, B, I), "W": (4, H, I), "b": (4, H), "R": (heads, D, 4, D), "dy": (T, B, H)}
    given = {name: torch.tensor(rng.standard_normal(shape), requires_grad=True) for name, shape in arrays.items()}
    h, c, n, m = (torch.zeros(B, H, dtype=torch.float64) for _ in range(4))
    y = []
    for x_t in given["x"]:
        Rh = torch.einsum("bkd,kdge->bgke", h.reshape(B, heads, D), given["R"]).reshape(B, 4, H)
        i, f, z, o = (torch.einsum("bi,ghi->bgh", x_t, given["W"]) + given["b"] + Rh).unbind(1)
        kept = m + torch.nn.functional.logsigmoid(f)
        first = len(y) == 0
        m = i if first else torch.maximum(i, kept)
        forget = torch.zeros_like(i) if first else torch.exp(kept - m)
        c, n = forget * c + torch.exp(i - m) * torch.tanh(z), forget * n + torch.exp(i - m)
        h = torch.sigmoid(o) * c / n
        y.append(h)
    (torch.stack(y) * given["dy"]).sum().backward()
    a = {name: tensor.detach().numpy() for name, tensor in given.items()}
    U = a["R"].transpose(2, 0, 3, 1).reshape(4 * H, D)
    W = a["W"].reshape(4 * H, I)
    out = catalogue.slstm.forward(a["x"], W, U, a["b"].ravel(), heads=heads, training=True)
    back = catalogue.slstm.backward(a["dy"], out.cache)
    expected = {"y": torch.stack(y).detach(), "dx": given["x"].grad, "dW": given["W"].grad.reshape(4 * H, I)}
    expected |= {"db": given["b"].grad.ravel(), "dU": given["R"].grad.permute(2, 0, 3, 1).reshape(4 * H, D)}
    got = {"y": out.y, "dx": back.dx, "dW": back.dW, "db": back.db, "dU": back.dU}
    assert_close(got, {name: value.numpy() for name, value in expected.items()}, 1e-11)


def test_bfloat16_weights(native: str) -> None:
    """The layer equals that of the rounded weights; a head has an odd size, because bfloat16 processes k in pairs."""
    for sizes in ((40, 2), (33, 3), (128, 4), (1, 5)):
        H, heads = sizes[0] * sizes[1], sizes[1]
        layer = fastrnn.LSTM(6, H, heads=heads, weight_dtype="bfloat16", rng=0)
        same = fastrnn.LSTM(6, H, heads=heads)
        same.load_state_dict(layer.state_dict())
        for B in (1, 3):
            x = np.random.default_rng(0).standard_normal((7, B, 6)).astype(np.float32)
            error = np.linalg.norm(layer(x)[0] - same(x)[0]) / np.linalg.norm(same(x)[0])
            assert error < 2**-8  # one instruction set also rounds x and h for the products


@pytest.mark.parametrize("rates", [{"recurrent_dropout": 0.4}, {"zoneout": (0.2, 0.5)}], ids=str)
def test_recurrent_dropout_and_zoneout(rates: dict[str, Any], backend: str) -> None:
    """The same masks as a dense layer from the same generator."""
    net = layer_of(CELLS["lstm"], (4, 3, 2, 6, 2), **rates)
    given, d = problem(net, 4, 3)
    found = []
    for layer in (net, with_zeros(net)):
        out = results(layer, given, d) | {"inferred": layer(given["x"])[0]}
        found.append({n: blocks(a, 2) if "dweight_hh" in n and layer.heads == 1 else a for n, a in out.items()})
    assert_close(*found)


def test_weight_drop(backend: str) -> None:
    layer = fastrnn.LSTM(2, 12, heads=3, weight_drop=0.5, dtype=np.float64, rng=0)
    x = np.random.default_rng(0).standard_normal((4, 3, 2))
    mask = (np.random.default_rng(1).random((48, 4), np.float32) >= 0.5) * 2.0
    out = layer.forward(x, training=True, rng=1)
    same = fastrnn.LSTM(2, 12, heads=3, dtype=np.float64)
    state = layer.state_dict()
    same.load_state_dict(state | {"weight_hh_l0": state["weight_hh_l0"] * mask})
    expected = same.forward(x, training=True)
    dU = same.backward(out.y, expected.cache).grads["weight_hh_l0"] * mask
    got = layer.backward(out.y, out.cache).grads["weight_hh_l0"]
    assert_close({"y": out.y, "dU": got}, {"y": expected.y, "dU": dU})


def test_in_pytorch(oracle: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The module, its gradients, and second gradients, which the equations give."""
    torch, ours = oracle("torch"), oracle("torch") and import_module("fastrnn.torch")
    monkeypatch.setattr(slow, "_told", set())  # another test in this process may have issued the warning
    module = ours.Recurrent(catalogue.slstm, 3, 12, heads=4, dtype=torch.float64)
    assert module.weight_hh_l0.shape == (48, 3)
    assert "heads=4" in repr(module)
    layer = fastrnn.Recurrent(catalogue.slstm, 3, 12, heads=4, dtype=np.float64)
    layer.load_state_dict({name: p.detach().numpy() for name, p in module.named_parameters()})
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    y, _ = module(x)
    y.square().sum().backward()
    out = layer.forward(x.detach().numpy(), training=True)
    back = layer.backward(2 * out.y, out.cache)
    got = {name: p.grad.numpy() for name, p in module.named_parameters()} | {"y": y.detach().numpy()}
    assert_close(got | {"dx": x.grad.numpy()}, back.grads | {"y": out.y, "dx": back.dx})
    with pytest.warns(RuntimeWarning, match="equations"):
        assert torch.autograd.gradgradcheck(lambda x: module(x)[0], (x[:2],))
    with pytest.raises(ValueError, match="heads: expected a divisor of hidden_size, 12, got 5"):
        ours.Recurrent(catalogue.slstm, 3, 12, heads=5)
    with pytest.raises(ValueError, match="heads: cell min_gru has no product with U; expected 1, got 2"):
        ours.Recurrent(catalogue.min_gru, 3, 12, heads=2)


def test_in_jax(oracle: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    jax = oracle("jax")
    ours = import_module("fastrnn.jax")
    monkeypatch.setattr(slow, "_told", set())
    rng = np.random.default_rng(0)
    x, W, U = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 2, 3), (36, 3), (36, 4)))

    def loss(W: Any, U: Any) -> Any:
        return (ours.recurrent(CELLS["gru_before"], x, W, U, heads=3)[0] ** 2).sum()

    out = fastrnn.gru_forward(x, W, U, reset_after=False, heads=3, training=True)
    back = fastrnn.gru_backward(2 * out.y, out.cache)
    dW, dU = jax.jit(jax.grad(loss, (0, 1)))(W, U)
    assert_close({"dW": np.asarray(dW), "dU": np.asarray(dU)}, {"dW": back.dW, "dU": back.dU}, 1e-5)
    with pytest.warns(RuntimeWarning, match="equations"):
        _, slope = jax.jvp(loss, (W, U), (0 * W, U))
    assert float(slope) == pytest.approx((back.dU * U).sum(), rel=1e-3)


def test_unsupported_options_raise_an_error() -> None:
    x, W = np.ones((3, 2, 4)), np.ones((24, 4))
    for shape in ((24, 4), (24, 6), (24, 0), (22, 2), (24,)):
        with pytest.raises(ValueError, match=r"U: expected shape \(4\*H, H/heads\) with heads = 3, H >= 1, got"):
            fastrnn.lstm_forward(x, W, np.ones(shape), heads=3)
    with pytest.raises(ValueError, match=r"U: expected shape \(4\*H, H\) with H >= 1, got \(24, 2\)"):
        fastrnn.lstm_forward(x, W, np.ones((24, 2)))
    with pytest.raises(ValueError, match="heads: expected a positive integer, got 0"):
        fastrnn.lstm_forward(x, W, np.ones((24, 6)), heads=0)
    with pytest.raises(ValueError, match="heads: cell min_gru has no product with U; expected 1, got 2"):
        catalogue.min_gru.forward(x, W[:12], heads=2)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"heads": 3}, ValueError, "heads: expected a divisor of hidden_size, 8, got 3"),
        ({"heads": 0}, ValueError, "heads: expected a positive integer, got 0"),
        ({"heads": 2.0}, TypeError, "heads: expected a positive integer, got 2.0"),
        ({"heads": 2, "proj_size": 4}, ValueError, "heads: not supported with proj_size; expected 1 with proj_size=4"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            fastrnn.LSTM(3, 8, **options)
    with pytest.raises(ValueError, match="heads: cell min_gru has no product with U; expected 1, got 2"):
        fastrnn.Recurrent(catalogue.min_gru, 3, 8, heads=2)


def test_round_trip(tmp_path: Any) -> None:
    """A file, the layer's repr, and its gates."""
    layer = fastrnn.Recurrent(catalogue.slstm, 3, 12, 2, heads=4, rng=0)
    fastrnn.save(tmp_path / "layer.safetensors", layer)
    other = fastrnn.load(tmp_path / "layer.safetensors", cell=catalogue.slstm)
    assert_same_bits(other.state_dict(), layer.state_dict())
    assert other.heads == 4
    assert repr(layer) == "Recurrent(3, 12, num_layers=2, heads=4, dtype=float32) [slstm]"
    assert layer.parameters()["weight_hh_l1"].shape == (48, 3)
    net = fastrnn.LSTM(3, 12, heads=4, rng=0)
    x = np.ones((4, 2, 3), np.float32)
    assert_close({"h": fastrnn.inspect.gates(net, x)["h"]}, {"h": net(x)[0]}, 1e-5)
    assert (fastrnn.inspect.gradient_norms(net, x) > 0).all()


def test_initial_weights() -> None:
    """Each head has the initial weights of a smaller layer: orthogonal columns of its own rows."""
    U = fastrnn.GRU(3, 12, reset_after=True, heads=3, initializer="keras", rng=0).parameters()["weight_hh_l0"]
    for own in U.reshape(3, 3, 4, 4).swapaxes(0, 1):
        own = own.reshape(12, 4)
        np.testing.assert_allclose(own.T @ own, np.eye(4), rtol=0, atol=1e-6)
