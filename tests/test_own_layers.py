"""Layers of user-defined cells: a cell with a built-in cell's equations gives that layer, bit for bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells, recurrent
from support.cell_problems import problem
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.cells import sigmoid, tanh
from fastrnn.convert import stack
from fastrnn.frameworks import KERAS, ONNX, PYTORCH, Framework


def pair(**options: Any) -> tuple[fastrnn.Recurrent, fastrnn.GRU]:
    """Return the layer of a user's GRU and the built-in one, with the same parameters."""
    mine = fastrnn.Recurrent(own_cells.gru, 5, 17, rng=0, **options)
    theirs = fastrnn.GRU(5, 17, reset_after=True, rng=1, **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "dropout": 0.5},
        {"num_layers": 2, "bidirectional": True},
        {"bidirectional": True, "merge": "mul", "bias": "input"},
        {"return_sequences": False, "bias": False, "dtype": np.float64},
    ],
)
def test_every_kind_of_call(options: dict[str, Any], backend: str) -> None:
    mine, theirs = pair(**options)
    assert_same_bits(mine.parameters(), theirs.parameters())
    given = recurrent.problem(mine, 9, 6)
    for more in ({}, {"checkpoint": 3}):
        assert_same_bits(recurrent.results(mine, *given, **more), recurrent.results(theirs, *given, **more))
    x = np.random.default_rng(1).standard_normal((4, 2, 5)).astype(mine.dtype)
    for _ in range(3):  # the third call is prepared
        assert_same_bits({"y": mine(x)[0]}, {"y": theirs(x)[0]})


def test_streams_and_bfloat16(backend: str) -> None:
    x = np.random.default_rng(1).standard_normal((4, 2, 5)).astype(np.float32)
    for options in ({"num_layers": 2}, {"weight_dtype": "bfloat16"}):
        mine, theirs = pair(**options)
        a, b = mine.stream(2), theirs.stream(2)
        for step in x:
            assert_same_bits({"y": a.step(step)}, {"y": b.step(step)})


@pytest.mark.parametrize("cell", [c for c in own_cells.ALL if not c.inputs], ids=lambda cell: cell.name)
def test_one_layer_is_the_cell(cell: Any, backend: str) -> None:
    p = problem(cell, (6, 3, 5, 7))
    layer = fastrnn.Recurrent(cell, 5, 7, dtype=np.float64, rng=0)
    names = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0", "b_rec": "bias_hh_l0", "p": "parameter_l0"}
    layer.load_state_dict({names[key]: p.inputs[key] for key in names if key in p.inputs})
    state = tuple([s[None] for s in p.init])
    out = layer.forward(p.inputs["x"], state=state if len(state) > 1 else state[0], training=True)
    dfinal = tuple([d[None] for d in p.back["dfinal"]])
    back = layer.backward(p.back["dy"], out.cache, dstate=dfinal if len(state) > 1 else dfinal[0])
    want = cell.forward(**p.inputs, init=p.init, training=True)
    grads = cell.backward(p.back["dy"], want.cache, dfinal=p.back["dfinal"])
    got = {"y": out.y, "dx": back.dx} | {key: back.grads[name] for key, name in names.items() if name in back.grads}
    expected = {"y": want.y, "dx": grads.dx} | {key: getattr(grads, f"d{key}") for key in names if key in p.inputs}
    assert_same_bits(got, expected)
    finals = out.state if len(state) > 1 else (out.state,)
    dinits = back.dstate if len(state) > 1 else (back.dstate,)
    for k, name in enumerate(cell.states):
        assert_same_bits({name: finals[k][0], "d": dinits[k][0]}, {name: want.final[k], "d": grads.dinit[k]})
    stream = layer.stream(3)
    one = layer(p.inputs["x"])[0]
    assert_close({"y": np.stack([stream.step(x) for x in p.inputs["x"]])}, {"y": one})


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}])
def test_extra_inputs(options: dict[str, Any], backend: str) -> None:
    """Every layer and direction reads the same ones; their gradient equals central differences."""
    cell = own_cells.leaky_rates
    layer = fastrnn.Recurrent(cell, 2, 3, dtype=np.float64, rng=0, **options)
    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((4, 4, 2)), [4, 2, 0, 3]
    dy = rng.standard_normal(layer(x, e={"noise": np.zeros((4, 1))})[0].shape)
    for shape in ((4, 4, 3), (4, 4, 1), (4, 3), (4, 1)):
        noise = rng.standard_normal(shape)
        out = layer.forward(x, e={"noise": noise}, lengths=lengths, training=True)
        got = layer.backward(dy, out.cache).de["noise"]
        direction = rng.standard_normal(shape)
        ends = [layer(x, lengths=lengths, e={"noise": noise + step * direction})[0] for step in (1e-6, -1e-6)]
        assert got.shape == shape
        assert np.isclose((got * direction).sum(), ((ends[0] - ends[1]) * dy).sum() / 2e-6, rtol=1e-6)


def test_files(tmp_path: Path) -> None:
    """Loading requires the cell, because files contain no code."""
    path = tmp_path / "layer.safetensors"
    layer = fastrnn.Recurrent(own_cells.slstm, 3, 4, num_layers=2, rng=0)
    fastrnn.save(path, layer)
    for cell in (own_cells.slstm, [own_cells.gru, own_cells.slstm]):
        loaded = fastrnn.load(path, cell=cell)
        assert_same_bits(loaded.parameters(), layer.parameters())
        assert repr(loaded) == repr(layer)
    for wrong in ("slstm", 3, [cell, "slstm"]):
        with pytest.raises(TypeError, match=r"cell: expected a cell made by fastrnn\.cell, or a list of them, got "):
            fastrnn.load(path, cell=wrong)
    with pytest.raises(ValueError, match=r"cell: 'slstm' is user-defined; pass it: load\(path, cell=slstm\)"):
        fastrnn.load(path)

    @fastrnn.cell(gates="ifzo", states="hc")
    def slstm(x: Any, U: Any, s: Any) -> Any:
        return x.i + x.f + x.z + U.o @ s.h + U.i @ s.c + U.f @ s.h + U.z @ s.h, s.c

    with pytest.raises(ValueError, match=r"states: the file's cell slstm has .*'m'"):
        fastrnn.load(path, cell=slstm)
    model = fastrnn.Sequential([layer, fastrnn.Dense(4, 1)])
    model.save(tmp_path / "model.safetensors")
    loaded = fastrnn.load(tmp_path / "model.safetensors", cell=own_cells.slstm)
    assert_same_bits(loaded.parameters(), model.parameters())


def test_copies_and_pickles() -> None:
    layer = fastrnn.Recurrent(own_cells.minimal_gated_unit, 3, 4, rng=0)
    x = np.ones((5, 2, 3), np.float32)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits({"y": other(x)[0]}, {"y": layer(x)[0]})


@fastrnn.cell(gates="ifgo", states="hc", parameters=("q",))
def lstm(x: Any, U: Any, s: Any, p: Any) -> Any:
    """A cell that differs from the built-in cell of this name."""
    c = sigmoid(x.f + U.f @ s.h) * s.c + x.i * tanh(x.g)
    return sigmoid(x.o) * (p.q * c), c


def test_the_name_of_a_built_in_cell_has_no_effect() -> None:
    """On converters, parameter names, or caches."""
    layer = fastrnn.Recurrent(lstm, 3, 4, rng=0)
    assert [name for name in layer.parameters() if "_ih" not in name and "_hh" not in name] == ["parameter_l0"]
    for framework in (PYTORCH, KERAS, ONNX):
        with pytest.raises(ValueError, match=f"cell: {framework.name} has no lstm; expected a layer of a built-in"):
            stack.recurrent(layer, framework)
    x, W, U, p = np.ones((2, 1, 3)), np.ones((16, 3)), np.ones((4, 4)), np.ones(4)
    cache = lstm.forward(x, W, U, p=p, training=True).cache
    with pytest.raises(TypeError, match="cache: expected one made by lstm_forward"):
        fastrnn.lstm_backward(np.ones((2, 1, 4)), cache)


def test_a_family_that_a_framework_lacks_is_refused() -> None:
    layer = fastrnn.LSTM(3, 4)
    with pytest.raises(ValueError, match=r"cell: Caffe has no lstm; expected .* cell: gru_after, gru_before"):
        stack.recurrent(layer, Framework("Caffe", {"gru": "GRU"}, {"gru": "rzn"}))


def test_unsupported_options_raise_an_error() -> None:
    layer = fastrnn.Recurrent(own_cells.zoneout, 3, 4)
    with pytest.raises(ValueError, match="stream: the cell has extra inputs"):
        layer.stream()
    with pytest.raises(ValueError, match="e: missing 'keep'"):
        layer(np.ones((5, 2, 3), np.float32))
    with pytest.raises(ValueError, match="e: unexpected 'keep'"):
        fastrnn.LSTM(3, 4)(np.ones((5, 2, 3), np.float32), e={"keep": np.ones((2, 1), np.float32)})
    with pytest.raises(TypeError, match=r"cell: expected a cell made by fastrnn\.cell, got 'lstm'"):
        fastrnn.Recurrent("lstm", 3, 4)
    layer = fastrnn.Recurrent(own_cells.slstm, 3, 4)
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h, c, n, m\)"):
        layer(np.ones((5, 2, 3), np.float32), np.ones((1, 2, 4), np.float32))
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h, c, n, m\), got 1 of them"):
        layer(np.ones((5, 2, 3), np.float32), (np.ones((1, 2, 4), np.float32),))
    for target in (PYTORCH, KERAS, ONNX):
        with pytest.raises(ValueError, match=f"cell: {target.name} has no slstm; expected a layer of a built-in cell"):
            stack.recurrent(layer, target)


def test_repr() -> None:
    layer = fastrnn.Recurrent(own_cells.slstm, 3, 4, num_layers=2)
    assert repr(layer) == "Recurrent(3, 4, num_layers=2, dtype=float32) [slstm]"
