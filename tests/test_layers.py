"""Layers equal the functional calls that they stand for to the last bit, however stacked, packed and shared."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from support.problems import AWKWARD, CELLS, PUBLIC, Arrays
from support.stacks import MERGED, as_given, composed, in_double, layer, named, states
from support.tolerance import assert_rounded, assert_same_bits

import fastrnn
from fastrnn import backends
from fastrnn.backends import available_isas
from fastrnn.layers.options import LayerOptions

DTYPES = (np.float32, np.float64)
#: (num_layers, options): every depth with one direction and with two, in every way to merge them
STACKS = [(n, {}) for n in (1, 2, 3)]
STACKS += [(n, {"bidirectional": True, "merge": m}) for n in (1, 2, 3) for m in MERGED if m or n == 1]
LAYOUTS = ("time", "batch", "alone")
#: too small for a layer to be shared, but enough work for a stack: T, B, I, H
WAVE = (300, 2, 24, 64)


def inputs(
    cell: str, net: Any, sizes: tuple[int, int], layout: str, seed: Any, given: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, Any]]:
    """x, and the keywords named in `given`, laid out as asked."""
    T, B = sizes
    rng = np.random.default_rng(seed)
    shape = {"time": (T, B), "batch": (B, T), "alone": (T,)}[layout]
    batch = () if layout == "alone" else (B,)
    every = {
        "state": states(cell, net.num_layers * (1 + net.bidirectional), *batch, net.hidden_size, dtype=net.dtype),
        "lengths": rng.integers(0, T + 1, batch),
        "resets": rng.random(shape) < 0.2,
    }
    x = rng.standard_normal((*shape, net.input_size)).astype(net.dtype)
    return x, {name: every[name] for name in given}


def run(net: Any, x: np.ndarray, state: tuple[np.ndarray, ...] | None = None, **options: Any) -> Arrays:
    return named(*net(x, None if state is None else as_given(state), **options))


EVERYTHING = ("state", "lengths", "resets")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_layer(cell: str, bias: bool, dtype: type, implementation: str) -> None:
    net = layer(cell, 5, 33, bias=bias, dtype=dtype)
    x, given = inputs(cell, net, (9, 7), "time", 1, EVERYTHING)
    assert_same_bits(run(net, x), composed(net, cell, x))
    assert_same_bits(run(net, x, **given), composed(net, cell, x, **given))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_stacks(cell: str, stack: tuple[int, dict[str, Any]], implementation: str) -> None:
    """Every layout with everything given and with nothing, awkward sizes, in both precisions."""
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
def test_against_the_reference(cell: str, bidirectional: bool, dtype: type, fast: str) -> None:
    net = layer(cell, 7, 33, 3, bidirectional=bidirectional, dtype=dtype)
    x, given = inputs(cell, net, (9, 7), "time", 2, EVERYTHING)
    wide = given | {"state": tuple(s.astype(np.float64) for s in given["state"])}

    def reference() -> Arrays:
        return composed(in_double(net, cell), cell, x.astype(np.float64), **wide)

    with fastrnn.use_backend("numpy"):
        exact = reference()
    assert_rounded(run(net, x, **given), exact, reference)


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0), (0, 0), (1, 3), (1, 1)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_next_to_nothing(cell: str, bidirectional: bool, sizes: tuple[int, int], implementation: str) -> None:
    """No steps: the initial state. No sequences: nothing, in the right shape."""
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


# Threads


def alike_for_any_threads(net: Any, x: np.ndarray, **given: Any) -> None:
    alone = run(net, x, threads=1, **given)
    for threads in (2, 3, 8):
        for _ in range(3):
            assert_same_bits(run(net, x, threads=threads, **given), alone)


SHARED = [(2, {}), (3, {}), (1, {"bidirectional": True}), (2, {"bidirectional": True})]


@pytest.mark.parametrize("stack", SHARED)
@pytest.mark.parametrize("cell", CELLS)
def test_threads(cell: str, stack: tuple[int, dict[str, Any]], native: str) -> None:
    """Either precision by turns: each cell and each stack meets both."""
    T, B, I, H = WAVE
    dtype = DTYPES[(CELLS.index(cell) + SHARED.index(stack)) % 2]
    net = layer(cell, I, H, stack[0], dtype=dtype, **stack[1])
    x, given = inputs(cell, net, (T, B), "time", 4, EVERYTHING)
    assert_same_bits(run(net, x, threads=1, **given), composed(net, cell, x, **given))
    alike_for_any_threads(net, x, **given)
    alike_for_any_threads(net, x, state=given["state"])


@pytest.mark.by_turns
@pytest.mark.parametrize(("num_layers", "T"), [(3, 97), (3, 257), (16, 256), (16, 250), (17, 257), (17, 256), (33, 97)])
def test_deep_stacks_share_in_any_number_of_steps(num_layers: int, T: int, native: str) -> None:
    """Layers are laid out 16 at a time, and each reads the one below in pieces of 8 steps."""
    net = layer("gru_before", 24, 48, num_layers)
    x, given = inputs("gru_before", net, (T, 2), "time", 5, ("state",))
    assert_same_bits(run(net, x, threads=1, **given), composed(net, "gru_before", x, **given))
    alike_for_any_threads(net, x, **given)


@pytest.mark.parametrize("sizes", [(12, 70, 33, 130), (12, 1, 65, 400), (300, 5, 17, 31)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_threads_where_a_layer_is_shared(bidirectional: bool, sizes: tuple[int, int, int, int], native: str) -> None:
    T, B, I, H = sizes
    net = layer("lstm", I, H, 2, bidirectional=bidirectional)
    x, given = inputs("lstm", net, (T, B), "time", 6, EVERYTHING)
    alike_for_any_threads(net, x, **given)


COUNT = """
import os, fastrnn; from support import crowded
from support.problems import CELLS
from support.stacks import layer
from test_layers import WAVE
import numpy as np

fastrnn.use_isa({isa!r})
T, B, I, H = WAVE
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
def test_stacks_and_directions_run_side_by_side(native: str, python: Callable[..., CompletedProcess[str]]) -> None:
    """A thread for each layer or direction, the caller's among them, and no more than asked for."""
    done = python("-c", COUNT.format(isa=native.removeprefix("native-")))
    expected = ["1 1 3 0", "2 1 3 1", "3 1 3 2", "3 1 2 1", "1 2 3 1", "2 2 3 1"] * len(CELLS)
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.by_turns
@pytest.mark.parametrize("first", [False, True])
def test_several_python_threads_at_once(first: bool, implementation: str) -> None:
    """Eight of them in one layer, in its first call too, when nothing is packed yet."""
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


def test_first_calls_at_once_share_what_they_packed(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that both find nothing packed: whoever is late, both streams follow load_state_dict."""
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


def test_huge_number_of_threads(backend: str) -> None:
    """No C integer wraps around."""
    net = layer("gru_after", 5, 17, 2)
    x, _ = inputs("gru_after", net, (6, 3), "time", 0, ())
    assert_same_bits(run(net, x, threads=2**40), run(net, x))
    assert_same_bits({"y": net.stream(3, threads=2**40).step(x[0])}, {"y": net(x)[0][0]})


# Parameters


@pytest.mark.parametrize("cell", CELLS)
def test_packed_for_each_instruction_set(cell: str) -> None:
    """Back and forth between backends and instruction sets; new parameters reach what was packed before."""
    net, other = (layer(cell, 5, 33, 2, rng=seed, bidirectional=True) for seed in (0, 1))
    x, given = inputs(cell, net, (9, 7), "time", 7, EVERYTHING)
    for parameters in (net.state_dict(), other.state_dict(), net.state_dict()):
        net.load_state_dict(parameters)
        for _ in range(2):
            for isa in available_isas():
                with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
                    assert_same_bits(run(net, x, **given), composed(net, cell, x, **given))
            with fastrnn.use_backend("numpy"):
                assert_same_bits(run(net, x, **given), composed(net, cell, x, **given))


def test_loading_leaves_the_settings(implementation: str) -> None:
    """Packing anew for another instruction set does not switch to it."""
    net = layer("lstm", 5, 7)
    x, _ = inputs("lstm", net, (3, 2), "time", 0, ())
    for isa in available_isas():
        with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
            run(net, x)
    before = fastrnn.config()
    net.load_state_dict(net.state_dict())
    assert fastrnn.config() == before


SHAPES = {
    "weight_ih_l0": (12, 3),
    "weight_hh_l0": (12, 4),
    "bias_ih_l0": (12,),
    "bias_hh_l0": (12,),
    "weight_ih_l0_reverse": (12, 3),
    "weight_hh_l0_reverse": (12, 4),
    "bias_ih_l0_reverse": (12,),
    "bias_hh_l0_reverse": (12,),
    "weight_ih_l1": (12, 8),
    "weight_hh_l1": (12, 4),
    "bias_ih_l1": (12,),
    "bias_hh_l1": (12,),
    "weight_ih_l1_reverse": (12, 8),
    "weight_hh_l1_reverse": (12, 4),
    "bias_ih_l1_reverse": (12,),
    "bias_hh_l1_reverse": (12,),
}


def shapes(net: Any) -> dict[str, tuple[int, ...]]:
    return {name: a.shape for name, a in net.state_dict().items()}


def test_names_and_shapes_are_torchs() -> None:
    """Torch's own names, in its order, for torch.nn.GRU(3, 4, 2, bidirectional=True)."""
    net = fastrnn.GRU(3, 4, 2, reset_after=True, bidirectional=True)
    assert list(shapes(net).items()) == list(SHAPES.items())
    bare = {name: shape for name, shape in SHAPES.items() if "bias" not in name and "reverse" not in name}
    one_way = fastrnn.GRU(3, 4, 2, reset_after=True, bias=False)
    assert shapes(one_way) == bare | {"weight_ih_l1": (12, 4)}
    summed = fastrnn.GRU(3, 4, 2, reset_after=True, bidirectional=True, merge="sum")
    assert shapes(summed) == SHAPES | {"weight_ih_l1": (12, 4), "weight_ih_l1_reverse": (12, 4)}


@pytest.mark.parametrize("cell", CELLS)
def test_shapes_of_every_cell(cell: str) -> None:
    G = PUBLIC[cell][1]
    expected = {"weight_ih_l0": (G * 4, 3), "weight_hh_l0": (G * 4, 4), "bias_ih_l0": (G * 4,), "bias_hh_l0": (G * 4,)}
    peephole = {"peephole_l0": (12,)} if cell == "lstm_peephole" else {}
    assert shapes(layer(cell, 3, 4)) == expected | peephole


def test_state_dict_is_a_copy() -> None:
    net = layer("lstm", 3, 4)
    before, given = net.state_dict(), net.state_dict()
    for a in given.values():
        a += 1
    assert_same_bits(net.state_dict(), before)
    net.load_state_dict(given)
    loaded = {name: a.copy() for name, a in given.items()}
    for a in given.values():
        a += 1
    assert_same_bits(net.state_dict(), loaded)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("cell", CELLS)
def test_copies(cell: str, copied: Callable[[Any], Any], backend: str) -> None:
    """The same layer, used before or not, with parameters of its own."""
    net = layer(cell, 5, 17, 2, bidirectional=True, merge="average", batch_first=True)
    x, given = inputs(cell, net, (6, 3), "batch", 8, EVERYTHING)
    before = run(net, x, **given)
    twin = copied(net)
    assert repr(twin) == repr(net)
    assert_same_bits(run(twin, x, **given), before)
    twin.load_state_dict(layer(cell, 5, 17, 2, rng=1, bidirectional=True, merge="average").state_dict())
    assert_same_bits(run(net, x, **given), before)
    assert_same_bits(run(twin, x, **given), composed(twin, cell, x, **given))


def test_repr() -> None:
    assert repr(fastrnn.LSTM(3, 4)) == "LSTM(3, 4, dtype=float32) [lstm]"
    options = {"bias": False, "batch_first": True, "bidirectional": True, "merge": "sum", "dtype": np.float64}
    said = "num_layers=2, bias=False, batch_first=True, bidirectional=True, merge='sum', dtype=float64"
    assert repr(fastrnn.GRU(3, 4, 2, reset_after=False, **options)) == f"GRU(3, 4, {said}) [gru_before]"
    for cell in CELLS:
        assert repr(layer(cell, 3, 4)).endswith(f"[{cell}]")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_initial_parameters(cell: str, dtype: type) -> None:
    """The same for the same seed, different for every parameter, uniform within 1 / sqrt(H)."""
    options = {"bidirectional": True, "dtype": dtype, "merge": "sum"}
    first, again = (layer(cell, 16, 16, 2, rng=5, **options).state_dict() for _ in range(2))
    assert_same_bits(again, first)
    assert_same_bits(layer(cell, 16, 16, 2, rng=np.random.default_rng(5), **options).state_dict(), first)
    values = np.concatenate([a.ravel() for a in first.values()])
    # float32 has 2^24 values in the range, so that a few may come twice by chance
    assert len(np.unique(values)) > 0.99 * values.size
    assert values.dtype == dtype
    assert 0.245 < np.abs(values).max() <= 0.25
    assert abs(values.mean()) < 0.02
    assert values.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.05)
    for seed in (6, None):
        other = layer(cell, 16, 16, 2, rng=seed, **options).state_dict()
        assert not np.array_equal(other["weight_hh_l0"], first["weight_hh_l0"])


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l1", "bias_hh_l0", "peephole_l1"])
@pytest.mark.parametrize(
    ("error", "change"),
    [
        (KeyError, lambda name, a: {}),
        (KeyError, lambda name, a: {name: a, f"{name}0": a}),
        (ValueError, lambda name, a: {name: a[:-1]}),
        (ValueError, lambda name, a: {name: a[None]}),
        (TypeError, lambda name, a: {name: a.astype(np.float64)}),
        (TypeError, lambda name, a: {name: a.tolist()}),
        (TypeError, lambda name, a: {name: None}),
    ],
)
def test_wrong_parameters(error: type[Exception], change: Callable[..., Any], name: str, backend: str) -> None:
    """The message names the parameter, and the layer is as it was, stored and packed."""
    net = layer("lstm_peephole", 5, 7, 2)
    x, given = inputs("lstm_peephole", net, (4, 3), "time", 9, EVERYTHING)
    before, result = net.state_dict(), run(net, x, **given)
    new = layer("lstm_peephole", 5, 7, 2, rng=1).state_dict()
    wrong = {other: a for other, a in new.items() if other != name} | change(name, new[name])
    with pytest.raises(error, match=rf"\b{max(wrong.keys() - before.keys(), default=name)}\b"):
        net.load_state_dict(wrong)
    assert_same_bits(net.state_dict(), before)
    assert_same_bits(run(net, x, **given), result)


# Wrong arguments


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
def test_wrong_options(error: type[Exception], name: str, value: Any) -> None:
    options = {"input_size": 3, "hidden_size": 4, "merge": None, "bidirectional": True} | {name: value}
    with pytest.raises(error, match=rf"^{name}\b"):
        fastrnn.LSTM(**options)


def test_wrong_choices() -> None:
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
def test_wrong_arguments(error: type[Exception], said: str, wrong: dict[str, Any], backend: str) -> None:
    net = layer("lstm", 2, 4, 2)
    with pytest.raises(error, match=rf"^{re.escape(said)}\b"):
        net(**({"x": X} | wrong))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_arguments_are_only_read(cell: str, bidirectional: bool, batch_first: bool, backend: str) -> None:
    """However x and the states lie in memory; nothing that comes out shares memory with them."""
    net = layer(cell, 5, 17, 2, bidirectional=bidirectional, batch_first=batch_first)
    x, given = inputs(cell, net, (6, 3), "batch" if batch_first else "time", 10, EVERYTHING)
    expected = run(net, x, **given)
    for lay in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: np.flip(np.flip(a).copy())):
        views = [lay(a) for a in (x, *given["state"])]
        for view in views:
            view.flags.writeable = False
        got = run(net, views[0], **given | {"state": tuple(views[1:])})
        assert_same_bits(got, expected)
        assert all(a.flags.writeable for a in got.values())
        assert not any(np.shares_memory(a, b) for a in got.values() for b in views)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", AWKWARD)
def test_memory_keeps_within_its_bounds(cell: str, size: int, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights, outputs and scratch of layers and streams stand between guards, which must survive."""
    guards, empty = [], np.empty

    def guarded(shape: Any, dtype: Any = float, *rest: Any) -> np.ndarray:
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = empty(n + 256, np.uint8)
        buffer[:] = 0xA5
        guards.append((buffer[:128], buffer[128 + n :]))
        return buffer[128 : 128 + n].view(dtype).reshape(shape)

    monkeypatch.setattr(np, "empty", guarded)
    for T, B, I, H in ((2, size, 3, 5), (3, 2, size, 7), (3, 2, 5, size), (size, 1, 3, 2)):
        x = np.ones((T, B, I), np.float32)
        layer(cell, I, H, 2, bidirectional=True)(x)
        net = layer(cell, I, H, 2)
        net(x)
        stream = net.stream(B)
        for x_t in x:
            stream.step(x_t)
    assert guards
    assert all((guard == 0xA5).all() for pair in guards for guard in pair)


# Options


#: Layers whose h may be projected.
PROJECTS = ("LSTM",)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_signatures_are_those_of_the_options(name: str) -> None:
    """Each is written out, with the default that it has everywhere."""
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
