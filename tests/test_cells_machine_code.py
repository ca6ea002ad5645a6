"""Machine code of cells: generated C, the cache on disk, without a compiler, and the accuracy of its functions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.cell_problems import problem, results
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.backends import available_isas
from fastrnn.cells import generate, machine
from fastrnn.cells.c import source
from fastrnn.defined import DefinedCell


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("cell", generate.compiled().values(), ids=generate.compiled())
def test_compiled_in_and_run_time_code_give_the_same_bits(cell: Any, isa: str, monkeypatch: Any) -> None:
    """A compiled-in cell is found by its equations, in any definition."""
    native = fastrnn.backends.load("native")
    own = DefinedCell(cell.function, cell.gates, cell.states, cell.parameters)
    p = problem(own, (7, 5, 3, 37), 1, lengths=True, resets=True)
    with fastrnn.use_isa(isa):
        for dtype in (np.float32, np.float64):
            assert isinstance(native._code(own, np.dtype(dtype).itemsize, isa), int)
            expected = results(p, dtype)
            with monkeypatch.context() as patch:
                patch.delitem(native._compiled_in, own.digest)
                native._code.cache_clear()
                assert not isinstance(native._code(own, np.dtype(dtype).itemsize, isa), int)
                got = results(p, dtype)
            native._code.cache_clear()
            assert_same_bits(got, expected)


PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
import numpy as np; from support import own_cells
from support.cell_problems import problem
p = problem(own_cells.min_gru, (3, 2, 2, 5))
print(p.cell.forward(**p.inputs).y.tobytes().hex())
"""


def run_with(folder: Path, program: str = PROGRAM) -> str:
    """Return y, computed in a new process that stores machine code in this folder."""
    code = program.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-W", "error", "-c", code]
    environment = os.environ | {"FASTRNN_CACHE_DIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


FAR = """
import ctypes, mmap, sys
sys.path.insert(0, {tests!r})
from support.cell_problems import problem
from support import own_cells

libc, page, big = ctypes.CDLL(None), mmap.PAGESIZE, 8 << 30
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def reserve(size):  # address space alone: no access, private, anonymous, no memory behind it
    return libc.mmap(None, size, 0, 0x4022, -1, 0)


run = lambda cell: cell.forward(**problem(cell, (3, 2, 2, 5)).inputs).y.tobytes().hex()
run(own_cells.gru)  # the compiler has its memory
block = reserve(big)
while reserve(page) > block:  # no hole is left above it
    pass
libc.munmap(block + big // 2, page)  # but one, for a single section
print(run(own_cells.min_gru))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the flags of mmap are Linux'")
@pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")
def test_code_may_lie_far_from_its_constants(tmp_path: Path) -> None:
    """In a crowded address space, code and constants may be gigabytes apart."""
    assert run_with(tmp_path, FAR) == run_with(tmp_path)


@pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")
def test_machine_code_on_disk_is_used_again_and_checked(tmp_path: Path) -> None:
    """Stored machine code is reused; if the file is damaged or cannot be written, only time is lost."""
    expected = run_with(tmp_path / "kept")
    [path] = (tmp_path / "kept").iterdir()
    whole, time = path.read_bytes(), path.stat().st_mtime_ns
    assert run_with(tmp_path / "kept") == expected
    assert path.stat().st_mtime_ns == time
    for damaged in (b"", whole[:100], whole[:-1] + b"?", whole[32:]):
        path.write_bytes(damaged)
        assert run_with(tmp_path / "kept") == expected
        assert path.read_bytes() == whole
    (tmp_path / "file").write_text("no folder")
    assert run_with(tmp_path / "file") == expected


def test_each_cell_dtype_and_instruction_set_has_a_file(tmp_path: Path, native: str, monkeypatch: Any) -> None:
    """Each combination of equations, dtype and instruction set has its own file; products of bfloat16 need no other."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    code = fastrnn.backends.load("native")._code
    isas = fastrnn.config()["available_isas"]
    for cell in (own_cells.min_gru, own_cells.zoneout):
        for itemsize in (4, 8):
            for isa in isas:
                code.__wrapped__(cell, itemsize, isa)
    assert len(list(tmp_path.iterdir())) == 4 * len({*isas} - {"x86-64-v4-bf16"})


def test_without_a_compiler_numpy_runs_and_warns(native: str, monkeypatch: Any) -> None:
    p = problem(own_cells.zoneout, (3, 2, 2, 5))
    expected = results(p)
    monkeypatch.setattr(machine, "available", lambda: False)
    with pytest.warns(RuntimeWarning, match=r"cell zoneout is not compiled in.*pip install 'fastrnn\[cells\]'"):
        assert_close(results(p), expected)


def test_functions_of_machine_code_are_accurate(native: str) -> None:
    """exp, log, log1p and softplus are within 3 ulp of float64 over their range."""
    from fastrnn.cells import exp, log, log1p, softplus

    rng = np.random.default_rng(0)
    points = {
        exp: np.concatenate([rng.uniform(-87, 88.7, 200000), rng.uniform(-1, 1, 50000)]),
        log: np.exp(rng.uniform(-87, 88, 250000)),
        log1p: np.concatenate([np.exp(rng.uniform(-60, 80, 200000)), rng.uniform(-0.999, 1, 50000)]),
        softplus: rng.uniform(-80, 80, 250000),
    }
    for function, x in points.items():

        @fastrnn.cell(gates="a", states="h")
        def elementwise(x: Any, U: Any, s: Any, function: Any = function) -> Any:
            return function(x.a)

        for isa in available_isas():
            with fastrnn.use_isa(isa):
                x32 = x.astype(np.float32)
                y = elementwise.forward(x32[None, :, None], np.ones((1, 1), np.float32)).y.ravel()
                exact = np.asarray(function(x32.astype(np.float64)))
                ulps = abs(y - exact) / np.spacing(abs(exact).astype(np.float32))
                assert ulps.max() < 3, (function, isa)
    special = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32)
    for function, expected in ((exp, [np.inf, 0, np.nan, 1]), (log, [np.inf, np.nan, np.nan, -np.inf])):

        @fastrnn.cell(gates="a", states="h")
        def at_limits(x: Any, U: Any, s: Any, function: Any = function) -> Any:
            return function(x.a)

        y = at_limits.forward(special[None, :, None], np.ones((1, 1), np.float32)).y.ravel()
        assert np.array_equal(y, np.array(expected, np.float32), equal_nan=True)


def test_generated_c_has_a_file_for_each_family(tmp_path: Path) -> None:
    """Each family has a file, which is not rewritten if unchanged; equations that C cannot express raise an error."""
    generate.main(tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    families = {"cell_rnn.c", "cell_lstm.c", "cell_gru.c", "cell_catalogue.c"}
    assert written.keys() == {"cells.h", "headers.h", *families}
    assert (tmp_path / "cells.h").read_text().count("CELL(") == len(generate.compiled())
    lstm = (tmp_path / "cell_lstm.c").read_text().partition("const Cell")[0]
    assert lstm.count("vsigmoid(") == 3
    assert lstm.count("vtanh(") == 3  # of g and of c, and of c again backwards
    (tmp_path / "cell_old.c").write_text("what is no family any more")
    generate.main(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    with pytest.raises(KeyError, match="softplus"):
        source({"slstm": own_cells.slstm})
