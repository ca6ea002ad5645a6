"""Settings: the backend, its instruction set, and the number of threads.

Settings are per process, not per thread: change them at startup or in tests, not in concurrent code.
A backend is a module in this package with the functions of `call.Backend`. NumPy and native are loaded at once;
Numba, which takes a second to import, on first use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from fastrnn.call import Backend
from fastrnn.cells import Cell
from fastrnn.checks import checked_threads, positive
from fastrnn.version import version

#: In order of preference.
BACKENDS = ("native", "numba", "numpy")

#: The values that OpenMP accepts: integers from 1; one with more than 9 digits is no limit in practice.
OPENMP_THREADS = re.compile(r"\s*0*([1-9][0-9]{0,8})\s*(,\s*0*[1-9][0-9]*\s*)*")

_REMEDY = {
    "native": "the compiled kernels were not built; with a C compiler on this machine, install fastrnn again "
    "(`pip install --force-reinstall --no-cache-dir fastrnn`, or `pip install .` in a checkout)",
    "numba": "`pip install numba` provides it",
}


@dataclass
class _Settings:
    backend: str
    threads: int


@functools.cache
def load(name: str) -> Any:
    """Import a backend; raise ValueError if the name is unknown, ImportError with a remedy if it is not installed."""
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    try:
        return importlib.import_module(f"fastrnn.backends.{name}")
    except ImportError as error:
        raise ImportError(f"the {name} backend is not available: {_REMEDY[name]} [{error}]") from error


def available_backends() -> list[str]:
    """Return the names of the installed backends, in order of preference."""
    return [name for name in BACKENDS if _installed(name)]


def _installed(name: str) -> bool:
    if name == "numba":  # importing numba is slow; only check that it is installed
        return importlib.util.find_spec("numba") is not None
    try:
        load(name)
    except ImportError:
        return False
    return True


def current() -> Backend:
    """Return the backend in use. If it cannot be imported, fall back to the next best with a warning."""
    name = _settings.backend
    try:
        backend: Backend = load(name)
    except ImportError as error:
        _fall_back(name, error)
        return current()
    return backend


def in_kernels(cell: Cell) -> bool:
    """Return whether the backend in use runs this cell in the compiled kernels."""
    return current().name == "native" and load("native").runs(cell)


def of(cell: Cell) -> Backend:
    """Return the backend in use, or NumPy with a warning if that neither has this cell nor can compile it."""
    backend = current()
    if backend.name != "native" or load("native").runs(cell):
        return backend
    warnings.warn(
        f"fastrnn will be SLOW: cell {cell.name} is not compiled in, and there is no compiler for it; "
        "`pip install 'fastrnn[cells]'` provides one. Using the numpy backend for it instead.",
        RuntimeWarning,
        stacklevel=4,
    )
    fallback: Backend = load("numpy")
    return fallback


def _fall_back(absent: str, error: ImportError) -> None:
    worse = BACKENDS[BACKENDS.index(absent) + 1 :]
    backend = _settings.backend = next(name for name in worse if _installed(name))
    message = f"fastrnn will be SLOW: {error}. Using the {backend} backend instead."
    warnings.warn(message, RuntimeWarning, stacklevel=3)


class _Switch:
    """A setting that takes effect at once and is restored at the end of a `with` block."""

    def __init__(self, change: Callable[[str], None], value: str, previous: str) -> None:
        self._change, self._previous = change, previous
        change(value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._change(self._previous)


class use_backend(_Switch):
    """Switch the backend: permanently as a plain call, or for a ``with`` block.

    The setting is per process, so it affects all threads.

    Parameters
    ----------
    name : {"native", "numba", "numpy"}

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If the backend is not installed. Only the default and ``FASTRNN_BACKEND`` fall back to another.

    Examples
    --------
    >>> import fastrnn
    >>> with fastrnn.use_backend("numpy"):
    ...     fastrnn.config()["backend"]
    'numpy'
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
        load(name)
        super().__init__(lambda backend: setattr(_settings, "backend", backend), name, _settings.backend)


class use_isa(_Switch):
    """Switch the native backend's instruction set: permanently as a plain call, or for a ``with`` block.

    The setting is per process, so it affects all threads.

    Parameters
    ----------
    name : str
        One of ``fastrnn.config()["available_isas"]``; "v3" is short for "x86-64-v3".

    Raises
    ------
    ValueError
        If this machine or installation does not support it.

    Examples
    --------
    >>> import fastrnn
    >>> for isa in fastrnn.config()["available_isas"]:
    ...     with fastrnn.use_isa(isa):
    ...         assert fastrnn.config()["isa"] == isa
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"instruction set: expected a string, got {name!r}")
        available, name = available_isas(), full_name(name)
        if name not in available:
            raise ValueError(
                f"instruction set: expected one of {', '.join(available)}, got {name!r}"
                if available
                else f"instruction set {name!r} is not available: the native backend is not installed"
            )
        native = load("native")
        super().__init__(native.set_isa, name, native.current_isa())


def full_name(isa: str) -> str:
    """Expand a psABI level to the instruction set's full name, if available: "v3" to "x86-64-v3"."""
    return f"x86-64-{isa}" if f"x86-64-{isa}" in available_isas() else isa


def available_isas() -> list[str]:
    """Return the native backend's instruction sets that this machine can run; empty if it is not installed."""
    try:
        return list(load("native").isa_names())
    except ImportError:
        return []


def set_num_threads(threads: int) -> None:
    """Set the maximum number of threads of calls without ``threads=``.

    Parameters
    ----------
    threads : int
        At least 1. Results do not depend on it; small problems use fewer threads.

    Raises
    ------
    TypeError, ValueError
        If it is not a positive integer.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.set_num_threads(1)
    >>> fastrnn.get_num_threads()
    1
    """
    _settings.threads = positive("threads", threads)


def get_num_threads() -> int:
    """Return the maximum number of threads of calls without ``threads=``.

    The default is ``FASTRNN_NUM_THREADS``, else the number of CPUs that the process's affinity and cgroup allow, but at
    most ``OMP_NUM_THREADS``.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.get_num_threads() >= 1
    True
    """
    return _settings.threads


def thread_count(threads: Any) -> int:
    """Return `threads`, checked, or the default if it is None."""
    return checked_threads(_settings.threads if threads is None else threads)


def usable_cpus() -> int:
    """Return the number of CPUs this process may use, by affinity and cgroup quota (rounded up)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(math.ceil(min(cpus, cgroup_cpus())), 1)


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the CPU quota of this process's cgroups and their parents, in CPUs; versions 1 and 2."""
    limits = [math.inf]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):  # version 2 has no name here
            top = root / "cpu" if controllers else root
            place = top / path.lstrip("/")
            limits += [_quota(group) for group in (place, *place.parents) if group.is_relative_to(top)]
    return min(limits)


def _quota(group: Path) -> float:
    two, one = group / "cpu.max", group / "cpu.cfs_quota_us"
    if two.is_file():
        limit, period = two.read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    limit = one.read_text() if one.is_file() else "-1"
    return int(limit) / int((group / "cpu.cfs_period_us").read_text()) if int(limit) > 0 else math.inf


def openmp_threads() -> float:
    """Return ``OMP_NUM_THREADS``, which joblib, Dask, Ray and others set to limit their workers, or infinity.

    A list has one number per nesting level, of which fastrnn uses the first. Invalid values are ignored, as by OpenMP.
    """
    found = OPENMP_THREADS.fullmatch(os.environ.get("OMP_NUM_THREADS", ""))
    return int(found[1]) if found else math.inf


def config() -> dict[str, Any]:
    """Return what `show_config` prints, as a dict.

    Returns
    -------
    dict
        version, backend, available_backends, isa, available_isas, threads, compiler, numpy. isa and compiler
        are None if the native backend is not installed.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.config()["backend"] in fastrnn.config()["available_backends"]
    True
    """
    isas = available_isas()
    native = load("native") if isas else None
    return {
        "version": version(),
        "backend": current().name,
        "available_backends": available_backends(),
        "isa": native.current_isa() if native else None,
        "available_isas": isas,
        "threads": get_num_threads(),
        "compiler": native.build_info()["compiler"] if native else None,
        "numpy": np.__version__,
    }


def show_config(file: TextIO | None = None) -> None:
    """Print version, backend, instruction set, threads and compiler, for bug reports; the text form of `config`.

    Parameters
    ----------
    file : text file, optional
        Standard output when absent.

    Raises
    ------
    TypeError
        If `file` is not a file.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.show_config()  # doctest: +ELLIPSIS
    version ...
    """
    if file is not None and not hasattr(file, "write"):
        raise TypeError(f"file: expected a text file, got {file!r:.80}")
    for key, value in config().items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:<20}{'-' if text in (None, '') else text}", file=file)


def _from_environment() -> _Settings:
    """Return the settings at import; raise ValueError that names the variable if its value is invalid."""
    backend = os.environ.get("FASTRNN_BACKEND") or "native"
    if backend not in BACKENDS:
        raise ValueError(f"FASTRNN_BACKEND={backend!r}: expected one of {', '.join(BACKENDS)}")
    threads = os.environ.get("FASTRNN_NUM_THREADS") or str(min(usable_cpus(), openmp_threads()))
    if not threads.isdecimal() or int(threads) < 1:
        raise ValueError(f"FASTRNN_NUM_THREADS={threads!r}: expected a positive integer")
    return _Settings(backend, int(threads))


def _set_isa_from_environment() -> None:
    isa, available = os.environ.get("FASTRNN_ISA"), available_isas()
    if not isa or not available:  # without the native backend there is nothing to choose
        return
    if full_name(isa) not in available:
        raise ValueError(f"FASTRNN_ISA={isa!r}: expected one of {', '.join(available)}")
    use_isa(isa)


_settings = _from_environment()
if not _installed(_settings.backend):
    try:
        load(_settings.backend)
    except ImportError as absent:
        _fall_back(_settings.backend, absent)
_set_isa_from_environment()
