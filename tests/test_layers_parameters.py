"""Parameters of layers: names and shapes, initial values, state dicts, copies, and packing for instruction sets."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.problems import CELLS, PUBLIC
from support.stacks import EVERYTHING, composed, inputs, layer, run
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.backends import available_isas

DTYPES = (np.float32, np.float64)


@pytest.mark.parametrize("cell", CELLS)
def test_weights_are_packed_for_each_instruction_set(cell: str) -> None:
    """Repeatedly switching backends and instruction sets; new parameters replace what was packed before."""
    net, other = (layer(cell, 5, 33, 2, rng=seed, bidirectional=True) for seed in (0, 1))
    x, given = inputs(cell, net, (9, 7), "time", 7, EVERYTHING)
    for parameters in (net.state_dict(), other.state_dict(), net.state_dict()):
        net.load_state_dict(parameters)
        for _ in range(2):
            for isa in available_isas():
                with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
                    assert_same_bits(run(net, x, **given), composed(net, cell, x, **given))
            with fastrnn.use_backend("numpy"):
                assert_same_bits(run(net, x, **given), composed(net, cell, x, **given))


def test_loading_keeps_the_instruction_set(implementation: str) -> None:
    """Packing again for another instruction set does not switch to it."""
    net = layer("lstm", 5, 7)
    x, _ = inputs("lstm", net, (3, 2), "time", 0, ())
    for isa in available_isas():
        with fastrnn.use_backend("native"), fastrnn.use_isa(isa):
            run(net, x)
    before = fastrnn.config()
    net.load_state_dict(net.state_dict())
    assert fastrnn.config() == before


SHAPES = {
    f"{name}_l{k}{way}": shape
    for k, I in enumerate((3, 8))
    for way in ("", "_reverse")
    for name, shape in (("weight_ih", (12, I)), ("weight_hh", (12, 4)), ("bias_ih", (12,)), ("bias_hh", (12,)))
}


def shapes(net: Any) -> dict[str, tuple[int, ...]]:
    return {name: a.shape for name, a in net.state_dict().items()}


def test_names_and_shapes_are_torchs() -> None:
    """PyTorch's names in its order, for torch.nn.GRU(3, 4, 2, bidirectional=True)."""
    net = fastrnn.GRU(3, 4, 2, reset_after=True, bidirectional=True)
    assert list(shapes(net).items()) == list(SHAPES.items())
    bare = {name: shape for name, shape in SHAPES.items() if "bias" not in name and "reverse" not in name}
    one_way = fastrnn.GRU(3, 4, 2, reset_after=True, bias=False)
    assert shapes(one_way) == bare | {"weight_ih_l1": (12, 4)}
    summed = fastrnn.GRU(3, 4, 2, reset_after=True, bidirectional=True, merge="sum")
    assert shapes(summed) == SHAPES | {"weight_ih_l1": (12, 4), "weight_ih_l1_reverse": (12, 4)}


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_its_shapes(cell: str) -> None:
    G = PUBLIC[cell][1]
    expected = {"weight_ih_l0": (G * 4, 3), "weight_hh_l0": (G * 4, 4), "bias_ih_l0": (G * 4,), "bias_hh_l0": (G * 4,)}
    peephole = {"peephole_l0": (12,)} if cell == "lstm_peephole" else {}
    assert shapes(layer(cell, 3, 4)) == expected | peephole


def test_state_dict_is_a_copy() -> None:
    net = layer("lstm", 3, 4)
    before, given = net.state_dict(), net.state_dict()
    for a in given.values():
        a += 1
    assert_same_bits(net.state_dict(), before)
    net.load_state_dict(given)
    loaded = {name: a.copy() for name, a in given.items()}
    for a in given.values():
        a += 1
    assert_same_bits(net.state_dict(), loaded)


@pytest.mark.parametrize("weight_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_changes_in_place_are_noticed(cell: str, weight_dtype: Any, backend: str) -> None:
    """Without `changed`: of one element of a small array, and of all of a large one; streams follow after a call."""
    net = layer(cell, 5, 17, weight_dtype=weight_dtype)
    x, given = inputs(cell, net, (4, 2), "time", 7, ("state",))
    y = run(net, x, **given)["y"]
    for _ in range(2):  # the second time a prepared call
        for parameter in net.parameters().values():
            parameter[..., -1] += 0.5
            fresh = layer(cell, 5, 17, rng=1, weight_dtype=weight_dtype)
            fresh.load_state_dict(net.state_dict())
            got = run(net, x, **given)
            assert_same_bits(got, run(fresh, x, **given))
            assert not np.array_equal(got["y"], y)
            y = got["y"]


def test_changes_of_large_arrays_are_noticed(backend: str) -> None:
    net, fresh = (fastrnn.LSTM(40, 64, 2, rng=seed) for seed in (0, 1))
    x = np.random.default_rng(0).standard_normal((3, 1, 40), np.float32)
    stream = net.stream()
    before = net(x)[0]
    for parameter in net.parameters().values():
        parameter *= 0.5
        fresh.load_state_dict(net.state_dict())
        after = net(x)[0]
        assert_same_bits({"y": after}, {"y": fresh(x)[0]})
        assert not np.array_equal(before, after)
        before = after
    assert_same_bits({"y": stream.step(x[0])}, {"y": fresh.stream().step(x[0])})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("cell", CELLS)
def test_copies_have_weights_of_their_own(cell: str, copied: Callable[[Any], Any], backend: str) -> None:
    """The same layer, before or after a call, with its own parameters."""
    net = layer(cell, 5, 17, 2, bidirectional=True, merge="average", batch_first=True)
    x, given = inputs(cell, net, (6, 3), "batch", 8, EVERYTHING)
    before = run(net, x, **given)
    twin = copied(net)
    assert repr(twin) == repr(net)
    assert_same_bits(run(twin, x, **given), before)
    twin.load_state_dict(layer(cell, 5, 17, 2, rng=1, bidirectional=True, merge="average").state_dict())
    assert_same_bits(run(net, x, **given), before)
    assert_same_bits(run(twin, x, **given), composed(twin, cell, x, **given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_initial_parameters_are_torchs_distribution(cell: str, dtype: type) -> None:
    """Equal for equal seeds, different for every parameter, uniform within 1 / sqrt(H)."""
    options = {"bidirectional": True, "dtype": dtype, "merge": "sum"}
    first, again = (layer(cell, 16, 16, 2, rng=5, **options).state_dict() for _ in range(2))
    assert_same_bits(again, first)
    assert_same_bits(layer(cell, 16, 16, 2, rng=np.random.default_rng(5), **options).state_dict(), first)
    values = np.concatenate([a.ravel() for a in first.values()])
    # float32 has 2^24 values in the range, so a few may occur twice by chance
    assert len(np.unique(values)) > 0.99 * values.size
    assert values.dtype == dtype
    assert 0.245 < np.abs(values).max() <= 0.25
    assert abs(values.mean()) < 0.02
    assert values.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.05)
    for seed in (6, None):
        other = layer(cell, 16, 16, 2, rng=seed, **options).state_dict()
        assert not np.array_equal(other["weight_hh_l0"], first["weight_hh_l0"])


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l1", "bias_hh_l0", "peephole_l1"])
@pytest.mark.parametrize(
    ("error", "change"),
    [
        (KeyError, lambda name, a: {}),
        (KeyError, lambda name, a: {name: a, f"{name}0": a}),
        (ValueError, lambda name, a: {name: a[:-1]}),
        (ValueError, lambda name, a: {name: a[None]}),
        (TypeError, lambda name, a: {name: a.astype(np.float64)}),
        (TypeError, lambda name, a: {name: a.tolist()}),
        (TypeError, lambda name, a: {name: None}),
    ],
)
def test_wrong_ones_change_nothing(error: type[Exception], change: Any, name: str, backend: str) -> None:
    """The message names the parameter; neither stored nor packed parameters change."""
    net = layer("lstm_peephole", 5, 7, 2)
    x, given = inputs("lstm_peephole", net, (4, 3), "time", 9, EVERYTHING)
    before, result = net.state_dict(), run(net, x, **given)
    new = layer("lstm_peephole", 5, 7, 2, rng=1).state_dict()
    wrong = {other: a for other, a in new.items() if other != name} | change(name, new[name])
    with pytest.raises(error, match=rf"\b{max(wrong.keys() - before.keys(), default=name)}\b"):
        net.load_state_dict(wrong)
    assert_same_bits(net.state_dict(), before)
    assert_same_bits(run(net, x, **given), result)
