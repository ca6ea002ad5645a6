"""Modules of `fastrnn.torch` and of `torch.nn`: outputs, gradients, attributes, copies, and errors."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import Arrays, Problem, make, run
from support.tolerance import assert_rounded, assert_same_bits

torch = pytest.importorskip("torch")

from support.torch_modules import CELLS, KINDS, both, everything, loss_and_gradients, packing  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")  # by torch.nn
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    T=st.integers(1, 7),
    B=st.integers(1, 5),
    I=st.integers(1, 5),
    H=st.sampled_from([1, 3, 8, 17]),
    num_layers=st.integers(1, 3),
    options=st.fixed_dictionaries({name: st.booleans() for name in ("bias", "batch_first", "bidirectional")}),
    dropout=st.sampled_from([0.0, 0.4, 1.0]),
    form=st.sampled_from(["batch", "batch", "one", "packed"]),
    state=st.booleans(),
    projected=st.booleans(),
    single=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_equal_torchs(
    kind: str,
    T: int,
    B: int,
    I: int,
    H: int,
    num_layers: int,
    options: Any,
    dropout: float,
    form: str,
    state: bool,
    projected: bool,
    single: bool,
    training: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    options |= KINDS[kind] | {"dropout": dropout if num_layers > 1 else 0.0}
    P = (H + 1) // 2 if kind == "LSTM" and projected and H > 1 else 0
    options |= {"proj_size": P} if P else {}
    results = []
    for dtype in (torch.float32, torch.float64)[1 - single :]:
        module, own = both(kind, I, H, num_layers, **options)
        calls, D, batch = num_layers * (1 + own.bidirectional), 1 + own.bidirectional, () if form == "one" else (B,)
        steps = (T,) if form == "one" else (B, T) if own.batch_first else (T, B)
        shapes = [(*steps, D * (P or H)), *[(calls, *batch, H)] * len(own._cell.states)]
        shapes[1] = (calls, *batch, P or H)
        rng = np.random.default_rng(seed)
        every = [(*steps, I), *shapes, *shapes[1:]]
        x, *draws = [torch.tensor(rng.standard_normal(shape, np.float32), dtype=dtype) for shape in every]
        cotangents, hx = draws[: len(shapes)], draws[len(shapes) :] if state else []
        lengths = torch.tensor(rng.permutation(np.r_[T, rng.integers(1, T + 1, B - 1)])) if form == "packed" else None
        for one in (module, own):
            call = one.to(dtype).train(training) if lengths is None else packing(one.to(dtype).train(training), lengths)
            results.append(everything(one, x, hx, call, cotangents))
    exact = results[-2]
    for found in results[1::2]:
        assert_rounded(found, exact, lambda: everything(own, x, hx, call, cotangents))


def module_of(problem: Problem) -> Any:
    """Return a module with the problem's weights; a reverse problem is the second of two directions."""
    kind, options = CELLS[problem.cell]
    (_, _, I), H = problem.inputs["x"].shape, problem.inputs["U"].shape[1]
    module = getattr(fastrnn.torch, kind)(I, H, dtype=torch.float64, **options)
    names = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_rec": "bias_hh", "p": "peephole"}
    weights = {f"{names[key]}_l0": torch.tensor(a) for key, a in problem.inputs.items() if key in names}
    module.load_state_dict(weights)
    return module


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_the_bits_of_the_functional_interface(cell: str, native: str) -> None:
    """On every instruction set, and on NumPy."""
    assert_same_bits(*in_two_ways(cell))
    with fastrnn.use_backend("numpy"):
        assert_same_bits(*in_two_ways(cell))


def in_two_ways(cell: str) -> tuple[Arrays, Arrays]:
    """Return all results of a module, and of the functional interface."""
    problem = make(cell, (5, 3, 4, 17), seed=1)
    module, expected = module_of(problem), run(problem)
    states = [torch.tensor(problem.inputs[name])[None] for name in ("h0", "c0") if name in problem.inputs]
    cotangents = [torch.tensor(d) for name in ("dy", "dh_n", "dc_n") if (d := problem.cotangents.get(name)) is not None]
    found = everything(module, torch.tensor(problem.inputs["x"]), states, None, cotangents)
    names = {"y": "y", "h_n": "h_n", "c_n": "c_n", "dx": "dx", "dstate 0": "dh0", "dstate 1": "dc0"}
    names |= {"dweight_ih_l0": "dW", "dweight_hh_l0": "dU", "dbias_ih_l0": "db", "dbias_hh_l0": "db_rec"}
    names |= {"dpeephole_l0": "dp"}
    return {names[key]: a.reshape(expected[names[key]].shape) for key, a in found.items()}, expected


def test_tensors_with_the_negative_bit() -> None:
    """A conjugate's imaginary part has its sign applied later; gradients through spectra have this form."""
    theirs = nn.GRU(3, 4)
    ours = fastrnn.torch.GRU(3, 4)
    ours.load_state_dict(theirs.state_dict())

    def negated(*shape: int) -> Any:
        found = torch.complex(torch.zeros(shape), torch.randn(shape)).conj().imag
        assert found.is_neg()
        return found

    x, h, dy = negated(5, 2, 3), negated(1, 2, 4), negated(5, 2, 4)
    results = []
    for module in (theirs, ours):
        leaf = torch.zeros(5, 2, 3, requires_grad=True)
        y, _ = module(leaf + x, h)
        y.backward(dy)
        with torch.no_grad():
            results.append([y, leaf.grad, module.weight_hh_l0.grad, *module(x, h)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_outputs_share_no_memory_with_inputs() -> None:
    module, x, h = fastrnn.torch.GRU(3, 5), torch.randn(0, 2, 3), torch.randn(1, 2, 5)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            _, h_n = module(x, h)
            assert torch.equal(h_n, h)
            assert h_n.data_ptr() != h.data_ptr()


@pytest.mark.parametrize(("kind", "options"), [*((kind, {}) for kind in KINDS), ("LSTM", {"proj_size": 2})])
def test_copies_and_pickles_have_weights_of_their_own(kind: str, options: dict[str, Any]) -> None:
    _, module = both(kind, 3, 5, 2, bidirectional=True, **options)
    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        y = module(x)[0]
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
        for other in copies:
            assert torch.equal(other(x)[0], y)
            other.weight_hh_l0.zero_()
            assert not torch.equal(other(x)[0], y)
        assert torch.equal(module(x)[0], y)


def test_attributes_equal_torchs() -> None:
    """They have every attribute of a torch.nn module that code may use."""
    options: dict[str, Any] = {"bidirectional": True, "batch_first": True, "dropout": 0.25, "bias": False}
    for kind, more in [*((kind, {}) for kind in KINDS), ("LSTM", {"proj_size": 2})]:
        module, own = both(kind, 3, 5, 2, **options, **more)
        names = ("input_size", "hidden_size", "num_layers", "proj_size", "mode", *options)
        assert {n: getattr(own, n) for n in names} == {n: getattr(module, n) for n in names}
        assert repr(own) == repr(module)
        shapes, expected = ({n: p.shape for n, p in one.state_dict().items()} for one in (own, module))
        assert (list(shapes), shapes) == (list(expected), expected)
        assert [len(w) for w in own.all_weights] == [len(w) for w in module.all_weights]
        own.load_state_dict(module.state_dict())
        module.load_state_dict(own.state_dict())
        own.flatten_parameters()
    peephole = fastrnn.torch.LSTM(3, 5, 1, True, True, peephole=True)
    assert {n: tuple(p.shape) for n, p in peephole.named_parameters() if "peephole" in n} == {"peephole_l0": (15,)}
    assert repr(peephole) == "LSTM(3, 5, batch_first=True, peephole=True)"
    assert repr(fastrnn.torch.GRU(3, 5, reset_after=False)) == "GRU(3, 5, reset_after=False)"
    assert repr(fastrnn.torch.RNN(3, 5, 1, "sigmoid")) == "RNN(3, 5, nonlinearity='sigmoid')"
    assert fastrnn.torch.RNN(3, 5, 1, "linear").nonlinearity == "identity"


def test_threads_share_a_module() -> None:
    module, xs = fastrnn.torch.LSTM(3, 17), [torch.randn(9, 2, 3) for _ in range(8)]
    expected = [loss_and_gradients(module, x, lambda x: module(x)[0]) for x in xs]
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(20):
            with torch.no_grad():
                y = module(xs[i])[0]
            got[i] = [y, *loss_and_gradients(module, xs[i], lambda x: module(x)[0])[1:]]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, one in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(got[i], one, strict=True))


LSTM = fastrnn.torch.LSTM
X, S = torch.ones(4, 2, 3), torch.ones(1, 2, 5)


def nested(x: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):  # a prototype
        return torch.nested.nested_tensor([x[0], x[0, :1]])


#: a call of an LSTM(3, 5), or of another module
REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "bfloat16 weights": (lambda m: LSTM(3, 5, dtype=torch.bfloat16), TypeError, r"bfloat16; convert with \.float"),
    "peephole": (lambda m: LSTM(3, 5, peephole=1), TypeError, "peephole"),
    "reset_after": (lambda m: fastrnn.torch.GRU(3, 5, reset_after=None), TypeError, "reset_after"),
    "nonlinearity": (lambda m: fastrnn.torch.RNN(3, 5, 1, "gelu"), ValueError, "nonlinearity: expected .*gelu"),
    "bfloat16": (lambda m: m(X.bfloat16()), TypeError, r"input: .* got torch.bfloat16; convert with \.float"),
    "moved": (lambda m: LSTM(3, 5).bfloat16()(X), TypeError, "weights: .* got torch.bfloat16"),
    "meta": (lambda m: m(X.to("meta")), TypeError, "input: .* got device meta"),
    "meta weights": (lambda m: LSTM(3, 5, device="meta")(X), TypeError, r"^weights: .* got device meta, .*\.to_empty"),
    "another dtype": (lambda m: m(X.double()), TypeError, "input: expected dtype torch.float32"),
    "inputs": (lambda m: LSTM(4, 5)(X), ValueError, r"input: expected shape \(T, B, I\) .* I = 4, got \(4, 2, 3\)"),
    "axes": (lambda m: LSTM(3, 5, batch_first=True)(X[0, 0]), ValueError, r"input: expected shape \(B, T, I\)"),
    "packed": (lambda m: LSTM(4, 5)(pack_padded_sequence(X, [4, 2])), ValueError, r"data of shape \(N, 4\)"),
    "an array": (lambda m: m(X.numpy()), TypeError, "^input: expected a tensor or a Packed.*, got ndarray"),
    "nothing": (lambda m: m(None), TypeError, "^input: expected a tensor or a PackedSequence, got NoneType"),
    "sparse": (lambda m: m(X.to_sparse()), TypeError, r"^input: expected a dense tensor, got .*sparse_coo; .*to_d"),
    "oneDNN's": (lambda m: m(X.to_mkldnn()), TypeError, "^input: expected a dense tensor, got layout torch._mkldnn"),
    "nested": (lambda m: m(nested(X)), TypeError, "^input: expected a dense tensor, got a nested one; .* pack_"),
    "sparse state": (lambda m: m(X, (S.to_sparse(), S)), TypeError, "^hx: expected a dense tensor"),
    "sparse resets": (
        lambda m: m(X, resets=X[..., 0].bool().to_sparse()),
        TypeError,
        "^resets: expected a dense tensor",
    ),
    "one state": (lambda m: m(X, S), TypeError, "hx: expected a tuple of 2 tensors"),
    "a tuple of one": (lambda m: m(X, (S,)), TypeError, "hx: expected a tuple of 2 tensors, got tuple of 1"),
    "two states": (lambda m: fastrnn.torch.GRU(3, 5)(X, (S, S)), TypeError, "hx: expected a tensor, got tuple"),
    "shape": (lambda m: m(X, (S, S[:, :1])), ValueError, r"hx: expected shape \(1, 2, 5\), got \(1, 1, 5\)"),
    "state's dtype": (lambda m: m(X, (S, S.double())), TypeError, "hx: expected dtype torch.float32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_errors_name_the_argument(what: str) -> None:
    call, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        call(LSTM(3, 5))


def test_autocast_errors_suggest_a_fix() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"torch\.autocast"):
        LSTM(3, 5)(nn.Linear(3, 3)(X))


def test_autocast_leaves_float32() -> None:
    module = LSTM(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(X)[0]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(X)[0])


def test_a_training_step_leaks_no_tensor() -> None:
    """Also if its graph is discarded."""
    import gc

    module = fastrnn.torch.LSTM(3, 5, 2)

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor | np.ndarray) for o in gc.get_objects())

    counts = []
    for _ in range(5):
        module(X)[0].sum().backward()
        module(X)
        counts.append(alive())
    assert np.diff(counts[1:]).min() <= 0, counts  # garbage of other tests may be collected meanwhile


def test_without_torch(python: Callable[..., Any]) -> None:
    done = python("-c", "import sys; sys.modules['torch'] = None; import fastrnn.torch")
    assert "torch is not installed; run pip install 'fastrnn[torch]'" in done.stderr
