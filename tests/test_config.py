"""Selection of backend and instruction set: context managers, environment variables, fall-backs."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support.python import Python

import fastrnn
from fastrnn.backends import available_backends, available_isas, openmp_threads, usable_cpus

CPUINFO = Path("/proc/cpuinfo")
ASK = "import fastrnn; print(fastrnn.config()['backend'], fastrnn.config()['isa'])"
BLOCK = "import sys; sys.modules['_fastrnn'] = None; "  # importing it raises ImportError


def backend() -> str:
    return fastrnn.config()["backend"]


def test_nested_backends_are_restored() -> None:
    outside = backend()
    for inside in available_backends():
        with fastrnn.use_backend(inside):
            assert backend() == inside
            with fastrnn.use_backend("numpy"):
                assert backend() == "numpy"
            assert backend() == inside
    assert backend() == outside


def test_backend_is_restored_after_an_error() -> None:
    outside = backend()
    with pytest.raises(ZeroDivisionError), fastrnn.use_backend("numpy"):
        1 / 0  # noqa: B018
    assert backend() == outside


def test_nested_isas_are_restored(native: str) -> None:
    outside = fastrnn.config()["isa"]
    assert f"native-{outside}" == native
    for inside in available_isas():
        with fastrnn.use_isa(inside):
            assert fastrnn.config()["isa"] == inside
            with fastrnn.use_isa(available_isas()[0]):
                assert fastrnn.config()["isa"] == available_isas()[0]
            assert fastrnn.config()["isa"] == inside
    assert fastrnn.config()["isa"] == outside


def test_unknown_names() -> None:
    for use in (fastrnn.use_backend, fastrnn.use_isa):
        with pytest.raises(ValueError, match="itanium"):
            use("itanium")


@pytest.mark.skipif(not CPUINFO.exists(), reason="needs /proc/cpuinfo")
def test_isas_are_what_the_machine_has(native: str) -> None:
    """Compare with the kernel's list of CPU features, which the C core does not use."""
    flags = set(CPUINFO.read_text().split())
    needs = {
        "x86-64": {"sse2"},
        "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},
        "x86-64-v4": (v4 := {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
        "x86-64-v4-bf16": v4 | {"avx512_bf16"},
        "neon": {"asimd"},
    }
    expected = [isa for isa, features in needs.items() if features <= flags]
    assert available_isas() == (expected or ["portable"])  # the name on other processors


@pytest.mark.parametrize("name", ["numpy", "numba", "native"])
def test_backend_from_the_environment(name: str, python: Python) -> None:
    if name not in available_backends():
        pytest.skip(f"{name} is not installed")
    done = python("-c", ASK, FASTRNN_BACKEND=name)
    assert done.stdout.split()[0] == name, done.stderr
    assert not done.stderr


def test_isa_from_the_environment(native: str, python: Python) -> None:
    isa = native.removeprefix("native-")
    for name in (isa, isa.removeprefix("x86-64-")):
        assert python("-c", ASK, FASTRNN_ISA=name).stdout.split() == ["native", isa]


def test_best_isa_is_the_default(native: str, python: Python) -> None:
    assert python("-c", ASK).stdout.split() == ["native", available_isas()[-1]]


def test_isa_from_the_environment_in_pure_python(python: Python) -> None:
    """One setting must work on all machines: without kernels there is nothing to choose."""
    done = python("-W", "ignore", "-c", BLOCK + ASK, FASTRNN_ISA="v3", FASTRNN_BACKEND="numpy")
    assert done.stdout.split() == ["numpy", "None"], done.stderr


@pytest.mark.parametrize("variable", ["FASTRNN_BACKEND", "FASTRNN_ISA", "FASTRNN_NUM_THREADS"])
def test_wrong_environment(variable: str, python: Python) -> None:
    if variable == "FASTRNN_ISA" and not available_isas():
        pytest.skip("in pure Python there is no instruction set to choose")
    done = python("-c", ASK, **{variable: "itanium"})
    assert done.returncode != 0
    assert variable in done.stderr
    assert "itanium" in done.stderr


COUNT = "import os; os.sched_getaffinity = lambda pid: range(8); import fastrnn; print(fastrnn.get_num_threads())"


@pytest.mark.parametrize(
    ("openmp", "own", "threads"),
    [("1", "", 1), ("3,2", "", 3), ("1", "5", 5), ("5", "1", 1), ("64", "", 8), ("two", "", 8)],
)
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a number of CPUs that can be set")
def test_openmp_bounds_the_default(openmp: str, own: str, threads: int, python: Python, monkeypatch: Any) -> None:
    """On eight CPUs, fewer with a container's quota; FASTRNN_NUM_THREADS overrides both."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    done = python("-c", COUNT, OMP_NUM_THREADS=openmp, FASTRNN_NUM_THREADS=own)
    assert done.stdout.split() == [str(threads if own else min(threads, usable_cpus()))], done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    ("value", "threads"),
    [("1", 1), (" 03 ", 3), ("3,2", 3), ("2 , 4,1", 2), ("12", 12)]
    + [
        (value, math.inf)
        for value in ("", " ", "0", "00", "-1", "2.5", "2x", "two", "٣", ",2", "2,", "2,x", "0,2", "2 3")
    ]
    + [("9" * 5000, math.inf)],
)
def test_omp_num_threads(value: str, threads: float, monkeypatch: Any) -> None:
    """The first number of a list is used, and invalid values are ignored."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert openmp_threads() == threads


def test_openmp_bounds_only_the_default(python: Python) -> None:
    """A call may request more threads."""
    code = "import fastrnn; fastrnn.set_num_threads(3); print(fastrnn.get_num_threads())"
    assert python("-c", code, OMP_NUM_THREADS="1", FASTRNN_NUM_THREADS="").stdout.split() == ["3"]


def test_fall_back_warns_once(python: Python) -> None:
    """Without the compiled extension the next best backend computes, and one warning names the remedy."""
    done = python("-W", "always", "-c", BLOCK + ASK + "; fastrnn.config(); fastrnn.config()")
    assert done.stdout.split() == ["numba" if "numba" in available_backends() else "numpy", "None"]
    assert done.stderr.count("SLOW") == 1
    assert "pip install" in done.stderr


def test_no_fall_back_for_a_backend_by_name(python: Python) -> None:
    """Selecting a missing backend by name raises an error."""
    code = BLOCK + "import fastrnn; fastrnn.use_backend('native')"
    done = python("-W", "ignore", "-c", code)
    assert "ImportError" in done.stderr
    assert "pip install" in done.stderr


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    fastrnn.show_config()
    shown = capsys.readouterr().out
    for word in ("version", fastrnn.__version__, "backend", backend(), "threads", str(fastrnn.get_num_threads())):
        assert word in shown
    fastrnn.show_config(sys.stderr)
    assert capsys.readouterr().err == shown
