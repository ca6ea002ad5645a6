"""Keras' weights-only files: `load_keras_weights`, and `from_keras` with a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.keras_layers import assert_predicts, randomized
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn import GRU, LSTM, RNN, Dense, Embedding, LayerNormalization, Sequential

pytestmark = pytest.mark.usefixtures("h5py")

live = pytest.mark.filterwarnings("ignore")  # Keras and its backends issue some on import


def drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return 0.5 * np.random.default_rng([60, seed]).standard_normal(shape, np.float32)


def pair_of_models(keras: Any) -> tuple[Any, Sequential]:
    k = keras.layers
    both = k.Bidirectional(k.GRU(4, return_sequences=True), name="both")
    theirs = keras.Sequential(
        [
            keras.Input((None,)),
            k.Embedding(7, 3),
            k.LSTM(4, return_sequences=True, name="below", dropout=0.5),
            k.LSTM(4, return_sequences=True, name="above"),
            k.Dropout(0.5),
            both,
            k.TimeDistributed(k.Dense(3, activation="tanh")),
            k.LayerNormalization(),
            k.SimpleRNN(3, use_bias=False),
            k.Dense(2),
        ]
    )
    gru, rnn = GRU(4, 4, reset_after=True, bidirectional=True), RNN(3, 3, bias=False, return_sequences=False)
    inner = Sequential([Dense(8, 3, "tanh"), LayerNormalization(3, 1e-3)])
    return randomized(theirs), Sequential([Embedding(7, 3), LSTM(3, 4, 2), gru, inner, rnn, Dense(3, 2)])


@live
@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras", "m.h5"])
def test_a_whole_model(name: str, keras: Any, tmp_path: Path) -> None:
    theirs, ours = pair_of_models(keras)
    (theirs.save_weights if "weights" in name else theirs.save)(tmp_path / name)
    x = np.random.default_rng(0).integers(0, 7, (2, 5))
    y = ours.predict(x)
    ours.load_keras_weights(tmp_path / name)
    assert_predicts(ours, theirs, x)
    assert not np.allclose(y, ours.predict(x))


@live
def test_one_layer_by_name(keras: Any, tmp_path: Path) -> None:
    """By its name in the model, or that of its group in the file."""
    theirs, _ = pair_of_models(keras)
    theirs.save_weights(tmp_path / "m.weights.h5")
    for layer, cell, own in (
        ("below", "lstm", "below"),
        ("above", "lstm", "above"),
        ("lstm_1", "lstm", "above"),
        ("both", "gru_after", "both"),
        ("simple_rnn", "rnn_tanh", "simple_rnn"),
    ):
        got = fastrnn.from_keras(tmp_path / "m.weights.h5", cell=cell, layer=layer)
        theirs_own = next(one for one in theirs.layers if own in (one.name, one.name.rpartition("_")[0]))
        expected = fastrnn.from_keras(theirs_own, inference=True)
        assert (got.batch_first, got.return_sequences, got.bidirectional) == (True, True, expected.bidirectional)
        assert_same_bits(got.parameters(), expected.parameters())
    assert fastrnn.from_keras(tmp_path / "m.weights.h5", cell="gru_after").bidirectional  # the only group
    for cell, layer, message in (
        ("lstm", None, r"layer: expected one of .*below.*, got None, which matches 2"),
        ("lstm", "nobody", r"layer: expected one of .*, got 'nobody', which matches 0"),
        ("gru_after", "below", r"layer 'below': expected kernel \(I, 3\*H\), recurrent_kernel \(H, 3\*H\), bias, got"),
        ("gru_before", "both", r"\(GRU\): bias: expected shape \(12,\), got \(2, 12\)"),
        ("lstm", "embedding", r"layer 'embedding': expected kernel"),
        ("LSTM", "below", "cell: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            fastrnn.from_keras(tmp_path / "m.weights.h5", cell=cell, layer=layer)
    theirs.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"cell: expected None, because .*m\.keras describes its layers"):
        fastrnn.from_keras(tmp_path / "m.keras", cell="lstm")
    with pytest.raises(TypeError, match="cell: needs the path of a weights file, got Sequential"):
        fastrnn.from_keras(theirs, cell="lstm")
    with pytest.raises(ValueError, match=r"does not hold a model; .* load_keras_weights\(path\) of a Sequential"):
        fastrnn.from_keras(tmp_path / "m.weights.h5")


def written(h5py: Any, path: Path, *layers: tuple[str, list[np.ndarray]]) -> Path:
    """Write weights like Keras 1 and 2: layers in order, with the names of their arrays."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name, _ in layers]
        for name, arrays in layers:
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{i}:0".encode() for i in range(len(arrays))]
            for i, a in enumerate(arrays):
                group[f"{name}/{i}:0"] = a
    return path


def of_cell(I: int, H: int, G: int, seed: int, *bias: int) -> list[np.ndarray]:
    return [drawn((I, G * H), seed), drawn((H, G * H), seed + 1), drawn(bias or (G * H,), seed + 2)]


def by_gate(arrays: list[np.ndarray], gates: str, order: str) -> list[np.ndarray]:
    """Split arrays of all gates into three arrays per gate, as in Keras 1."""
    split = [dict(zip(gates, np.split(a, len(gates), axis=-1), strict=True)) for a in arrays]
    return [one[gate] for gate in order for one in split]


@pytest.mark.parametrize("keras_1", [False, True])
def test_older_files(keras_1: bool, h5py: Any, tmp_path: Path) -> None:
    lstm, gru, dense = of_cell(3, 4, 4, 0), of_cell(4, 5, 3, 10), [drawn((5, 2), 20), drawn((2,), 21)]
    path = written(
        h5py,
        tmp_path / "m.h5",
        ("embedding_1", [drawn((7, 3), 30)]),
        ("z_lstm", by_gate(lstm, "ifco", "icfo") if keras_1 else lstm),
        ("dropout_1", []),
        ("a_gru", by_gate(gru, "zrh", "zrh") if keras_1 else gru),
        ("dense_1", dense),
    )
    model = Sequential([Embedding(7, 3), LSTM(3, 4), GRU(4, 5, reset_after=False, bias="input"), Dense(5, 2)])
    model.load_keras_weights(path)
    z, r, h = (gate.T for gate in np.split(gru[0], 3, axis=1))
    zb, rb, hb = np.split(gru[2], 3)
    expected = {
        "0.weight": drawn((7, 3), 30),
        "1.weight_ih_l0": lstm[0].T,
        "1.weight_hh_l0": lstm[1].T,
        "1.bias_ih_l0": lstm[2],
        "1.bias_hh_l0": np.zeros(16, np.float32),
        "2.weight_ih_l0": np.concatenate([r, z, h]),
        "2.bias_ih_l0": np.concatenate([rb, zb, hb]),
        "3.weight": dense[0].T,
        "3.bias": dense[1],
    }
    got = model.parameters()
    assert got.keys() == expected.keys() | {"2.weight_hh_l0"}
    assert_same_bits({name: got[name] for name in expected}, {n: np.ascontiguousarray(a) for n, a in expected.items()})
    for name, cell, i in (("z_lstm", "lstm", 1), ("a_gru", "gru_before", 2)):
        one = fastrnn.from_keras(path, cell=cell, layer=name).parameters()
        assert_same_bits(one, {key: got[f"{i}.{key}"] for key in one})


def test_cudnn_layers(h5py: Any, tmp_path: Path) -> None:
    """Their matrices have another layout, and they have two biases."""
    I, H = 3, 4
    plain = of_cell(I, H, 4, 0)
    kernel = np.hstack([gate.T.reshape(I, H) for gate in np.split(plain[0], 4, axis=1)])
    recurrent = np.hstack([gate.T for gate in np.split(plain[1], 4, axis=1)])
    both = np.concatenate([plain[2] - 1, np.ones(16, np.float32)])
    path = written(h5py, tmp_path / "m.h5", ("cu_dnnlstm_1", [kernel, recurrent, both]))
    model = Sequential([LSTM(I, H, bias="input")])
    model.load_keras_weights(path)
    got = model.parameters()
    assert np.array_equal(got["0.weight_ih_l0"], plain[0].T)
    assert np.array_equal(got["0.weight_hh_l0"], plain[1].T)
    assert np.allclose(got["0.bias_ih_l0"], plain[2], atol=1e-6)


ONE = r"layer 0 \(LSTM\): layer 'one' \(LSTM\): "


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([LSTM(3, 4)], r"expected weights of 1 layers, layer 0 \(LSTM\), got those of one, two"),
        ([LSTM(3, 4, 3)], "expected weights of 3 layers"),
        ([LSTM(3, 5), LSTM(5, 4)], rf"{ONE}kernel: expected"),
        ([LSTM(3, 4, bias=False), LSTM(4, 4)], rf"{ONE}expected kernel, recurrent_kernel, got 3 arrays"),
        ([LSTM(3, 4), GRU(4, 4, reset_after=True)], r"layer 1 \(GRU\): layer 'two' \(GRU\): ker"),
        ([LSTM(3, 4), LSTM(4, 4, bidirectional=True)], "expected weights of two directions, got"),
        ([LSTM(3, 4), Dense(4, 4)], r"layer 1 \(Dense\): expected arrays of shapes"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(layers: Any, message: str, h5py: Any, tmp_path: Path) -> None:
    path = written(h5py, tmp_path / "m.h5", ("one", of_cell(3, 4, 4, 0)), ("two", of_cell(4, 4, 4, 5)))
    model = Sequential(layers)
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        model.load_keras_weights(path)
    assert_same_bits(model.parameters(), before)


def test_layers_that_have_no_counterpart(h5py: Any, tmp_path: Path) -> None:
    path = written(h5py, tmp_path / "m.h5", ("one", of_cell(3, 4, 4, 0)))
    for layer in (LSTM(3, 4, peephole=True), LSTM(3, 4, proj_size=2)):
        with pytest.raises(TypeError, match=r"layer 0 \(LSTM\): expected a layer that Keras has, got LSTM"):
            Sequential([layer]).load_keras_weights(path)


@live
def test_ambiguous_order_of_layers(keras: Any, tmp_path: Path) -> None:
    """Weights that shapes do not tell apart raise an error, and so do unused weights."""
    k, path = keras.layers, tmp_path / "m.weights.h5"
    for width in (2, 3):
        stack = [k.TimeDistributed(k.Dense(3)), k.LSTM(3), k.Dense(width)]
        randomized(keras.Sequential([keras.Input((None, 3)), *stack])).save_weights(path)
        last = LSTM(3, 3, return_sequences=False)
        ours = Sequential([Dense(3, 3), last, Dense(3, width)])
        if width == 2:
            ours.load_keras_weights(path)
    with pytest.raises(ValueError, match=r"the order of the layers dense, time_distributed is ambiguous"):
        ours.load_keras_weights(path)
    for extra, place in ((k.BatchNormalization(), "batch_normalization"), (k.Conv1D(4, 1), "conv1d")):
        randomized(keras.Sequential([keras.Input((5, 4)), extra, k.LSTM(3)])).save_weights(path)
        with pytest.raises(ValueError, match=f"found weights of {place}, which match no layer"):
            Sequential([LSTM(4, 3)]).load_keras_weights(path)
    randomized(keras.Sequential([keras.Input((5, 4)), k.GRU(3)])).save_weights(path)
    with pytest.raises(ValueError, match=r"expected weights of lstm or cu_dnnlstm for layer 0 \(LSTM\), got none"):
        Sequential([LSTM(4, 3)]).load_keras_weights(path)
    with pytest.raises(ValueError, match=r"layer 0 \(GRU\): expected bias=True, because gru\w* has two biases"):
        Sequential([GRU(4, 3, reset_after=True, bias="input")]).load_keras_weights(path)


@live
def test_models_inside_a_model(keras: Any, tmp_path: Path) -> None:
    k, path = keras.layers, tmp_path / "m.weights.h5"
    inner = keras.Sequential([k.LSTM(2, return_sequences=True), k.LSTM(4, return_sequences=True)])
    theirs = randomized(keras.Sequential([keras.Input((None, 3)), inner, k.LSTM(5), k.Dense(2)]))
    theirs.save_weights(path)
    layers = [LSTM(3, 2), LSTM(2, 4), LSTM(4, 5, return_sequences=False), Dense(5, 2)]
    ours = Sequential(layers)
    ours.load_keras_weights(path)
    assert_predicts(ours, theirs, drawn((2, 6, 3), 1))


def test_files_of_something_else(h5py: Any, tmp_path: Path) -> None:
    model = Sequential([LSTM(3, 4)])
    (tmp_path / "text").write_text("weights")
    with pytest.raises(ValueError, match=r"path: .*text is not a Keras weights file"):
        model.load_keras_weights(tmp_path / "text")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.ones(3)
    with pytest.raises(ValueError, match="path: expected weights that Keras wrote, got neither layer_names nor layers"):
        model.load_keras_weights(tmp_path / "other.h5")
    with pytest.raises(FileNotFoundError, match=r"^path: .*: file not found$"):
        model.load_keras_weights(tmp_path / "none.h5")
