"""Layers on several threads, and called from several: the same bits, and no more threads than requested."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS
from support.python import Python
from support.stacks import EVERYTHING, composed, inputs, layer, run
from support.tolerance import assert_same_bits

from fastrnn import backends

DTYPES = (np.float32, np.float64)
#: too small to share a layer, but enough work for a stack: T, B, I, H
WAVE = (300, 2, 24, 64)


def alike_for_any_threads(net: Any, x: np.ndarray, **given: Any) -> None:
    alone = run(net, x, threads=1, **given)
    for threads in (2, 3, 8):
        for _ in range(3):
            assert_same_bits(run(net, x, threads=threads, **given), alone)


SHARED = [(2, {}), (3, {}), (1, {"bidirectional": True}), (2, {"bidirectional": True})]


@pytest.mark.parametrize("stack", SHARED)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_are_the_same_on_any_number_of_threads(cell: str, stack: tuple[int, dict[str, Any]], native: str) -> None:
    """The precisions alternate, so that each cell and each stack is tested in both."""
    T, B, I, H = WAVE
    dtype = DTYPES[(CELLS.index(cell) + SHARED.index(stack)) % 2]
    net = layer(cell, I, H, stack[0], dtype=dtype, **stack[1])
    x, given = inputs(cell, net, (T, B), "time", 4, EVERYTHING)
    assert_same_bits(run(net, x, threads=1, **given), composed(net, cell, x, **given))
    alike_for_any_threads(net, x, **given)
    alike_for_any_threads(net, x, state=given["state"])


@pytest.mark.by_turns
@pytest.mark.parametrize(("num_layers", "T"), [(3, 97), (3, 257), (16, 256), (16, 250), (17, 257), (17, 256), (33, 97)])
def test_deep_stacks_with_any_number_of_steps(num_layers: int, T: int, native: str) -> None:
    """The kernels lay out 16 layers at a time, and each layer reads the one below in parts of 8 steps."""
    net = layer("gru_before", 24, 48, num_layers)
    x, given = inputs("gru_before", net, (T, 2), "time", 5, ("state",))
    assert_same_bits(run(net, x, threads=1, **given), composed(net, "gru_before", x, **given))
    alike_for_any_threads(net, x, **given)


@pytest.mark.parametrize("sizes", [(12, 70, 33, 130), (12, 1, 65, 400), (300, 5, 17, 31)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_threads_that_share_a_layer(bidirectional: bool, sizes: tuple[int, int, int, int], native: str) -> None:
    T, B, I, H = sizes
    net = layer("lstm", I, H, 2, bidirectional=bidirectional)
    x, given = inputs("lstm", net, (T, B), "time", 6, EVERYTHING)
    alike_for_any_threads(net, x, **given)


COUNT = """
import os, fastrnn; from support import crowded
from support.problems import CELLS
from support.stacks import layer
import numpy as np

fastrnn.use_isa({isa!r})
T, B, I, H = {sizes}
for cell in CELLS:
    for layers, ways, threads in ((1, 1, 3), (2, 1, 3), (3, 1, 3), (3, 1, 2), (1, 2, 3), (2, 2, 3)):
        child = os.fork()
        if child == 0:
            before = len(os.listdir("/proc/self/task"))
            layer(cell, I, H, layers, bidirectional=ways == 2)(np.ones((T, B, I), "f"), threads=threads)
            os._exit(len(os.listdir("/proc/self/task")) - before)
        print(layers, ways, threads, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.by_turns
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_stacks_and_directions_run_in_parallel(native: str, python: Python) -> None:
    """A thread for each layer or direction, including the caller's, and no more than requested."""
    done = python("-c", COUNT.format(isa=native.removeprefix("native-"), sizes=WAVE))
    expected = ["1 1 3 0", "2 1 3 1", "3 1 3 2", "3 1 2 1", "1 2 3 1", "2 2 3 1"] * len(CELLS)
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.by_turns
@pytest.mark.parametrize("first", [False, True])
def test_several_python_threads_may_call_a_layer_at_once(first: bool, implementation: str) -> None:
    """Eight threads in one layer, also in its first call, when nothing is packed yet."""
    net = layer("lstm", 24, 48, 3)
    cases = [inputs("lstm", net, (64, n), "time", n, EVERYTHING) for n in (1, 2, 3, 5, 7, 8, 15, 17)]
    alone = [composed(net, "lstm", x, **given) for x, given in cases]
    if not first:
        run(net, cases[0][0])
    with ThreadPoolExecutor(8) as pool:
        for threads in (3, 1):
            got = pool.map(lambda case, t=threads: run(net, case[0], threads=t, **case[1]), cases)
            for one, expected in zip(got, alone, strict=True):
                assert_same_bits(one, expected)


def test_concurrent_first_calls_share_packed_weights(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If two threads both pack, both streams still follow load_state_dict."""
    net, other = (layer("gru_after", 5, 17, rng=seed) for seed in (0, 1))
    meet, backend = threading.Barrier(2), backends.current()
    pack = backend.pack

    def at_once(*arguments: Any) -> Any:
        packed = pack(*arguments)
        meet.wait(10)
        return packed

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(backend, "pack", at_once)
        streams = list(pool.map(lambda _: net.stream(), range(2)))
    net.load_state_dict(other.state_dict())
    x = np.ones(5, np.float32)
    for stream in streams:
        assert_same_bits({"y": stream.step(x)}, {"y": other(x[None])[0][0]})


def test_a_huge_number_of_threads_does_not_overflow(backend: str) -> None:
    net = layer("gru_after", 5, 17, 2)
    x, _ = inputs("gru_after", net, (6, 3), "time", 0, ())
    assert_same_bits(run(net, x, threads=2**40), run(net, x))
    assert_same_bits({"y": net.stream(3, threads=2**40).step(x[0])}, {"y": net(x)[0][0]})
