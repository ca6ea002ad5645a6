"""Streams: layouts of x, tensors, and wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.memory import backwards, read_only, strided, unaligned
from support.stacks import layer, named
from support.streams import S, Tensor, X, Y, sequence
from support.tolerance import assert_same_bits


@pytest.mark.parametrize(
    "lay",
    [
        np.asfortranarray,
        strided,
        read_only,
        unaligned,
        memoryview,
        Tensor,
        backwards,
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
    """PyTorch tensors as x, as out and as the state."""
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
def test_wrong_arguments_change_nothing(error: type[Exception], said: str, wrong: dict[str, Any], backend: str) -> None:
    """The message names the argument, nothing is written, and the stream continues."""
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
    for size, error in ((10**13, MemoryError), (10**18, ValueError), (10**30, ValueError)):
        with pytest.raises(error, match=r"^batch_size: "):
            net.stream(size)
        with pytest.raises(error, match=r"^capacity: "):
            net.pool(size)
    with pytest.raises(ValueError, match="bidirectional"):
        layer("lstm", 5, 17, bidirectional=True).stream()
