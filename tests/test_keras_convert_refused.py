"""Unsupported models for `from_keras` and `to_keras`: the error names the layer and the reason."""

from __future__ import annotations

from typing import Any

import pytest
from support.conversions import small

import fastrnn
from fastrnn import LSTM, Recurrent
from fastrnn.catalogue import abs, li_gru, lstm_with, rnn_with

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras and its backends issue some on import


def test_masks_elsewhere_raise_an_error(keras: Any) -> None:
    k = keras.layers
    lstm, dense = k.LSTM(3, return_sequences=True), k.Dense(3)
    for layers, message in (
        ([lstm, k.Masking()], r"layer 'masking\w*' \(Masking\): expected before every recurrent layer, got"),
        ([k.Masking(), lstm, k.Softmax()], r"\(Softmax\): expected no mask, because Keras applies the mask"),
    ):
        model = keras.Sequential([keras.Input((None, 2)), *layers])
        with pytest.raises(ValueError, match=message):
            fastrnn.from_keras(model, lengths=True)
    model = keras.Sequential([keras.Input((None, 2)), k.Masking(), k.LSTM(3), dense, k.Softmax()])
    assert len(fastrnn.from_keras(model, lengths=True)) == 3


def test_other_layers_of_the_same_name_are_refused(keras: Any) -> None:
    class LSTM(keras.layers.LSTM):
        def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
            return 2 * super().call(sequences, initial_state, mask, training)

    LSTM.__module__ = "somebody"
    model = keras.Sequential([keras.Input((None, 2)), LSTM(3, name="twice")])
    with pytest.raises(ValueError, match=r"layer 'twice' \(LSTM of somebody\): not supported"):
        fastrnn.from_keras(model)


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
def test_branching_models_raise_an_error(kind: str, keras: Any) -> None:
    with pytest.raises(ValueError, match=r"chain|one input|one output"):
        fastrnn.from_keras(branching(keras, kind))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda k: k.Masking(), r"layer 'masking\w*' \(Masking\): not supported; lengths=True drops it"),
        (lambda k: k.Embedding(5, 3, mask_zero=True), "mask_zero: True is not supported; lengths=True drops it"),
        (
            lambda k: k.LSTM(4, go_backwards=True),
            r"go_backwards: expected False, got True; .* of processing, last first, which is y\[:, ::-1",
        ),
        (
            lambda k: k.LSTM(4, recurrent_dropout=0.5),
            r"\(LSTM\): recurrent_dropout: expected 0, got 0\.5; inference=True .*; fastrnn\.keras trains .* one mask",
        ),
        (lambda k: k.LSTM(4, dropout=0.5), r": dropout: expected 0, got 0\.5; .*; fastrnn\.keras trains with it"),
        (lambda k: k.LSTM(4, kernel_regularizer="l2"), "kernel_regularizer: expected None"),
        (lambda k: k.GRU(4, activation="gelu"), "activation: expected 'tanh' or .* got 'gelu'; use fastrnn.cell"),
        (lambda k: k.GRU(4, recurrent_activation="mish"), "recurrent_activation: expected 'tanh' or .* got 'mish'"),
        (lambda k: k.SimpleRNN(4, activation="gelu"), "activation: expected 'tanh' or .* got 'gelu'; use fastrnn.cell"),
        (lambda k: k.Dense(4, activation="gelu"), "activation: expected 'linear' or .* got 'gelu'"),
        (
            lambda k: k.Bidirectional(k.LSTM(4, go_backwards=True), backward_layer=k.LSTM(4)),
            "go_backwards: expected False, got True",
        ),
        (lambda k: k.Bidirectional(k.LSTM(4), backward_layer=k.GRU(4, go_backwards=True)), "expected the options of"),
        (lambda k: k.TimeDistributed(k.LSTM(4)), "LSTM.*not supported in a TimeDistributed"),
        (lambda k: k.RNN(k.LSTMCell(4)), r"layer 'rnn\w*' \(LSTM\): expected kernel, .*, got 0 arrays"),
        (lambda k: k.RNN(k.LSTMCell(4, activation="gelu")), r"'rnn\w*' \(LSTM\): activation: expected 'tanh' or"),
        (
            lambda k: k.Bidirectional(k.RNN([k.LSTMCell(4), k.LSTMCell(4)])),
            "expected one cell in a Bidirectional, got 2",
        ),
        (lambda k: k.ConvLSTM1D(4, 2), r"\(ConvLSTM1D\): not supported"),
        (lambda k: k.Conv1D(4, 2), r"\(Conv1D\): not supported; expected one of SimpleRNN.*; use layer="),
        (lambda k: k.BatchNormalization(), r"\(BatchNormalization\): not supported; expected one of .*; use layer="),
        (lambda k: k.Flatten(), r"\(Flatten\): not supported"),
        (lambda k: k.UnitNormalization(), r"\(UnitNormalization\): not supported"),
        (lambda k: k.GaussianNoise(0.1), r"\(GaussianNoise\): not supported; inference=True drops"),
        (lambda k: k.LSTM(4, stateful=True), r"\(LSTM\): stateful: True is not supported; state=True drops it"),
        (lambda k: k.ReLU(max_value=6.0), r"\(ReLU\): max_value: 6.0 is not supported"),
        (lambda k: k.Softmax(axis=1), r"\(Softmax\): axis: expected -1, got 1"),
        (lambda k: k.Dropout(0.5, noise_shape=(None, 1, 3)), "noise_shape: .* is not supported"),
        (lambda k: k.InputLayer((3,)), "does not correspond to a layer"),
        (lambda k: k.LSTM(4), "got 0 arrays; is the layer built"),
    ],
)
def test_from_keras_refuses(build: Any, message: str, keras: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_keras(build(keras.layers))


def named_lstm() -> Any:
    """A user-defined cell, whose name does not reveal its equations."""

    @fastrnn.cell(gates="ifgo", states="hc")
    def lstm(x: Any, U: Any, s: Any) -> Any:
        return x.i + x.f + x.g + x.o, s.c

    return lstm


def test_models_of_a_users_class_raise_an_error(keras: Any) -> None:
    class Mine(keras.Model):
        pass

    with pytest.raises(TypeError, match="expected a Sequential or functional model, got Mine"):
        fastrnn.from_keras(Mine())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LSTM(3, 4, peephole=True), "peephole: Keras cannot express True"),
        (LSTM(3, 4, weight_dtype="bfloat16"), "weight_dtype: Keras cannot express 'bfloat16'"),
        (LSTM(3, 4, proj_size=2), "proj_size: Keras cannot express 2 of .*; expected 0"),
        (LSTM(3, 4, heads=2), "heads: Keras cannot express 2 of .*; expected 1"),
        (
            Recurrent(lstm_with("hard_sigmoid_keras2"), 3, 4),
            "gate: Keras cannot express 'hard_sigmoid_keras2' of .*; expected 'tanh' or",
        ),
        (Recurrent(lstm_with(candidate="relu"), 3, 4), "output: Keras cannot express 'tanh' of .*; expected 'relu'"),
        (Recurrent(rnn_with("elu", clip=2), 3, 4), "clip: Keras cannot express 2.0 of"),
        (Recurrent(rnn_with(abs), 3, 4), "activation: Keras cannot express <function abs"),
        (Recurrent(lstm_with(input_forget=True), 3, 4), "input_forget: Keras cannot express True"),
        (Recurrent(lstm_with(peephole=True), 3, 4), "peephole: Keras cannot express True"),
        (Recurrent(li_gru, 3, 4), "cell: Keras has no li_gru; expected .*, or of one that"),
        (Recurrent(named_lstm(), 3, 4), "cell: Keras has no lstm; expected"),
        (small(), "padding_idx: Keras cannot express 1"),
        (fastrnn.LastStep(), "layer: Keras has no LastStep; use return_sequences=False"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_to_keras_refuses(layer: Any, message: str, keras: Any) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.to_keras(layer)


class Mine(fastrnn.Dense):
    """A user's layer, which computes something other than a Dense."""

    def forward(self, x: Any, **options: Any) -> Any:
        return super().forward(-x, **options)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (fastrnn.layers.Layer(), "layer: expected one of fastrnn's"),
        (Mine(3, 4), r"layer: expected one of fastrnn's .*, got \w+\.Mine"),
        (fastrnn.Sequential([LSTM(2, 3), Mine(3, 4)]), "layer: expected one of .*Mine"),
        (type("Most", (fastrnn.GlobalMaxPooling1D,), {})(), r"layer: expected one of .*\.Most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_to_keras_refuses_other_classes(layer: Any, message: str, keras: Any) -> None:
    with pytest.raises(TypeError, match=message):
        fastrnn.to_keras(layer)
