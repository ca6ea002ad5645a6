"""Layers are bit-identical to the equivalent functional calls, also when stacked; arguments and errors."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import numpy as np
import pytest
from support.memory import backwards, guarded, read_only, strided
from support.problems import AWKWARD, CELLS, Arrays
from support.recurrent import in_dtype
from support.stacks import EVERYTHING, LAYOUTS, MERGED, composed, inputs, layer, run
from support.tolerance import assert_rounded, assert_same_bits

import fastrnn
from fastrnn.layers.options import LayerOptions

DTYPES = (np.float32, np.float64)
#: (num_layers, options): every depth with one direction and with two, every way to merge them, and no biases
STACKS = [(n, {}) for n in (1, 2, 3)] + [(1, {"bias": False})]
STACKS += [(n, {"bidirectional": True, "merge": m}) for n in (1, 2, 3) for m in MERGED if m or n == 1]


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_stack_equals_consecutive_calls(cell: str, stack: tuple[int, dict[str, Any]], implementation: str) -> None:
    """Every layout with all options and with none, awkward sizes, in both precisions."""
    num_layers, options = stack
    for case, (layout, given) in enumerate((a, b) for a in LAYOUTS for b in ((), ("state",), EVERYTHING)):
        rng = np.random.default_rng([CELLS.index(cell), STACKS.index(stack), case])
        I, H = (int(rng.choice(AWKWARD[:-1])) for _ in range(2))
        B = 1 if layout == "alone" else int(rng.choice(AWKWARD[:5]))
        dtype, batch_first = DTYPES[case % 2], layout == "batch"
        net = layer(cell, I, H, num_layers, rng=rng, dtype=dtype, batch_first=batch_first, **options)
        x, keywords = inputs(cell, net, (6, B), layout, rng, given)
        assert_same_bits(run(net, x, **keywords), composed(net, cell, x, **keywords))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_results_are_the_references(cell: str, bidirectional: bool, dtype: type, fast: str) -> None:
    net = layer(cell, 7, 33, 3, bidirectional=bidirectional, dtype=dtype)
    x, given = inputs(cell, net, (9, 7), "time", 2, EVERYTHING)
    wide = given | {"state": tuple(s.astype(np.float64) for s in given["state"])}

    def reference() -> Arrays:
        return composed(in_dtype(net, np.float64), cell, x.astype(np.float64), **wide)

    with fastrnn.use_backend("numpy"):
        exact = reference()
    assert_rounded(run(net, x, **given), exact, reference)


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0), (0, 0), (1, 3), (1, 1)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_no_steps_and_no_sequences(cell: str, bidirectional: bool, sizes: tuple[int, int], implementation: str) -> None:
    """Without steps: the initial state. Without sequences: empty arrays of the correct shape."""
    T, B = sizes
    net = layer(cell, 5, 7, 2, bidirectional=bidirectional)
    x, given = inputs(cell, net, sizes, "time", 3, ("state",))
    got = run(net, x, **given)
    assert got["y"].shape == (T, B, 14 if bidirectional else 7)
    assert_same_bits(got, composed(net, cell, x, **given))
    if T == 0:
        final = [a for name, a in got.items() if name != "y"]
        for after, before in zip(final, given["state"], strict=True):
            np.testing.assert_array_equal(after, before)


def test_repr_shows_the_options() -> None:
    assert repr(fastrnn.LSTM(3, 4)) == "LSTM(3, 4, dtype=float32) [lstm]"
    options = {"bias": False, "batch_first": True, "bidirectional": True, "merge": "sum", "dtype": np.float64}
    said = "num_layers=2, bias=False, batch_first=True, bidirectional=True, merge='sum', dtype=float64"
    assert repr(fastrnn.GRU(3, 4, 2, reset_after=False, **options)) == f"GRU(3, 4, {said}) [gru_before]"
    for cell in CELLS:
        assert repr(layer(cell, 3, 4)).endswith(f"[{cell}]")


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (ValueError, "merge", "max"),
        (TypeError, "merge", ["sum"]),
        (ValueError, "dropout", 0.5),
        (TypeError, "dtype", np.float16),
        (TypeError, "dtype", np.int64),
        (TypeError, "dtype", ">f4"),
        (TypeError, "dtype", "itanium"),
        (ValueError, "input_size", 0),
        (TypeError, "input_size", 3.0),
        (ValueError, "hidden_size", -1),
        (TypeError, "hidden_size", "4"),
        (ValueError, "num_layers", 0),
        (TypeError, "num_layers", 1.0),
        (TypeError, "num_layers", True),
        (TypeError, "num_layers", "2"),
        (TypeError, "bias", 1),
        (TypeError, "batch_first", "yes"),
        (TypeError, "bidirectional", 2),
    ],
)
def test_wrong_options_are_refused(error: type[Exception], name: str, value: Any) -> None:
    options = {"input_size": 3, "hidden_size": 4, "merge": None, "bidirectional": True} | {name: value}
    with pytest.raises(error, match=rf"^{name}\b"):
        fastrnn.LSTM(**options)


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^merge\b.*a pair"):
        fastrnn.LSTM(3, 4, 2, bidirectional=True, merge=None)
    with pytest.raises(ValueError, match=r"^activation\b.*swish"):
        fastrnn.RNN(3, 4, activation="swish")
    with pytest.raises(TypeError, match=r"^reset_after: expected True \(.*PyTorch.*\) or False \(.*\), got None$"):
        fastrnn.GRU(3, 4)
    with pytest.raises(TypeError, match=r"^reset_after\b"):
        fastrnn.GRU(3, 4, reset_after="before")


X = np.ones((5, 3, 2), np.float32)
S = np.ones((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("error", "said", "wrong"),
    [
        (TypeError, "x", {"x": X.astype(np.float64)}),
        (TypeError, "x", {"x": X.tolist()}),
        (TypeError, "x", {"x": None}),
        (ValueError, "x", {"x": X[:, :, :1]}),
        (ValueError, "x", {"x": X[0, 0]}),
        (ValueError, "x", {"x": X[None]}),
        (TypeError, "state", {"state": S}),
        (TypeError, "state", {"state": (S,)}),
        (TypeError, "state", {"state": (S, S, S)}),
        (TypeError, "state c", {"state": (S, None)}),
        (TypeError, "state h", {"state": (S.astype(np.float64), S)}),
        (ValueError, "state h", {"state": (S[:1], S)}),
        (ValueError, "state c", {"state": (S, S[:, :2])}),
        (ValueError, "state c", {"state": (S, S[:, :, :3])}),
        (ValueError, "state h", {"x": X[:, 0], "state": (S, S)}),
        (ValueError, "lengths", {"lengths": [1, 2]}),
        (ValueError, "lengths", {"lengths": [1, 2, 6]}),
        (ValueError, "lengths", {"lengths": [1, 2, -1]}),
        (TypeError, "lengths", {"lengths": [1.0, 2.0, 3.0]}),
        (ValueError, "resets", {"resets": np.zeros((3, 5), bool)}),
        (TypeError, "resets", {"resets": np.zeros((5, 3))}),
        (ValueError, "threads", {"threads": 0}),
        (TypeError, "threads", {"threads": 1.5}),
    ],
)
def test_wrong_arguments_are_refused(error: type[Exception], said: str, wrong: dict[str, Any], backend: str) -> None:
    net = layer("lstm", 2, 4, 2)
    with pytest.raises(error, match=rf"^{re.escape(said)}\b"):
        net(**({"x": X} | wrong))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_arguments_are_not_changed(cell: str, bidirectional: bool, batch_first: bool, backend: str) -> None:
    """Whatever the memory layout of x and the states; results share no memory with them."""
    net = layer(cell, 5, 17, 2, bidirectional=bidirectional, batch_first=batch_first)
    x, given = inputs(cell, net, (6, 3), "batch" if batch_first else "time", 10, EVERYTHING)
    expected = run(net, x, **given)
    for lay in (np.asfortranarray, strided, backwards, read_only):
        views = [lay(a) for a in (x, *given["state"])]
        for view in views:
            view.flags.writeable = False
        got = run(net, views[0], **given | {"state": tuple(views[1:])})
        assert_same_bits(got, expected)
        assert all(a.flags.writeable for a in got.values())
        assert not any(np.shares_memory(a, b) for a in got.values() for b in views)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", AWKWARD)
def test_memory_stays_within_bounds(cell: str, size: int, native: str) -> None:
    """Packed weights, outputs and scratch of layers and streams."""
    with guarded():
        for T, B, I, H in ((2, size, 3, 5), (3, 2, size, 7), (3, 2, 5, size), (size, 1, 3, 2)):
            x = np.ones((T, B, I), np.float32)
            layer(cell, I, H, 2, bidirectional=True)(x)
            net = layer(cell, I, H, 2)
            net(x)
            stream = net.stream(B)
            for x_t in x:
                stream.step(x_t)


#: layers that support proj_size
PROJECTS = ("LSTM",)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_signatures_match_the_options(name: str) -> None:
    """Each signature is written out, with the same default everywhere."""
    given = inspect.signature(getattr(fastrnn, name)).parameters
    options = [option for option in dataclasses.fields(LayerOptions) if option.name != "proj_size" or name in PROJECTS]
    for option in options:
        default = inspect.Parameter.empty if option.default is dataclasses.MISSING else option.default
        assert given[option.name].default == default, option.name
    own = {"peephole", "forget_bias", "reset_after", "activation", "initializer", "rng"}
    assert given.keys() <= {option.name for option in options} | own


def test_options_cannot_be_assigned() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field 'batch_first'"):
        fastrnn.LSTM(3, 4).batch_first = True  # type: ignore[misc]  # which is what is tested
