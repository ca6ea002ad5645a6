"""stateful=True with sequences of unequal length: each goes on from its own state, as in one padded batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.models import I, K, every_step
from support.tolerance import assert_close

import fastrnn
from fastrnn import training
from fastrnn.layers.base import Back, Layer, LayerCache, Output
from fastrnn.training import Sequential

#: three batches of several parts, in other orders; the first has a part of empty sequences alone
LENGTHS = np.array([[0, 30, 1, 0, 12, 30], [1, 2, 30, 30, 0, 1], [30, 1, 0, 1, 1, 30]])


class Leaky(Layer):
    """A layer of one's own whose state is (B, H)."""

    def forward(self, x: Any, *, state: Any = None, lengths: Any = None, **options: Any) -> Output:
        lengths = np.full(x.shape[1], len(x)) if lengths is None else lengths
        s, y = np.zeros_like(x[0]) if state is None else state, np.zeros_like(x)
        assert s.shape == x[0].shape
        for t in range(len(x)):
            s = np.where((t < lengths)[:, None], 0.9 * s + x[t], s)
            y[t] = s
        return Output(y, s, LayerCache(self, (len(x),)))

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        dx, d = np.zeros_like(dy), np.zeros_like(dy[0])
        for t in reversed(range(len(dy))):
            dx[t] = d = 0.9 * d + dy[t]
        return Back(dx, None, {})

    def parameters(self) -> dict[str, Any]:
        return {}

    def output_shape(self, shape: Any) -> Any:
        return shape


def stack() -> Sequential:
    """Nested, with states of both kinds."""
    layers = [fastrnn.LSTM(I, 4, num_layers=2, dtype=np.float64, batch_first=True, rng=1)]
    inner = Sequential([*layers, fastrnn.LayerNormalization(4, dtype=np.float64)])
    return Sequential([inner, *every_step_after(4)])


def every_step_after(size: int) -> list[Layer]:
    gru = fastrnn.GRU(size, 5, reset_after=True, dtype=np.float64, rng=1)
    return [gru, fastrnn.Dense(5, K, dtype=np.float64, rng=2)]


MODELS: dict[str, Callable[[], Sequential]] = {
    "gru": every_step,
    "stack": stack,
    "own layer": lambda: Sequential([Leaky(), *every_step_after(I)]),
}


@pytest.mark.parametrize("iterable", [False, True])
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("kind", MODELS)
def test_each_sequence_goes_on_from_its_own_state(kind: str, window: int | None, iterable: bool) -> None:
    rng, size = np.random.default_rng(0), LENGTHS.shape[1]
    x, y = rng.standard_normal((LENGTHS.size, 30, I)), rng.standard_normal((LENGTHS.size, 30, K))
    lengths = LENGTHS.reshape(-1)
    cut = [[a[:n] for a, n in zip(whole, lengths, strict=True)] for whole in (x, y)]
    batches = [slice(start, start + size) for start in range(0, lengths.size, size)]
    model = MODELS[kind]()
    model.compile(training.SGD(0.1, momentum=0.9), "mse")
    options: dict[str, Any] = {"stateful": True, "shuffle": False, "truncate": window, "epochs": 2}
    if iterable:
        history = model.fit([{"x": cut[0][which], "y": cut[1][which]} for which in batches], **options)
    else:
        history = model.fit(*cut, batch_size=size, **options)

    net, losses = MODELS[kind](), []
    optimizer, mse = training.SGD(0.1, momentum=0.9), training.MeanSquaredError()
    for _ in range(2):
        state, total = None, 0.0
        for which in batches:
            for start in range(0, 30, window or 30):
                some = which, slice(start, start + (window or 30))
                valid = np.clip(lengths[which] - start, 0, x[some].shape[1])
                out = net.forward(x[some], state=state, lengths=valid, training=True)
                loss, dy = mse.gradient(out.y.swapaxes(0, 1), y[some].swapaxes(0, 1), valid)
                optimizer.step(net.parameters(), net.backward(dy.swapaxes(0, 1), out.cache).grads)
                net.changed()
                state, total = out.state, total + loss * valid.sum()
        losses.append(total / lengths.sum())
    assert_close(model.state_dict(), net.state_dict(), 1e-11)
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-11)
