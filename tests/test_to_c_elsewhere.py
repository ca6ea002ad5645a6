"""`fastrnn.to_c` for other machines: AArch64 in an emulator, and WebAssembly."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.in_c import INT8, WARNINGS, letters, series
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import Dense, Sequential
from fastrnn.backends import available_isas

pytestmark = pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")


def exact(source: Path) -> None:
    """Make the self-test exact."""
    text, found = re.subn(r"(?<=tolerance = )\S+(?=;)", "0", source.read_text())
    assert found == 1
    source.write_text(text)


@pytest.mark.oracle
@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-gcc") or not shutil.which("qemu-aarch64"), reason="no emulator")
def test_aarch64(tmp_path: Path) -> None:
    """It has the bits of AVX2, except for sums over lanes, as in softmax; with int8 weights, the bits of every
    machine.
    """
    layers = [fastrnn.LSTM(3, 20, rng=0), fastrnn.GRU(20, 17, reset_after=False, rng=1), Dense(17, 3, "tanh", rng=2)]
    plain = "x86-64-v3" in available_isas()
    with fastrnn.use_isa("x86-64-v3") if plain else contextlib.nullcontext():
        fastrnn.to_c(Sequential(layers), tmp_path / "plain.c")
    fastrnn.to_c(letters(), tmp_path / "amp.c")
    fastrnn.to_c(fastrnn.GRU(3, 33, 2, reset_after=True, rng=0, **INT8), tmp_path / "int8.c")
    for name in ("plain", "int8") if plain else ("int8",):
        exact(tmp_path / f"{name}.c")
    for name in ("plain", "int8", "amp"):
        options = ["-std=c11", *WARNINGS, "-O2", "-static", f"-D{name.upper()}_TEST", str(tmp_path / f"{name}.c")]
        subprocess.run(["aarch64-linux-gnu-gcc", *options, "-o", str(tmp_path / name)], check=True)
        done = subprocess.run(["qemu-aarch64", str(tmp_path / name)], capture_output=True, check=True, text=True)
        assert done.stdout == f"{name}: as recorded\n"


#: what a page or Node does: letters in, probabilities out
JAVASCRIPT = """
const { module, instance } = await WebAssembly.instantiate(require("fs").readFileSync("amp.wasm"));
if (WebAssembly.Module.imports(module).length) throw "it imports something";
const amp = instance.exports, x = amp.__heap_base.value, y = x + 256, state = x + 512;
new Int32Array(amp.memory.buffer, x, letters.length).set(letters);
amp.amp_init(state);
amp.amp_run(state, x, y, letters.length);
console.log(JSON.stringify([...new Float32Array(amp.memory.buffer, y, 11)]));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")
@pytest.mark.skipif("x86-64" not in available_isas(), reason="the bits are the x86 baseline's")
@pytest.mark.parametrize("weight_dtype", [None, "int8"])
def test_webassembly(weight_dtype: str | None, oracle: Callable[[str], Any], tmp_path: Path) -> None:
    """Compiled by Clang; it has the bits of the layer on the instruction set without fused multiply-add."""
    oracle("ziglang")
    model = letters() if weight_dtype is None else fastrnn.quantize(letters(), weight_dtype)
    fastrnn.to_c(model, tmp_path / "amp.c")
    kept = [f"-Wl,--export={name}" for name in ("amp_init", "amp_run", "__heap_base")]
    options = ["-target", "wasm32-wasi", "-mexec-model=reactor", "-msimd128", "-std=c11", *WARNINGS, "-O2", "-s", *kept]
    clang = [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*clang, *options, "amp.c", "-o", "amp.wasm"], cwd=tmp_path, check=True)
    x = series(model, 23)
    script = f"(async () => {{ const letters = {x.tolist()};{JAVASCRIPT}}})()"
    done = subprocess.run(["node", "-e", script], cwd=tmp_path, capture_output=True, check=True, text=True)
    with fastrnn.use_isa("x86-64"):
        expected = model.predict(x[None])[0]
    assert_same_bits({"y": np.array(json.loads(done.stdout), np.float32)}, {"y": expected})
