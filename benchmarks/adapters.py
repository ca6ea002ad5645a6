"""Time fastrnn inside other frameworks and each framework's own layer, as Markdown tables:

    python benchmarks/adapters.py                               every adapter that is installed, every point of the grid
    python benchmarks/adapters.py --points tiny med --adapters torch --threads 2
    python benchmarks/adapters.py --overhead                    what an adapter adds to the functional call, in us

Everything runs in one process; the calls to compare alternate in rounds, and a time is the median over the calls.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from compare.grid import GRID
from compare.jax_peer import JAX
from compare.peer import Work, worst_error
from compare.peers import PyTorch
from compare.problem import Problem, make
from compare.rounds import LEAST_ERROR

import fastrnn
from fastrnn.types import Array

CELLS = ("lstm", "gru_after", "rnn_tanh")
ROUNDS = 7

Call = Callable[[], Any]


class Adapter(NamedTuple):
    """fastrnn in a framework, and the framework's own implementation."""

    package: str  #: the framework
    #: (threads, problem, training) -> the calls of the adapter and of the framework's own layer
    works: Callable[[int, Problem, bool], tuple[Work, Work]]
    #: for --overhead: a problem's calls by name, and the time to subtract from each
    overhead: Callable[[Problem], Iterator[tuple[str, Call, str]]] | None = None


class OwnModules(PyTorch):
    """PyTorch with fastrnn's modules."""

    @property
    def modules(self) -> Any:
        return importlib.import_module("fastrnn.torch")


def torch_works(threads: int, problem: Problem, training: bool) -> tuple[Work, Work]:
    return OwnModules(threads).prepare(problem, training), PyTorch(threads).prepare(problem, training)


def torch_overhead(problem: Problem) -> Iterator[tuple[str, Call, str]]:
    """Include the least time of autograd: a Function with the same tensors that computes nothing."""
    torch = importlib.import_module("torch")
    family, options = problem.cell.family, problem.cell.options
    forward, backward = (getattr(fastrnn, f"{family}_{way}") for way in ("forward", "backward"))
    weights = problem.weights[0]

    def train() -> Any:
        result = forward(problem.x, **weights, **options, training=True)
        return backward(problem.dy, result.cache)

    class Nothing(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any, *weights: Any) -> Any:
            ctx.save_for_backward(x, *weights)
            return torch.from_numpy(problem.dy)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            return ctx.saved_tensors

    x, dy = torch.from_numpy(problem.x).requires_grad_(), torch.from_numpy(problem.dy)
    leaves = [x, *(torch.tensor(w, requires_grad=True) for w in weights.values())]
    yield "functional, inference", lambda: forward(problem.x, **weights, **options), ""
    yield "functional, training step", train, ""
    for name, peer in (("fastrnn.torch", OwnModules(1)), ("torch.nn", PyTorch(1))):
        for mode in ("inference", "training step"):
            work = peer.prepare(problem, mode == "training step").call
            yield f"{name}, {mode}", work, f"functional, {mode}"
    yield "autograd alone, training step", lambda: torch.autograd.grad(Nothing.apply(*leaves), leaves, dy), ""


class OwnFunctions(JAX):
    """JAX with fastrnn's functions in place of `lax.scan`."""

    def stack(self, problem: Problem, transposed: bool, apart: bool) -> Callable[[dict[str, Any]], Any]:
        function = getattr(importlib.import_module("fastrnn.jax"), problem.cell.family)
        return lambda given: function(given["x"], **given["weights"][0], **problem.cell.options)[0]


def jax_works(threads: int, problem: Problem, training: bool) -> tuple[Work, Work]:
    """Return the calls; JAX has no layer, so its own is a `lax.scan`."""
    return OwnFunctions(threads).prepare(problem, training), JAX(threads).prepare(problem, training)


def keras_works(threads: int, problem: Problem, training: bool) -> tuple[Work, Work]:
    """Return the calls of Keras on PyTorch, whose arrays are batch-first."""
    os.environ["KERAS_BACKEND"] = "torch"
    torch, keras = importlib.import_module("torch"), importlib.import_module("keras")
    torch.set_num_threads(threads)
    kind = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}[problem.cell.family]
    x, dy = (torch.from_numpy(a.swapaxes(0, 1).copy()) for a in (problem.x, problem.dy))
    x.requires_grad_(training)
    layers = [
        getattr(module, kind)(problem.sizes.H, return_sequences=True, **problem.cell.options)
        for module in (importlib.import_module("fastrnn.keras"), keras.layers)
    ]
    for layer in layers:
        layer.build(x.shape)
        layer.set_weights(layers[0].get_weights())

    def work(layer: Any) -> Work:
        leaves = [x, *(weight.value for weight in layer.trainable_weights)]

        def infer() -> list[Any]:
            with torch.no_grad():
                return [layer(x)]

        def train() -> list[Any]:
            y = layer(x)
            return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

        return Work(train if training else infer, lambda found: {str(i): a.numpy() for i, a in enumerate(found)})

    return work(layers[0]), work(layers[1])


#: name on the command line -> the adapter; to add one, add a line here
ADAPTERS: dict[str, Adapter] = {
    "torch": Adapter("torch", torch_works, torch_overhead),
    "jax": Adapter("jax", jax_works),
    "keras": Adapter("keras", keras_works),
}


def installed() -> list[str]:
    return [name for name, adapter in ADAPTERS.items() if importlib.util.find_spec(adapter.package)]


def taken(works: dict[str, Call], seconds: float) -> dict[str, float]:
    """Return the median seconds of each call, in alternating rounds until each has had about its seconds."""
    calls = {}
    for name, work in works.items():
        work()
        start = time.perf_counter()
        work()
        calls[name] = max(1, math.ceil(seconds / ROUNDS / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            work()  # reload what another call displaced from the caches
            for _ in range(calls[name]):
                start = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(some)) for name, some in times.items()}


def agreed(own: Work, framework: Work) -> tuple[Call, Call]:
    """Return the two calls, after checking that they give the same results."""
    got, expected = ({k: np.array(a) for k, a in work.collect(work.call()).items()} for work in (own, framework))
    error = worst_error(got, expected)
    if not error < LEAST_ERROR:
        raise SystemExit(f"the adapter and the framework's own layer differ by {error:.1e}")
    return own.call, framework.call


def row(*cells: Any) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def shown(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def table(names: list[str], points: list[str], cells: list[str], threads: int, seconds: float) -> None:
    """Return a table of the framework's time over fastrnn's: above 1, fastrnn is faster."""
    modes = ("inference", "own layer", "ratio", "training step", "own layer", "ratio")
    head("adapter", "point", "T, B, I, H", "cell", *modes)
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for name in names:
        for point in points:
            for cell in cells:
                found: list[float] = []
                for training in (False, True):
                    own, framework = agreed(*ADAPTERS[name].works(threads, make(cell, point), training))
                    times = taken({"own": own, "framework": framework}, seconds)
                    found += times.values()
                a, b, c, d = found
                ratios[name].append((b / a, d / c))
                times_shown = (shown(a), shown(b), f"{b / a:.2f}", shown(c), shown(d), f"{d / c:.2f}")
                row(name, point, GRID[point], cell, *times_shown)
    for name, pairs in ratios.items():
        means: Array = np.exp(np.log(np.array(pairs)).mean(axis=0))
        row(name, "geometric mean", "", "", "", "", f"{means[0]:.2f}", "", "", f"{means[1]:.2f}")


def overhead(names: list[str], seconds: float) -> None:
    head("at tiny, LSTM", "us", "over the functional call, us")
    for name in names:
        of = ADAPTERS[name].overhead
        if of is None:
            continue
        cases = list(of(make("lstm", "tiny")))
        times = taken({case: call for case, call, _ in cases}, seconds)
        for case, _, less in cases:
            over = f"{(times[case] - times[less]) * 1e6:.1f}" if less else ""
            row(case, f"{times[case] * 1e6:.1f}", over)


def main() -> None:
    parser = argparse.ArgumentParser(description="fastrnn inside other frameworks, against their own layers")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=installed())
    parser.add_argument("--points", nargs="+", choices=GRID, default=list(GRID))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=["lstm"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each entry")
    parser.add_argument("--overhead", action="store_true", help="of a call, in place of the comparison")
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.threads :])
    fastrnn.set_num_threads(given.threads)
    if given.overhead:
        overhead(given.adapters, given.seconds)
    else:
        table(given.adapters, given.points, given.cells, given.threads, given.seconds)


if __name__ == "__main__":
    main()
