"""`fastrnn.to_c`: what it writes compiles without a warning, and computes the bits of the model."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import Activation, Dense, Dropout, Embedding, LastStep, Sequential, backends, catalogue
from fastrnn.backends import available_isas
from fastrnn.cells import exp, log, log1p, maximum, mean, minimum, sigmoid, softplus, sqrt, tanh, where
from fastrnn.layers import Layer

pytestmark = pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")

WARNINGS = ("-pedantic", "-Wall", "-Wextra", "-Werror")


@fastrnn.cell(gates="abc", states="hm", parameters=("s",))
def of_functions(x: Any, U: Any, s: Any, p: Any) -> Any:
    """What needs no library: constants, comparisons, a product of what another made, a gate without x."""
    a = softplus(x.a + U.a @ s.h)
    m = maximum(log(a + 0.1), s.m - abs(x.b))
    n = exp(minimum(x.b, 2.0) - m) + log1p(a * p.s * p.s)
    return where(n > 1, tanh(n), sigmoid(U.b @ (a * s.h)) - 0.5 * x.c), m


@fastrnn.cell(gates="ng", states="hc", parameters=("w",))
def of_means(x: Any, U: Any, s: Any, p: Any) -> Any:
    """Means that are known early and late, and a product of what they make."""
    v = x.n + U.n @ s.h
    d = v - mean(v)
    h = tanh(p.w * d / sqrt(mean(d * d) + 0.1))
    g = sigmoid(x.g + U.g @ (h - mean(h * s.c)))
    c = g * s.c + (1 - g) * h * mean(s.c)
    return g * h + mean(c * p.w), c


def letters(**options: Any) -> Sequential:
    lstm = fastrnn.LSTM(5, 20, 2, peephole=True, zoneout=0.1, return_sequences=False, rng=1, **options)
    head = [Dropout(0.5), Dense(20, 70, "relu", rng=2, **options), Dense(70, 11, "softmax", rng=3, **options)]
    return Sequential([Embedding(7, 5, rng=0, **options), lstm, *head])


MODELS: dict[str, Callable[[], Layer]] = {
    "lstm": lambda: fastrnn.LSTM(1, 16, rng=0),
    "gru_after": lambda: fastrnn.GRU(3, 33, 2, reset_after=True, rng=0),
    "gru_before": lambda: fastrnn.GRU(3, 33, reset_after=False, bias="input", rng=0),
    "more_terms_than_a_chain_has": lambda: fastrnn.RNN(300, 140, activation="relu", bias=False, rng=0),
    "projected": lambda: fastrnn.LSTM(3, 17, 2, proj_size=5, batch_first=True, rng=0),
    "float64": lambda: letters(dtype=np.float64),
    "minimal_gated_unit": lambda: fastrnn.Recurrent(own_cells.minimal_gated_unit, 3, 40, rng=0),
    "four_states": lambda: fastrnn.Recurrent(own_cells.slstm, 3, 7, rng=0),
    "no_product": lambda: fastrnn.Recurrent(own_cells.min_gru, 3, 21, rng=0),
    "of_functions": lambda: fastrnn.Recurrent(of_functions, 3, 19, rng=0),
    "of_functions64": lambda: fastrnn.Recurrent(of_functions, 3, 19, dtype=np.float64, rng=0),
    "of_means": lambda: fastrnn.Recurrent(of_means, 3, 43, rng=0),
    "layer_norm_lstm64": lambda: fastrnn.Recurrent(catalogue.layer_norm_lstm, 3, 7, 2, dtype=np.float64, rng=0),
    "ends": lambda: Sequential(
        [
            Activation("softmax"),
            Dense(6, 6, "tanh", bias=False, rng=0),
            Sequential([fastrnn.RNN(6, 20, activation="sigmoid", rng=1), LastStep(), Activation("sigmoid")]),
        ]
    ),
}


INT8: dict[str, Any] = {"weight_dtype": "int8"}

#: Recurrent layers alone, whose bits are those of every instruction set.
INT8_ALONE: dict[str, Callable[[], Layer]] = {
    "lstm": lambda: fastrnn.LSTM(3, 16, peephole=True, rng=0, **INT8),
    "gru_after": lambda: fastrnn.GRU(3, 33, 2, reset_after=True, rng=0, **INT8),
    "gru_before": lambda: fastrnn.GRU(4, 33, reset_after=False, bias="input", rng=0, **INT8),
    "more_terms_than_fit_32_bits": lambda: fastrnn.RNN(1031, 140, activation="relu", bias=False, rng=0, **INT8),
    "projected": lambda: fastrnn.LSTM(1, 17, 2, proj_size=5, rng=0, **INT8),
    "of_functions": lambda: fastrnn.Recurrent(of_functions, 3, 19, rng=0, **INT8),
}


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
    """What tells the compiler of an instruction set; products of bfloat16 are none of C's."""
    return [f"-march={isa.removesuffix('-bf16')}"] if isa.startswith("x86") else []


def tagger(merge: str, **options: Any) -> Sequential:
    """Steps before, between and after layers of two directions."""
    both = {"bidirectional": True, "merge": merge, **options}
    return Sequential(
        [
            Dense(3, 5, "tanh", rng=0, **options),
            fastrnn.GRU(5, 6, reset_after=True, rng=1, **options),
            fastrnn.LSTM(6, 17, 2, peephole=True, dropout=0.2, rng=2, **both),
            Dense(34 if merge == "concat" else 17, 7, "relu", rng=3, **options),
            fastrnn.RNN(7, 9, rng=4, **both),
            Activation("softmax"),
        ]
    )


BOTH_WAYS: dict[str, Callable[[], Layer]] = {
    "alone": lambda: fastrnn.LSTM(3, 20, bidirectional=True, rng=0),
    "projected": lambda: fastrnn.LSTM(3, 20, 2, bidirectional=True, proj_size=5, rng=0),
    "concat": lambda: tagger("concat"),
    "sum": lambda: tagger("sum"),
    "mul": lambda: tagger("mul"),
    "average64": lambda: tagger("average", dtype=np.float64),
    "letters": lambda: Sequential(
        [
            Embedding(7, 5, rng=0),
            Dropout(0.5),
            fastrnn.GRU(5, 18, 2, reset_after=False, bidirectional=True, return_sequences=False, rng=1),
            Dense(36, 3, "softmax", rng=2),
        ]
    ),
    "then_one_way": lambda: Sequential(
        [
            fastrnn.LSTM(3, 6, bidirectional=True, rng=0),
            fastrnn.LSTM(12, 5, return_sequences=False, rng=1),
            Dense(5, 2, rng=2),
        ]
    ),
    "last_step": lambda: Sequential(
        [fastrnn.GRU(3, 6, reset_after=True, bidirectional=True, rng=0), Sequential([LastStep(), Dense(12, 2, rng=1)])]
    ),
    "only_ends": lambda: fastrnn.RNN(3, 9, bidirectional=True, merge="sum", return_sequences=False, rng=0),
    "int8": lambda: fastrnn.quantize(tagger("concat")),
}


class InC:
    """A model that was written and compiled."""

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
    """(T, I), or (T,) numbers."""
    rng, shape = np.random.default_rng(seed), model.input_shape
    if len(shape) == 2:
        return rng.integers(0, 7, T).astype(np.int32)
    dtype = next(iter(model.parameters().values())).dtype
    return rng.standard_normal((T, shape[-1])).astype(dtype)


def check_bits(model: Layer, made: InC) -> None:
    """Of a run, of one in two parts, and of steps."""
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


@pytest.mark.parametrize("name", MODELS)
def test_bits(name: str, tmp_path: Path) -> None:
    isa = available_isas()[-1]
    with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
        check_bits(MODELS[name](), InC(MODELS[name](), tmp_path, *march(isa), name=name))


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_bits_of_two_directions(name: str, tmp_path: Path) -> None:
    """Of sequences one after another: each begins afresh, and nothing is written beyond the work that it asks for."""
    isa = available_isas()[-1]
    with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
        whole = as_sequential(BOTH_WAYS[name]())
        made = InC(whole, tmp_path, *march(isa), name=name)
        header = (tmp_path / f"{name}.h").read_text()
        found = re.search(r"_work = (\d+)", header)
        assert found is not None
        for T in (23, 1, 9):
            x = series(whole, T, seed=T)
            y = whole.predict(x[None])[0]
            work = np.full(T * int(found[1]) + 1, 7, y.dtype)
            got = np.full_like(y, np.nan)
            made.call("run", x, got, ctypes.c_size_t(T), work)
            assert_same_bits({"y": got}, {"y": y})
            assert work[-1] == 7
    assert f"{name}_step" not in header


@pytest.mark.parametrize("name", INT8_ALONE)
def test_bits_of_int8(name: str, native: str, tmp_path: Path) -> None:
    """They are those of the layer on this instruction set, and those of the layer on the baseline."""
    model = INT8_ALONE[name]()
    made = InC(model, tmp_path, *march(fastrnn.config()["isa"]), name=name)
    check_bits(model, made)
    made.init()
    with fastrnn.use_isa(available_isas()[0]):
        x = series(as_sequential(model), 40, seed=1)
        y = as_sequential(model).predict(x[None])[0]
    assert_same_bits({"y": made.run(x, y)}, {"y": y})


def test_int8_sums_of_more_than_32_bits(native: str, tmp_path: Path) -> None:
    model = fastrnn.RNN(1031, 3, activation="identity", rng=0, **INT8)
    model.load_state_dict({name: np.ones_like(a) for name, a in model.state_dict().items()})
    x = np.repeat(np.array([[1], [-1], [0], [3]], np.float32), 1031, axis=1)
    y = as_sequential(model).predict(x[None])[0]
    assert_same_bits({"y": InC(model, tmp_path, *march(fastrnn.config()["isa"])).run(x, y)}, {"y": y})
    assert y[0, 0] == pytest.approx(1033, rel=1e-4)


def test_bits_of_int8_among_other_layers(native: str, tmp_path: Path) -> None:
    """Products of those are fused, as they are without int8."""
    isa = fastrnn.config()["isa"]
    check_bits(fastrnn.quantize(letters()), InC(fastrnn.quantize(letters()), tmp_path, *march(isa)))
    layers = [Dense(5, 9, "tanh", rng=0), fastrnn.LSTM(9, 20, rng=1, **INT8), fastrnn.LSTM(20, 7, rng=2)]
    mixed = Sequential([*layers, Dense(7, 6, "sigmoid", rng=3), Activation("softmax")])
    check_bits(mixed, InC(mixed, tmp_path, *march(isa), name="mixed"))


def test_the_self_test_of_int8(tmp_path: Path) -> None:
    """Another scale of one row of weights is found."""
    source = tmp_path / "amp.c"
    fastrnn.to_c(INT8_ALONE["lstm"](), source)
    text = source.read_text()
    first = re.search(r"W_0_scales\[\] ALIGNED = \{\s+(\S+)f,", text)
    assert first is not None
    spoilt = f"{text[: first.start(1)]}{float.fromhex(first[1]) * 1.01}{text[first.end(1) :]}"
    for code, printed in ((text, b"amp: as recorded\n"), (spoilt, b"amp: NOT as recorded\n")):
        source.write_text(code)
        done = subprocess.run([compiled(source, "-DAMP_TEST", target="exe")], capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (code is spoilt, printed)


def test_int8_is_a_quarter_of_the_size(tmp_path: Path) -> None:
    """Of the weights: beside these are some kilobytes of code."""
    sizes = []
    for name, layer in (("large", fastrnn.LSTM(128, 128, rng=0)), ("small", fastrnn.LSTM(128, 128, rng=0, **INT8))):
        fastrnn.to_c(layer, tmp_path / f"{name}.c")
        sizes.append(compiled(tmp_path / f"{name}.c").stat().st_size)
    assert sizes[1] < 0.32 * sizes[0]


def test_the_self_test_of_two_directions(tmp_path: Path) -> None:
    models = {"amp": tagger("concat"), "ends": BOTH_WAYS["letters"](), "small": BOTH_WAYS["int8"]()}
    for name, model in models.items():
        fastrnn.to_c(model, tmp_path / f"{name}.c")
        program = compiled(tmp_path / f"{name}.c", f"-D{name.upper()}_TEST", target="exe")
        done = subprocess.run([program], capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"{name}: as recorded\n".encode())


def test_every_instruction_set(native: str, tmp_path: Path) -> None:
    """Also as GNU C, where a compiler fuses products unless the file says that it must not."""
    isa = fastrnn.config()["isa"]
    check_bits(letters(), InC(letters(), tmp_path, *march(isa), "-std=gnu11"))


def exact(source: Path) -> None:
    """Have the self-test allow nothing."""
    text, found = re.subn(r"(?<=tolerance = )\S+(?=;)", "0", source.read_text())
    assert found == 1
    source.write_text(text)


@pytest.mark.oracle
@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-gcc") or not shutil.which("qemu-aarch64"), reason="no emulator")
def test_aarch64(tmp_path: Path) -> None:
    """It has the bits of AVX2, but for sums over lanes, which softmax has; with int8 weights those of every machine."""
    layers = [fastrnn.LSTM(3, 20, rng=0), fastrnn.GRU(20, 17, reset_after=False, rng=1), Dense(17, 3, "tanh", rng=2)]
    plain = "x86-64-v3" in available_isas()
    with fastrnn.use_isa("x86-64-v3") if plain else contextlib.nullcontext():
        fastrnn.to_c(Sequential(layers), tmp_path / "plain.c")
    fastrnn.to_c(letters(), tmp_path / "amp.c")
    fastrnn.to_c(INT8_ALONE["gru_after"](), tmp_path / "int8.c")
    for name in ("plain", "int8") if plain else ("int8",):
        exact(tmp_path / f"{name}.c")
    for name in ("plain", "int8", "amp"):
        options = ["-std=c11", *WARNINGS, "-O2", "-static", f"-D{name.upper()}_TEST", str(tmp_path / f"{name}.c")]
        subprocess.run(["aarch64-linux-gnu-gcc", *options, "-o", str(tmp_path / name)], check=True)
        done = subprocess.run(["qemu-aarch64", str(tmp_path / name)], capture_output=True, check=True, text=True)
        assert done.stdout == f"{name}: as recorded\n"


#: What a page does, or Node: numbers of letters in, probabilities out.
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
    """Clang compiles it for a browser; it has the bits of the layer on the instruction set without fused products."""
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


def test_the_self_test(tmp_path: Path) -> None:
    source = tmp_path / "amp.c"
    fastrnn.to_c(letters(), source)
    done = subprocess.run([compiled(source, "-DAMP_TEST", target="exe")], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"amp: as recorded\n")
    text = source.read_text()
    first = re.search(r"test_y\[\] ALIGNED = \{\s+(\S+),", text)
    assert first is not None
    source.write_text(f"{text[: first.start(1)]}{float.fromhex(first[1][:-1]) * 1.001}f{text[first.end(1) :]}")
    done = subprocess.run([compiled(source, "-DAMP_TEST", target="exe")], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"amp: NOT as recorded\n")


def test_what_the_table_does_not_have_is_nan(tmp_path: Path) -> None:
    for name, model in (("plain", letters()), ("int8", fastrnn.quantize(letters()))):
        made = InC(model, tmp_path, name=name)
        for number, known in ((-1, False), (0, True), (6, True), (7, False)):
            made.init()
            y = made.run(np.array([3, number], np.int32), np.zeros(11, np.float32))
            assert np.isfinite(y).all() if known else np.isnan(y).all()


def test_no_library(tmp_path: Path) -> None:
    """Neither of mathematics, nor an allocation."""
    fastrnn.to_c(fastrnn.Recurrent(of_functions, 3, 19), tmp_path / "amp.c")
    options = [compiler(), "-O2", "-fno-stack-protector", "-c", str(tmp_path / "amp.c"), "-o", str(tmp_path / "amp.o")]
    subprocess.run(options, check=True)
    found = subprocess.run(["nm", "-u", str(tmp_path / "amp.o")], capture_output=True, check=True, text=True).stdout
    undefined = set(found.split()) - {"U"}
    assert {name.lstrip("_") for name in undefined} <= {"memcpy", "memset", "GLOBAL_OFFSET_TABLE_"}


def test_fast_math_is_refused(tmp_path: Path) -> None:
    fastrnn.to_c(fastrnn.LSTM(1, 2), tmp_path / "amp.c")
    options = [compiler(), "-ffast-math", "-fsyntax-only", str(tmp_path / "amp.c")]
    done = subprocess.run(options, capture_output=True, check=False, text=True)
    assert done.returncode
    assert "compile without -ffast-math" in done.stderr


def test_names(tmp_path: Path) -> None:
    fastrnn.to_c(fastrnn.LSTM(1, 2), tmp_path / "my-model.c", name="Voice2")
    assert sorted(os.listdir(tmp_path)) == ["my-model.c", "my-model.h"]
    header = (tmp_path / "my-model.h").read_text()
    for text in ("} Voice2_state;", "void Voice2_step(Voice2_state *state, const float *x, float *y);", "VOICE2_H"):
        assert text in header
    assert "#ifdef VOICE2_TEST" in (tmp_path / "my-model.c").read_text()
    compiled(tmp_path / "my-model.c")


def test_in_place(tmp_path: Path) -> None:
    layer = fastrnn.GRU(5, 5, 2, reset_after=True, rng=0)
    made, x = InC(layer, tmp_path), series(Sequential([layer]), 9)
    y = made.run(x, x)
    made.init()
    both = x.copy()
    made.call("run", both, both, ctypes.c_size_t(9))
    assert_same_bits({"y": both}, {"y": y})


def test_the_command_line(python: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    letters().save(tmp_path / "model.safetensors")
    done = python("-m", "fastrnn", "convert", "model.safetensors", "amp.c", "--name", "voice")
    assert (done.returncode, done.stderr) == (0, "")
    fastrnn.to_c(letters(), tmp_path / "other.c", name="voice")
    assert (tmp_path / "amp.h").read_text() == (tmp_path / "other.h").read_text()
    assert (tmp_path / "amp.c").read_text() == (tmp_path / "other.c").read_text().replace("other.h", "amp.h")


def spoilt() -> fastrnn.LSTM:
    layer = fastrnn.LSTM(3, 4)
    layer.parameters()["weight_hh_l0"][0, 0] = np.nan
    return layer


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda: 3, TypeError, "model: expected a layer or a Sequential of fastrnn, got int"),
        (lambda: Dense(3, 4), ValueError, "model: expected at least one recurrent layer, got Sequential"),
        (
            lambda: fastrnn.LSTM(3, 4, bidirectional=True, merge=None),
            ValueError,
            r"layer 0 \(LSTM\): merge: None gives a pair of outputs, which have no single shape",
        ),
        (lambda: fastrnn.LSTM(3, 4, heads=2), ValueError, "heads: expected 1, got 2"),
        (lambda: fastrnn.LSTM(3, 4, weight_dtype="bfloat16"), ValueError, 'weight_dtype: expected None or "int8", got'),
        (lambda: fastrnn.Recurrent(own_cells.zoneout, 3, 4), ValueError, "cell: zoneout has extra inputs keep; exp"),
        (lambda: fastrnn.Recurrent(own_cells.everything, 3, 4), ValueError, "cell: everything uses cos, which in C"),
        (spoilt, ValueError, "model: expected finite weights and outputs, got NaN or infinity"),
        (
            lambda: Sequential([fastrnn.LSTM(3, 4), fastrnn.LayerNormalization(4)]),
            TypeError,
            r"layer 1 \(LayerNormalization\): expected one of fastrnn's Recurrent, Dense, Activation, Embedding,",
        ),
        (
            lambda: Sequential([fastrnn.LSTM(3, 4), Dense(4, 4), LastStep()]),
            ValueError,
            r"layer 2 \(LastStep\): expected only directly after a recurrent layer",
        ),
    ],
)
def test_what_cannot_be_written(made: Callable[[], Any], error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=f"^{message}"):
        fastrnn.to_c(made(), tmp_path / "amp.c")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("amp.h", {}, ValueError, "path: expected a file name ending in .c, got"),
        ("my-model.c", {}, ValueError, "path: the file name is the prefix in C; expected letters, digits and _, got"),
        ("amp.c", {"name": "2"}, ValueError, "name: expected letters, digits and _, got '2'"),
        ("amp.c", {"name": 2}, ValueError, "name: expected letters, digits and _, got 2"),
        ("no/amp.c", {}, FileNotFoundError, "path: the directory .* does not exist"),
    ],
)
def test_where_nothing_can_be_written(path: str, options: Any, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=f"^{message}"):
        fastrnn.to_c(fastrnn.LSTM(3, 4), tmp_path / path, **options)
    assert not os.listdir(tmp_path)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fastrnn.backends.native", None)
    backends.load.cache_clear()
    with fastrnn.use_backend("numpy"), pytest.raises(ImportError, match=r"^the native backend is not available: "):
        fastrnn.to_c(fastrnn.LSTM(3, 4), tmp_path / "amp.c")
    assert not os.listdir(tmp_path)
