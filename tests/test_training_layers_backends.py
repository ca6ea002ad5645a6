"""Every gradient of layers and stacks on every backend, in both precisions, with checkpoints and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.layer_gradients import STACKS, cotangents, forward, gradients, inputs, wide
from support.problems import CELLS, Arrays
from support.stacks import as_given, layer, named
from support.tolerance import assert_close, assert_rounded, assert_same_bits

import fastrnn


def everything(net: Any, given: Arrays, d: Arrays, **options: Any) -> Arrays:
    """Return all results of forward, and all gradients."""
    out = {f"out {name}": a for name, a in named(*forward(net, **given, **options)[:2]).items()}
    return out | gradients(net, given | options, d)


CASES = [(cell, *stack) for k, cell in enumerate(CELLS) for stack in (STACKS[k % len(STACKS)], STACKS[-1 - k])]


@pytest.mark.parametrize(("cell", "num_layers", "options"), CASES)
def test_backends_agree(cell: str, num_layers: int, options: dict[str, Any], native: str) -> None:
    last = num_layers % 2 == 1
    options = options | {"return_sequences": not last, "batch_first": last}
    net, given = wide(cell, num_layers, np.float64, **options)
    d = cotangents(net, given)
    with fastrnn.use_backend("numpy"):
        exact = everything(net, given, d)
    assert_close(everything(net, given, d), exact)


def test_every_backend(fast: str) -> None:
    """Including Numba, which compiles for seconds, so with one cell."""
    net, given = wide("rnn_tanh", 3, np.float64, bidirectional=True, dropout=0.4, merge="average")
    d = cotangents(net, given)
    with fastrnn.use_backend("numpy"):
        exact = everything(net, given, d)
    assert_close(everything(net, given, d), exact)


@pytest.mark.parametrize("stack", [(3, {}), (2, {"bidirectional": True, "dropout": 0.3})])
def test_float32(stack: tuple[int, dict[str, Any]], native: str) -> None:
    net, given = wide("lstm", stack[0], np.float32, **stack[1])
    double, given64 = wide("lstm", stack[0], np.float64, **stack[1])
    double.load_state_dict({name: a.astype(np.float64) for name, a in net.state_dict().items()})
    given64["x"] = given["x"].astype(np.float64)
    given64["state"] = tuple(s.astype(np.float64) for s in given["state"])
    d = cotangents(net, given)

    def reference() -> Arrays:
        return everything(double, given64, {name: a.astype(np.float64) for name, a in d.items()})

    with fastrnn.use_backend("numpy"):
        exact = reference()
    assert_rounded(everything(net, given, d), exact, reference)


@pytest.mark.parametrize("stack", STACKS)
def test_training_has_the_bits_of_inference(stack: tuple[int, dict[str, Any]], native: str) -> None:
    """Checkpoints and threads give the bits of a forward without them."""
    net, given = wide("gru_after", stack[0], np.float32, **stack[1])
    d = cotangents(net, given)
    plain = everything(net, given, d)
    for options in ({"checkpoint": 3}, {"checkpoint": "auto"}, {"threads": 2}):
        assert_same_bits(everything(net, given, d, **options), plain)
    if not net.dropout:
        state = as_given(given["state"])
        y = named(*net(given["x"], state, given["lengths"], resets=given["resets"]))
        assert_same_bits({f"out {name}": a for name, a in y.items()}, {k: a for k, a in plain.items() if "out" in k})


def test_threads_of_a_stack(native: str) -> None:
    """Layers run in parallel, in training, too."""
    net = layer("lstm", 24, 64, 3)
    given = inputs("lstm", net, "time", ("state",), 300, 2)
    d = cotangents(net, given)
    alone = everything(net, given, d, threads=1)
    for threads in (2, 3):
        assert_same_bits(everything(net, given, d, threads=threads), alone)
