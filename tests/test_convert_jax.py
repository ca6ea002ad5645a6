"""Weights of Flax, Equinox and Haiku: results of the libraries, and arrays that do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.tolerance import FLOAT32, assert_close

import fastrnn

T, B, I, H = 6, 2, 3, 4


jax_warns = pytest.mark.filterwarnings("ignore")  # of JAX's libraries, some while they are imported


def sequences(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def randomized(tree: Any, seed: int = 0) -> Any:
    """Return a tree of the same shapes with random values, including biases."""
    import jax

    rng = np.random.default_rng([80, seed])
    return jax.tree_util.tree_map(lambda a: (0.7 * rng.standard_normal(a.shape)).astype(np.float32), tree)


@pytest.mark.parametrize("inside_rnn", [False, True])
@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_flax_linen_cells_compute_the_same(kind: str, inside_rnn: bool, oracle: Callable[[str], Any]) -> None:
    jax, nn = oracle("jax"), oracle("flax.linen")
    cell, x = getattr(nn, kind)(H), sequences(B, T, I)
    rnn = nn.RNN(cell)
    params = randomized(rnn.init(jax.random.PRNGKey(0), x))
    given = params if inside_rnn else params["params"]["cell"]
    ours = fastrnn.from_flax(given, batch_first=True)
    assert_close({"y": ours(x)[0]}, {"y": np.asarray(rnn.apply(params, x))}, FLOAT32)


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_flax_nnx_cells_compute_the_same(kind: str, oracle: Callable[[str], Any]) -> None:
    oracle("flax")
    nnx = oracle("flax.nnx")
    cell = getattr(nnx, kind)(in_features=I, hidden_features=H, rngs=nnx.Rngs(0))
    params = randomized(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    nnx.update(cell, nnx.from_tree(params) if hasattr(nnx, "from_tree") else params)
    x = sequences(T, B, I)
    carry = cell.initialize_carry((B, I), nnx.Rngs(0))
    ys = []
    for x_t in x:
        carry, y = cell(carry, x_t)
        ys.append(np.asarray(y))
    assert_close({"y": fastrnn.from_flax(params)(x)[0]}, {"y": np.stack(ys)}, FLOAT32)


def test_a_flax_simple_cell_may_have_another_function(oracle: Callable[[str], Any]) -> None:
    jax, nn = oracle("jax"), oracle("flax.linen")
    rnn, x = nn.RNN(nn.SimpleCell(H, activation_fn=nn.relu)), sequences(B, T, I)
    params = randomized(rnn.init(jax.random.PRNGKey(0), x))
    ours = fastrnn.from_flax(params, activation="relu", batch_first=True)
    assert_close({"y": ours(x)[0]}, {"y": np.asarray(rnn.apply(params, x))}, FLOAT32)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_equinox_cells_compute_the_same(kind: str, use_bias: bool, oracle: Callable[[str], Any]) -> None:
    jax, eqx = oracle("jax"), oracle("equinox")
    cell = getattr(eqx.nn, kind)(I, H, use_bias=use_bias, key=jax.random.PRNGKey(1))
    x = sequences(T, 1, I)
    state = np.zeros(H, np.float32)
    carry = (state, state) if kind == "LSTMCell" else state
    ys = []
    for x_t in x[:, 0]:
        carry = cell(x_t, carry)
        ys.append(np.asarray(carry[0] if kind == "LSTMCell" else carry))
    ours = fastrnn.from_equinox(cell)
    assert bool(ours.bias) is use_bias
    assert_close({"y": ours(x)[0][:, 0]}, {"y": np.stack(ys)}, FLOAT32)


@pytest.mark.parametrize("options", [{}, {"double_bias": False}])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "VanillaRNN"])
def test_haiku_cells_compute_the_same(kind: str, options: dict[str, Any], oracle: Callable[[str], Any]) -> None:
    jax, hk = oracle("jax"), oracle("haiku")
    own = options if kind == "VanillaRNN" else {}

    def run(x: Any) -> Any:
        core = getattr(hk, kind)(H, name="memory", **own)
        return hk.Linear(2)(hk.dynamic_unroll(core, x, core.initial_state(B))[0])

    x, net = sequences(T, B, I), hk.without_apply_rng(hk.transform(run))
    params = randomized(net.init(jax.random.PRNGKey(0), x))
    ours = fastrnn.from_haiku(params, module="memory")
    y = ours(x)[0] @ params["linear"]["w"] + params["linear"]["b"]
    assert_close({"y": y}, {"y": np.asarray(net.apply(params, x))}, FLOAT32)
    with pytest.raises(ValueError, match=r"params: expected those of one LSTM, GRU or VanillaRNN.*, got .*memory"):
        fastrnn.from_haiku(params)


def kernels(*names: str, bias: tuple[str, ...] = ()) -> dict[str, Any]:
    made = {name: {"kernel": sequences(I if name[0] == "i" else H, H)} for name in names}
    return {name: own | ({"bias": sequences(H)} if name in bias else {}) for name, own in made.items()}


@pytest.mark.parametrize(
    ("convert", "given", "message"),
    [
        (fastrnn.from_flax, [1], "params: expected a mapping, as init returns, got list"),
        (fastrnn.from_equinox, 3, "cell: expected equinox.nn.LSTMCell or GRUCell, got int"),
        (fastrnn.from_haiku, 3, "params: expected a mapping, as init returns, got int"),
    ],
)
def test_other_types_raise_an_error(convert: Any, given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        convert(given)


EIGHT = {"dense_i": {"kernel": np.ones((3, 8))}, "dense_h": {"kernel": np.ones((4, 8))}}


@pytest.mark.parametrize(
    ("convert", "tree", "message"),
    [
        (fastrnn.from_flax, kernels("if", "in", "hf", "hn"), "got f, n, not of one cell"),
        (fastrnn.from_flax, kernels("ir", "hr") | {"x": 3}, "one recurrent cell, got 'x' among ir"),
        (fastrnn.from_flax, {"params": {"a": kernels("i"), "b": {}}}, "cell, got 'a' among a, b"),
        (fastrnn.from_flax, EIGHT, r"params: dense_h: expected a kernel \(H, G\*H\) with G = 1, 3 or 4, got \(4, 8\)"),
        (fastrnn.from_haiku, {}, "got none; select one with module="),
        (fastrnn.from_haiku, {"a": {"w": np.ones((3, 5))}}, "got a; select one with module="),
        (fastrnn.from_haiku, {"a": 3}, "VanillaRNN, got a; select one with module="),
        (fastrnn.from_haiku, {"a/linear": 3, 1: {}}, "VanillaRNN, got a/linear, 1; select"),
        (fastrnn.from_haiku, {"linear": {"w": np.ones((7, 16)), "b": np.ones(16)}}, "got linear"),
        (fastrnn.from_haiku, {"a/linear": kernels("i"), "b/linear_1": {}}, "got a/linear, b/linear_1"),
    ],
)
def test_trees_without_a_cell_raise_an_error(convert: Any, tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(tree)


def test_another_activation_of_a_simple_cell_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^activation: expected one of .*, got 'gelu'"):
        fastrnn.from_flax(kernels("i", "h"), activation="gelu")


def trees() -> dict[str, tuple[Any, dict[str, dict[str, np.ndarray]]]]:
    """Return a converter, and a parameter tree of every cell that it supports."""

    def product(rows: int, G: int, bias: bool) -> dict[str, np.ndarray]:
        return {"kernel": sequences(rows, G * H)} | ({"bias": sequences(G * H)} if bias else {})

    lstm = {f"i{g}": product(I, 1, False) for g in "ifgo"} | {f"h{g}": product(H, 1, True) for g in "ifgo"}
    gru = {f"i{g}": product(I, 1, True) for g in "rzn"} | {f"h{g}": product(H, 1, g == "n") for g in "rzn"}
    linear = [{"w": sequences(n, H), "b": sequences(H)} for n in (I, H)]
    haiku_gru = {"w_i": sequences(I, 3 * H), "w_h": sequences(H, 3 * H), "b": sequences(3 * H)}
    return {
        "flax LSTM": (fastrnn.from_flax, lstm),
        "flax GRU": (fastrnn.from_flax, gru),
        "flax simple": (fastrnn.from_flax, {"i": product(I, 1, True), "h": product(H, 1, False)}),
        "flax fused": (fastrnn.from_flax, {"dense_i": product(I, 4, False), "dense_h": product(H, 4, True)}),
        "haiku LSTM": (fastrnn.from_haiku, {"a/linear": {"w": sequences(I + H, 4 * H), "b": sequences(4 * H)}}),
        "haiku GRU": (fastrnn.from_haiku, {"a": haiku_gru}),
        "haiku RNN": (fastrnn.from_haiku, {"a/linear": linear[0], "a/linear_1": linear[1]}),
    }


class Equinox:
    """A cell's parameters as attributes."""

    def __init__(self, G: int, **others: Any) -> None:
        self.weight_ih, self.weight_hh = sequences(G * H, I), sequences(G * H, H)
        self.bias: Any = sequences(G * H)
        vars(self).update(({"bias_n": sequences(H)} if G == 3 else {}) | others)


INVALID = (TypeError, ValueError)

#: replacements of a matrix or a vector, each invalid there
WRONG: dict[str, Callable[[np.ndarray], Any]] = {
    "no axes": lambda a: np.float32(1),
    "an axis more": lambda a: a[None],
    "an axis less": lambda a: a[0],
    "three": lambda a: np.ones((2, 3, 4), np.float32),
    "no rows": lambda a: a[:0],
    "no columns": lambda a: a[..., :0],
    "odd": lambda a: np.ones((5, 7)[-a.ndim :], np.float32),
    "a column less": lambda a: a[..., :-1],
    "integers": lambda a: a.astype(int),
    "halves": lambda a: a.astype(np.float16),
    "complex": lambda a: a.astype(complex),
    "objects": lambda a: a.astype(object),
    "text": lambda a: "weights",
    "None": lambda a: None,
    "a mapping": lambda a: {"w": a},
    "masked": np.ma.masked_array,
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "byte-swapped": lambda a: a.astype(">f4"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", trees())
def test_arrays_that_do_not_fit_are_refused(kind: str, wrong: str) -> None:
    """The message begins with the path of one of the arrays."""
    convert, tree = trees()[kind]
    assert convert(tree).hidden_size == H
    paths = "|".join(f"{name}: {key}" for name, own in tree.items() for key in own)
    for name, own in tree.items():
        for key, a in own.items():
            changed = tree | {name: own | {key: WRONG[wrong](a)}}
            with pytest.raises(INVALID, match=rf"^params: ({paths}|dense_h|expected I and H of at least 1)"):
                convert(changed)


@pytest.mark.parametrize("kind", trees())
def test_missing_or_surplus_arrays_are_refused(kind: str) -> None:
    convert, tree = trees()[kind]
    for name, own in tree.items():
        for other in ("v", 3):
            with pytest.raises(ValueError, match=r"^params: (unexpected|expected)"):
                convert(tree | {name: own | {other: sequences(H)}})
            with pytest.raises(ValueError, match=r"^params: expected"):
                convert(tree | {other: own})
        for key in own:
            if key not in ("b", "bias"):
                message = rf"^params: (missing '{name}: {key}'|{name}: missing '{key}'|expected)"
                with pytest.raises(ValueError, match=message):
                    convert(tree | {name: {k: a for k, a in own.items() if k != key}})
    _, lstm = trees()["flax LSTM"]
    with pytest.raises(ValueError, match=r"^params: hf: missing 'bias', which hi has"):
        fastrnn.from_flax(lstm | {"hf": {"kernel": lstm["hf"]["kernel"]}})


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("G", [3, 4])
def test_equinox_arrays_that_do_not_fit_are_refused(G: int, wrong: str) -> None:
    assert fastrnn.from_equinox(Equinox(G)).hidden_size == H
    for name, a in vars(Equinox(G)).items():
        # weight_ih with fewer columns means fewer inputs; bias=None means use_bias=False
        if (name, wrong) != ("weight_ih", "a column less") and (G, name, wrong) != (4, "bias", "None"):
            with pytest.raises(INVALID, match=r"^cell: (weight|bias|missing '|expected I and H of at least 1)"):
                fastrnn.from_equinox(Equinox(G, **{name: WRONG[wrong](a)}))


def test_sizes_that_do_not_fit_each_other_are_refused() -> None:
    haiku = {"a/linear": {"w": sequences(7, 16), "b": sequences(12)}}
    with pytest.raises(ValueError, match=re.escape("b: expected shape (4*H,) = (16,), got (12,)")):
        fastrnn.from_haiku(haiku)
    flax = {"i": {"kernel": sequences(I, 5)}, "h": {"kernel": sequences(H, H)}}
    with pytest.raises(ValueError, match=re.escape("h: kernel: expected shape (H, H) = (5, 5), got (4, 4)")):
        fastrnn.from_flax(flax)
    with pytest.raises(ValueError, match=r"^cell: bias_n: expected shape \(H,\) = \(4,\), got \(5,\)"):
        fastrnn.from_equinox(Equinox(3, bias_n=sequences(5)))
    with pytest.raises(TypeError, match=r"^cell: weight_hh: expected dtype float32, that of the others, got float64"):
        fastrnn.from_equinox(Equinox(4, weight_hh=np.ones((4 * H, H))))
