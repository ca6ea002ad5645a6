"""Commands of `python -m fastrnn` on model files: convert, inspect, bench."""

from __future__ import annotations

import math
import re
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fastrnn import backends
from fastrnn.checks import size
from fastrnn.convert import formats
from fastrnn.convert.stack import as_chain, leaves
from fastrnn.layers import Activation, Dense, Embedding, Layer
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training.chain import Chain
from fastrnn.training.model import samples_first, table
from fastrnn.training.padding import has_steps
from fastrnn.types import Array


def convert(source: str, target: str, **options: Any) -> None:
    """Convert a model from one format to another."""
    model = formats.convert(source, target, **options)
    print(f"{target}: {headline(model)}")


def inspect(source: str, **options: Any) -> None:
    """Print a model's layers, with their shapes, parameters, memory and backend."""
    try:
        model = formats.read(source, **options)
    except ValueError as error:
        if not source.lower().endswith(".onnx") or options:
            raise
        if not (nodes := nodes_of(source)):
            raise
        print(f"{source}: {in_options(error, {'source': source}).removeprefix(f'{source}: ')}", "", nodes, sep="\n")
        return
    pair = isinstance(model, Recurrent) and model.bidirectional and model.merge is None  # not supported in a Sequential
    shape = None if pair else as_chain("model", model).input_shape
    rows = list[tuple[str, ...]]()
    for place, layer in numbered(model):
        shape = None if shape is None else layer.output_shape(shape)
        written = "a pair" if shape is None else str(samples_first(shape))
        rows.append((f"{place} {type(layer).__name__}", written, *counted(layer), *placed(layer)))
    head = ("Layer", "Output shape", "Parameters", "Memory", "Cell", "Runs in")
    total = ("Total", "", *counted(model), "", "")
    print(f"{source}: {headline(model)}", machine(), "", table([head, *rows, total], (2, 3)), sep="\n")


def bench(source: str, *, batch: int, steps: int, seconds: float, threads: int | None = None, **options: Any) -> None:
    """Time one step, one sequence and a batch of sequences of a model, and print its memory use."""
    batch, steps = size("batch", batch), size("steps", steps)
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: expected a positive number, got {seconds}")
    model = formats.read(source, **options)
    chain, threads = as_chain("model", model), backends.thread_count(threads)
    if not has_steps(inputs(chain, 1, 1)):
        raise ValueError(f"{source}: x of this model has no time axis; expected a model that reads sequences")
    runs: dict[str, tuple[int, Callable[[], Any]]] = {}
    note = ""
    try:
        runs["one step of one sequence"] = 1, partial(chain.stream(threads=threads).step, inputs(chain, 1, 1)[:, 0])
    except ValueError as error:  # the model needs the whole sequence
        note = f"no single steps: {error}\n"
    for B in dict.fromkeys((1, batch)):
        name = f"{steps} steps of {f'{B} sequences' if B > 1 else 'one sequence'}"
        runs[name] = B * steps, partial(chain.forward, inputs(chain, B, steps), threads=threads)
    rows = [("", "median", "99 %", "steps/s")]
    for name, (n, run) in runs.items():
        median, late = timed(run, seconds / len(runs))
        rows.append((name, in_time(median), in_time(late), f"{n / median:,.0f}"))
    print(f"{source}: {headline(model)}", machine(threads), "", table(rows, (1, 2, 3), total=False), sep="\n")
    print(f"\n{note}memory: {counted(model)[1]} of parameters, and {in_bytes(peak(run))} more during the last run")


def in_options(error: BaseException, given: Mapping[str, Any]) -> str:
    """Return an error's message in one line, with the names that arguments of functions have in the command line."""
    source, message = given["source"], " ".join(str(error).split()).replace("whole=False", "--layer")
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename or source}: {error.strerror}"
    message = re.sub(rf"^(path|path_or_model|model): (?={re.escape(source)})", "", message)
    names = {"path": "OUT", "node": "--layer"} | {name: formats.spelled(name) for name in given}
    names |= dict.fromkeys(("path_or_model", "model", "state_dict", "whole"), source)
    message = re.sub(r"^\w+(?=: )", lambda match: names.get(match[0], match[0]), message)
    return re.sub(r"\b(inference|layer|lengths|name|state)=(True\b|(?=\s(?!in calls)))", r"--\1", message)


def headline(model: Layer) -> str:
    """Describe the model in one line."""
    kinds = ", ".join(type(layer).__name__ for _, layer in numbered(model))
    dtypes = " and ".join(sorted({str(p.dtype) for p in model.parameters().values()})) or "no parameters"
    return f"{kinds}; {dtypes}, {counted(model)[0]} parameters, {counted(model)[1]}"


def numbered(model: Layer) -> list[tuple[str, Layer]]:
    """Return the layers of a model and its nested models with their indices, such as "0.1"; a layer alone is "0"."""
    return [(prefix[:-1], layer) for prefix, _, layer in leaves(model)] if isinstance(model, Chain) else [("0", model)]


def machine(threads: int | None = None) -> str:
    """Describe the backend, instruction set and threads."""
    own = backends.config()
    isa = f", {own['isa']}" if own["backend"] == "native" else ""
    return f"backend: {own['backend']}{isa}; threads: at most {threads or own['threads']}"


def placed(layer: Layer) -> tuple[str, str]:
    """Return the cell's name, if recurrent, and the backend that runs the layer."""
    name = backends.current().name
    if isinstance(layer, Recurrent):
        cell = layer.stack.cell
        return cell.name, ("kernels" if backends.in_kernels(cell) else "numpy") if name == "native" else name
    return "", "kernels" if name == "native" and isinstance(layer, Dense | Activation) else "numpy"


def nodes_of(path: str) -> str:
    """Tabulate an ONNX model's recurrent nodes and what runs them in `fastrnn.onnx.Session`; "" if none."""
    from fastrnn.onnx import Session  # here, because it needs the onnx package

    nodes = [(node.name, node.op, node.where, node.why) for node in Session(path, rest="reference").nodes]
    return table([("Node", "Operator", "Runs in", ""), *nodes], (), total=False) if nodes else ""


def counted(model: Layer) -> tuple[str, str]:
    """Return the number of parameters and their memory, as text."""
    n = sum(p.size for p in model.parameters().values())
    return f"{n:,}", in_bytes(sum(a.nbytes for _, layer in numbered(model) for a in stored(layer)))


def stored(layer: Layer) -> list[Any]:
    """Return a layer's parameters as it stores them."""
    parts = layer.stack.parts if isinstance(layer, Recurrent) else [layer.parameters()]
    return [a for part in parts for a in part.values()]


def in_bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def in_time(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def inputs(chain: Chain, batch: int, steps: int) -> Array:
    """Return random inputs, samples first; no time axis if the model takes vectors."""
    rng, layers = np.random.default_rng(0), [layer for _, _, layer in leaves(chain)]
    if isinstance(layers[0], Embedding):
        return rng.integers(0, layers[0].num_embeddings, (batch, steps))
    dtype, shape = next((layer.dtype for layer in layers if hasattr(layer, "dtype")), np.float32), chain.input_shape
    leading = (batch, steps)[: len(shape) - 1]
    return rng.standard_normal((*leading, shape[-1] or 1)).astype(dtype)


def timed(run: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Call repeatedly for this many seconds, after a warm-up; return the median and the 99th percentile."""
    run()
    times, end = list[float](), time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times)), float(np.quantile(times, 0.99))


def peak(run: Callable[[], Any]) -> int:
    """Return the peak memory, in bytes, that Python and NumPy allocate during a call."""
    tracemalloc.start()
    run()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most
