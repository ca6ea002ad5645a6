"""Assignment of a Keras file's weights to layers: files made here with h5py in the form of each version."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_same_bits

import fastrnn

H = 3

Weights = list[np.ndarray]


def lstm_weights(seed: int) -> Weights:
    rng = np.random.default_rng([40, seed])
    return [rng.standard_normal(shape, np.float32) for shape in ((H, 4 * H), (H, 4 * H), (4 * H,))]


def lstm(name: str) -> dict[str, Any]:
    config = {"name": name, "units": H, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    return {"module": "keras.layers", "class_name": "LSTM", "config": config | {"return_sequences": True}}


def spread(name: str, inner: dict[str, Any]) -> dict[str, Any]:
    """A layer applied at every step."""
    config = {"name": name, "layer": inner}
    return {"module": "keras.layers", "class_name": "TimeDistributed", "config": config}


def dense(name: str) -> dict[str, Any]:
    config = {"name": name, "units": H, "activation": "linear", "use_bias": False}
    return {"module": "keras.layers", "class_name": "Dense", "config": config}


def keras_file(h5py: Any, path: Path, layers: list[Any], groups: dict[str, Weights], root: str = "layers") -> Path:
    """Write a `.keras` file: weights by the path of their group; a layer's name follows a colon."""
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        for title, arrays in groups.items():
            group, _, name = title.partition(":")
            own = file.create_group(f"{root}/{group}/vars")
            own.attrs.update({"name": name.partition(":")[0]} if name else {})
            inner = file.create_group(f"{root}/{group}/{'layer' if 'distributed' in group else 'cell'}/vars")
            for i, a in enumerate(arrays):
                inner.create_dataset(str(i), data=a)
    model = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", stored.getvalue())
    return path


def expect_weights(layer: Any, seed: int) -> None:
    kernel, recurrent_kernel, bias = lstm_weights(seed)
    got = {name: layer.parameters()[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")}
    assert_same_bits(got, dict(zip(got, (kernel.T, recurrent_kernel.T, bias), strict=True)))


@pytest.mark.parametrize("root", ["layers", "_layer_checkpoint_dependencies"])
@pytest.mark.parametrize("numbers", [("", "_1", "_2"), ("", "_2", "_4"), ("", "_2", "_10"), ("_1", "_3", "_5")])
def test_groups_are_paired_in_order(numbers: tuple[str, ...], root: str, h5py: Any, tmp_path: Path) -> None:
    """TensorFlow 2.13 counts by two; ten follows two, in spite of the alphabet."""
    groups = {f"lstm{number}": lstm_weights(i) for i, number in enumerate(numbers)}
    path = keras_file(h5py, tmp_path / "model.keras", [lstm(name) for name in "abc"], groups, root)
    for i, name in enumerate("abc"):
        expect_weights(fastrnn.from_keras(path, layer=name), i)
    for i, layer in enumerate(fastrnn.from_keras(path)):
        expect_weights(layer, i)


@pytest.mark.parametrize("numbers", [("", "_2"), ("_2",), ("", "_1", "_2", "_3")])
def test_a_wrong_number_of_groups_raises_an_error(numbers: tuple[str, ...], h5py: Any, tmp_path: Path) -> None:
    groups = {f"lstm{number}": lstm_weights(i) for i, number in enumerate(numbers)}
    path = keras_file(h5py, tmp_path / "model.keras", [lstm(name) for name in "abc"], groups)
    for name in (*"abc", None):
        message = r"\(LSTM\): the file has weights in lstm.*, but the model has 3 layers of"
        with pytest.raises(ValueError, match=message):
            fastrnn.from_keras(path, layer=name)


def test_layers_without_weights_may_have_no_group(h5py: Any, tmp_path: Path) -> None:
    kernels = [np.random.default_rng(seed).standard_normal((H, H), np.float32) for seed in (0, 1)]
    nothing = {"module": "keras.layers", "class_name": "Activation", "config": {"name": "inner", "activation": "tanh"}}
    layers = [spread("a", dense("first")), spread("b", nothing), spread("c", dense("second"))]
    groups = {"time_distributed": [kernels[0]], "time_distributed_3": [kernels[1]]}
    for own in (groups, groups | {"time_distributed_2": []}):
        path = keras_file(h5py, tmp_path / "model.keras", layers, own)
        first, _, second = fastrnn.from_keras(path)
        assert_same_bits({"0": first.weight, "1": second.weight}, {"0": kernels[0].T, "1": kernels[1].T})


def test_names_in_the_file_precede_numbers(h5py: Any, tmp_path: Path) -> None:
    groups = {"lstm:c": lstm_weights(2), "lstm_1:a": lstm_weights(0), "lstm_2:b": lstm_weights(1)}
    path = keras_file(h5py, tmp_path / "model.keras", [lstm(name) for name in "abc"], groups)
    for i, name in enumerate("abc"):
        expect_weights(fastrnn.from_keras(path, layer=name), i)


def test_cells_may_share_a_name(h5py: Any, tmp_path: Path) -> None:
    """Names of layers are unique; names of cells are not."""
    cells = [{"class_name": "LSTMCell", "config": lstm("same")["config"]} for _ in range(3)]
    stack = {"class_name": "StackedRNNCells", "config": {"name": "stack", "cells": cells}}
    rnn = {"class_name": "RNN", "config": {"name": "rnn", "cell": stack, "return_sequences": True}}
    path = keras_file(h5py, tmp_path / "model.keras", [rnn], {})
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        for i, number in enumerate(("", "_1", "_2")):
            own = file.create_group(f"layers/rnn/cell/cells/lstm_cell{number}/vars")
            own.attrs["name"] = "same"
            for k, a in enumerate(lstm_weights(i)):
                own.create_dataset(str(k), data=a)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", stored.getvalue())
    for i, layer in enumerate(fastrnn.from_keras(path)):
        expect_weights(layer, i)
