"""Cells of the catalogue equal the papers' formulas, written independently with PyTorch's functions.

The arguments of a formula `f(a, u, s, p, e)` are W x + b by gate, the product of U's k-th block with a vector,
and the states, parameters and inputs in order; PyTorch's autograd differentiates it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from support.cell_problems import by_autograd, problem, results
from support.tolerance import assert_close

import fastrnn
from fastrnn import catalogue

ACTIVATIONS = (
    "tanh", "relu", "sigmoid", "hard_sigmoid", "hard_sigmoid_keras2", "identity", "softsign", "softplus", "elu", "selu",
    "silu", "exponential",
)  # fmt: skip


def functions(torch: Any) -> dict[str, Callable[[Any], Any]]:
    nn = torch.nn.functional
    return {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        # PyTorch's hardsigmoid has float32's 1/6 in its gradient
        "hard_sigmoid": lambda a: torch.clamp(a / 6 + 0.5, 0, 1),
        "hard_sigmoid_keras2": lambda a: torch.clamp(0.2 * a + 0.5, 0, 1),
        "identity": lambda a: a,
        "softsign": nn.softsign,
        "softplus": nn.softplus,
        "elu": nn.elu,
        "selu": nn.selu,
        "silu": nn.silu,
        "exponential": torch.exp,
    }


def formulas(torch: Any) -> dict[str, Callable[..., Any]]:
    sigmoid, tanh, relu = torch.sigmoid, torch.tanh, torch.relu

    def li_gru(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        [h] = s
        z = sigmoid(a[0] + u(0, h))
        return [z * h + (1 - z) * relu(a[1] + u(1, h))]

    def minimal_gated_unit(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        [h] = s
        f = sigmoid(a[0] + u(0, h))
        return [h - f * h + f * tanh(a[1] + u(1, f * h))]

    def cifg_lstm_input(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        h, c = s
        i, g, o = sigmoid(a[0] + u(0, h)), tanh(a[1] + u(1, h)), sigmoid(a[2] + u(2, h))
        c = c - i * c + i * g
        return [o * tanh(c), c]

    def cifg_lstm_forget(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        h, c = s
        f, g, o = sigmoid(a[0] + u(0, h)), tanh(a[1] + u(1, h)), sigmoid(a[2] + u(2, h))
        c = f * c + g - f * g
        return [o * tanh(c), c]

    def janet(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        [h] = s
        v = a[0] + u(0, h)
        return [sigmoid(v) * h + (1 - sigmoid(v - 1)) * tanh(a[1] + u(1, h))]

    def min_lstm(a: Any, u: Any, s: Any, p: Any, e: Any, g: Any = lambda v: v) -> Any:
        f, i = sigmoid(a[0]), sigmoid(a[1])
        return [f / (f + i) * s[0] + i / (f + i) * g(a[2])]

    def min_gru(a: Any, u: Any, s: Any, p: Any, e: Any, g: Any = lambda v: v) -> Any:
        z = sigmoid(a[0])
        return [s[0] - z * s[0] + z * g(a[1])]

    def positive(v: Any) -> Any:
        return relu(v) + torch.minimum(sigmoid(v), torch.full_like(v, 0.5))

    def sru(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        before = s[1]
        f, r = sigmoid(a[1] + p[0] * before), sigmoid(a[2] + p[1] * before)
        c = f * before + (1 - f) * a[0]
        return [r * c + (1 - r) * a[3], c]

    def ctrnn(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        v = s[1]
        v = v + p[0] * (a[0] + u(0, relu(v)) - v) + e[0]
        return [relu(v), v]

    def lru(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        eigenvalue = torch.exp(torch.complex(-torch.exp(p[0]), torch.exp(p[1])))
        h = eigenvalue * torch.complex(*s) + torch.exp(p[2]) * torch.complex(a[0], a[1])
        return [h.real, h.imag]

    def slstm(a: Any, u: Any, s: Any, p: Any, e: Any, floor: bool = False) -> Any:
        h, c, n, m = s
        raw = [a[k] + u(k, h) for k in range(4)]
        forgotten = torch.nn.functional.logsigmoid(raw[1]) + m
        m = torch.where(n == 0, raw[0], torch.maximum(raw[0], forgotten))
        f = torch.where(n == 0, torch.zeros_like(n), torch.exp(forgotten - m))
        c, n = f * c + torch.exp(raw[0] - m) * tanh(raw[2]), f * n + torch.exp(raw[0] - m)
        n = torch.clamp(n, min=1) if floor else n
        return [sigmoid(raw[3]) * c / n, c, n, m]

    norm = torch.nn.functional.layer_norm

    def layer_norm_lstm(a: Any, u: Any, s: Any, p: Any, e: Any, eps: float = 1e-5, carried: bool = False) -> Any:
        h, c = s
        width = (c.shape[-1],)
        wx = norm(torch.cat(a, -1), (4 * c.shape[-1],), weight=torch.cat(p[:4]), eps=eps)
        uh = norm(torch.cat([u(k, h) for k in range(4)], -1), (4 * c.shape[-1],), weight=torch.cat(p[4:8]), eps=eps)
        i, f, g, o = (wx + uh + torch.cat(p[8:12])).chunk(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        seen = norm(c, width, weight=p[12], bias=p[13], eps=eps)
        return [sigmoid(o) * tanh(seen), seen if carried else c]

    def layer_norm_gru(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        [h] = s
        width = (3 * h.shape[-1],)
        wx = norm(torch.cat(a, -1), width, weight=torch.cat(p[:3])).chunk(3, -1)
        uh = norm(torch.cat([u(k, h) for k in range(3)], -1), width, weight=torch.cat(p[3:6])).chunk(3, -1)
        r, z = (sigmoid(wx[k] + uh[k] + p[6 + k]) for k in range(2))
        return [z * h + (1 - z) * tanh(wx[2] + p[8] + r * (uh[2] + p[9]))]

    return {
        "layer_norm_lstm": layer_norm_lstm,
        "layer_norm_lstm_addons": lambda *given: layer_norm_lstm(*given, eps=1e-3, carried=True),
        "layer_norm_gru": layer_norm_gru,
        "li_gru": li_gru,
        "minimal_gated_unit": minimal_gated_unit,
        "cifg_lstm_input": cifg_lstm_input,
        "cifg_lstm_forget": cifg_lstm_forget,
        "janet": janet,
        "ind_rnn": lambda a, u, s, p, e: [relu(a[0] + p[0] * s[0])],
        "ind_rnn_tanh": lambda a, u, s, p, e: [tanh(a[0] + p[0] * s[0])],
        "min_gru": min_gru,
        "min_gru_log": lambda *given: min_gru(*given, g=positive),
        "min_lstm": min_lstm,
        "min_lstm_log": lambda *given: min_lstm(*given, g=positive),
        "sru": sru,
        "leaky_esn": lambda a, u, s, p, e: [s[0] + p[0] * (tanh(a[0] + u(0, s[0])) - s[0])],
        "ctrnn": ctrnn,
        "lru": lru,
        "slstm": slstm,
        "slstm_floor": lambda *given: slstm(*given, floor=True),
    }


def lstm_formula(torch: Any, f: Any, g: Any, h: Any, bound: float, cell_clip: float, coupled: bool, peep: bool) -> Any:
    """Return the LSTM as defined by ONNX, with a cell clip."""

    def formula(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        y, c = s
        before = [torch.zeros_like(c)] * 3 if not peep else [p[0] * c, p[0] * c if coupled else p[1] * c]
        last = len(a) - 1
        i = f(torch.clamp(a[0] + u(0, y) + before[0], -bound, bound))
        forget = 1 - i if coupled else f(torch.clamp(a[1] + u(1, y) + before[1], -bound, bound))
        new = torch.clamp(a[last - 1] + u(last - 1, y), -bound, bound)
        c = torch.clamp(forget * c + i * g(new), -cell_clip, cell_clip)
        return [f(torch.clamp(a[last] + u(last, y) + (p[-1] * c if peep else 0), -bound, bound)) * h(c), c]

    return formula


def gru_formula(torch: Any, f: Any, g: Any, bound: float, after: bool) -> Any:
    def formula(a: Any, u: Any, s: Any, p: Any, e: Any) -> Any:
        [h] = s
        r, z = (f(torch.clamp(a[k] + u(k, h), -bound, bound)) for k in range(2))
        n = g(torch.clamp(a[2] + (r * u(2, h) if after else u(2, r * h)), -bound, bound))
        return [(1 - z) * n + z * h]

    return formula


def expected(torch: Any, p: Any, formula: Any) -> dict[str, np.ndarray]:
    cell = p.cell

    def step(x: Any, state: Any, W: Any, U: Any, b: Any, b_rec: Any, parameters: Any, e: Any) -> Any:
        a = [x @ rows.T + offset for rows, offset in zip(W.chunk(cell.G), b.chunk(cell.G), strict=True)]
        n = len(cell.products)
        blocks = [] if U is None else list(zip(U.chunk(n), b_rec.chunk(n), strict=True))

        def u(k: int, v: Any) -> Any:
            return v @ blocks[k][0].T + blocks[k][1]

        own = [] if parameters is None else parameters.chunk(len(cell.parameters))
        return formula(a, u, state, own, [e[name] for name in cell.inputs])

    return by_autograd(torch, p, step)


def expect(torch: Any, cell: Any, formula: Any, scale: float = 1.0) -> None:
    """Check every output and gradient of the cell against the formula."""
    for seed, options in enumerate(({}, {"lengths": True, "resets": True}, {"reverse": True, "checkpoint": 2})):
        p = problem(cell, (5, 4, 3, 9), seed, **options)
        p.inputs = {name: a * scale for name, a in p.inputs.items()}
        if "n" in cell.states:  # a sum of exponentials
            p.init = tuple([abs(a) if s == "n" else a for s, a in zip(cell.states, p.init, strict=True)])
        assert_close(results(p), expected(torch, p, formula))


CELLS = [name for name in catalogue.__all__ if isinstance(getattr(catalogue, name), fastrnn.defined.DefinedCell)]


@pytest.mark.parametrize("name", CELLS)
def test_formulas(name: str, backend: str, oracle: Callable[[str], Any]) -> None:
    torch = oracle("torch")
    expect(torch, getattr(catalogue, name), formulas(torch)[name])


@pytest.mark.parametrize("k", range(len(ACTIVATIONS)))
def test_factories(k: int, backend: str, oracle: Callable[[str], Any]) -> None:
    """Every activation in every place, with and without a clip."""
    torch = oracle("torch")
    known, free = functions(torch), float("inf")
    f, g, h = (ACTIVATIONS[(k + n) % len(ACTIVATIONS)] for n in (0, 1, 5))
    bound = 0.6 if k % 2 or "exponential" in (f, g) else None  # otherwise states grow without bound
    most, coupled, peephole, after = bound or free, k % 3 == 1, k % 4 == 1, k % 2 == 0
    cell = catalogue.lstm_with(f, g, h, clip=bound, input_forget=coupled, peephole=peephole)
    expect(torch, cell, lstm_formula(torch, known[f], known[g], known[h], most, free, coupled, peephole), 0.8)
    cell = catalogue.gru_with(f, g, reset_after=after, clip=bound)
    expect(torch, cell, gru_formula(torch, known[f], known[g], most, after), 0.8)
    cell = catalogue.rnn_with(f, clip=bound)
    expect(torch, cell, lambda a, u, s, p, e: [known[f](torch.clamp(a[0] + u(0, s[0]), -most, most))], 0.8)


def test_clipped_cell_state(backend: str, oracle: Callable[[str], Any]) -> None:
    torch = oracle("torch")
    formula = lstm_formula(torch, torch.sigmoid, torch.tanh, torch.tanh, float("inf"), 0.3, False, False)
    expect(torch, catalogue.clipped_lstm(0.3), formula)


def test_coupled_gates_differ_only_in_sign() -> None:
    p = problem(catalogue.cifg_lstm_input, (5, 4, 3, 9))
    y = p.cell.forward(**p.inputs, init=p.init).y
    assert np.linalg.norm(catalogue.cifg_lstm_forget.forward(**p.inputs, init=p.init).y - y) > 1e-2
    turned = {name: a.copy() for name, a in p.inputs.items()}
    for name in ("W", "U", "b", "b_rec"):
        turned[name][:9] *= -1
    assert_close({"y": catalogue.cifg_lstm_forget.forward(**turned, init=p.init).y}, {"y": y})


def test_default_factories_are_the_built_in_cells() -> None:
    x, W, U = (np.random.default_rng(0).standard_normal(shape) for shape in ((5, 2, 3), (36, 3), (36, 9)))
    y = fastrnn.lstm_forward(x, W, U).y
    assert_close({"y": catalogue.lstm_with().forward(x, W, U).y}, {"y": y})
    for after in (False, True):
        y = fastrnn.gru_forward(x, W[:27], U[:27], reset_after=after).y
        assert_close({"y": catalogue.gru_with(reset_after=after).forward(x, W[:27], U[:27]).y}, {"y": y})


def test_slstm_is_the_quotient_of_two_sums(backend: str) -> None:
    """Without m, as the paper first defines it; only that overflows. From zero states a floor has no effect."""
    p = problem(catalogue.slstm, (6, 3, 2, 5))
    out = p.cell.forward(**p.inputs, return_states=True)
    W, U = p.inputs["W"].reshape(4, 5, 2), p.inputs["U"].reshape(4, 5, 5)
    bias = (p.inputs["b"] + p.inputs["b_rec"]).reshape(4, 1, 5)
    h = c = n = np.zeros((3, 5))
    for t, x in enumerate(p.inputs["x"]):
        i, f, z, o = x @ W.swapaxes(1, 2) + h @ U.swapaxes(1, 2) + bias
        f, o = 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o))
        c, n = f * c + np.exp(i) * np.tanh(z), f * n + np.exp(i)
        h = o * c / n
        m = np.exp(out.states[3][t])
        assert_close({"h": out.y[t], "c": out.states[1][t] * m, "n": out.states[2][t] * m}, {"h": h, "c": c, "n": n})
    assert_close({"y": catalogue.slstm_floor.forward(**p.inputs).y}, {"y": out.y})
    large = problem(catalogue.slstm, (6, 3, 2, 5))
    large.inputs["b"][:5] = -2000  # m is far below its initial 0
    large.init = tuple([0 * a for a in large.init])
    assert all(np.isfinite(a).all() for a in results(large).values())


def test_initial_values_of_parameters(oracle: Callable[[str], Any]) -> None:
    cell = catalogue.layer_norm_lstm
    starts = np.repeat([1.0] * 8 + [0, 1, 0, 0] + [1, 0], 4)
    layer = fastrnn.Recurrent(cell, 3, 4, bidirectional=True, bias=False)
    for name, p in layer.parameters().items():
        assert name.startswith("parameter") == np.array_equal(p, starts)
    oracle("torch")
    module = import_module("fastrnn.torch").Recurrent(cell, 3, 4, num_layers=2, bias=False)
    for name, p in module.named_parameters():
        assert name.startswith("parameter") == np.array_equal(p.detach().numpy(), starts)
    ones = {"p": lambda shape, rng, dtype: np.ones(shape, dtype)}
    assert (fastrnn.Recurrent(cell, 3, 4, initializer=ones).parameters()["parameter_l0"] == 1).all()
    with pytest.raises(fastrnn.cells.CellError, match="expected a number as the initial value of a, got 'one'"):
        fastrnn.cell(gates="n", states="h", parameters={"a": "one"})(lambda x, U, s, p: x.n + p.a * s.h)


def test_min_lstm_where_both_gates_are_zero() -> None:
    """f / (f + i) is 1/2, not 0 / 0."""
    b = np.array([-800.0, -800.0, 3.0])
    for cell, h in ((catalogue.min_lstm, 1.5), (catalogue.min_lstm_log, 1.75)):
        out = cell.forward(np.zeros((1, 1, 1)), np.zeros((3, 1)), b=b, training=True)
        assert out.y.item() == h
        assert all(np.isfinite(a).all() for a in cell.backward(np.ones_like(out.y), out.cache)[:4] if a is not None)


@pytest.mark.parametrize(
    "cell",
    [
        catalogue.slstm,
        catalogue.clipped_lstm(3.0),
        catalogue.rnn_with("elu"),
        catalogue.gru_with(gate="hard_sigmoid", reset_after=True, clip=2.0),
        catalogue.lstm_with(candidate=catalogue.softsign, peephole=True),
    ],
    ids=lambda cell: cell.name,
)
def test_pickle(cell: Any, python: Any) -> None:
    assert pickle.loads(pickle.dumps(cell)) is cell
    layer = fastrnn.Recurrent(cell, 3, 4, rng=0)
    x = np.ones((5, 2, 3), np.float32)
    code = f"import pickle, numpy as np; net = pickle.loads({pickle.dumps(layer)!r}); "
    done = python("-c", code + "print(net(np.ones((5, 2, 3), np.float32))[0].tobytes().hex())")
    assert done.stdout.strip() == layer(x)[0].tobytes().hex(), done.stderr
    done = python("-c", f"from fastrnn.cells.definition import by_key; print(by_key({cell.key!r}).key)")
    assert done.stdout.strip() == cell.key, done.stderr


def test_equal_arguments_give_one_cell() -> None:
    assert catalogue.lstm_with("relu", clip=2) is catalogue.lstm_with(gate="relu", clip=2.0)
    assert catalogue.lstm_with() is not catalogue.lstm_with("relu")
    for one in (1, np.float32(1), np.float64(1), np.int64(1)):
        assert catalogue.clipped_lstm(one) is catalogue.clipped_lstm(cell_clip=1.0)


@pytest.mark.parametrize(("one", "other"), [("linear", "identity"), ("swish", "silu"), (catalogue.elu, "elu")])
def test_names_of_one_function_give_one_cell(one: Any, other: str) -> None:
    assert catalogue.rnn_with(one) is catalogue.rnn_with(other)
    assert catalogue.gru_with(candidate=one, reset_after=True) is catalogue.gru_with(candidate=other, reset_after=True)
    assert catalogue.lstm_with(output=one) is catalogue.lstm_with(output=other)


def test_name_of_peepholes() -> None:
    made = fastrnn.Recurrent(catalogue.lstm_with(peephole=True), 3, 4)
    assert made.parameters().keys() == fastrnn.LSTM(3, 4, peephole=True).parameters().keys()


def test_cell_names_are_calls() -> None:
    """Names contain every argument that differs from the default."""
    made = (
        "lstm_with()",
        "lstm_with(gate='hard_sigmoid', candidate='relu', output='elu', clip=2.0, input_forget=True, peephole=True)",
        "gru_with(gate='silu', candidate='selu', reset_after=False, clip=3.0)",
        "gru_with(reset_after=True)",
        "rnn_with(activation='softsign')",
        "rnn_with(activation=abs)",
        "clipped_lstm(cell_clip=0.5)",
    )
    for name in made:
        assert eval(name, vars(catalogue)).name == name
    assert catalogue.rnn_with(clip=np.float64(2)).name == catalogue.rnn_with(clip=2).name == "rnn_with(clip=2.0)"
    assert catalogue.lstm_with(input_forget=np.True_).name == "lstm_with(input_forget=True)"


def test_factories_reject_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"gate: expected one of tanh, .*, or a function, got 'gelu'"):
        catalogue.lstm_with("gelu")
    with pytest.raises(ValueError, match="clip: expected a positive number, got 0"):
        catalogue.rnn_with("tanh", clip=0)
    for given in (None, True, np.True_, "1", float("nan"), np.float32(-1)):
        with pytest.raises(ValueError, match="cell_clip: expected a positive number, got "):
            catalogue.clipped_lstm(given)
    with pytest.raises(TypeError, match="lstm_with: got an unexpected keyword argument 'activation'"):
        catalogue.lstm_with(activation="relu")
    for option in ("input_forget", "peephole"):
        for wrong in ("no", 1, None):
            with pytest.raises(TypeError, match=f"{option}: expected True or False, got"):
                catalogue.lstm_with(**{option: wrong})
    with pytest.raises(TypeError, match="reset_after: expected True"):
        catalogue.gru_with()
