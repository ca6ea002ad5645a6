"""Keras' files, read without Keras."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.catalogue import gru_with

DATA = Path(__file__).with_name("data")


def unpacked(name: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{name}.h5"
    path.write_bytes(gzip.decompress((DATA / f"keras_{name}.h5.gz").read_bytes()))
    return path


def with_weights(h5py: Any, name: str, tmp_path: Path, change: Callable[[Any], None]) -> Path:
    """Return a copy of a stored model, with changes in its file of weights."""
    path, weights = tmp_path / "changed.keras", tmp_path / "weights"
    with zipfile.ZipFile(DATA / f"keras_{name}.keras") as old, zipfile.ZipFile(path, "w") as new:
        weights.write_bytes(old.read("model.weights.h5"))
        with h5py.File(weights, "r+") as file:
            change(file)
        new.writestr("config.json", old.read("config.json"))
        new.writestr("model.weights.h5", weights.read_bytes())
    return path


@pytest.mark.parametrize("name", ["sequential", "functional"])
def test_from_keras_files(name: str, h5py: Any, tmp_path: Path) -> None:
    known = np.load(DATA / "keras_models.npz")
    new, old = fastrnn.from_keras(DATA / f"keras_{name}.keras"), fastrnn.from_keras(str(unpacked(name, tmp_path)))
    assert repr(new) == repr(old)
    assert_same_bits(new.parameters(), old.parameters())
    assert_close({"y": new.predict(known[f"{name}/x"])}, {"y": known[f"{name}/y"]}, 1e-6)


def test_layers_from_keras_files(h5py: Any) -> None:
    model = fastrnn.from_keras(DATA / "keras_sequential.keras")
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Embedding", "LSTM", "GRU", "GRU", "RNN", "Dropout", "Dense", "Activation"]
    lstm, after, before, rnn = model.layers[1:5]
    assert (lstm.bias, lstm.merge, lstm.bidirectional, lstm.batch_first) == ("input", "average", True, True)
    assert (after.bias, before.bias, rnn.bias, model.layers[5].rate) == (True, "input", False, 0.25)
    assert [net.stack.cell.name for net in (after, before, rnn)] == ["gru_after", "gru_before", "rnn_relu"]


def test_from_keras_files_without_names(h5py: Any, tmp_path: Path) -> None:
    """Older files have no names of layers and number the layers of a class: here the first GRU is called gru_1."""

    def change(file: Any) -> None:
        for group in file["layers"].values():
            del group["vars"].attrs["name"]

    path = with_weights(h5py, "sequential", tmp_path, change)
    now = fastrnn.from_keras(DATA / "keras_sequential.keras")
    assert_same_bits(fastrnn.from_keras(path).parameters(), now.parameters())


def keras_2(h5py: Any, path: Path, functional: bool = False, **changes: Any) -> np.ndarray:
    """Write a file of a GRU and a Dense like Keras 2; return the GRU's kernel."""
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
        kind = "Model" if functional else "Sequential"
        file.attrs["model_config"] = json.dumps({"class_name": kind, "config": config})
        root = file.create_group("model_weights")
        for name, shapes in {"gru": weights, "dense": {"dense/kernel:0": (2, 1)}, "input": {}}.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [key.encode() for key in shapes]
            for key, shape in shapes.items():
                group[key] = rng.standard_normal(shape).astype(np.float32)
        return np.asarray(root["gru/gru/gru_cell/kernel:0"])


def test_a_gru_from_before_reset_after(h5py: Any, tmp_path: Path) -> None:
    """Keras 2.0 always reset before the product and had no option for it."""
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
        file["optimizer_weights/iteration:0"] = 7  # an extra file that is not read
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


#: version of Keras in a file -> slope of its hard_sigmoid
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
    """The error of `load` names the call to write; other activations make another cell."""
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


def test_from_keras_for_inference(h5py: Any, tmp_path: Path) -> None:
    training = {"recurrent_dropout": 0.5, "kernel_regularizer": {"class_name": "L2"}, "trainable": False}
    kernel = keras_2(h5py, tmp_path / "model.h5", **training)
    gru, _ = fastrnn.from_keras(tmp_path / "model.h5", inference=True)
    assert gru.parameters()["weight_ih_l0"].shape == kernel.T.shape


def test_from_keras_reads_nothing_but_the_file(h5py: Any, tmp_path: Path) -> None:
    """A link to another file, and an array that is declared but not stored."""
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
    """A number type that NumPy lacks, and a name that is not text."""
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
def test_from_keras_rejects_decompression_bombs(name: str, h5py: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    packed = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(DATA / "keras_sequential.keras") as old, zipfile.ZipFile(path, "w", packed) as new:
        for member in ("config.json", "model.weights.h5"):
            new.writestr(member, old.read(member) + (b" " * 10**7 if member == name else b""))
    with pytest.raises(ValueError, match=f"path: {name} expands from [0-9]+ to 100[0-9]+ bytes"):
        fastrnn.from_keras(path)


@pytest.mark.parametrize("place", ["layers", "layers/lstm", "layers/dense/vars"])
def test_from_keras_checks_for_groups(place: str, h5py: Any, tmp_path: Path) -> None:
    """`in` on an array would read all of it, which may claim to be large."""

    def change(file: Any) -> None:
        if place in file:
            del file[place]
        file.create_dataset(place, (10**9, 6), "f4", chunks=(1000, 6))

    path = with_weights(h5py, "functional", tmp_path, change)
    with pytest.raises(ValueError, match=f"path: {place} is an array of shape .*, expected a group"):
        fastrnn.from_keras(path)


@pytest.mark.parametrize("place", ["model_weights", "model_weights/gru"])
def test_from_keras_2_checks_for_groups(place: str, h5py: Any, tmp_path: Path) -> None:
    keras_2(h5py, tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        del file[place]
        file.create_dataset(place, (10**9, 6), "f4", chunks=(1000, 6))
    with pytest.raises(ValueError, match=f"path: {place} is an array of shape .*, expected a group"):
        fastrnn.from_keras(tmp_path / "model.h5")


def test_from_keras_refuses_other_files(h5py: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^path: .*: file not found$"):
        fastrnn.from_keras(tmp_path / "nothing.keras")
    (tmp_path / "text").write_text("a model")
    with pytest.raises(ValueError, match="not a Keras model file"):
        fastrnn.from_keras(tmp_path / "text")
    weights = zipfile.ZipFile(DATA / "keras_sequential.keras").read("model.weights.h5")
    for config in (b"{", b"[]", b"{}", b'{"class_name": "Sequential", "config": {"layers": [3]}}', b"[" * 100_000):
        with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
            archive.writestr("config.json", config)
            archive.writestr("model.weights.h5", weights)
        with pytest.raises(ValueError, match="not a Keras model file"):
            fastrnn.from_keras(tmp_path / "zip")
    with h5py.File(tmp_path / "weights.h5", "w"):
        pass
    with pytest.raises(ValueError, match="does not hold a model"):
        fastrnn.from_keras(tmp_path / "weights.h5")
    with pytest.raises(TypeError, match="expected a path, or a Keras model"):
        fastrnn.from_keras(3)
