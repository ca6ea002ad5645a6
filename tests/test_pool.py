"""Pools: any subset of many sequences takes a step together, with the bits of single sequences, in several threads."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS
from support.stacks import layer, states
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import Dense, Dropout, Embedding, LastStep, LayerNormalization, Sequential


def model(dtype: Any = np.float32) -> Sequential:
    return Sequential(
        [
            Dense(5, 8, "tanh", rng=0, dtype=dtype),
            fastrnn.LSTM(8, 33, 2, proj_size=20, rng=1, dtype=dtype),
            Dropout(0.5),
            fastrnn.GRU(20, 12, reset_after=False, rng=2, dtype=dtype),
            Dense(12, 37, "softmax", rng=3, dtype=dtype),
            LayerNormalization(37, dtype=dtype),
        ]
    )


def inputs(n: int, T: int, I: int = 5, dtype: Any = np.float32) -> np.ndarray:
    """(n, T, I)"""
    return np.random.default_rng(n).standard_normal((n, T, I)).astype(dtype)


def served(pool: Any, x: np.ndarray, seed: int = 0, least: int = 1) -> list[np.ndarray]:
    """Process every sequence to its end, with random ones in random order at each step; return y (T, N) of each."""
    rng = np.random.default_rng(seed)
    sessions = [pool.open() for _ in x]
    done, found = np.zeros(len(x), int), [[] for _ in x]
    while (left := np.flatnonzero(done < x.shape[1])).size:
        chosen = rng.permutation(left)[: rng.integers(min(least, left.size), left.size + 1)]
        y = pool.step([sessions[i] for i in chosen], x[chosen, done[chosen]])
        for i, own in zip(chosen, y, strict=True):
            found[i].append(own)
        done[chosen] += 1
    for session in sessions:
        pool.close(session)
    return [np.stack(ys) for ys in found]


def alone(net: Any, x: np.ndarray) -> list[np.ndarray]:
    return [np.stack([*map(net.stream().step, own)]) for own in x]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_each_sequence_equals_one_alone(cell: str, num_layers: int, dtype: type, implementation: str) -> None:
    net = layer(cell, 5, 17, num_layers, dtype=dtype)
    x = inputs(9, 4, dtype=dtype)
    for got, expected in zip(served(net.pool(20), x), alone(net, x), strict=True):
        assert_same_bits({"y": got}, {"y": expected})


def test_models(implementation: str) -> None:
    net, x = model(), inputs(9, 5)
    for seed in range(3):
        for got, expected in zip(served(net.pool(9), x, seed), alone(net, x), strict=True):
            assert_same_bits({"y": got}, {"y": expected})


def test_any_number_of_sequences(native: str) -> None:
    """Tiles of rows, rows divided among threads, and single rows."""
    net, x = model(), inputs(150, 3)
    expected = net.predict(x)
    for threads in (1, 3):
        got = served(net.pool(150, threads=threads), x, least=140)
        assert_same_bits({"y": np.stack(got)}, {"y": expected})
    wide, x = fastrnn.LSTM(64, 256, rng=0), inputs(64, 2, 64)  # a step of all sequences is large enough for threads
    got = served(wide.pool(64, threads=2), x, least=64)
    assert_same_bits({"y": np.stack(got)}, {"y": wide(x.swapaxes(0, 1))[0].swapaxes(0, 1)})


def test_models_that_return_the_last_step(implementation: str) -> None:
    """Every step returns the result up to that step."""
    layers, x = [fastrnn.GRU(5, 9, reset_after=True, rng=0), LayerNormalization(9), LastStep()], inputs(5, 4)
    for got, expected in zip(served(Sequential(layers).pool(5), x), alone(Sequential(layers[:2]), x), strict=True):
        assert_same_bits({"y": got}, {"y": expected})


def test_letters(implementation: str) -> None:
    net = Sequential([Embedding(7, 6, rng=0), fastrnn.RNN(6, 9, rng=1)])
    x = np.random.default_rng(0).integers(0, 7, (5, 6))
    for got, expected in zip(served(net.pool(5), x), alone(net, x), strict=True):
        assert_same_bits({"y": got}, {"y": expected})


def test_out_and_one_session(implementation: str) -> None:
    """`out` is filled and returned, also if it is x; a vector gives a vector; an empty array gives an empty array."""
    net = Sequential([fastrnn.LSTM(5, 5, rng=0), Dense(5, 5, rng=1)])
    pool, x = net.pool(4), inputs(4, 3)
    a, b, *_ = (pool.open() for _ in range(4))
    expected = alone(net, x)
    out = x[:2, 0].copy()
    assert pool.step(np.array([a, b]), out, out) is out
    assert_same_bits({"y": out}, {"y": np.stack([expected[0][0], expected[1][0]])})
    assert_same_bits({"y": pool.step([b], x[1, 1])}, {"y": expected[1][1]})
    assert_same_bits({"y": pool.step((b,), x[1:2, 2])}, {"y": expected[1][2:3]})
    assert pool.step([], x[:0, 0]).shape == (0, 5)


# Sessions come and go


def test_open_and_close(backend: str) -> None:
    """A slot is reused and starts at zero; a session number is not reused."""
    net, x = model(), inputs(2, 4)
    pool, expected = net.pool(2), alone(net, x)
    assert (pool.capacity, len(pool)) == (2, 0)
    seen = set()
    for _ in range(5):
        a, b = pool.open(), pool.open()
        assert not {a, b} & seen
        seen |= {a, b}
        assert a in pool
        assert len(pool) == 2
        with pytest.raises(RuntimeError, match=r"^open: all 2 sessions are open"):
            pool.open()
        for t in range(4):
            y = pool.step([b, a], x[::-1, t])
            assert_same_bits({"y": y[1]}, {"y": expected[0][t]})
        pool.close(a)
        pool.close(b)
        assert a not in pool
    assert len(pool) == 0


@pytest.mark.parametrize("cell", CELLS)
def test_states(cell: str, implementation: str) -> None:
    """Saved, also by pickle, and used to open or restore a session; in a layer's form for a batch of one."""
    net, x = layer(cell, 5, 17, 2), inputs(1, 6)[0]
    pool = net.pool(3)
    a = pool.open()
    whole = np.stack([pool.step([a], t) for t in x])
    pool.restore(a)
    for t in x[:3]:
        pool.step([a], t)
    saved = pickle.loads(pickle.dumps(pool.state(a)))
    b = pool.open(saved)
    for t in (3, 4, 5):
        y = pool.step([b, a], x[[t, t]])
        assert_same_bits({"y": y}, {"y": whole[[t, t]]})
    pool.restore(a, saved)
    assert_same_bits({"y": pool.step([a], x[3])}, {"y": whole[3]})
    assert_same_bits({"y": net(x[3:4, None], saved)[0][0, 0]}, {"y": whole[3]})
    given = states(cell, 2, 1, 17)
    c = pool.open(given if len(given) > 1 else given[0])
    for s in given:
        s += 1  # arguments and results are copied
    for _ in range(2):
        own = pool.state(c)
        for s, other in zip(own if isinstance(own, tuple) else (own,), states(cell, 2, 1, 17), strict=True):
            assert_same_bits({"s": s}, {"s": other})
            s += 1


def test_states_of_models(backend: str) -> None:
    net, x = model(), inputs(1, 6)
    pool, expected = net.pool(3), alone(net, x)[0]
    a = pool.open()
    for t in range(3):
        pool.step([a], x[:, t])
    saved = pool.state(a)
    assert saved[0] is saved[2] is saved[4] is None
    b = pool.open(saved)
    for t in range(3, 6):
        assert_same_bits({"y": pool.step([b], x[0, t])}, {"y": expected[t]})
    stream = net.stream()
    stream.state = saved
    assert_same_bits({"y": stream.step(x[0, 3])}, {"y": expected[3]})


# Mistakes


@pytest.mark.parametrize(
    ("error", "said", "ask"),
    [
        (KeyError, "sessions: 99 is not open", lambda p, a, b: p.step([a, 99], np.ones((2, 5), np.float32))),
        (KeyError, "sessions: -1 is not open", lambda p, a, b: p.step([-1], np.ones((1, 5), np.float32))),
        (ValueError, "expected distinct sessions", lambda p, a, b: p.step([a, b, a], np.ones((3, 5), np.float32))),
        (TypeError, "sessions: expected integers", lambda p, a, b: p.step([a, "b"], np.ones((2, 5), np.float32))),
        (TypeError, "sessions: expected integers", lambda p, a, b: p.step([a, []], np.ones((2, 5), np.float32))),
        (TypeError, "sessions: expected a sequence", lambda p, a, b: p.step(a, np.ones((1, 5), np.float32))),
        (TypeError, "sessions: expected a sequence", lambda p, a, b: p.step(None, np.ones((1, 5), np.float32))),
        (TypeError, "sessions: expected integers", lambda p, a, b: p.step([0.5], np.ones((1, 5), np.float32))),
        (TypeError, "sessions: expected a sequence", lambda p, a, b: p.step(np.int64(a), np.ones((1, 5), np.float32))),
        (TypeError, "sessions: expected a sequence", lambda p, a, b: p.step({a, b}, np.ones((2, 5), np.float32))),
        (TypeError, "sessions: expected a sequence", lambda p, a, b: p.step(np.ones((1, 2), int), np.ones((2, 5)))),
        (TypeError, "sessions: expected integers", lambda p, a, b: p.step([False, True], np.ones((2, 5), np.float32))),
        (TypeError, "sessions: expected integers", lambda p, a, b: p.step(np.array([True]), np.ones((1, 5)))),
        (TypeError, "sessions: expected integers", lambda p, a, b: p.step(np.array([a, b], float), np.ones((2, 5)))),
        (TypeError, "sessions: expected integers", lambda p, a, b: p.close(True)),
        (ValueError, "x: expected shape", lambda p, a, b: p.step([a, b], np.ones((3, 5), np.float32))),
        (ValueError, "x: expected shape", lambda p, a, b: p.step([a, b], np.ones((2, 4), np.float32))),
        (ValueError, "x: expected shape", lambda p, a, b: p.step([a, b], np.ones(5, np.float32))),
        (TypeError, "x: expected dtype", lambda p, a, b: p.step([a, b], np.ones((2, 5)))),
        (TypeError, "x: expected an array", lambda p, a, b: p.step([a], [[1, 2, 3, 4, 5]])),
        (ValueError, "out", lambda p, a, b: p.step([a], np.ones((1, 5), np.float32), np.ones((2, 37), np.float32))),
        (TypeError, "out", lambda p, a, b: p.step([a], np.ones((1, 5), np.float32), np.ones((1, 37)))),
        (KeyError, "sessions: 99 is not open", lambda p, a, b: p.close(99)),
        (KeyError, "sessions: 7 is not open", lambda p, a, b: p.state(7)),
        (KeyError, "sessions: 7 is not open", lambda p, a, b: p.restore(7)),
        (TypeError, "state: expected a tuple", lambda p, a, b: p.restore(a, 5)),
        (TypeError, "state: expected a tuple", lambda p, a, b: p.open((None,) * 4)),
        (TypeError, "state: expected None", lambda p, a, b: p.open((1,) * 6)),
    ],
)
def test_wrong_calls_change_nothing(error: type[Exception], said: str, ask: Callable[..., Any], backend: str) -> None:
    net, x = model(), inputs(2, 3)
    pool, expected = net.pool(3), alone(net, x)
    a, b = pool.open(), pool.open()
    for t in range(3):
        assert_same_bits({"y": pool.step([a, b], x[:, t])}, {"y": np.stack([own[t] for own in expected])})
        with pytest.raises(error, match=said):
            ask(pool, a, b)
    assert len(pool) == 2
    pool.open()


def test_closed_sessions(backend: str) -> None:
    pool = fastrnn.LSTM(5, 4, rng=0).pool(2)
    a = pool.open()
    pool.close(a)
    b = pool.open()
    for ask in (pool.close, pool.state, pool.restore, lambda s: pool.step([b, s], np.ones((2, 5), np.float32))):
        with pytest.raises(KeyError, match=f"sessions: {a} is not open"):
            ask(a)
    pool.step([b], np.ones(5, np.float32))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(0, ValueError), (1.0, TypeError), (2**62, ValueError), (10**30, ValueError), (None, TypeError)],
)
def test_wrong_capacity(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^capacity\b"):
        fastrnn.LSTM(5, 4, rng=0).pool(wrong)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_pool_cannot_be_copied(way: Callable[[Any], Any], backend: str) -> None:
    with pytest.raises(TypeError, match="pool: cannot be copied or pickled"):
        way(fastrnn.LSTM(3, 4, rng=0).pool(2))


def test_follows_its_layers(backend: str) -> None:
    net, other, x = model(), model(), inputs(3, 4)
    for value in other.parameters().values():
        value *= 0.7
    other.changed()
    pool = net.pool(3)
    served(pool, x)
    net.load_state_dict(other.state_dict())
    for got, expected in zip(served(pool, x), alone(other, x), strict=True):
        assert_same_bits({"y": got}, {"y": expected})


# Threads


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_of_disjoint_sessions(threads: int, implementation: str) -> None:
    """Each thread serves its own sequences, and opens and closes sessions meanwhile."""
    if implementation == "numba":
        pytest.skip("its first calls compile")
    net, x = model(), inputs(12, 5)
    expected, pool = alone(net, x), net.pool(12, threads=threads)

    def serve(worker: int) -> list[tuple[int, np.ndarray]]:
        own = range(worker, 12, 4)
        return [pair for n in range(6) for pair in zip(own, served(pool, x[worker::4], n), strict=True)]

    with ThreadPoolExecutor(4) as workers:
        for found in workers.map(serve, range(4)):
            for i, y in found:
                assert_same_bits({"y": y}, {"y": expected[i]})
    assert len(pool) == 0


def test_threads_that_use_one_session(implementation: str) -> None:
    """One is admitted at a time, the others get an error: the number of steps equals the number of successful calls."""
    net = fastrnn.LSTM(5, 17, rng=0)
    pool, x = net.pool(2), np.ones((1, 5), np.float32)
    session, start = pool.open(), threading.Barrier(4)

    def ask(_: int) -> list[Exception | None]:
        start.wait()
        return [refused(lambda: pool.step([session], x)) for _ in range(200)]

    with ThreadPoolExecutor(4) as workers:
        errors = [error for found in workers.map(ask, range(4)) for error in found]
    assert all("another thread is in a call with session" in str(error) for error in errors if error is not None)
    made, stream = errors.count(None), net.stream()
    assert made > 0
    for _ in range(made):
        stream.step(x)
    for a, b in zip(pool.state(session), stream.state, strict=True):
        assert_same_bits({"s": a}, {"s": b})


def refused(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except RuntimeError as error:
        return error
    return None


def test_a_session_in_a_call_rejects_other_calls(backend: str) -> None:
    """Here the other calls come while x is passed to the step."""
    pool, caught = fastrnn.LSTM(5, 4, rng=0).pool(3), []
    a, b = pool.open(), pool.open()

    class Slow:
        def __dlpack__(self, **options: Any) -> Any:
            asks = (pool.close, pool.state, pool.restore, lambda s: pool.step([b, s], np.ones((2, 5), np.float32)))
            caught.extend(refused(lambda ask=ask: ask(a)) for ask in asks)
            pool.step([b], np.ones(5, np.float32))
            return np.ones((1, 5), np.float32).__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return np.ones(1).__dlpack_device__()

    assert pool.step([a], Slow()).shape == (1, 4)
    assert len(caught) == 4
    assert all("another thread is in a call with session 0" in str(error) for error in caught)
    pool.close(a)
