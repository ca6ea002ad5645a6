"""LSTM layers with proj_size: compared with PyTorch in float64, and their promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_close, assert_rounded, assert_same_bits

import fastrnn

Arrays = dict[str, np.ndarray]

#: T, B, I, H, P, layers, directions
SIZES = [
    (5, 3, 4, 7, 3, 1, 1),
    (6, 9, 5, 33, 20, 2, 2),
    (4, 1, 3, 40, 17, 2, 1),
    (7, 70, 3, 20, 5, 1, 2),
    (9, 2, 8, 64, 63, 1, 1),
    (1, 1, 1, 2, 1, 1, 1),
]


class Problem:
    def __init__(self, sizes: tuple[int, ...], seed: int = 0) -> None:
        T, B, I, H, P, self.L, self.D = sizes
        self.sizes, LD = sizes, self.L * self.D
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(1, T + 1, B)
        self.lengths[0] = T
        shapes = {"x": (T, B, I), "h0": (LD, B, P), "c0": (LD, B, H)}
        shapes |= {"dy": (T, B, P * self.D), "dh_n": (LD, B, P), "dc_n": (LD, B, H)}
        self.arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        layer = self.layer(np.float64)
        self.parameters = {name: rng.standard_normal(p.shape) / 3 for name, p in layer.parameters().items()}

    def layer(self, dtype: Any) -> fastrnn.LSTM:
        _, _, I, H, P, L, D = self.sizes
        return fastrnn.LSTM(I, H, L, proj_size=P, bidirectional=D == 2, dtype=dtype)

    def results(self, dtype: Any = np.float64, **options: Any) -> Arrays:
        layer = self.layer(dtype)
        layer.load_state_dict({name: p.astype(dtype) for name, p in self.parameters.items()})
        a = {name: value.astype(dtype) for name, value in self.arrays.items()}
        out = layer.forward(a["x"], state=(a["h0"], a["c0"]), lengths=self.lengths, training=True, **options)
        back = layer.backward(a["dy"], out.cache, dstate=(a["dh_n"], a["dc_n"]))
        found = {"y": out.y, "h_n": out.state[0], "c_n": out.state[1], "dx": back.dx}
        found |= {"dh0": back.dstate[0], "dc0": back.dstate[1]}
        return found | {f"d{name}": grad for name, grad in back.grads.items()}


def by_torch(torch: Any, problem: Problem) -> Arrays:
    _, _, I, H, P, L, D = problem.sizes
    net = torch.nn.LSTM(I, H, L, proj_size=P, bidirectional=D == 2, dtype=torch.float64)
    net.load_state_dict({name: torch.tensor(p) for name, p in problem.parameters.items()})
    a = {name: torch.tensor(value, requires_grad=True) for name, value in problem.arrays.items()}
    packed = torch.nn.utils.rnn.pack_padded_sequence(a["x"], torch.tensor(problem.lengths), enforce_sorted=False)
    y, (h_n, c_n) = net(packed, (a["h0"], a["c0"]))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    ((y * a["dy"]).sum() + (h_n * a["dh_n"]).sum() + (c_n * a["dc_n"]).sum()).backward()
    found = {"y": y, "h_n": h_n, "c_n": c_n, "dx": a["x"].grad, "dh0": a["h0"].grad, "dc0": a["c0"].grad}
    found |= {f"d{name}": p.grad for name, p in net.named_parameters()}
    return {name: value.detach().numpy() for name, value in found.items()}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_pytorch(sizes: tuple[int, ...], backend: str, oracle: Callable[[str], Any]) -> None:
    problem = Problem(sizes)
    assert_close(problem.results(), by_torch(oracle("torch"), problem))


@pytest.mark.parametrize("sizes", SIZES[:5], ids=str)
def test_roundings(sizes: tuple[int, ...], native: str) -> None:
    """Every instruction set in both dtypes, within the bound for the problem's conditioning."""
    problem = Problem(sizes, 1)
    problem.arrays, problem.parameters = (
        {name: a.astype(np.float32).astype(np.float64) for name, a in arrays.items()}
        for arrays in (problem.arrays, problem.parameters)
    )

    def evaluate() -> Arrays:
        with fastrnn.use_backend("numpy"):
            return problem.results()

    exact = evaluate()
    for dtype in (np.float32, np.float64):
        assert_rounded(problem.results(dtype), exact, evaluate)


@pytest.mark.parametrize("sizes", [SIZES[1], (5, 1, 64, 512, 300, 1, 1), (9, 12, 5, 48, 16, 1, 1)], ids=str)
def test_bits(sizes: tuple[int, ...], native: str) -> None:
    """On any number of threads, with checkpoints, and without training; a stream gives the layer's bits."""
    problem = Problem(sizes)
    expected = problem.results(np.float32, threads=1)
    for options in ({"threads": 2}, {"threads": 3}, {"checkpoint": 2}, {"checkpoint": 1, "threads": 2}):
        assert_same_bits(problem.results(np.float32, **options), expected)
    layer = problem.layer(np.float32)
    layer.load_state_dict({name: p.astype(np.float32) for name, p in problem.parameters.items()})
    x, *state = (problem.arrays[name].astype(np.float32) for name in ("x", "h0", "c0"))
    for _ in range(3):  # the general path, and the prepared one
        y, (h_n, c_n) = layer(x, tuple(state), problem.lengths)
        assert_same_bits({"y": y, "h_n": h_n, "c_n": c_n}, {name: expected[name] for name in ("y", "h_n", "c_n")})
    if problem.D == 1:
        whole, (h_n, _) = layer(x, tuple(state))
        again, _ = layer(x, tuple(state))
        stream = layer.stream(len(problem.lengths))
        stream.state = tuple(state)
        assert_same_bits({"y": np.stack([stream.step(x_t) for x_t in x])}, {"y": whole})
        assert_same_bits({"y": again, "h": stream.state[0]}, {"y": whole, "h": h_n})


def test_resets_start_new_sequences(backend: str) -> None:
    """The state before a reset gets no gradient from after it."""
    problem = Problem((6, 2, 3, 9, 4, 1, 1))
    layer = problem.layer(np.float64)
    layer.load_state_dict(problem.parameters)
    resets = np.zeros((6, 2), bool)
    resets[3] = True
    x, dy = problem.arrays["x"], problem.arrays["dy"]
    out = layer.forward(x, resets=resets, training=True)
    back = layer.backward(dy, out.cache)
    total = {name: np.zeros_like(p) for name, p in problem.parameters.items()}
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


def test_it_learns() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6, 2)).astype(np.float32)
    model = fastrnn.Sequential(
        [fastrnn.LSTM(2, 16, proj_size=6, return_sequences=False, rng=0), fastrnn.Dense(6, 1, rng=1)]
    )
    model.compile(fastrnn.training.Adam(0.01), "mse")
    losses = model.fit(x, x[:, 0, :1], epochs=60, batch_size=16, rng=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]


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
