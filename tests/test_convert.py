"""Weights in and out without a framework: orders of gates, gates one by one, files of ours, files of Keras'."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import operator
import pickle
import re
import struct
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, drawn, given, settings, small
from support.stacks import named
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.catalogue import gru_with
from fastrnn.cells import CELLS
from fastrnn.convert.by_gate import flipped
from fastrnn.convert.files import BUILDERS
from fastrnn.frameworks import KERAS, ONNX, PYTORCH, reordered
from fastrnn.training import weight_files
from fastrnn.training.description import DESCRIPTIONS

Python = Callable[..., CompletedProcess[str]]
DATA = Path(__file__).with_name("data")


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
    """The arrays of a layer of one direction, as somebody wrote them down by hand."""
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
def test_from_gates_with_some_of_the_biases(
    cell: str, letters: str, given: list[str], dtype: Any, column: bool
) -> None:
    """The others are zeros, and a layer without recurrent ones has none."""
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
    """The seeds' GRU: z says how much is written, and biases are columns."""
    rng = np.random.default_rng(0)
    W, U, b = (dict(zip("zrh", rng.standard_normal((3, *shape)), strict=True)) for shape in ((4, 3), (4, 4), (4, 1)))
    x, h = rng.standard_normal((6, 3)), np.zeros(4)
    states = []
    for x_t in x:
        a = {gate: W[gate] @ x_t + b[gate][:, 0] for gate in "zrh"}
        z, r = (1 / (1 + np.exp(-(a[gate] + U[gate] @ h))) for gate in "zr")
        h = (1 - z) * h + z * np.tanh(a["h"] + U["h"] @ (r * h))
        states.append(h)
    gates = {f"{kind}_{gate}": a for kind, own in (("W", W), ("U", U), ("b", b)) for gate, a in own.items()}
    gru = fastrnn.from_gates(**gates, reset_after=False, update="write")
    assert_close({"y": gru(x)[0]}, {"y": np.array(states)})


W, U = np.ones((4, 3)), np.ones((4, 4))
GRU_GATES = {"Wr": W, "Wz": W, "Wh": W, "Ur": U, "Uz": U, "Uh": U}


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({}, "expected names like Wi"),
        ({"V": W, "W": W, "U": U}, "got V"),
        ({"Wi": W, "Wz": W}, "not of one cell"),
        ({"Wi": W, "Wf": W, "Wo": W, "Ui": U}, "W: expected one array for each gate"),
        (GRU_GATES | {"Wn": W, "reset_after": True}, "Wn: gate n is already given"),
        (GRU_GATES | {"reset_after": True, "update": "flip"}, "update: expected"),
        (GRU_GATES | {"reset_after": True, "activation": "relu"}, r"activation: expected None \(only for a"),
        (GRU_GATES | {"reset_after": True, "Wr": W[:3]}, "W: expected one shape and dtype"),
        (GRU_GATES | {"reset_after": True, "Wr": W.astype(np.float32)}, "W: expected one shape and dtype"),
        ({"W": W, "U": U, "reset_after": True}, r"reset_after: expected None \(only for a GRU"),
        ({"W": W, "U": U, "update": "write"}, r"update: expected None \(only for a GRU"),
        ({"W": W, "U": U, "p": W[0]}, "p: expected none; check h"),
        ({"U": U, "b_rec": U[0]}, "expected W and U, got U, b_rec"),
        (GRU_GATES | {"reset_after": True, "b_rec_n": U[0, :3]}, "b_rec: expected one shape and dtype"),
        (GRU_GATES | {"reset_after": True, "b_rec_n": U[0], "b_r": U[0, :3]}, "^b: expected one shape and dtype"),
        (GRU_GATES | {"reset_after": True, "b_rec_n": U[0].astype(np.float32)}, "b_rec: expected one shape and dtype"),
        (
            GRU_GATES | {"reset_after": True, "Ur": U[0, 0], "b_n": U[0]},
            "expected one shape and dtype|U: expected shape",
        ),
        (GRU_GATES | {"reset_after": True, "b_n": U[0, :3]}, "b: expected one shape and dtype"),
        (
            {f"{key}{gate}": a for key, a in (("W", W), ("U", U)) for gate in "ifco"} | {"pi": W[:, 0]},
            "p: expected one array for",
        ),
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


def test_from_gates_asks_which_gru() -> None:
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
def test_a_state_dict_that_does_not_fit(
    change: dict[str, Any], cell: Any, error: type[Exception], message: str
) -> None:
    state = fastrnn.LSTM(3, 4, 2, rng=0).state_dict() | change
    with pytest.raises(error, match=message):
        fastrnn.from_torch({name: a for name, a in state.items() if a is not None}, cell=cell)


# --- files of ours


@pytest.mark.parametrize("seed", MANY)
def test_saved_and_loaded(seed: int, tmp_path: Path) -> None:
    net = drawn(seed)
    fastrnn.save(tmp_path / "layer", net)
    back = fastrnn.load(tmp_path / "layer")
    assert settings(back) == settings(net)
    assert_same_bits(back.parameters(), net.parameters())
    x = given(net)
    assert_same_bits(named(*back(x)), named(*net(x)))


def test_saved_and_loaded_bfloat16(tmp_path: Path) -> None:
    net = fastrnn.LSTM(3, 4, weight_dtype="bfloat16", rng=0)
    fastrnn.save(tmp_path / "layer", net)
    back = fastrnn.load(tmp_path / "layer")
    assert settings(back) == settings(net)
    assert_same_bits(back.parameters(), net.parameters())


def test_saved_and_loaded_model(tmp_path: Path) -> None:
    path, model = str(tmp_path / "model.safetensors"), small()
    fastrnn.save(path, model)
    tensors, description = weight_files.read("path", path)
    model.save(path)
    again = weight_files.read("path", path)
    assert_same_bits(again[0], tensors)
    assert again[1] == description
    back = fastrnn.load(path)
    assert repr(back) == repr(model)
    assert_same_bits(back.parameters(), model.parameters())
    other = small()
    other.layers[2].weight[...] = 0
    other.load_weights(path)  # the weights alone, into a model that is there
    assert_same_bits(other.parameters(), model.parameters())


def test_save_refuses_what_it_could_not_load(tmp_path: Path) -> None:
    class Mine(fastrnn.LSTM):
        pass

    class LSTM(fastrnn.LSTM):
        """Its name does not make it fastrnn's."""

    model = fastrnn.Sequential([Mine(3, 4)])
    for layer in (Mine(3, 4), LSTM(3, 4), model, "LSTM"):
        with pytest.raises(TypeError, match=r"^layer: expected one of fastrnn's RNN, .*, got .*(Mine|LSTM|str)$"):
            fastrnn.save(tmp_path / "layer", layer)
    with pytest.raises(TypeError, match=r"^layer: expected one of fastrnn's .*Mine$"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
    model.save_weights(tmp_path / "weights")  # any layer has these
    model.load_weights(tmp_path / "weights")


def test_what_is_described_can_be_made() -> None:
    assert DESCRIPTIONS.keys() == BUILDERS.keys()


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]


def rewritten(path: Path, change: Change, layer: Any = None) -> Path:
    """A saved layer with something of its metadata, or of its tensors, changed."""
    safetensors = pytest.importorskip("safetensors.numpy")
    fastrnn.save(path, layer or fastrnn.LSTM(3, 4, 2, rng=0))
    tensors = safetensors.load_file(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    metadata = json.loads(header["__metadata__"]["fastrnn"])
    text = change(metadata, tensors)
    safetensors.save_file(tensors, path, {"fastrnn": text if isinstance(text, str) else json.dumps(metadata)})
    return path


def option(name: str, value: Any) -> Change:
    return lambda metadata, tensors: metadata["model"].update({name: value})


def without(name: str) -> Change:
    return lambda metadata, tensors: [metadata["model"].pop(name)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.update(version=2), "format version 2, expected 1"),
        (lambda m, t: m.update(version="1"), "without a format version"),
        (lambda m, t: m.pop("version"), "without a format version"),
        (lambda m, t: m.pop("model"), "holds only weights"),
        (lambda m, t: m.update(model=[]), r"expected a class among .* got \[\]"),
        (lambda m, t: "{", "not JSON"),
        (lambda m, t: "[" * 100_000, "not JSON"),
        (lambda m, t: "[]", "without a format version"),
        (lambda m, t: t.pop("bias_hh_l1"), "missing 'bias_hh_l1'"),
        (lambda m, t: t.update(weight_ih_l2=t["weight_ih_l1"].copy()), "unexpected 'weight_ih_l2'"),
        (lambda m, t: t.update(bias_hh_l1=t["bias_hh_l1"][:3]), r"bias_hh_l1: expected shape \(16,\)"),
        (lambda m, t: t.update(bias_hh_l1=t["bias_hh_l1"].astype(np.float64)), "bias_hh_l1: expected dtype float32"),
        (without("merge"), "missing 'merge'"),
        (option("proj_size", 3), "missing 'weight_hr_l0'"),
        (option("projection", 3), "unexpected 'projection'"),
        (option("class", "os.system"), "expected a class among"),
        (option("class", ["LSTM"]), "expected a class among"),
        (option("class", "GRU"), "GRU: cell: expected one of GRU, got 'lstm'"),
        (option("cell", []), "cell: expected one of LSTM"),
        (option("gates", "iofg"), "gates: expected 'ifgo', got 'iofg'"),
        (option("num_layers", 10**12), "num_layers is 1000000000000"),
        (option("num_layers", 1), "unexpected"),
        (option("num_layers", True), "num_layers: expected a positive integer"),
        (option("hidden_size", 10**6), "expected shape"),
        (option("hidden_size", 10**18), "hidden_size: .* more than memory can hold"),
        (option("hidden_size", -4), "hidden_size: expected a positive integer"),
        (option("input_size", 3.0), "input_size: expected a positive integer"),
        (option("bidirectional", True), "missing .*_reverse"),
        (option("bidirectional", "no"), "bidirectional: expected True or False"),
        (option("bias", "output"), "bias: expected"),
        (option("dropout", float("nan")), "dropout: expected"),
        (option("merge", ["concat"]), "merge: expected"),
        (option("weight_dtype", {}), "weight_dtype: expected"),
        (option("dtype", [["f", "<f4"]]), "dtype: expected a string"),
        (option("dtype", "object"), "dtype: expected float32 or float64"),
        (option("dtype", "float64"), "expected dtype float64"),
    ],
)
def test_load_refuses(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.load(rewritten(tmp_path / "layer", change))


def spec_of(i: int, **changes: Any) -> Change:
    return lambda metadata, tensors: metadata["model"]["layers"][i].update(changes)


def nested(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    # As deep as 3.11 reads JSON. From 3.12 on a comprehension is no call of its own, and it takes more to be too deep.
    depth = 400 if sys.version_info < (3, 12) else 900
    inside = '{"class": "Sequential", "layers": [' * depth
    return f'{{"version": 1, "model": {inside}{"]}" * depth}}}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nested, "nested too deeply"),
        (lambda m, t: m["model"].update(layers=3), "layers: expected a list, got 3"),
        (lambda m, t: m["model"].update(layers=[]), "layers: expected at least one"),
        (lambda m, t: m["model"]["layers"].pop(), "tensor"),
        (lambda m, t: t.update(x=np.ones(1)), "unexpected 'x'"),
        (lambda m, t: t.update({"3.x": np.ones(1)}), "unexpected 'x'"),
        (lambda m, t: t.update({"9.x": np.ones(1)}), "unexpected '9.x'"),
        (lambda m, t: t.pop("2.weight"), "missing 'weight'"),
        (spec_of(0, num_embeddings=10**15), "weight: expected shape"),
        (spec_of(0, padding_idx=5), "padding_idx: expected an integer in"),
        (spec_of(1, layers=[None]), "expected a class among"),
        (spec_of(2, output_size=10**15), "weight: expected shape"),
        (spec_of(2, activation=[]), "activation: expected"),
        (spec_of(2, bias=1), "bias: expected"),
        (spec_of(2, bias=True), "missing 'bias'"),
        (spec_of(2, rate=1), "unexpected 'rate'"),
        (spec_of(3, activation="exec"), "activation: expected"),
    ],
)
def test_load_refuses_a_model(change: Change, message: str, tmp_path: Path) -> None:
    if message == "tensor":  # a layer without parameters is one that nothing tells of
        assert len(fastrnn.load(rewritten(tmp_path / "model", change, small()))) == 3
        return
    with pytest.raises(ValueError, match=message):
        fastrnn.load(rewritten(tmp_path / "model", change, small()))


@pytest.mark.parametrize("seed", range(200))
def test_load_survives_anything(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Something in the metadata is replaced by something else: a model comes back, or it is a ValueError."""
    rng = np.random.default_rng([29, seed])
    junk = [None, True, -1, 0, 2, 1e308, 10**30, "", "LSTM", "float64", [], {}, [[]], {"class": "LSTM"}, float("inf")]

    def change(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        spec = metadata["model"]["layers"][rng.integers(4)]
        spec[str(rng.choice(list(spec)))] = junk[rng.integers(len(junk))]

    path = rewritten(tmp_path_factory.getbasetemp() / "fuzzed", change, small())
    with contextlib.suppress(ValueError):
        assert isinstance(fastrnn.load(path), fastrnn.Sequential)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F64"])
def test_load_refuses_other_tensors(dtype: str, tmp_path: Path) -> None:
    """bfloat16, and an array without elements that claims to be large."""
    entry = {"dtype": dtype, "shape": [0, 10**18] if dtype == "F64" else [8], "data_offsets": [0, 0]}
    entry |= {"data_offsets": [0, 16 if dtype == "BF16" else 8]} if dtype != "F64" else {}
    spec = {"class": "Dense", "input_size": 10**18, "output_size": 1, "activation": None, "bias": False}
    metadata = {"version": 1, "model": spec | {"dtype": "float64"}}
    header = json.dumps({"__metadata__": {"fastrnn": json.dumps(metadata)}, "weight": entry}).encode()
    path = tmp_path / "layer"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(entry["data_offsets"][1]))
    with pytest.raises(ValueError, match=str(path)):
        fastrnn.load(path)


def test_load_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastrnn.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("weights")
    with pytest.raises(ValueError, match="not a safetensors file"):
        fastrnn.load(tmp_path / "text")
    small().save_weights(tmp_path / "weights")
    with pytest.raises(ValueError, match="holds only weights"):
        fastrnn.load(tmp_path / "weights")


# --- files of Keras', without Keras


def unpacked(name: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{name}.h5"
    path.write_bytes(gzip.decompress((DATA / f"keras_{name}.h5.gz").read_bytes()))
    return path


@pytest.mark.parametrize("name", ["sequential", "functional"])
def test_from_keras_files(name: str, h5py: Any, tmp_path: Path) -> None:
    known = np.load(DATA / "keras_models.npz")
    new, old = fastrnn.from_keras(DATA / f"keras_{name}.keras"), fastrnn.from_keras(str(unpacked(name, tmp_path)))
    assert repr(new) == repr(old)
    assert_same_bits(new.parameters(), old.parameters())
    assert_close({"y": new.predict(known[f"{name}/x"])}, {"y": known[f"{name}/y"]}, 1e-6)


def test_what_keras_files_become(h5py: Any) -> None:
    model = fastrnn.from_keras(DATA / "keras_sequential.keras")
    assert [type(layer).__name__ for layer in model] == (
        ["Embedding", "LSTM", "GRU", "GRU", "RNN", "Dropout", "Dense", "Activation"]
    )
    lstm, after, before, rnn = model.layers[1:5]
    assert (lstm.bias, lstm.merge, lstm.bidirectional, lstm.batch_first) == ("input", "average", True, True)
    assert (after.bias, before.bias, rnn.bias, model.layers[5].rate) == (True, "input", False, 0.25)
    assert [net.stack.cell.name for net in (after, before, rnn)] == ["gru_after", "gru_before", "rnn_relu"]


def test_from_keras_files_without_names(h5py: Any, tmp_path: Path) -> None:
    """Older files say no layer's name, but number the layers of a class: here the first GRU is called gru_1."""
    path = tmp_path / "older.keras"
    with zipfile.ZipFile(DATA / "keras_sequential.keras") as old, zipfile.ZipFile(path, "w") as new:
        (tmp_path / "weights").write_bytes(old.read("model.weights.h5"))
        with h5py.File(tmp_path / "weights", "r+") as file:
            for group in file["layers"].values():
                del group["vars"].attrs["name"]
        new.writestr("config.json", old.read("config.json"))
        new.writestr("model.weights.h5", (tmp_path / "weights").read_bytes())
    now = fastrnn.from_keras(DATA / "keras_sequential.keras")
    assert_same_bits(fastrnn.from_keras(path).parameters(), now.parameters())


def keras_2(h5py: Any, path: Path, functional: bool = False, **changes: Any) -> np.ndarray:
    """A file as Keras 2 wrote it, of a GRU and a Dense; the GRU's kernel."""
    rng = np.random.default_rng(0)
    gru = {"name": "gru", "trainable": True, "dtype": "float32", "units": 2, "activation": "tanh", "time_major": False}
    gru |= {"return_sequences": True, "use_bias": True, "reset_after": True, "recurrent_activation": "sigmoid"}
    inputs = {"name": "input", "batch_input_shape": [None, None, 3], "dtype": "float32", "sparse": False}
    layers = [
        {"class_name": "InputLayer", "config": inputs, "name": "input", "inbound_nodes": []},
        {"class_name": "GRU", "config": gru | changes, "name": "gru", "inbound_nodes": [[["input", 0, 0, {}]]]},
        {
            "class_name": "Dense",
            "config": {"name": "dense", "units": 1, "activation": "linear", "use_bias": False},
            "name": "dense",
            "inbound_nodes": [[["gru", 0, 0, {}]]],
        },
    ]
    config: dict[str, Any] = {"name": "model", "layers": layers}
    if functional:
        config |= {"input_layers": [["input", 0, 0]], "output_layers": [["dense", 0, 0]]}
    weights = {
        "gru/gru_cell/kernel:0": (3, 6),
        "gru/gru_cell/recurrent_kernel:0": (2, 6),
        "gru/gru_cell/bias:0": (2, 6),
    }
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Model" if functional else "Sequential", "config": config}
        )
        root = file.create_group("model_weights")
        for name, shapes in {"gru": weights, "dense": {"dense/kernel:0": (2, 1)}, "input": {}}.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [key.encode() for key in shapes]
            for key, shape in shapes.items():
                group[key] = rng.standard_normal(shape).astype(np.float32)
        return np.asarray(root["gru/gru/gru_cell/kernel:0"])


def test_a_gru_from_before_reset_after(h5py: Any, tmp_path: Path) -> None:
    """Keras 2.0 reset before, and had no word for it."""
    path = tmp_path / "model.h5"
    keras_2(h5py, path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        del config["config"]["layers"][1]["config"]["reset_after"]
        file.attrs["model_config"] = json.dumps(config)
        group = file["model_weights/gru"]
        del group["gru/gru_cell/bias:0"]
        group["gru/gru_cell/bias:0"] = np.ones(6, np.float32)
    gru, _ = fastrnn.from_keras(path)
    assert "gru_before" in repr(gru)


@pytest.mark.parametrize("functional", [False, True])
def test_from_keras_2_files(functional: bool, h5py: Any, tmp_path: Path) -> None:
    kernel = keras_2(h5py, tmp_path / "model.h5", functional)
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file["optimizer_weights/iteration:0"] = 7  # which nobody asks for
    gru, dense = fastrnn.from_keras(tmp_path / "model.h5")
    z, r, h = np.split(kernel, 3, axis=1)
    assert (gru.parameters()["weight_ih_l0"] == np.hstack([r, z, h]).T).all()
    assert dense.bias is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation": "gelu"},
            r"layer 'gru' \(GRU\): activation: expected 'tanh' or .*, got 'gelu'; use fastrnn.cell",
        ),
        ({"recurrent_activation": "mish"}, "recurrent_activation: expected 'tanh' or .*, got 'mish'; use fastrnn.cell"),
        ({"recurrent_activation": {"class_name": "LeakyReLU"}}, "recurrent_activation: expected 'tanh' or .*, got {"),
        ({"go_backwards": True}, r"go_backwards: expected False, got True; use lstm_forward\(..., reverse=True\)"),
        ({"stateful": True}, "stateful: True is not supported"),
        ({"time_major": True}, "time_major: True is not supported"),
        ({"recurrent_dropout": 0.5}, "recurrent_dropout: expected 0, got 0.5; inference=True"),
        ({"kernel_regularizer": {"class_name": "L2"}}, "kernel_regularizer: expected None"),
        ({"trainable": 0}, "trainable: expected True or False, got 0"),
        ({"dtype": "mixed_float16"}, "dtype: expected 'float32' or 'float64', got 'mixed_float16'"),
        ({"dtype": {"config": {"name": "bfloat16"}}}, "dtype: expected 'float32' or 'float64', got 'bfloat16'"),
        ({"reset_after": False}, r"bias: expected shape \(6,\), got \(2, 6\)"),
        ({"reset_after": 1}, "reset_after: expected True or False, got 1"),
        ({"units": 3}, "kernel: expected shape"),
        ({"units": 10**18}, "kernel: expected shape"),
        ({"units": "many"}, "units: expected a positive integer"),
        ({"use_bias": False}, "expected kernel, recurrent_kernel, got 3 arrays"),
        ({"something_new": "on"}, "something_new: 'on' is not supported"),
    ],
)
def test_from_keras_refuses(changes: dict[str, Any], message: str, h5py: Any, tmp_path: Path) -> None:
    keras_2(h5py, tmp_path / "model.h5", **changes)
    with pytest.raises(ValueError, match=message):
        fastrnn.from_keras(tmp_path / "model.h5")


#: what says which Keras wrote a file -> slope of its hard_sigmoid
SLOPES: dict[Any, float] = {None: 0.2, np.bytes_(b"1.2.2"): 0.2, "2.2.4-tf": 0.2, "2.15.0": 0.2, "3.0.0": 1 / 6}


@pytest.mark.parametrize("version", SLOPES)
def test_hard_sigmoid_is_that_of_the_keras_that_wrote_it(version: Any, h5py: Any, tmp_path: Path) -> None:
    keras_2(h5py, tmp_path / "model.h5", recurrent_activation="hard_sigmoid", activation="swish")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        if version is not None:
            file.attrs["keras_version"] = version
        arrays = [np.float64(file[f"model_weights/gru/gru/gru_cell/{a}:0"]) for a in ("kernel", "recurrent_kernel")]
        b, b_rec = np.float64(file["model_weights/gru/gru/gru_cell/bias:0"])
    gru, _ = fastrnn.from_keras(tmp_path / "model.h5")
    x = np.random.default_rng(1).standard_normal((3, 5, 3)).astype(np.float32)
    expected, h = [], np.zeros((3, 2))
    for x_t in x.swapaxes(0, 1):
        a, u = (np.split(v, 3, axis=1) for v in (x_t @ arrays[0] + b, h @ arrays[1] + b_rec))
        z, r = (np.clip(SLOPES[version] * (a[k] + u[k]) + 0.5, 0, 1) for k in (0, 1))
        n = a[2] + r * u[2]
        h = z * h + (1 - z) * n / (1 + np.exp(-n))
        expected.append(h)
    assert_close({"y": gru(x)[0]}, {"y": np.stack(expected, axis=1)}, 1e-6)


def test_layers_of_other_activations_are_saved(h5py: Any, tmp_path: Path) -> None:
    """The error of `load` says what to write, and other activations are another cell."""
    keras_2(h5py, tmp_path / "model.h5", recurrent_activation="hard_sigmoid", activation="swish")
    gru, _ = fastrnn.from_keras(tmp_path / "model.h5")
    path, x = tmp_path / "ours.safetensors", np.ones((3, 5, 3), np.float32)
    fastrnn.save(path, gru)
    call = "gru_with(gate='hard_sigmoid_keras2', candidate='silu', reset_after=True)"
    for cell in ((), gru_with(gate="hard_sigmoid", candidate="silu", reset_after=True)):
        with pytest.raises(ValueError, match=re.escape(f"; pass it: load(path, cell={call})")):
            fastrnn.load(path, cell=cell)
    same = eval(call, {"gru_with": gru_with})
    other = gru_with(gate="hard_sigmoid_keras2", candidate="silu", reset_after=True)
    anew = fastrnn.Recurrent(other, 3, 2, bias=True, batch_first=True, return_sequences=True)
    anew.load_state_dict(gru.state_dict())
    for again in (fastrnn.load(path, cell=same), pickle.loads(pickle.dumps(gru)), anew):
        assert again.stack.cell is gru.stack.cell
        assert_same_bits({"y": again(x)[0]}, {"y": gru(x)[0]})


@pytest.mark.parametrize(("metadata", "name"), [({"keras_version": "2.15.0"}, "_keras2"), ({}, ""), (None, "")])
def test_hard_sigmoid_in_a_keras_file(metadata: Any, name: str, keras_2_files: Path) -> None:
    """Inside of what wraps it, too."""
    with zipfile.ZipFile(keras_2_files / "of_cells.keras") as old, zipfile.ZipFile(keras_2_files / "new", "w") as new:
        config = old.read("config.json").replace(b'"sigmoid"', b'"hard_sigmoid"')
        new.writestr("config.json", config)
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
        if metadata is not None:
            new.writestr("metadata.json", json.dumps(metadata))
    cells = [layer.stack.cell.name for layer in fastrnn.from_keras(keras_2_files / "new")]
    gate = f"gate='hard_sigmoid{name}'"
    lstm, grus = f"lstm_with({gate})", [f"gru_with({gate}, reset_after={after})" for after in (True, False)]
    assert cells == [lstm, grus[0], lstm, grus[1], "rnn_tanh"]


def test_from_keras_for_inference(h5py: Any, tmp_path: Path) -> None:
    training = {"recurrent_dropout": 0.5, "kernel_regularizer": {"class_name": "L2"}, "trainable": False}
    kernel = keras_2(h5py, tmp_path / "model.h5", **training)
    gru, _ = fastrnn.from_keras(tmp_path / "model.h5", inference=True)
    assert gru.parameters()["weight_ih_l0"].shape == kernel.T.shape


#: what Keras 2 wrote -> what has to be left out of it, and the lengths that stand for its mask
KERAS_2: dict[str, tuple[dict[str, bool], list[int] | None]] = {
    **dict.fromkeys(("version_1", "nested", "nested_functional", "nested_frozen", "of_cells"), ({}, None)),
    **dict.fromkeys(("cudnn_lstm", "cudnn_gru"), ({}, None)),
    "plain": ({"inference": True}, None),
    "masking": ({"lengths": True}, [4, 6]),
    "mask_zero": ({"lengths": True}, [3, 6]),
    "stateful": ({"state": True}, None),
}


@pytest.fixture
def keras_2_files(h5py: Any, tmp_path: Path) -> Path:
    with zipfile.ZipFile(DATA / "keras_2_models.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("name", KERAS_2)
def test_what_keras_2_wrote(name: str, suffix: str, keras_2_files: Path) -> None:
    known, (options, lengths) = np.load(keras_2_files / "known.npz"), KERAS_2[name]
    model = fastrnn.from_keras(keras_2_files / f"{name}{suffix}", **options)
    y = model.predict(known[f"{name}/x"], lengths=lengths)
    assert_close({"y": y}, {"y": known[f"{name}/y"]}, 1e-6)
    assert (len(model.trainable_parameters()) < len(model.parameters())) == (name == "nested_frozen")


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", r"layer 'spatial_dropout1d' \(SpatialDropout1D\): not supported; inference=True drops"),
        ("masking", r"layer 'masking' \(Masking\): not supported; lengths=True drops it; pass"),
        ("mask_zero", r"\(Embedding\): mask_zero: True is not supported; lengths=True drops it"),
        ("stateful", r"\(LSTM\): stateful: True is not supported; state=True drops it; pass state="),
    ],
)
def test_what_keras_2_wrote_is_refused(name: str, message: str, suffix: str, keras_2_files: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fastrnn.from_keras(keras_2_files / f"{name}{suffix}")


def test_nothing_of_keras_2_is_there_in_vain(keras_2_files: Path) -> None:
    assert {path.stem for path in keras_2_files.iterdir()} == {"known", *KERAS_2}


def places(value: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """Where something stands in what JSON holds, all of it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from places(inner, *before, key)


@pytest.mark.parametrize("seed", range(200))
def test_from_keras_survives_anything(seed: int, keras_2_files: Path, h5py: Any) -> None:
    """Something in the configuration is replaced by something else: a model comes back, or it is a ValueError."""
    rng = np.random.default_rng([31, seed])
    junk = [None, True, -1, 0, 2, 1e308, "", "LSTM", "Masking", [], {}, [[]], {"class_name": "LSTM"}, {"config": 1}]
    path = keras_2_files / f"{sorted(KERAS_2)[seed % len(KERAS_2)]}.h5"
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        found = [place for place in places(config) if not str(place[-1]).endswith("initializer")]
        *way, last = found[rng.integers(len(found))]
        functools.reduce(operator.getitem, way, config)[last] = junk[rng.integers(len(junk))]
        file.attrs["model_config"] = json.dumps(config)
    with contextlib.suppress(ValueError):
        assert isinstance(fastrnn.from_keras(path, inference=True, lengths=True, state=True), fastrnn.Sequential)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_one_layer_of_a_model(suffix: str, keras_2_files: Path) -> None:
    """Wherever it stands, and whatever stands beside it."""
    path = keras_2_files / f"nested{suffix}"
    layers = {"lstm": fastrnn.LSTM, "dense": fastrnn.Dense, "gru": fastrnn.GRU, "dense_1": fastrnn.Dense}
    for (name, kind), whole in zip(layers.items(), fastrnn.from_keras(path), strict=True):
        one = fastrnn.from_keras(path, layer=name)
        assert type(one) is kind
        assert_same_bits(one.parameters(), whole.parameters())
    assert isinstance(fastrnn.from_keras(keras_2_files / f"plain{suffix}", layer="bidirectional"), fastrnn.GRU)
    assert len(fastrnn.from_keras(keras_2_files / f"of_cells{suffix}", layer="rnn_1")) == 3
    for name in ("inner", "nothing"):
        with pytest.raises(ValueError, match=f"layer: expected the name of one layer, got '{name}', which matches 0"):
            fastrnn.from_keras(path, layer=name)
    with pytest.raises(TypeError, match="layer: expected the name of a layer, got 3"):
        fastrnn.from_keras(path, layer=3)


def test_from_keras_reads_nothing_but_the_file(h5py: Any, tmp_path: Path) -> None:
    """A link to another file, and an array that is declared and not stored."""
    path, kernel = tmp_path / "model.h5", "model_weights/gru/gru/gru_cell/kernel:0"
    keras_2(h5py, tmp_path / "other.h5")
    for link in (h5py.ExternalLink(str(tmp_path / "other.h5"), kernel), h5py.SoftLink("/model_weights/dense")):
        keras_2(h5py, path)
        with h5py.File(path, "r+") as file:
            del file[kernel]
            file[kernel] = link
        with pytest.raises(ValueError, match="is a link"):
            fastrnn.from_keras(path)
    keras_2(h5py, path)
    with h5py.File(path, "r+") as file:
        del file[kernel]
        file.create_dataset(kernel, (10**9, 6), "f4", chunks=(1000, 6))
    with pytest.raises(ValueError, match="not stored"):
        fastrnn.from_keras(path)


def test_from_keras_names_what_hdf5_cannot_read(h5py: Any, tmp_path: Path) -> None:
    """A type of numbers that NumPy does not have, and a name that is no text."""
    path, kernel = tmp_path / "model.h5", "model_weights/gru/gru/gru_cell/kernel:0"
    keras_2(h5py, path)
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(2**20)
    with h5py.File(path, "r+") as file:
        shape = file[kernel].shape
        del file[kernel]
        h5py.h5d.create(file.id, kernel.encode(), kind, h5py.h5s.create_simple(shape)).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.ones(shape, np.float32), h5py.h5t.IEEE_F32LE
        )
    with pytest.raises(ValueError, match=f"^path: /{kernel}: "):
        fastrnn.from_keras(path)
    keras_2(h5py, path)
    with h5py.File(path, "r+") as file:
        file["model_weights/gru"].attrs["weight_names"] = [b"gru/\xff"]
    with pytest.raises(ValueError, match=r"^path: .*model\.h5 is not a Keras model file \(Unicode"):
        fastrnn.from_keras(path)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_from_keras_does_not_blow_up(name: str, h5py: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    packed = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(DATA / "keras_sequential.keras") as old, zipfile.ZipFile(path, "w", packed) as new:
        for member in ("config.json", "model.weights.h5"):
            new.writestr(member, old.read(member) + (b" " * 10**7 if member == name else b""))
    with pytest.raises(ValueError, match=f"path: {name} expands from [0-9]+ to 100[0-9]+ bytes"):
        fastrnn.from_keras(path)


@pytest.mark.parametrize("place", ["layers", "layers/lstm", "layers/dense/vars"])
def test_from_keras_finds_groups_where_it_looks_for_them(place: str, h5py: Any, tmp_path: Path) -> None:
    """`in` an array looks through all of it, which may claim to be large."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(DATA / "keras_functional.keras") as old, zipfile.ZipFile(path, "w") as new:
        (tmp_path / "weights").write_bytes(old.read("model.weights.h5"))
        with h5py.File(tmp_path / "weights", "r+") as file:
            if place in file:
                del file[place]
            file.create_dataset(place, (10**9, 6), "f4", chunks=(1000, 6))
        new.writestr("config.json", old.read("config.json"))
        new.writestr("model.weights.h5", (tmp_path / "weights").read_bytes())
    with pytest.raises(ValueError, match=f"path: {place} is an array of shape .*, expected a group"):
        fastrnn.from_keras(path)


@pytest.mark.parametrize("place", ["model_weights", "model_weights/gru"])
def test_from_keras_2_finds_groups_where_it_looks_for_them(place: str, h5py: Any, tmp_path: Path) -> None:
    keras_2(h5py, tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        del file[place]
        file.create_dataset(place, (10**9, 6), "f4", chunks=(1000, 6))
    with pytest.raises(ValueError, match=f"path: {place} is an array of shape .*, expected a group"):
        fastrnn.from_keras(tmp_path / "model.h5")


def test_from_keras_refuses_other_files(h5py: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastrnn.from_keras(tmp_path / "nothing.keras")
    (tmp_path / "text").write_text("a model")
    with pytest.raises(ValueError, match="not a Keras model file"):
        fastrnn.from_keras(tmp_path / "text")
    for config in (b"{", b"[]", b"{}", b'{"class_name": "Sequential", "config": {"layers": [3]}}', b"[" * 100_000):
        with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
            archive.writestr("config.json", config)
            archive.writestr(
                "model.weights.h5", zipfile.ZipFile(DATA / "keras_sequential.keras").read("model.weights.h5")
            )
        with pytest.raises(ValueError, match="not a Keras model file"):
            fastrnn.from_keras(tmp_path / "zip")
    with h5py.File(tmp_path / "weights.h5", "w"):
        pass
    with pytest.raises(ValueError, match="does not hold a model"):
        fastrnn.from_keras(tmp_path / "weights.h5")
    with pytest.raises(TypeError, match="expected a path, or a Keras model"):
        fastrnn.from_keras(3)


def test_an_extra_brings_what_it_is_said_to_bring() -> None:
    """Every `needed(module, extra)`: the extra in pyproject.toml has the module's package."""
    root = Path(__file__).parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {"sklearn": "scikit-learn", "google": "onnx"}  # protobuf comes with onnx
    said = set()
    for file in (root / "fastrnn").rglob("*.py"):
        for module, extra in re.findall(r'needed\(f?"([^"]+)", "([^"]+)"\)', file.read_text()):
            package = module.partition(".")[0]
            said.add((packages.get(package, package), extra))
    assert {"h5py", "keras", "torch", "onnx", "jax", "safetensors"} <= {package for package, _ in said}
    assert said <= {(re.match(r"[\w-]+", one)[0], extra) for extra, wanted in extras.items() for one in wanted}
    assert {"keras", "torch"} <= {re.match(r"[\w-]+", one)[0] for one in extras["keras"]}  # as fastrnn.keras says


NO_KERAS = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed, and is what would be missing")


@pytest.mark.parametrize("module", ["keras", pytest.param("torch", marks=NO_KERAS)])
def test_what_is_not_installed(module: str, python: Python, tmp_path: Path) -> None:
    """What the message says to install is the extra that has it; what is broken says so itself."""
    code = f"import sys; sys.modules['{module}'] = None; import fastrnn; "
    done = python("-c", code + "import fastrnn.keras", KERAS_BACKEND="torch")
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: fastrnn.keras needs Keras 3 on PyTorch: {module} is not installed; "
        "pip install 'fastrnn[keras]', and set KERAS_BACKEND=torch"
    )
    done = python("-c", code + f"fastrnn.to_{module}(fastrnn.LSTM(3, 4))")
    expected = f"ImportError: {module} is not installed; pip install 'fastrnn[{module}]' brings it"
    assert done.stderr.splitlines()[-1] == expected
    package = tmp_path / module
    package.mkdir()
    (package / "__init__.py").write_text("import something_else")
    code = f"import sys; sys.path.insert(0, '{tmp_path}'); import fastrnn; "
    done = python("-c", code + f"fastrnn.to_{module}(fastrnn.LSTM(3, 4))")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'something_else'"


def test_import_is_light(python: Python, tmp_path: Path) -> None:
    """No framework comes with fastrnn, and it takes at most 60 ms more than NumPy (bytecode, best of five)."""
    code = "import time, numpy; t = time.process_time(); import fastrnn; print(time.process_time() - t)"
    cached = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    assert min(float(python("-c", code, **cached).stdout) for _ in range(6)) < 0.060
    loaded = python("-c", "import sys, fastrnn; print(*sys.modules)").stdout.split()
    assert not {"torch", "onnx", "onnxruntime", "jax", "keras", "h5py", "safetensors", "tensorflow"} & set(loaded)
