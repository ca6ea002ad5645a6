"""`fastrnn.onnx.Session` in place of `onnxruntime.InferenceSession`: its description and its calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.onnx_models import sequences, written
from support.tolerance import FLOAT32, assert_close


def surfaces(onnx: Any, runtime: Any, ours: Any, **more: Any) -> tuple[Any, Any]:
    """Return both sessions, made by the same call."""
    inputs = "float[T, B, 4] x, float[1, B, 5] h0, int32[B] n, double s"
    model = written(
        onnx,
        inputs,
        "float[T, 1, B, 5] y, z",
        "y, h = GRU <hidden_size = 5> (x, V, S, , n, h0) z = Neg (s)",
        V=sequences(1, 15, 4),
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("S", onnx.TensorProto.FLOAT, (1, 15, 5)))
    model.metadata_props.add(key="a", value="b")
    made = [
        kind(model.SerializeToString(), providers=["CPUExecutionProvider"], **more)
        for kind in (ours.Session, runtime.InferenceSession)
    ]
    return made[0], made[1]


def test_description_of_a_session_equals_onnx_runtimes(onnx: Any, runtime: Any, ours: Any) -> None:
    for got, expected in (
        (own(), theirs())
        for own, theirs in zip(
            *((s.get_inputs, s.get_outputs, s.get_overridable_initializers) for s in surfaces(onnx, runtime, ours)),
            strict=True,
        )
    ):
        assert [(one.name, one.shape, one.type) for one in got] == [(o.name, o.shape, o.type) for o in expected]
    own, theirs = surfaces(onnx, runtime, ours)
    assert own.get_providers() == theirs.get_providers()
    meta = theirs.get_modelmeta()
    assert own.get_modelmeta()._asdict() == {name: getattr(meta, name) for name in own.get_modelmeta()._fields}


@pytest.mark.parametrize("names", [None, [], ["y"], ["z", "y"], ("z",)])
def test_a_run_is_called_by_position_or_keyword(names: Any, onnx: Any, runtime: Any, ours: Any) -> None:
    feed = {"x": sequences(6, 2, 4), "h0": sequences(1, 2, 5), "n": np.array([6, 3], np.int32), "s": np.array(2.0)}
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    own, theirs = surfaces(onnx, runtime, ours, sess_options=options)
    expected = theirs.run(names, feed)
    for got in (
        own.run(names, feed),
        own.run(names, feed, None),
        own.run(names, feed, runtime.RunOptions()),
        own.run(output_names=names, input_feed=feed, run_options=None),
    ):
        for a, b in zip(got, expected, strict=True):
            assert_close({"a": a}, {"a": b}, FLOAT32)


@pytest.mark.parametrize("rest", ["onnxruntime", "reference"])
def test_inputs_of_wrong_shapes_raise_an_error(rest: str, onnx: Any, ours: Any) -> None:
    model = written(onnx, "float[7, B, 4] x", "float[T, D, B, H] y", "y = LSTM <hidden_size = 5> (x, W, R)")
    session = ours.Session(model, rest=rest)
    session.run(None, {"x": sequences(7, 3, 4)})
    for shape in ((6, 3, 4), (7, 3, 5), (7, 4), (7, 3, 4, 1)):
        with pytest.raises(ValueError, match=r"input_feed: x: expected shape \(7, B, 4\), as the model says, got \("):
            session.run(None, {"x": np.ones(shape, np.float32)})


def test_incompatible_arguments_raise_an_error(onnx: Any, runtime: Any, ours: Any) -> None:
    model = written(onnx, "float[T, B, 4] x", "float[T, D, B, H] y", "y = LSTM <hidden_size = 5> (x, W, R)")
    options, cpu = runtime.SessionOptions(), ["CPUExecutionProvider"]
    expected = "sess_options: expected .*SessionOptions"
    for arguments, error, message in (
        ({"rest": "reference", "providers": cpu}, ValueError, 'providers: expected None with rest="reference"'),
        ({"rest": "reference", "sess_options": options}, ValueError, "sess_options: expected None with rest="),
        ({"sess_options": "reference"}, TypeError, f"{expected}, got 'reference'; give rest="),
        ({"sess_options": 3}, TypeError, f"{expected}, got 3"),
        ({"providers": "CPUExecutionProvider"}, TypeError, "providers: expected a list of names, got 'CPU"),
        ({"threads": 1, "sess_options": options}, ValueError, "threads: expected None with sess_options"),
    ):
        with pytest.raises(error, match=message):
            ours.Session(model, **arguments)
    with pytest.raises(ValueError, match='run_options: expected None with rest="reference"'):
        ours.Session(model, rest="reference").run(None, {"x": sequences(6, 2, 4)}, runtime.RunOptions())
