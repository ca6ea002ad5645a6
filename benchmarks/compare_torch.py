"""fastrnn against PyTorch, layer by layer on the project's grid; prints Markdown.

    python benchmarks/compare_torch.py [--train] [--threads 1] [--cells lstm gru rnn] [--points tiny rl ...]

Both get the same float32 numbers in one process on the same CPUs, and must agree before they are timed. Rounds of the
two alternate, so that a noisy neighbour disturbs both; a time is the median of its rounds. PyTorch infers under
`torch.inference_mode`; fastrnn is called through its functional interface, which packs the weights in every call.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
import torch
from grid import GRID, POINTS, Sizes, flop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from problems import PUBLIC, Problem, call, make, run
from tolerance import relative_error

import fastrnn

CELLS = {"lstm": ("lstm", torch.nn.LSTM), "gru": ("gru_after", torch.nn.GRU), "rnn": ("rnn_tanh", torch.nn.RNN)}
SECONDS = 1.0  # of timing for each point
LEAST_ROUNDS = 7
ROUND = 2e-3  # seconds that a round takes at least: many calls where one is short

Work = Callable[[], list[np.ndarray]]


def ours(problem: Problem, train: bool, threads: int) -> Work:
    problem = problem.changed(threads=threads)

    def step() -> list[np.ndarray]:
        results = run(problem)
        return [results[name] for name in ("y", "dx", "dW", "dU", "db", "db_rec")]

    return step if train else lambda: [call(problem)[0].y]


def theirs(problem: Problem, train: bool, module: type[torch.nn.RNNBase]) -> Work:
    weights = [torch.from_numpy(problem.inputs[name]) for name in ("W", "U", "b", "b_rec")]
    layer = module(weights[0].shape[1], weights[1].shape[1])
    with torch.no_grad():
        for own, given in zip(layer.all_weights[0], weights, strict=True):
            own.copy_(given)
    x, dy = torch.from_numpy(problem.inputs["x"]), torch.from_numpy(problem.cotangents["dy"])

    def infer() -> list[np.ndarray]:
        with torch.inference_mode():
            return [layer(x)[0].numpy()]

    def step() -> list[np.ndarray]:
        leaf = x.requires_grad_()
        y = layer(leaf)[0]
        gradients = torch.autograd.grad(y, [leaf, *layer.all_weights[0]], dy)
        return [y.detach().numpy(), *(g.numpy() for g in gradients)]

    return step if train else infer


def clock(work: Work, times: int) -> float:
    """Seconds of one call, over so many in a row."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def compare(a: Work, b: Work) -> tuple[float, float]:
    """Median seconds of each, its rounds alternating with the other's."""
    for mine, other in zip(a(), b(), strict=True):
        error = relative_error(mine, other.astype(np.float64))
        assert error < 1e-4, f"the results differ by {error:.1e}: nothing to compare"
    each = [clock(work, 3) for work in (a, b)]
    times = [max(1, round(ROUND / t)) for t in each]
    rounds = max(LEAST_ROUNDS, int(SECONDS / sum(n * t for n, t in zip(times, each, strict=True))))
    taken = [(clock(a, times[0]), clock(b, times[1])) for _ in range(rounds)]
    return median(t for t, _ in taken), median(t for _, t in taken)


def human(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def table(name: str, points: dict[str, Sizes], train: bool, threads: int) -> list[float]:
    """Print one cell's table; returns its ratios."""
    cell, module = CELLS[name]
    print(f"\n{name.upper()} {'training step' if train else 'inference'}, float32, {threads} thread(s)\n")
    print("| point | T, B, I, H | fastrnn | PyTorch | PyTorch / fastrnn | fastrnn GFLOP/s |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for point, sizes in points.items():
        problem = make(cell, sizes, dtype=np.float32, states=()).changed(dh_n=None, dc_n=None)
        fast, slow = compare(ours(problem, train, threads), theirs(problem, train, module))
        ratios.append(slow / fast)
        rate = flop(PUBLIC[cell][1], sizes, train) / fast / 1e9
        where = ", ".join(map(str, sizes))
        print(f"| {point} | {where} | {human(fast)} | {human(slow)} | {slow / fast:.2f} | {rate:.0f} |", flush=True)
    print(f"\ngeometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--points", nargs="+", choices=POINTS, default=list(GRID), metavar="POINT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="forward and backward, all gradients")
    chosen = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.threads])
    torch.set_num_threads(chosen.threads)
    print(f"PyTorch {torch.__version__}, oneDNN {torch.backends.mkldnn.is_available()}")
    fastrnn.show_config()
    for name in chosen.cells:
        table(name, {point: POINTS[point] for point in chosen.points}, chosen.train, chosen.threads)


if __name__ == "__main__":
    main()
