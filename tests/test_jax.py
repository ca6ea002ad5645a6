"""`fastrnn.jax` under jit, grad and vmap, compared with `lax.scan` and JAX's derivatives of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from support import cell_problems, own_cells
from support.jax_problems import SIZES, by_fastrnn, by_scan, problem, split
from support.problems import CELLS, Arrays, Problem, forward, make, run
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.backends import available_isas


def compiled(jax: Any, run: Callable[..., dict[str, Any]], given: Problem) -> Callable[[], Arrays]:
    """Return every output, and the gradient of their product with the cotangents by every array, from one program."""
    real, fixed = split(given)

    def loss(real: dict[str, Any]) -> Any:
        outputs = run(real | fixed)
        return sum((outputs[name] * given.cotangents[f"d{name}"]).sum() for name in outputs), outputs

    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(real).compile()

    def call() -> Arrays:
        (_, outputs), gradients = program(real)
        found = outputs | {f"d{name}": a for name, a in gradients.items()}
        return {name: np.asarray(a) for name, a in found.items()}

    return call


def value_and_gradients(jax: Any, run: Callable[..., dict[str, Any]], given: Problem) -> Arrays:
    return compiled(jax, run, given)()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seed", range(2))
def test_outputs_and_gradients(seed: int, cell: str, jax: Any, ours: Any) -> None:
    given = problem(cell, seed)
    expected = value_and_gradients(jax, by_scan(jax, given), given)
    assert_close(value_and_gradients(jax, by_fastrnn(ours, given), given), expected)


# each example is compiled twice
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    cell=st.sampled_from(CELLS),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3, 8, 17])),
    lengths=st.booleans(),
    states=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_arguments(
    cell: str, sizes: tuple[int, int, int, int], lengths: bool, states: bool, seed: int, jax: Any, ours: Any
) -> None:
    """Options that are not given are random."""
    names = (("h0", "c0") if cell.startswith("lstm") else ("h0",)) if states else ()
    given = problem(cell, seed, sizes, lengths=lengths, states=names)
    expected = value_and_gradients(jax, by_scan(jax, given), given)
    assert_close(value_and_gradients(jax, by_fastrnn(ours, given), given), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_float32_has_the_bits_of_the_functional_interface(cell: str, jax: Any, ours: Any) -> None:
    given = problem(cell).astype(np.float32)
    expected = forward(given)
    for call in (by_fastrnn(ours, given), jax.jit(by_fastrnn(ours, given))):
        assert_same_bits({name: np.asarray(a) for name, a in call(given.inputs).items()}, expected)


def test_one_sequence_needs_no_axis_of_the_batch(jax: Any, ours: Any) -> None:
    """x is (T, I), and all other arrays have no batch axis."""
    given = problem("lstm", sizes=(7, 1, 3, 5), lengths=True, resets=True, states=("h0", "c0")).changed(lengths=[5])
    axes = {"x": 1, "resets": 1, "h0": 0, "c0": 0, "lengths": 0}
    alone = {name: np.asarray(a).squeeze(axes[name]) if name in axes else a for name, a in given.inputs.items()}
    y, h_n, c_n = ours.lstm(**alone, **given.options)
    got = {"y": np.asarray(y)[:, None], "h_n": np.asarray(h_n)[None], "c_n": np.asarray(c_n)[None]}
    assert_same_bits(got, forward(given))


#: the arrays with a leading axis of three, and whether the kernels are then called three times
MAPPED = {
    "x": (("x",), False),
    "sequences": (("x", "h0", "lengths", "resets"), False),
    "weights": (("W", "U"), True),
    "bias": (("b",), True),
    "all": (("x", "W", "U", "b", "b_rec", "h0", "lengths", "resets"), True),
}


@pytest.mark.parametrize("names", MAPPED)
@pytest.mark.parametrize("cell", ["gru_after", "gru_before"])
def test_vmap_equals_single_calls(cell: str, names: str, jax: Any, ours: Any) -> None:
    """Each result equals the one alone; sequences with shared weights take one call of the kernels."""
    several = [problem(cell, lengths=True, resets=True, biases=("b", "b_rec"), states=("h0",), reverse=True)]
    mapped, one_by_one = MAPPED[names]
    for seed in (1, 2):
        other = make(cell, SIZES, seed=seed, lengths=True, resets=True)
        several.append(several[0].changed(**{name: other.inputs[name] for name in mapped}))
    run = by_fastrnn(ours, several[0])
    arrays = {n: np.stack([g.inputs[n] for g in several]) if n in mapped else a for n, a in several[0].inputs.items()}
    several_at_once = jax.vmap(run, in_axes=({name: 0 if name in mapped else None for name in arrays},))
    text = str(jax.make_jaxpr(several_at_once)(arrays))
    assert (text.count("ffi_call["), "scan[" in text) == (1, one_by_one)
    got = {name: np.asarray(a) for name, a in jax.jit(several_at_once)(arrays).items()}
    for k, one in enumerate(several):
        assert_same_bits({name: a[k] for name, a in got.items()}, forward(one))


def test_vmap_of_vmap(jax: Any, ours: Any) -> None:
    """Over models and, within each, over sequences (T, I), along the third axis of x."""
    rng = np.random.default_rng(0)
    x, W, U = rng.standard_normal((6, 4, 3)), rng.standard_normal((2, 20, 3)), rng.standard_normal((2, 20, 5))
    one = jax.vmap(lambda x, W, U: ours.lstm(x, W, U)[0], in_axes=(1, None, None), out_axes=1)
    y = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))(x, W, U)
    for k in range(2):
        assert_same_bits({"y": np.asarray(y[k])}, {"y": fastrnn.lstm_forward(x, W[k], U[k]).y})


@pytest.mark.parametrize("names", [("x", "h0"), ("x", "U", "b")])
def test_gradients_by_vmap(names: tuple[str, ...], jax: Any, ours: Any) -> None:
    """Per-sample gradients, and a gradient through a vmap, equal those of lax.scan."""
    given = problem("lstm", lengths=True, resets=False, biases=("b",), states=("h0", "c0"), reverse=False)
    real, fixed = split(given)
    several = {name: np.stack([a, 0.5 * a, a + 0.1]) if name in names else a for name, a in real.items()}
    axes = ({name: 0 if name in names else None for name in real},)

    def both(run: Callable[..., dict[str, Any]]) -> Arrays:
        def loss(real: dict[str, Any]) -> Any:
            return sum((a**2).sum() for a in run(real | fixed).values())

        each = jax.jit(jax.vmap(jax.grad(loss), in_axes=axes))(several)
        whole = jax.jit(jax.grad(lambda real: jax.vmap(loss, in_axes=axes)(real).sum()))(several)
        return {f"each {n}": np.asarray(a) for n, a in each.items()} | {n: np.asarray(a) for n, a in whole.items()}

    assert_close(both(by_fastrnn(ours, given)), both(by_scan(jax, given)))


def test_training_inside_a_scan_learns_as_with_lax_scan(jax: Any, ours: Any) -> None:
    """A training loop inside JAX: the loss decreases as with lax.scan."""
    given = problem("gru_after", lengths=False, resets=False, biases=("b", "b_rec"), states=(), reverse=False)
    real, _ = split(given)

    def losses(run: Callable[..., dict[str, Any]]) -> np.ndarray:
        def train(weights: dict[str, Any], _: Any) -> Any:
            loss, grads = jax.value_and_grad(lambda w: ((run(w)["y"] - 0.3) ** 2).mean())(weights)
            return jax.tree.map(lambda w, g: w - 0.5 * g, weights, grads), loss

        return np.asarray(jax.jit(lambda w: jax.lax.scan(train, w, None, length=10))(real)[1])

    got, expected = losses(by_fastrnn(ours, given)), losses(by_scan(jax, given))
    assert_close({"loss": got}, {"loss": expected})
    assert got[-1] < 0.8 * got[0]


def test_mistakes_are_errors_while_tracing(jax: Any, ours: Any) -> None:
    x, W, U = np.ones((5, 2, 3)), np.ones((16, 3)), np.ones((16, 4))
    with pytest.raises(ValueError, match=r"W: expected shape \(4\*H, I\) = \(16, 3\), got \(16, 2\)"):
        jax.jit(ours.lstm)(x, W[:, :2], U)
    with pytest.raises(TypeError, match="W: expected dtype float32, the same as x, got float64"):
        jax.jit(ours.lstm)(x.astype(np.float32), W, U)
    with pytest.raises(TypeError, match="x: expected dtype float32 or float64"):
        ours.lstm(jax.numpy.ones((5, 2, 3), jax.numpy.bfloat16), W, U)
    given = {"x": x, "W": W, "U": U, "b": W[:, 0], "h0": U[:2]}
    for name in ("x", "W", "U"):
        with pytest.raises(TypeError, match=f"^{name}: expected an array, got NoneType"):
            ours.lstm(**given | {name: None})
    for name in given:
        for wrong in ("abc", object(), np.array([None]), 10**400, 2**70):
            with pytest.raises(TypeError, match=f"^{name}: expected"):
                ours.lstm(**given | {name: wrong})
    with pytest.raises(ValueError, match="threads: expected a positive integer, got 0"):
        ours.lstm(x, W, U, threads=0)
    with pytest.raises(TypeError, match="reverse: expected True or False"):
        ours.gru(x, W[:12], U[:12], reset_after=True, reverse=1)
    with pytest.raises(TypeError, match=r"^reset_after: expected True .* or False .*, got None$"):
        ours.gru(x, W[:12], U[:12])
    with pytest.raises(ValueError, match="activation: expected one of"):
        ours.rnn(x, W[:4], U[:4], activation="elu")
    either = [ours.rnn(x, W[:4], U[:4], activation=name)[0] for name in ("identity", "linear")]
    np.testing.assert_array_equal(*either)


def test_lengths_are_read_at_run_time(jax: Any, ours: Any, caplog: pytest.LogCaptureFixture) -> None:
    x, W, U = np.ones((5, 2, 3)), np.ones((16, 3)), np.ones((16, 4))
    with pytest.raises(Exception, match=r"lengths: expected each in 0\.\.T = 0\.\.5, got 6 for sequence 1"):
        jax.block_until_ready(jax.jit(ours.lstm)(x, W, U, lengths=np.array([1, 6])))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_lengths_of_any_width(dtype: str, jax: Any, ours: Any) -> None:
    """Without x64 JAX has 32 bits; data loaders may use fewer."""
    given = problem("gru_before", lengths=True, resets=False, biases=("b",), states=(), reverse=True)
    inputs = given.inputs | {"lengths": given.inputs["lengths"].astype(dtype)}
    got = jax.jit(by_fastrnn(ours, given))(inputs)
    assert_same_bits({name: np.asarray(a) for name, a in got.items()}, forward(given))


EVERYTHING: dict[str, Any] = {"biases": ("b", "b_rec"), "states": ("h0", "c0")}
EVERYTHING |= dict.fromkeys(("lengths", "resets", "reverse"), True)
#: every different backward pass, with all optional arrays and with almost none
ON_EVERY_ISA: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn_tanh": (np.float32, EVERYTHING | {"lengths": False}),
    "lstm": (np.float64, dict.fromkeys(EVERYTHING, False) | {"biases": (), "states": ("c0",)}),
    "lstm_peephole": (np.float32, EVERYTHING),
    "gru_after": (np.float32, EVERYTHING | {"biases": ("b_rec",), "reverse": False}),
    "gru_before": (np.float64, EVERYTHING),
}


@pytest.mark.parametrize("cell", ON_EVERY_ISA)
def test_a_program_keeps_its_instruction_set(cell: str, jax: Any, ours: Any) -> None:
    """It uses the instruction set of its trace, and gives the bits of the functional interface there."""
    dtype, options = ON_EVERY_ISA[cell]
    given = problem(cell, sizes=(5, 3, 7, 19), **options).astype(dtype)
    expected, programs = {}, {}
    for isa in available_isas():
        with fastrnn.use_isa(isa):
            expected[isa], programs[isa] = run(given), compiled(jax, by_fastrnn(ours, given), given)
    for isa, program in programs.items():
        assert_same_bits(program(), expected[isa])


def test_a_backward_has_the_instruction_set_of_its_forward(jax: Any, ours: Any) -> None:
    """The instruction set determines the layout of the residual, whatever is in use by then."""
    given = problem("gru_after", sizes=(5, 3, 7, 19), **EVERYTHING).astype(np.float32)
    real, fixed = split(given)
    for isa, later in pairwise([*available_isas(), available_isas()[0]]):
        with fastrnn.use_isa(isa):
            expected = run(given)
            outputs, back = jax.vjp(lambda real: by_fastrnn(ours, given)(real | fixed), real)
        with fastrnn.use_isa(later):
            (gradients,) = back({name: given.cotangents[f"d{name}"] for name in outputs})
        got = {f"d{name}": np.asarray(a) for name, a in gradients.items()}
        assert_same_bits(got, {name: a for name, a in expected.items() if name in got})


def test_checkpointing_has_the_same_bits(jax: Any, ours: Any) -> None:
    """`jax.checkpoint` saves nothing and gives the same bits."""
    given = problem("lstm", lengths=True)
    kept = value_and_gradients(jax, by_fastrnn(ours, given), given)
    assert_same_bits(value_and_gradients(jax, jax.checkpoint(by_fastrnn(ours, given)), given), kept)


def test_several_threads_at_once(jax: Any, ours: Any) -> None:
    """Each call has its own work area, and the last one is reused."""
    rng = np.random.default_rng(0)
    x, W, U = (rng.standard_normal(shape) for shape in ((40, 33, 17), (124, 17), (124, 31)))
    gradients = jax.jit(jax.grad(lambda x: (ours.lstm(x, W, U, threads=2)[0] ** 2).sum()))
    scales = np.linspace(0.1, 2, 24)
    expected = [np.asarray(gradients(scale * x)) for scale in scales]
    with ThreadPoolExecutor(8) as pool:
        for k, got in enumerate(pool.map(lambda scale: np.asarray(gradients(scale * x)), scales)):
            assert_same_bits({"dx": got}, {"dx": expected[k]})


def test_other_backends_are_refused(ours: Any) -> None:
    with fastrnn.use_backend("numpy"), pytest.raises(RuntimeError, match=r"expected native for .*, got numpy"):
        ours.lstm(np.ones((5, 2, 3)), np.ones((16, 3)), np.ones((16, 4)))


@pytest.mark.parametrize("cell", own_cells.ALL, ids=lambda cell: cell.name)
def test_a_users_cell_has_its_outputs_and_gradients(cell: Any, jax: Any, ours: Any) -> None:
    """Outputs and every gradient of `recurrent` equal those of the cell's forward and backward, with jit and vmap."""
    p = cell_problems.problem(cell, (5, 3, 2, 7), lengths=True, resets=True)
    del p.back["dstates"]
    given = {"inputs": p.inputs, "e": p.e, "init": p.init}

    @jax.jit
    def run(given: Any) -> Any:
        options = {"e": given["e"] or None, "init": given["init"]} | p.options
        return ours.recurrent(cell, **given["inputs"], **options)

    def loss(given: Any) -> Any:
        y, final = run(given)
        return (y * p.back["dy"]).sum() + sum((a * d).sum() for a, d in zip(final, p.back["dfinal"], strict=True))

    y, final = run(given)
    grads = jax.grad(loss)(given)
    three = given | {"init": tuple([np.stack([s] * 3) for s in p.init])}
    thrice = jax.vmap(run, in_axes=({"inputs": None, "e": None, "init": 0},))(three)[0]
    out = cell.forward(**p.inputs, e=p.e or None, init=p.init, training=True, **p.options)
    back = cell.backward(p.back["dy"], out.cache, dfinal=p.back["dfinal"])
    expected = {"y": out.y, "thrice": np.stack([out.y] * 3)}
    expected |= {f"{s}_n": a for s, a in zip(cell.states, out.final, strict=True)}
    expected |= {name: getattr(back, f"d{name}") for name in p.inputs} | (back.de or {})
    expected |= dict(zip(cell.initial, back.dinit, strict=True))
    got = {"y": y, "thrice": thrice, **{f"{s}_n": a for s, a in zip(cell.states, final, strict=True)}}
    got |= grads["inputs"] | grads["e"] | dict(zip(cell.initial, grads["init"], strict=True))
    assert_close({name: np.asarray(a) for name, a in got.items()}, expected)


SHARDED = """
import numpy as np, jax, jax.numpy as jnp, fastrnn.jax
from jax.sharding import Mesh, PartitionSpec as P
jax.config.update("jax_enable_x64", True)
mesh, rng = Mesh(np.array(jax.devices()), ("b",)), np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
x, h, c, W, U, b = draw(5, 4, 3), draw(4, 2), draw(4, 2), draw(8, 3), draw(8, 2), draw(8)
lengths, dy, dh = jnp.array([5, 3, 0, 4]), draw(5, 4, 2), draw(4, 2)
def run(x, h, c, lengths, W, U, b):
    y, h_n, c_n = fastrnn.jax.lstm(x, W, U, b, h0=h, c0=c, lengths=lengths)
    return y, h_n
given = x, h, c, lengths, W, U, b
parts = (P(None, "b"), P("b"), P("b"), P("b"), P(), P(), P())
sharded = jax.shard_map(run, mesh=mesh, in_specs=parts, out_specs=(P(None, "b"), P("b")))
def loss(run): return lambda *given: sum((a * d).sum() for a, d in zip(run(*given), (dy, dh)))
def same(f, **options):
    for ours, whole in zip(*[jax.tree.leaves(f(r)(*given)) for r in (sharded, run)], strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-12, atol=1e-14)
        assert np.abs(whole).max() > 0
every = (0, 1, 2, 4, 5, 6)
same(lambda run: run)
same(lambda run: jax.jit(jax.grad(loss(run), every)))
same(lambda run: lambda *g: jax.jvp(lambda U: run(*g[:5], U, b), (U,), (jnp.cos(U),))[1])
same(lambda run: lambda *g: jax.jacfwd(jax.grad(lambda b: loss(run)(*g[:6], b)))(b))
alone = jax.shard_map(lambda *g: run(*g)[1], mesh=mesh, in_specs=parts, out_specs=P())
try: alone(*given)
except ValueError: pass
else: raise AssertionError("a result that differs between parts was taken for one that does not")
"""


@pytest.mark.filterwarnings("ignore:fastrnn.jax")
def test_sharded_over_devices_as_on_one(jax: Any, python: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shard_map with its checks: values, every gradient, tangents and second derivatives."""
    if not hasattr(jax, "shard_map"):
        pytest.skip("an older JAX")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    done = python("-W", "ignore", "-c", SHARDED)
    assert done.returncode == 0, done.stderr
