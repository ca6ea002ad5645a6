"""Caches that backward rejects: those of another call, and those with arguments changed since the forward."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.hostile import (
    ALL,
    DENSE,
    GIVEN,
    LSTM,
    PAIR,
    SIZES,
    B,
    Case,
    H,
    I,
    T,
    refused,
    table,
)
from support.problems import CELLS, Problem, arrays, call, make, run
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.results import Cache


def trained(cell: str = "lstm_peephole", **options: Any) -> tuple[Problem, Any]:
    problem = make(cell, SIZES, dtype=np.float32)
    return problem, call(problem, training=True, **options)[0]


def lstm_back(cache: Any, **cotangents: Any) -> Any:
    return fastrnn.lstm_backward(cotangents.pop("dy", GIVEN["dy"]), cache, **cotangents)


def layer_cache(**options: Any) -> Any:
    return fastrnn.LSTM(I, H, rng=0, **options).forward(GIVEN["x"], training=True).cache


def back(layer: Any, dy: Any = None, cache: Any = None, **more: Any) -> Callable[[], Any]:
    """Call the backward of the layer's own forward, unless another cache is given."""

    def backward() -> Any:
        own = layer.forward(GIVEN["x"], training=True).cache
        return layer.backward(
            np.zeros((T, B, H), np.float32) if dy is None else dy, own if cache is None else cache(), **more
        )

    return backward


@table(
    [
        Case("cache", "None", lambda: lstm_back(None)),
        Case("cache", "the result", lambda: lstm_back(trained()[1])),
        Case("cache", "y", lambda: lstm_back(trained()[1].y)),
        Case("cache", "its type", lambda: lstm_back(Cache)),
        Case("cache", "of a GRU", lambda: lstm_back(trained("gru_after")[1].cache)),
        Case("cache", "of an RNN", lambda: lstm_back(trained("rnn_tanh")[1].cache)),
        Case("cache", "of a layer", lambda: lstm_back(layer_cache())),
        Case("cache", "of inference", lambda: lstm_back(call(ALL.changed(checkpoint=None))[0].cache)),
        Case("cache", "LSTM's, for a GRU", lambda: fastrnn.gru_backward(None, trained()[1].cache)),
        Case("cache", "LSTM's, for an RNN", lambda: fastrnn.rnn_backward(None, trained()[1].cache)),
        Case("dy", "of another call", lambda: lstm_back(trained()[1].cache, dy=GIVEN["dy"][1:])),
        Case("dy", "a number", lambda: lstm_back(trained()[1].cache, dy=1.0)),
        Case("dc_n", "unbatched", lambda: lstm_back(trained()[1].cache, dc_n=GIVEN["dc_n"][0])),
        Case("cache", "layer: None", lambda: LSTM.backward(GIVEN["dy"], None)),
        Case("cache", "layer: of a function", back(LSTM, cache=lambda: trained()[1].cache)),
        Case("cache", "layer: another's", back(LSTM, cache=layer_cache)),
        Case(
            "cache",
            "layer: its copy's",
            back(LSTM, cache=lambda: copy.copy(LSTM).forward(GIVEN["x"], training=True).cache),
        ),
        Case("cache", "layer: a Dense's", back(LSTM, cache=lambda: DENSE.forward(GIVEN["x"], training=True).cache)),
        Case("cache", "Dense: an LSTM's", back(DENSE, cache=layer_cache)),
        Case("dy", "layer: of another shape", back(LSTM, dy=GIVEN["dy"][:, :1])),
        Case("dy", "layer: of another dtype", back(LSTM, dy=GIVEN["dy"].astype(np.float64))),
        Case("dy", "layer: one, not two", back(PAIR, dy=np.zeros((T, B, 2 * H), np.float32))),
        Case("dy", "layer: three, not two", back(PAIR, dy=[GIVEN["dy"]] * 3)),
        Case("dy", "Dense: of another shape", back(DENSE, dy=GIVEN["dy"])),
        Case("dy", "Dense: text", back(DENSE, dy="abc")),
        Case("dstate", "layer: h alone", back(LSTM, dstate=np.zeros((1, B, H), np.float32))),
        Case("dstate h", "layer: without L*D", back(LSTM, dstate=(GIVEN["h0"], GIVEN["c0"]))),
        Case("dstate c", "layer: None for c", back(LSTM, dstate=(GIVEN["h0"][None], None))),
        Case("dstate", "Dense", back(DENSE, dstate=GIVEN["h0"])),
        Case(
            "dy",
            "layer: neither it nor dstate",
            lambda: LSTM.backward(None, LSTM.forward(GIVEN["x"], training=True).cache),
        ),
    ]
)
def test_caches(case: Case) -> None:
    refused(case)


@pytest.mark.parametrize("cell", CELLS)
def test_one_cache_in_eight_threads(cell: str, backend: str) -> None:
    """Twice in each thread, and as a copy: a cache is only read."""
    problem = make(cell, (20, 5, 3, 17), dtype=np.float32)
    result = call(problem, training=True)[0]
    backward = getattr(fastrnn, f"{problem.family}_backward")
    rest = {name: d for name, d in problem.cotangents.items() if name != "dy"}

    def gradients(_: Any) -> Any:
        return arrays(backward(problem.cotangents["dy"], copy.copy(result.cache), **rest))

    expected = gradients(0)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(gradients, range(16)):
            assert_same_bits(got, expected)


def test_caches_stay_in_their_process() -> None:
    for cache in (trained()[1].cache, layer_cache()):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(cache)


def test_freed_caches(backend: str) -> None:
    """The memory of a freed cache is reused, but never that of a cache in use."""
    problems = [make("lstm", (20, 5, 3, 17), seed=seed) for seed in range(4)]
    expected = [run(problem) for problem in problems]
    held = [call(problem, training=True)[0].cache for problem in problems]
    for turn in range(8):
        n = turn % 4
        rest = {name: d for name, d in problems[n].cotangents.items() if name != "dy"}
        got = arrays(fastrnn.lstm_backward(problems[n].cotangents["dy"], held[n], **rest))
        assert_same_bits(got, {name: expected[n][name] for name in got})
        held[n] = None
        held[n] = call(problems[n], training=True)[0].cache


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("name", ["x", "W", "U", "b", "b_rec", "p", "h0", "c0", "resets"])
def test_arguments_changed_after_forward(name: str, checkpoint: int | None, backend: str) -> None:
    """Backward names the changed argument, and works again once it is restored."""
    problem = make("lstm_peephole", SIZES, resets=True, checkpoint=checkpoint)
    expected = run(problem)
    cache = call(problem, training=True)[0].cache
    a = problem.inputs[name]
    before = a.copy()
    cotangents = dict(problem.cotangents)
    a[...] = ~a if a.dtype == bool else a * 0.9
    with pytest.raises(ValueError, match=rf"^cache: {name} was changed after the forward"):
        fastrnn.lstm_backward(cache=cache, **cotangents)
    a[...] = before
    got = arrays(fastrnn.lstm_backward(cache=cache, **cotangents))
    assert_same_bits(got, {key: expected[key] for key in got})


@pytest.mark.parametrize("lay", [np.asarray, np.asfortranarray, lambda a: np.flip(np.flip(a).copy())])
def test_a_change_of_a_large_argument(lay: Callable[..., Any], backend: str) -> None:
    """An optimizer step, or the next batch in the same buffer, changes the sampled elements wherever they lie."""
    problem = make("gru_before", (7, 6, 5, 33))
    for name in ("x", "W", "U"):
        a = lay(problem.inputs[name].copy())
        result = call(problem.changed(**{name: a}), training=True)[0]
        a += 1e-3
        view_is_used = a.flags.c_contiguous or (name == "x" and a.strides[-1] == a.itemsize)
        if view_is_used:
            with pytest.raises(ValueError, match=f"^cache: {name} was changed"):
                fastrnn.gru_backward(problem.cotangents["dy"], result.cache)
        else:  # copied arguments cannot be changed by the caller
            got = fastrnn.gru_backward(problem.cotangents["dy"], result.cache)
            expected = fastrnn.gru_backward(problem.cotangents["dy"], call(problem, training=True)[0].cache)
            assert_same_bits(arrays(got), arrays(expected))


@pytest.mark.parametrize("parameter", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l1", "bias_hh_l0"])
def test_a_layer_trained_between(parameter: str, backend: str) -> None:
    net = fastrnn.LSTM(I, H, 2, rng=0)
    y, _, cache = net.forward(GIVEN["x"], training=True)
    net.parameters()[parameter][...] += 0.01
    net.changed()
    with pytest.raises(ValueError, match=r"^cache: .* was changed after the forward"):
        net.backward(np.ones_like(y), cache)


@pytest.mark.parametrize("activation", [None, "identity", "softmax", "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("which", ["x", "y", "weight"])
def test_dense_changed_between(which: str, activation: str | None) -> None:
    """`p -= target` on a softmax's output, a common mistake, is an error; on a linear output it is not."""
    dense = fastrnn.Dense(I, 5, activation, rng=0)
    x = GIVEN["x"].copy()
    y, _, cache = dense.forward(x, training=True)
    expected = dense.backward(np.ones_like(y), cache)
    {"x": x, "y": y, "weight": dense.weight}[which][...] -= 0.5
    if which == "y" and activation in (None, "identity"):
        got = dense.backward(np.ones_like(y), cache)
        assert_same_bits(got.grads | {"dx": got.dx}, expected.grads | {"dx": expected.dx})
    else:
        with pytest.raises(ValueError, match=f"^cache: {which} was changed"):
            dense.backward(np.ones_like(y), cache)


@pytest.mark.parametrize("layer", [fastrnn.Activation("tanh"), fastrnn.Embedding(9, 2, rng=0)])
def test_other_layers_changed_between(layer: Any) -> None:
    x = np.arange(6).reshape(2, 3) if isinstance(layer, fastrnn.Embedding) else GIVEN["x"].copy()
    y, _, cache = layer.forward(x, training=True)
    (x if isinstance(layer, fastrnn.Embedding) else y)[...] += 1
    with pytest.raises(ValueError, match=r"^cache: [xy] was changed"):
        layer.backward(np.ones_like(y), cache)
