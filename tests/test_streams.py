"""Streams: steps have the bits of the whole sequence, in place, without an allocation, from one thread at a time."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS, Arrays
from support.stacks import as_given, composed, in_double, layer, named, states
from support.tolerance import assert_rounded, assert_same_bits

import fastrnn
from fastrnn.backends import available_isas

DTYPES = (np.float32, np.float64)


def sequence(net: Any, T: int, B: int, seed: Any = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((T, B, net.input_size)).astype(net.dtype)


def streamed(stream: Any, x: np.ndarray, **options: Any) -> Arrays:
    """What `named(*net(x))` must be, step by step."""
    steps = [stream.step(x_t, **options) for x_t in x]
    return named(np.stack(steps), stream.state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B", [1, 3, 17])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_sequence(cell: str, num_layers: int, B: int, dtype: type, implementation: str) -> None:
    """A second sequence goes on from the first, whose results were handed out for good."""
    for H in (7, 33):
        net = layer(cell, 5, H, num_layers, dtype=dtype)
        x = sequence(net, 9, B)
        stream = net.stream(B)
        first = streamed(stream, x[:4])
        assert_same_bits(first, named(*net(x[:4])))
        middle = stream.state
        assert_same_bits(streamed(stream, x[4:]), named(*net(x[4:], middle)))
        assert_same_bits(first, named(*net(x[:4])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_against_the_reference(cell: str, dtype: type, fast: str) -> None:
    net = layer(cell, 7, 33, 3, dtype=dtype)
    x = sequence(net, 9, 5)

    def reference() -> Arrays:
        return composed(in_double(net, cell), cell, x.astype(np.float64))

    with fastrnn.use_backend("numpy"):
        exact = reference()
    assert_rounded(streamed(net.stream(5), x), exact, reference)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_out(cell: str, B: int, num_layers: int, implementation: str) -> None:
    """`out` is returned and filled, every element of it and none beside it, also as rows of something wider."""
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
    """A stream of one sequence takes vectors, and either kind of `out` with either kind of x."""
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
def test_state_of_the_callers(cell: str, B: int, num_layers: int, implementation: str) -> None:
    """`state` is updated in place, several of them taking turns, and the stream's own stays as it is."""
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
    """(B, features) in a flat array: the first row at `start`, the next `row` elements on, or back."""
    return np.lib.stride_tricks.as_strided(flat[start:], (B, features), (row * flat.itemsize, flat.itemsize))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    ("x_at", "x_row", "out_at", "out_row"),
    [
        (1000, 100, 1000, 100),  # one and the same
        (1000, 100, 1050, 100),  # half of it
        (1050, 100, 1000, 100),
        (1000, 100, 1200, -100),  # upside down
        (1800, 100, 1000, 400),  # x is out's last row and beyond, which is far from its first
        (1200, 400, 1000, 100),  # the other way round
        (1000, 100, 1400, -200),  # out ends where x begins
        (1400, -200, 1000, 100),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_out_over_x(cell: str, x_at: int, x_row: int, out_at: int, out_row: int, num_layers: int, backend: str) -> None:
    """x is read before `out` is written, wherever the two meet."""
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
    """A layer's own state as its input, of any of its layers."""
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


# What is given


def strided(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2]


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a: np.ndarray) -> np.ndarray:
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


class Tensor:
    """Something with DLPack alone."""

    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def __dlpack__(self, **options: Any) -> Any:
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.a.__dlpack_device__()


@pytest.mark.parametrize(
    "lay",
    [
        np.asfortranarray,
        strided,
        read_only,
        unaligned,
        memoryview,
        Tensor,
        lambda a: np.flip(np.flip(a).copy()),
        lambda a: np.flip(a[::-1].copy(), 0),
        lambda a: np.repeat(a, 3, axis=0)[::3],
    ],
)
def test_layouts_of_x(lay: Callable[[np.ndarray], Any], backend: str) -> None:
    net = layer("lstm", 5, 17, 2)
    x = sequence(net, 4, 3)
    laid, plain = net.stream(3), net.stream(3)
    for x_t in x:
        assert_same_bits({"y": laid.step(lay(x_t))}, {"y": plain.step(x_t)})


def test_broadcast_x(backend: str) -> None:
    net = layer("lstm", 5, 17)
    x = np.broadcast_to(sequence(net, 1, 1)[0], (3, 5))
    assert_same_bits({"y": net.stream(3).step(x)}, {"y": net.stream(3).step(x.copy())})


def test_tensors(oracle: Callable[[str], Any], backend: str) -> None:
    """Torch's own, as x, as out and as the state."""
    torch = oracle("torch")
    net = layer("lstm", 5, 17, 2)
    x, stream, plain = sequence(net, 4, 3), net.stream(3), net.stream(3)
    out, state = torch.zeros(3, 17), tuple(torch.zeros(2, 3, 17) for _ in "hc")
    for x_t in x:
        expected = plain.step(x_t)
        assert stream.step(torch.tensor(x_t), out) is out
        assert_same_bits({"y": out.numpy()}, {"y": expected})
        assert_same_bits({"y": stream.step(torch.tensor(x_t), state=state)}, {"y": expected})
    assert_same_bits(named(out.numpy(), tuple(s.numpy() for s in state)), named(expected, plain.state))


X = np.ones((3, 5), np.float32)
Y = np.ones((3, 17), np.float32)
S = np.ones((2, 3, 17), np.float32)


@pytest.mark.parametrize(
    ("error", "said", "wrong"),
    [
        (TypeError, "x", {"x": X.astype(np.float64)}),
        (TypeError, "x", {"x": X.astype(">f4")}),
        (TypeError, "x", {"x": X.tolist()}),
        (TypeError, "x", {"x": None}),
        (TypeError, "x", {"x": b"bytes"}),
        (TypeError, "x", {"x": X.astype("M8[s]")}),
        (ValueError, "x", {"x": X[:2]}),
        (ValueError, "x", {"x": X[:, :4]}),
        (ValueError, "x", {"x": X[0]}),
        (ValueError, "x", {"x": X[0, 0].reshape(())}),
        (ValueError, "x", {"x": X[None]}),
        (TypeError, "out", {"out": Y.astype(np.float64)}),
        (TypeError, "out", {"out": Y.tolist()}),
        (TypeError, "out", {"out": Y.astype(np.int32)}),
        (ValueError, "out", {"out": Y[:, :16]}),
        (ValueError, "out", {"out": Y[:2]}),
        (ValueError, "out", {"out": Y[0]}),
        (ValueError, "out", {"out": np.asfortranarray(Y)}),
        (ValueError, "out", {"out": strided(Y)}),
        (ValueError, "out", {"out": read_only(Y)}),
        (ValueError, "out", {"out": memoryview(read_only(Y))}),
        (ValueError, "out", {"out": unaligned(Y)}),
        (ValueError, "state", {"state": (S,)}),
        (ValueError, "state", {"state": (S, S, S)}),
        (TypeError, "state", {"state": 5}),
        (TypeError, "state", {"state": (S, None)}),
        (TypeError, "state", {"state": (S, S.astype(np.float64))}),
        (ValueError, "state", {"state": (S[:1], S)}),
        (ValueError, "state", {"state": (S, S[:, :2])}),
        (ValueError, "state", {"state": S}),
        (ValueError, "state", {"state": (S, read_only(S))}),
        (ValueError, "state", {"state": (strided(S), S)}),
    ],
)
def test_wrong_arguments(error: type[Exception], said: str, wrong: dict[str, Any], backend: str) -> None:
    """The message names the argument, nothing is written, and the stream goes on as if nothing had happened."""
    net = layer("lstm", 5, 17, 2)
    stream, other = net.stream(3), net.stream(3)
    stream.step(X)
    other.step(X)
    with pytest.raises(error, match=rf"^{said}\b"):
        stream.step(**({"x": X} | wrong))
    assert (Y == 1).all()
    assert (S == 1).all()
    assert_same_bits(named(stream.step(X), stream.state), named(other.step(X), other.state))


def test_wrong_streams() -> None:
    net = layer("lstm", 5, 17)
    for name, value, error in (
        ("batch_size", 0, ValueError),
        ("batch_size", 1.0, TypeError),
        ("threads", 0, ValueError),
        ("threads", "2", TypeError),
    ):
        with pytest.raises(error, match=rf"^{name}\b"):
            net.stream(**{name: value})
    with pytest.raises(ValueError, match="bidirectional"):
        layer("lstm", 5, 17, bidirectional=True).stream()


# The stream's own state


@pytest.mark.parametrize("cell", CELLS)
def test_state(cell: str, backend: str) -> None:
    """Zero at first; what is read is a copy, what is assigned is copied, as a layer takes and returns it."""
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
    """The chosen sequences start afresh, as by `resets`; the others do not notice."""
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
    """New parameters count from the next step on, wherever the stream was made; the state stays."""
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
    """Other backends and instruction sets may be in use at its steps: their bits are not the same."""
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


def test_new_parameters_reach_streams_elsewhere(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed anew for the instruction set of a stream, and nobody's setting is touched for it."""
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


# Threads


@pytest.fixture
def holding() -> Iterator[Callable[[Any], None]]:
    """Starts another Python thread that makes a call over and over until the test ends."""
    stop, threads = threading.Event(), []

    def repeat(call: Callable[[], Any]) -> None:
        started = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                started.set()
                call()

        threads.append(threading.Thread(target=loop))
        threads[-1].start()
        started.wait()

    yield repeat
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("cell", ["lstm_peephole", "gru_after", "gru_before", "rnn_tanh"])
@pytest.mark.parametrize("B", [1, 16])
def test_threads(B: int, cell: str, native: str, holding: Callable[[Any], None]) -> None:
    """One thread or several, or several wanted while another Python thread holds the team, then and now."""
    H = 1500 if cell.startswith("rnn") and B == 1 else 512
    net = layer(cell, H, H)
    x = sequence(net, 40, B)
    expected = streamed(net.stream(B, threads=1), x)
    stream = net.stream(B, threads=3)
    assert_same_bits(streamed(stream, x), expected)
    busy = layer("lstm", 64, 256)
    work = sequence(busy, 3, 64)
    holding(lambda: busy(work, threads=2))
    for _ in range(3):
        stream.reset()
        assert_same_bits(streamed(stream, x), expected)


def test_a_stream_for_each_thread(implementation: str) -> None:
    net = layer("lstm", 24, 48, 2)
    x = [sequence(net, 50, 3, seed) for seed in range(8)]
    expected = [named(*net(one)) for one in x]
    with ThreadPoolExecutor(8) as pool:
        for got, alone in zip(pool.map(lambda one: streamed(net.stream(3), one), x), expected, strict=True):
            assert_same_bits(got, alone)


def test_two_threads_in_one_stream(native: str) -> None:
    """The second is refused: here it comes while the first is being handed its x; then the stream is free again."""
    net = layer("lstm", 5, 17)
    stream, caught = net.stream(3), []

    class Slow(Tensor):
        def __dlpack__(self, **options: Any) -> Any:
            with ThreadPoolExecutor(1) as pool:
                caught.append(pool.submit(stream.step, X).exception())
            return super().__dlpack__(**options)

    expected = net(np.stack([X, X]))[0]
    assert_same_bits({"y": stream.step(Slow(X))}, {"y": expected[0]})
    assert [type(error) for error in caught] == [RuntimeError]
    assert "thread" in str(caught[0])
    assert_same_bits({"y": stream.step(X)}, {"y": expected[1]})


def test_threads_that_want_one_stream(native: str) -> None:
    """One is let in at a time, the others are refused: as many steps were made as came back."""
    net = layer("lstm", 5, 17)
    stream, alone = net.stream(3), net.stream(3)
    with ThreadPoolExecutor(4) as pool:
        errors = [asked.exception() for asked in [pool.submit(stream.step, X) for _ in range(3000)]]
    refused = [error for error in errors if error is not None]
    assert all("another thread is in this stream" in str(error) for error in refused)
    made = len(errors) - len(refused)
    assert made > 0
    y = [alone.step(X) for _ in range(made)][-1]
    assert_same_bits(named(y, stream.state), named(y, alone.state))


@pytest.fixture
def no_forced_switches() -> Iterator[None]:
    """Python threads give the GIL up only where they release it themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


def test_other_threads_run_during_a_step(native: str, no_forced_switches: None) -> None:
    """A thread that waits for the GIL gets it although this one does nothing but steps."""
    net = layer("lstm", 512, 512)
    stream, x, out = net.stream(16, threads=1), sequence(net, 1, 16)[0], np.empty((16, 512), np.float32)
    ask, seen = threading.Lock(), []
    ask.acquire()
    other = threading.Thread(target=lambda: seen.append(ask.acquire()))
    other.start()
    ask.release()
    for _ in range(300):
        stream.step(x, out)
        if seen:
            break
    before_join = list(seen)
    other.join()
    assert before_join == [True]


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_allocate_nothing(cell: str, B: int, native: str) -> None:
    """Not even for a moment: less at the peak than one of the arrays, and no block more at the end."""
    net = layer(cell, 2000, 500, 2)
    stream, x, out = net.stream(B, threads=1), sequence(net, 1, B)[0], np.empty((B, 500), np.float32)
    small = layer(cell, 4, 4)
    often, x_small, out_small = small.stream(B), sequence(small, 1, B)[0], np.empty((B, 4), np.float32)
    stream.step(x, out)
    often.step(x_small, out_small)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in itertools.repeat(None, 5):
        stream.step(x, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < out.nbytes
    blocks = sys.getallocatedblocks()
    for _ in itertools.repeat(None, 1000):
        often.step(x_small, out_small)
    assert sys.getallocatedblocks() - blocks < 100


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_a_stream_has_no_copies(way: Callable[[Any], Any], backend: str) -> None:
    """A deep copy stepped the stream that it was of."""
    with fastrnn.use_backend(backend):
        stream = fastrnn.GRU(3, 4, reset_after=True, rng=0).stream()
    with pytest.raises(TypeError, match="stream: cannot be copied or pickled; make a new one"):
        way(stream)
