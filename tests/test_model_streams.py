"""Streams of whole models: steps are bit-identical to `predict`, sequence by sequence, and allocate nothing."""

from __future__ import annotations

import copy
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.problems import CELLS
from support.stacks import layer
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn import LSTM, Activation, Dense, Dropout, Embedding, LastStep, LayerNormalization, Sequential


def some_cells(dtype: Any) -> Sequential:
    return Sequential(
        [
            Dense(5, 7, "relu", rng=0, dtype=dtype),
            LSTM(7, 33, 2, peephole=True, rng=1, dtype=dtype),
            Dropout(0.5),
            Activation("tanh"),
            fastrnn.GRU(33, 12, reset_after=False, rng=2, dtype=dtype),
            Sequential([fastrnn.RNN(12, 9, rng=3, dtype=dtype), Dropout(0.1), Dense(9, 40, rng=4, dtype=dtype)]),
            Activation("softmax"),
        ]
    )


def normalized(dtype: Any) -> Sequential:
    """Return models with layer normalization first, last and in between, with all combinations of parameters."""
    layers = [
        *(LayerNormalization(5, dtype=dtype), LSTM(5, 33, rng=0, dtype=dtype)),
        *(LayerNormalization(33, 1e-3, scale=False, dtype=dtype), Dense(33, 7, "tanh", rng=1, dtype=dtype)),
        LayerNormalization(7, center=False, dtype=dtype),
    ]
    model, rng = Sequential(layers), np.random.default_rng(2)
    model.set_weights([rng.uniform(-1, 1, p.shape).astype(dtype) for p in model.get_weights()])
    return model


MODELS: dict[str, Callable[[Any], Sequential]] = {
    "some cells": some_cells,
    "a projection": lambda dtype: Sequential(
        [LSTM(5, 33, proj_size=6, rng=0, dtype=dtype), Dense(6, 3, "sigmoid", bias=False, rng=1, dtype=dtype)]
    ),
    "a cell of a user's": lambda dtype: Sequential(
        [fastrnn.Recurrent(own_cells.gru, 5, 17, 2, rng=0, dtype=dtype), Dense(17, 1, rng=1, dtype=dtype)]
    ),
    "normalization": normalized,
    "zoneout": lambda dtype: Sequential([LSTM(5, 17, zoneout=0.3, rng=0, dtype=dtype)]),
    "no recurrence": lambda dtype: Sequential([Activation("sigmoid"), Dense(5, 3, rng=1, dtype=dtype)]),
    "nothing": lambda dtype: Sequential([Dropout(0.5), Activation("linear"), Dense(5, 5, rng=1, dtype=dtype)]),
}
SHAPES = [(1, 6), (3, 6), (17, 3)]


def series(B: int, T: int, I: int = 5, dtype: Any = np.float32, seed: Any = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((B, T, I)).astype(dtype)


def letters(B: int, T: int, n: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, n, (B, T))


def stepped(stream: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    """Return the expected result of `predict`, step by step."""
    return np.stack([stream.step(x[:, t], **options) for t in range(x.shape[1])], axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MODELS)
def test_steps_equal_predict(name: str, dtype: type, native: str) -> None:
    """For the same rows and others; a second part of a sequence continues from the first."""
    model = MODELS[name](dtype)
    for B, T in SHAPES:
        x = series(B, T, dtype=dtype)
        stream = model.stream(B)
        got = stepped(stream, x)
        assert_same_bits({"y": got}, {"y": model.predict(x)})
        assert_same_bits({"y": got[:1]}, {"y": model.predict(x[:1])})
        twice = stepped(stream, x)
        assert_same_bits({"y": twice}, {"y": model.predict(np.concatenate([x, x], axis=1))[:, T:]})


@pytest.mark.parametrize("name", MODELS)
def test_other_backends(name: str, implementation: str) -> None:
    model, x = MODELS[name](np.float64), series(3, 6, dtype=np.float64)
    assert_close({"y": stepped(model.stream(3), x)}, {"y": model.predict(x)})


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell(cell: str, native: str) -> None:
    model = Sequential([layer(cell, 5, 17, 2), Dense(17, 10, "softmax", rng=1)])
    x = series(3, 8)
    assert_same_bits({"y": stepped(model.stream(3), x)}, {"y": model.predict(x)})


def test_bfloat16_and_threads(native: str) -> None:
    model = Sequential([LSTM(5, 700, weight_dtype="bfloat16", rng=0), Dense(700, 9000, rng=1)])
    x = series(2, 3)
    for threads in (1, 3):
        assert_same_bits({"y": stepped(model.stream(2, threads=threads), x)}, {"y": model.predict(x)})


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_letters(kind: type, native: str) -> None:
    model = Sequential([Embedding(11, 6, rng=0), fastrnn.GRU(6, 9, reset_after=True, rng=1), Dense(9, 11, "softmax")])
    x = letters(3, 8, 11)
    expected = model.predict(x)
    assert_same_bits({"y": stepped(model.stream(3), x.astype(kind))}, {"y": expected})
    alone, out = model.stream(), np.empty(11, np.float32)
    for t, letter in enumerate(x[0].tolist()):
        assert alone.step(kind(letter), out) is out
        assert_same_bits({"y": out}, {"y": expected[0, t]})
    assert_same_bits({"y": stepped(Sequential([model.layers[0]]).stream(3), x)}, {"y": model.layers[0](x)})


@pytest.mark.parametrize("wrong", [[11], [-1], 2**40, 0.5, "a", [[1]], [1, 2], None])
def test_invalid_letters(wrong: Any, backend: str) -> None:
    model = Sequential([Embedding(11, 6, rng=0), LSTM(6, 9, rng=1)])
    stream, x = model.stream(), letters(1, 3, 11)
    with pytest.raises((TypeError, ValueError), match=r"^x\b"):
        stream.step(wrong)
    assert_same_bits({"y": stepped(stream, x)}, {"y": stepped(model.stream(), x)})


@pytest.mark.parametrize(
    "top",
    [
        [LSTM(9, 8, return_sequences=False, rng=1)],
        [LSTM(9, 8, rng=1), LastStep()],
        [LSTM(9, 8, rng=1), LayerNormalization(8), Sequential([LastStep(batch_first=True)])],
    ],
)
def test_models_that_return_the_last_step(top: list[Any], native: str) -> None:
    """Every step returns the model's result if the sequence ended there."""
    model = Sequential([LSTM(5, 9, rng=0), *top, Dense(8, 3, rng=2)])
    x = series(3, 6)
    got = stepped(model.stream(3), x)
    for t in range(6):
        assert_same_bits({"y": got[:, t]}, {"y": model.predict(x[:, : t + 1])})


def test_batch_first_makes_no_difference(native: str) -> None:
    model = Sequential([LSTM(5, 9, batch_first=True, rng=0), Dense(9, 3, rng=2)])
    assert_same_bits({"y": stepped(model.stream(3), series(3, 6))}, {"y": model.predict(series(3, 6))})


def test_layers_without_state(native: str) -> None:
    """Layers without a state have streams, too."""
    x = series(3, 4)
    for one in (Dense(5, 3, "softmax", rng=0), Sequential([Dense(5, 3, "softmax", rng=0)]), LayerNormalization(5)):
        assert_same_bits({"y": stepped(one.stream(3), x)}, {"y": one.forward(x).y})


# State


def test_state_is_that_of_forward(native: str) -> None:
    """One entry per layer, None for layers without a state, a tuple for a nested model."""
    model, x = some_cells(np.float32), series(3, 8)
    stream = model.stream(3)
    stepped(stream, x[:, :5])
    _, state, _ = model.forward(x[:, :5])
    flat = [*state[1], state[4], state[5][0]]
    own = stream.state
    assert own[0] is own[2] is own[3] is own[6] is own[5][1] is None
    for a, b in zip([*own[1], own[4], own[5][0]], flat, strict=True):
        assert_same_bits({"s": a}, {"s": b})
    other = model.stream(3)
    other.state = own
    assert_same_bits({"y": stepped(other, x[:, 5:])}, {"y": model.forward(x[:, 5:], state=own).y})


def test_state_passed_by_the_caller(backend: str) -> None:
    model, x = some_cells(np.float32), series(3, 8)
    stream = model.stream(3)
    state = copy.deepcopy(stream.state)
    y = stepped(stream, x, state=state)
    assert not any(np.any(s) for s in (*stream.state[1], stream.state[4], stream.state[5][0]))
    assert_same_bits({"y": stepped(stream, x)}, {"y": y})
    assert_same_bits({"s": state[4]}, {"s": stream.state[4]})


@pytest.mark.parametrize("wrong", [5, None, (1, 2), (None,) * 7, "all but one"])
def test_wrong_state(wrong: Any, backend: str) -> None:
    model, x = some_cells(np.float32), series(3, 2)
    stream = model.stream(3)
    stepped(stream, x)
    before = stream.state
    if wrong == "all but one":
        wrong = (*before[:4], before[4][:, :2], *before[5:])
    with pytest.raises((TypeError, ValueError), match=r"^state\b"):
        stream.state = wrong
    if wrong is not None:
        with pytest.raises((TypeError, ValueError), match=r"^state\b"):
            stream.step(x[:, 0], state=wrong)
    assert_same_bits({"s": stream.state[4]}, {"s": before[4]})


@pytest.mark.parametrize("how", ["method", "step"])
def test_reset_of_single_sequences(how: str, backend: str) -> None:
    """They start from zero before a step; the others are not affected."""
    model, x = some_cells(np.float32), series(4, 8)
    mask, stream = np.array([True, False, False, True]), model.stream(4)
    first = stepped(stream, x[:, :5])
    if how == "method":
        stream.reset(mask)
        later = stepped(stream, x[:, 5:])
    else:
        head = stream.step(x[:, 5], reset=mask)
        later = np.concatenate([head[:, None], stepped(stream, x[:, 6:])], axis=1)
    whole, afresh = stepped(model.stream(4), x), stepped(model.stream(4), x[:, 5:])
    assert_same_bits({"y": first}, {"y": whole[:, :5]})
    assert_same_bits({"y": later}, {"y": np.where(mask[:, None, None], afresh, whole[:, 5:])})


@pytest.mark.parametrize("cell", CELLS)
def test_reset_in_a_step_is_resets(cell: str, implementation: str) -> None:
    """It equals `resets` in a call of the layer, also with a state passed by the caller."""
    net, rng = layer(cell, 5, 17, 2), np.random.default_rng(0)
    x, resets = series(9, 3).astype(np.float32), rng.random((9, 3)) < 0.4
    expected = net(x, resets=resets)[0]
    stream = net.stream(3)
    y = np.stack([stream.step(a, reset=r) for a, r in zip(x, resets, strict=True)])
    assert_same_bits({"y": y}, {"y": expected})
    state = tuple([np.ones((2, 3, 17), np.float32) for _ in net.stack.cell.states])
    stream.step(x[0], state=state, reset=np.ones(3, bool))
    assert_same_bits({"y": stream.step(x[1], state=state, reset=resets[1])}, {"y": net(x[:2], resets=resets[:2])[0][1]})


@pytest.mark.parametrize("wrong", [1, [0, 1, 2], np.ones(3), np.ones(4, bool), np.ones((3, 1), bool), "abc"])
def test_wrong_reset(wrong: Any, backend: str) -> None:
    net = LSTM(5, 4, rng=0)
    x, stream = series(2, 3), net.stream(3)
    stream.step(x[0])
    with pytest.raises((TypeError, ValueError), match=r"^reset\b"):
        stream.step(x[1], reset=wrong)
    assert_same_bits({"y": stream.step(x[1])}, {"y": net(x)[0][1]})


def test_a_model_without_a_state(backend: str) -> None:
    model = Sequential([Dense(5, 3, rng=0), Dropout(0.5)])
    stream, x = model.stream(3), series(3, 2)
    stream.reset([1])
    with pytest.raises(IndexError, match="sequences"):
        stream.reset(3)
    assert stream.state == (None, None)
    stream.state = (None, None)
    assert_same_bits({"y": stream.step(x[:, 0], reset=np.ones(3, bool))}, {"y": model(x[:, 0])})


# Memory


@pytest.mark.by_turns
@pytest.mark.parametrize("B", [1, 3])
def test_steps_allocate_nothing(B: int, native: str) -> None:
    models = [
        Sequential(
            [
                *(LSTM(2000, 500, 2, rng=0), Dense(500, 3000, "softmax", rng=1)),
                *(LayerNormalization(3000), LastStep(), Activation("tanh")),
            ]
        ),
        Sequential([Embedding(7, 2000, rng=0), fastrnn.GRU(2000, 500, reset_after=False, rng=1)]),
    ]
    for model, N in zip(models, (3000, 500), strict=True):
        stream, out = model.stream(B, threads=1), np.empty((B, N), np.float32)
        x = np.zeros(B, np.intp) if N == 500 else np.ones((B, 2000), np.float32)
        stream.step(x, out)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            stream.step(x, out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - before < 1500
        blocks = sys.getallocatedblocks()
        for _ in range(80):
            stream.step(x, out)
        assert sys.getallocatedblocks() - blocks < 50


@pytest.mark.parametrize("dense", [True, False])
def test_x_and_out_share_memory(dense: bool, backend: str) -> None:
    """Completely or partly."""
    x, lstm = series(3, 4), LSTM(5, 5, rng=1)
    layers = [Dense(5, 5, rng=0), lstm, Dense(5, 5, "softmax", rng=2)] if dense else [LayerNormalization(5)]
    model = Sequential(layers)
    expected, memory = stepped(model.stream(3), x), np.empty((6, 5), np.float32)
    for x_at, out_at in ((0, 0), (1, 0), (0, 2)):
        stream = model.stream(3)
        for t in range(4):
            memory[x_at : x_at + 3] = x[:, t]
            out = memory[out_at : out_at + 3]
            stream.step(memory[x_at : x_at + 3], out)
            assert_same_bits({"y": out}, {"y": expected[:, t]})


@pytest.mark.parametrize("made", [some_cells, normalized])
def test_stream_follows_its_model(made: Callable[[Any], Sequential], backend: str) -> None:
    model, other, x = made(np.float32), made(np.float32), series(3, 6)
    for value in other.parameters().values():
        value *= 0.7
    other.changed()
    stream = model.stream(3)
    stepped(stream, x)
    model.load_state_dict(other.state_dict())
    stream.reset()
    assert_same_bits({"y": stepped(stream, x)}, {"y": stepped(other.stream(3), x)})


def test_training_reaches_the_stream(native: str) -> None:
    model = Sequential([LSTM(5, 9, rng=0), Dense(9, 2, rng=1)])
    x, stream = series(8, 6), model.stream(8)
    model.compile("adam", "mse")
    model.fit(x, np.ones((8, 6, 2), np.float32), epochs=2, rng=0)
    assert_same_bits({"y": stepped(stream, x)}, {"y": model.predict(x)})


# Layers that cannot run step by step


class Doubled(Dense):
    """A Dense with another forward."""

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return 2 * x, {}


class Own(fastrnn.layers.Layer):
    pass


@pytest.mark.parametrize(
    ("said", "layers"),
    [
        (r"layer 0 \(LSTM\): stream: a bidirectional layer", lambda: [LSTM(5, 4, bidirectional=True), Dense(8, 2)]),
        (r"layer 1 \(Doubled\): stream: Doubled cannot run step by step", lambda: [Dense(5, 4), Doubled(4, 2)]),
        (
            r"layer 1 \(GlobalMaxPooling1D\): stream: GlobalMaxPooling1D cannot run .* on whole sequences",
            lambda: [LSTM(5, 4), fastrnn.GlobalMaxPooling1D(), Dense(4, 2)],
        ),
        (
            r"layer 2 \(RepeatVector\): stream: RepeatVector cannot",
            lambda: [LSTM(5, 4), LastStep(), fastrnn.RepeatVector(3)],
        ),
        (r"layer 1 \(Own\): stream: Own cannot run step by step", lambda: [Dense(5, 4), Own()]),
        (r"layer 1 \(Embedding\): x: an Embedding reads integers", lambda: [Dense(5, 4), Embedding(3, 2)]),
        (r"layer 0 \(LastStep\): x: its|x: its number of features is unknown", lambda: [LastStep()]),
        (r"layer 0 \(Activation\): x: its number of features is unknown", lambda: [Activation("tanh")]),
        (r"layer 1 \(Sequential\): layer 0 \(Own\)", lambda: [Dense(5, 4), Sequential([Own()])]),
        (r"layer 1 \(Dense\): dtype", lambda: [LSTM(5, 4), Dense(4, 2, dtype=np.float64)]),
    ],
)
def test_layers_that_cannot_run_step_by_step(said: str, layers: Callable[[], list[Any]]) -> None:
    model = Sequential(layers())
    for make in (model.stream, lambda: model.pool(3)):
        with pytest.raises((TypeError, ValueError), match=said):
            make()


# Of other frameworks


@pytest.mark.filterwarnings("ignore")  # Keras and its backends issue some on import
def test_from_keras(keras: Any, tmp_path: Path, native: str) -> None:
    """A stateful Keras model, step by step: the bits of `predict`, and Keras' values."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None,)),
            layers.Embedding(11, 6),
            layers.LSTM(20, return_sequences=True),
            layers.GRU(9, return_sequences=True),
            layers.Dropout(0.3),
            layers.TimeDistributed(layers.Dense(5, activation="relu")),
            layers.Dense(4, activation="softmax"),
        ]
    )
    path = tmp_path / "model.keras"
    model.save(path)
    ours, x = fastrnn.from_keras(path), letters(3, 9, 11)
    got = stepped(ours.stream(3), x)
    assert_same_bits({"y": got}, {"y": ours.predict(x)})
    assert_close({"y": got}, {"y": np.asarray(model.predict(x, verbose=0), np.float64)}, 1e-5)
