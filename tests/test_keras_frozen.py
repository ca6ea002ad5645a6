"""Keras models with frozen weights, which an `.h5` file stores after the other weights of their layer.

Nearly every layer maps (B, T, 3) to (B, T, 3), so shapes do not tell which layer weights belong to.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.keras_layers import assert_predicts, randomized
from support.tolerance import assert_same_bits

import fastrnn

# Keras and its backends warn on import; Keras writes files with h5py.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("h5py")]

H = 3


def both(k: Any, kind: str = "LSTM", **options: Any) -> Any:
    return k.Bidirectional(getattr(k, kind)(H, return_sequences=True, **options), merge_mode="sum")


def lstm(k: Any, **options: Any) -> Any:
    return k.LSTM(H, return_sequences=True, **options)


def two_ways(cell: str = "LSTM", **options: Any) -> Any:
    return getattr(fastrnn, cell)(H, H, bidirectional=True, merge="sum", **options)


def sequential(keras: Any, *layers: Any, built: bool = True, **options: Any) -> Any:
    return keras.Sequential([keras.Input((None, H)), *layers] if built else layers, **options)


def freeze(*parts: Any) -> None:
    for part in parts:
        part.trainable = False


def nested_functional(keras: Any) -> Any:
    k = keras.layers
    x, layers = keras.Input((None, H)), [lstm(k), lstm(k)]
    inner = keras.Model(x, layers[1](layers[0](x)))
    z = keras.Input((None, H))
    model = keras.Model(z, lstm(k)(inner(z)))
    freeze(layers[0])
    return model


def nested_and_trained_again(keras: Any) -> Any:
    """A frozen model with an unfrozen layer: the file has the weights in order."""
    k = keras.layers
    inner = sequential(keras, lstm(k), lstm(k))
    model = sequential(keras, inner)
    freeze(inner)
    inner.layers[1].trainable = True
    return model


def from_the_start(k: Any) -> Any:
    """Frozen before it had weights, with a backward layer that has its own name."""
    other = lstm(k, go_backwards=True, name="other")
    return k.Bidirectional(lstm(k, trainable=False), backward_layer=other, merge_mode="sum")


def cells(k: Any, n: int) -> Any:
    return k.RNN([k.LSTMCell(H) for _ in range(n)], return_sequences=True)


#: name -> a model of S, the function `sequential`, and of Keras' layers; and what is frozen of its layers
MODELS: dict[str, tuple[Callable[..., Any], Callable[..., list[Any]]]] = {
    "forward": (lambda S, k: S(both(k)), lambda m: [m[0].forward_layer]),
    "backward": (lambda S, k: S(both(k, "GRU", name="forward_gru")), lambda m: [m[0].backward_layer]),
    "forward from the start": (lambda S, k: S(from_the_start(k)), lambda m: []),
    "forward of a model named so": (lambda S, k: S(both(k), name="forward_model"), lambda m: [m[0].forward_layer]),
    # each weight separately, which no configuration shows
    "forward weights": (lambda S, k: S(both(k)), lambda m: m[0].forward_layer.weights),
    "kernel": (lambda S, k: S(lstm(k, use_bias=False)), lambda m: [m[0].cell.kernel]),
    "kernel of a direction": (lambda S, k: S(both(k, use_bias=False)), lambda m: [m[0].forward_layer.cell.kernel]),
    "gamma": (lambda S, k: S(k.LayerNormalization()), lambda m: [m[0].gamma]),
    "spread": (lambda S, k: S(k.TimeDistributed(k.Dense(H)), lstm(k)), lambda m: [m[0].layer]),
    "cells": (lambda S, k: S(cells(k, 3)), lambda m: [m[0].cell.cells[0]]),
    "weights of a cell": (lambda S, k: S(cells(k, 3)), lambda m: m[0].cell.cells[1].weights),
    "nested": (lambda S, k: S(S(lstm(k), lstm(k), lstm(k)), lstm(k)), lambda m: [m[0].layers[0]]),
    "nested from the start": (lambda S, k: S(S(lstm(k, trainable=False), lstm(k), built=False)), lambda m: []),
    "nested twice": (
        lambda S, k: S(S(lstm(k), S(lstm(k), lstm(k)), lstm(k))),
        lambda m: [m[0].layers[0], m[0].layers[1].layers[1]],
    ),
    "nested cells": (lambda S, k: S(S(cells(k, 2), lstm(k))), lambda m: [m[0].layers[0].cell.cells[0]]),
    "nested weights of a direction": (
        lambda S, k: S(S(lstm(k), both(k), lstm(k))),
        lambda m: m[0].layers[1].forward_layer.weights,
    ),
}
OTHERS = {"nested functional": nested_functional, "nested and trained again": nested_and_trained_again}

#: models with only one frozen direction, which our layers do not support; all others are converted whole
ONE_WAY = ("forward", "backward", "forward from the start", "forward of a model named so")

#: a model with a layer that fastrnn supports, to read its weights
OURS: dict[str, Callable[[], list[Any]]] = {
    **dict.fromkeys((*ONE_WAY, "forward weights"), lambda: [two_ways()]),
    "backward": lambda: [two_ways("GRU", reset_after=True)],
    "kernel": lambda: [fastrnn.LSTM(H, H, bias=False)],
    "kernel of a direction": lambda: [two_ways(bias=False)],
    "gamma": lambda: [fastrnn.LayerNormalization(H, 1e-3)],
    "spread": lambda: [fastrnn.Dense(H, H), fastrnn.LSTM(H, H)],
}


def frozen(keras: Any, name: str) -> Any:
    """Return a model with frozen and random weights."""
    if name in OTHERS:
        return randomized(OTHERS[name](keras))
    make, parts = MODELS[name]
    model = make(functools.partial(sequential, keras), keras.layers)
    freeze(*parts(model.layers))
    return randomized(model)


every = pytest.mark.parametrize("name", [*MODELS, *OTHERS])

X = np.random.default_rng(5).standard_normal((2, 6, H)).astype(np.float32)


@every
@pytest.mark.parametrize("suffix", [None, ".h5", ".keras"])
def test_whole_models(name: str, suffix: str | None, keras: Any, tmp_path: Path) -> None:
    """Without a suffix: the in-memory model."""
    model = frozen(keras, name)
    source = model if suffix is None else tmp_path / f"m{suffix}"
    if suffix:
        model.save(source)
    if name in ONE_WAY:
        with pytest.raises(ValueError, match="trainable: expected the same for both directions, got only one frozen"):
            fastrnn.from_keras(source)
    else:
        assert_predicts(fastrnn.from_keras(source), model, X)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("file", ["m.h5", "m.keras", "m.weights.h5"])
def test_weights_alone(name: str, file: str, keras: Any, tmp_path: Path) -> None:
    model = frozen(keras, name)
    (model.save_weights if "weights" in file else model.save)(tmp_path / file)
    ours = fastrnn.Sequential(OURS[name]())
    ours.load_keras_weights(tmp_path / file)
    assert_predicts(ours, model, X)


def as_keras_2(config: Any) -> Any:
    """Return the configuration in Keras 2's form: a Bidirectional has its copied layer's configuration twice."""
    if isinstance(config, dict):
        kept = {key: as_keras_2(value) for key, value in config.items() if key not in ("backward_layer", "trainable")}
        return kept | ({"trainable": True} if "trainable" in config else {})
    return [as_keras_2(one) for one in config] if isinstance(config, list) else config


@every
def test_configurations_without_the_information(name: str, keras: Any, h5py: Any, tmp_path: Path) -> None:
    model = frozen(keras, name)
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        file.attrs["model_config"] = json.dumps(as_keras_2(json.loads(file.attrs["model_config"])))
    assert_predicts(fastrnn.from_keras(tmp_path / "m.h5"), model, X)


@pytest.mark.parametrize("name", ONE_WAY)
def test_one_layer_of_a_file_of_weights(name: str, keras: Any, h5py: Any, tmp_path: Path) -> None:
    """From a file of Keras 2's `save_weights`, which is like a group in Keras 3's `.h5`."""
    model = frozen(keras, name)
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as whole, h5py.File(tmp_path / "w.h5", "w") as file:
        for key, group in whole["model_weights"].items():
            whole.copy(group, file, key)
        file.attrs.update(whole["model_weights"].attrs)
    cell = "gru_after" if name == "backward" else "lstm"
    got, (W, U, b, *others) = fastrnn.from_keras(tmp_path / "w.h5", cell=cell), model.get_weights()
    G = 3 if cell == "gru_after" else 4
    order = [1, 0, 2] if G == 3 else range(G)
    expected = {
        f"weight_{part}_l0{way}": np.concatenate([np.split(a.T, G)[i] for i in order])
        for way, (W, U, b) in {"": (W, U, b), "_reverse": others}.items()
        for part, a in (("ih", W), ("hh", U))
    }
    assert_same_bits({key: got.parameters()[key] for key in expected}, expected)


def test_one_layer_with_a_frozen_direction(keras: Any, tmp_path: Path) -> None:
    """The file lists all weights of the inner model together."""
    k = keras.layers
    inner = sequential(keras, lstm(k, name="first"), both(k), lstm(k, name="last"))
    model = randomized(sequential(keras, inner))
    freeze(inner.layers[0], inner.layers[1].forward_layer)
    model.save(tmp_path / "m.h5")
    for layer in (inner.layers[0], inner.layers[2]):
        got = fastrnn.from_keras(tmp_path / "m.h5", layer=layer.name).parameters()
        assert_same_bits(got, fastrnn.from_keras(layer).parameters())


@pytest.mark.parametrize(
    "names", [["x/W", "x/U", "x/b"], ["lstm/lstm_1/kernel", "lstm/lstm_1/recurrent_kernel", "lstm/lstm_1/bias"]]
)
def test_ambiguous_names(names: list[str], keras: Any, h5py: Any, tmp_path: Path) -> None:
    """Weights are then in the model's order if all or none are trained; otherwise an error is raised."""
    k = keras.layers
    for frozen in (0, 2, 1):
        inner = sequential(keras, lstm(k, name="lstm"), lstm(k, name="lstm_1"))
        model = randomized(sequential(keras, inner))
        freeze(*inner.layers[:frozen])
        path = tmp_path / f"{frozen}.h5"
        model.save(path)
        with h5py.File(path, "r+") as file:
            group = file[f"model_weights/{inner.name}"]
            renamed = [f"{i}/{name}" for i in range(2) for name in names]
            for old, new in zip(group.attrs["weight_names"], renamed, strict=True):
                group[new] = group[old][()]
            group.attrs["weight_names"] = [name.encode() for name in renamed]
        if frozen == 1:
            message = r"\(Sequential\): trainable: expected all of it frozen or nothing, because names"
            with pytest.raises(ValueError, match=message):
                fastrnn.from_keras(path)
        else:
            assert_predicts(fastrnn.from_keras(path), model, X)


@pytest.mark.parametrize("slashes", [False, True])
def test_directions_by_the_names_of_keras_1(slashes: bool, h5py: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = {
        f"{way}_lstm_1{'/' if slashes else '_'}{key}": rng.standard_normal(shape).astype(np.float32)
        for way in ("backward", "forward")
        for key, shape in (("W", (H, 4 * H)), ("U", (H, 4 * H)), ("b", (4 * H,)))
    }
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = [b"both"]
        group = file.create_group("both")
        group.attrs["weight_names"] = [name.encode() for name in arrays]
        for name, a in arrays.items():
            group[name] = a
    got = fastrnn.from_keras(tmp_path / "m.h5", cell="lstm").parameters()
    first, second = (arrays[f"{way}_lstm_1{'/' if slashes else '_'}W"].T for way in ("forward", "backward"))
    assert_same_bits(
        {key: got[key] for key in ("weight_ih_l0", "weight_ih_l0_reverse")},
        {"weight_ih_l0": first, "weight_ih_l0_reverse": second},
    )
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        names = [f"forward_{i}/{key}" for i in range(2) for key in "WUb"]
        for old, new in zip(arrays, names, strict=True):
            file["both"][new] = arrays[old]
        file["both"].attrs["weight_names"] = [name.encode() for name in names]
    message = r"layer 'both': expected half of its weights in 'forward_\.\.\.', got forward_0/W"
    with pytest.raises(ValueError, match=message):
        fastrnn.from_keras(tmp_path / "m.h5", cell="lstm")
