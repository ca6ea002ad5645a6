"""A differential fuzzer: random small recurrences, layers, streams and damaged files, against the float64 reference.

    python tests/fuzz.py [--seconds 60] [--seed N] [--only calls|layers|files]

Every case is a few plain parameters. A native call is compared with NumPy in float64, norm-wise or, where
`docs/promises.md` promises it, bit by bit; then with other ways that must give the same bits. A failing case is shrunk,
one parameter after another, and printed as a program. The exit code is 0 if no case failed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from support import crowded, damaged_files  # noqa: F401
from support.fuzzing import Check, counts, failure, same, shrunk
from support.memory import backwards, read_only, strided, unaligned
from support.problems import BIASES, CELLS, INITIAL, PUBLIC, Arrays, Problem, batch_first, make, run
from support.promises import BY_STEP, in_a_batch, inferred, padded, split, streamed
from support.stacks import named
from support.tolerance import Evaluate, RoundingDecides, assert_rounded

import fastrnn
from fastrnn.backends import available_isas

ISAS = available_isas()
UNITS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)
SPECIAL = ("x", "W", "U", "b", "h0", "dy", "dh_n")
ABSENT: tuple[tuple[str, ...], ...] = ((), (), ("dy",), ("dh_n", "dc_n"))
#: by float32 and float64
VALUES: dict[str, tuple[float, float]] = {
    "normal": (1.0, 1.0),
    "zero": (0.0, 0.0),
    "-zero": (-0.0, -0.0),
    "denormal": (1e-40, 1e-310),
    "tiny": (3e-38, 4e-308),
    "huge": (1e30, 1e300),
    "nan": (np.nan, np.nan),
    "inf": (np.inf, np.inf),
    "-inf": (-np.inf, -np.inf),
}

#: how arrays lie
LAYOUTS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda a: a,
    np.asfortranarray,
    backwards,
    strided,
    unaligned,
    lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1) if a.ndim == 3 else a,
    read_only,
)


# ---- calls ----


@dataclass
class Call:
    """Small is simple: `shrunk` tries the first value of each field, and smaller sizes."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    seed: int
    isa: str = ISAS[0] if ISAS else ""
    wide: bool = False
    biases: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    lengths: bool = False
    resets: bool = False
    reverse: bool = False
    batch_first: bool = False
    return_cells: bool = False
    checkpoint: int = 1
    threads: int = 1
    layout: int = 0  #: of every argument, in LAYOUTS
    absent: tuple[str, ...] = ()  #: cotangents that are not passed
    value: str = "normal"  #: kind of one sequence's elements, or of a weight's
    where: str = "x"
    scale: float = 1.0  #: factor of the weights

    def problem(self) -> Problem:
        options: dict[str, Any] = {"lengths": self.lengths, "resets": self.resets, "reverse": self.reverse}
        if PUBLIC[self.cell][0] == "lstm":
            options["return_cells"] = self.return_cells
        sizes = (self.T, self.B, self.I, self.H)
        p = make(self.cell, sizes, dtype=np.float32, seed=self.seed, biases=self.biases, states=self.states, **options)
        inputs = {n: a * np.float32(self.scale) if n in ("W", "U") else a for n, a in p.inputs.items()}
        p = replace(p, inputs=inputs).changed(**dict.fromkeys(self.absent))
        p = p.astype(np.float64) if self.wide else p
        given = p.inputs | p.cotangents
        if self.value != "normal" and self.where in given and given[self.where].size:
            a = given[self.where].copy()
            a[(0, *[0] * (a.ndim - 1)) if a.ndim != 3 else (slice(None), 0)] = VALUES[self.value][self.wide]
            p = p.changed(**{self.where: a})
        return p

    def laid(self, p: Problem) -> Problem:
        p = batch_first(p) if self.batch_first else p
        return p.changed(**{n: LAYOUTS[self.layout](a) for n, a in (p.inputs | p.cotangents).items()})


def random_call(rng: np.random.Generator) -> Call:
    def maybe(odds: float = 0.5) -> bool:
        return bool(rng.random() < odds)

    cell = CELLS[rng.integers(len(CELLS))]
    big = maybe(0.003)  # enough work for several threads
    T, B = int(rng.integers(0 if maybe(0.1) else 1, 7)), int(rng.integers(0 if maybe(0.1) else 1, 7))
    sizes = ((12, 70, 33, 130), (40, 1, 65, 400))[rng.integers(2)] if big else None
    sizes = sizes or (T, B, int(rng.choice(UNITS[:9])), int(rng.choice(UNITS)))
    return Call(
        cell,
        *sizes,
        seed=int(rng.integers(2**31)),
        isa=str(rng.choice(ISAS)),
        wide=maybe(),
        biases=BIASES[rng.integers(len(BIASES))],
        states=INITIAL[rng.integers(len(INITIAL))],
        lengths=maybe(0.4),
        resets=maybe(0.3),
        reverse=maybe(0.3),
        batch_first=maybe(0.3),
        return_cells=maybe(0.3),
        checkpoint=int(rng.integers(1, 9)),
        threads=3 if big else 1,
        layout=int(rng.integers(len(LAYOUTS))),
        absent=ABSENT[rng.integers(len(ABSENT))],
        value=str(rng.choice(list(VALUES))) if maybe(0.3) else "normal",
        where=str(rng.choice(SPECIAL)),
        scale=float(rng.choice([1.0, 1.0, 1e-3, 2.0])),
    )


def check_call(case: Call) -> None:
    p = case.problem().changed(threads=1)
    rng = np.random.default_rng(case.seed)
    with fastrnn.use_isa(case.isa):
        got = run(p)
        same(turned_back(run(case.laid(p))) if case.batch_first else run(case.laid(p)), got, "layout")
        same(run(p, checkpoint=case.checkpoint), got, "checkpoint")
        same(*inferred(p, got), "inference")
        if case.threads > 1:
            same(run(p, threads=case.threads), got, "threads")
        if case.B > 1:
            for order in (np.array([rng.integers(case.B)]), rng.permutation(case.B)):
                same(*in_a_batch(p, got, order), "batch")
        if case.T > 1:
            same(*split(p, got, case.T // 2), "split")
        if case.B:
            same(*padded(p, got, int(rng.integers(3)), np.nan), "padding")
        if not (case.lengths or case.reverse or case.biases == ("b_rec",)) and case.B and case.T:
            same(*streamed(p, got, LAYOUTS[case.layout](p.inputs["x"])), "stream")
    if case.value == "normal":
        wide = p.astype(np.float64)
        with fastrnn.use_backend("numpy"):
            exact = run(wide)
        judge(got, exact, lambda: run(wide))
    else:
        check_special(case, p, got)


def turned_back(result: Arrays) -> Arrays:
    turned = {n: a.swapaxes(0, 1) for n, a in result.items() if n in ("y", "c", "dx")}
    return result | {n: np.ascontiguousarray(a) for n, a in turned.items()}


def judge(got: Arrays, exact: Arrays, evaluate: Evaluate) -> None:
    """Compare by the tests' tolerance policy. Count cases that rounding decides, such as a relu at its kink."""
    try:
        assert_rounded(got, exact, evaluate)
        counts["reference"] += 1
    except RoundingDecides:
        counts["ill-conditioned"] += 1


def check_special(case: Call, p: Problem, got: Arrays) -> None:
    """Check that other sequences keep their bits, padding gives 0, and NaN is where the reference has it."""
    if case.where in ("x", "h0", "dy", "dh_n") and case.B > 1:
        names = [n for n in got if n in ("y", "c", "dx", "h_n", "c_n", "dh0", "dc0")]
        with fastrnn.use_isa(case.isa):
            clean = run(replace(case, value="normal").problem(), threads=1)
        cut = {n: (slice(None), slice(1, None)) if n in BY_STEP else slice(1, None) for n in names}
        same({n: got[n][cut[n]] for n in names}, {n: clean[n][cut[n]] for n in names}, "special")
    if case.lengths:
        past = np.arange(case.T)[:, None] >= p.inputs["lengths"]
        assert not got["y"][past].any(), "padding: y is not 0"
        assert not got["dx"][past].any(), "padding: dx is not 0"
    if case.value == "nan":
        with fastrnn.use_backend("numpy"):
            exact = run(p)
        for n in ("y", "h_n", "dx"):
            assert (np.isnan(got[n]) == np.isnan(exact[n])).all(), f"special: NaN elsewhere in {n}"
        counts["NaN"] += 1


# ---- layers ----


@dataclass
class Layer:
    cell: str
    T: int
    B: int
    I: int
    H: int
    seed: int
    isa: str = ISAS[0] if ISAS else ""
    wide: bool = False
    num_layers: int = 1
    bidirectional: bool = False
    merge: str = "concat"
    batch_first: bool = False
    return_sequences: bool = True
    bias: bool = True
    state: bool = False
    lengths: bool = False
    resets: bool = False
    checkpoint: int = 0
    threads: int = 1
    layout: int = 0
    dropout: float = 0.0


def random_layer(rng: np.random.Generator) -> Layer:
    def maybe(odds: float = 0.5) -> bool:
        return bool(rng.random() < odds)

    big = maybe(0.004)
    sizes = (30, 5, 9, 97) if big else (int(rng.integers(1, 6)), int(rng.integers(1, 5)), 3, int(rng.choice(UNITS)))
    layers = int(rng.integers(1, 4))
    return Layer(
        CELLS[rng.integers(len(CELLS))],
        *sizes,
        seed=int(rng.integers(2**31)),
        isa=str(rng.choice(ISAS)),
        wide=maybe(),
        num_layers=layers,
        bidirectional=maybe(),
        merge=str(rng.choice(["concat", "sum", "mul", "average"])),
        batch_first=maybe(0.3),
        return_sequences=maybe(0.7),
        bias=maybe(0.7),
        state=maybe(),
        lengths=maybe(),
        resets=maybe(0.3),
        checkpoint=int(rng.integers(0, 4)),
        threads=3 if big else 1,
        layout=int(rng.integers(len(LAYOUTS))),
        dropout=0.3 if layers > 1 and maybe(0.3) else 0.0,
    )


def check_layer(case: Layer) -> None:
    dtype = np.float64 if case.wide else np.float32
    family, _, chosen = PUBLIC[case.cell]
    kind = {"rnn": fastrnn.RNN, "gru": fastrnn.GRU, "lstm": fastrnn.LSTM}[family]
    chosen = {"peephole": True} if case.cell == "lstm_peephole" else chosen
    names = ("num_layers", "bidirectional", "merge", "batch_first", "return_sequences", "bias", "dropout")
    options = {n: getattr(case, n) for n in names}
    net = kind(case.I, case.H, dtype=dtype, rng=case.seed, **chosen, **options)
    rng = np.random.default_rng(case.seed)
    shape = (case.B, case.T, case.I) if case.batch_first else (case.T, case.B, case.I)
    x = rng.standard_normal(shape).astype(dtype)
    steps = {"lengths": rng.integers(0, case.T + 1, case.B) if case.lengths else None}
    steps |= {"resets": rng.random(shape[:2]) < 0.2 if case.resets else None}
    D = 1 + case.bidirectional
    state = [rng.standard_normal((case.num_layers * D, case.B, case.H)).astype(dtype) for _ in range(2)]
    own = (tuple(state) if family == "lstm" else state[0]) if case.state else None

    def both(x: np.ndarray, net: Any, own: Any, **more: Any) -> Arrays:
        y, final, cache = net.forward(x, state=own, training=True, rng=1, **steps, **more)
        dy = np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        back = net.backward(dy, cache, dstate=None if own is None else final)
        found = named(y, final) | back.grads | {"dx": back.dx}
        if back.dstate is not None:
            given = back.dstate if isinstance(back.dstate, tuple) else (back.dstate,)
            found |= {f"dstate {i}": d for i, d in enumerate(given)}
        return found

    with fastrnn.use_isa(case.isa):
        got = both(x, net, own, threads=1)
        same(both(LAYOUTS[case.layout](x), net, own, threads=case.threads), got, "layer's layout")
        if case.checkpoint:
            same(both(x, net, own, checkpoint=case.checkpoint, threads=case.threads), got, "layer's checkpoint")
        if not case.dropout:
            inferred = named(*net(x, own, threads=case.threads, **steps))
            same(got, inferred, "layer's inference")
        if not (case.bidirectional or case.lengths or case.resets or case.dropout):
            stream = net.stream(case.B)
            if own is not None:
                stream.state = own
            for t in range(case.T):
                h = stream.step(x[:, t] if case.batch_first else x[t])
            if not case.return_sequences:
                same({"y": h}, got, "layer's stream", ["y"])
    wide = kind(case.I, case.H, dtype=np.float64, rng=0, **chosen, **options)
    wide.load_state_dict({n: a.astype(np.float64) for n, a in net.state_dict().items()})
    more = own if own is None else tuple(s.astype("f8") for s in own) if family == "lstm" else own.astype("f8")
    with fastrnn.use_backend("numpy"):
        exact = both(x.astype(np.float64), wide, more)
    judge(got, exact, lambda: both(x.astype(np.float64), wide, more))


# ---- running ----

KINDS: dict[str, tuple[Callable[[np.random.Generator], Any], Check]] = {
    "calls": (random_call, check_call),
    "layers": (random_layer, check_layer),
    "files": (damaged_files.random_file, damaged_files.check_file),
}


def snippet(kind: str, case: Any) -> str:
    arguments = ", ".join(f"{k}={v!r}" for k, v in asdict(case).items())
    where = "fuzz.damaged_files" if kind == "files" else "fuzz"
    made = f"fuzz.KINDS[{kind!r}][1]({where}.{type(case).__name__}({arguments}))"
    return f"import sys; sys.path[:0] = ['tests']\nimport fuzz\n{made}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare random cases with the reference.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=list(KINDS), action="append")
    given = parser.parse_args()
    seed = np.random.SeedSequence().entropy % 2**32 if given.seed is None else given.seed
    print(f"seed {seed}, on {', '.join(ISAS)}", flush=True)
    rng, failed, start = np.random.default_rng(seed), 0, time.monotonic()
    kinds = given.only or list(KINDS)
    odds = np.array([{"calls": 0.8, "layers": 0.1, "files": 0.1}[k] for k in kinds])
    made: Counter[str] = Counter()
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() - start < given.seconds and failed < 10:
            kind = kinds[rng.choice(len(kinds), p=odds / odds.sum())]
            draw, check = KINDS[kind]
            case = draw(rng)
            made[kind] += 1
            if failure(check, case) is None:
                continue
            failed += 1
            case = shrunk(check, case)
            print(f"\n# {failure(check, case)}\n{snippet(kind, case)}", flush=True)
    seconds = time.monotonic() - start
    compared = sum(n for name, n in counts.items() if name not in ("ill-conditioned", "file"))
    print(f"\n{sum(made.values())} problems {dict(made)}, {compared} comparisons in {seconds:.0f} s, {failed} findings")
    print(", ".join(f"{name} {n}" for name, n in sorted(counts.items())))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
