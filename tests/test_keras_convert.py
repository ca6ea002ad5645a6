"""Weights from and to Keras, on its PyTorch backend: live layers and models, bit by bit, and what they compute.

Files are read without Keras in tests/test_convert.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import MANY, drawn, given, settings, small
from tolerance import assert_close, assert_same_bits

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras and its backends give some while they are imported

CELLS = ("lstm", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity")

BOUND = 2e-6  # float32


@pytest.fixture(scope="module")
def keras(oracle: Callable[[str], Any]) -> Any:
    oracle("torch")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return oracle("keras")


def numbered(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {str(i): a for i, a in enumerate(arrays)}


def randomized(made: Any, seed: int) -> Any:
    rng = np.random.default_rng([30, seed])
    made.set_weights([0.5 * rng.standard_normal(w.shape).astype(w.dtype) for w in made.get_weights()])
    return made


def drawn_model(keras: Any, seed: int) -> Any:
    """Some recurrent layers, each with other options, and a Dense."""
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


@pytest.mark.parametrize("seed", MANY[:16])
def test_model_there_and_back(seed: int, keras: Any) -> None:
    model = drawn_model(keras, seed)
    x = np.random.default_rng(seed).standard_normal((2, 5, 3)).astype(np.float32)
    ours = fastrnn.from_keras(model)
    assert_close({"y": ours.predict(x)}, {"y": keras.ops.convert_to_numpy(model(x))}, BOUND)
    back = fastrnn.to_keras(ours)
    assert_same_bits(numbered(back.get_weights()), numbered(model.get_weights()))
    again = fastrnn.from_keras(back)
    assert repr(again) == repr(ours)
    assert_same_bits(again.parameters(), ours.parameters())
    assert_same_bits({"y": keras.ops.convert_to_numpy(back(x))}, {"y": keras.ops.convert_to_numpy(model(x))})


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files(suffix: str, keras: Any, tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("h5py")
    model = drawn_model(keras, 5)
    model.save(tmp_path / f"model{suffix}")
    from_file, live = fastrnn.from_keras(tmp_path / f"model{suffix}"), fastrnn.from_keras(model)
    assert repr(from_file) == repr(live)
    assert_same_bits(from_file.parameters(), live.parameters())


@pytest.mark.parametrize("seed", MANY[:16])
def test_layer_there_and_back(seed: int, keras: Any) -> None:
    """One recurrent layer of ours, which becomes a model where it is a stack; two biases become their sum."""
    layer = drawn(seed, CELLS, dtype=np.float32)
    made = fastrnn.to_keras(layer)
    x = given(layer, seed).swapaxes(0, 0 if layer.batch_first else 1)
    outputs = made(np.ascontiguousarray(x))
    y = layer(given(layer, seed))[0]
    pairs = zip(outputs, y, strict=True) if isinstance(y, tuple) else [(outputs, y)]
    for theirs, our in pairs:
        our = our if layer.batch_first or not layer.return_sequences else our.swapaxes(0, 1)
        assert_close({"y": keras.ops.convert_to_numpy(theirs)}, {"y": our}, BOUND)
    if layer.num_layers == 1:
        back = fastrnn.from_keras(made)
        both = isinstance(layer, fastrnn.GRU) and "gru_after" in repr(layer)
        bias = bool(layer.bias) and (True if both else "input")
        assert settings(back) == settings(layer) | {"batch_first": True, "bias": bias}
        if layer.bias is not True or both:
            own = layer.parameters()
            assert_same_bits({name: a for name, a in back.parameters().items() if name in own}, own)


def test_a_model_of_every_kind(keras: Any) -> None:
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
    assert_close({"y": keras.ops.convert_to_numpy(model(x))}, {"y": ours.predict(x)}, BOUND)
    flat = fastrnn.from_keras(model)
    assert [type(one).__name__ for one in flat] == (
        ["Embedding", "GRU", "Dropout", "GRU", "Dropout", "Dense", "Activation"]
    )
    assert_same_bits({"y": flat.predict(x)}, {"y": ours.predict(x)})


def test_functional(keras: Any) -> None:
    layers = keras.layers
    x = keras.Input((None, 3))
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(4)(x)))
    data = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    y = keras.ops.convert_to_numpy(model(data))
    assert_close({"y": fastrnn.from_keras(model).predict(data)}, {"y": y}, BOUND)


def branching(keras: Any, kind: str) -> Any:
    layers, x = keras.layers, keras.Input((None, 3))
    if kind == "two inputs":
        other = keras.Input((4,))
        return keras.Model([x, other], layers.LSTM(4)(x, initial_state=[other, other]))
    if kind == "twice":
        layer = layers.LSTM(3, return_sequences=True)
        return keras.Model(x, layer(layer(x)))
    y = layers.LSTM(4)(x)
    if kind == "a sum":
        return keras.Model(x, layers.Add()([y, layers.GRU(4)(x)]))
    if kind == "two outputs":
        return keras.Model(x, [y, layers.Dense(2)(y)])
    return keras.Model(x, layers.LSTM(4, return_state=True)(x)[1])


@pytest.mark.parametrize("kind", ["two inputs", "twice", "a sum", "two outputs", "the state alone"])
def test_functional_models_that_are_no_chain(kind: str, keras: Any) -> None:
    with pytest.raises(ValueError, match=r"chain|one input|one output"):
        fastrnn.from_keras(branching(keras, kind))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda k: k.Masking(), r"layer 'masking\w*' \(Masking\): has no counterpart; .*lengths="),
        (lambda k: k.Embedding(5, 3, mask_zero=True), "mask_zero: True has no counterpart; .*lengths="),
        (lambda k: k.LSTM(4, go_backwards=True), "go_backwards: expected False, got True"),
        (lambda k: k.LSTM(4, recurrent_dropout=0.5), r"\(LSTM\): recurrent_dropout: expected 0, got 0.5"),
        (lambda k: k.LSTM(4, dropout=0.5), "dropout: expected 0, got 0.5"),
        (lambda k: k.LSTM(4, kernel_regularizer="l2"), "kernel_regularizer: expected None"),
        (lambda k: k.GRU(4, activation="relu"), "activation: expected 'tanh', got 'relu'"),
        (lambda k: k.GRU(4, recurrent_activation="hard_sigmoid"), "recurrent_activation: expected 'sigmoid'"),
        (lambda k: k.SimpleRNN(4, activation="elu"), "activation: expected 'tanh' or .* got 'elu'"),
        (lambda k: k.Dense(4, activation="gelu"), "activation: expected 'linear' or .* got 'gelu'"),
        (
            lambda k: k.Bidirectional(k.LSTM(4, go_backwards=True), backward_layer=k.LSTM(4)),
            "go_backwards: expected False, got True",
        ),
        (lambda k: k.Bidirectional(k.LSTM(4), backward_layer=k.GRU(4, go_backwards=True)), "expected the options of"),
        (lambda k: k.TimeDistributed(k.LSTM(4)), "LSTM.*has no counterpart in a TimeDistributed"),
        (lambda k: k.RNN(k.LSTMCell(4)), r"\(RNN\): has no counterpart"),
        (lambda k: k.Conv1D(4, 2), r"\(Conv1D\): has no counterpart; expected one of SimpleRNN"),
        (lambda k: k.Dropout(0.5, noise_shape=(None, 1, 3)), "noise_shape: .* has no counterpart"),
        (lambda k: k.InputLayer((3,)), "has no counterpart of its own"),
        (lambda k: k.LSTM(4), "got 0 arrays; is the layer built"),
    ],
)
def test_from_keras_refuses(build: Any, message: str, keras: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_keras(build(keras.layers))


def test_merge_none(keras: Any) -> None:
    made = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True), merge_mode=None)
    made.build((None, None, 3))
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    for theirs, ours in zip(made(x), fastrnn.from_keras(made)(x)[0], strict=True):
        assert_close({"y": ours}, {"y": keras.ops.convert_to_numpy(theirs)}, BOUND)


def test_models_of_ones_own(keras: Any) -> None:
    class Mine(keras.Model):
        pass

    with pytest.raises(TypeError, match="expected a Sequential or functional model, got Mine"):
        fastrnn.from_keras(Mine())


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (lambda: fastrnn.LSTM(3, 4, peephole=True), ValueError, "peephole: Keras cannot express True"),
        (lambda: fastrnn.LSTM(3, 4, weights="bfloat16"), ValueError, "weights: Keras cannot express 'bfloat16'"),
        (lambda: small(), ValueError, "padding_idx: Keras cannot express 1"),
        (lambda: fastrnn.layers.Layer(), TypeError, "layer: expected one of fastrnn's"),
    ],
)
def test_to_keras_refuses(layer: Any, error: type[Exception], message: str, keras: Any) -> None:
    with pytest.raises(error, match=message):
        fastrnn.to_keras(layer())
