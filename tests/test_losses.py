"""Losses and metrics: values, gradients compared with differences, masks, extremes, errors that name the argument."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from support.batches import LOSSES, METRICS, SIZES, batch, differences, padding, ragged, softmax
from support.models import I, K, every_step
from support.tolerance import assert_close, assert_same_bits, relative_error

import fastrnn
from fastrnn.training import (
    Accuracy,
    BinaryAccuracy,
    BinaryCrossentropy,
    CategoricalCrossentropy,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
)
from fastrnn.training.model import Compiled

DTYPES = (np.float32, np.float64)
SEQUENCES = [shape for shape in SIZES if len(shape) == 3]


def test_values() -> None:
    """By hand."""
    p, t = np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    logits = np.log(p)
    assert_close(
        {name: np.array(f(logits if "logits" in name else p, t)) for name, f in LOSSES.items()},
        {
            "mse": np.array((0.0625 + 0.0625 + 0.25 + 0.25) / 4),
            "bce": np.array(-(2 * math.log(0.75) + 2 * math.log(0.5)) / 4),
            "bce_logits": np.array((math.log(1.25) + math.log(1.75 / 0.75) + math.log(1.5 / 0.5) + math.log(1.5)) / 4),
            "cce": np.array(-(math.log(0.75) + math.log(0.5)) / 2),
            "cce_logits": np.array(-(math.log(0.75) + math.log(0.5)) / 2),
        },
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 4, 1), (4, 7)])
def test_gradients_are_differences(name: str, shape: tuple[int, ...]) -> None:
    """Central differences of every element, with lengths if there is a time axis."""
    f, (p, t) = LOSSES[name], batch(name, shape)
    lengths = ragged(*shape[:2]) if len(shape) == 3 else None
    value, gradient = f.gradient(p, t, lengths)
    expected = differences(lambda p: f(p, t, lengths), p)
    assert value == f(p, t, lengths)
    if name != "cce_logits" or shape[-1] > 1:  # softmax over one class is 1, whatever its logit
        assert np.linalg.norm(expected) > 1e-3
    assert relative_error(gradient, expected) < 1e-8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SEQUENCES)
@pytest.mark.parametrize("name", LOSSES)
def test_padding_has_no_effect(name: str, shape: tuple[int, int, int], dtype: Any) -> None:
    """NaN past the lengths, in prediction and target, has no effect, and its gradient is 0."""
    f, (p, t), lengths = LOSSES[name], batch(name, shape, dtype), ragged(*shape[:2])
    past = padding(shape[0], lengths)
    alone, rows = f.gradient(p[~past], t[~past])
    p[past] = t[past] = np.nan
    value, gradient = f.gradient(p, t, lengths)
    assert type(value) is float
    assert value == alone
    expected = np.zeros_like(p)
    expected[~past] = rows
    assert_same_bits({"gradient": gradient}, {"gradient": expected})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("shape", SIZES)
def test_classes_are_one_hot(shape: tuple[int, ...], from_logits: bool, dtype: Any) -> None:
    """Integers of any type, out of range past the lengths."""
    f = CategoricalCrossentropy(from_logits=from_logits)
    p, _ = batch("cce_logits" if from_logits else "cce", shape, dtype)
    c = np.random.default_rng(1).integers(0, shape[-1], shape[:-1])
    value, gradient = f.gradient(p, np.eye(shape[-1], dtype=dtype)[c])
    for kind in (np.int64, np.int8, np.uint8):
        again, bits = f.gradient(p, c.astype(kind))
        assert again == value
        assert_same_bits({"gradient": bits}, {"gradient": gradient})
    if len(shape) == 3:
        lengths = ragged(*shape[:2])
        c[padding(shape[0], lengths)] = -1
        one_hot = np.eye(shape[-1], dtype=dtype)[np.maximum(c, 0)]
        assert f(p, c, lengths) == f(p, one_hot, lengths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_memory_layout(name: str, dtype: Any) -> None:
    """A view of a batch-first array, as Sequential passes it, and a read-only array."""
    f, (p, t) = LOSSES[name], batch(name, (7, 5, 3), dtype)
    value, gradient = f.gradient(p, t)
    swapped = [np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1) for a in (p, t)]
    for a in (p, t):
        a.flags.writeable = False
    for args in (swapped, (p, t)):
        again, bits = f.gradient(*args)
        assert again == value
        assert_same_bits({"gradient": bits}, {"gradient": gradient})
    assert gradient.flags.c_contiguous
    assert gradient.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e4, 50.0])
def test_extreme_logits(size: float, dtype: Any) -> None:
    """Very wrong and very right: losses of 0 or as large as the logits, gradients of probabilities 0 and 1."""
    a, t = np.array([[size], [-size], [size], [-size]], dtype), np.array([[1], [0], [0], [1]], dtype)
    value, gradient = LOSSES["bce_logits"].gradient(a, t)
    assert value == pytest.approx(size / 2, rel=1e-6)
    np.testing.assert_allclose(gradient, np.array([[0], [0], [0.25], [-0.25]]), atol=1e-20)
    value, gradient = LOSSES["cce_logits"].gradient(np.array([[size, -size, 0]] * 2, dtype), np.array([0, 1]))
    assert value == pytest.approx(size, rel=1e-6)
    np.testing.assert_allclose(gradient, np.array([[0, 0, 0], [0.5, -0.5, 0]]), atol=1e-20)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 20.0), (np.float64, 40.0)])
def test_a_small_loss_is_not_lost(size: float, dtype: Any) -> None:
    """A very right prediction has the loss exp(-size), which would vanish if added to 1 or to the logit."""
    for a, t in ((size, 1), (-size, 0)):
        value = LOSSES["bce_logits"](np.array([[a]], dtype), np.array([[t]], dtype))
        assert value == pytest.approx(math.exp(-size), rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["bce", "cce"])
def test_clipped_probabilities(name: str, dtype: Any) -> None:
    """0 and 1 count as eps and 1 - eps, and the loss is constant where they are clipped."""
    eps = np.finfo(dtype).eps
    p, t = np.array([[0, 1], [1, 0]], dtype), np.array([[1, 0], [1, 0]], dtype)
    value, gradient = LOSSES[name].gradient(p, t)
    assert value == pytest.approx((-math.log(eps) - math.log1p(-eps)) / 2, rel=1e-6)
    assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_nan_and_infinity_propagate(name: str) -> None:
    p, t = batch(name, (3, 2))
    p[1, 0] = np.nan
    value, gradient = LOSSES[name].gradient(p, t)
    assert math.isnan(value)
    assert np.isnan(gradient[1, 0])
    assert not np.isnan(gradient[[0, 2]]).any()
    if name == "mse":
        p[1, 0] = 1e200
        assert LOSSES[name](p, t) == math.inf


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("given", [((3, 2, 4), [0, 0]), ((0, 2, 4), None), ((3, 0, 4), []), ((0, 4), None)])
def test_no_valid_target(name: str, given: tuple[tuple[int, ...], Any]) -> None:
    shape, lengths = given
    value, gradient = LOSSES[name].gradient(*batch(name, shape), lengths)
    assert value == 0
    assert_same_bits({"gradient": gradient}, {"gradient": np.zeros(shape)})
    for m in METRICS.values():
        assert m(*batch(name, shape), lengths) == (0.0, 0)


def test_sums_are_float64() -> None:
    """A million float32 terms, which a float32 sum would not count correctly."""
    p = np.full((1000, 1000, 1), 0.1, np.float32)
    assert LOSSES["mse"](p, np.zeros_like(p)) == pytest.approx(float(np.float32(0.1) * np.float32(0.1)), rel=1e-12)
    assert METRICS["mae"](p, np.zeros_like(p)) == (pytest.approx(1e6 * float(np.float32(0.1)), rel=1e-12), 10**6)


def test_metric_values() -> None:
    """By hand; totals of batches add up to the total of all."""
    p = softmax(np.random.default_rng(0).standard_normal((7, 5, 3)))
    c, lengths = np.random.default_rng(1).integers(0, 3, (7, 5)), ragged(7, 5)
    past = padding(7, lengths)
    assert Accuracy()(p, c) == (np.sum(p.argmax(axis=-1) == c), 35)
    assert Accuracy()(p, np.eye(3)[c]) == Accuracy()(p, c)
    parts = [Accuracy()(p[:, i], c[:, i]) for i in range(5)]
    assert (sum(total for total, _ in parts), sum(n for _, n in parts)) == Accuracy()(p, c)
    right, n = Accuracy()(p, c, lengths)
    assert (right, n) == (np.sum((p.argmax(axis=-1) == c)[~past]), lengths.sum())
    total, n = MeanAbsoluteError()(p, np.zeros_like(p), lengths)
    assert (total, n) == (pytest.approx(p[~past].sum(), rel=1e-12), 3 * lengths.sum())
    p[past], c[past] = np.nan, 99
    assert Accuracy()(p, c, lengths) == (right, lengths.sum())


def test_binary_metrics() -> None:
    p, t = np.array([[0.6], [0.5], [0.2], [0.9]]), np.array([[1.0], [0.0], [0.0], [0.0]])
    assert Accuracy()(p, t) == (3.0, 4)
    assert Accuracy()(p, t[:, 0].astype(np.int64)) == (3.0, 4)
    assert Accuracy(threshold=0)(p - 0.5, t) == (3.0, 4)
    assert BinaryAccuracy()(p.reshape(2, 2), t.reshape(2, 2)) == (3.0, 4)
    assert BinaryAccuracy(threshold=0.25)(p.reshape(2, 2), t.reshape(2, 2)) == (2.0, 4)
    assert BinaryAccuracy(threshold=0.1)(p, t) == (1.0, 4)
    for one in (Accuracy(threshold=2), BinaryAccuracy(threshold=2)):  # for logits; the target itself is 0.5 throughout
        assert one(10 * p - 6, t) == (2.0, 4)


P, T3 = np.full((4, 2, 3), 0.25), np.full((4, 2, 3), 0.5)
EVERY: dict[str, Loss | Metric] = LOSSES | METRICS


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("argument", "error", "said", "bad"),
    [
        ("prediction", TypeError, "an array", "three"),
        ("prediction", TypeError, "int64", P.astype(np.int64)),
        ("prediction", TypeError, "float16", P.astype(np.float16)),
        ("prediction", ValueError, r"\(4,\)", P[:, 0, 0]),
        ("prediction", ValueError, r"\(1, 4, 2, 3\)", P[None]),
        ("prediction", ValueError, r"K >= 1", P[..., :0]),
        ("target", TypeError, "an array", None),
        ("target", TypeError, "float32", T3.astype(np.float32)),
        ("target", TypeError, "bool", T3 > 0),
        ("target", ValueError, r"\(T, B, K\) = \(4, 2, 3\), got \(4, 2\)", T3[..., 0]),
        ("target", ValueError, r"\(T, B, K\) = \(4, 2, 3\), got \(2, 4, 3\)", T3.swapaxes(0, 1)),
        ("lengths", TypeError, "integers", [1.0, 2.0]),
        ("lengths", ValueError, r"\(2,\)", [1, 2, 3]),
        ("lengths", ValueError, "0..4", [5, 1]),
        ("lengths", ValueError, "0..4", [4, -1]),
    ],
)
def test_wrong_arguments_change_nothing(name: str, argument: str, error: type[Exception], said: str, bad: Any) -> None:
    arguments = {"prediction": P, "target": T3, "lengths": [4, 1]} | {argument: bad}
    with pytest.raises(error, match=rf"^{argument}: .*{said}"):
        EVERY[name](**arguments)


@pytest.mark.parametrize("name", ["cce", "cce_logits", "accuracy"])
@pytest.mark.parametrize("bad", [-1, 3, 255])
def test_classes_out_of_range(name: str, bad: int) -> None:
    c = np.zeros((4, 2), np.int64)
    c[2, 1] = bad
    with pytest.raises(ValueError, match=rf"^target: expected classes in 0\.\.2, got {bad}"):
        EVERY[name](P, c)
    EVERY[name](P, c, [4, 2])
    with pytest.raises(ValueError, match=r"^target: .*\(T, B\) = \(4, 2\), got \(4, 2, 3\)"):
        EVERY[name](P, T3.astype(np.int64))
    with pytest.raises(ValueError, match=r"^target: .*\(B,\) = \(4,\), got \(2,\)"):
        EVERY[name](P[:, 0], c[0])


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("cce", "cce_logits", "accuracy")])
def test_class_targets_only_for_losses_of_classes(name: str) -> None:
    with pytest.raises(TypeError, match=r"^target: expected dtype float64"):
        EVERY[name](P, np.zeros((4, 2), np.int64))


def test_lengths_need_time() -> None:
    for f in EVERY.values():
        with pytest.raises(ValueError, match=r"^lengths: needs .*\(4, 3\)"):
            f(P[:, 0], T3[:, 0], [1, 2])


@pytest.mark.parametrize("name", ["bce", "cce"])
@pytest.mark.parametrize("bad", [-0.5, 1.5])
def test_targets_that_are_not_probabilities(name: str, bad: float) -> None:
    """Logits without from_logits, and labels -1 and 1."""
    with pytest.raises(ValueError, match=rf"^prediction: .*from_logits.*{bad}"):
        LOSSES[name](np.where(P == P[0], bad, P), T3)
    for f in (LOSSES[name], LOSSES[f"{name}_logits"]):
        with pytest.raises(ValueError, match=rf"^target: expected probabilities.*{bad}"):
            f(P, np.full_like(T3, bad))


def compiled(loss: Any = "mse", metrics: Any = ()) -> Compiled:
    model = fastrnn.Sequential([fastrnn.Dense(2, 2)])
    model.compile("sgd", loss, metrics)
    return model.compiled


def test_names() -> None:
    assert compiled("mse").loss == MeanSquaredError()
    assert compiled("binary_crossentropy").loss == BinaryCrossentropy()
    assert compiled("categorical_crossentropy").loss == CategoricalCrossentropy()
    assert compiled(given := CategoricalCrossentropy(True)).loss is given
    names = {"accuracy": Accuracy(), "mae": MeanAbsoluteError(), "binary_accuracy": BinaryAccuracy()}
    assert compiled(metrics=list(names)).metrics == names
    assert compiled(metrics=[METRICS["mae"]]).metrics["mae"] is METRICS["mae"]
    for argument, look, said in (
        ("loss", compiled, "'mse'"),
        ("metrics", lambda which: compiled(metrics=[which]), "'accuracy'"),
    ):
        with pytest.raises(ValueError, match=rf"^{argument}: expected .*{said}.*, got 'msle'"):
            look("msle")
        for wrong in (None, 3, MeanSquaredError, Accuracy):
            with pytest.raises(TypeError, match=rf"^{argument}: expected .*{said}"):
                look(wrong)


def test_options() -> None:
    for kind in (BinaryCrossentropy, CategoricalCrossentropy):
        with pytest.raises(TypeError, match=r"^from_logits: expected True or False, got 1"):
            kind(1)  # type: ignore[arg-type]
        assert pickle.loads(pickle.dumps(kind(from_logits=True))) == kind(True) != kind()
    for kind in (Accuracy, BinaryAccuracy):
        with pytest.raises(TypeError, match=r"^threshold: expected a finite number, got 'half'"):
            kind("half")  # type: ignore[arg-type]


class Positive(MeanSquaredError):
    def expect_targets(self, name: str, y: Any, shape: Any, dtype: Any, weights: Any = None) -> None:
        super().expect_targets(name, y, shape, dtype, weights)
        assert (y[weights > 0] > 0).all()


def test_a_users_loss_gets_no_padding() -> None:
    model, rng = every_step(), np.random.default_rng(0)
    model.compile("sgd", Positive())
    model.fit(*[[rng.uniform(1, 2, (n, size)) for n in (3, 40, 0, 1, 17)] for size in (I, K)])
