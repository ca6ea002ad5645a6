"""Every gradient of every layer and option: central differences of the reference, and equal backends."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.layer_gradients import STACKS, cotangents, flat, forward, gradients, inputs, split, wide
from support.problems import CELLS, Arrays
from support.stacks import EVERYTHING, LAYOUTS, MERGED, layer, named
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.training.weight_files import described

#: relative error of central differences in float64 with this step, for functions of order 1
STEP, DIFFERENCES = 1e-5, 1e-7
DIRECTIONS = 3


def directions(array: np.ndarray) -> np.ndarray:
    """Return a few random directions of length 1: a wrong gradient is wrong along them."""
    v = np.random.default_rng(9).standard_normal((min(array.size, DIRECTIONS), *array.shape))
    return v / np.linalg.norm(v.reshape(len(v), -1), axis=1).reshape(-1, *(1,) * array.ndim)


def differences(net: Any, given: Arrays, d: Arrays) -> Arrays:
    """Return the slopes of the sum of output times cotangent along the directions of each array."""

    def scalar() -> float:
        net.changed()
        out = flat(*forward(net, **given)[:2])
        return float(sum((a * out[name]).sum() for name, a in d.items()))

    def of(array: np.ndarray) -> np.ndarray:
        before, slopes = array.copy(), []
        for v in directions(array):
            array[...] = before + STEP * v
            up = scalar()
            array[...] = before - STEP * v
            slopes.append((up - scalar()) / (2 * STEP))
        array[...] = before
        net.changed()
        return np.array(slopes)

    arrays = dict(net.parameters())
    arrays |= {"x": given["x"]} if given["x"].dtype.kind == "f" else {}
    arrays |= dict(zip(("h0", "c0"), given.get("state", ()), strict=False))
    return {name: of(a) for name, a in arrays.items()}


def check(net: Any, given: Arrays) -> None:
    with fastrnn.use_backend("numpy"):
        d = cotangents(net, given)
        slopes = {n: np.array([(v * g).sum() for v in directions(g)]) for n, g in gradients(net, given, d).items()}
        assert_close(slopes, differences(net, given, d), DIFFERENCES)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stack", STACKS)
def test_stacks(stack: tuple[int, dict[str, Any]], last: bool) -> None:
    num_layers, options = stack
    cell = ("lstm", "gru_after", "rnn_tanh")[STACKS.index(stack) % 3]
    layout = LAYOUTS[(STACKS.index(stack) + last) % 3]
    options = options | {"return_sequences": not last, "batch_first": layout == "batch"}
    net = layer(cell, 2, 2, num_layers, dtype=np.float64, **options)
    check(net, inputs(cell, net, layout, EVERYTHING, T=4))


@pytest.mark.parametrize("cell", [c for c in CELLS if c != "rnn_relu"])
def test_cells(cell: str) -> None:
    net = layer(cell, 2, 3, 2, dtype=np.float64)
    check(net, inputs(cell, net, "time", ("state",)))


@pytest.mark.parametrize("cell", ["lstm", "gru_after", "rnn_tanh"])
def test_one_bias(cell: str) -> None:
    """bias="input" equals two biases with bias_hh = 0."""
    net = layer(cell, 2, 3, 2, dtype=np.float64, bias="input", bidirectional=True)
    assert not [name for name in net.parameters() if name.startswith("bias_hh")]
    given = inputs(cell, net, "time", ("state",))
    check(net, given)
    both = layer(cell, 2, 3, 2, dtype=np.float64, bidirectional=True)
    zeros = {name: np.zeros_like(value) for name, value in both.parameters().items()}
    both.load_state_dict(zeros | net.state_dict())
    assert_close(flat(*forward(net, **given)[:2]), flat(*forward(both, **given)[:2]))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, last: bool) -> None:
    options = {"bidirectional": True, "batch_first": layout == "batch", "return_sequences": not last}
    net = layer("lstm_peephole", 1, 2, dtype=np.float64, **options)
    check(net, inputs("lstm_peephole", net, layout, EVERYTHING, T=4))


@pytest.mark.parametrize("activation", [None, "identity", "linear", "sigmoid", "tanh", "relu", "softmax"])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 5, 3)])
def test_dense(shape: tuple[int, ...], activation: str | None) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    check(fastrnn.Dense(3, 4, activation, dtype=np.float64, rng=0), {"x": x})
    check(fastrnn.Dense(3, 4, activation, dtype=np.float64, rng=0, bias=False), {"x": x})
    if activation:
        check(fastrnn.Activation(activation), {"x": x})


@pytest.mark.parametrize("activation", ["identity", "linear"])
def test_aliases_of_an_activation(activation: str) -> None:
    """Stored, and saved, under one of them."""
    dense, alone = fastrnn.Dense(2, 3, activation, rng=0), fastrnn.Activation(activation)
    rnn = fastrnn.RNN(2, 3, activation=activation, rng=0)
    assert [dense.activation, alone.activation] == ["identity"] * 2
    assert repr(rnn) == "RNN(2, 3, dtype=float32) [rnn_identity]"
    assert repr(dense) == repr(fastrnn.Dense(2, 3, None, rng=0)) == "Dense(2, 3, dtype=float32)"
    assert repr(alone) == "Activation('identity')"
    assert [described(layer)["activation"] for layer in (dense, alone)] == ["identity"] * 2
    x = np.random.default_rng(0).standard_normal((4, 1, 2), dtype=np.float32)
    assert_same_bits({"y": alone(x)}, {"y": x})
    W, U, b, b_rec = rnn.parameters().values()
    y = fastrnn.rnn_forward(x, W, U, b, b_rec, activation=activation).y
    assert_same_bits({"y": rnn(x)[0]}, {"y": y})
    h = [fastrnn.rnn_step(x[1], y[0], W, U, b, b_rec, activation=which) for which in (activation, "identity")]
    assert_same_bits({"h": h[0]}, {"h": h[1]})
    gates = {"W": W, "U": U, "b": b, "b_rec": b_rec}
    assert_same_bits({"y": fastrnn.from_gates(**gates, activation=activation)(x)[0]}, {"y": y})


def test_dropout() -> None:
    check(fastrnn.Dropout(0.3), {"x": np.random.default_rng(1).standard_normal((2, 5, 3))})


@pytest.mark.parametrize("shape", [(), (7,), (2, 5), (0, 3)])
def test_embedding(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).integers(0, 4, shape)
    check(fastrnn.Embedding(4, 3, dtype=np.float64, rng=0), {"x": x})


def test_embedding_of_padding() -> None:
    net = fastrnn.Embedding(4, 3, padding_idx=-2, dtype=np.float64, rng=0)
    x = np.array([[0, 2, 3], [2, 2, 3]])
    assert net.padding_idx == 2
    assert not net(x)[0, 1].any()
    dW = gradients(net, {"x": x}, {"y": np.ones((2, 3, 3))})["weight"]
    np.testing.assert_array_equal(dW[:, 0], [1, 0, 0, 2])


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("shape", [(), (7,), (2, 5), (0, 3)])
def test_sparse_embedding(shape: tuple[int, ...], padding: int | None) -> None:
    """It has only the rows of the batch; expanded, it is the gradient of a dense embedding."""
    rng = np.random.default_rng(1)
    x, dy = rng.integers(0, 4, shape), rng.standard_normal((*shape, 3))
    dense, sparse = (fastrnn.Embedding(4, 3, padding, sparse=s, dtype=np.float64, rng=0) for s in (False, True))
    found = gradients(sparse, {"x": x}, {"y": dy})["weight"]
    assert isinstance(found, fastrnn.layers.RowGradient)
    np.testing.assert_array_equal(found.rows, np.setdiff1d(x, [padding]))
    assert_same_bits({"weight": np.asarray(found)}, gradients(dense, {"x": x}, {"y": dy}))


def test_large_embeddings_are_sparse() -> None:
    assert [fastrnn.Embedding(n, 1).sparse for n in (1, 1024, 1025)] == [False, False, True]
    assert repr(fastrnn.Embedding(5, 3, 0, sparse=True)) == "Embedding(5, 3, padding_idx=0, sparse=True, dtype=float32)"
    assert repr(fastrnn.Embedding(2000, 3)) == "Embedding(2000, 3, dtype=float32)"
    with pytest.raises(TypeError, match=r"^sparse: expected True or False, got 1"):
        fastrnn.Embedding(5, 3, sparse=1)  # type: ignore[arg-type]


# What comes and goes


def test_backward_is_repeatable_and_linear(native: str) -> None:
    """A cache can be reused, and gradients are linear in dy and dstate."""
    net, given = wide("lstm", 2, np.float64, bidirectional=True)
    d = cotangents(net, given)
    dy, dstate = split(d)
    cache = forward(net, **given).cache
    both, again = (net.backward(dy, cache, dstate=dstate) for _ in range(2))
    assert_same_bits(again.grads, both.grads)
    parts = net.backward(dy, cache), net.backward(None, cache, dstate=dstate)
    assert_close({name: parts[0].grads[name] + parts[1].grads[name] for name in both.grads}, both.grads)


def test_absent_gradients() -> None:
    net = layer("lstm", 2, 3)
    x = np.ones((4, 2, 2), np.float32)
    y, state, cache = net.forward(x, training=True)
    assert net.backward(y, cache).dstate is None
    assert net.forward(x).cache is None
    assert fastrnn.Embedding(3, 2).forward([1], training=True).cache is not None
    embedding = fastrnn.Embedding(3, 2)
    y, state, cache = embedding.forward([1], training=True)
    assert (embedding.backward(y, cache).dx, state) == (None, None)


def test_return_sequences_false_is_the_final_state(native: str) -> None:
    lengths = [3, 0, 6]
    x = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(np.float32)
    for merge, merged in MERGED.items():
        options = {"bidirectional": True, "merge": merge, "batch_first": True}
        net = layer("lstm", 5, 7, return_sequences=False, **options)
        y, (h, _) = net(x, lengths=lengths)
        _, (expected, _) = layer("lstm", 5, 7, **options)(x, lengths=lengths)
        np.testing.assert_array_equal(h, expected)
        np.testing.assert_array_equal(y, merged(expected[0], expected[1]))
    one = layer("gru_after", 5, 7, 2, return_sequences=False)
    y, h = one(x[0])
    assert y.shape == (7,)
    np.testing.assert_array_equal(y, h[1])
    assert not np.shares_memory(y, h)


def test_dropout_between_layers() -> None:
    """Determined by rng and the rate, and only in training."""
    net = layer("rnn_identity", 3, 50, 2, dropout=0.25, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((9, 40, 3))
    one, same, other = (net.forward(x, training=True, rng=rng).y for rng in (1, np.random.default_rng(1), 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(net(x)[0], net.forward(x).y)
    net.stack.parts[1]["W"][...] = np.eye(50)
    net.stack.parts[1]["U"][...] = 0
    net.stack.parts[1]["b"][...] = net.stack.parts[1]["b_rec"][...] = 0
    below = layer("rnn_identity", 3, 50, dtype=np.float64)
    below.load_state_dict({name: a for name, a in net.state_dict().items() if name.endswith("l0")})
    ratio = net.forward(x, training=True, rng=3).y / below(x)[0]
    assert set(np.round(ratio, 12).ravel()) == {0.0, np.round(4 / 3, 12)}
    assert np.mean(ratio == 0) == pytest.approx(0.25, abs=0.02)


def test_dropout_layer() -> None:
    net, x = fastrnn.Dropout(0.2), np.ones((100, 100), np.float32)
    assert net(x) is x
    y = net.forward(x, training=True, rng=0).y
    assert y.dtype == np.float32
    assert y.mean() == pytest.approx(1, abs=0.02)
    assert np.mean(y == 0) == pytest.approx(0.2, abs=0.02)
    assert not np.array_equal(net.forward(x, training=True).y, net.forward(x, training=True).y)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_changed(bidirectional: bool, implementation: str) -> None:
    """After a change in place, inference, streams and training use the new parameters."""
    net, other = (layer("rnn_tanh", 5, 17, 2, rng=seed, bidirectional=bidirectional) for seed in (0, 1))
    x = np.random.default_rng(0).standard_normal((6, 1, 5)).astype(np.float32)
    before = named(*net(x))
    streams = [] if bidirectional else [net.stream(), net.stream()]
    for name, a in net.parameters().items():
        a[...] = other.state_dict()[name]
    net.changed()
    after = named(*net(x))
    assert not np.array_equal(after["y"], before["y"])
    assert_same_bits(after, named(*other(x)))
    assert_same_bits(named(*net.forward(x, training=True)[:2]), after)
    for stream in streams:
        assert_same_bits({"y": np.stack([stream.step(x_t) for x_t in x])}, {"y": after["y"]})


def test_changed_keeps_bfloat16() -> None:
    net = fastrnn.LSTM(3, 4, weight_dtype="bfloat16", rng=0)
    net.parameters()["weight_ih_l0"][...] = np.pi
    net.changed()
    assert (net.parameters()["weight_ih_l0"] == 3.140625).all()
    with pytest.raises(ValueError, match=r"^weight_dtype: .*bfloat16.*inference"):
        net.forward(np.ones((2, 1, 3), np.float32), training=True)


PLAIN = {
    "dense": (lambda seed: fastrnn.Dense(3, 4, "tanh", rng=seed), np.ones((2, 3), np.float32)),
    "embedding": (lambda seed: fastrnn.Embedding(5, 3, 1, rng=seed), np.array([[1, 4]])),
    "lstm": (lambda seed: fastrnn.LSTM(3, 4, dropout=0.5, num_layers=2, rng=seed), np.ones((2, 1, 3), np.float32)),
    "activation": (lambda seed: fastrnn.Activation("softmax"), np.ones((2, 3))),
    "dropout": (lambda seed: fastrnn.Dropout(0.5), np.ones((2, 3))),
}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("kind", PLAIN)
def test_copies(kind: str, copied: Callable[[Any], Any]) -> None:
    make, x = PLAIN[kind]
    net = make(0)
    before = net.forward(x).y
    twin = copied(net)
    assert repr(twin) == repr(net)
    np.testing.assert_array_equal(twin.forward(x).y, before)
    twin.set_weights(make(1).get_weights())
    np.testing.assert_array_equal(net.forward(x).y, before)
    np.testing.assert_array_equal(twin.forward(x).y, make(1).forward(x).y)
    assert not any(np.shares_memory(a, b) for a, b in zip(net.get_weights(), net.parameters().values(), strict=True))


@pytest.mark.parametrize(
    ("net", "shape", "expected"),
    [
        (fastrnn.Dense(3, 4), (None, 7, 3), (None, 7, 4)),
        (fastrnn.Dense(3, 4), (None, 3), (None, 4)),
        (fastrnn.Dense(3, 4), (None, 4), None),
        (fastrnn.Embedding(3, 4), (None, 7), (None, 7, 4)),
        (fastrnn.Dropout(0.5), (None, 7), (None, 7)),
        (fastrnn.Activation("tanh"), (None, 7), (None, 7)),
        (fastrnn.LSTM(3, 4), (9, None, 3), (9, None, 4)),
        (fastrnn.LSTM(3, 4, batch_first=True), (9, None, 3), (9, None, 4)),
        (fastrnn.LSTM(3, 4, bidirectional=True), (9, None, 3), (9, None, 8)),
        (fastrnn.LSTM(3, 4, bidirectional=True, merge="sum"), (9, None, 3), (9, None, 4)),
        (fastrnn.LSTM(3, 4, bidirectional=True, return_sequences=False), (9, None, 3), (None, 8)),
        (fastrnn.LSTM(3, 4, bidirectional=True, merge=None), (9, None, 3), None),
        (fastrnn.LSTM(3, 4), (9, None, 4), None),
        (fastrnn.LSTM(3, 4), (9, 3), None),
    ],
)
def test_output_shape(net: Any, shape: tuple[int | None, ...], expected: tuple[int | None, ...] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"expected|pair"):
            net.output_shape(shape)
    else:
        assert net.output_shape(shape) == expected
