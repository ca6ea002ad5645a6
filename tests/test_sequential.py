"""Sequential as a layer, and as a trained model: gradients, shapes, errors, files."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import differences
from support.models import (
    I,
    K,
    N,
    T,
    classes,
    classifier,
    every_step,
    inputs,
    last_step,
    letters,
    regressor,
    steps,
    targets,
)
from support.problems import Arrays
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.training import Sequential


def by_differences(model: Sequential, f: Callable[[], float]) -> Arrays:
    """Return central differences of f with respect to every parameter."""

    def of(p: np.ndarray) -> np.ndarray:
        def at(value: np.ndarray) -> float:
            p[...] = value
            model.changed()
            return f()

        before = p.copy()
        found = differences(at, before)
        at(before)
        return found

    return {name: of(p) for name, p in model.parameters().items()}


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_gradients_of_a_whole_model(merge: str, lengths: bool) -> None:
    model = letters(merge=merge, num_layers=2) if merge == "concat" else summed()
    x, y, valid = classes(N, T), classes(N, T), steps() if lengths else None
    loss = training.CategoricalCrossentropy()

    def f() -> float:
        return loss(model.forward(x, lengths=valid).y.swapaxes(0, 1), y.T, valid)

    out = model.forward(x, lengths=valid, training=True)
    _, dy = loss.gradient(out.y.swapaxes(0, 1), y.T, valid)
    back = model.backward(dy.swapaxes(0, 1), out.cache)
    assert back.dx is None
    assert_close(back.grads, by_differences(model, f), 1e-6)


def summed() -> Sequential:
    lstm = fastrnn.LSTM(I, 5, bidirectional=True, merge="sum", dtype=np.float64, batch_first=True, rng=2)
    dense = fastrnn.Dense(5, K, "softmax", dtype=np.float64)
    return Sequential([fastrnn.Embedding(6, I, dtype=np.float64, rng=1), lstm, dense])


@pytest.mark.parametrize("make", [last_step, every_step])
def test_gradients_of_inputs_and_states(make: Callable[[], Sequential]) -> None:
    model, x = make(), inputs()
    state = model.forward(x).state
    out = model.forward(x, state=state, training=True)
    dy = np.random.default_rng(0).standard_normal(out.y.shape)
    dfinal = tuple([None if s is None else tree(np.ones_like, s) for s in out.state])
    back = model.backward(dy, out.cache, dstate=dfinal)

    def f(x: np.ndarray, state: Any) -> float:
        y, final, _ = model.forward(x, state=state)
        return float((y * dy).sum() + sum(s.sum() for s in flat(final)))

    direction = np.random.default_rng(1).standard_normal(x.shape)
    e = 1e-6
    expected = (f(x + e * direction, state) - f(x - e * direction, state)) / (2 * e)
    np.testing.assert_allclose((back.dx * direction).sum(), expected, rtol=1e-7)
    up, down = (tuple([None if s is None else tree(lambda a, e=e: a + e, s) for s in state]) for e in (e, -e))
    expected = (f(x, up) - f(x, down)) / (2 * e)
    np.testing.assert_allclose(sum(d.sum() for d in flat(back.dstate)), expected, rtol=1e-7)
    assert model.backward(None, out.cache, dstate=dfinal).dx.shape == x.shape


def tree(f: Callable[[np.ndarray], np.ndarray], s: Any) -> Any:
    return tuple([f(a) for a in s]) if isinstance(s, tuple) else f(s)


def flat(state: Any) -> list[np.ndarray]:
    """Return all arrays of the layers' states."""
    return [a for s in state if s is not None for a in (s if isinstance(s, tuple) else (s,))]


def outputs_and_gradients(model: Sequential, x: np.ndarray) -> Arrays:
    out = model.forward(x, lengths=steps(), training=True)
    back = model.backward(np.ones_like(out.y), out.cache)
    return {"y": out.y, "dx": back.dx} | back.grads


def test_batch_first_layers_give_the_same() -> None:
    results = []
    for first, second in itertools.product([False, True], repeat=2):
        lstm = fastrnn.LSTM(I, 5, batch_first=first, dtype=np.float64, rng=1)
        options = {"reset_after": True, "batch_first": second, "return_sequences": False}
        gru = fastrnn.GRU(5, 4, **options, dtype=np.float64, rng=2)
        model = Sequential([lstm, gru, fastrnn.Dense(4, K, dtype=np.float64, rng=3)])
        results.append(outputs_and_gradients(model, inputs()))
    for result in results[1:]:
        assert_close(result, results[0])


def test_padding_does_not_affect_gradients() -> None:
    """Even with a layer that ignores lengths."""
    lstm = fastrnn.LSTM(4, 5, return_sequences=False, dtype=np.float64, rng=2)
    model = Sequential([fastrnn.Dense(I, 4, dtype=np.float64, rng=1), lstm])
    results = []
    for padding in (0.0, np.nan):
        x = np.where((np.arange(T) < steps()[:, None])[..., None], inputs(), padding)
        results.append(outputs_and_gradients(model, x))
    assert_same_bits(results[1], results[0])


def test_each_dropout_layer_draws_its_own_masks() -> None:
    model, x = Sequential([fastrnn.Dropout(0.5), fastrnn.Dropout(0.5)]), np.ones((50, 10, 4))
    y = model.forward(x, training=True, rng=0).y
    assert abs((y > 0).mean() - 0.25) < 0.05
    assert_same_bits({"y": model.forward(x, training=True, rng=np.random.default_rng(0)).y}, {"y": y})


def test_a_model_in_a_model() -> None:
    inner, dense = every_step(), fastrnn.Dense(K, 2, dtype=np.float64, rng=3)
    nested, plain = Sequential([inner, dense]), Sequential([*inner, dense])
    x = inputs()
    assert_same_bits({"y": nested(x)}, {"y": plain(x)})
    assert next(iter(nested.parameters())) == "0.0.weight_ih_l0"
    out, flat_out = nested.forward(x, training=True), plain.forward(x, training=True)
    back, flat_back = nested.backward(out.y, out.cache), plain.backward(out.y, flat_out.cache)
    assert_same_bits({"dx": back.dx}, {"dx": flat_back.dx})
    assert_same_bits(dict(enumerate(back.grads.values())), dict(enumerate(flat_back.grads.values())))
    assert nested.summary().count("\n") == 5


def test_a_model_without_time() -> None:
    model = Sequential([fastrnn.Dense(I, 5, "relu", rng=0), fastrnn.Dense(5, 2, rng=1)])
    model.compile("sgd", "mse")
    x = inputs(np.float32)[:, 0]
    assert len(model.fit(x, np.zeros((N, 2), np.float32), epochs=2)) == 2
    assert model.predict(x).shape == (N, 2)


@pytest.mark.parametrize("size", [1, 4, N, 100])
def test_prediction_and_evaluation_with_any_batch_size(size: int) -> None:
    model, x, y = regressor(), inputs(), targets(N, T)
    exact = model.predict(x, lengths=steps())
    assert exact.shape == (N, T, K)
    assert not exact[np.arange(T) >= steps()[:, None]].any()
    assert_close({"y": model.predict(x, lengths=steps(), batch_size=size)}, {"y": exact})
    for n in range(N):  # in the given order
        assert_close({"y": model(x[n : n + 1, : steps()[n]])[0]}, {"y": exact[n, : steps()[n]]})
    valid = np.arange(T) < steps()[:, None]
    expected = ((exact - y) ** 2)[valid].mean()
    got = model.evaluate(x, y, lengths=steps(), batch_size=size)
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-12)
    assert list(got) == ["loss"]


def test_predict_does_not_change_x() -> None:
    model = Sequential([fastrnn.Dropout(0.5)])
    x = inputs()
    before = x.copy()
    assert not model.predict(x, lengths=np.zeros(N, int)).any()
    assert_same_bits({"x": x}, {"x": before})


def test_summary() -> None:
    model = letters()
    assert model.summary() == (
        "Layer        Output shape      Parameters\n"
        "-----------------------------------------\n"
        "0 Embedding  (None, None, 3)           18\n"
        "1 LSTM       (None, None, 10)         400\n"
        "2 Dense      (None, None, 4)           44\n"
        "-----------------------------------------\n"
        "Total                                 462"
    )


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(again: Callable[[Sequential], Sequential]) -> None:
    model = classifier()
    other, before = again(model), model.state_dict()
    assert_same_bits(other.state_dict(), before)
    other.fit(inputs(), classes(N))
    assert_same_bits(model.state_dict(), before)
    assert (other.predict(inputs()) != model.predict(inputs())).all()


@pytest.mark.parametrize("method", [Sequential.fit, Sequential.evaluate, Sequential.predict])
def test_batch_size_is_a_keyword(method: Callable[..., Any]) -> None:
    assert inspect.signature(method).parameters["batch_size"].kind is inspect.Parameter.KEYWORD_ONLY


def test_weights_in_files(tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("safetensors")
    model, other = letters(), letters()
    other.set_weights([w + 1 for w in other.get_weights()])
    model.save_weights(tmp_path / "weights")
    other.load_weights(tmp_path / "weights")
    assert_same_bits(other.state_dict(), model.state_dict())
    x = classes(N, T)
    assert_same_bits({"y": other.predict(x)}, {"y": model.predict(x)})
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]

    before = other.state_dict()
    message = r"^path: .*weights has layers \['Embedding', 'LSTM', 'Dense'\], expected \['LSTM'"
    with pytest.raises(ValueError, match=message):
        last_step().load_weights(tmp_path / "weights")
    with pytest.raises(TypeError, match=r"^0.weight: expected dtype float32, the layer's, got float64"):
        letters(np.float32).load_weights(tmp_path / "weights")
    message = r"^1.weight_ih_l0: expected shape that of the layer = \(20, 3\), got \(28, 3\)"
    with pytest.raises(ValueError, match=message):
        other.load_weights(wider(tmp_path))
    (tmp_path / "wider").unlink()
    with pytest.raises(FileNotFoundError):
        other.load_weights(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match=r"^path: .*text is not a safetensors file"):
        other.load_weights(tmp_path / "text")
    oracle("safetensors.numpy").save_file(before, tmp_path / "others")
    with pytest.raises(ValueError, match=r"^path: .*others was not written by fastrnn"):
        other.load_weights(tmp_path / "others")
    assert_same_bits(other.state_dict(), before)


def wider(path: Path) -> Path:
    """Return a file of a model with the same layers in another size."""
    lstm = fastrnn.LSTM(I, 7, bidirectional=True, dtype=np.float64)
    model = Sequential([fastrnn.Embedding(6, I, dtype=np.float64), lstm, fastrnn.Dense(14, K, dtype=np.float64)])
    model.save_weights(path / "wider")
    return path / "wider"


LAYERS: dict[str, Any] = {
    r"layers: expected a list of layers, got 3": 3,
    r"layers: expected a list of layers, got \['dense'\]": ["dense"],
    r"layers: expected at least one, and each once, got \[\]": [],
    r"layers: expected at least one, and each once, got \[Dense": [fastrnn.Dense(2, 2)] * 2,
    r"layer 0 \(LSTM\): merge: None gives a pair": [fastrnn.LSTM(I, 5, bidirectional=True, merge=None)],
    r"layer 1 \(Dense\): x: expected": [fastrnn.LSTM(I, 5), fastrnn.Dense(6, 2)],
    r"layer 1 \(RNN\): x: expected": [fastrnn.LSTM(I, 5, return_sequences=False), fastrnn.RNN(5, 5)],
}


@pytest.mark.parametrize("message", LAYERS)
def test_layers_that_do_not_fit(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        Sequential(LAYERS[message])


X = {
    r"x: expected shape \(N, T, I\), \(N, T\) of integers, or \(N, F\), got \(3,\)": np.zeros(3),
    r"x: expected shape .* got \(13, 7, 3, 1\)": inputs()[..., None],
    r"x: expected at least one sample .* got shape \(0, 7, 3\)": inputs()[:0],
    r"x: expected an array, got str": "text",
    r"layer 0 \(LSTM\): x: expected shape .* time-major, got \(7, 13, 2\)": inputs()[..., :2],
    r"layer 0 \(LSTM\): x: expected .* got \(13, 3\)": inputs()[:, 0],
    r"layer 0 \(LSTM\): x: expected dtype float64, the layer's, got float32": inputs(np.float32),
    r"x: sequence 1: expected shape \(T, 3\), got \(7, 2\)": [inputs()[0], inputs()[0, :, :2]],
    r"x: sequence 1: expected dtype float64, that of sequence 0, got float32": [inputs()[0], inputs(np.float32)[0]],
    r"x: expected at least one sequence, got none": [],
    r"x: expected a list of sequences \(T_n, I\), or integers \(T_n,\), got 1 axes of float64": list(inputs()[:, 0]),
}


@pytest.mark.parametrize("message", X)
def test_wrong_x(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        classifier().predict(X[message])


EIGHT = np.where(np.arange(N) == 2, 8, 7)
CALLS: dict[str, Callable[[Sequential, np.ndarray], Any]] = {
    r"lengths: expected None with a list of sequences": lambda m, x: m.predict(list(x), lengths=steps()),
    r"lengths: expected each in 0..T = 0..7, got 8 for sequence 2": lambda m, x: m.predict(x, lengths=EIGHT),
    r"lengths: expected shape \(B,\) = \(13,\), got \(2,\)": lambda m, x: m.predict(x, lengths=[1, 2]),
    r"lengths: expected integers, got float64": lambda m, x: m.predict(x, lengths=np.ones(N)),
    r"batch_size: expected a positive integer, got 0": lambda m, x: m.predict(x, batch_size=0),
    r"y: expected shape \(N, \.\.\.\) = \(13, \.\.\.\), got \(12,\)": lambda m, x: m.evaluate(x, classes(12)),
    r"y: expected float64 of shape": lambda m, x: m.evaluate(x, classes(N, 2)),
    r"y: expected classes in 0..3, got 4": lambda m, x: m.evaluate(x, np.full(N, 4)),
    r"state: expected 2 entries, one per layer, got 1": lambda m, x: m.forward(x, state=[None]),
    r"layer 1 \(Dense\): state: ": lambda m, x: m.forward(x, state=[None, 1]),
}


@pytest.mark.parametrize("message", CALLS)
def test_wrong_arguments_change_nothing(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        CALLS[message](classifier(), inputs())


def test_wrong_targets_of_every_step() -> None:
    model, x = regressor(), inputs()
    with pytest.raises(ValueError, match=re.escape("y: expected shape (N, T, ...) = (13, 7, ...), got (13, 6, 4)")):
        model.evaluate(x, targets(N, T - 1))
    with pytest.raises(ValueError, match=r"^y: expected 7 steps in sequence 0, as x has, got 6"):
        model.evaluate(list(x), list(targets(N, T - 1)))
    with pytest.raises(ValueError, match=r"^lengths: expected None, because x of shape .13, 3. has no time axis"):
        Sequential([fastrnn.Dense(I, 1, dtype=np.float64)]).predict(x[:, 0], lengths=steps())


def test_before_compile() -> None:
    for call in (
        lambda m: m.fit(inputs(), classes(N)),
        lambda m: m.fit(inputs(), None),
        lambda m: m.evaluate(inputs(), classes(N)),
        lambda m: m.evaluate(inputs(), "abc"),
    ):
        with pytest.raises(RuntimeError, match=r"call compile\(optimizer, loss\) first"):
            call(last_step())


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("optimizer: expected an instance of Optimizer or one of 'sgd'.* got 'best'", {"optimizer": "best"}),
        ("loss: expected an instance of Loss or one of 'mse'.* got 'least'", {"loss": "least"}),
        ("metrics: expected a Metric, a function .* got 3", {"metrics": [3]}),
        ("metrics: expected a list, got 'mae'", {"metrics": "mae"}),
        ("metrics: expected a list, got None", {"metrics": None}),
    ],
)
def test_wrong_arguments_of_training(message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        last_step().compile(**arguments)


@pytest.mark.parametrize("module", ["safetensors", "tqdm"])
def test_missing_packages_are_named(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (module, "safetensors.numpy", "tqdm.auto"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ImportError, match=rf"^{module} is not installed; run pip install 'fastrnn\[train\]'"):
        classifier().fit(inputs(), classes(N), progress=True) if module == "tqdm" else last_step().save(tmp_path / "w")
