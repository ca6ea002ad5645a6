"""Converters without a framework: gate orders, weights by gate, a state_dict of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, drawn, settings, written
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.convert.by_gate import flipped
from fastrnn.frameworks import KERAS, ONNX, PYTORCH, reordered


def test_orders_of_gates() -> None:
    ours = {"lstm": np.repeat(["i", "f", "g", "o"], 2), "gru": np.repeat(["r", "z", "n"], 2)}
    lstm, gru = CELLS["lstm_peephole"], CELLS["gru_after"]
    assert "".join(reordered(ours["lstm"], lstm.gates, ONNX.gates["lstm"])) == "iiooffgg"
    assert "".join(reordered(ours["gru"], gru.gates, ONNX.gates["gru"])) == "zzrrnn"
    assert "".join(reordered(ours["gru"], gru.gates, KERAS.gates["gru"])) == "zzrrnn"
    assert "".join(reordered(np.repeat(["i", "f", "o"], 2), lstm.parameters, ONNX.peepholes)) == "iiooff"
    for cell in CELLS.values():
        a = np.repeat(cell.gates, 2)
        assert PYTORCH.gates[cell.family] == "".join(cell.gates)
        for framework in (KERAS, ONNX):
            theirs = reordered(a, cell.gates, framework.gates[cell.family])
            assert (reordered(theirs, framework.gates[cell.family], cell.gates) == a).all()


def test_flipped() -> None:
    a = np.arange(1.0, 7.0)
    assert flipped(a, CELLS["gru_before"]).tolist() == [1, 2, -3, -4, 5, 6]
    assert a[2] == 3


# --- gates one by one


def gate_by_gate(net: Any, letters: str, transposed: bool = False) -> dict[str, np.ndarray]:
    """Return the weights of a unidirectional layer by gate, as a user might have them."""
    names = {"weight_ih_l0": "W", "weight_hh_l0": "U", "bias_ih_l0": "b", "bias_hh_l0": "b_rec_", "peephole_l0": "p"}
    found = {}
    for name, a in net.parameters().items():
        own = letters.replace(letters[2], "", 1) if name.startswith("peephole") else letters
        for letter, part in zip(own, np.split(a, len(own)), strict=True):
            found[names[name] + letter.strip()] = part.T if transposed and part.ndim == 2 else part
    return found


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [True, "input", False])
@pytest.mark.parametrize(
    ("net", "letters", "extra"),
    [
        (lambda **o: fastrnn.LSTM(3, 4, **o), "ifco", {}),
        (lambda **o: fastrnn.LSTM(3, 4, peephole=True, **o), "ifgo", {}),
        (lambda **o: fastrnn.GRU(3, 4, reset_after=True, **o), "rzn", {"reset_after": True}),
        (lambda **o: fastrnn.GRU(3, 4, reset_after=False, **o), "rzh", {"reset_after": False}),
        (lambda **o: fastrnn.GRU(3, 4, reset_after=False, **o), "rz ", {"reset_after": False, "update": "keep"}),
        (lambda **o: fastrnn.RNN(3, 4, activation="relu", **o), " ", {"activation": "relu"}),
    ],
)
def test_from_gates(net: Any, letters: str, extra: dict[str, Any], bias: Any, transposed: bool) -> None:
    layer = net(bias=bias, rng=0)
    gates = gate_by_gate(layer, letters, transposed)
    gates = {("b_rec" if name == "b_rec_" else name): a for name, a in gates.items()}
    made = fastrnn.from_gates(**gates, **extra)
    assert settings(made) == settings(layer)
    assert_same_bits(made.parameters(), layer.parameters())
    told = fastrnn.from_gates(**gates, **extra, transposed=transposed, batch_first=True)
    assert told.batch_first
    assert_same_bits(told.parameters(), layer.parameters())


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("cell", "letters", "given"),
    [
        ("gru_after", "rzn", ["b_r", "b_z", "b_n", "b_rec_n"]),  # Flax, Equinox
        ("gru_after", "rzh", ["b_rec_h"]),
        ("gru_before", "rzn", ["b_z", "b_rec_r"]),
        ("gru_after", "rz ", ["b_rec_", "br"]),
        ("lstm", "ifco", ["bf"]),  # a forget bias alone
        ("lstm_peephole", "ifgo", ["b_rec_o", "b_i"]),
        ("rnn_tanh", " ", ["b_rec"]),
    ],
)
def test_from_gates_with_some_biases(cell: str, letters: str, given: list[str], dtype: Any, column: bool) -> None:
    """The other biases are zero; a layer without recurrent biases has none."""
    rng, options = np.random.default_rng(0), {"reset_after": cell == "gru_after"} if cell.startswith("gru") else {}
    gates = {f"W_{letter}".rstrip("_ "): rng.standard_normal((4, 3)).astype(dtype) for letter in letters}
    gates |= {f"U_{letter}".rstrip("_ "): rng.standard_normal((4, 4)).astype(dtype) for letter in letters}
    gates |= {f"p{letter}": rng.standard_normal(4).astype(dtype) for letter in "ifo" if cell == "lstm_peephole"}
    shape = (4, 1) if column else (4,)
    some = {name.rstrip("_"): rng.standard_normal(shape).astype(dtype) for name in given}
    every = {}
    for kind in ("b", "b_rec") if any("rec" in name for name in some) else ("b",):
        for letter in letters.replace(" ", "_"):
            names = [f"{kind}_{letter}".rstrip("_"), f"{kind}{letter}".rstrip("_")]
            found = [some[name] for name in names if name in some]
            every[names[0]] = found[0] if found else np.zeros(shape, dtype)
    expected, got = (fastrnn.from_gates(**gates, **biases, **options) for biases in (every, some))
    assert got.bias == expected.bias == (True if "rec" in str(given) else "input")
    assert_same_bits(got.parameters(), expected.parameters())
    assert sum(a.any() for name, a in got.parameters().items() if "bias" in name) == len({"rec" in n for n in given})


def test_from_gates_with_a_flipped_update_gate() -> None:
    """z says how much is written."""
    gru, x, y = written(np.float64)
    assert_close({"y": gru(x)[0]}, {"y": y})


W, U = np.ones((4, 3)), np.ones((4, 4))
LSTM_GATES = {f"{key}{gate}": a for key, a in (("W", W), ("U", U)) for gate in "ifco"}
GRU_GATES = {"Wr": W, "Wz": W, "Wh": W, "Ur": U, "Uz": U, "Uh": U}
AFTER = GRU_GATES | {"reset_after": True}


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({}, "expected names like Wi"),
        ({"V": W, "W": W, "U": U}, "got V"),
        ({"Wi": W, "Wz": W}, "not of one cell"),
        ({"Wi": W, "Wf": W, "Wo": W, "Ui": U}, "W: expected one array for each gate"),
        (GRU_GATES | {"Wn": W, "reset_after": True}, "Wn: gate n is already given"),
        (AFTER | {"update": "flip"}, "update: expected"),
        (AFTER | {"activation": "relu"}, r"activation: expected None \(only for a"),
        (AFTER | {"Wr": W[:3]}, "W: expected one shape and dtype"),
        (AFTER | {"Wr": W.astype(np.float32)}, "W: expected one shape and dtype"),
        ({"W": W, "U": U, "reset_after": True}, r"reset_after: expected None \(only for a GRU"),
        ({"W": W, "U": U, "update": "write"}, r"update: expected None \(only for a GRU"),
        ({"W": W, "U": U, "p": W[0]}, "p: expected none; check h"),
        ({"U": U, "b_rec": U[0]}, "expected W and U, got U, b_rec"),
        (AFTER | {"b_rec_n": U[0, :3]}, "b_rec: expected one shape and dtype"),
        (AFTER | {"b_rec_n": U[0], "b_r": U[0, :3]}, "^b: expected one shape and dtype"),
        (AFTER | {"b_rec_n": U[0].astype(np.float32)}, "b_rec: expected one shape and dtype"),
        (AFTER | {"Ur": U[0, 0], "b_n": U[0]}, "expected one shape and dtype|U: expected shape"),
        (AFTER | {"b_n": U[0, :3]}, "b: expected one shape and dtype"),
        (LSTM_GATES | {"pi": W[:, 0]}, "p: expected one array for"),
        ({"W": W}, "expected W and U"),
        ({"W": U, "U": U}, "transposed: expected True"),
        ({"W": W, "U": W, "transposed": False}, "weight_hh_l0: expected shape"),
        ({"W": W, "U": U, "b": W[0]}, "bias_ih_l0: expected shape"),
        ({"W": W[0], "U": U, "transposed": False}, "W: expected shape"),
    ],
)
def test_from_gates_refuses(gates: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_gates(**gates)


def test_from_gates_requires_reset_after() -> None:
    with pytest.raises(TypeError, match=r"^reset_after: expected True \(.*PyTorch.*\) or False \(.*\), got None"):
        fastrnn.from_gates(**GRU_GATES)


# --- a state_dict needs no torch


@pytest.mark.parametrize("seed", MANY)
def test_from_a_state_dict_of_arrays(seed: int) -> None:
    plain = {"merge": "concat", "return_sequences": True, "dropout": 0.0}
    net = drawn(seed, **plain)
    state = {f"encoder.{name}": a for name, a in net.state_dict().items()} | {"decoder.weight": np.ones(3)}
    made = fastrnn.from_torch(state, cell=net.stack.cell.name, prefix="encoder.", batch_first=net.batch_first)
    assert settings(made) == settings(net)
    assert_same_bits(made.parameters(), net.parameters())
    own = made.parameters()["weight_ih_l0"]
    assert not np.shares_memory(own, state["encoder.weight_ih_l0"])


@pytest.mark.parametrize(
    ("change", "cell", "error", "message"),
    [
        ({}, None, ValueError, "cell: expected one of 'rnn_tanh', .*, got None"),
        ({}, "gru", ValueError, "cell: expected one of .*'lstm_peephole', 'gru_after', 'gru_before', got 'gru'"),
        ({}, "lstm_peephole", ValueError, "missing 'peephole_l0', 'peephole_l1'"),
        ({"peephole_l0": W[0], "peephole_l1": W[0]}, "lstm", ValueError, "unexpected 'peephole_l0', 'peephole_l1'"),
        ({}, "gru_after", ValueError, r"weight_hh_l0: expected shape \(3\*H, H\)"),
        ({"weight_hr_l0": W}, "lstm", ValueError, "proj_size"),
        ({"weight_ih_l0": None}, "lstm", ValueError, "missing 'weight_ih_l0'"),
        ({"bias_hh_l1": None}, "lstm", ValueError, "missing 'bias_hh_l1'"),
        ({"bias_hh_l7": W[0]}, "lstm", ValueError, "unexpected 'bias_hh_l7'"),
        ({"weight_ih_l1": W.astype(np.float32)}, "lstm", ValueError, r"weight_ih_l1: expected shape \(16, 4\)"),
        ({"bias_hh_l1": np.ones(16)}, "lstm", TypeError, "bias_hh_l1: expected dtype float32, got float64"),
        ({"weight_ih_l0": np.ones((16, 3), np.float16)}, "lstm", TypeError, "float16"),
        ({"weight_ih_l0": np.ones((16, 0), np.float32)}, "lstm", ValueError, "at least 1 input"),
        ({"weight_ih_l0": "W"}, "lstm", TypeError, "weight_ih_l0: expected an array"),
    ],
)
def test_state_dicts_that_do_not_fit(change: dict[str, Any], cell: Any, error: type[Exception], message: str) -> None:
    state = fastrnn.LSTM(3, 4, 2, rng=0).state_dict() | change
    with pytest.raises(error, match=message):
        fastrnn.from_torch({name: a for name, a in state.items() if a is not None}, cell=cell)
