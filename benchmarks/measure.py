"""Measurements beyond those of `python -m fastrnn bench`; each name prints a Markdown table:

    python benchmarks/measure.py stream      a step from Python: fastrnn, ONNX Runtime, PyTorch's LSTM and LSTMCell
    python benchmarks/measure.py serving     the cost of Dense and softmax in a step, and the gain from a pool
    python benchmarks/measure.py bfloat16    the gain from weight_dtype="bfloat16", in steps and over sequences
    python benchmarks/measure.py int8        the same for weight_dtype="int8", with AVX2 and the best instruction set
    python benchmarks/measure.py quantised   a step with int8 weights, and with PyTorch's and ONNX Runtime's dynamic
                                             quantisation: time, error, and difference between alone and in a batch
    python benchmarks/measure.py c           a step of the C code of to_c, and of emx-onnx-cgen
    python benchmarks/measure.py checkpoint  time and peak memory of training on a long sequence
    python benchmarks/measure.py linear      whether the cost is linear in T and in B
    python benchmarks/measure.py threads     the gain from a second thread, on an idle machine and beside a busy process
    python benchmarks/measure.py cells       the speed of cells compiled at run time relative to built-in ones, and the
                                             time of compilation; takes names of points
    python benchmarks/measure.py profile     where inference spends its time, by Linux' perf; after
                                             pip install -C install.strip=false .

Everything runs in one process and, except for `threads`, on one CPU and one thread. Compared calls alternate, and
a time is a median.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

import numpy as np
from compare.grid import GRID, Sizes
from compare.onnx_peers import ONNXRuntime
from compare.peers import Fastrnn, PyTorch
from compare.problem import draw, layers, make

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.defined import DefinedCell

Work = Callable[[], Any]

PEERS_OF_INT8 = ("fastrnn", "PyTorch", "ONNX Runtime")


def taken(works: dict[str, Work], calls: int, turns: int = 5) -> dict[str, np.ndarray]:
    """Return the seconds of every call of each function, alternating after so many calls."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            for _ in range(calls // 10):  # reload what another call displaced from the caches
                work()
            for _ in range(calls):
                start = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - start)
    return {name: np.array(some) for name, some in times.items()}


def row(*cells: Any) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def stream() -> None:
    head("H", "fastrnn, median us", "99th percentile", "ONNX Runtime", "PyTorch LSTM", "PyTorch LSTMCell")
    for H in (16, 128, 256, 512):
        problem = draw("lstm", Sizes(1, 1, H, H))
        lstm = fastrnn.LSTM(H, H, rng=0)
        step, x, out = lstm.stream().step, problem.x[0], np.empty((1, H), np.float32)
        torch = PyTorch(1)
        cell, x_torch = torch.torch.nn.LSTMCell(H, H), torch.torch.from_numpy(x)

        def torch_cell(cell: Any = cell, x: Any = x_torch, inference: Any = torch.torch.inference_mode) -> Any:
            with inference():
                return cell(x)

        works = {
            "fastrnn": lambda step=step, x=x, out=out: step(x, out),
            "onnxruntime": ONNXRuntime(1).prepare(problem, False).call,
            "torch": torch.prepare(problem, False).call,
            "cell": torch_cell,
        }
        times = taken(works, 2000 if H < 512 else 200)
        middle = {name: f"{np.median(some) * 1e6:.2f}" for name, some in times.items()}
        last = f"{np.quantile(times['fastrnn'], 0.99) * 1e6:.2f}"
        row(H, middle["fastrnn"], last, middle["onnxruntime"], middle["torch"], middle["cell"])


def serving() -> None:
    x, fifty = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32), range(50)
    lstm = fastrnn.LSTM(64, 128, rng=0)
    model = fastrnn.Sequential([lstm, fastrnn.Dense(128, 10, "softmax", rng=1)])
    head("a step of", "median us")
    steps = {"LSTM(64, 128)": (lstm.stream().step, 128), "and Dense(128, 10), softmax": (model.stream().step, 10)}
    works: dict[str, Callable[[], Any]] = {}
    for name, (step, N) in steps.items():
        out = np.empty(N, np.float32)
        works[name] = lambda step=step, out=out: [step(x[0], out) for _ in fifty]
    for name, some in taken(works, 200).items():
        row(name, f"{np.median(some) / len(fifty) * 1e6:.2f}")
    print()
    head("sessions", "together, us", "one by one in the pool", "ratio", "in streams of their own", "ratio")
    for n in (1, 4, 16, 64):
        pool, out = lstm.pool(n), np.empty((n, 128), np.float32)
        sessions = [pool.open() for _ in range(n)]
        alone = [([session], x[i], out[i]) for i, session in enumerate(sessions)]
        streams = [(lstm.stream().step, x[i], out[i]) for i in range(n)]
        works = {
            "together": lambda pool=pool, sessions=sessions, out=out: pool.step(sessions, x[: len(out)], out),
            "pool": lambda pool=pool, alone=alone: [pool.step(*one) for one in alone],
            "streams": lambda streams=streams: [step(x_i, out_i) for step, x_i, out_i in streams],
        }
        a, b, c = (float(np.median(some)) for some in taken(works, 300).values())
        row(n, f"{a * 1e6:.1f}", f"{b * 1e6:.1f}", f"{b / a:.2f}", f"{c * 1e6:.1f}", f"{c / a:.2f}")


def bfloat16() -> None:
    narrow("bfloat16", ((50, 1, 256), (50, 1, 512), (25, 1, 1024), (25, 1, 2048), (25, 8, 1024)))


def int8() -> None:
    config = fastrnn.config()
    for isa in dict.fromkeys(("x86-64-v3", config["isa"])):
        if isa in config["available_isas"]:
            print(f"\n{isa}\n")
            with fastrnn.use_isa(isa):
                narrow("int8", ((50, 1, 64), (50, 1, 128), (50, 1, 256), (50, 1, 512), (25, 1, 1024), (25, 32, 256)))


def quantised() -> None:
    """Draw a batch whose first sequence is also measured alone; the others are three times as large."""
    torch, onnx, runtime = (importlib.import_module(name) for name in ("torch", "onnx", "onnxruntime"))
    quantisation = importlib.import_module("onnxruntime.quantization")
    torch.set_num_threads(1)
    head("I = H", *[f"{name}, {what}" for name in PEERS_OF_INT8 for what in ("step us", "error", "change in a batch")])
    for H in (128, 256, 512, 1024):
        module = torch.nn.LSTM(H, H)
        small = fastrnn.quantize(fastrnn.from_torch(module))
        theirs = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(module), {torch.nn.LSTM})[0]
        with tempfile.TemporaryDirectory() as folder:
            plain, file = os.path.join(folder, "plain.onnx"), os.path.join(folder, "int8.onnx")
            onnx.save(fastrnn.to_onnx(fastrnn.from_torch(module), state=True), plain)
            quantisation.quantize_dynamic(plain, file, op_types_to_quantize=["LSTM"])
            options = runtime.SessionOptions()
            options.intra_op_num_threads = 1
            session = runtime.InferenceSession(file, options)

        def by_torch(x: np.ndarray, h: np.ndarray, theirs: Any = theirs) -> np.ndarray:
            with torch.no_grad():
                return theirs(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(h)))[0].numpy()

        def by_runtime(x: np.ndarray, h: np.ndarray, session: Any = session) -> np.ndarray:
            return session.run(None, {"x": x, "h0": h, "c0": h})[0]

        whole = [lambda x, h, small=small: small(x, (h, h))[0], by_torch, by_runtime]
        x = np.random.default_rng(0).standard_normal((20, 8, H), dtype=np.float32)
        x[:, 1:] *= 3
        alone, h, h_alone = x[:, :1].copy(), np.zeros((1, 8, H), np.float32), np.zeros((1, 1, H), np.float32)
        exact = fastrnn.from_torch(module)(x)[0]
        step, first = small.stream(1).step, alone[:1]
        steps = {"fastrnn": lambda step=step, x=first[0]: step(x)}
        for name, run in zip(PEERS_OF_INT8[1:], whole[1:], strict=True):
            steps[name] = lambda run=run, x=first, h=h_alone: run(x, h)
        times = [float(np.median(some)) for some in taken(steps, 50).values()]
        cells = []
        for run, seconds in zip(whole, times, strict=True):
            y = run(x, h)
            error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
            cells += [f"{seconds * 1e6:.1f}", f"{error:.4f}", f"{np.abs(y[:, :1] - run(alone, h_alone)).max():.4f}"]
        row(H, *cells)


#: x (T,) -> y (T, H), one call per step; emx-onnx-cgen's function takes and returns the states
STEPS = """
#include "model.h"
void steps(const float *x, float *y, int T)
{
    static model_state state;
    for (int t = 0; t < T; t++) model_step(&state, x + t, y + t * H);
}
"""
STEPS_OF_EMX = """
void model(const float *x, const float *h, const float *c, float *y, float *h_n, float *c_n);
void steps(const float *x, float *y, int T)
{
    static float h[2][H], c[2][H];
    for (int t = 0; t < T; t++) model(x + t, h[t % 2], c[t % 2], y + t * H, h[(t + 1) % 2], c[(t + 1) % 2]);
}
"""


def emx(layer: fastrnn.LSTM, path: str) -> None:
    compiler = importlib.import_module("emx_onnx_cgen").Compiler()
    with open(path, "w") as file:
        file.write(compiler.compile(fastrnn.to_onnx(layer, state=True, batch=1, steps=1)))


def compiled(layer: fastrnn.LSTM, write: Callable[[fastrnn.LSTM, str], None], caller: str, *flags: str) -> Any:
    """Compile the layer's C code as a library of its own; return its function `steps`."""
    with tempfile.TemporaryDirectory() as folder:
        model, main, library = (os.path.join(folder, name) for name in ("model.c", "steps.c", "steps.so"))
        write(layer, model)
        with open(main, "w") as file:
            file.write(caller)
        # with its start files, -ffast-math would change the floating-point mode of this process
        command = [os.environ.get("CC", "cc"), "-O3", "-shared", "-fPIC", "-nostartfiles", *flags]
        subprocess.run([*command, f"-DH={layer.hidden_size}", model, main, "-lm", "-o", library], check=True)
        return ctypes.CDLL(library).steps


def c() -> None:
    for isa in ("x86-64-v3", "x86-64-v4"):
        if isa not in fastrnn.config()["available_isas"]:
            continue
        print(f"\n{isa}\n")
        head("H", "fastrnn, step ns", "int8", "emx-onnx-cgen", "with -ffast-math", "ratio", "with -ffast-math")
        for H in (16, 32, 64):
            x = np.random.default_rng(0).standard_normal((3200 // H, 1), dtype=np.float32)
            lstm, y = fastrnn.LSTM(1, H, rng=0), np.empty((len(x), H), np.float32)
            programs: dict[str, tuple[Any, ...]] = {
                "fastrnn": (lstm, fastrnn.to_c, STEPS),
                "int8": (fastrnn.quantize(lstm), fastrnn.to_c, STEPS),
                "emx": (lstm, emx, STEPS_OF_EMX),
                "fast": (lstm, emx, STEPS_OF_EMX, "-ffast-math"),
            }
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y)]
            works = {}
            for name, program in programs.items():
                works[name] = functools.partial(compiled(*program, f"-march={isa}"), *pointers, len(x))
                works[name]()
                np.testing.assert_allclose(y, program[0](x)[0], rtol=0, atol=1e-5)
            ns = [float(np.median(some)) / len(x) * 1e9 for some in taken(works, 100, 9).values()]
            row(H, *(f"{some:.0f}" for some in ns), *(f"{some / ns[0]:.1f}" for some in ns[2:]))


def narrow(name: str, points: tuple[tuple[int, int, int], ...]) -> None:
    head("T, B, I = H", "float32, step us", name, "ratio", "float32, sequence ms", name, "ratio")
    for T, B, H in points:
        x = np.random.default_rng(0).standard_normal((T, B, H), dtype=np.float32)
        layers = {dtype: fastrnn.LSTM(H, H, rng=0, weight_dtype=dtype) for dtype in (None, name)}
        steps = {str(dtype): layer.stream(B).step for dtype, layer in layers.items()}
        step = taken({dtype: lambda step=step, x=x[0]: step(x) for dtype, step in steps.items()}, 50)
        whole = taken({str(dtype): lambda layer=layer, x=x: layer(x) for dtype, layer in layers.items()}, 5)
        a, b, c, d = (float(np.median(some)) for some in (*step.values(), *whole.values()))
        cells = (f"{a * 1e6:.1f}", f"{b * 1e6:.1f}", f"{a / b:.2f}", f"{c * 1e3:.2f}", f"{d * 1e3:.2f}", f"{c / d:.2f}")
        row(f"{T}, {B}, {H}", *cells)


def train_long(checkpoint: Any, answers: Any) -> None:
    """Train in a new process, for its peak memory; return the median of three steps, and MB beyond x, y, dy and dx."""
    resource = __import__("resource")  # not on every system
    T, B, H = 20000, 8, 128
    problem = draw("lstm", Sizes(T, B, H, H))
    given = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        start = time.perf_counter()
        y, _, _, cache, _ = fastrnn.lstm_forward(problem.x, **problem.weights[0], training=True, checkpoint=checkpoint)
        grads = fastrnn.lstm_backward(problem.dy, cache)
        times.append(time.perf_counter() - start)
        outputs = y.nbytes + grads.dx.nbytes
        del y, cache, grads  # the next step must not find them in memory next to its own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.put((sorted(times)[1], (peak - given) / 1024 - outputs / 2**20))


def checkpoint() -> None:
    head("checkpoint", "training step, s", "MB beyond x, y, dy, dx")
    for k in (None, "auto", None, "auto"):
        context = get_context("spawn")
        answers = context.Queue()
        process = context.Process(target=train_long, args=(k, answers))
        process.start()
        seconds, megabytes = answers.get()
        process.join()
        row(k, f"{seconds:.2f}", f"{megabytes:.0f}")


def linear() -> None:
    head("LSTM, I = H = 128", "times, ms", "ms = a + b n: a", "b", "largest misfit")
    T, B = 64, 32
    for what, sizes in (
        ("T", [(n, B) for n in (32, 64, 128, 256, 512)]),
        ("B", [(T, n) for n in (32, 64, 128, 256)]),
    ):
        lstm = fastrnn.LSTM(128, 128, rng=0)
        inputs = {str(s): np.zeros((*s, 128), np.float32) for s in sizes}
        times = taken({name: lambda x=x: lstm(x) for name, x in inputs.items()}, 10)  # noqa: B023
        ms = np.array([np.median(some) for some in times.values()]) * 1e3
        n = np.array([s[what == "B"] for s in sizes])
        b, a = np.polyfit(n, ms, 1, w=1 / ms)
        misfit = np.max(np.abs(a + b * n - ms) / ms)
        listed = ", ".join(f"{what}={k}: {t:.2f}" for k, t in zip(n, ms, strict=True))
        row(f"over {what}", listed, f"{a:.3f}", f"{b:.4f}", f"{misfit:.1%}")


#: seconds between the end of a call and the beginning of the next
GAPS = {"back to back": 0.0, "after 1 ms": 1e-3, "after 30 ms": 30e-3}
SPLIT = ("ts", "seed3", "med", "rlb", "big", "b1_512", "rl", "tiny")


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run that many other processes that never wait, on any CPUs."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    time.sleep(0.5 * bool(processes))  # wait until they have started
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def spaced(work: Work, calls: int, gap: float) -> list[float]:
    """Return the seconds of each call."""
    times = []
    for _ in range(calls):
        if gap:
            time.sleep(gap)
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def threads(seconds: str = "1", *points: str) -> None:
    """Print a table for each number of busy processes and each gap; `seconds` for each point and number of threads.

    Blocks of calls on one thread and on two alternate. What the clocks, the caches and the team of threads have to do
    after a gap belongs to a call, as it does for users; medians leave out the first calls of a block.
    """
    blocks = 6
    for others, (name, gap) in itertools.product((0, 1), GAPS.items()):
        print(f"\nLSTM inference, calls {name}, {'beside one busy process' if others else 'no other process'}:\n")
        head("point", "T, B, I, H", "one thread, us", "two threads, us", "one / two")
        for point in points or SPLIT:
            problem = make("lstm", point)
            layer, x = layers(problem), problem.x
            works: list[Work] = [functools.partial(layer, x, threads=n) for n in (1, 2)]
            with busy(others):
                once = sorted(spaced(works[0], 5, gap))[2]
                calls = max(3, round(float(seconds) / blocks / (once + gap)))
                times: list[list[float]] = [[], []]
                for _ in range(blocks):
                    for some, work in zip(times, works, strict=True):
                        some += spaced(work, calls, gap)
            one, two = (float(np.median(some)) * 1e6 for some in times)
            row(point, problem.sizes, f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}")


COMPILE = """
import sys, time
import numpy as np, fastrnn
from fastrnn.cells import CELLS
from fastrnn.defined import DefinedCell
cell = CELLS[sys.argv[1]]
x, weights = np.ones((1, 1, 1)), [np.ones((len(g), 1)) for g in (cell.gates, cell.products)]
p = np.ones(len(cell.parameters)) if cell.parameters else None
start = time.perf_counter()
DefinedCell(cell.function, cell.gates, cell.states, cell.parameters).forward(x, *weights, p=p)
print(time.perf_counter() - start)
"""


def cells(*points: str) -> None:
    """Compare layers of the built-in cells with cells of the same equations: everything else is the same code."""
    print("\nTime of the built-in cell over that of the compiled one, the median of turns:\n")
    head("point", *[f"{name}, {mode}" for name in ("lstm", "gru_after") for mode in ("inference", "training")])
    for point in points or GRID:
        found = []
        for name in ("lstm", "gru_after"):
            problem, cell = make(name, point), CELLS[name]
            mine = DefinedCell(cell.function, cell.gates, cell.states, cell.parameters)
            sizes = problem.sizes.I, problem.sizes.H
            both = {"built-in": layers(problem), "compiled": fastrnn.Recurrent(mine, *sizes)}
            both["compiled"].load_state_dict(both["built-in"].state_dict())

            def train(layer: Any, problem: Any = problem) -> None:
                layer.backward(problem.dy, layer.forward(problem.x, training=True).cache)

            for way in (lambda layer, x=problem.x: layer(x), train):
                works = {name: functools.partial(way, layer) for name, layer in both.items()}
                start = time.perf_counter()
                works["built-in"]()
                calls = max(3, round(0.05 / (time.perf_counter() - start)))
                times = taken(works, calls, 9)
                found.append(f"{np.median(times['built-in']) / np.median(times['compiled']):.2f}")
        row(point, *found)
    print("\nFrom the function to the first result, in a process of its own, ms:\n")
    head("equations of", "compiled", "from the disk")
    for name in CELLS:
        with tempfile.TemporaryDirectory() as folder:
            run = [sys.executable, "-c", COMPILE, name]
            environment = os.environ | {"FASTRNN_CACHE_DIR": folder}
            once = [float(subprocess.check_output(run, env=environment, text=True)) * 1e3 for _ in range(4)]
        row(name, f"{once[0]:.0f}", f"{min(once[1:]):.0f}")


#: part of the time -> its library and function in `perf report`
PARTS = {
    "matrix products": r"_fastrnn\S* ((rows?|tile)_\d_\d|\w*multiply\w*)",
    "cell": r"_fastrnn\S* forward_\w+",
    "driver": r"_fastrnn\S* \w+",
    "system": r"\[kernel\S* \w+",
    "Python": r".*",
}


def spin(cell: str, point: str, seconds: str) -> None:
    """Run nothing but inference, for a profiler."""
    work = Fastrnn(1).prepare(make(cell, point), False)
    stop = time.perf_counter() + float(seconds)
    while time.perf_counter() < stop:
        work.call()


def profile() -> None:
    head("LSTM inference", *PARTS)
    for point in GRID:
        with tempfile.NamedTemporaryFile() as data:
            run = [sys.executable, __file__, "spin", "lstm", point, "5"]
            subprocess.run(["perf", "record", "-q", "-o", data.name, *run], check=True)
            report = ["perf", "report", "-i", data.name, "--stdio", "--no-children", "-F", "overhead,dso,symbol"]
            text = subprocess.run(report, check=True, capture_output=True, text=True).stdout
        shares = dict.fromkeys(PARTS, 0.0)
        for percent, library, name in re.findall(r"^\s*([\d.]+)%\s+(\S+)\s+\[\S\] (\S+)", text, re.MULTILINE):
            part = next(part for part, where in PARTS.items() if re.match(where, f"{library} {name}"))
            shares[part] += float(percent)
        row(point, *(f"{share:.0f} %" for share in shares.values()))


if __name__ == "__main__":
    every: tuple[Callable[..., None], ...] = (
        stream,
        serving,
        bfloat16,
        int8,
        quantised,
        c,
        checkpoint,
        linear,
        threads,
        cells,
        profile,
        spin,
    )
    chosen = {function.__name__: function for function in every}[sys.argv[1]]
    if hasattr(os, "sched_setaffinity") and chosen is not threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    fastrnn.set_num_threads(1)
    chosen(*sys.argv[2:])
