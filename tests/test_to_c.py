"""`fastrnn.to_c`: the C code compiles without a warning and computes the bits of the model."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.in_c import InC, as_sequential, check_bits, compiled, compiler, letters, march, of_functions, series
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import Activation, Dense, Dropout, Embedding, LastStep, LayerNormalization, Sequential, backends, catalogue
from fastrnn.backends import available_isas
from fastrnn.cells import mean, sigmoid, sqrt, tanh
from fastrnn.layers import Layer

pytestmark = pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")


@fastrnn.cell(gates="ng", states="hc", parameters=("w",))
def of_means(x: Any, U: Any, s: Any, p: Any) -> Any:
    """Means of early and late values, and a product of their result."""
    v = x.n + U.n @ s.h
    d = v - mean(v)
    h = tanh(p.w * d / sqrt(mean(d * d) + 0.1))
    g = sigmoid(x.g + U.g @ (h - mean(h * s.c)))
    c = g * s.c + (1 - g) * h * mean(s.c)
    return g * h + mean(c * p.w), c


def normalized() -> Sequential:
    """Return models with every kind of layer normalization, and heads whose units do not fill a vector and exceed a
    chain.
    """
    layers = [
        *(LayerNormalization(5), fastrnn.LSTM(5, 216, heads=3, rng=0), LayerNormalization(216, 1e-3, scale=False)),
        *(fastrnn.RNN(216, 298, heads=2, rng=1), LastStep(), LayerNormalization(298, center=False)),
        *(Dense(298, 3, rng=2), LayerNormalization(3, scale=False, center=False)),
    ]
    model, rng = Sequential(layers), np.random.default_rng(3)
    for p in model.parameters().values():
        if p.ndim == 1:
            p[:] = rng.standard_normal(p.shape)
    model.changed()
    return model


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
    "heads": lambda: fastrnn.Recurrent(own_cells.slstm, 3, 27, 2, heads=3, rng=0),
    "heads64": lambda: fastrnn.LSTM(3, 32, heads=4, dtype=np.float64, rng=0),
    "heads_of_what_a_gate_made": lambda: fastrnn.GRU(3, 40, reset_after=False, heads=2, rng=0),
    "ends": lambda: Sequential(
        [
            Activation("softmax"),
            Dense(6, 6, "tanh", bias=False, rng=0),
            Sequential([fastrnn.RNN(6, 20, activation="sigmoid", rng=1), LastStep(), Activation("sigmoid")]),
        ]
    ),
}


def tagger(merge: str, **options: Any) -> Sequential:
    """Return a model with single-step layers before, between and after bidirectional layers."""
    both = {"bidirectional": True, "merge": merge, **options}
    return Sequential(
        [
            Dense(3, 5, "tanh", rng=0, **options),
            fastrnn.GRU(5, 6, reset_after=True, rng=1, **options),
            fastrnn.LSTM(6, 17, 2, peephole=True, dropout=0.2, rng=2, **both),
            LayerNormalization(34 if merge == "concat" else 17, **options),
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
            fastrnn.LSTM(3, 6, heads=2, bidirectional=True, rng=0),
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


@pytest.mark.parametrize("name", MODELS)
def test_bits(name: str, tmp_path: Path) -> None:
    isa = available_isas()[-1]
    with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
        check_bits(MODELS[name](), InC(MODELS[name](), tmp_path, *march(isa), name=name))


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_bits_of_bidirectional_layers(name: str, tmp_path: Path) -> None:
    """For consecutive sequences: each starts from zero, and nothing is written beyond the required work array."""
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


def test_the_self_test_of_bidirectional_layers(tmp_path: Path) -> None:
    models = {"amp": tagger("concat"), "ends": BOTH_WAYS["letters"](), "small": BOTH_WAYS["int8"]()}
    for name, model in models.items():
        fastrnn.to_c(model, tmp_path / f"{name}.c")
        program = compiled(tmp_path / f"{name}.c", f"-D{name.upper()}_TEST", target="exe")
        done = subprocess.run([program], capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"{name}: as recorded\n".encode())


def test_every_instruction_set(native: str, tmp_path: Path) -> None:
    """Also as GNU C, where a compiler fuses products unless the file forbids it."""
    check_bits(letters(), InC(letters(), tmp_path, *march(fastrnn.config()["isa"]), "-std=gnu11"))


@pytest.mark.by_turns
def test_layer_normalization(native: str, tmp_path: Path) -> None:
    check_bits(normalized(), InC(normalized(), tmp_path, *march(fastrnn.config()["isa"])))


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


def test_an_index_outside_the_table_gives_nan(tmp_path: Path) -> None:
    for name, model in (("plain", letters()), ("int8", fastrnn.quantize(letters()))):
        made = InC(model, tmp_path, name=name)
        for number, known in ((-1, False), (0, True), (6, True), (7, False)):
            made.init()
            y = made.run(np.array([3, number], np.int32), np.zeros(11, np.float32))
            assert np.isfinite(y).all() if known else np.isnan(y).all()


def test_no_library_and_no_allocation(tmp_path: Path) -> None:
    fastrnn.to_c(fastrnn.Recurrent(of_functions, 3, 19), tmp_path / "amp.c")
    options = [compiler(), "-O2", "-fno-stack-protector", "-c", str(tmp_path / "amp.c"), "-o", str(tmp_path / "amp.o")]
    subprocess.run(options, check=True)
    found = subprocess.run(["nm", "-u", str(tmp_path / "amp.o")], capture_output=True, check=True, text=True).stdout
    undefined = set(found.split()) - {"U"}
    assert {name.lstrip("_") for name in undefined} <= {"memcpy", "memset", "GLOBAL_OFFSET_TABLE_"}


def test_fast_math_is_an_error(tmp_path: Path) -> None:
    fastrnn.to_c(fastrnn.LSTM(1, 2), tmp_path / "amp.c")
    options = [compiler(), "-ffast-math", "-fsyntax-only", str(tmp_path / "amp.c")]
    done = subprocess.run(options, capture_output=True, check=False, text=True)
    assert done.returncode
    assert "compile without -ffast-math" in done.stderr


def test_names(tmp_path: Path) -> None:
    fastrnn.to_c(fastrnn.LSTM(1, 2), tmp_path / "my-model.c", name="Voice2")
    assert sorted(os.listdir(tmp_path)) == ["my-model.c", "my-model.h"]
    header = (tmp_path / "my-model.h").read_text()
    for text in ("} Voice2_state;", "void Voice2_step(Voice2_state *state, const float *x, float *y);", "Voice2_H"):
        assert text in header
    assert "#ifdef VOICE2_TEST" in (tmp_path / "my-model.c").read_text()
    compiled(tmp_path / "my-model.c")


def test_names_that_differ_only_in_case(tmp_path: Path) -> None:
    """One file may include both headers."""
    for folder, name in (("one", "amp"), ("two", "Amp")):  # two folders, for systems that ignore case in names of files
        (tmp_path / folder).mkdir()
        fastrnn.to_c(fastrnn.LSTM(1, 2), tmp_path / folder / f"{name}.c")
    (tmp_path / "both.c").write_text('#include "one/amp.h"\n#include "two/Amp.h"\namp_state a;\nAmp_state b;\n')
    compiled(tmp_path / "both.c")


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
    code = "import fastrnn; fastrnn.to_c(fastrnn.load('model.safetensors'), 'other.c', name='voice')"
    assert python("-c", code).returncode == 0  # there the self-test's x comes from the same generator
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
        (lambda: fastrnn.LSTM(3, 4, weight_dtype="bfloat16"), ValueError, 'weight_dtype: expected None or "int8", got'),
        (lambda: fastrnn.Recurrent(own_cells.zoneout, 3, 4), ValueError, "cell: zoneout has extra inputs keep; exp"),
        (lambda: fastrnn.Recurrent(own_cells.everything, 3, 4), ValueError, "cell: everything uses cos, which needs"),
        (spoilt, ValueError, "model: expected finite weights and outputs, got NaN or infinity"),
        (
            lambda: Sequential([fastrnn.LSTM(3, 4), fastrnn.GlobalMaxPooling1D()]),
            TypeError,
            r"layer 1 \(GlobalMaxPooling1D\): expected one of fastrnn's Recurrent, Dense, Activation, LayerNorm",
        ),
        (
            lambda: Sequential([fastrnn.LSTM(3, 4), Dense(4, 4), LastStep()]),
            ValueError,
            r"layer 2 \(LastStep\): expected only directly after a recurrent layer",
        ),
    ],
)
def test_unsupported_models_raise_an_error(made: Callable[[], Any], error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=f"^{message}"):
        fastrnn.to_c(made(), tmp_path / "amp.c")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("amp.h", {}, ValueError, "path: expected a file name ending in .c, got"),
        (
            "my-model.c",
            {},
            ValueError,
            "path: its file name is the prefix of names in C; expected letters, digits and _, got",
        ),
        ("amp.c", {"name": "2"}, ValueError, "name: expected letters, .*, got '2'; .*no digit first"),
        ("amp.c", {"name": 2}, ValueError, "name: expected letters, digits and _, got 2"),
        ("no/amp.c", {}, FileNotFoundError, "path: the directory .* does not exist"),
    ],
)
def test_unwritable_paths(path: str, options: Any, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=f"^{message}"):
        fastrnn.to_c(fastrnn.LSTM(3, 4), tmp_path / path, **options)
    assert not os.listdir(tmp_path)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fastrnn.backends.native", None)
    backends.load.cache_clear()
    with fastrnn.use_backend("numpy"), pytest.raises(ImportError, match=r"^the native backend is not available: "):
        fastrnn.to_c(fastrnn.LSTM(3, 4), tmp_path / "amp.c")
    assert not os.listdir(tmp_path)
