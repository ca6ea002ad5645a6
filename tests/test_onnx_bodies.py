"""`fastrnn.onnx.Session`: bodies of If, Loop and Scan, and operators that ONNX does not define."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.conversions import by_runtime
from support.onnx_models import agree, by_name, packed_calls, sequences, written

LOOP = """
    y, h_n, c_n, sums = Loop <body = turn (int64 i, bool going, float[T, B, I] v, float[D, B, H] h, float[D, B, H] c)
        => (bool next, float[T, B, I] v2, float[D, B, H] h2, float[D, B, H] c2, float[B, H] s) {
            turned = Mul (v, two)
            Y, h2, c2 = LSTM <hidden_size = 5> (turned, W, R, , , h, c)
            s = ReduceSum <keepdims = 0> (h2, zeroth)
            total = ReduceL2 <keepdims = 0> (c2)
            next = Less (total, bound)
            v2 = Neg (v)
    }> (turns, going, x, h0, c0)
"""


@pytest.mark.parametrize("rest", ["onnxruntime", "reference"])
@pytest.mark.parametrize(("turns", "going", "bound"), [(4, True, 1e9), (9, True, 1.2), (3, False, 1e9), (0, True, 1e9)])
def test_a_loop_computes_what_the_runtime_does(
    turns: int, going: bool, bound: float, rest: str, onnx: Any, runtime: Any, ours: Any
) -> None:
    """Iterations ended by a count and by a condition; carried and stacked values."""
    states = "float[1, B, 5] h0, float[1, B, 5] c0"
    model = written(
        onnx,
        f"float[T, B, 4] x, {states}, int64 turns, bool going",
        "float[T, B, 4] y, float[1, B, 5] h_n, float[1, B, 5] c_n, float[N, B, 5] sums",
        LOOP,
        two=np.float32(2),
        zeroth=np.array([0]),
        bound=np.float32(bound),
    )
    session = ours.Session(model, rest=rest)
    assert session.nodes == [("Y", "LSTM", "kernels", "")]
    inputs = {"x": sequences(6, 2, 4), "h0": sequences(1, 2, 5, seed=1), "c0": sequences(1, 2, 5, seed=2)}
    inputs |= {"turns": np.array(turns), "going": np.array(going)}
    got = agree(session, model, inputs)
    after = [by_runtime(runtime, model, inputs | {"turns": np.array(n)})["c_n"] for n in range(1, turns + 1)]
    ended = (n for n, c in enumerate(after, 1) if np.linalg.norm(c) >= bound)
    assert len(got["sums"]) == (next(ended, turns) if going else 0)
    assert not any(np.shares_memory(a, given) for a in got.values() for given in inputs.values())


def test_a_loop_without_a_trip_count(onnx: Any, ours: Any) -> None:
    body = """
        h = Loop <body = turn (int64 i, bool going, float[D, B, H] h1) => (bool next, float[D, B, H] h2) {
            Y, h2 = GRU <hidden_size = 5, direction = "reverse"> (x, V, S, , , h1)
            next = Less (i, four)
        }> (, yes, h0)
    """
    constants = {"four": np.array(4), "yes": np.array(True), "V": sequences(1, 15, 4)}
    model = written(onnx, "float[T, B, 4] x, float[1, B, 5] h0", "float[1, B, 5] h", body, **constants)
    agree(ours.Session(model), model, {"x": sequences(3, 2, 4), "h0": sequences(1, 2, 5)})


SCAN = """
    h_n, c_n, ends, totals = Scan <num_scan_inputs = 2, scan_input_axes = [2, 0], scan_input_directions = [0, 1],
        scan_output_axes = [1, 0], scan_output_directions = [1, 0], body = turn
        (float[D, B, H] h, float[D, B, H] c, float[T, B, I] v, float k) =>
        (float[D, B, H] h2, float[D, B, H] c2, float[D, B, H] end, float[B, H] s) {
            scaled = Mul (v, k)
            Y, h2, c2 = LSTM <hidden_size = 5> (scaled, Wdoubled, R, , , h, c)
            end = Neg (c2)
            s = ReduceSum <keepdims = 0> (Y, axes)
    }> (h0, c0, chunks, factors)
"""


@pytest.mark.parametrize("rest", ["onnxruntime", "reference"])
@pytest.mark.parametrize("N", [3, 1, 0])
def test_a_scan_computes_what_the_runtime_does(N: int, rest: str, onnx: Any, ours: Any) -> None:
    """Sequences and stacked outputs along other axes and reversed, and weights computed outside."""
    states = "float[1, B, 5] h0, float[1, B, 5] c0"
    model = written(
        onnx,
        f"{states}, float[T, B, N, 4] chunks, float[N] factors",
        "float[1, B, 5] h_n, float[1, B, 5] c_n, float[1, N, B, 5] ends, float[N, B, 5] totals",
        "Wdoubled = Add (W, W)" + SCAN,
        W=sequences(1, 20, 4, seed=4),
        axes=np.array([0, 1]),
    )
    session = ours.Session(model, rest=rest)
    assert session.nodes == [("Y", "LSTM", "kernels", "")]
    inputs = {"h0": sequences(1, 2, 5, seed=1), "c0": sequences(1, 2, 5, seed=2)}
    inputs |= {"chunks": sequences(6, 2, N, 4), "factors": sequences(N, seed=3)}
    if N:
        got = agree(session, model, inputs)
        assert np.array_equal(got["ends"][:, 0], -got["c_n"])
    else:  # ONNX Runtime rejects it
        got = by_name(session, inputs)
        assert [a.shape for a in got.values()] == [(1, 2, 5), (1, 2, 5), (1, 0, 0, 5), (0, 0, 5)]
    assert not any(np.shares_memory(a, given) for a in got.values() for given in inputs.values())
    with pytest.raises(ValueError, match=r"Scan node 'h_n': expected sequences of one length, got \[.*, 7\]"):
        session.run(None, inputs | {"factors": sequences(7)})


def test_a_scan_of_opset_8_runs_in_the_runtime(onnx: Any, ours: Any) -> None:
    """A Scan of opset 8 has lengths as an input and a batch axis."""
    body = """
        h_n, ends = Scan <num_scan_inputs = 1, body = turn (float[D, B, H] h, float[T, B, I] v)
        => (float[D, B, H] h2, float[D, B, H] end) { Y, h2 = GRU <hidden_size = 5> (v, Vs, S)  end = Neg (h2) }>
        (, h0, chunks)
    """
    inputs = "float[1, 1, B, 5] h0, float[1, N, T, B, 4] chunks"
    model = written(onnx, inputs, "float[1, 1, B, 5] h_n", body, Vs=sequences(1, 15, 4))
    model.opset_import[0].version = 8
    session = ours.Session(model)
    assert session.nodes == [("Y", "GRU", "onnxruntime", "inside Scan h_n")]
    agree(session, model, {"h0": sequences(1, 1, 2, 5), "chunks": sequences(1, 3, 6, 2, 4)})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("num_scan_inputs = 2", "num_scan_inputs = 3"),
        ("num_scan_inputs = 2", "num_scan_inputs = 5"),
        ("num_scan_inputs = 2, ", ""),
        ("scan_input_axes = [2, 0]", "scan_input_axes = [2]"),
        ("scan_output_directions = [1, 0]", "scan_output_directions = [1, 0, 1]"),
        ("(h0, c0, chunks, factors)", "(h0, c0, chunks)"),
    ],
)
def test_a_wrong_scan_is_refused(before: str, after: str, onnx: Any, ours: Any) -> None:
    inputs = "float[1, B, 5] h0, float[1, B, 5] c0, float[T, B, N, 4] chunks, float[N] factors"
    body = "Wdoubled = Add (W, W)" + SCAN.replace(before, after)
    model = written(onnx, inputs, "float[1, B, 5] h_n", body, axes=np.array([0, 1]))
    with pytest.raises(ValueError, match=r"^model: "):
        ours.Session(model, rest="reference")


NESTED = """
    first, h1 = LSTM <hidden_size = 5> (x, W, R)
    squeezed = Squeeze (first, one)
    Vt = Transpose <perm = [1, 0]> (Vflat)
    Vwide = Unsqueeze (Vt, zero)
    sum = ReduceSum <keepdims = 0> (x)
    positive = Greater (sum, level)
    y = If (positive) <
        then_branch = yes () => (float[D, B, H] a) {
            size = ReduceMax <keepdims = 0> (h1)
            large = Greater (size, level)
            a = If (large) <
                then_branch = deep () => (float[D, B, H] b) { Yb, b = GRU <hidden_size = 5> (squeezed, Vwide, S) },
                else_branch = shallow () => (float[D, B, H] b2) { b2 = Neg (h1) }
            >
        },
        else_branch = no () => (float[D, B, H] a2) { ya, a2 = RNN <hidden_size = 5> (squeezed, Wr, Rr) }
    >
"""


def nested(onnx: Any) -> Any:
    constants = {"one": np.array([1]), "zero": np.array([0]), "level": np.float32(0)}
    constants |= {"Vflat": sequences(5, 15), "Wr": sequences(1, 5, 5), "Rr": sequences(1, 5, 5)}
    return written(onnx, "float[T, B, 4] x", "float[1, B, 5] y", NESTED, **constants)


@pytest.mark.parametrize("rest", ["onnxruntime", "reference"])
def test_branches_in_branches_run_in_kernels(rest: str, onnx: Any, ours: Any) -> None:
    """With weights from constants outside; the innermost graph reads values of the outermost."""
    model = nested(onnx)
    session = ours.Session(model, rest=rest)
    assert [(one.name, one.where) for one in session.nodes] == [(n, "kernels") for n in ("first", "Yb", "ya")]
    x = sequences(6, 2, 4)
    for seen in (abs(x), -abs(x), x - x.mean() + 1, x - x.mean() - 1):
        agree(session, model, {"x": seen})


def test_weights_in_a_body_are_packed_once(onnx: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ours.Session(nested(onnx))
    packed = packed_calls(monkeypatch)
    for _ in range(3):
        session.run(None, {"x": -abs(sequences(6, 2, 4))})
    assert len(packed) == 2  # the LSTM, and the RNN


def test_an_unsupported_body_runs_in_the_rest(onnx: Any, ours: Any) -> None:
    """A body of float16, which the kernels do not support."""
    body = """
        half = Cast <to = 10> (x)
        y = If (flag) <
            then_branch = yes () => (float16[D, B, H] a) { Ya, a = RNN <hidden_size = 5> (half, Wh, Rh) },
            else_branch = no () => (float16[D, B, H] b) { b = Identity (half) }
        >
        z = Cast <to = 1> (y)
    """
    constants = {"Wh": sequences(1, 5, 4).astype(np.float16), "Rh": sequences(1, 5, 5).astype(np.float16)}
    model = written(onnx, "float[T, B, 4] x, bool flag", "float[D, B, H] z", body, **constants)
    session = ours.Session(model, rest="reference")
    assert session.nodes == [("Ya", "RNN", "reference", "X: float16")]
    y = session.run(None, {"x": sequences(6, 2, 4), "flag": np.array(False)})[0]
    assert np.array_equal(y, sequences(6, 2, 4).astype(np.float16).astype(np.float32))


FOREIGN = {
    "before": "f = com.microsoft.FusedMatMul (x, K) y, h = LSTM <hidden_size = 5> (f, W, R)",
    "after": "y2, h = LSTM <hidden_size = 5> (x, W, R) y = com.microsoft.Gelu (y2)",
    "between": """
        y1 = com.microsoft.Gelu (x) y2 = com.microsoft.Gelu (y1)
        y3, h3 = LSTM <hidden_size = 5> (y2, W, R)
        y4 = Squeeze (y3, one) y5 = com.microsoft.Gelu (y4)
        y, h6 = GRU <hidden_size = 5> (y5, V, S)
        h = Mul (h6, two)
    """,
    "in a branch": """
        f = com.microsoft.FusedMatMul (x, K)
        sum = ReduceSum <keepdims = 0> (x)
        cond = Greater (sum, two)
        h = If (cond) <
            then_branch = yes () => (float[D, B, H] a) {
                g = com.microsoft.Gelu (f)
                Ya, a = LSTM <hidden_size = 5> (g, W, R)
            },
            else_branch = no () => (float[D, B, H] b) { Yb, b = LSTM <hidden_size = 5> (f, W, R) }
        >
        y4, h4 = LSTM <hidden_size = 5> (f, W, R)
        y = Identity (y4)
    """,
}


@pytest.mark.parametrize("where", FOREIGN)
def test_unknown_operators_run_in_the_runtime(where: str, onnx: Any, ours: Any) -> None:
    constants = {"one": np.array([1]), "two": np.float32(2)}
    body = FOREIGN[where]
    model = written(onnx, "float[T, B, 4] x", "float[T, D, B, H] y, float[D, B, H] h", body, **constants)
    session = ours.Session(model)
    assert {placed.where for placed in session.nodes} == {"kernels"}
    for seed in range(3):
        agree(session, model, {"x": sequences(6, 2, 4, seed=seed)})


def test_an_operator_that_no_engine_supports(onnx: Any, ours: Any) -> None:
    """The error is that of the engine."""
    model = written(onnx, "float[T, B, 4] x", "float[T, D, B, H] y", "f = Own (x) y = LSTM <hidden_size = 5> (f, W, R)")
    with pytest.raises(Exception, match="Own"):
        ours.Session(model)
    with pytest.raises(ValueError, match=r"model: onnx\.reference rejects it: .*Own"):
        ours.Session(model, rest="reference")


def test_quantized_nodes_are_listed(onnx: Any, ours: Any) -> None:
    rng = np.random.default_rng(0)
    q = {n: rng.integers(-20, 20, s).astype(np.int8) for n, s in (("Wq", (1, 4, 20)), ("Rq", (1, 5, 20)))}
    scales = {f"{n}_scale": np.full(1, 0.02, np.float32) for n in "WR"}
    scales |= {f"{n}_zero": np.zeros(1, np.int8) for n in "WR"}
    body = """
        z = com.microsoft.DynamicQuantizeLSTM <hidden_size = 5> (x, Wq, Rq, , , , , , W_scale, W_zero, R_scale, R_zero)
        f = Squeeze (z, one)
        y = GRU <hidden_size = 5> (f, V, S)
    """
    constants = q | scales | {"one": np.array([1])}
    model = written(onnx, "float[T, B, 4] x", "float[T, D, B, H] y", body, **constants)
    session = ours.Session(model)
    why = "DynamicQuantizeLSTM is an operator of com.microsoft, not of ONNX"
    assert session.nodes == [("z", "DynamicQuantizeLSTM", "onnxruntime", why), ("y", "GRU", "kernels", "")]
    agree(session, model, {"x": sequences(6, 2, 4)})


def test_a_model_without_recurrent_nodes(onnx: Any, ours: Any) -> None:
    body = "a = MatMul (x, K) b = MatMul (a, K) y = Tanh (b)"
    model = written(onnx, "float[T, B, 4] x", "float[T, B, 4] y", body)
    with pytest.warns(RuntimeWarning, match="onnxruntime runs all of it; .*: 'K' is multiplied 2 times"):
        session = ours.Session(model)
    assert session.nodes == []
    agree(session, model, {"x": sequences(6, 2, 4)})
