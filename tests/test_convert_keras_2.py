"""Files that Keras 2 wrote, read without Keras, intact and damaged."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_close, assert_same_bits

import fastrnn

DATA = Path(__file__).with_name("data")


#: file of Keras 2 -> layers to leave out, and the lengths that replace its mask
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


@pytest.mark.parametrize(("metadata", "name"), [({"keras_version": "2.15.0"}, "_keras2"), ({}, ""), (None, "")])
def test_hard_sigmoid_of_keras_2(metadata: Any, name: str, keras_2_files: Path) -> None:
    """Also inside wrappers."""
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


def test_every_keras_2_fixture_is_used(keras_2_files: Path) -> None:
    assert {path.stem for path in keras_2_files.iterdir()} == {"known", *KERAS_2}


def places(value: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """Yield every container and key in parsed JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from places(inner, *before, key)


@pytest.mark.parametrize("seed", range(200))
def test_from_keras_survives_anything(seed: int, keras_2_files: Path, h5py: Any) -> None:
    """After a random replacement in the configuration, from_keras returns a model or raises ValueError."""
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
    """A single layer can be converted from any place in any model."""
    path = keras_2_files / f"nested{suffix}"
    layers = {"lstm": fastrnn.LSTM, "dense": fastrnn.Dense, "gru": fastrnn.GRU, "dense_1": fastrnn.Dense}
    for (name, kind), whole in zip(layers.items(), fastrnn.from_keras(path), strict=True):
        one = fastrnn.from_keras(path, layer=name)
        assert type(one) is kind
        assert_same_bits(one.parameters(), whole.parameters())
    assert isinstance(fastrnn.from_keras(keras_2_files / f"plain{suffix}", layer="bidirectional"), fastrnn.GRU)
    assert len(fastrnn.from_keras(keras_2_files / f"of_cells{suffix}", layer="rnn_1")) == 3
    for name in ("inner", "nothing"):
        with pytest.raises(ValueError, match=f"layer: expected one of .*'lstm'.*, got '{name}', which matches 0"):
            fastrnn.from_keras(path, layer=name)
    with pytest.raises(TypeError, match="layer: expected the name of a layer, got 3"):
        fastrnn.from_keras(path, layer=3)
