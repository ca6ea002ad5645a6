"""`fastrnn.to_c` of layers with int8 weights: the same bits on every instruction set, and the size of the code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.in_c import INT8, InC, as_sequential, check_bits, compiled, letters, march, of_functions, series
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import Activation, Dense, Sequential
from fastrnn.backends import available_isas
from fastrnn.layers import Layer

pytestmark = pytest.mark.skipif(not available_isas(), reason="no native implementation is installed")

#: recurrent layers alone, with the same bits on every instruction set
INT8_ALONE: dict[str, Callable[[], Layer]] = {
    "lstm": lambda: fastrnn.LSTM(3, 16, peephole=True, rng=0, **INT8),
    "gru_after": lambda: fastrnn.GRU(3, 33, 2, reset_after=True, rng=0, **INT8),
    "gru_before": lambda: fastrnn.GRU(4, 33, reset_after=False, bias="input", rng=0, **INT8),
    "more_terms_than_fit_32_bits": lambda: fastrnn.RNN(1031, 140, activation="relu", bias=False, rng=0, **INT8),
    "projected": lambda: fastrnn.LSTM(1, 17, 2, proj_size=5, rng=0, **INT8),
    "of_functions": lambda: fastrnn.Recurrent(of_functions, 3, 19, rng=0, **INT8),
}


@pytest.mark.by_turns
@pytest.mark.parametrize("name", INT8_ALONE)
def test_bits_of_int8(name: str, native: str, tmp_path: Path) -> None:
    """They equal those of the layer on this instruction set, and on the baseline."""
    model = INT8_ALONE[name]()
    made = InC(model, tmp_path, *march(fastrnn.config()["isa"]), name=name)
    check_bits(model, made)
    made.init()
    with fastrnn.use_isa(available_isas()[0]):
        x = series(as_sequential(model), 40, seed=1)
        y = as_sequential(model).predict(x[None])[0]
    assert_same_bits({"y": made.run(x, y)}, {"y": y})


@pytest.mark.by_turns
def test_int8_sums_of_more_than_32_bits(native: str, tmp_path: Path) -> None:
    model = fastrnn.RNN(1031, 3, activation="identity", rng=0, **INT8)
    model.load_state_dict({name: np.ones_like(a) for name, a in model.state_dict().items()})
    x = np.repeat(np.array([[1], [-1], [0], [3]], np.float32), 1031, axis=1)
    y = as_sequential(model).predict(x[None])[0]
    assert_same_bits({"y": InC(model, tmp_path, *march(fastrnn.config()["isa"])).run(x, y)}, {"y": y})
    assert y[0, 0] == pytest.approx(1033, rel=1e-4)


@pytest.mark.by_turns
def test_bits_of_int8_among_other_layers(native: str, tmp_path: Path) -> None:
    """Their products are fused, as without int8."""
    isa = fastrnn.config()["isa"]
    check_bits(fastrnn.quantize(letters()), InC(fastrnn.quantize(letters()), tmp_path, *march(isa)))
    layers = [Dense(5, 9, "tanh", rng=0), fastrnn.LSTM(9, 20, rng=1, **INT8), fastrnn.LSTM(20, 7, rng=2)]
    mixed = Sequential([*layers, Dense(7, 6, "sigmoid", rng=3), Activation("softmax")])
    check_bits(mixed, InC(mixed, tmp_path, *march(isa), name="mixed"))


def test_the_self_test_of_int8(tmp_path: Path) -> None:
    """It detects another scale of one row of weights."""
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


def test_int8_size_is_a_quarter(tmp_path: Path) -> None:
    """Size of the weights; the code takes some additional kilobytes."""
    sizes = []
    for name, layer in (("large", fastrnn.LSTM(128, 128, rng=0)), ("small", fastrnn.LSTM(128, 128, rng=0, **INT8))):
        fastrnn.to_c(layer, tmp_path / f"{name}.c")
        sizes.append(compiled(tmp_path / f"{name}.c").stat().st_size)
    assert sizes[1] < 0.32 * sizes[0]
