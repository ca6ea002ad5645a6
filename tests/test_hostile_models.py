"""Hostile arguments of layers, models and training raise an error or work."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from support.hostile import (
    DENSE,
    GIVEN,
    LSTM,
    NO_ARRAY,
    NO_SHAPE,
    ONE,
    OPTIONS,
    B,
    Case,
    H,
    I,
    T,
    refused,
    table,
    zeros,
)
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import training

GATES: dict[str, Any] = {f"{kind}{gate}": zeros(H, H) for kind in "WU" for gate in "rzn"} | {
    "reset_after": True,
    "transposed": False,
}
STATE = LSTM.state_dict()


@table(
    [
        *[
            Case(name, repr(v), lambda n=name, v=v: fastrnn.LSTM(**{"input_size": I, "hidden_size": H, n: v}))
            for name in ("input_size", "hidden_size", "num_layers")
            for v in (0, -1, 2.0, None, "2", True, [2], 2**70, np.array([2, 3]))
        ],
        Case("hidden_size", "more than there are addresses", lambda: fastrnn.LSTM(2, 2**31)),
        *[
            Case(name, repr(v), lambda n=name, v=v: fastrnn.LSTM(I, H, **{n: v}))
            for name, values in {
                "bias": (None, 1, "output", np.array(True)),
                "batch_first": (None, 1, "yes"),
                "dropout": (-0.1, 1.0, "0.1", None, True, np.nan, 1j),
                "bidirectional": (None, 1, "yes"),
                "merge": ("add", 1, b"sum", []),
                "return_sequences": (None, 1),
                "peephole": (None, 1, "yes"),
                "dtype": ("f2", int, None, None.__class__, "complex64", ">f4", "no", object),
                "weight_dtype": ("float16", "bf16", 1, np.array(["bfloat16"]), np.zeros(2)),
                "initializer": ("keras2", 1, None, {"V": np.zeros}, {"W": 1}),
                "rng": (-1, "a", 1.5, slice(3)),
            }.items()
            for v in values
        ],
        *[Case("rng", f"Dense {v!r}", lambda v=v: fastrnn.Dense(I, H, rng=v)) for v in (-1, "a", 1.5)],
        *[Case("output_size", repr(v), lambda v=v: fastrnn.Dense(I, v)) for v in (0, None, 1.0, True, 2**62)],
        *[Case("num_embeddings", repr(v), lambda v=v: fastrnn.Embedding(v, I)) for v in (0, None, 1.0, True, 2**62)],
        *[Case("padding_idx", repr(v), lambda v=v: fastrnn.Embedding(3, I, v)) for v in (3, -4, 1.0, True, "0", 2**70)],
        *[Case("rate", repr(v), lambda v=v: fastrnn.Dropout(v)) for v in (1, -0.5, None, "0.5", True, np.nan)],
        *[Case("activation", repr(v), lambda v=v: fastrnn.Activation(v)) for v in (None, 1, [], "TANH", np.tanh)],
        *[Case("state", repr(v), lambda v=v: LSTM.load_state_dict(v)) for v in (None, [], "abc", 1)],
        *[Case("weights", repr(v), lambda v=v: LSTM.set_weights(v)) for v in (None, "abcd", [], 1, {})],
        Case("state", "missing names", lambda: LSTM.load_state_dict({}), KeyError),
        Case("state", "no names", lambda: LSTM.load_state_dict(LSTM.state_dict() | {1: None}), KeyError),
        Case("weight_ih_l0", "numbers", lambda: LSTM.load_state_dict(dict.fromkeys(LSTM.parameters(), 3))),
        Case(
            "bias_hh_l0", "float64", lambda: LSTM.load_state_dict(LSTM.state_dict() | {"bias_hh_l0": np.zeros(4 * H)})
        ),
        Case(
            "bias_hh_l0",
            "one short",
            lambda: LSTM.load_state_dict(LSTM.state_dict() | {"bias_hh_l0": zeros(4 * H - 1)}),
        ),
        *[Case("x", what, lambda f=f: LSTM(f(GIVEN["x"]))) for what, f in (NO_ARRAY | NO_SHAPE).items()],
        Case("x", "of other features", lambda: LSTM(zeros(T, B, I + 1))),
        *[
            Case("state", repr(v)[:20], lambda v=v: LSTM(GIVEN["x"], v))
            for v in ("hc", 1, ONE, (ONE,), {"h": 1}, (ONE,) * 3)
        ],
        Case("state h", "without L", lambda: LSTM(GIVEN["x"], (GIVEN["h0"], GIVEN["c0"]))),
        Case("state c", "None", lambda: LSTM(GIVEN["x"], (ONE[:1], None))),
        *[
            Case(name, f"layer: {what}", lambda n=name, v=v: LSTM(GIVEN["x"], **{n: v}))
            for name in ("threads", "resets")
            for what, v in OPTIONS[name].items()
        ],
        Case("state", "Dense", lambda: DENSE.forward(GIVEN["x"], state=ONE)),
        Case("training", "1", lambda: DENSE.forward(GIVEN["x"], training=1)),
        Case("training", "LSTM", lambda: LSTM.forward(GIVEN["x"], training="yes")),
        Case("checkpoint", "of inference", lambda: LSTM.forward(GIVEN["x"], checkpoint=2)),
        Case("checkpoint", "0", lambda: LSTM.forward(GIVEN["x"], training=True, checkpoint=0)),
        *[
            Case("x", f"Embedding: {what}", lambda v=v: fastrnn.Embedding(3, I)(v))
            for what, v in {
                "3": [3],
                "-1": [-1],
                "float": [1.0],
                "text": "abc",
                "ragged": [[1], []],
                "None": None,
            }.items()
        ],
        *[
            Case("shape", f"{type(layer).__name__}: {v!r}", lambda layer=layer, v=v: layer.output_shape(v))
            for layer in (LSTM, DENSE, fastrnn.Embedding(3, I), fastrnn.Dropout(0.5), fastrnn.Sequential([DENSE]))
            for v in (None, 5, "TB", zeros(2))
        ],
        *[
            Case("update", repr(v), lambda v=v: fastrnn.from_gates(**GATES, update=v))
            for v in (1, "read", np.array(["keep", "write"]))
        ],
        *[
            Case(name, repr(v), lambda n=name, v=v: fastrnn.from_torch(STATE, **{"cell": "lstm", n: v}))
            for name, values in {"cell": ([1], None, 1, {}, np.array(["lstm"])), "prefix": (None, 1, b"")}.items()
            for v in values
        ],
        *[Case("file", repr(v), lambda v=v: fastrnn.show_config(v)) for v in (1, "config.txt", True)],
        Case("x", "Embedding: huge", lambda: fastrnn.Embedding(3, I)([2**70])),
        Case("x", "Embedding: bool", lambda: fastrnn.Embedding(3, I)([True])),
    ]
)
def test_layers(case: Case) -> None:
    refused(case)


def test_a_rejected_state_dict_changes_nothing() -> None:
    net = fastrnn.LSTM(I, H, rng=0)
    before = net.state_dict()
    with pytest.raises(ValueError, match=r"^bias_hh_l0"):
        net.load_state_dict({n: a * 2 for n, a in before.items()} | {"bias_hh_l0": zeros(3)})
    assert_same_bits(net.state_dict(), before)


X, Y = np.ones((6, T, I), np.float32), np.zeros((6, 1), np.float32)


def model() -> fastrnn.Sequential:
    net = fastrnn.Sequential(
        [fastrnn.GRU(I, H, reset_after=True, return_sequences=False, rng=0), fastrnn.Dense(H, 1, rng=1)]
    )
    net.compile("sgd", "mse")
    return net


def stepped_back(dstate: Any) -> Any:
    net = model()
    return net.backward(Y, net.forward(X, training=True).cache, dstate=dstate)


PATHS: dict[str, Callable[[Any], Any]] = {
    "Sequential.save": lambda path: model().save(path),
    "save_weights": lambda path: model().save_weights(path),
    "load_weights": lambda path: model().load_weights(path),
    "save": lambda path: fastrnn.save(path, LSTM),
    "load": fastrnn.load,
    "Checkpoint": training.Checkpoint,
}


def fit(**changes: Any) -> Callable[[], Any]:
    return lambda: model().fit(**{"x": X, "y": Y} | changes)


@table(
    [
        *[Case("x", what, fit(x=f(X))) for what, f in NO_ARRAY.items() if what not in ("lists", "generator")],
        Case("y", "beside a generator", lambda: fit(x=(row for row in X))()),
        *[
            Case("layers", repr(v), lambda v=v: fastrnn.Sequential(v))
            for v in (None, [], [1], "ab", LSTM, [LSTM, LSTM])
        ],
        *[
            Case(name, repr(v)[:20], fit(**{name: v}))
            for name, values in {
                "epochs": (0, -1, 1.0, None, "1", True, [1]),
                "batch_size": (0, -1, 1.0, None, "1", True, np.array([2, 3])),
                "shuffle": (None, 1, "no"),
                "stateful": (None, 1, "no"),
                "truncate": (0, 1.0, "1", True),
                "validation_split": (1.0, -0.1, "0.1", None, np.nan),
                "rng": (-1, "a", 1.5),
                "callbacks": (1, "abc", [1], None),
                "progress": (None, 1),
                "lengths": ([T + 1] * 6, [-1] * 6, [1.0] * 6, [1] * 5, "abcdef"),
                "y": (None, 1.0, "abc", Y[:-1], [[1], []]),
                "threads": (0, 1.0, "1", True),
                "x": ([], [1, 2], [[1.0], "abc"]),
                "resume": (True, 1, "", b"c"),
            }.items()
            for v in values
        ],
        *[
            Case("path", f"{name} {v!r}", lambda f=f, v=v: f(v))
            for name, f in PATHS.items()
            for v in (5, None, "", b"model", True)
        ],
        *[
            Case("mode", f"{name}: {v!r}", lambda make=make, v=v: make(mode=v))
            for name, make in {
                "EarlyStopping": training.EarlyStopping,
                "Checkpoint": partial(training.Checkpoint, "c", best_only=True),
            }.items()
            for v in (0, "more", np.array(["min"] * 2))
        ],
        *[
            Case(name, f"{clip.__name__} {v!r}", lambda clip=clip, v=v: clip(*v))
            for clip in (training.clip_by_norm, training.clip_by_value)
            for name, v in {"grads": (None, 1.0), "limit": ({}, None)}.items()
        ],
        Case("parameters", "None", lambda: training.SGD().step(None, {}), TypeError),  # type: ignore[arg-type]
        Case("grads", "None", lambda: training.SGD().step({}, None), TypeError),  # type: ignore[arg-type]
        Case("state", "an optimizer's: None", lambda: training.SGD().load_state_dict(None), TypeError),  # type: ignore[arg-type]
        Case("x", "predict: []", lambda: model().predict([])),
        Case("x", "predict: numbers", lambda: model().predict([1, 2])),
        *[Case("state", repr(v), lambda v=v: model().forward(X, state=v), TypeError) for v in (True, 1.0, {0: None})],
        Case("dstate", "True", lambda: stepped_back(True), TypeError),
        Case("dstate", "too few", lambda: stepped_back((None,)), ValueError),
        Case("optimizer", "unknown", lambda: model().compile("adagrad", "mse")),
        Case("optimizer", "a number", lambda: model().compile(0.1, "mse")),
        Case("loss", "unknown", lambda: model().compile("sgd", "mae2")),
        Case("metrics", "text", lambda: model().compile("sgd", "mse", "mae")),
        Case("x", "no samples", fit(x=X[:0], y=Y[:0])),
        Case("x", "no steps", fit(x=X[:, :0])),
        Case("x", "other features", fit(x=np.ones((6, T, 3), np.float32))),
        Case("x", "predict: None", lambda: model().predict(None)),
        Case("batch_size", "predict: 0", lambda: model().predict(X, batch_size=0)),
        Case("cache", "none", lambda: model().backward(Y, None)),
        Case("state", "too few", lambda: model().forward(X, state=(None,))),
    ]
)
def test_models(case: Case) -> None:
    refused(case)


@pytest.mark.parametrize("value", [Fraction(1, 4), np.float32(0.25), np.float64(0.25)])
def test_unusual_valid_numbers(value: Any) -> None:
    assert fastrnn.Dropout(value).rate == 0.25
