"""Optimizers, schedules, clipping: by the papers' equations, exact resume, errors that name the argument."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.descents import KINDS, descend, descent, parameters
from support.problems import Arrays
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.layers import RowGradient
from fastrnn.training import (
    SGD,
    Adam,
    AdamW,
    CosineDecay,
    ExponentialDecay,
    Optimizer,
    PiecewiseConstant,
    RMSprop,
    clip_by_norm,
    clip_by_value,
)
from fastrnn.training.optimizers import BLOCK

EVERY = (SGD, Adam, AdamW, RMSprop)


def make(kind: str, **options: Any) -> Optimizer:
    cls, given = KINDS[kind]
    return cls(**given, **options)


def by_the_book(kind: str, p: Any, grads: list[Any], steps: list[int] | None = None) -> Any:
    """The equations as the docstrings have them, one after the other; in these steps, counted from 1, if not all."""
    cls, given = KINDS[kind]
    defaults = {"lr": 0.001 if cls in (Adam, AdamW) else 0.01, "wd": 0.01 if cls is AdamW else 0.0}
    a, d = given.get("learning_rate", defaults["lr"]), given.get("weight_decay", defaults["wd"])
    e, mu = given.get("epsilon", 1e-8), given.get("momentum", 0.0)
    b1, b2, r = given.get("beta_1", 0.9), given.get("beta_2", 0.999), given.get("rho", 0.99)
    m = v = b = np.zeros_like(p)
    for t, g in zip(steps or range(1, len(grads) + 1), grads, strict=True):
        if cls is not AdamW:
            g = g + d * p
        if cls is SGD:
            b = mu * b + g
            p = p - a * (g + mu * b if given.get("nesterov") else b)
        elif cls is RMSprop:
            v = r * v + (1 - r) * g**2
            b = mu * b + g / (np.sqrt(v) + e)
            p = p - a * b
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            if cls is AdamW:
                p = p - a * d * p
            p = p - a * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + e)
    return p


@pytest.mark.parametrize("kind", KINDS)
def test_equations(kind: str) -> None:
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((3, 5)), list(rng.standard_normal((9, 3, 5)))
    p, o = {"p": start.copy()}, make(kind)
    for g in grads:
        o.step(p, {"p": g})
    assert_close(p, {"p": by_the_book(kind, start, grads)})


@pytest.mark.parametrize("kind", KINDS)
def test_descends(kind: str) -> None:
    """On one batch, whose loss falls, in place and in the parameters' own dtype."""
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
def test_resume_is_exact(kind: str, dtype: Any) -> None:
    """Half the steps, a new optimizer with the state, the other half: the same bits; a schedule goes on as well."""
    rate = ExponentialDecay(0.01, decay_steps=10, decay_rate=0.5)
    options = {**KINDS[kind][1], "learning_rate": rate, "clip_norm": 0.5, "clip_value": 0.1}
    cls = KINDS[kind][0]
    whole, parted = parameters(dtype), parameters(dtype)
    losses = descend(cls(**options), whole, range(20))
    first, second = cls(**options), cls(**options)
    before = descend(first, parted, range(11))
    state = first.state_dict()
    kept = copy.deepcopy(state)
    descend(first, copy.deepcopy(parted), range(2))  # which is no business of the state's
    second.load_state_dict(state)
    assert_same_bits(second.state_dict(), kept)
    assert losses == before + descend(second, parted, range(11, 20))
    assert_same_bits(parted, whole)
    assert_same_bits(state, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind: str) -> None:
    """Pickled and deep copies go on alone, with the same bits."""
    p, o = parameters(), make(kind)
    descend(o, p, range(5))
    twins = [(pickle.loads(pickle.dumps(o)), copy.deepcopy(p)), (copy.deepcopy(o), copy.deepcopy(p))]
    descend(o, p, range(5, 10))
    for twin, q in twins:
        descend(twin, q, range(5, 10))
        assert_same_bits(q, p)
        assert_same_bits(twin.state_dict(), o.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_blocks(kind: str) -> None:
    """A parameter of several blocks is updated as its parts are, whatever the layout of its gradient."""
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


def some_rows(seed: int, steps: int = 12, n: int = 9, dtype: Any = np.float64) -> tuple[np.ndarray, list[RowGradient]]:
    """A table (n, 3), and gradients of some of its rows; row 0 comes in no step, row 1 in every one."""
    rng = np.random.default_rng(seed)
    grads = []
    for _ in range(steps):
        rows = np.flatnonzero(rng.random(n) < 0.4)
        rows = np.union1d(rows[rows > 1], [1])
        grads.append(RowGradient(rows, rng.standard_normal((len(rows), 3)).astype(dtype), (n, 3)))
    return rng.standard_normal((n, 3)).astype(dtype), grads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_rows_wait_until_they_are_met(kind: str, seed: int) -> None:
    """Each row follows the equations in the steps that have it, and nothing else moves it, decay least of all."""
    start, grads = some_rows(seed)
    p, o = {"p": start.copy()}, make(kind)
    for g in grads:
        kept = g.values.copy()
        o.step(p, {"p": g})
        assert_same_bits({"g": g.values}, {"g": kept})
    assert_same_bits({"0": p["p"][:1]}, {"0": start[:1]})
    for row in range(1, len(start)):
        met = [(t, g.values[g.rows == row][0]) for t, g in enumerate(grads, 1) if row in g.rows]
        expected = by_the_book(kind, start[row], [g for _, g in met], [t for t, _ in met])
        assert_close({"row": p["p"][row]}, {"row": expected})


@pytest.mark.parametrize(("rate", "betas"), [(0.001, (0.9, 0.999)), (0.05, (0.7, 0.9))])
def test_rows_as_sparse_adam(rate: float, betas: tuple[float, float], oracle: Callable[[str], Any]) -> None:
    """PyTorch adds epsilon to a v that is not corrected there, unlike in its Adam: next to 0, it is the same."""
    torch = oracle("torch")
    start, grads = some_rows(4)
    table = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.SparseAdam([table], lr=rate, betas=betas, eps=1e-200)
    p, ours = {"p": start.copy()}, Adam(rate, *betas, epsilon=1e-200)
    for g in grads:
        table.grad = torch.sparse_coo_tensor(g.rows[None], g.values, g.shape, check_invariants=True)
        theirs.step()
        ours.step(p, {"p": g})
    assert_close(p, {"p": table.detach().numpy()})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_are_a_whole_gradient(kind: str, dtype: Any) -> None:
    """To the bit, with clipping too, beside a parameter that is whole; and a saved state goes on exactly."""
    options = {**KINDS[kind][1], "clip_norm": 0.5, "clip_value": 0.3}
    rng = np.random.default_rng(0)
    p = {name: rng.standard_normal((7, 3)).astype(dtype) for name in ("a", "b")}
    q, (whole, rows) = copy.deepcopy(p), (KINDS[kind][0](**options) for _ in range(2))
    for step in range(8):
        a, b = rng.standard_normal((2, 7, 3)).astype(dtype)
        whole.step(p, {"a": a.copy(), "b": b.copy()})
        rows.step(q, {"a": a.copy(), "b": RowGradient(np.arange(7), b.copy(), (7, 3))})
        if step == 3:
            state = rows.state_dict()
            rows = KINDS[kind][0](**options)
            rows.load_state_dict(state)
    assert_same_bits(q, p)
    assert_same_bits(rows.state_dict(), whole.state_dict())


def test_clipping_of_rows() -> None:
    """The norm is that of the whole gradients, the rows that are 0 adding nothing."""
    _, grads = some_rows(0)
    arrays = {"a": np.asarray(grads[0]), "b": np.ones(2)}
    given = {"a": grads[0], "b": np.ones(2)}
    assert clip_by_norm(given, 0.5) == pytest.approx(clip_by_norm(arrays, 0.5), rel=1e-15)
    assert_close({"a": np.asarray(given["a"]), "b": given["b"]}, arrays)
    clip_by_value(given, 0.05)
    assert np.abs(grads[0].values).max() == 0.05


@pytest.mark.parametrize("kind", ["sgd", "sgd_nesterov_decay", "adam", "adamw", "rmsprop_momentum"])
def test_a_step_of_rows_costs_what_they_cost(kind: str) -> None:
    p = {"p": np.ones((100_000, 16))}
    rows = np.arange(0, 100_000, 2_000)
    o = make(kind, clip_norm=1.0, clip_value=1.0)
    o.step(p, {"p": RowGradient(rows, np.ones((50, 16)), (100_000, 16))})
    tracemalloc.start()
    o.step(p, {"p": RowGradient(rows + 1, np.ones((50, 16)), (100_000, 16))})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e5  # 13 MB are a whole gradient, 6.4 kB these rows
    changed = np.flatnonzero((p["p"] != 1).any(axis=1))
    np.testing.assert_array_equal(changed, np.union1d(rows, rows + 1))


def test_rows_that_do_not_fit() -> None:
    p, one = {"p": np.ones((4, 3))}, np.ones((1, 3))
    with pytest.raises(ValueError, match=r"^grads 'p': expected shape the parameter's = \(4, 3\), got \(5, 3\)"):
        SGD().step(p, {"p": RowGradient(np.array([4]), one, (5, 3))})
    with pytest.raises(TypeError, match=r"^grads 'p': expected dtype float64, the parameter's, got float32"):
        SGD().step(p, {"p": RowGradient(np.array([0]), one.astype(np.float32), (4, 3))})
    for wrong, message in (
        (lambda: RowGradient([0], one, (4, 3)), "^rows: expected an array, got list"),  # type: ignore[arg-type]
        (lambda: RowGradient(np.array([0]), None, (4, 3)), "^values: expected an array, got NoneType"),  # type: ignore[arg-type]
        (lambda: RowGradient(np.array([0.0]), one, (4, 3)), "^rows: expected integers, got float64"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()
    for rows in ([1, 0], [1, 1], [[0, 1]]):
        with pytest.raises(ValueError, match=r"^rows: expected distinct row indices in ascending order"):
            RowGradient(np.array(rows), np.ones((2, 3)), (4, 3))
    for rows in ([-1, 0], [0, 4]):
        with pytest.raises(ValueError, match=r"^rows: expected each in 0\.\.3, got "):
            RowGradient(np.array(rows), np.ones((2, 3)), (4, 3))
    with pytest.raises(ValueError, match=r"^values: expected shape \(R, E\) = \(1, 3\), got \(2, 3\)"):
        RowGradient(np.array([1]), np.ones((2, 3)), (4, 3))
    assert (p["p"] == 1).all()


def test_grads_stay_unless_clipped() -> None:
    for kind in KINDS:
        p, o = parameters(), make(kind)
        _, grads = descent(p)
        for a in grads.values():
            a.flags.writeable = False
        o.step(p, grads)


def test_nan_propagates() -> None:
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


def test_clip_by_norm_of_what_exploded() -> None:
    """Past float32's range of squares; infinity, which becomes NaN, and NaN, which spreads: the norm tells."""
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


def test_clipping_in_a_step() -> None:
    """By value first, then by norm, both before weight decay."""
    p, g = {"p": np.array([1.0, 1.0])}, {"p": np.array([30.0, -40.0])}
    SGD(1.0, clip_value=3.0, clip_norm=1.0, weight_decay=0.5).step(p, g)
    assert_close(p, {"p": np.array([0.5 - 3 / (math.sqrt(18) + 1e-6), 0.5 + 3 / (math.sqrt(18) + 1e-6)])})


def test_schedules() -> None:
    """The step that a schedule sees is counted from 0; a rate set anew holds from the next step on."""
    seen: list[int] = []

    def rate(step: int) -> float:
        seen.append(step)
        return 0.5**step

    p, o = {"p": np.array(0.0)}, SGD(rate)
    for _ in range(3):
        o.step(p, {"p": np.array(1.0)})
    assert (seen, float(p["p"])) == ([0, 1, 2], -1.75)
    assert (o.rate, o.learning_rate) == (0.125, rate)
    o.learning_rate = 2.0
    o.step(p, {"p": np.array(1.0)})
    assert (o.rate, float(p["p"])) == (2.0, -3.75)

    decay = ExponentialDecay(0.1, 10, 0.5)
    assert [decay(s) for s in (0, 10, 30)] == [0.1, 0.05, 0.0125]
    assert decay(5) == pytest.approx(0.1 * math.sqrt(0.5), rel=1e-15)
    steps = ExponentialDecay(0.1, 10, 0.5, staircase=True)
    assert [steps(s) for s in (0, 9, 10, 19, 20)] == [0.1, 0.1, 0.05, 0.05, 0.025]
    cosine = CosineDecay(1.0, 8, final_rate=0.2, warmup_steps=4)
    assert [cosine(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], rel=1e-15)
    assert [cosine(s) for s in (8, 12, 13, 1000)] == pytest.approx([0.6, 0.2, 0.2, 0.2], rel=1e-15)
    pieces = PiecewiseConstant([2, 5], [0.3, 0.2, 0.1])
    assert [pieces(s) for s in (0, 1, 2, 4, 5, 99)] == [0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
    assert PiecewiseConstant([], [0.3])(7) == 0.3
    for schedule in (decay, steps, cosine, pieces):
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        hash(schedule)


def compiled(optimizer: Any) -> Optimizer:
    model = fastrnn.Sequential([fastrnn.Dense(2, 2)])
    model.compile(optimizer)
    return model.compiled.optimizer


def test_names() -> None:
    for name, kind in (("sgd", SGD), ("adam", Adam), ("adamw", AdamW), ("rmsprop", RMSprop)):
        assert type(compiled(name)) is kind
        assert compiled(name) is not compiled(name)
    assert compiled(given := Adam(0.1)) is given
    with pytest.raises(ValueError, match=r"^optimizer: expected .*'adam'.*, got 'adagrad'"):
        compiled("adagrad")
    for wrong in (None, 0.1, Adam):
        with pytest.raises(TypeError, match=r"^optimizer: expected .*'adam'"):
            compiled(wrong)


def test_repr_says_the_options() -> None:
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
def test_wrong_options(kind: type[Optimizer], name: str, bound: float | None) -> None:
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


def test_wrong_nesterov() -> None:
    with pytest.raises(ValueError, match=r"^nesterov: expected momentum"):
        SGD(nesterov=True)
    with pytest.raises(TypeError, match=r"^nesterov: expected True or False"):
        SGD(momentum=0.5, nesterov=1)  # type: ignore[arg-type]


def test_wrong_rates() -> None:
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
    ("schedule", "error", "said"),
    [
        (lambda: ExponentialDecay(-0.1, 10, 0.5), ValueError, "learning_rate"),
        (lambda: ExponentialDecay(0.1, 0, 0.5), ValueError, "decay_steps"),
        (lambda: ExponentialDecay(0.1, 1.5, 0.5), TypeError, "decay_steps"),
        (lambda: ExponentialDecay(0.1, 10, 0.0), ValueError, "decay_rate"),
        (lambda: ExponentialDecay(0.1, 10, 0.5, 1), TypeError, "staircase"),
        (lambda: CosineDecay(-0.1, 10), ValueError, "learning_rate"),
        (lambda: CosineDecay(0.1, -10), ValueError, "decay_steps"),
        (lambda: CosineDecay(0.1, 10, -0.1), ValueError, "final_rate"),
        (lambda: CosineDecay(0.1, 10, 0.1, -1), ValueError, "warmup_steps"),
        (lambda: CosineDecay(0.1, 10, 0.1, 1.0), TypeError, "warmup_steps"),
        (lambda: PiecewiseConstant([3, 2], [1, 2, 3]), ValueError, "boundaries"),
        (lambda: PiecewiseConstant([2, 2], [1, 2, 3]), ValueError, "boundaries"),
        (lambda: PiecewiseConstant([-1], [1, 2]), ValueError, "boundaries"),
        (lambda: PiecewiseConstant([1.5], [1, 2]), TypeError, "boundaries"),
        (lambda: PiecewiseConstant([2], [1, 2, 3]), ValueError, "values"),
        (lambda: PiecewiseConstant([2], [1, -2]), ValueError, "values"),
        (lambda: PiecewiseConstant(5, [1, 2]), TypeError, "boundaries"),
        (lambda: PiecewiseConstant([5], 1), TypeError, "values"),
    ],
)
def test_wrong_schedules(schedule: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=rf"^{said}: expected"):
        schedule()


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


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
def test_wrong_arrays(which: str, change: Callable[[np.ndarray], Any], error: type[Exception], said: str) -> None:
    """An error, and nothing has changed."""
    o = Adam(clip_norm=1.0)
    arrays: dict[str, dict[str, Any]] = {
        "parameters": {"b": np.ones(3), "W": np.ones((2, 3))},
        "grads": {"b": np.ones(3), "W": np.ones((2, 3))},
    }
    arrays[which]["W"] = change(arrays[which]["W"])
    with pytest.raises(error, match=said):
        o.step(**arrays)
    assert (o.steps, arrays["parameters"]["b"].tolist(), arrays["grads"]["b"].tolist()) == (0, [1] * 3, [1] * 3)


def test_wrong_names() -> None:
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
def test_left_out(name: str) -> None:
    """A parameter takes its own steps, as if the others were not there, and the state goes on from a copy."""
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


def test_wrong_state() -> None:
    """Nothing of a wrong state is taken."""
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
