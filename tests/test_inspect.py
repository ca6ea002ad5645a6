"""Gates and gradient norms against the kernels, the functional interface step by step, and central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import stacks
from support.problems import CELLS, PUBLIC
from support.tolerance import assert_close, relative_error

import fastrnn
from fastrnn.inspect import gates, gradient_norms

T, B, I, H = 7, 3, 2, 5
LENGTHS = np.array([7, 0, 4])

NAMES = {"rnn": ["h"], "gru": ["r", "z", "n", "h"], "lstm": ["i", "f", "g", "o", "c", "h"]}


def problem(cell: str, *, batch_first: bool = False, **options: Any) -> dict[str, Any]:
    """Return a layer, x, a state, lengths and resets."""
    rng = np.random.default_rng(1)
    net = stacks.layer(cell, I, H, dtype=np.float64, batch_first=batch_first, **options)
    every = net.num_layers * (1 + net.bidirectional)
    state = stacks.as_given(stacks.states(cell, every, B, H, dtype=np.float64))
    x, resets = rng.standard_normal((T, B, I)), rng.random((T, B)) < 0.2
    if batch_first:
        x, resets = x.swapaxes(0, 1), resets.T
    return {"net": net, "x": x, "state": state, "lengths": LENGTHS, "resets": resets}


def perturbed(given: dict[str, Any], i: int, t: int, e: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return y and the final states (c alone unchanged) of a time-major layer, with e added to its i-th h[t].

    One functional call after another, of one step each. Where a sequence is past its length there is no h[t].
    """
    net, lengths, resets = given["net"], given["lengths"], given["resets"]
    family, _, chosen = PUBLIC[net.stack.cell.name]
    forward, weights = getattr(fastrnn, f"{family}_forward"), net.state_dict()
    x, state = given["x"], given["state"] if isinstance(given["state"], tuple) else (given["state"],)
    D = 1 + net.bidirectional
    final = []
    for level in range(net.num_layers):
        outputs = []
        for d in range(D):
            way = f"_l{level}{'_reverse' * d}"
            own = {key: weights[name + way] for key, name in stacks.PARAMETERS.items() if name + way in weights}
            now = [s[level * D + d] for s in state]
            y = np.zeros((len(x), B, H))
            for s in range(len(x) - 1, -1, -1) if d else range(len(x)):
                valid = s < lengths
                init = dict(zip(("h0", "c0"), now, strict=False))
                step = {"lengths": valid.astype(int), "resets": resets[s : s + 1]}
                result = forward(x[s : s + 1], **own, **init, **chosen, **step)
                now = [result.h_n, *([result.c_n] if family == "lstm" else [])]
                if (level * D + d, s) == (i, t):
                    now[0] = now[0] + e * valid[:, None]
                y[s] = now[0] * valid[:, None]
            outputs.append(y)
            final.append(now)
        x = stacks.MERGED[net.merge](*outputs) if D == 2 else outputs[0]
    return x, tuple(np.stack(s) for s in zip(*final, strict=True))


def central(given: dict[str, Any], i: int, dy: np.ndarray, dstate: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return (T, B) norms of dL/dh[t] by central differences; sequences are independent."""

    def losses(t: int, e: np.ndarray) -> np.ndarray:
        y, final = perturbed(given, i, t, e)
        valid = np.arange(T)[:, None] < given["lengths"]
        at_end = sum((d * s).sum((0, 2)) for d, s in zip(dstate, final, strict=True))
        return (dy * y * valid[:, :, None]).sum((0, 2)) + at_end

    e = 1e-5 * np.eye(H)
    d = [[(losses(t, e[h]) - losses(t, -e[h])) / 2e-5 for h in range(H)] for t in range(T)]
    return np.linalg.norm(np.array(d), axis=1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("level", "reverse", "options"),
    [
        (0, False, {}),
        (0, True, {"bidirectional": True}),
        (0, False, {"num_layers": 2}),
        (0, True, {"num_layers": 2, "bidirectional": True, "merge": "mul"}),
        (-1, False, {"num_layers": 2, "bidirectional": True}),
    ],
)
def test_norms_are_those_of_central_differences(cell: str, level: int, reverse: bool, options: dict[str, Any]) -> None:
    given = problem(cell, **options)
    net, rng = given["net"], np.random.default_rng(2)
    i = level % net.num_layers * (1 + net.bidirectional) + reverse
    y, state = net(given["x"], given["state"], LENGTHS, resets=given["resets"])
    dy = rng.standard_normal(y.shape)
    dstate = tuple(rng.standard_normal(s.shape) for s in (state if isinstance(state, tuple) else (state,)))
    got = gradient_norms(**given, dy=dy, dstate=stacks.as_given(dstate), layer=level, reverse=reverse)
    assert relative_error(got, central(given, i, dy, dstate)) < 1e-8


def test_norms_of_the_final_state_alone() -> None:
    given = problem("gru_after", num_layers=2)
    dstate = np.zeros_like(given["state"])
    dstate[0] = H**-0.5
    expected = central(given, 0, np.zeros((T, B, H)), (dstate,))
    assert relative_error(gradient_norms(**given, layer=0), expected) < 1e-8
    assert_close({"last": gradient_norms(**given)[[6, 3], [0, 2]]}, {"last": np.ones(2)})


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_gates_are_those_of_the_kernels(cell: str, batch_first: bool) -> None:
    given = problem(cell, batch_first=batch_first, num_layers=2, bidirectional=True)
    net = given.pop("net")
    y, _ = net(**given)
    found = [gates(net, **given, reverse=reverse) for reverse in (False, True)]
    assert [list(one) for one in found] == [NAMES[PUBLIC[cell][0]]] * 2
    assert_close({"y": np.concatenate([one["h"] for one in found], -1)}, {"y": y})


def test_gates_satisfy_the_equations() -> None:
    """The equations of an LSTM and of a GRU, applied to the returned gates."""
    for cell in ("lstm", "gru_after", "gru_before"):
        net, x = stacks.layer(cell, I, H, dtype=np.float64), np.random.default_rng(0).standard_normal((T, B, I))
        g = gates(net, x)
        before = {k: np.concatenate([np.zeros((1, B, H)), g[k][:-1]]) for k in ("h", "c") if k in g}
        if cell == "lstm":
            c = g["f"] * before["c"] + g["i"] * g["g"]
            assert_close({"c": g["c"], "h": g["h"]}, {"c": c, "h": g["o"] * np.tanh(c)})
        else:
            assert_close({"h": g["h"]}, {"h": (1 - g["z"]) * g["n"] + g["z"] * before["h"]})


def test_gates_of_a_projected_layer() -> None:
    """h has P units; everything else H."""
    net = fastrnn.LSTM(I, H, 2, proj_size=3, bidirectional=True, dtype=np.float64, rng=0)
    x = np.random.default_rng(0).standard_normal((T, B, I))
    found = [gates(net, x, reverse=reverse, lengths=LENGTHS) for reverse in (False, True)]
    for g, way in zip(found, ("", "_reverse"), strict=True):
        assert_close({"h": g["h"]}, {"h": g["o"] * np.tanh(g["c"]) @ net.parameters()[f"weight_hr_l1{way}"].T})
    assert_close({"y": np.concatenate([g["h"] for g in found], -1)}, {"y": net(x, lengths=LENGTHS)[0]})


def test_norms_of_a_projected_layer() -> None:
    """By central differences, one step at a time."""
    P, rng = 3, np.random.default_rng(0)
    net = fastrnn.LSTM(I, H, proj_size=P, dtype=np.float64, rng=0)
    x, resets = rng.standard_normal((T, B, I)), rng.random((T, B)) < 0.2
    shapes = {"h0": (1, B, P), "c0": (1, B, H), "dy": (T, B, P), "dh_n": (1, B, P), "dc_n": (1, B, H)}
    h0, c0, dy, *dstate = [rng.standard_normal(shape) for shape in shapes.values()]

    def losses(at: int, e: np.ndarray) -> np.ndarray:
        """Return the loss of each sequence, with e added to its h[at]."""
        state, total = (h0, c0), np.zeros(B)
        for t in range(T):
            valid = t < LENGTHS
            y, (h, c) = net(x[t : t + 1], state, valid.astype(int), resets=resets[t : t + 1])
            e_t = e * valid[:, None] * (t == at)
            state = (h + e_t, c)
            total += ((y[0] + e_t) * dy[t]).sum(-1)
        return total + sum((d * s)[0].sum(-1) for d, s in zip(dstate, state, strict=True))

    e = 1e-5 * np.eye(P)
    d = [[(losses(t, e[k]) - losses(t, -e[k])) / 2e-5 for k in range(P)] for t in range(T)]
    given = {"state": (h0, c0), "lengths": LENGTHS, "resets": resets}
    got = gradient_norms(net, x, dy, dstate=tuple(dstate), **given)
    assert relative_error(got, np.linalg.norm(np.array(d), axis=1)) < 1e-8
    assert_close({"last": gradient_norms(net, x)[-1]}, {"last": np.ones(B)})


def test_padding_has_no_effect() -> None:
    given = problem("lstm")
    padding = np.arange(T)[:, None] >= LENGTHS
    dy = np.random.default_rng(0).standard_normal((T, B, H))
    expected = gradient_norms(**given, dy=dy), gates(**given)["f"]
    given["x"][padding], dy[padding] = np.nan, np.inf
    assert np.array_equal(gradient_norms(**given, dy=dy), expected[0])
    assert np.array_equal(gates(**given)["f"], expected[1])
    assert not expected[0][padding].any()
    assert not expected[1][padding].any()


@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts(batch_first: bool) -> None:
    """Batch-first and unbatched arrays give the same numbers in the layout of x."""
    given, turned = problem("lstm"), problem("lstm", batch_first=batch_first)
    norms = gradient_norms(**given)
    assert_close({"n": gradient_norms(**turned)}, {"n": norms.T if batch_first else norms})
    x, resets = given["x"][:, 2], given["resets"][:, 2]
    state = tuple(s[:, 2] for s in given["state"])
    alone = {"net": turned["net"], "x": x, "state": state, "lengths": 4, "resets": resets}
    assert_close({"n": gradient_norms(**alone)}, {"n": norms[:, 2]})
    assert_close({"f": gates(**alone)["f"]}, {"f": gates(**given)["f"][:, 2]})


def test_on_every_backend(implementation: str) -> None:
    given = problem("rnn_tanh", num_layers=2, bidirectional=True)
    dy = np.random.default_rng(0).standard_normal((T, B, 2 * H))
    with fastrnn.use_backend("numpy"):
        exact = gradient_norms(**given, dy=dy, layer=0, reverse=True)
    assert_close({"n": gradient_norms(**given, dy=dy, layer=0, reverse=True)}, {"n": exact})


def test_models_that_return_the_last_step() -> None:
    """dy then belongs to the final h."""
    whole, last = (stacks.layer("gru_after", I, H, dtype=np.float64, return_sequences=r) for r in (True, False))
    x, d = np.random.default_rng(0).standard_normal((T, B, I)), np.random.default_rng(1).standard_normal((B, H))
    assert_close({"n": gradient_norms(last, x, d)}, {"n": gradient_norms(whole, x, dstate=d[None])})


def test_dropout_is_off() -> None:
    nets = [stacks.layer("lstm", I, H, 2, dropout=rate, dtype=np.float64) for rate in (0.0, 0.9)]
    x = np.random.default_rng(0).standard_normal((T, B, I))
    plain, dropping = ({"n": gradient_norms(net, x, layer=0), **gates(net, x)} for net in nets)
    assert_close(dropping, plain)


def test_an_exploding_gradient_overflows() -> None:
    net = fastrnn.RNN(1, 4, activation="identity", rng=0)
    net.set_weights([10 * w for w in net.get_weights()])
    norms = gradient_norms(net, np.ones((200, 1), np.float32))
    assert np.isinf(norms).any()
    assert norms[np.isfinite(norms)].max() > 1e30  # float32 cannot represent their squares
    assert (norms[-20:] < 1e30).all()
    fading = fastrnn.RNN(1, 4, activation="sigmoid", rng=0)
    assert 0 < gradient_norms(fading, np.ones((20, 1), np.float32))[0] < 1e-6


def test_bfloat16_weights_have_gates() -> None:
    net = fastrnn.LSTM(I, H, weight_dtype="bfloat16", rng=0)
    x = np.ones((T, B, I), np.float32)
    assert relative_error(gates(net, x)["h"], net(x)[0]) < 2**-7
    with pytest.raises(ValueError, match="net: a layer with bfloat16 weights"):
        gradient_norms(net, x)


def test_empty() -> None:
    net = fastrnn.LSTM(I, H, rng=0)
    for shape in ((0, B), (T, 0)):
        assert gates(net, np.ones((*shape, I), np.float32))["i"].shape == (*shape, H)
        assert gradient_norms(net, np.ones((*shape, I), np.float32)).shape == shape


@pytest.mark.parametrize("function", [gates, gradient_norms])
def test_mistakes(function: Any) -> None:
    net, x = fastrnn.LSTM(I, H, 2, rng=0), np.ones((T, B, I), np.float32)
    for error, message, layer, wrong in (
        (TypeError, "net: expected an LSTM, a GRU or an RNN, got Dense", fastrnn.Dense(I, H), {}),
        (ValueError, "layer: expected one of -2..1, got 2", net, {"layer": 2}),
        (TypeError, "layer: expected an integer, got 0.0", net, {"layer": 0.0}),
        (ValueError, "reverse: expected False for a unidirectional net", net, {"reverse": True}),
        (TypeError, "reverse: expected True or False", net, {"reverse": 1}),
        (ValueError, "lengths", net, {"lengths": [1]}),
    ):
        with pytest.raises(error, match=message):
            function(layer, x, **wrong)
    with pytest.raises(ValueError, match="dy: expected shape"):
        gradient_norms(net, x, x)
