"""Hostile calls, by the table: each is refused with an error that a person can use, or gives the right result.

An error's message begins with the name of the argument (a `Sequential` says before it which layer has it). What is
right although it looks wrong has the bits of the plain call.
"""

from __future__ import annotations

import array
import copy
import ctypes
import mmap
import os
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.problems import CELLS, COTANGENTS, Problem, arrays, call, make, run
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.backends import cgroup_cpus
from fastrnn.results import Cache

T, B, I, H = SIZES = (5, 3, 2, 4)
ALL = make("lstm_peephole", SIZES, dtype=np.float32, lengths=True, resets=True, return_cells=True)
GIVEN = ALL.inputs | ALL.cotangents
FLOATS = [name for name in GIVEN if name not in ("lengths", "resets")]


class Producer:
    """A DLPack producer that does as it is told."""

    def __init__(self, produce: Callable[[], Any]) -> None:
        self.produce = produce

    def __dlpack__(self, **_: Any) -> Any:
        return self.produce()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class Undeclared:
    def __dlpack__(self) -> Any:
        return object()


class Subclass(np.ndarray):
    """Every operation on it fails."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a method of the subclass was called")

    def __getitem__(self, _: Any) -> Any:
        raise AssertionError("a method of the subclass was called")


class Index:
    def __init__(self, n: Any) -> None:
        self.n = n

    def __index__(self) -> Any:
        return self.n

    def __repr__(self) -> str:  # in a test's name, which is to be the same in every process
        return f"Index({self.n!r})"


def refuse() -> Any:
    raise RuntimeError("the tensor requires grad")


def released(a: np.ndarray) -> memoryview:
    view = memoryview(a.copy())
    view.release()
    return view


def structured(a: np.ndarray) -> np.ndarray:
    return np.zeros(a.shape, [("a", "f4"), ("b", "f4")])


Spoil = Callable[[np.ndarray], Any]

#: what is no array of x's dtype, whatever it stands for
NO_ARRAY: dict[str, Spoil] = {
    "generator": lambda a: (row for row in a),
    "set": lambda a: {1.0, 2.0},
    "lists": lambda a: a.tolist(),
    "bytes": lambda a: a.tobytes(),
    "text": lambda a: "0.5" * a.size,
    "scalar": lambda a: np.float32(1),
    "huge integer": lambda a: 10**400,
    "ellipsis": lambda a: ...,
    "type": lambda a: np.ndarray,
    "function": lambda a: a.astype,
    "masked": lambda a: np.ma.array(a, mask=a > 0),
    "masked nothing": np.ma.array,
    "structured": structured,
    "records": lambda a: structured(a).view(np.recarray),
    "complex": lambda a: a.astype(np.complex64),
    "bool": lambda a: a > 0,
    "object": lambda a: a.astype(object),
    "int": lambda a: a.astype(np.int32),
    "half": lambda a: a.astype(np.float16),
    "long double": lambda a: a.astype(np.longdouble),
    "void": lambda a: a.view("V4"),
    "time": lambda a: a.astype("m8[s]"),
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "no axes, object": lambda a: np.array(a, dtype=object)[(slice(None),) * a.ndim].sum() * np.ones((), object),
    "released": released,
    "producer of nothing": lambda a: Producer(lambda: None),
    "producer of junk": lambda a: Producer(object),
    "producer that refuses": lambda a: Producer(refuse),
    "producer of no device": lambda a: Undeclared(),
    "cache": lambda a: call(ALL, training=True)[0].cache,
}

#: an array of the right dtype and of a shape that no argument has
NO_SHAPE: dict[str, Spoil] = {
    "no axes": lambda a: np.float32(1) * np.ones((), np.float32),
    "empty": lambda a: a[:0].reshape(0),
    "no rows": lambda a: a[..., :0],
    "four axes": lambda a: a.reshape(1, 1, 1, -1),
    "64 axes": lambda a: a.reshape((1,) * 63 + (-1,)),
    "one short": lambda a: a[..., :-1],
    "bytes of floats": lambda a: array.array("f", a.ravel()[:-1].tolist()),
    "petabytes": lambda a: np.broadcast_to(a.ravel()[:1], (2**50,)),
}

#: what is an array all the same
SOME_ARRAY: dict[str, Spoil] = {
    "subclass": lambda a: a.copy().view(Subclass),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"?" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "a field": lambda a: as_field(a),
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "Fortran's order": np.asfortranarray,
    "buffer": lambda a: memoryview(a),
    "ctypes": lambda a: as_ctypes(a),
    "producer": lambda a: Producer(a.__dlpack__),
    "dtype with metadata": lambda a: a.astype(np.dtype(a.dtype, metadata={"unit": "1"})),
    "mapped": lambda a: mapped(a),
}


def as_field(a: np.ndarray) -> np.ndarray:
    """Of packed records, so strides are no multiples of the elements."""
    records = np.zeros(a.shape, np.dtype([("flag", "u1"), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def as_ctypes(a: np.ndarray) -> Any:
    kind: Any = {"f": ctypes.c_float, "l": ctypes.c_int64, "?": ctypes.c_bool}[a.dtype.char]
    for n in reversed(a.shape):
        kind = kind * n
    return kind.from_buffer_copy(np.ascontiguousarray(a))


def mapped(a: np.ndarray) -> np.ndarray:
    memory = mmap.mmap(-1, a.nbytes)
    memory.write(a.tobytes())
    return np.frombuffer(memory, a.dtype).reshape(a.shape)


class Case(NamedTuple):
    """A call that is refused."""

    name: str  #: of the argument, with which the message begins
    what: str
    hostile: Callable[[], Any]
    errors: type[Exception] | tuple[type[Exception], ...] = (TypeError, ValueError)


CASES: list[Case] = []


def table(cases: list[Case]) -> Any:
    """Parameters of a test, counted."""
    CASES.extend(cases)
    return pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.name}: {case.what}") for case in cases])


def refused(case: Case) -> None:
    with pytest.raises(case.errors) as caught:
        case.hostile()
    assert re.match(rf"['\"]?(layer \d \(\w+\): )?{re.escape(case.name)}\b.*[:;]", str(caught.value)), caught.value
    assert len(str(caught.value)) < 500


# ---- arrays ----


def with_(name: str, spoil: Spoil) -> Callable[[], Any]:
    return lambda: run(ALL.changed(**{name: spoil(GIVEN[name])}))


@table([Case(n, what, with_(n, f)) for n in FLOATS for what, f in NO_ARRAY.items()])
def test_no_array(case: Case) -> None:
    refused(case)


@table([Case(n, what, with_(n, f), ValueError) for n in FLOATS for what, f in NO_SHAPE.items() if what != "one short"])
def test_no_shape(case: Case) -> None:
    """Before anything of that size is allocated, too."""
    refused(case)


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("kind", SOME_ARRAY)
def test_some_array(kind: str, name: str) -> None:
    a = GIVEN[name] if GIVEN[name].dtype != np.intp else GIVEN[name].astype("l")
    assert_same_bits(run(ALL.changed(**{name: SOME_ARRAY[kind](a)})), run(ALL))


@table(
    [
        Case("x", "scalar arrays in a list", lambda: fastrnn.rnn_forward([np.float32(1)] * 4, *rnn_weights())),
        Case("x", "B of 2**57", lambda: fastrnn.rnn_forward(zeros(0, 2**57, 2), *rnn_weights(16))),
        Case("x", "T of 2**57", lambda: fastrnn.rnn_forward(zeros(2**57, 0, 2), *rnn_weights(16))),
        Case("x", "layer, B of 2**57", lambda: fastrnn.RNN(2, 16, rng=0)(zeros(0, 2**57, 2))),
        Case("x", "layer, T of 2**57", lambda: fastrnn.RNN(2, 16, rng=0)(zeros(2**57, 0, 2))),
        Case("x", "batch-first", lambda: fastrnn.rnn_forward(zeros(2**57, 0, 2), *rnn_weights(16), batch_first=True)),
        Case(
            "W", "its own transpose", lambda: fastrnn.rnn_forward(zeros(5, 3, 2), rnn_weights()[0].T, rnn_weights()[1])
        ),
        Case("U", "one axis", lambda: fastrnn.rnn_forward(zeros(5, 3, 2), rnn_weights()[0], zeros(4))),
        Case("U", "LSTM's for an RNN", lambda: fastrnn.rnn_forward(zeros(5, 3, 2), zeros(16, 2), zeros(16, 4))),
        Case("U", "RNN's for a GRU", lambda: fastrnn.gru_forward(zeros(5, 3, 2), *rnn_weights(), reset_after=True)),
        Case("p", "W", lambda: run(ALL.changed(p=ALL.inputs["W"]))),
        Case(
            "h0", "batched, of one sequence", lambda: fastrnn.rnn_forward(zeros(5, 2), *rnn_weights(), h0=zeros(1, 4))
        ),
        Case("h0", "unbatched", lambda: fastrnn.rnn_forward(zeros(5, 1, 2), *rnn_weights(), h0=zeros(4))),
    ]
)
def test_sizes(case: Case) -> None:
    refused(case)


def zeros(*shape: int) -> np.ndarray:
    """Of any size, in no memory."""
    return np.broadcast_to(np.zeros(1, np.float32), shape)


def rnn_weights(hidden: int = H) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((hidden, I), np.float32), np.zeros((hidden, hidden), np.float32)


# ---- options ----

OPTIONS: dict[str, dict[str, Any]] = {
    "threads": {"0": 0, "-1": -1, "2.0": 2.0, "text": "2", "True": True, "NaN": np.nan, "array": np.array([2])}
    | {"array of floats": np.array(2.0), "array of two": np.array([1, 2]), "-2**70": -(2**70), "list": [2]}
    | {"index of text": Index("2"), "index of 0": Index(0), "numpy 0": np.int8(0), "complex": 1j, "bytes": b"2"},
    "checkpoint": {"0": 0, "-1": -1, "2.0": 2.0, "text": "2", "True": True, "array of two": np.array([1, 2])}
    | {"array of text": np.array(["auto", "auto"]), "-2**70": -(2**70), "bytes": b"auto", "AUTO": "AUTO", "list": []},
    "reverse": {"1": 1, "text": "no", "array": np.array(True), "float": 0.0, "list": []},
    "batch_first": {"1": 1, "text": "no", "array": np.array(True), "lambda": lambda: True},
    "return_cells": {"1": 1, "text": "no", "array": np.array([True])},
    "lengths": {
        "text": "abc",
        "bytes": b"abc",
        "float": [1.0, 2.0, 3.0],
        "nested": [[1], [2], [3]],
        "ragged": [[1], []],
    }
    | {"huge": [2**100, 1, 1], "T + 1": [6, 1, 1], "-1": [1, -1, 1], "NaN": [np.nan, 1, 1], "bool": [True, False, True]}
    | {"2**63": np.array([2**63, 0, 0], np.uint64), "minimum": [-(2**63), 1, 1], "masked": np.ma.array([1, 1, 1])}
    | {"dict": {0: 1, 1: 1, 2: 1}, "generator": (i for i in range(3)), "None in it": [None, 1, 1], "scalar": 2}
    | {
        "complex": np.ones(3, complex),
        "time": np.ones(3, "m8[s]"),
        "one short": [1, 1],
        "arrays": [np.ones(3, int)] * 3,
    },
    "resets": {
        "text": "abc",
        "ints": np.zeros((T, B), int),
        "floats": np.zeros((T, B)),
        "turned": np.zeros((B, T), bool),
    }
    | {"ragged": [[True], []], "masked": np.ma.zeros((T, B), bool), "one step": np.zeros(B, bool), "True": True}
    | {
        "bytes": np.zeros((T, B), np.uint8),
        "object": np.zeros((T, B), object),
        "set": {True},
        "None in it": [[None] * B] * T,
    },
}


@table(
    [Case(name, what, lambda n=name, v=v: run(ALL, **{n: v})) for name, o in OPTIONS.items() for what, v in o.items()]
)
def test_options(case: Case) -> None:
    refused(case)


SAME_OPTIONS: list[dict[str, Any]] = [
    {"threads": np.int8(2)},
    {"threads": np.array(2)},
    {"threads": 2**70},
    {"threads": Index(3)},
    {"threads": np.uint64(2**64 - 1)},
    {"checkpoint": np.uint8(2)},
    {"checkpoint": 2**70},
    {"checkpoint": np.str_("auto")},
    {"reverse": np.False_},
    {"batch_first": np.False_, "return_cells": np.True_},
    {"lengths": tuple(ALL.inputs["lengths"].tolist())},
    {"lengths": list(ALL.inputs["lengths"].astype(np.uint8))},
    {"lengths": array.array("b", ALL.inputs["lengths"].tolist())},
    {"resets": ALL.inputs["resets"].tolist()},
    {"resets": (ALL.inputs["resets"] * np.uint8(7)).view(bool)},
]


@pytest.mark.parametrize("options", SAME_OPTIONS, ids=str)
def test_odd_options_that_are_right(options: dict[str, Any], backend: str) -> None:
    assert_same_bits(run(ALL, **options), run(ALL))


def plain(function: Callable[..., Any], **options: Any) -> Callable[[], Any]:
    return lambda: function(**options)


@table(
    [
        *[
            Case("activation", repr(v)[:20], plain(fastrnn.rnn_forward, x=zeros(1, 1), W=1, U=1, activation=v))
            for v in (None, 1, [], "TANH", b"tanh", np.array(["tanh"]), np.array(["tanh", "relu"]), np.tanh, {})
        ],
        *[
            Case("reset_after", repr(v), plain(fastrnn.gru_forward, x=zeros(1, 1), W=1, U=1, reset_after=v))
            for v in (None, 1, "True", np.array(True), 0.0)
        ],
        *[
            Case("threads", repr(v), plain(fastrnn.set_num_threads, threads=v))
            for v in (0, None, True, "1", [1], -(2**80))
        ],
        *[Case("backend", repr(v), plain(fastrnn.use_backend, name=v), TypeError) for v in (None, [], 1, b"numpy")],
        Case("backend", "case", plain(fastrnn.use_backend, name="NUMPY")),
        *[Case("instruction set", repr(v), plain(fastrnn.use_isa, name=v)) for v in (None, [], 1, "", "avx2")],
    ]
)
def test_settings(case: Case) -> None:
    before = fastrnn.config()
    refused(case)
    assert fastrnn.config() == before


# ---- caches ----


def trained(cell: str = "lstm_peephole", **options: Any) -> tuple[Problem, Any]:
    problem = make(cell, SIZES, dtype=np.float32)
    return problem, call(problem, training=True, **options)[0]


def lstm_back(cache: Any, **cotangents: Any) -> Any:
    return fastrnn.lstm_backward(cotangents.pop("dy", GIVEN["dy"]), cache, **cotangents)


def layer_cache(**options: Any) -> Any:
    return fastrnn.LSTM(I, H, rng=0, **options).forward(GIVEN["x"], training=True).cache


LSTM = fastrnn.LSTM(I, H, rng=0)
PAIR = fastrnn.LSTM(I, H, bidirectional=True, merge=None, rng=0)
DENSE = fastrnn.Dense(I, 5, "softmax", rng=0)


def back(layer: Any, dy: Any = None, cache: Any = None, **more: Any) -> Callable[[], Any]:
    """Of the layer's own forward, unless another cache is given."""

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
    """And twice in each, and as a copy: it is read, no more."""
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
    """What a freed cache held goes to the next one, and never what one holds that is in use."""
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


# ---- what is changed between forward and backward ----


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("name", ["x", "W", "U", "b", "b_rec", "p", "h0", "c0", "resets"])
def test_arguments_changed_after_forward(name: str, checkpoint: int | None, backend: str) -> None:
    """Refused by the name; and right again once they are what they were."""
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
    """An optimizer's step, or the next batch in the same buffer, shows in a sample of elements wherever they lie."""
    problem = make("gru_before", (7, 6, 5, 33))
    for name in ("x", "W", "U"):
        a = lay(problem.inputs[name].copy())
        result = call(problem.changed(**{name: a}), training=True)[0]
        a += 1e-3
        view_is_used = a.flags.c_contiguous or (name == "x" and a.strides[-1] == a.itemsize)
        if view_is_used:
            with pytest.raises(ValueError, match=f"^cache: {name} was changed"):
                fastrnn.gru_backward(problem.cotangents["dy"], result.cache)
        else:  # what had to be copied is nobody's to change
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
    """`p -= target` on a softmax's own output is a mistake that people make; on a linear one it is none."""
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


# ---- streams ----

NET = fastrnn.LSTM(I, H, rng=0)


def step(**changes: Any) -> Callable[[], Any]:
    return lambda: NET.stream(B).step(**{"x": GIVEN["x"][0]} | changes)


def state(n: int = 2, **changes: Any) -> tuple[np.ndarray, ...]:
    shape = changes.pop("shape", (1, B, H))
    return tuple([np.zeros(shape, changes.get("dtype", np.float32)) for _ in range(n)])


def overlapping(strides: tuple[int, int]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.zeros(100, np.float32), (B, H), strides)


ONE = np.zeros((2, B, H), np.float32)
READ_ONLY = np.frombuffer(bytes(4 * B * H), np.float32)


def assigned(value: Any) -> Callable[[], Any]:
    return lambda: setattr(NET.stream(B), "state", value)


@table(
    [
        *[Case("x", what, step(x=f(GIVEN["x"][0]))) for what, f in NO_ARRAY.items() if what != "released"],
        *[Case("x", what, step(x=f(GIVEN["x"][0])), ValueError) for what, f in NO_SHAPE.items()],
        *[Case("out", what, step(out=f(np.zeros((B, H), "f4")))) for what, f in NO_ARRAY.items() if what != "released"],
        *[Case("out", what, step(out=f(np.zeros((B, H), "f4"))), ValueError) for what, f in NO_SHAPE.items()],
        Case("out", "read-only", step(out=READ_ONLY.reshape(B, H)), ValueError),
        Case("out", "bytes", step(out=memoryview(READ_ONLY.reshape(B, H))), ValueError),
        Case("out", "Fortran's order", step(out=np.zeros((H, B), "f4").T), ValueError),
        Case("out", "the same row for all", step(out=overlapping((0, 4))), ValueError),
        Case("out", "rows that overlap", step(out=overlapping((8, 4))), ValueError),
        Case("out", "rows that overlap, backwards", step(out=overlapping((4, 4))[::-1]), ValueError),
        Case("out", "the state", step(out=ONE[0], state=(ONE[:1], ONE[1:])), ValueError),
        Case(
            "out", "half of the state", step(out=ONE.reshape(-1)[6 : 6 + B * H].reshape(B, H), state=(ONE[:1], ONE[1:]))
        ),
        Case("state", "h alone", step(state=ONE[:1]), ValueError),
        Case("state", "a list of one", step(state=[ONE[:1]]), ValueError),
        Case("state", "three", step(state=state(3)), ValueError),
        Case("state", "nothing", step(state=()), ValueError),
        Case("state", "text", step(state="hc"), TypeError),
        Case("state", "an array of no axes", step(state=np.array(1.0)), TypeError),
        Case("state", "a dict", step(state=dict(zip("hc", state(), strict=True))), TypeError),
        Case("state", "a generator", step(state=(s for s in state())), TypeError),
        Case("state", "None in it", step(state=(None, ONE[:1])), TypeError),
        Case("state", "c is h", step(state=(ONE[:1], ONE[:1])), ValueError),
        Case(
            "state", "c overlaps h", step(state=(ONE[:1], ONE.reshape(-1)[6 : 6 + B * H].reshape(1, B, H))), ValueError
        ),
        Case("state", "without L", step(state=state(shape=(B, H))), ValueError),
        Case("state", "of another batch", step(state=state(shape=(1, B + 1, H))), ValueError),
        Case("state", "read-only", step(state=(READ_ONLY.reshape(1, B, H), ONE[:1])), ValueError),
        Case("state", "in Fortran's order", step(state=(np.zeros((H, B, 1), "f4").T, ONE[:1])), ValueError),
        Case("state", "float64", step(state=state(dtype=np.float64)), TypeError),
        Case("state", "masked", step(state=(np.ma.array(ONE[:1]), ONE[1:])), TypeError),
        *[
            Case("state", f"assigned {what}", assigned(value))
            for what, value in {
                "None": None,
                "h": ONE[:1],
                "text": "hc",
                "one": (ONE[:1],),
                "three": (ONE[:1],) * 3,
                "None in it": (ONE[:1], None),
                "float64": state(dtype=np.float64),
                "without L": state(shape=(B, H)),
                "masked": (np.ma.array(ONE[:1]), ONE[1:]),
            }.items()
        ],
        *[
            Case("sequences", repr(v)[:24], lambda v=v: NET.stream(B).reset(v), IndexError)
            for v in (
                B,
                -B - 1,
                [0, B],
                1.5,
                None,
                True,
                False,
                "0",
                {0},
                np.ones((B, H), bool),
                [True, False],
                [[0]],
                [[1, 2], [3]],
                [0.0],
            )
        ],
        *[
            Case("batch_size", repr(v), lambda v=v: NET.stream(v))
            for v in (0, -1, 1.0, None, "1", True, 2**62, 2**70, [1])
        ],
        *[Case("threads", repr(v), lambda v=v: NET.stream(1, threads=v)) for v in (0, 1.0, "1", True, [1])],
        Case("stream", "two directions", lambda: PAIR.stream(), ValueError),
    ]
)
def test_streams(case: Case, backend: str) -> None:
    refused(case)


@pytest.mark.parametrize("kind", SOME_ARRAY)
def test_some_array_in_a_stream(kind: str, backend: str) -> None:
    expected = NET.stream(B).step(GIVEN["x"][0])
    assert_same_bits({"y": NET.stream(B).step(SOME_ARRAY[kind](GIVEN["x"][0]))}, {"y": expected})


def test_a_refused_step_leaves_no_trace(implementation: str) -> None:
    stream = NET.stream(B)
    expected = NET.stream(B).step(GIVEN["x"][0])
    for hostile in ({"x": None}, {"x": GIVEN["x"][0], "out": 1}, {"x": GIVEN["x"][0], "state": (ONE[:1], ONE[:1])}):
        with pytest.raises((TypeError, ValueError)):
            stream.step(**hostile)
    for hostile_index in (B, True):
        with pytest.raises(IndexError):
            stream.reset(hostile_index)
    assert_same_bits({"y": stream.step(GIVEN["x"][0])}, {"y": expected})


def test_x_that_is_out(implementation: str) -> None:
    """Or shares memory with it, or with the state: it is read as it was."""
    net = fastrnn.LSTM(H, H, rng=0)
    x = GIVEN["h0"]
    plain_stream, own = net.stream(B), net.stream(B)
    first, second = plain_stream.step(x), plain_stream.step(x)
    both = x.copy()
    assert own.step(both, out=both) is both
    h, c = state()
    own.state = (first[None], own.state[1])
    assert_same_bits({"y": both}, {"y": first})
    again = net.stream(B)
    again.step(x, state=(h, c))
    x_in_h = h
    h[0] = first
    expected = net.stream(B).step(first.copy(), state=(h.copy(), c.copy()))
    assert_same_bits({"y": again.step(x_in_h[0], state=(h, c))}, {"y": expected})
    assert second.shape == (B, H)


# ---- layers ----

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


def test_a_refused_state_dict_leaves_the_layer() -> None:
    net = fastrnn.LSTM(I, H, rng=0)
    before = net.state_dict()
    with pytest.raises(ValueError, match=r"^bias_hh_l0"):
        net.load_state_dict({n: a * 2 for n, a in before.items()} | {"bias_hh_l0": zeros(3)})
    assert_same_bits(net.state_dict(), before)


# ---- models ----

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


def test_the_table_is_long() -> None:
    assert len(CASES) >= 300


# ---- data ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0])
@pytest.mark.parametrize("cell", CELLS)
def test_hostile_numbers(cell: str, value: float, backend: str) -> None:
    """In one sequence, or everywhere: no crash, no warning, and no trace in the other sequences or the padding."""
    problem = make(cell, SIZES, dtype=np.float32, lengths=True)
    x = problem.inputs["x"].copy()
    x[:, 1] = value
    got, expected = run(problem.changed(x=x)), run(problem)
    others = [0, 2]
    assert_same_bits({"y": got["y"][:, others]}, {"y": expected["y"][:, others]})
    assert_same_bits({"dx": got["dx"][:, others]}, {"dx": expected["dx"][:, others]})
    for t, b in np.argwhere(np.arange(T)[:, None] >= problem.inputs["lengths"]):
        assert not got["y"][t, b].any()
        assert not got["dx"][t, b].any()
    for name in COTANGENTS:
        if name in problem.cotangents:
            run(problem.changed(**{name: np.full_like(problem.cotangents[name], value)}))
    run(problem.changed(**{name: np.full_like(a, value) for name, a in problem.inputs.items() if a.dtype.kind == "f"}))


# ---- memory that cannot be had ----

HUNGRY = """
import resource, sys
import numpy as np
import fastrnn

lstm = fastrnn.LSTM(8, 64, rng=0)
W, U = np.zeros((256, 8), np.float32), np.zeros((256, 64), np.float32)
x = np.ones((50, 2, 8), np.float32)
long = np.broadcast_to(np.float32(1), (200_000, 8, 8))
expected = fastrnn.lstm_forward(x, W, U).y
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), resource.RLIM_INFINITY))
calls = {
    "inference": lambda: fastrnn.lstm_forward(long, W, U),
    "training": lambda: fastrnn.lstm_forward(long[:20_000], W, U, training=True),
    "few steps": lambda: fastrnn.lstm_forward(x, W, U),
    "a layer": lambda: lstm(long),
    "training a layer": lambda: lstm.forward(long[:20_000], training=True),
    "a stream": lambda: lstm.stream(1_000_000),
    "a large layer": lambda: fastrnn.LSTM(8, 4096),
    "a large Dense": lambda: fastrnn.Dense(8192, 8192),
    "a large Embedding": lambda: fastrnn.Embedding(1_000_000, 64),
}
for name, hungry in calls.items():
    for _ in range(3):
        try:
            hungry()
            print(name, "had its memory")
        except MemoryError:
            print(name, "MemoryError")
assert (fastrnn.lstm_forward(x, W, U).y == expected).all()
assert fastrnn.lstm_backward(np.ones_like(expected), fastrnn.lstm_forward(x, W, U, training=True).cache).dW.any()
"""


def test_memory_that_cannot_be_had(native: str, python: Callable[..., CompletedProcess[str]]) -> None:
    """Under a limit of 64 MB more than there was: an error each time, and the library is of use afterwards."""
    done = python("-c", HUNGRY, FASTRNN_ISA=native.removeprefix("native-"), FASTRNN_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    told = set(done.stdout.splitlines())
    assert "few steps had its memory" in told
    assert len(told) == 9, done.stdout
    assert sum(line.endswith("MemoryError") for line in told) == 8, done.stdout


NO_THREADS = """
import resource
from support import crowded
import numpy as np
from support.problems import THREADED, make, run

problem = make("lstm", THREADED[0], dtype=np.float32)
expected = run(problem, threads=1)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
import os
os.setuid(65534)
before = len(os.listdir("/proc/self/task"))
got = run(problem, threads=3)
assert len(os.listdir("/proc/self/task")) == before
assert all((got[name] == expected[name]).all() for name in expected)
"""


def test_threads_that_cannot_be_had(native: str, python: Callable[..., CompletedProcess[str]]) -> None:
    """The system gives no more threads: the call runs on its own, to the same bits."""
    if os.getuid() != 0:
        pytest.skip("needs root to become a user who may start none")
    done = python("-c", NO_THREADS)
    assert done.returncode == 0, done.stderr


def version_1(quota: str, group: str = "", period: int = 100000) -> dict[str, str]:
    return {f"cpu/{group}cpu.cfs_quota_us": f"{quota}\n", f"cpu/{group}cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "own", "cpus"),
    [
        ({}, "0::/\n", np.inf),
        ({"cpu.max": "150000 100000\n"}, "", np.inf),
        ({"cpu.max": "max 100000\n"}, "0::/\n", np.inf),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "150000 50000\n"}, "0::/\n", 3.0),
        ({"cpu.max": "150000 100000\n"}, "0::/a/service/of/the/host\n", 1.5),
        ({"a/cpu.max": "250000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 2.5),
        ({"a/cpu.max": "250000 100000\n", "a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"a/cpu.max": "250000 100000\n"}, "0::/b\n", np.inf),
        (version_1("-1"), "1:cpu:/\n0::/\n", np.inf),
        (version_1("50000"), "1:cpu:/\n0::/\n", 0.5),
        (version_1("50000", period=20000), "1:cpu:/\n0::/\n", 2.5),
        (version_1("50000"), "4:memory:/a\n3:cpu,cpuacct:/docker/0123\n0::/\n", 0.5),
        (version_1("-1") | version_1("300000", "a/"), "3:cpuset:/b\n1:cpuacct,cpu:/a\n", 3.0),
    ],
)
def test_quota_of_control_groups(files: dict[str, str], own: str, cpus: float, tmp_path: Path) -> None:
    """Of either version, the tightest from one's own up; a container sees its own as the root."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert cgroup_cpus(tmp_path, tmp_path / "own") == cpus
    assert cgroup_cpus(tmp_path, tmp_path / "absent") == np.inf


@pytest.mark.parametrize(("quota", "cpus"), [(0.2, 1), (1.0, 1), (1.5, 2), (3.5, 3), (np.inf, 3)])
def test_quota_is_rounded_up(quota: float, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To one CPU at least, and to no more than the process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    monkeypatch.setattr(fastrnn.backends, "cgroup_cpus", lambda: quota)
    assert fastrnn.backends.usable_cpus() == cpus


@pytest.mark.parametrize("value", [Fraction(1, 4), np.float32(0.25), np.float64(0.25)])
def test_odd_numbers_that_are_right(value: Any) -> None:
    assert fastrnn.Dropout(value).rate == 0.25
