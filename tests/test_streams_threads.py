"""Streams and threads: the bits of one thread, several streams in parallel, one user at a time, and no allocation."""

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
from support.problems import CELLS
from support.stacks import layer, named
from support.streams import Tensor, X, sequence, streamed
from support.tolerance import assert_same_bits

import fastrnn


@pytest.fixture
def holding() -> Iterator[Callable[[Any], None]]:
    """Start another Python thread that makes calls until the test ends."""
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
    """One thread or several, also while another Python thread holds the team, all or part of the time."""
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
    """The second gets an error, here while x is passed to the first; afterwards the stream is usable again."""
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
    """One is admitted at a time, the others get an error: the number of steps equals the number of successful calls."""
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
    """Python threads then release the GIL only where the code does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


def test_other_threads_run_during_a_step(native: str, no_forced_switches: None) -> None:
    """A thread that waits for the GIL gets it, although this one only makes steps."""
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
    """The peak grows by less than one of the arrays, and no block remains at the end."""
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
def test_a_stream_cannot_be_copied(way: Callable[[Any], Any], backend: str) -> None:
    """A deep copy would step the original stream."""
    with fastrnn.use_backend(backend):
        stream = fastrnn.GRU(3, 4, reset_after=True, rng=0).stream()
    with pytest.raises(TypeError, match="stream: cannot be copied or pickled; make a new one"):
        way(stream)
