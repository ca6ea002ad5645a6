"""LSTM layers with proj_size: compared with PyTorch in float64, and their promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.problems import Arrays
from support.recurrent import assert_one_result, assert_roundings, problem, randomized, results
from support.tolerance import assert_close, assert_same_bits

import fastrnn

#: T, B, I, H, P, layers, directions
SIZES = [
    (5, 3, 4, 7, 3, 1, 1),
    (6, 9, 5, 33, 20, 2, 2),
    (4, 1, 3, 40, 17, 2, 1),
    (7, 70, 3, 20, 5, 1, 2),
    (9, 2, 8, 64, 63, 1, 1),
    (1, 1, 1, 2, 1, 1, 1),
]


def layer_of(sizes: tuple[int, ...], dtype: Any = np.float64) -> fastrnn.LSTM:
    _, _, I, H, P, L, D = sizes
    net: fastrnn.LSTM = randomized(fastrnn.LSTM(I, H, L, proj_size=P, bidirectional=D == 2, dtype=dtype), scale=2)
    return net


def lengths_of(T: int, B: int) -> np.ndarray:
    """That PyTorch can pack."""
    return np.r_[T, np.random.default_rng(2).integers(1, T + 1, B - 1)]


def by_torch(torch: Any, net: fastrnn.LSTM, given: Arrays, d: Arrays) -> Arrays:
    sizes = net.input_size, net.hidden_size, net.num_layers
    options = {"proj_size": net.proj_size, "bidirectional": net.bidirectional}
    module = torch.nn.LSTM(*sizes, **options, dtype=torch.float64)
    module.load_state_dict({name: torch.tensor(p) for name, p in net.parameters().items()})
    leaf = {name: torch.tensor(given[name], requires_grad=True) for name in ("x", "h0", "c0")}
    lengths = torch.tensor(given["lengths"])
    packed = torch.nn.utils.rnn.pack_padded_sequence(leaf["x"], lengths, enforce_sorted=False)
    y, (h_n, c_n) = module(packed, (leaf["h0"], leaf["c0"]))
    found = {"y": torch.nn.utils.rnn.pad_packed_sequence(y)[0], "h_n": h_n, "c_n": c_n}
    sum((a * torch.tensor(d[name])).sum() for name, a in found.items()).backward()
    found |= {f"d{name}": a.grad for name, a in (leaf | dict(module.named_parameters())).items()}
    return {name: a.detach().numpy() for name, a in found.items()}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_pytorch(sizes: tuple[int, ...], backend: str, oracle: Callable[[str], Any]) -> None:
    net = layer_of(sizes)
    given, d = problem(net, *sizes[:2])
    given |= {"lengths": lengths_of(*sizes[:2])}
    del given["resets"]
    assert_close(results(net, given, d), by_torch(oracle("torch"), net, given, d))


@pytest.mark.parametrize("sizes", SIZES[:5], ids=str)
def test_roundings(sizes: tuple[int, ...], native: str) -> None:
    """Every instruction set in both dtypes, within the bound for the problem's conditioning."""
    net = layer_of(sizes, np.float32)
    assert_roundings(net, *problem(net, *sizes[:2], 1))


@pytest.mark.parametrize("sizes", [SIZES[1], (5, 1, 64, 512, 300, 1, 1), (9, 12, 5, 48, 16, 1, 1)], ids=str)
def test_bits(sizes: tuple[int, ...], native: str) -> None:
    """On any number of threads, with checkpoints, and without training; a stream gives the layer's bits."""
    net = layer_of(sizes, np.float32)
    given, d = problem(net, *sizes[:2])
    expected = assert_one_result(net, given, d)
    x, state = given["x"], (given["h0"], given["c0"])
    for _ in range(3):  # the general path, and the prepared one
        y, (h_n, c_n) = net(x, state, given["lengths"], resets=given["resets"])
        assert_same_bits({"y": y, "h_n": h_n, "c_n": c_n}, {name: expected[name] for name in ("y", "h_n", "c_n")})
    if not net.bidirectional:
        whole, (h_n, _) = net(x, state)
        again, _ = net(x, state)
        stream = net.stream(x.shape[1])
        stream.state = state
        assert_same_bits({"y": np.stack([stream.step(x_t) for x_t in x])}, {"y": whole})
        assert_same_bits({"y": again, "h": stream.state[0]}, {"y": whole, "h": h_n})


def test_resets_start_new_sequences(backend: str) -> None:
    """The state before a reset gets no gradient from after it."""
    layer = layer_of((6, 2, 3, 9, 4, 1, 1))
    given, d = problem(layer, 6, 2)
    resets = np.zeros((6, 2), bool)
    resets[3] = True
    x, dy = given["x"], d["y"]
    out = layer.forward(x, resets=resets, training=True)
    back = layer.backward(dy, out.cache)
    total = {name: np.zeros_like(p) for name, p in layer.parameters().items()}
    for part in (slice(0, 3), slice(3, 6)):
        own = layer.forward(x[part], training=True)
        grads = layer.backward(dy[part], own.cache)
        assert_close({"y": out.y[part], "dx": back.dx[part]}, {"y": own.y, "dx": grads.dx})
        total = {name: total[name] + grads.grads[name] for name in total}
    assert_close(back.grads, total)


def test_round_trip(tmp_path: Any, oracle: Callable[[str], Any]) -> None:
    """To PyTorch and back, to a file and back, bit for bit."""
    oracle("torch")
    layer = fastrnn.LSTM(3, 8, 2, proj_size=5, bidirectional=True, rng=0)
    fastrnn.save(tmp_path / "net.safetensors", layer)
    for other in (fastrnn.from_torch(fastrnn.to_torch(layer)), fastrnn.load(tmp_path / "net.safetensors")):
        assert (other.proj_size, other.hidden_size) == (5, 8)
        assert_same_bits(other.state_dict(), layer.state_dict())
    assert "proj_size=5" in repr(layer)


def test_other_cells_with_a_projection() -> None:
    """Cells whose h is read by a single product."""
    layer = fastrnn.Recurrent(fastrnn.catalogue.cifg_lstm_input, 3, 8, proj_size=5)
    assert layer(np.ones((4, 2, 3), np.float32))[0].shape == (4, 2, 5)
    layer = fastrnn.Recurrent(fastrnn.cells.CELLS["rnn_tanh"], 3, 8, proj_size=5, zoneout=(0.0,))
    assert layer(np.ones((4, 2, 3), np.float32))[0].shape == (4, 2, 5)

    @fastrnn.cell(gates="n", states=("h", "before"))
    def delayed(x: Any, U: Any, s: Any) -> Any:
        return fastrnn.cells.tanh(x.n + U.n @ s.h), s.h

    catalogue = fastrnn.catalogue
    for cell in (catalogue.li_gru, catalogue.min_gru, catalogue.minimal_gated_unit, delayed):
        with pytest.raises(ValueError, match=f"proj_size: {cell.name} reads h outside a single product with U"):
            fastrnn.Recurrent(cell, 3, 8, proj_size=5)


def test_bfloat16_weights(native: str) -> None:
    """W, U and R are rounded; the layer equals that of the rounded weights."""
    layer = fastrnn.LSTM(6, 40, proj_size=20, weight_dtype="bfloat16", rng=0)
    same = fastrnn.LSTM(6, 40, proj_size=20)
    same.load_state_dict(layer.state_dict())
    assert all((a.view(np.uint32) & 0xFFFF == 0).all() for n, a in layer.parameters().items() if "weight" in n)
    x = np.random.default_rng(0).standard_normal((7, 3, 6)).astype(np.float32)
    error = np.linalg.norm(layer(x)[0] - same(x)[0]) / np.linalg.norm(same(x)[0])
    assert error < 2**-8  # one instruction set also rounds x and h for the products


def test_stateful_and_truncated_training() -> None:
    """Bit-identical to truncated training on one long sequence."""
    rng, trained = np.random.default_rng(0), []
    x, y = (rng.standard_normal((4, 15, n)).astype(np.float32) for n in (2, 1))
    cut = [np.concatenate(np.split(a, 3, axis=1)) for a in (x, y)]
    for given, options in (((x, y), {"truncate": 5}), (cut, {"stateful": True}), (cut, {})):
        model = fastrnn.Sequential([fastrnn.LSTM(2, 8, 2, proj_size=3, rng=0), fastrnn.Dense(3, 1, rng=1)])
        model.compile("adam", "mse")
        model.fit(*given, epochs=2, batch_size=4, shuffle=False, **options)
        trained.append(model.state_dict())
    assert_same_bits(*trained[:2])
    assert any((a != b).any() for a, b in zip(trained[1].values(), trained[2].values(), strict=True))


def test_summary_and_file_of_a_model(tmp_path: Any) -> None:
    """Of a peephole LSTM, and of a layer with another cell."""
    layers = [fastrnn.LSTM(2, 8, 2, proj_size=3, peephole=True, bidirectional=True, rng=0), fastrnn.Dense(6, 1, rng=1)]
    model = fastrnn.Sequential(layers)
    assert "(None, None, 6)" in str(model.summary())
    model.save(tmp_path / "model.safetensors")
    x = np.ones((4, 5, 2), np.float32)
    assert_same_bits({"y": fastrnn.load(tmp_path / "model.safetensors").predict(x)}, {"y": model.predict(x)})
    cell = fastrnn.catalogue.cifg_lstm_input
    layer = fastrnn.Recurrent(cell, 2, 8, proj_size=3, rng=0)
    fastrnn.save(tmp_path / "layer.safetensors", layer)
    assert_same_bits(fastrnn.load(tmp_path / "layer.safetensors", cell=cell).state_dict(), layer.state_dict())


def test_wrong_states() -> None:
    """A stream's and a layer's state are each checked for both widths."""
    layer = fastrnn.LSTM(3, 8, 2, proj_size=5, rng=0)
    stream, h, c = layer.stream(4), np.ones((2, 4, 5), np.float32), np.ones((2, 4, 8), np.float32)
    stream.state = (h, c)
    assert_same_bits(dict(zip("hc", stream.state, strict=True)), {"h": h, "c": c})
    for state, width, wrong in (((c, c), 5, 8), ((h, h), 8, 5)):
        with pytest.raises(ValueError, match=rf"= \(2, 4, {width}\), got \(2, 4, {wrong}\)"):
            stream.state = state
        with pytest.raises(ValueError, match=rf"= \(2, 4, {width}\), got \(2, 4, {wrong}\)"):
            layer(np.ones((1, 4, 3), np.float32), state)
    assert_same_bits({"h": stream.state[0]}, {"h": h})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": 8}, "proj_size: expected less than hidden_size, 8, or 0 for none, got 8"),
        ({"proj_size": -1}, "proj_size: expected a positive integer, got -1"),
        ({"proj_size": 2, "zoneout": 0.1}, "proj_size: not supported with recurrent_dropout or zoneout"),
        ({"proj_size": 2, "recurrent_dropout": 0.1}, "proj_size: not supported with recurrent_dropout or zoneout"),
    ],
)
def test_unsupported_options_raise_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.LSTM(3, 8, **options)


def test_onnx_cannot_express_a_projection(oracle: Callable[[str], Any]) -> None:
    oracle("onnx")
    with pytest.raises(ValueError, match="proj_size: ONNX cannot express 5"):
        fastrnn.to_onnx(fastrnn.LSTM(3, 8, proj_size=5))
