"""Whole models to ONNX: checked, run by ONNX Runtime, and run bit-identically by `fastrnn.onnx.Session`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import MANY, assert_predicts, by_runtime, drawn, drawn_model, over_time, read_by
from support.tolerance import FLOAT32, assert_close, assert_same_bits

import fastrnn
from fastrnn import catalogue
from fastrnn.convert.onnx_nodes import OPSETS

LENGTHS = np.array([6, 1, 3, 0], np.int32)

EACH = [OPSETS[0], 12, 13, 17, 18, 21]


def written(onnx: Any, model: Any, **options: Any) -> Any:
    """Return a model that onnx's checker accepts, with operators of the requested opset."""
    made = fastrnn.to_onnx(model, **options)
    onnx.checker.check_model(made, full_check=True)
    assert [(one.domain, one.version) for one in made.opset_import] == [("", options.get("opset", 18))]
    return made


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("seed", MANY)
def test_any_number_of_sequences(seed: int, ragged: bool, onnx: Any, runtime: Any) -> None:
    model = drawn_model(seed)
    x = read_by(model, seed)
    made = written(onnx, model, lengths=ragged, opset=EACH[seed % len(EACH)])
    assert [one.name for one in made.graph.output] == ["y"]
    inputs = {"x": x} | ({"sequence_lens": LENGTHS} if ragged else {})
    assert_predicts(by_runtime(runtime, made, inputs)["y"], model, x, LENGTHS if ragged else None)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int, onnx: Any, runtime: Any) -> None:
    """All kinds of layers; states are inputs and outputs."""
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"onnx {onnx.__version__} has no opset {opset}")
    gru = fastrnn.GRU(3, 4, 2, reset_after=True, bidirectional=True, merge="average", dropout=0.5, rng=0)
    lstm = fastrnn.LSTM(4, 5, bidirectional=True, merge="mul", rng=1)
    rnn = fastrnn.RNN(5, 2, bidirectional=True, merge="sum", rng=2)
    last = fastrnn.LSTM(2, 3, peephole=True, bidirectional=True, return_sequences=False, rng=3)
    head = [fastrnn.Dense(6, 4, "relu", rng=4), fastrnn.Activation("softmax")]
    model = fastrnn.Sequential([fastrnn.Embedding(7, 3, rng=5), gru, lstm, fastrnn.Sequential([rnn, last]), *head])
    made = written(onnx, model, opset=opset, lengths=True, state=True)
    rng, x = np.random.default_rng(6), read_by(model)
    given = {
        one.name: rng.uniform(-1, 1, [d.dim_value or 4 for d in one.type.tensor_type.shape.dim]).astype(np.float32)
        for one in made.graph.input
        if one.name not in ("x", "sequence_lens")
    }
    assert list(given) == ["1.h0", "2.h0", "2.c0", "3.0.h0", "3.1.h0", "3.1.c0"]
    got = by_runtime(runtime, made, {"x": x, "sequence_lens": LENGTHS} | given)
    h = given
    state = (None, h["1.h0"], (h["2.h0"], h["2.c0"]), (h["3.0.h0"], (h["3.1.h0"], h["3.1.c0"])), None, None)
    y, final, _ = model.forward(x, state=state, lengths=LENGTHS)
    expected = {"1.h_n": final[1], "2.h_n": final[2][0], "2.c_n": final[2][1], "3.0.h_n": final[3][0]}
    expected |= dict(zip(("3.1.h_n", "3.1.c_n"), final[3][1], strict=True))
    some = LENGTHS > 0  # for a sequence without steps the final state is ONNX Runtime's
    assert_close({"y": got.pop("y")[some]}, {"y": y[some]}, FLOAT32)
    assert_close(*({name: a[:, some] for name, a in found.items()} for found in (got, expected)), FLOAT32)


@pytest.mark.parametrize("seed", MANY)
def test_bits_of_a_session(seed: int, onnx: Any, runtime: Any) -> None:
    """Recurrent nodes run in the same kernels as `predict`; merging directions only moves numbers or adds two."""
    rng, width, layers = np.random.default_rng([32, seed]), 3, list[Any]()
    for i in range(int(rng.integers(1, 4))):
        merge = str(rng.choice(["concat", "sum"]))
        options = {"merge": merge, "bidirectional": True} if rng.integers(2) else {"bidirectional": False}
        merge = options.setdefault("merge", "concat")
        layers.append(drawn(100 * seed + i, input_size=width, dtype=np.float32, **options | {"return_sequences": True}))
        width = layers[-1].output_shape((1, 1, width))[-1]
    model = fastrnn.Sequential(layers)
    x = read_by(model, seed)
    session = import_module("fastrnn.onnx").Session(written(onnx, model, lengths=True))
    assert {node.where for node in session.nodes} == {"kernels"}
    got = session.run(None, {"x": x, "sequence_lens": LENGTHS})[0]
    assert_same_bits({"y": got}, {"y": model.predict(x, lengths=LENGTHS)})


@pytest.mark.parametrize(
    "cell",
    [
        catalogue.lstm_with("hard_sigmoid", "softsign", "elu"),
        catalogue.lstm_with("hard_sigmoid_keras2", "relu", "identity", clip=0.5),
        catalogue.lstm_with(input_forget=True),
        catalogue.lstm_with(input_forget=True, peephole=True),
        catalogue.lstm_with("softplus", peephole=True, clip=2.0),
        catalogue.gru_with("hard_sigmoid", "relu", reset_after=True),
        catalogue.gru_with("sigmoid", "softsign", reset_after=False, clip=0.25),
        catalogue.rnn_with("softsign"),
        catalogue.rnn_with("hard_sigmoid", clip=1.0),
    ],
    ids=lambda cell: cell.name,
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_cells_of_the_catalogue(cell: Any, bidirectional: bool, onnx: Any, runtime: Any) -> None:
    layer = fastrnn.Recurrent(cell, 3, 4, 2, bidirectional=bidirectional, rng=0)
    model = fastrnn.Sequential([layer, fastrnn.Dense(8 if bidirectional else 4, 2, rng=1)])
    x = read_by(model)
    assert_predicts(by_runtime(runtime, written(onnx, model), {"x": x})["y"], model, x)
    y, state = layer(x.swapaxes(0, 1))
    names = ["y", *[f"{name}_n" for name in cell.states]]
    expected = dict(zip(names, [y, *(state if isinstance(state, tuple) else (state,))], strict=True))
    turned = np.ascontiguousarray(x.swapaxes(0, 1))
    assert_close(by_runtime(runtime, written(onnx, layer), {"x": turned}), expected, FLOAT32)


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh"])
def test_float64(cell: str, oracle: Callable[[str], Any], onnx: Any) -> None:
    """By onnx's reference, as ONNX Runtime has no float64 kernels; it has one layer and direction per node."""
    model = drawn_model(5, (cell,), np.float64, bidirectional=False)
    x = read_by(model)
    (y,) = oracle("onnx.reference").ReferenceEvaluator(written(onnx, model)).run(None, {"x": x})
    assert_close({"y": y}, {"y": model.predict(x)})


@pytest.mark.parametrize("opset", [OPSETS[0], 13, 18])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("decodes", [False, True])
@pytest.mark.parametrize("kind", ["LastStep", "GlobalAveragePooling1D", "GlobalMaxPooling1D"])
def test_layers_over_time(kind: str, decodes: bool, ragged: bool, opset: int, onnx: Any, runtime: Any) -> None:
    """Repeated steps have no lengths, and the decoder returns all of them."""
    model = over_time(kind, decodes)
    x = read_by(model)
    made = written(onnx, model, lengths=ragged, opset=opset)
    assert shapes(made.graph.output)["y"] == (["B", 3, 2] if decodes else ["B", 4])
    inputs = {"x": x} | ({"sequence_lens": LENGTHS} if ragged else {})
    assert_predicts(by_runtime(runtime, made, inputs)["y"], model, x, LENGTHS if ragged else None)


def test_a_model_that_reads_vectors(onnx: Any, runtime: Any) -> None:
    model = fastrnn.Sequential([fastrnn.Dense(3, 4, rng=0), fastrnn.RepeatVector(5), fastrnn.LSTM(4, 2, rng=1)])
    made = written(onnx, model)
    assert (shapes(made.graph.input), shapes(made.graph.output)) == ({"x": ["B", 3]}, {"y": ["B", 5, 2]})
    x = np.random.default_rng(2).standard_normal((4, 3), np.float32)
    assert_predicts(by_runtime(runtime, made, {"x": x})["y"], model, x)


def shapes(values: Any) -> dict[str, list[Any]]:
    return {one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim] for one in values}


def test_axes(onnx: Any, runtime: Any) -> None:
    model = fastrnn.Sequential([fastrnn.LSTM(3, 4, rng=0), fastrnn.Dense(4, 2, rng=1)])
    made = written(onnx, model, state=True)
    assert shapes(made.graph.input) == {"x": ["B", "T", 3], "0.h0": [1, "B", 4], "0.c0": [1, "B", 4]}
    assert shapes(made.graph.output) == {"y": ["B", "T", 2], "0.h_n": [1, "B", 4], "0.c_n": [1, "B", 4]}
    fixed = written(onnx, model, batch=4, steps="time", lengths=True)
    assert shapes(fixed.graph.input) == {"x": [4, "time", 3], "sequence_lens": [4]}
    assert shapes(written(onnx, fastrnn.LSTM(3, 4), steps=7, batch="N").graph.output)["y"] == [7, "N", 4]
    last = fastrnn.Sequential([fastrnn.LSTM(3, 4, return_sequences=False)])
    assert shapes(written(onnx, last, batch=2, steps=6).graph.output) == {"y": [2, 4]}
    x = read_by(model)
    assert_predicts(by_runtime(runtime, written(onnx, model, batch=4, steps=6), {"x": x})["y"], model, x)


@pytest.mark.parametrize("layer", [fastrnn.Dense(3, 2, "softmax", rng=0), fastrnn.Activation("identity")])
@pytest.mark.parametrize("steps", [None, "T"])
def test_a_layer_that_is_not_recurrent(steps: Any, layer: Any, onnx: Any, runtime: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3) if steps is None else (2, 5, 3), np.float32)
    assert_close(by_runtime(runtime, written(onnx, layer, steps=steps), {"x": x}), {"y": layer(x)}, FLOAT32)


def test_indices_in_the_padding_may_be_invalid(onnx: Any, runtime: Any) -> None:
    model = fastrnn.Sequential([fastrnn.Embedding(5, 3, rng=0), fastrnn.GRU(3, 4, reset_after=True, rng=1)])
    x = np.array([[1, 2, 99], [4, 0, 3]])
    inputs = {"x": x, "sequence_lens": np.array([2, 3], np.int32)}
    got = by_runtime(runtime, written(onnx, model, lengths=True), inputs)["y"]
    assert_predicts(got, model, x, [2, 3])


def test_layers_that_act_only_in_training(onnx: Any) -> None:
    """There is a node between the layers of a stack, which `from_onnx` reads."""
    lstm = fastrnn.LSTM(3, 4, 2, dropout=0.5, recurrent_dropout=0.25, weight_drop=0.125, rng=0)
    made = written(onnx, fastrnn.Sequential([fastrnn.Dropout(0.5), lstm, fastrnn.Dropout(0.5)]))
    assert [node.op_type for node in made.graph.node].count("Dropout") == 1


def test_a_file(onnx: Any, tmp_path: Path) -> None:
    model = drawn_model(0)
    made = fastrnn.to_onnx(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == made == fastrnn.to_onnx(model)
    with pytest.raises(FileNotFoundError, match=r"the directory .* does not exist"):
        fastrnn.to_onnx(model, tmp_path / "nowhere" / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Own(fastrnn.Dense):
    """A layer with unknown equations."""


@pytest.mark.parametrize(
    ("made", "options", "error", "message"),
    [
        (lambda: fastrnn.Recurrent(catalogue.li_gru, 3, 4), {}, ValueError, r"layer 1 \(Recurrent\): cell: .* li_gru;"),
        (lambda: fastrnn.Recurrent(catalogue.clipped_lstm(1.0), 3, 4), {}, ValueError, r"no clipped_lstm\(.*lstm_with"),
        (lambda: fastrnn.LSTM(3, 4, zoneout=0.1), {}, ValueError, r"layer 1 \(LSTM\): zoneout: ONNX cannot express"),
        (lambda: fastrnn.LSTM(3, 8, proj_size=4), {}, ValueError, "proj_size: ONNX cannot express 4"),
        (lambda: fastrnn.LSTM(3, 4, heads=2), {}, ValueError, "heads: ONNX cannot express 2"),
        (lambda: fastrnn.LSTM(3, 4, weight_dtype="bfloat16"), {}, ValueError, "weight_dtype: ONNX cannot express"),
        (lambda: fastrnn.Recurrent(catalogue.rnn_with("selu"), 3, 4), {}, ValueError, "activation: .* express 'selu'"),
        (lambda: fastrnn.Dense(3, 4, dtype=np.float64), {}, ValueError, "one dtype, got float32 and float64"),
        (lambda: Own(3, 4), {}, TypeError, r"layer 1 \(Own\): expected one of fastrnn's Recurrent, .* got .*\.Own"),
        (lambda: fastrnn.LSTM(3, 4), {"opset": 10}, ValueError, "opset: expected 11 to 2[0-9], got 10"),
        (lambda: fastrnn.LSTM(3, 4), {"opset": 27}, ValueError, "opset: expected 11 to 2[0-9], got 27"),
        (lambda: fastrnn.LSTM(3, 4), {"opset": "18"}, TypeError, "opset: expected an integer"),
        (lambda: fastrnn.LSTM(3, 4), {"steps": None}, ValueError, "steps: expected a number or a name"),
        (lambda: fastrnn.LSTM(3, 4), {"batch": 0}, ValueError, "batch: "),
        (lambda: fastrnn.Dense(3, 4), {"steps": None, "lengths": True}, ValueError, "lengths: expected False"),
        (lambda: fastrnn.Dense(3, 4), {"lengths": 1}, TypeError, "lengths: expected"),
    ],
)
def test_to_onnx_refuses(made: Any, options: Any, error: Any, message: str, onnx: Any) -> None:
    with pytest.raises(error, match=message):
        fastrnn.to_onnx(fastrnn.Sequential([fastrnn.Dense(3, 3, rng=0), made()]), **options)


def test_to_onnx_rejects_other_objects(onnx: Any) -> None:
    with pytest.raises(TypeError, match="model: expected a layer or a Sequential of fastrnn, got int"):
        fastrnn.to_onnx(3)
