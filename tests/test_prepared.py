"""Prepared calls of a layer, set up once: the same bits and errors as the general path."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.problems import Arrays
from support.stacks import named
from support.tolerance import assert_same_bits

import fastrnn

SHAPES = [(7, 3, 5), (7, 5), (1, 1, 5), (0, 3, 5), (4, 0, 5)]
KINDS: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {"reset_after": False}, "RNN": {"activation": "relu"}}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"batch_first": True, "num_layers": 2},
    {"return_sequences": False},
    {"dtype": np.float64},
    {"weight_dtype": "bfloat16"},
]


def general(layer: Any, x: np.ndarray, state: Any = None) -> Arrays:
    """Call the layer on the general path: a call with resets is never prepared."""
    return named(*layer(x, state, resets=np.zeros(x.shape[:-1], bool)))


def prepare(layer: Any, x: np.ndarray) -> Any:
    """Prepare the layer for such an x."""
    layer(x)
    layer(x)
    assert run_of(layer, x) is not None
    return layer


def run_of(layer: Any, x: np.ndarray) -> Any:
    return layer.stack.prepared((x.shape, fastrnn.get_num_threads()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits(shape: tuple[int, ...], kind: str, options: dict[str, Any], native: str) -> None:
    """With and without a state, for any strides of x."""
    layer = getattr(fastrnn, kind)(5, 9, **KINDS[kind], **options, rng=0)
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((*shape[:-1], 8)).astype(layer.dtype)
    B = (shape[0 if layer.batch_first else 1],) if len(shape) == 3 else ()
    h, c = rng.standard_normal((2, layer.num_layers, *B, 9)).astype(layer.dtype)
    prepare(layer, np.ascontiguousarray(wide[..., :5]))
    for x in (np.ascontiguousarray(wide[..., :5]), wide[..., :5], wide[::-1, ..., 2:7], wide[..., 7:2:-1]):
        for state in (None, (h, c) if kind == "LSTM" else h):
            states = state if state is None or kind == "LSTM" else (state,)
            assert (run_of(layer, x)(x, states) is None) == (x.strides[-1] < 0)
            assert_same_bits(named(*layer(x, state)), general(layer, x, state))


def test_prepared_calls_follow_the_settings(native: str) -> None:
    """New weights, threads, instruction sets and backends differ from those of the previous call."""
    layer, x = fastrnn.LSTM(5, 40, rng=0), np.ones((6, 40, 5), np.float32)
    prepare(layer, x)
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})
    assert_same_bits(named(*layer(x)), general(layer, x))
    prepare(layer, x)
    layer.parameters()["weight_hh_l0"][...] *= 3
    layer.changed()
    assert_same_bits(named(*layer(x)), general(layer, x))
    prepare(layer, x)
    for isa in fastrnn.config()["available_isas"]:
        with fastrnn.use_isa(isa):
            assert_same_bits(named(*layer(x)), general(layer, x))
    with fastrnn.use_backend("numpy"):
        assert_same_bits(named(*layer(x)), general(layer, x))
    copy = pickle.loads(pickle.dumps(prepare(layer, x)))
    assert_same_bits(named(*copy(x)), named(*layer(x)))


def test_errors_are_the_same(native: str) -> None:
    """Arguments that do not fit raise the usual error, repeatedly."""
    layer, x = fastrnn.LSTM(5, 9, rng=0), np.ones((6, 2, 5), np.float32)
    prepare(layer, x)
    bad: list[tuple[Any, Any, type[Exception], str]] = [
        (x.astype(np.float64), None, TypeError, "x: expected dtype float32"),
        (x.astype(">f4"), None, TypeError, "x: expected dtype float32"),
        (x[:, 0, 0], None, ValueError, "x: expected shape"),
        (x, np.ones((1, 2, 9), np.float32), TypeError, "state: expected a tuple"),
        (x, (np.ones((1, 2, 9)), np.ones((1, 2, 9))), TypeError, "state h"),
        (x, (np.ones((1, 3, 9), np.float32),) * 2, ValueError, "state h"),
    ]
    for _ in range(3):
        for given, state, error, message in bad:
            with pytest.raises(error, match=message):
                layer(given, state)
    assert_same_bits(named(*layer(x)), general(layer, x))


def test_many_threads_at_once(native: str) -> None:
    layer = fastrnn.GRU(5, 33, 2, reset_after=True, rng=0)
    xs = np.random.default_rng(2).standard_normal((8, 20, 4, 5)).astype(np.float32)
    expected = [general(layer, x) for x in xs]
    prepare(layer, xs[0])
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: named(*layer(xs[i % 8])), range(400)))
    for i, result in enumerate(got):
        assert_same_bits(result, expected[i % 8])
