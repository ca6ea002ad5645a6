"""Last steps, means and maxima over time, repetition, layer normalization: PyTorch's gradients, Keras' values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import ragged
from support.models import K, N, T, inputs, steps, targets
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.training import Sequential

SEEDS = range(3)

POOLS: dict[str, type[Any]] = {
    "last": fastrnn.LastStep,
    "mean": fastrnn.GlobalAveragePooling1D,
    "max": fastrnn.GlobalMaxPooling1D,
}

SIZES = ((1, 1, 1), (7, 3, 5), (15, 17, 3), (2, 33, 31))  # T, B, F


def drawn(shape: tuple[int, ...], seed: int, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng([seed, 7]).standard_normal(shape).astype(dtype)


# Over time


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", POOLS)
def test_values_and_gradients(kind: str, given: bool, shape: tuple[int, int, int], seed: int) -> None:
    """For each sequence alone; NaN past its length has no effect; with batch_first, too."""
    (T, B, F), lengths = shape, ragged(*shape[:2], seed) if given else None
    x, dy = drawn(shape, seed), drawn((B, F), seed + 10)
    y, dx = np.zeros((B, F)), np.zeros(shape)
    for b, n in enumerate(np.full(B, T) if lengths is None else lengths):
        x[n:, b] = np.nan
        if n == 0:
            continue
        if kind == "last":
            y[b], dx[n - 1, b] = x[n - 1, b], dy[b]
        elif kind == "mean":
            y[b], dx[:n, b] = x[:n, b].mean(axis=0), dy[b] / n
        else:
            y[b] = x[:n, b].max(axis=0)
            dx[:n, b] = (x[:n, b] == y[b]) * dy[b]
    for layer in (POOLS[kind](), POOLS[kind](batch_first=True)):
        turned = (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a)
        out = layer.forward(turned(x), lengths=lengths, training=True)
        back = layer.backward(dy, out.cache)
        assert_close({"y": out.y, "dx": turned(back.dx)}, {"y": y, "dx": dx})
        assert back.grads == {}
        assert layer.output_shape((None, B, F)) == (B, F)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", POOLS)
def test_gradients_are_those_of_torch(kind: str, seed: int, oracle: Callable[[str], Any]) -> None:
    torch = oracle("torch")
    x, dy = drawn((9, 5, 4), seed), drawn((5, 4), seed + 10)
    lengths = np.maximum(ragged(9, 5, seed), 1)
    t = torch.tensor(x, requires_grad=True)
    mask = torch.tensor(np.arange(9)[:, None] < lengths)[:, :, None]
    if kind == "last":
        y = t[torch.tensor(lengths - 1), torch.arange(5)]
    elif kind == "mean":
        y = torch.where(mask, t, 0).sum(0) / mask.sum(0)
    else:
        y = torch.where(mask, t, -torch.inf).max(0).values
    y.backward(torch.tensor(dy))
    layer = POOLS[kind]()
    out = layer.forward(x, lengths=lengths, training=True)
    assert_close({"y": out.y, "dx": layer.backward(dy, out.cache).dx}, {"y": y.detach().numpy(), "dx": t.grad.numpy()})


def test_ties_and_special_values() -> None:
    layer = fastrnn.GlobalMaxPooling1D()
    x = np.array([[[1.0, -np.inf]], [[1.0, -np.inf]], [[0.0, -np.inf]]])
    y, _, cache = layer.forward(x, training=True)
    assert y.tolist() == [[1.0, -np.inf]]
    assert layer.backward(np.ones((1, 2)), cache).dx[:, 0].tolist() == [[1, 1], [0, 0], [0, 0]]
    x[1, 0] = np.nan
    assert np.isnan(layer(x)).all()
    assert np.isnan(fastrnn.GlobalAveragePooling1D()(x)).all()
    many = np.full((10**6, 1, 1), 0.1, np.float32)
    assert fastrnn.GlobalAveragePooling1D()(many)[0, 0] == np.float32(0.1)


@pytest.mark.parametrize("kind", POOLS)
def test_no_steps(kind: str) -> None:
    layer, x = POOLS[kind](), np.zeros((0, 3, 2), np.float32)
    y, _, cache = layer.forward(x, training=True)
    assert_same_bits({"y": y}, {"y": np.zeros((3, 2), np.float32)})
    assert layer.backward(y, cache).dx.shape == x.shape
    assert layer(np.zeros((4, 0, 2), np.float32)).shape == (0, 2)


def test_last_step_equals_return_sequences_false() -> None:
    """In a model with any lengths, and in its training."""
    results = []
    for every in (False, True):
        lstm = fastrnn.LSTM(3, 5, return_sequences=every, dtype=np.float64, rng=1)
        dense = fastrnn.Dense(5, K, dtype=np.float64, rng=2)
        model = Sequential([lstm, fastrnn.LastStep(), dense] if every else [lstm, dense])
        model.compile(training.Adam(0.01), "mse")
        history = model.fit(inputs(), targets(N), epochs=2, batch_size=4, lengths=steps(), rng=0)
        predicted = model.predict(inputs(), lengths=steps())
        weights = {str(i): a for i, a in enumerate(model.get_weights())}
        results.append((history.history["loss"], {"y": predicted} | weights))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-12)
    assert_close(results[1][1], results[0][1])


# An encoder and a decoder


def autoencoder(batch_first: bool = False, **options: Any) -> list[Any]:
    encoder = fastrnn.LSTM(3, 5, return_sequences=False, dtype=np.float64, rng=1)
    decoder = fastrnn.GRU(5, 6, reset_after=True, batch_first=batch_first, dtype=np.float64, rng=2)
    dense = fastrnn.Dense(6, K, dtype=np.float64, rng=3)
    return [encoder, fastrnn.RepeatVector(4, batch_first=batch_first), decoder, dense]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_decoder_has_its_own_steps(nested: bool, batch_first: bool) -> None:
    """The encoder's lengths end there, also in nested models; y, weights and predictions have the decoder's steps."""
    layers = autoencoder(batch_first)
    model = Sequential([Sequential(layers[:3]), layers[3]] if nested else layers)
    loop = autoencoder()
    parameters = {f"{i}.{n}": p for i, layer in enumerate(loop) for n, p in layer.parameters().items()}
    y, w = targets(N, 4), np.random.default_rng(0).random((N, 4))
    model.compile(training.SGD(0.1, momentum=0.9), "mse", ["mae"])
    optimizer = training.SGD(0.1, momentum=0.9)
    options: dict[str, Any] = {"lengths": steps(), "sample_weight": w, "shuffle": False, "validation_split": 0.2}
    history = model.fit(inputs(), y, 2, batch_size=5, **options)
    first, losses = int(N * 0.8), []
    for _ in range(2):
        total = 0.0
        for part in (slice(0, 5), slice(5, first)):
            h, x, caches = steps()[part], inputs()[part].swapaxes(0, 1), []
            for i, layer in enumerate(loop):
                x, _, cache = layer.forward(x, lengths=h if i == 0 else None, training=True)
                caches.append(cache)
            judged = training.MeanSquaredError().judge(x, y[part].swapaxes(0, 1), None, w[part].T)
            total += judged.loss * judged.weight
            d, grads = judged.gradient, {}
            for i in (3, 2, 1, 0):
                d, _, g = loop[i].backward(d, caches[i])
                grads |= {f"{i}.{n}": a for n, a in g.items()}
            optimizer.step(parameters, {n: grads[n] for n in parameters})
            for layer in loop:
                layer.changed()
        losses.append(total / (w[:first].sum() * K))
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-12)
    assert_close({str(i): a for i, a in enumerate(model.get_weights())},
                 {str(i): a for i, a in enumerate(parameters.values())})  # fmt: skip
    predicted = model.predict(inputs(), lengths=steps(), batch_size=4)
    assert predicted.shape == (N, 4, K)
    one = np.concatenate([model.predict(inputs()[n : n + 1, : steps()[n]]) for n in range(N)])
    assert_close({"y": predicted}, {"y": one})
    assert model.output_shape((None, None, 3)) == (4, None, K)
    with pytest.raises(ValueError, match=r"^y: expected shape \(N, T, \.\.\.\) = \(13, 4, \.\.\.\), got \(13, 7, 4\)"):
        model.fit(inputs(), targets(N, T))
    with pytest.raises(ValueError, match=r"^truncate: expected a model that predicts every step"):
        model.fit(inputs(), y, truncate=2)


@pytest.mark.parametrize("dense", [False, True])
def test_from_vectors_to_sequences(dense: bool) -> None:
    """A model that begins with RepeatVector, or reads vectors, takes (N, F)."""
    first = [fastrnn.Dense(3, 3, dtype=np.float64, rng=0)] if dense else []
    model = Sequential([*first, fastrnn.RepeatVector(4), fastrnn.RNN(3, K, dtype=np.float64, rng=1)])
    assert (model.input_shape, model.output_shape((None, 3))) == ((None, 3), (4, None, K))
    assert "(None, 4, 3)" in model.summary()
    model.compile(training.Adam(0.01), "mse")
    losses = model.fit(inputs()[:, 0], targets(N, 4), epochs=5, rng=0).history["loss"]
    assert losses[-1] < losses[0]
    x = inputs()[:, 0] if not dense else model.layers[0](inputs()[:, 0])
    y = model.layers[-1](np.stack([x] * 4))[0]
    assert_close({"y": model.predict(inputs()[:, 0], batch_size=3)}, {"y": y.swapaxes(0, 1)})
    nested = Sequential([model, fastrnn.LastStep()])
    assert nested.predict(inputs()[:, 0]).shape == (N, K)


def test_a_decoder_with_as_many_steps_as_the_encoder() -> None:
    layers = autoencoder()
    model = Sequential([layers[0], fastrnn.RepeatVector(T), *layers[2:]])
    y = model.predict(inputs(), lengths=steps())
    assert y.shape == (N, T, K)
    assert (y[np.arange(T) >= steps()[:, None]] != 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_repetition(seed: int) -> None:
    x, dy = drawn((5, 3), seed), drawn((4, 5, 3), seed + 10)
    for layer in (fastrnn.RepeatVector(4), fastrnn.RepeatVector(4, batch_first=True)):
        turned = (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a)
        y, _, cache = layer.forward(x, training=True)
        assert_same_bits({"y": np.ascontiguousarray(turned(y))}, {"y": np.stack([x] * 4)})
        assert_close({"dx": layer.backward(turned(dy), cache).dx}, {"dx": dy.sum(axis=0)})


# Layer normalisation


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5,), (3, 1), (7, 3, 17), (2, 33, 97)])
@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, False)])
def test_normalisation_is_that_of_torch(
    affine: tuple[bool, bool], shape: tuple[int, ...], dtype: Any, seed: int, oracle: Callable[[str], Any]
) -> None:
    torch = oracle("torch")
    scale, center = affine
    layer = fastrnn.LayerNormalization(shape[-1], 1e-3, scale=scale, center=center, dtype=dtype)
    theirs = torch.nn.LayerNorm(shape[-1], 1e-3, elementwise_affine=scale, bias=center).double()
    layer.load_state_dict({name: 1 + drawn(p.shape, seed + 20, dtype) for name, p in layer.parameters().items()})
    theirs.load_state_dict({name: torch.tensor(p.astype(float)) for name, p in layer.parameters().items()})
    x, dy = (10 + 3 * drawn(shape, seed)).astype(dtype), drawn(shape, seed + 10, dtype)
    t = torch.tensor(x.astype(float), requires_grad=True)
    expected = theirs(t)
    expected.backward(torch.tensor(dy.astype(float)))
    y, _, cache = layer.forward(x, training=True)
    back = layer.backward(dy, cache)
    grads = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    got = {"y": y, "dx": back.dx} | back.grads
    assert all(a.dtype == dtype for a in got.values())
    assert list(back.grads) == list(layer.parameters())
    if shape[-1] == 1:  # the mean of one number is the number: exactly 0, while PyTorch rounds
        assert not any(got.pop(name).any() for name in ("dx", "weight") if name in got)
    wanted = {"y": expected.detach().numpy(), "dx": t.grad.numpy()} | grads
    assert_close(got, {name: wanted[name] for name in got}, 1e-12 if dtype is np.float64 else 3e-5)


def test_only_center() -> None:
    layer = fastrnn.LayerNormalization(3, scale=False, dtype=np.float64)
    assert list(layer.parameters()) == ["bias"]
    layer.bias[:] = [1, 2, 3]
    x, dy = drawn((4, 3), 0), drawn((4, 3), 1)
    y, _, cache = layer.forward(x, training=True)
    plain = fastrnn.LayerNormalization(3, scale=False, center=False, dtype=np.float64)
    assert_close({"y": y}, {"y": plain(x) + layer.bias})
    back = layer.backward(dy, cache)
    assert_close(back.grads, {"bias": dy.sum(axis=0)})


# Files, Keras, errors


@pytest.mark.parametrize(
    "made",
    [
        *("LastStep()", "LastStep(batch_first=True)", "GlobalAveragePooling1D()", "RepeatVector(3)"),
        *("GlobalMaxPooling1D(batch_first=True)", "RepeatVector(3, batch_first=True)"),
        "LayerNormalization(3, 1e-05, dtype=float64)",
        "LayerNormalization(3, 0.25, scale=False, dtype=float32)",
        "LayerNormalization(3, 0, scale=False, center=False, dtype=float32)",
    ],
)
def test_files(made: str, tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("safetensors")
    layer = eval(made, vars(fastrnn) | {"float32": np.float32, "float64": np.float64})
    assert repr(layer) == made
    layer.load_state_dict({name: drawn(p.shape, 0, p.dtype) for name, p in layer.parameters().items()})
    fastrnn.save(tmp_path / "layer", layer)
    loaded = fastrnn.load(tmp_path / "layer")
    assert (repr(loaded), type(loaded)) == (made, type(layer))
    assert_same_bits(loaded.state_dict(), layer.state_dict())


def test_damaged_files(tmp_path: Path, oracle: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    oracle("safetensors")
    layer = fastrnn.LayerNormalization(3)
    layer.weight = np.ones(4, np.float32)
    fastrnn.save(tmp_path / "layer", layer)
    with pytest.raises(ValueError, match=r"LayerNormalization: weight: expected shape \(3,\), got \(4,\)"):
        fastrnn.load(tmp_path / "layer")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("suffix", [None, ".keras", ".h5"])
@pytest.mark.filterwarnings("ignore")
def test_from_and_to_keras(suffix: str | None, seed: int, keras: Any, tmp_path: Path) -> None:
    k, rng = keras.layers, np.random.default_rng(seed)
    pool = [k.GlobalAveragePooling1D, k.GlobalMaxPooling1D][seed % 2]
    scale, center = bool(seed != 1), bool(seed != 2)
    norm = k.LayerNormalization(epsilon=0.01, scale=scale, center=center)
    top = [k.LSTM(5, return_sequences=True), pool(), k.RepeatVector(3), k.GRU(4, return_sequences=True)]
    model = keras.Sequential([keras.Input((None, 3)), norm, *top, k.LayerNormalization(), k.Dense(2)])
    model.set_weights([rng.standard_normal(w.shape).astype(w.dtype) for w in model.get_weights()])
    if suffix:
        model.save(tmp_path / f"model{suffix}")
    ours = fastrnn.from_keras(tmp_path / f"model{suffix}" if suffix else model)
    kinds = [type(layer).__name__ for layer in ours.layers]
    assert kinds == [type(layer).__name__ for layer in model.layers]
    x = rng.standard_normal((4, 6, 3)).astype(np.float32)
    expected = {"y": keras.ops.convert_to_numpy(model(x))}
    assert_close({"y": ours.predict(x)}, expected, 5e-6)
    back = fastrnn.to_keras(ours)
    assert_same_bits({"y": keras.ops.convert_to_numpy(back(x))}, expected)
    weights = [{str(i): a for i, a in enumerate(m.get_weights())} for m in (back, model)]
    assert_same_bits(*weights)


@pytest.mark.filterwarnings("ignore")
def test_keras_masks(keras: Any) -> None:
    """Keras' mean obeys them, too; its maximum does not, so that raises an error."""
    k, x = keras.layers, np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
    lengths = np.array([7, 1, 3, 5, 2])
    x[np.arange(7) >= lengths[:, None]] = 0
    models = [
        keras.Sequential([keras.Input((7, 3)), k.Masking(), k.GRU(4, return_sequences=True), pool(), k.Dense(2)])
        for pool in (k.GlobalAveragePooling1D, k.GlobalMaxPooling1D)
    ]
    ours = fastrnn.from_keras(models[0], lengths=True)
    expected = keras.ops.convert_to_numpy(models[0](x))
    assert_close({"y": ours.predict(x, lengths=lengths)}, {"y": expected}, 5e-6)
    with pytest.raises(ValueError, match=r"GlobalMaxPooling1D.*: expected no mask, because Keras ignores it"):
        fastrnn.from_keras(models[1], lengths=True)
    for layer, message in (
        (k.LayerNormalization(axis=1), "axis: expected -1"),
        (k.LayerNormalization(rms_scaling=True), "rms_scaling: True is not supported"),
        (k.GlobalAveragePooling1D(keepdims=True), "keepdims: True is not supported"),
        (k.GlobalMaxPooling1D(data_format="channels_first"), "data_format: expected 'channels_last'"),
    ):
        layer.build((None, 7, 3))
        with pytest.raises(ValueError, match=message):
            fastrnn.from_keras(layer)
    with pytest.raises(ValueError, match=r"^layer: Keras has no LastStep"):
        fastrnn.to_keras(fastrnn.LastStep())


LAST, EVERY, REPEAT = fastrnn.LSTM(3, 4, return_sequences=False), fastrnn.LSTM(3, 4), r"layer 1 \(RepeatVector\)"


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (ValueError, r"x: expected shape \(T, B, F\)", lambda: fastrnn.LastStep()(np.ones((2, 3)))),
        (ValueError, r"x: expected shape \(B, T, F\)", lambda: fastrnn.LastStep(batch_first=True)(np.ones((2, 3)))),
        (TypeError, "x", lambda: fastrnn.GlobalMaxPooling1D()(np.ones((2, 3, 1), int))),
        (TypeError, "batch_first", lambda: fastrnn.GlobalMaxPooling1D(batch_first=1)),
        (ValueError, "lengths", lambda: fastrnn.LastStep().forward(np.ones((2, 3, 1)), lengths=[3, 1, 1])),
        (ValueError, "state", lambda: fastrnn.LastStep().forward(np.ones((2, 3, 1)), state=1)),
        (ValueError, "n: expected a positive integer, got 0", lambda: fastrnn.RepeatVector(0)),
        (TypeError, "n: expected a positive integer", lambda: fastrnn.RepeatVector(1.5)),  # type: ignore[arg-type]
        (ValueError, r"x: expected shape \(B, F\)", lambda: fastrnn.RepeatVector(2)(np.ones((2, 3, 1)))),
        (ValueError, "input_size", lambda: fastrnn.LayerNormalization(0)),
        (ValueError, "epsilon", lambda: fastrnn.LayerNormalization(3, -1.0)),
        (TypeError, "scale", lambda: fastrnn.LayerNormalization(3, scale=1)),  # type: ignore[arg-type]
        (TypeError, "dtype", lambda: fastrnn.LayerNormalization(3, dtype=int)),
        (ValueError, r"x: expected shape \(\.\.\., 3\)", lambda: fastrnn.LayerNormalization(3)(np.ones((2, 4), "f"))),
        (TypeError, "x", lambda: fastrnn.LayerNormalization(3)(np.ones((2, 3)))),
        (ValueError, r"layer 1 \(LastStep\): x: expected shape", lambda: Sequential([LAST, fastrnn.LastStep()])),
        (ValueError, rf"{REPEAT}: x: expected shape", lambda: Sequential([EVERY, fastrnn.RepeatVector(3)])),
    ],
)
def test_errors(error: type[Exception], said: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=f"^{said}"):
        call()
