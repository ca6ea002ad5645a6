"""fastrnn's own files: saved and loaded bit for bit; damaged files raise an error."""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, drawn, given, settings, small
from support.stacks import named
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.convert.files import BUILDERS
from fastrnn.training import weight_files
from fastrnn.training.weight_files import OPTIONS


@pytest.mark.parametrize("seed", [*MANY, "bfloat16"])
def test_saved_and_loaded(seed: Any, tmp_path: Path) -> None:
    net = drawn(seed) if seed in MANY else fastrnn.LSTM(3, 4, weight_dtype=seed, rng=0)
    fastrnn.save(tmp_path / "layer", net)
    back = fastrnn.load(tmp_path / "layer")
    assert settings(back) == settings(net)
    assert_same_bits(back.parameters(), net.parameters())
    x = given(net)
    assert_same_bits(named(*back(x)), named(*net(x)))


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
    other.load_weights(path)  # only the weights, into an existing model
    assert_same_bits(other.parameters(), model.parameters())


def test_save_rejects_unknown_classes(tmp_path: Path) -> None:
    class Mine(fastrnn.LSTM):
        pass

    class LSTM(fastrnn.LSTM):
        """Its name alone does not make it fastrnn's."""

    model = fastrnn.Sequential([Mine(3, 4)])
    for layer in (Mine(3, 4), LSTM(3, 4), model, "LSTM"):
        with pytest.raises(TypeError, match=r"^layer: expected one of fastrnn's RNN, .*, got .*(Mine|LSTM|str)$"):
            fastrnn.save(tmp_path / "layer", layer)
    with pytest.raises(TypeError, match=r"^layer: expected one of fastrnn's .*Mine$"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
    model.save_weights(tmp_path / "weights")  # every layer has these
    model.load_weights(tmp_path / "weights")


def test_every_description_has_a_builder() -> None:
    assert OPTIONS.keys() == BUILDERS.keys()


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]


def rewritten(path: Path, change: Change, layer: Any = None) -> Path:
    """Return a saved layer with changed metadata or tensors."""
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
    if message == "tensor":  # nothing else in the file describes a layer without parameters
        assert len(fastrnn.load(rewritten(tmp_path / "model", change, small()))) == 3
        return
    with pytest.raises(ValueError, match=message):
        fastrnn.load(rewritten(tmp_path / "model", change, small()))


@pytest.mark.parametrize("seed", range(200))
def test_load_survives_random_metadata(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """After a random replacement in the metadata, load returns a model or raises ValueError."""
    rng = np.random.default_rng([29, seed])
    junk = [None, True, -1, 0, 2, 1e308, 10**30, "", "LSTM", "float64", [], {}, [[]], {"class": "LSTM"}, float("inf")]

    def change(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        spec = metadata["model"]["layers"][rng.integers(4)]
        spec[str(rng.choice(list(spec)))] = junk[rng.integers(len(junk))]

    path = rewritten(tmp_path_factory.getbasetemp() / "fuzzed", change, small())
    with contextlib.suppress(ValueError):
        assert isinstance(fastrnn.load(path), fastrnn.Sequential)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F64"])
def test_load_rejects_other_tensors(dtype: str, tmp_path: Path) -> None:
    """bfloat16, and an empty array whose shape claims to be large."""
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
