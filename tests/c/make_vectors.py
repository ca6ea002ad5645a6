"""Write random recurrences, and their results by the float64 NumPy reference, for run_vectors.c.

    python make_vectors.py [--small N] FILE

All numbers are native-endian and 8 bytes wide:

    file     the names in TENSORS in one line, padded with zero bytes; number of problems; the problems
    problem  the cell's name in 16 bytes; T, B, I, H, reverse, layout, checkpoint, work; the tensors in order
    tensor   number of elements, -1 for an absent one; the relative errors allowed in float32 and in float64; the
             elements, time-major, everything as float64

Inputs are float32 numbers, so that both precisions see the same problem. The errors allowed follow
tests/support/tolerance.py.
"""

from __future__ import annotations

import argparse
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from support.problems import AWKWARD, CELLS, COTANGENTS, INPUTS, PUBLIC, Problem, make, random_options, run
from support.tolerance import WORST, allowed

import fastrnn

OUTPUTS = ("y", "h_n", "c_n", "c", "dx", "dW", "dU", "db", "db_rec", "dp", "dh0", "dc0")
TENSORS = (*INPUTS, *COTANGENTS, *OUTPUTS)
NARROWER = 2.0**-29  #: rounding of float64 relative to float32, and so the ratio of its effects on a problem
LINE = 256  #: size of the first line in bytes
LAYOUTS = 3  #: time-major, batch-first, and reversed in time with gaps; run_vectors.c lays out the arrays accordingly
ABSENT = ("dy", "dh_n", "dc_n")  #: cotangents that a caller may omit

#: (T, B, I, H) with a remainder or at a boundary of the C core
EDGES = (
    (0, 3, 5, 7),  # no steps
    (3, 0, 5, 7),  # no sequences
    (1, 1, 1, 1),
    (3, 2, 257, 131),  # several blocks of a dot product
    (3, 97, 7, 15),  # more rows than one product processes
)

# Where src/plan.c begins to cut time into chunks, and to share work among threads (run_vectors.c complains if it does
# not share what it ought to).
CHUNK = 66_000  #: elements of W x that one thread computes ahead; its rows then also exceed a chunk of backward
CALL_FLOP = 1.05e7  #: flop of a call that is shared among threads
ALONE_FLOP = 2e6  #: flop of a call that is not
STEP_FLOP = 2.1e5  #: flop of a step's recurrent product that is shared by hidden units
BY_ROWS = ((13, 31, 33), (97, 3, 17))  #: (B, I, H): enough sequences to give some to each of 3 threads
BY_UNITS = ((1, 7), (3, 5), (9, 33))  #: (B, I): too few sequences, so H must be large
SHARES = 2 * len(BY_UNITS)  #: problems of each cell; half are split by rows, one with a B that depends on the cell
LAYERS = 4  #: layers of the stacks in stacks.c
IN_STACKS = (7, 5, 17)  #: (B, I, H): run on one thread, whatever the number of steps

ALONE, STACKED, SHARED = range(3)  #: the thresholds that a problem's work reaches, as in check.h

Sizes = tuple[int, int, int, int]  #: T, B, I, H


def sizes_alone(cell: str) -> Iterator[Sizes]:
    yield from EDGES
    yield CHUNK // (PUBLIC[cell][1] * 23 * 7) + 1, 23, 1, 7  # more steps than a chunk


def sizes_of_stacks(cell: str) -> Iterator[Sizes]:
    """The least T at which so many layers are worth several threads, side by side."""
    B, I, H = IN_STACKS
    yield math.ceil(CALL_FLOP / (2 * PUBLIC[cell][1] * B * H * (H + I) * LAYERS)), B, I, H


def sizes_to_share(cell: str, count: int) -> Iterator[Sizes]:
    """Yield the least T, and by hidden units the least odd H, worth sharing; each cell starts with other sizes."""
    G, turn = PUBLIC[cell][1], CELLS.index(cell)
    many = 3 * CHUNK // (2 * G * 7) + 1  # each of 3 threads has enough rows to take one step at a time
    by_rows = (BY_ROWS[0], (many, 1, 7), BY_ROWS[1])
    by_units = [(B, I, math.ceil(math.sqrt(STEP_FLOP / (2 * G * B))) | 1) for B, I in BY_UNITS]
    every = [sizes for one_of_each in zip(by_rows, by_units, strict=True) for sizes in one_of_each]
    for n in range(count):
        B, I, H = every[(turn + n) % SHARES]
        yield math.ceil(CALL_FLOP / (2 * G * B * H * (H + I))), B, I, H


def random_sizes(rng: np.random.Generator, cell: str, count: int) -> Iterator[Sizes]:
    """Awkward sizes of at most `ALONE_FLOP`."""
    while count:
        T, B, I, H = (int(n) for n in rng.choice(AWKWARD, 4))
        if 2 * PUBLIC[cell][1] * T * B * H * (H + I) <= ALONE_FLOP:
            count -= 1
            yield T, B, I, H


def random_problem(rng: np.random.Generator, cell: str, sizes: Sizes, work: int) -> Problem:
    """Return a problem with random options, sometimes without a cotangent.

    Of those with lengths, some have no valid step. A call counts the steps of its lengths, so what is for several
    threads has twice as many steps and lengths of at least half of them, but for one of 0. There some units are so
    faint that their states are subnormal, which every thread must treat alike (relu's slope is not the same there as at
    0, which they may become).
    """
    options = random_options(cell, sizes[0], rng) | {"batch_first": False}
    if cell == "rnn_relu":  # otherwise gradients leave the range of float32 before they reach h0
        options["resets"] = True
    if options["lengths"] and work != ALONE:
        sizes = 2 * sizes[0], *sizes[1:]
    problem = make(cell, sizes, dtype=np.float32, seed=rng.integers(2**32), **options)
    changes: dict[str, Any] = {name: None for name in ABSENT if rng.random() < 0.15}
    if work != ALONE and cell != "rnn_relu":
        faint = np.where(np.arange(len(problem.inputs["U"])) % sizes[3] % 8 == 0, 1e-39, 1.0).astype(np.float32)
        changes |= {name: (a.T * faint).T for name, a in problem.inputs.items() if name in ("W", "U", "b", "b_rec")}
    if options["lengths"] and work != ALONE:
        changes["lengths"] = np.r_[sizes[0], np.maximum(problem.inputs["lengths"][1:], sizes[0] // 2)]
        changes["lengths"][2:3] = 0
    elif options["lengths"] and rng.random() < 0.1:
        changes["lengths"] = np.zeros(sizes[1], np.int64)
    return problem.changed(**changes)


def problems(small: int | None) -> Iterator[tuple[Problem, int, int]]:
    """Yield each problem, its layout, and the thresholds that its work reaches."""
    rng = np.random.default_rng(20)
    for cell in CELLS:
        alone = [*sizes_alone(cell), *random_sizes(rng, cell, 5 if small else 15)]
        shared = sizes_to_share(cell, small or SHARES)
        for work, sizes in enumerate((alone, sizes_of_stacks(cell), shared)):
            for each in sizes:
                yield random_problem(rng, cell, each, work), int(rng.integers(LAYOUTS)), work


def encode_tensor(values: np.ndarray | None, *errors: float) -> bytes:
    if values is None:
        return struct.pack("qdd", -1, 0, 0)
    return struct.pack("qdd", values.size, *(errors or (0, 0))) + values.astype(np.float64).tobytes()


def encode_problem(problem: Problem, layout: int, work: int) -> bytes:
    wide = problem.astype(np.float64)
    exact = run(wide)
    float32 = allowed(lambda: run(wide), exact, np.float32)
    assert all(error < WORST for error in float32.values()), f"rounding decides: {float32}"
    errors = float32, {name: error * NARROWER for name, error in float32.items()}
    given = problem.inputs | problem.cotangents
    T, B, I = problem.inputs["x"].shape
    H = problem.inputs["U"].shape[1]
    reverse, checkpoint = problem.options["reverse"], problem.options.get("checkpoint") or 0
    head = struct.pack("16s8q", problem.cell.encode(), T, B, I, H, reverse, layout, checkpoint, work)
    inputs = (encode_tensor(given.get(name)) for name in TENSORS if name not in OUTPUTS)
    outputs = (encode_tensor(exact.get(name), *(e.get(name, 0) for e in errors)) for name in OUTPUTS)
    return b"".join((head, *inputs, *outputs))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write test vectors for run_vectors.c.")
    of_each = f"of each cell only N problems of the {SHARES} that several threads share, and a third of the random ones"
    parser.add_argument("--small", type=int, choices=range(1, SHARES), metavar="N", help=of_each)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    with fastrnn.use_backend("numpy"):
        encoded = [encode_problem(*each) for each in problems(arguments.small)]
    names = " ".join(TENSORS).encode().ljust(LINE, b"\0")
    arguments.file.write_bytes(names + struct.pack("q", len(encoded)) + b"".join(encoded))


if __name__ == "__main__":
    main()
