"""Weights from and to Keras on its PyTorch backend: in-memory layers and models, bit for bit, and their results.

Files are read without Keras in tests/test_convert_keras_files.py and test_convert_keras_2.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from support.conversions import MANY, drawn, given, settings, written
from support.keras_layers import assert_predicts, randomized
from support.tolerance import FLOAT32, assert_close, assert_same_bits

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras and its backends issue some on import

X = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)

CELLS = ("lstm", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity")


def numbered(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {str(i): a for i, a in enumerate(arrays)}


def drawn_model(keras: Any, seed: int) -> Any:
    """Return a model of some recurrent layers with different options, and a Dense."""
    rng = np.random.default_rng([31, seed])
    stack: list[Any] = [keras.Input((None, 3))]
    depth = int(rng.integers(1, 3))
    for i in range(depth):
        kind = ["SimpleRNN", "LSTM", "GRU"][rng.integers(3)]
        options: dict[str, Any] = {"use_bias": bool(rng.integers(2)), "unroll": False}
        options["return_sequences"] = i < depth - 1 or bool(rng.integers(2))
        if kind == "GRU":
            options["reset_after"] = bool(rng.integers(2))
        if kind == "SimpleRNN":
            options["activation"] = ["tanh", "relu", "sigmoid", "linear"][rng.integers(4)]
        layer = getattr(keras.layers, kind)(int(rng.integers(1, 6)), **options)
        if rng.integers(2):
            layer = keras.layers.Bidirectional(layer, merge_mode=["concat", "sum", "mul", "ave"][rng.integers(4)])
        stack.append(layer)
    return randomized(keras.Sequential([*stack, keras.layers.Dense(2, activation="tanh")]), seed)


def assert_same_model(got: Any, expected: Any) -> None:
    assert repr(got) == repr(expected)
    assert_same_bits(got.parameters(), expected.parameters())


@pytest.mark.parametrize("seed", MANY[:16])
def test_round_trip_of_a_model(seed: int, keras: Any) -> None:
    model = drawn_model(keras, seed)
    ours = fastrnn.from_keras(model)
    assert_predicts(ours, model, X)
    back = fastrnn.to_keras(ours)
    assert_same_bits(numbered(back.get_weights()), numbered(model.get_weights()))
    assert_same_model(fastrnn.from_keras(back), ours)
    assert_same_bits(*({"y": keras.ops.convert_to_numpy(made(X))} for made in (back, model)))


@pytest.mark.parametrize("seed", MANY[:16])
def test_round_trip_of_a_layer(seed: int, keras: Any) -> None:
    """A recurrent layer of ours, which becomes a model if stacked; two biases become their sum."""
    layer = drawn(seed, CELLS, dtype=np.float32)
    made = fastrnn.to_keras(layer)
    x = given(layer, seed).swapaxes(0, 0 if layer.batch_first else 1)
    outputs = made(np.ascontiguousarray(x))
    y = layer(given(layer, seed))[0]
    pairs = zip(outputs, y, strict=True) if isinstance(y, tuple) else [(outputs, y)]
    for theirs, our in pairs:
        our = our if layer.batch_first or not layer.return_sequences else our.swapaxes(0, 1)
        assert_close({"y": keras.ops.convert_to_numpy(theirs)}, {"y": our}, FLOAT32)
    if layer.num_layers == 1:
        back = fastrnn.from_keras(made)
        both = isinstance(layer, fastrnn.GRU) and "gru_after" in repr(layer)
        bias = bool(layer.bias) and (True if both else "input")
        assert settings(back) == settings(layer) | {"batch_first": True, "bias": bias}
        if layer.bias is not True or both:
            own = layer.parameters()
            assert_same_bits({name: a for name, a in back.parameters().items() if name in own}, own)


def test_an_update_gate_that_writes(keras: Any) -> None:
    gru, x, y = written()
    made = fastrnn.to_keras(gru)
    got = keras.ops.convert_to_numpy(made(np.ascontiguousarray(x.swapaxes(0, 1))))
    assert_close({"y": got.swapaxes(0, 1)}, {"y": y}, FLOAT32)
    own = gru.parameters()
    assert_same_bits({name: fastrnn.from_keras(made).parameters()[name] for name in own}, own)


@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "linear", "softsign", "elu", "selu", "silu"])
@pytest.mark.parametrize("suffix", [None, ".keras", ".h5"])
def test_round_trip_of_other_activations(suffix: str | None, activation: str, keras: Any, tmp_path: Path) -> None:
    """In every place for a layer: alone, in two directions, in stacked cells; from files as from memory."""
    k = keras.layers
    both = {"activation": activation, "recurrent_activation": "hard_sigmoid"}
    cells = [k.GRUCell(2, reset_after=False, activation="softplus", recurrent_activation=activation)]
    layers = [
        k.LSTM(4, **both, return_sequences=True),
        k.Bidirectional(k.GRU(3, **both, return_sequences=True)),
        k.RNN([*cells, k.LSTMCell(3, **both), k.SimpleRNNCell(3, activation=activation)]),
    ]
    x = keras.Input((None, 3))
    y = x
    for layer in layers:
        y = layer(y)
    model = randomized(keras.Sequential([x, *layers]) if activation < "l" else keras.Model(x, y), 9)
    ours = fastrnn.from_keras(model)
    if suffix is not None:
        model.save(tmp_path / f"model{suffix}")
        assert_same_model(fastrnn.from_keras(tmp_path / f"model{suffix}"), ours)
    assert_predicts(ours, model, X)
    back = fastrnn.to_keras(ours)
    assert_predicts(ours, back, X)
    assert_same_model(fastrnn.from_keras(back), ours)


def test_default_activations_are_the_built_in_cells(keras: Any) -> None:
    for layer, kind in (
        (keras.layers.LSTM(4, activation="tanh", recurrent_activation="sigmoid"), fastrnn.LSTM),
        (keras.layers.GRU(4, activation="tanh"), fastrnn.GRU),
        (keras.layers.SimpleRNN(4, activation="linear"), fastrnn.RNN),
        (keras.layers.SimpleRNN(4, activation="elu"), fastrnn.Recurrent),
    ):
        layer.build((None, None, 3))
        assert type(fastrnn.from_keras(layer)) is kind


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_of_layers_on_fastrnn(suffix: str, keras: Any, tmp_path: Path) -> None:
    import fastrnn.keras

    gru = fastrnn.keras.GRU(4, "softsign", "hard_sigmoid", return_sequences=True)
    layers = [gru, keras.layers.Bidirectional(fastrnn.keras.GRU(4)), keras.layers.Dense(2)]
    model = randomized(keras.Sequential([keras.Input((None, 3)), *layers]), 8)
    model.save(tmp_path / f"model{suffix}")
    assert_predicts(fastrnn.from_keras(tmp_path / f"model{suffix}"), model, X)


def test_round_trip_of_every_kind_of_layer(keras: Any) -> None:
    ours = fastrnn.Sequential(
        [
            fastrnn.Embedding(7, 3, rng=0),
            fastrnn.GRU(3, 4, 2, reset_after=True, dropout=0.25, bidirectional=True, rng=1),
            fastrnn.Dropout(0.5),
            fastrnn.Dense(8, 3, rng=2),
            fastrnn.Activation("softmax"),
        ]
    )
    x = np.random.default_rng(0).integers(0, 7, (2, 5))
    model = fastrnn.to_keras(ours)
    assert_predicts(ours, model, x)
    flat = fastrnn.from_keras(model)
    kinds = [type(one).__name__ for one in flat]
    assert kinds == ["Embedding", "GRU", "Dropout", "GRU", "Dropout", "Dense", "Activation"]
    assert_same_bits({"y": flat.predict(x)}, {"y": ours.predict(x)})


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_layer_normalization_inside_a_model(suffix: str, keras: Any, tmp_path: Path) -> None:
    """An older file lists the weights of all inner layers together, and each takes its number of weights."""
    k = keras.layers
    norms = [k.LayerNormalization(), k.LayerNormalization(scale=False), k.LayerNormalization(center=False)]
    inner = keras.Sequential([norms[0], k.LSTM(4, return_sequences=True), norms[1], k.GRU(3), norms[2], k.Dense(2)])
    model = randomized(keras.Sequential([keras.Input((None, 3)), inner]), 4)
    model.save(tmp_path / f"model{suffix}")
    assert_predicts(fastrnn.from_keras(tmp_path / f"model{suffix}"), model, X)


def drawn_layers(draw: Any, keras: Any, depth: int, nests: int) -> list[Any]:
    """Return layers that read and return every step."""
    k, made = keras.layers, []
    for _ in range(depth):
        kind = draw(st.sampled_from(["rnn", "cells", "dense", "nothing", "nested"][: 5 if nests else 4]))
        units, bias = draw(st.integers(1, 4)), draw(st.booleans())
        cells = {
            "SimpleRNN": {"activation": draw(st.sampled_from(["tanh", "relu", "sigmoid", "linear"]))},
            "GRU": {"reset_after": draw(st.booleans())},
            "LSTM": {"unit_forget_bias": draw(st.booleans())},
        }
        name = draw(st.sampled_from(sorted(cells)))
        options = {"use_bias": bias, **cells[name]}
        if kind == "rnn":
            layer = getattr(k, name)(units, return_sequences=True, **options)
            if draw(st.booleans()):
                layer = k.Bidirectional(layer, merge_mode=draw(st.sampled_from(["concat", "sum", "mul", "ave"])))
            made.append(layer)
        elif kind == "cells":
            cell = getattr(k, f"{name}Cell")
            inside = [cell(units, **options) for _ in range(draw(st.integers(1, 2)))]
            made.append(k.RNN(inside if len(inside) > 1 else inside[0], return_sequences=True))
        elif kind == "dense":
            dense = k.Dense(units, use_bias=bias, activation="tanh", trainable=draw(st.booleans()))
            made.append(k.TimeDistributed(dense) if draw(st.booleans()) else dense)
        elif kind == "nothing":
            made.append(draw(st.sampled_from([k.Dropout(0.5), k.Activation("sigmoid"), k.SpatialDropout1D(0.1)])))
        else:
            made.append(keras.Sequential(drawn_layers(draw, keras, draw(st.integers(1, 3)), nests - 1)))
    return made


@hypothesis.settings(max_examples=30, deadline=None, database=None)
@hypothesis.given(data=st.data())
def test_any_model_computes_the_same(data: Any, keras: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nested models, masked or not, in memory and from both kinds of files."""
    draw, k = data.draw, keras.layers
    lengths = draw(st.none() | st.lists(st.integers(1, 6), min_size=3, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.standard_normal((3, 6, 2)).astype(np.float32)
    layers = drawn_layers(draw, keras, draw(st.integers(1, 3)), 2)
    if lengths is not None:
        x[np.arange(6) >= np.array(lengths)[:, None]] = 0
        layers = [k.Masking(), *layers]
    last = k.GRU(3, return_sequences=draw(st.booleans()))
    if draw(st.booleans()):
        model = keras.Sequential([keras.Input((None, 2)), *layers, last])
    else:
        y = given_x = keras.Input((None, 2))
        for layer in (*layers, last):
            y = layer(y)
        model = keras.Model(given_x, y)
    randomized(model, 0)
    expected = keras.ops.convert_to_numpy(model(x))
    source = draw(st.sampled_from([model, "model.keras", "model.h5"]))
    if source is not model:
        source = tmp_path_factory.mktemp("models") / source
        model.save(source)
    ours = fastrnn.from_keras(source, inference=True, lengths=lengths is not None)
    got = ours.predict(x, lengths=lengths)
    if last.return_sequences and lengths is not None:  # past the lengths, results may differ
        valid = np.arange(6) < np.array(lengths)[:, None]
        assert_close({"y": got[valid]}, {"y": expected[valid]}, FLOAT32)
        assert not got[~valid].any()
    else:
        assert_close({"y": got}, {"y": expected}, FLOAT32)


def test_one_layer_of_a_branching_model(keras: Any, tmp_path: Path) -> None:
    x = keras.Input((8, 3))
    y = keras.layers.BatchNormalization()(keras.layers.Conv1D(4, 3, padding="same")(x))
    y = keras.layers.Add()([y, keras.layers.Bidirectional(keras.layers.GRU(2, return_sequences=True), name="both")(y)])
    model = randomized(keras.Model(x, y), 3)
    theirs = model.get_layer("both")
    expected = fastrnn.from_keras(theirs)
    for source in (tmp_path / "model.keras", tmp_path / "model.h5", model):
        if source is not model:
            model.save(source)
        assert_same_bits(fastrnn.from_keras(source, layer="both").parameters(), expected.parameters())
        with pytest.raises(ValueError, match="expected a chain"):
            fastrnn.from_keras(source)
    with pytest.raises(ValueError, match="layer: expected None if model_or_path is a layer, got 'both'"):
        fastrnn.from_keras(theirs, layer="both")


@pytest.mark.parametrize("both", [False, True])
def test_round_trip_of_recurrent_dropout(both: bool, keras: Any) -> None:
    """With a single gate, a mask per gate is one for all, so it converts, and the model applies it in training."""
    made = keras.layers.SimpleRNN(4, recurrent_dropout=0.5, return_sequences=True)
    made = keras.layers.Bidirectional(made) if both else made
    made.build((None, None, 3))
    rnn = fastrnn.from_keras(made)
    assert rnn.recurrent_dropout == 0.5
    assert_predicts(rnn, made, X)
    training = [rnn.forward(X, training=True, rng=seed).y for seed in (1, 1, 2)]
    assert np.array_equal(training[0], training[1])
    assert not np.array_equal(training[0], training[2])
    back = fastrnn.to_keras(rnn)
    assert (back.forward_layer if both else back).recurrent_dropout == 0.5
    with pytest.raises(ValueError, match=r"recurrent_dropout: Keras cannot express 0\.5 of GRU"):
        fastrnn.to_keras(fastrnn.GRU(3, 4, reset_after=True, recurrent_dropout=0.5))


def test_two_separate_directions_are_a_pair(keras: Any) -> None:
    made = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True), merge_mode=None)
    made.build((None, None, 3))
    for theirs, ours in zip(made(X), fastrnn.from_keras(made)(X)[0], strict=True):
        assert_close({"y": ours}, {"y": keras.ops.convert_to_numpy(theirs)}, FLOAT32)
