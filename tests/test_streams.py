"""Streams: the bits of the whole sequence, in place, without allocation, from one thread at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS
from support.stacks import as_given, layer, named, states
from support.streams import S, X, sequence, streamed
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.backends import available_isas

DTYPES = (np.float32, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B", [1, 3, 17])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_sequence(cell: str, num_layers: int, B: int, dtype: type, implementation: str) -> None:
    """A second sequence continues from the first; earlier results do not change."""
    for H in (7, 33):
        net = layer(cell, 5, H, num_layers, dtype=dtype)
        x = sequence(net, 9, B)
        stream = net.stream(B)
        first = streamed(stream, x[:4])
        assert_same_bits(first, named(*net(x[:4])))
        middle = stream.state
        assert_same_bits(streamed(stream, x[4:]), named(*net(x[4:], middle)))
        assert_same_bits(first, named(*net(x[:4])))


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_out(cell: str, B: int, num_layers: int, implementation: str) -> None:
    """`out` is returned and filled completely, and nothing next to it changes, also if it is rows of a wider array."""
    net = layer(cell, 5, 17, num_layers)
    x = sequence(net, 6, B)
    expected = net(x)[0]
    wide = np.full((B + 2, 2, 20), np.nan, np.float32)
    for out in (np.full((B, 17), np.nan, np.float32), wide[1:-1, 1, :17], wide[1:-1, 1, :17][::-1]):
        stream = net.stream(B)
        for x_t, y_t in zip(x, expected, strict=True):
            assert stream.step(x_t, out) is out
            assert_same_bits({"y": out}, {"y": y_t})
    assert np.isnan(wide).sum() == wide.size - B * 17


@pytest.mark.parametrize("cell", CELLS)
def test_one_dimension(cell: str, backend: str) -> None:
    """A stream of one sequence takes vectors, with both forms of `out` and of x."""
    net = layer(cell, 5, 17, 2)
    x = sequence(net, 6, 1)
    expected = net(x)[0]
    assert_same_bits({"y": np.stack([*map(net.stream().step, x[:, 0])])}, {"y": expected[:, 0]})
    flat, row = np.empty(17, np.float32), np.empty((1, 17), np.float32)
    for xs, out in ((x, flat), (x[:, 0], row), (x[:, 0], flat)):
        stream = net.stream()
        for x_t, y_t in zip(xs, expected, strict=True):
            assert_same_bits({"y": stream.step(x_t, out=out).reshape(1, 17)}, {"y": y_t})


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_state_passed_by_the_caller(cell: str, B: int, num_layers: int, implementation: str) -> None:
    """`state` is updated in place; several states may alternate, and the stream's own state does not change."""
    net = layer(cell, 5, 17, num_layers)
    x = sequence(net, 8, B)
    stream = net.stream(B)
    own = streamed(stream, x[:3])
    turns = [states(cell, num_layers, B, 17, seed=seed) for seed in (1, 2)]
    expected = [named(*net(x, as_given(tuple(s.copy() for s in state)))) for state in turns]
    steps = [[stream.step(x_t, state=state) for state in turns] for x_t in x]
    for ys, state, whole in zip(zip(*steps, strict=True), turns, expected, strict=True):
        assert_same_bits(named(np.stack(ys), as_given(state)), whole)
    assert_same_bits(named(own["y"], stream.state), own)
    assert_same_bits({"y": streamed(stream, x[3:])["y"]}, {"y": net(x)[0][3:]})


# Memory that is shared


def placed(flat: np.ndarray, start: int, B: int, features: int, row: int) -> np.ndarray:
    """Return (B, features) in a flat array: the first row at `start`, the next one `row` elements further, or back."""
    return np.lib.stride_tricks.as_strided(flat[start:], (B, features), (row * flat.itemsize, flat.itemsize))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    ("x_at", "x_row", "out_at", "out_row"),
    [
        (1000, 100, 1000, 100),  # one and the same
        (1000, 100, 1050, 100),  # half of it
        (1050, 100, 1000, 100),
        (1000, 100, 1200, -100),  # upside down
        (1800, 100, 1000, 400),  # x is out's last row and beyond, far from out's first row
        (1200, 400, 1000, 100),  # the reverse
        (1000, 100, 1400, -200),  # out ends where x begins
        (1400, -200, 1000, 100),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_out_and_x_overlap(
    cell: str, x_at: int, x_row: int, out_at: int, out_row: int, num_layers: int, backend: str
) -> None:
    """x is read before `out` is written, wherever they overlap."""
    net = layer(cell, 100, 100, num_layers)
    flat = np.zeros(3000, np.float32)
    x, out = placed(flat, x_at, 3, 100, x_row), placed(flat, out_at, 3, 100, out_row)
    assert np.shares_memory(x, out)
    stream, apart = net.stream(3), net.stream(3)
    for seed in range(3):
        x[...] = sequence(net, 1, 3, seed)[0]
        expected = apart.step(x.copy())
        assert_same_bits({"y": stream.step(x, out)}, {"y": expected})


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_x_is_the_state(cell: str, num_layers: int, backend: str) -> None:
    """The layer's own state as its input, for any of its layers."""
    net = layer(cell, 100, 100, num_layers)
    stream = net.stream(3)
    for kind in range(len(states(cell, 1))):
        for level in range(num_layers):
            state, apart = (states(cell, num_layers, 3, 100) for _ in range(2))
            got = stream.step(state[kind][level], state=state)
            expected = stream.step(apart[kind][level].copy(), state=apart)
            assert_same_bits(named(got, as_given(state)), named(expected, as_given(apart)))


@pytest.mark.parametrize("cell", CELLS)
def test_out_over_the_state_is_refused(cell: str, backend: str) -> None:
    net = layer(cell, 5, 17, 2)
    stream, state = net.stream(3), states(cell, 2, 3, 17)
    before = tuple(s.copy() for s in state)
    for s in state:
        for out in (s[0], s[1], s[1, ::-1]):
            with pytest.raises(ValueError, match=r"^out\b.*state"):
                stream.step(np.ones((3, 5), np.float32), out, state=state)
    assert_same_bits(named(before[0], as_given(state)), named(before[0], as_given(before)))


# The stream's own state


@pytest.mark.parametrize("cell", CELLS)
def test_state(cell: str, backend: str) -> None:
    """Initially zero; reading returns a copy, assigning copies, in the layer's form."""
    net = layer(cell, 5, 17, 2)
    x = sequence(net, 6, 3)
    stream = net.stream(3)
    given = states(cell, 2, 3, 17)
    assert not np.any(stream.state)
    stream.state = as_given(given)
    for s in (*given, *(stream.state if len(given) > 1 else (stream.state,))):
        s += 1
    again = states(cell, 2, 3, 17)
    assert_same_bits(streamed(stream, x), named(*net(x, as_given(again))))


@pytest.mark.parametrize(
    "wrong", [5, (1, 2), (S,), (S, S, S), S, (S, S[:, :2]), (S, S[:1]), (S.astype(np.float64), S), (S, None)]
)
def test_wrong_state(wrong: Any, backend: str) -> None:
    stream = layer("lstm", 5, 17, 2).stream(3)
    before = stream.step(X), stream.state
    with pytest.raises((TypeError, ValueError), match=r"^state\b"):
        stream.state = wrong
    assert_same_bits(named(before[0], stream.state), named(*before))


@pytest.mark.parametrize("chosen", [1, [0, 2], np.array([True, False, True, False]), slice(1, 3), slice(None)])
@pytest.mark.parametrize("cell", CELLS)
def test_reset(cell: str, chosen: Any, backend: str) -> None:
    """The chosen sequences start from zero, as by `resets`; the others are not affected."""
    net = layer(cell, 5, 17, 2)
    x, resets = sequence(net, 6, 4), np.zeros((6, 4), bool)
    resets[3, chosen] = True
    stream = net.stream(4)
    first = streamed(stream, x[:3])["y"]
    stream.reset(chosen)
    got = streamed(stream, x[3:])
    assert_same_bits(got | {"y": np.concatenate([first, got["y"]])}, named(*net(x, resets=resets)))


def test_reset_of_all(backend: str) -> None:
    net = layer("lstm", 5, 17, 2)
    x, stream = sequence(net, 4, 3), net.stream(3)
    first = streamed(stream, x)
    stream.reset()
    assert_same_bits(streamed(stream, x), first)


# The layer behind it


@pytest.mark.parametrize("cell", CELLS)
def test_follows_its_layer(cell: str, implementation: str) -> None:
    """New parameters are used from the next step on, whatever made the stream; the state does not change."""
    net, other = (layer(cell, 5, 17, 2, rng=seed) for seed in (0, 1))
    x, stream = sequence(net, 6, 3), net.stream(3)
    streamed(stream, x[:3])
    state = stream.state
    with fastrnn.use_backend("numpy"):
        net.load_state_dict(other.state_dict())
    assert_same_bits(streamed(stream, x[3:]), named(*other(x[3:], state)))


def test_outlives_its_layer(backend: str) -> None:
    net = layer("lstm", 5, 17, 2)
    x, stream = sequence(net, 4, 3), net.stream(3)
    expected = named(*net(x))
    del net
    assert_same_bits(streamed(stream, x), expected)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru_after", "gru_before"])
def test_stays_with_its_implementation(cell: str, implementation: str) -> None:
    """Backends and instruction sets in use at its steps have no effect; their bits differ."""
    net = layer(cell, 33, 97)
    x, stream = sequence(net, 20, 3), net.stream(3)
    expected = named(*net(x))
    with fastrnn.use_backend("numpy"):
        elsewhere = {"numpy": named(*net(x))}
        assert_same_bits(streamed(stream, x), expected)
    for isa in available_isas():
        with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
            stream.reset()
            elsewhere[f"native-{isa}"] = named(*net(x))
            assert_same_bits(streamed(stream, x), expected)
    differ = [name for name, a in elsewhere.items() if a["y"].tobytes() != expected["y"].tobytes()]
    assert differ


def test_new_parameters_reach_existing_streams(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed again for the instruction set of a stream, without changing the setting in use."""
    net = layer("lstm", 33, 97)
    x, stream = sequence(net, 5, 3), net.stream(3)
    for value in net.parameters().values():
        value *= 0.5
    expected = named(*copy.deepcopy(net)(x))
    with fastrnn.use_backend("numpy"):
        monkeypatch.setattr("fastrnn.backends.native.set_isa", None)
        net.changed()
        monkeypatch.undo()
    assert_same_bits(streamed(stream, x), expected)
