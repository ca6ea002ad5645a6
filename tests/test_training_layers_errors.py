"""Training of layers: wrong gradients, caches and arguments raise an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastrnn

X = np.ones((5, 3, 2), np.float32)
Y = np.ones((5, 3, 4), np.float32)
S = np.ones((1, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("error", "said", "dy", "dstate"),
    [
        (ValueError, "dy", None, None),
        (TypeError, "dy", Y.astype(np.float64), None),
        (TypeError, "dy", Y.tolist(), None),
        (ValueError, "dy", Y[:4], None),
        (ValueError, "dy", Y[0], None),
        (TypeError, "dstate", Y, S),
        (TypeError, "dstate h", Y, (S.astype(np.float64), S)),
        (ValueError, "dstate c", Y, (S, S[:, :2])),
    ],
)
def test_wrong_gradients(error: type[Exception], said: str, dy: Any, dstate: Any) -> None:
    net = fastrnn.LSTM(2, 4)
    cache = net.forward(X, training=True).cache
    with pytest.raises(error, match=rf"^{said}\b"):
        net.backward(dy, cache, dstate=dstate)


def test_wrong_pairs() -> None:
    net = fastrnn.LSTM(2, 4, bidirectional=True, merge=None)
    cache = net.forward(X, training=True).cache
    with pytest.raises(TypeError, match=r"^dy\b.*pair"):
        net.backward(Y, cache)
    with pytest.raises(ValueError, match=r"^dy\b"):
        net.backward((Y, Y[:1]), cache)


@pytest.mark.parametrize("net", [fastrnn.LSTM(2, 4), fastrnn.Dense(2, 4), fastrnn.Dropout(0.5)])
def test_wrong_caches(net: Any) -> None:
    with pytest.raises(TypeError, match=r"^cache\b.*training=True.*None"):
        net.backward(Y, net.forward(X).cache)
    with pytest.raises(ValueError, match=r"^cache\b.*this layer's forward"):
        net.backward(Y, copy.deepcopy(net).forward(X, training=True).cache)


@pytest.mark.parametrize("net", [fastrnn.Dense(2, 4), fastrnn.Embedding(2, 4), fastrnn.Dropout(0.5)])
def test_no_state(net: Any) -> None:
    x = np.ones((3, 2), np.int64 if isinstance(net, fastrnn.Embedding) else np.float32)
    with pytest.raises(ValueError, match=r"^state\b"):
        net.forward(x, state=S)
    out = net.forward(x, training=True)
    with pytest.raises(ValueError, match=r"^dstate\b"):
        net.backward(out.y, out.cache, dstate=S)
    with pytest.raises(ValueError, match=r"^dy\b"):
        net.backward(out.y[:1], out.cache)
    with pytest.raises(TypeError, match=r"^dy\b"):
        net.backward(out.y.astype(np.float16), out.cache)


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (ValueError, "x", lambda: fastrnn.Dense(2, 4)(X[..., :1])),
        (TypeError, "x", lambda: fastrnn.Dense(2, 4)(X.astype(np.float64))),
        (TypeError, "x", lambda: fastrnn.Activation("tanh")(np.arange(3))),
        (TypeError, "x", lambda: fastrnn.Dropout(0.5)([1.0])),
        (TypeError, "x", lambda: fastrnn.Embedding(3, 2)([0.5])),
        (ValueError, "x", lambda: fastrnn.Embedding(3, 2)([0, 3])),
        (ValueError, "x", lambda: fastrnn.Embedding(3, 2)([-1])),
        (ValueError, "activation", lambda: fastrnn.Activation("swish")),
        (ValueError, "activation", lambda: fastrnn.Dense(2, 4, ["tanh"])),
        (ValueError, "rate", lambda: fastrnn.Dropout(1.0)),
        (TypeError, "rate", lambda: fastrnn.Dropout("a lot")),
        (TypeError, "rate", lambda: fastrnn.Dropout(False)),
        (TypeError, "padding_idx", lambda: fastrnn.Embedding(3, 2, 1.0)),
        (ValueError, "padding_idx", lambda: fastrnn.Embedding(3, 2, 3)),
        (ValueError, "dropout", lambda: fastrnn.LSTM(3, 2, 2, dropout=-0.1)),
        (ValueError, "dropout", lambda: fastrnn.LSTM(3, 2, dropout=0.1)),
        (TypeError, "return_sequences", lambda: fastrnn.LSTM(3, 2, return_sequences=1)),
        (TypeError, "training", lambda: fastrnn.LSTM(2, 2).forward(X, training="yes")),
        (ValueError, "checkpoint", lambda: fastrnn.LSTM(2, 2).forward(X, checkpoint=2)),
        (ValueError, "checkpoint", lambda: fastrnn.LSTM(2, 2).forward(X, training=True, checkpoint=0)),
        (ValueError, "weights", lambda: fastrnn.Dense(2, 4).set_weights([np.ones((4, 2), np.float32)])),
        (KeyError, "\"state: missing 'bias", lambda: fastrnn.Dense(2, 4).load_state_dict({"weight": np.ones((4, 2))})),
        (ValueError, "bias", lambda: fastrnn.LSTM(3, 2, bias="both")),
        (TypeError, "bias", lambda: fastrnn.LSTM(3, 2, bias=1.0)),
        (TypeError, "forget_bias", lambda: fastrnn.LSTM(3, 2, forget_bias="1")),
        (ValueError, "forget_bias", lambda: fastrnn.LSTM(3, 2, bias=False, forget_bias=1)),
    ],
)
def test_wrong_arguments_change_nothing(error: type[Exception], said: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=rf"^{said}\b"):
        call()


def test_softmax_over_no_classes() -> None:
    """An empty array, forward and backward."""
    softmax = fastrnn.Activation("softmax")
    y, _, cache = softmax.forward(np.ones((2, 3, 0)), training=True)
    assert y.shape == softmax.backward(y, cache).dx.shape == (2, 3, 0)
