"""Calls whose threads are kept from the CPUs: after a step the other threads leave the rest to the first."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from support import crowded  # noqa: F401
from support.problems import CELLS, THREADED, make, run
from support.stacks import layer
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.backends import available_isas

pytestmark = pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")


@pytest.fixture
def left_alone() -> Iterator[None]:
    """Make all calls do so, after the first step that ends at a barrier."""
    import _fastrnn

    _fastrnn.set_backoff(2)
    yield
    _fastrnn.set_backoff(0)


@pytest.mark.parametrize("checkpoint", [None, 7])
@pytest.mark.parametrize("sizes", THREADED[1:])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("left_alone")
def test_same_bits(cell: str, sizes: tuple[int, int, int, int], checkpoint: int | None, native: str) -> None:
    problem = make(cell, sizes, dtype=np.float32, lengths=sizes[1] > 1, resets=True, checkpoint=checkpoint)
    assert_same_bits(run(problem, threads=3), run(problem, threads=1))


@pytest.mark.usefixtures("left_alone")
@pytest.mark.by_turns
def test_same_bits_of_a_projection(native: str) -> None:
    net = fastrnn.LSTM(64, 300, proj_size=100, rng=0)
    x = np.random.default_rng(0).standard_normal((40, 1, 64), dtype=np.float32)
    dy = np.random.default_rng(1).standard_normal((40, 1, 100), dtype=np.float32)
    results = []
    for threads in (1, 3):
        out = net.forward(x, training=True, threads=threads)
        back = net.backward(dy, out.cache)
        results.append({"y": out.y, "dx": back.dx} | back.grads)
    assert_same_bits(results[1], results[0])


@pytest.mark.usefixtures("left_alone")
@pytest.mark.by_turns
def test_prepared_calls(native: str) -> None:
    """From the third call of a kind on; the other threads have left, so they use little CPU time."""
    net = layer("lstm", 64, 512)
    x = np.random.default_rng(0).standard_normal((100, 1, 64), dtype=np.float32)
    alone = net(x, threads=1)[0]
    for _ in range(2):
        net(x, threads=2)
    process, thread = time.process_time(), time.thread_time()
    results = [net(x, threads=2)[0] for _ in range(10)]
    process, thread = time.process_time() - process, time.thread_time() - thread
    for y in results:
        assert_same_bits({"y": y}, {"y": alone})
    assert process - thread < 0.5 * thread
