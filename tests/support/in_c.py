"""Models as C: written by `fastrnn.to_c`, compiled and called."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn import Dense, Dropout, Embedding, Sequential
from fastrnn.cells import exp, log, log1p, maximum, minimum, sigmoid, softplus, tanh, where
from fastrnn.layers import Layer
from support.tolerance import assert_same_bits

WARNINGS = ("-pedantic", "-Wall", "-Wextra", "-Werror")

INT8: dict[str, Any] = {"weight_dtype": "int8"}


@fastrnn.cell(gates="abc", states="hm", parameters=("s",))
def of_functions(x: Any, U: Any, s: Any, p: Any) -> Any:
    """Uses only functions that need no library: constants, comparisons, a product of another's result, a gate without
    x.
    """
    a = softplus(x.a + U.a @ s.h)
    m = maximum(log(a + 0.1), s.m - abs(x.b))
    n = exp(minimum(x.b, 2.0) - m) + log1p(a * p.s * p.s)
    return where(n > 1, tanh(n), sigmoid(U.b @ (a * s.h)) - 0.5 * x.c), m


def letters(**options: Any) -> Sequential:
    lstm = fastrnn.LSTM(5, 20, 2, peephole=True, zoneout=0.1, return_sequences=False, rng=1, **options)
    head = [Dropout(0.5), Dense(20, 70, "relu", rng=2, **options), Dense(70, 11, "softmax", rng=3, **options)]
    return Sequential([Embedding(7, 5, rng=0, **options), lstm, *head])


def compiler() -> str:
    found = shutil.which("cc") or (sysconfig.get_config_var("CC") or "").partition(" ")[0]
    assert found
    return found


def compiled(source: Path, *options: str, target: str = "") -> Path:
    made = source.with_suffix(f".{target or 'so'}")
    kind = [] if target else ["-shared", "-fPIC"]
    subprocess.run(
        [compiler(), "-std=c11", *WARNINGS, "-O2", *kind, *options, str(source), "-o", str(made)], check=True
    )
    return made


def march(isa: str) -> list[str]:
    """Return the compiler option of an instruction set; C code has no products of bfloat16."""
    return [f"-march={isa.removesuffix('-bf16')}"] if isa.startswith("x86") else []


class InC:
    """A model that was written as C and compiled."""

    def __init__(self, model: Layer, folder: Path, *options: str, name: str = "model") -> None:
        fastrnn.to_c(model, folder / f"{name}.c")
        self._library = ctypes.CDLL(str(compiled(folder / f"{name}.c", *options)))
        self._name, self._state = name, ctypes.create_string_buffer(1 << 16)
        self.init()

    def call(self, what: str, *given: Any) -> None:
        pointers = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in given]
        getattr(self._library, f"{self._name}_{what}")(self._state, *pointers)

    def init(self) -> None:
        self.call("init")

    def step(self, x: np.ndarray, like: np.ndarray) -> np.ndarray:
        y = np.full_like(like, np.nan)
        self.call("step", np.ascontiguousarray(x), y)
        return y

    def run(self, x: np.ndarray, like: np.ndarray) -> np.ndarray:
        y = np.full_like(like, np.nan)
        self.call("run", np.ascontiguousarray(x), y, ctypes.c_size_t(len(x)))
        return y


def as_sequential(model: Layer) -> Sequential:
    return model if isinstance(model, Sequential) else Sequential([model])


def series(model: Sequential, T: int, seed: int = 5) -> np.ndarray:
    """Return (T, I), or (T,) indices."""
    rng, shape = np.random.default_rng(seed), model.input_shape
    if len(shape) == 2:
        return rng.integers(0, 7, T).astype(np.int32)
    dtype = next(iter(model.parameters().values())).dtype
    return rng.standard_normal((T, shape[-1])).astype(dtype)


def check_bits(model: Layer, made: InC) -> None:
    """Check the bits of one run, of a run in two parts, and of single steps."""
    whole = as_sequential(model)
    x = series(whole, 23)
    y, half = whole.predict(x[None])[0], whole.predict(x[None, :9])[0]
    assert_same_bits({"y": made.run(x, y)}, {"y": y})
    made.init()
    parts = [made.run(x[:9], half), made.run(x[9:], y if y.ndim == 1 else y[9:])]
    assert_same_bits({"y": parts[1]}, {"y": y if y.ndim == 1 else y[9:]})
    assert_same_bits({"y": parts[0]}, {"y": half})
    made.init()
    each = [made.step(one, y if y.ndim == 1 else y[0]) for one in x]
    assert_same_bits({"y": each[-1] if y.ndim == 1 else np.stack(each)}, {"y": y})
