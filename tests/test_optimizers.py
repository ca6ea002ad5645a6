"""Optimizers and clipping: the papers' equations, exact resumption, errors that name the argument."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.descents import KINDS, by_the_book, descend, descent, make, parameters
from support.memory import read_only
from support.problems import Arrays
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.training import SGD, Adam, AdamW, ExponentialDecay, Optimizer, RMSprop, clip_by_norm, clip_by_value
from fastrnn.training.optimizers import BLOCK

EVERY = (SGD, Adam, AdamW, RMSprop)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_follow_the_papers_equations(kind: str) -> None:
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((3, 5)), list(rng.standard_normal((9, 3, 5)))
    p, o = {"p": start.copy()}, make(kind)
    for g in grads:
        o.step(p, {"p": g})
    assert_close(p, {"p": by_the_book(kind, start, grads)})


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_reduces_the_loss(kind: str) -> None:
    """On one batch, in place and in the parameters' own dtype."""
    p = parameters(np.float32)
    ids = {name: id(a) for name, a in p.items()}
    before, _ = descent(p)
    o = make(kind)
    for _ in range(50):
        o.step(p, descent(p)[1])
    assert descent(p)[0] < before
    assert {name: id(a) for name, a in p.items()} == ids
    arrays = o.state_dict()
    assert {a.dtype for a in (*p.values(), *(arrays[k] for k in arrays if k != "steps"))} == {np.dtype(np.float32)}
    assert (o.steps, int(arrays["steps"])) == (50, 50)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_resumption_is_exact(kind: str, dtype: Any) -> None:
    """Half of the steps, a new optimizer with the state, the other half: the same bits, also of a schedule."""
    rate = ExponentialDecay(0.01, decay_steps=10, decay_rate=0.5)
    options = {**KINDS[kind][1], "learning_rate": rate, "clip_norm": 0.5, "clip_value": 0.1}
    cls = KINDS[kind][0]
    whole, parted = parameters(dtype), parameters(dtype)
    losses = descend(cls(**options), whole, range(20))
    first, second = cls(**options), cls(**options)
    before = descend(first, parted, range(11))
    state = first.state_dict()
    kept = copy.deepcopy(state)
    descend(first, copy.deepcopy(parted), range(2))  # not part of the state
    second.load_state_dict(state)
    assert_same_bits(second.state_dict(), kept)
    assert losses == before + descend(second, parted, range(11, 20))
    assert_same_bits(parted, whole)
    assert_same_bits(state, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_continue_with_the_same_bits(kind: str) -> None:
    """Pickled and deep copies continue independently."""
    p, o = parameters(), make(kind)
    descend(o, p, range(5))
    twins = [(pickle.loads(pickle.dumps(o)), copy.deepcopy(p)), (copy.deepcopy(o), copy.deepcopy(p))]
    descend(o, p, range(5, 10))
    for twin, q in twins:
        descend(twin, q, range(5, 10))
        assert_same_bits(q, p)
        assert_same_bits(twin.state_dict(), o.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_large_parameters_equal_their_parts(kind: str) -> None:
    """A parameter of several blocks is updated like its parts, whatever the layout of its gradient."""
    rng = np.random.default_rng(0)
    p, q = {"p": rng.standard_normal((5, BLOCK // 2 + 1))}, {}
    q |= {str(i): row.copy() for i, row in enumerate(p["p"])}
    whole, parts = make(kind), make(kind)
    for _ in range(3):
        g = rng.standard_normal(p["p"].shape)
        whole.step(p, {"p": np.asfortranarray(g)})
        parts.step(q, {str(i): row for i, row in enumerate(g)})
    assert_same_bits({"p": p["p"]}, {"p": np.stack(list(q.values()))})


@pytest.mark.parametrize("kind", ["sgd_nesterov_decay", "adamw", "adam_decay", "rmsprop_momentum"])
def test_no_large_temporaries(kind: str) -> None:
    p, g = {"p": np.ones(40 * BLOCK)}, {"p": np.ones(40 * BLOCK)}
    o = make(kind, clip_norm=1.0, clip_value=1.0)
    o.step(p, g)
    tracemalloc.start()
    o.step(p, g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < p["p"].nbytes / 4


def test_grads_do_not_change_unless_clipped() -> None:
    for kind in KINDS:
        p, o = parameters(), make(kind)
        _, grads = descent(p)
        for a in grads.values():
            a.flags.writeable = False
        o.step(p, grads)


def test_nan_stays_in_its_element() -> None:
    for kind in KINDS:
        p = {"p": np.ones(3), "q": np.ones(2)}
        make(kind).step(p, {"p": np.array([1, np.nan, 1]), "q": np.ones(2)})
        assert np.isnan(p["p"]).tolist() == [False, True, False]
        assert np.isfinite(p["q"]).all()


def test_clip_by_norm() -> None:
    g = {"a": np.full((2, 3), 3.0, np.float32), "b": np.array(-4.0), "none": np.empty(0)}
    before = copy.deepcopy(g)
    assert clip_by_norm(g, 100) == pytest.approx(math.sqrt(70), rel=1e-15)
    assert_same_bits(g, before)
    assert clip_by_norm(g, 2) == pytest.approx(math.sqrt(70), rel=1e-15)
    assert clip_by_norm(g, 100) == pytest.approx(2, rel=1e-6)
    assert g["a"].dtype == np.float32
    assert_close({"b": g["b"]}, {"b": before["b"] * (2 / (math.sqrt(70) + 1e-6))})


def test_clip_by_norm_returns_a_norm_that_is_not_finite() -> None:
    """The norm exceeds float32's squares, or is infinite or NaN, if the gradients are."""
    g = {"a": np.array([3e30, -4e30], np.float32)}
    assert clip_by_norm(g, 1) == pytest.approx(5e30, rel=1e-6)
    np.testing.assert_allclose(g["a"], [0.6, -0.8], rtol=1e-6)
    for bad, other in ((np.inf, 0.0), (np.nan, np.nan)):
        g = {"a": np.array([1.0, bad]), "b": np.array([1.0])}
        assert not math.isfinite(clip_by_norm(g, 1))
        np.testing.assert_array_equal(np.concatenate([g["a"], g["b"]]), [other, np.nan, other])


def test_clip_by_value() -> None:
    g = {"a": np.array([[-3.0, 0.5], [np.nan, np.inf]], np.float32), "b": np.array(2.0)}
    clip_by_value(g, 1)
    assert_same_bits(g, {"a": np.array([[-1, 0.5], [np.nan, 1]], np.float32), "b": np.array(1.0)})


def test_a_step_clips_by_value_then_by_norm() -> None:
    """By value first, then by norm, both before weight decay."""
    p, g = {"p": np.array([1.0, 1.0])}, {"p": np.array([30.0, -40.0])}
    SGD(1.0, clip_value=3.0, clip_norm=1.0, weight_decay=0.5).step(p, g)
    assert_close(p, {"p": np.array([0.5 - 3 / (math.sqrt(18) + 1e-6), 0.5 + 3 / (math.sqrt(18) + 1e-6)])})


def compiled(optimizer: Any) -> Optimizer:
    model = fastrnn.Sequential([fastrnn.Dense(2, 2)])
    model.compile(optimizer)
    return model.compiled.optimizer


def test_optimizers_have_names() -> None:
    for name, kind in (("sgd", SGD), ("adam", Adam), ("adamw", AdamW), ("rmsprop", RMSprop)):
        assert type(compiled(name)) is kind
        assert compiled(name) is not compiled(name)
    assert compiled(given := Adam(0.1)) is given
    with pytest.raises(ValueError, match=r"^optimizer: expected .*'adam'.*, got 'adagrad'"):
        compiled("adagrad")
    for wrong in (None, 0.1, Adam):
        with pytest.raises(TypeError, match=r"^optimizer: expected .*'adam'"):
            compiled(wrong)


def test_repr_shows_the_options() -> None:
    for kind in EVERY:
        options = {"learning_rate": 0.25, "weight_decay": 0.125, "clip_norm": 3.0, "clip_value": 0.75}
        said = repr(kind(**options))
        assert said.startswith(f"{kind.__name__}(learning_rate=0.25, ")
        for name, value in options.items():
            assert f"{name}={value}" in said


NUMBERS = [
    *[(kind, name, None) for kind in EVERY for name in ("learning_rate", "weight_decay")],
    *[(kind, name, 0) for kind in EVERY for name in ("clip_norm", "clip_value")],
    *[(kind, name, 1) for kind in (Adam, AdamW) for name in ("beta_1", "beta_2")],
    *[(kind, "epsilon", None) for kind in (Adam, AdamW, RMSprop)],
    *[(kind, "momentum", 1) for kind in (SGD, RMSprop)],
    (RMSprop, "rho", 1),
]


@pytest.mark.parametrize(("kind", "name", "bound"), NUMBERS)
def test_wrong_options_are_refused(kind: type[Optimizer], name: str, bound: float | None) -> None:
    for bad in (-0.1, math.nan, math.inf, *(() if bound is None else (bound,))):
        with pytest.raises(ValueError, match=rf"^{name}: expected a (finite )?number .*, got {float(bad)}"):
            kind(**{name: bad})
    for wrong in ("0.1", True, 1j, [0.1], np.ones(1)):
        with pytest.raises(TypeError, match=rf"^{name}: expected a (finite )?number"):
            kind(**{name: wrong})
    for right in (np.float32(0.5), np.float64(0.5), 0.5):
        assert getattr(kind(**{name: right}), name) == 0.5
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        kind(lr=0.1)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match=r"^nesterov: expected momentum"):
        SGD(nesterov=True)
    with pytest.raises(TypeError, match=r"^nesterov: expected True or False"):
        SGD(momentum=0.5, nesterov=1)  # type: ignore[arg-type]


def test_wrong_rates_change_nothing() -> None:
    o = Adam()
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"^learning_rate: expected"):
            o.learning_rate = bad
        p = {"p": np.ones(2)}
        o.learning_rate = lambda step, bad=bad: bad
        with pytest.raises(ValueError, match=r"^learning_rate at step 0: expected"):
            o.step(p, {"p": np.ones(2)})
        assert (o.steps, p["p"].tolist()) == (0, [1, 1])
        o.learning_rate = 0.1
    for clip in (clip_by_norm, clip_by_value):
        with pytest.raises(ValueError, match=r"^grads 'p': .*writable"):
            clip({"p": np.float64(3)}, 1.0)  # type: ignore[dict-item]
        with pytest.raises(TypeError, match=r"^grads 'p': .*int64"):
            clip({"p": np.arange(3)}, 1.0)
        for bad in (0, -1.0, math.nan):
            with pytest.raises(ValueError, match=r"^limit: expected a finite number above 0"):
                clip({}, bad)


@pytest.mark.parametrize(
    ("which", "change", "error", "said"),
    [
        ("parameters", lambda a: a.astype(np.int64), TypeError, "^parameters 'W': .*int64"),
        ("parameters", lambda a: a.tolist(), TypeError, "^parameters 'W': expected an array"),
        ("parameters", np.asfortranarray, ValueError, "^parameters 'W': .*contiguous"),
        ("parameters", read_only, ValueError, "^parameters 'W': .*writable"),
        ("grads", lambda a: a.astype(np.float32), TypeError, "^grads 'W': .*float64.*float32"),
        ("grads", lambda a: a.T, ValueError, r"^grads 'W': .*\(2, 3\), got \(3, 2\)"),
        ("grads", lambda a: a[0], ValueError, r"^grads 'W': .*\(2, 3\), got \(3,\)"),
        ("grads", lambda a: None, TypeError, "^grads 'W': expected an array"),
        ("grads", read_only, ValueError, "^grads 'W': .*writable.*clipping"),
    ],
)
def test_wrong_arrays_raise_an_error(
    which: str, change: Callable[[np.ndarray], Any], error: type[Exception], said: str
) -> None:
    """Nothing changes."""
    o = Adam(clip_norm=1.0)
    arrays: dict[str, dict[str, Any]] = {
        "parameters": {"b": np.ones(3), "W": np.ones((2, 3))},
        "grads": {"b": np.ones(3), "W": np.ones((2, 3))},
    }
    arrays[which]["W"] = change(arrays[which]["W"])
    with pytest.raises(error, match=said):
        o.step(**arrays)
    assert (o.steps, arrays["parameters"]["b"].tolist(), arrays["grads"]["b"].tolist()) == (0, [1] * 3, [1] * 3)


def test_wrong_names_are_refused() -> None:
    one, two = np.ones(2), np.ones(2)
    for kind in EVERY:
        o = kind()
        with pytest.raises(KeyError, match="grads: missing 'b'"):
            o.step({"a": one, "b": two}, {"a": one})
        with pytest.raises(KeyError, match="grads: unexpected 'b'"):
            o.step({"a": one}, {"a": one, "b": two})
        with pytest.raises(KeyError, match="grads: unexpected 'b', 3"):
            o.step({"a": one}, {"a": one, "b": two, 3: one})
    o = Adam()
    o.step({"a": np.ones(2)}, {"a": one})
    with pytest.raises(ValueError, match=r"^parameters 'a': .*in the steps before = \(2,\), got \(3,\)"):
        o.step({"a": np.ones(3)}, {"a": np.ones(3)})


@pytest.mark.parametrize("name", KINDS)
def test_each_parameter_counts_its_own_steps(name: str) -> None:
    """As if the others did not exist; a copy of the state continues the same way."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        own, alone = ({key: np.linspace(1, 2, 5) for key in "ab"} for _ in range(2))
        together, each = make(name), {key: make(name) for key in "ab"}
        for i in range(8):
            g = {key: rng.standard_normal(5) for key in ("a" if i < 3 else "ab" if i < 5 else "b")}
            together.step({key: own[key] for key in g}, {key: a.copy() for key, a in g.items()})
            for key, a in g.items():
                each[key].step({key: alone[key]}, {key: a})
            assert_same_bits(own, alone)
            state = together.state_dict()
            together = make(name)
            together.load_state_dict(state)
            assert_same_bits(together.state_dict(), state)
        slots = {key: a for one in each.values() for key, a in one.state_dict().items() if "." in key}
        assert_same_bits({key: a for key, a in state.items() if not key.startswith("steps")}, slots)
        assert together.steps == 8
        if together.slots:
            assert (state["steps.a"], state["steps.b"]) == (5, 5)
            with pytest.raises(ValueError, match=r"^state 'steps.a': .*-1"):
                together.load_state_dict(state | {"steps.a": np.array(-1)})
            with pytest.raises(KeyError, match=r"state: missing '\w+\.c'"):
                together.load_state_dict(state | {"steps.c": np.array(1)})


def test_a_wrong_state_raises_an_error() -> None:
    """No part of it is loaded."""
    p, o = parameters(), Adam()
    descend(o, p, range(3))
    state = o.state_dict()
    other = SGD(momentum=0.5)
    descend(other, parameters(), range(2))

    def without(name: str) -> Arrays:
        return {key: a for key, a in state.items() if key != name}

    for bad, error, said in (
        (without("steps"), KeyError, "state: missing 'steps'"),
        (without("exp_avg.0.W"), KeyError, "state: missing 'exp_avg.0.W'"),
        (other.state_dict(), KeyError, "state: missing 'exp_avg.0.W'"),
        ({"steps": np.array(3)}, KeyError, "state: missing 'exp_avg'"),
        (state | {"extra": np.ones(2)}, KeyError, "state: unexpected 'extra'"),
        (state | {1: np.ones(2)}, KeyError, "state: unexpected 1"),
        (None, TypeError, "^state: expected a mapping from names to arrays, got NoneType"),
        (state | {"steps": np.array(-1)}, ValueError, "^state 'steps': .*-1"),
        (state | {"steps": np.array(1.5)}, TypeError, "^state 'steps': .*float64"),
        (state | {"steps": np.array([1, 2])}, ValueError, "^state 'steps': .*\\(2,\\)"),
        (state | {"exp_avg.0.W": np.ones((7, 3), int)}, TypeError, "^state 'exp_avg.0.W': .*int64"),
        (state | {"exp_avg_sq.0.W": [1.0]}, TypeError, "^state 'exp_avg_sq.0.W': expected an array"),
    ):
        with pytest.raises(error, match=said):
            o.load_state_dict(bad)
        assert_same_bits(o.state_dict(), state)
    o.load_state_dict(state | {"exp_avg_sq.0.W": np.ones((3, 7))})
    with pytest.raises(ValueError, match=r"^parameters '0.W': .*\(3, 7\)"):
        o.step(p, descent(p)[1])
