"""What the programs on published models share: a package's files, one thread, times taken in turns."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import fastrnn


def file_of(package: str, name: str) -> Path:
    """The file of that name that an installed package brings along."""
    try:
        [path] = [f for f in importlib.metadata.files(package) or [] if f.name == name]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{package} is not installed; its files are all that is needed: pip install --no-deps {package}")
    return Path(str(path.locate()))


def one_thread() -> None:
    """Compute on one thread from here on; NumPy's BLAS reads how many only at its start, so the program starts anew."""
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    if not single.items() <= os.environ.items():
        os.environ |= single
        os.execv(sys.executable, sys.orig_argv)
    fastrnn.set_num_threads(1)


def in_turns(tasks: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median seconds of a call of each; they take turns, so that a busy machine is as busy for all of them."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()  # what only the first call does is not to be timed
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(taken.values()):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            taken[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in taken.items()}
