"""`fastrnn.torch` and packed sequences: as in `torch.nn`, in any order of lengths; malformed ones are errors."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from support.problems import Arrays
from support.tolerance import assert_rounded, assert_same_bits

torch = pytest.importorskip("torch")

from support.torch_modules import KINDS, as_given, both, everything, flat, packing  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402


@pytest.mark.parametrize("lengths", [[4], [1, 1, 1], [5, 5, 5], [2, 40, 1, 3], [3, 3, 2, 1]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_equal_torchs(kind: str, lengths: list[int]) -> None:
    """In any order and shape, for a bidirectional stack with dropout; inference gives the same bits."""
    options = KINDS[kind] | {"num_layers": 3, "bidirectional": True, "dropout": 0.5}
    module, own = both(kind, 3, 17, dtype=torch.float64, **options)
    rng, B, T = np.random.default_rng(sum(lengths)), len(lengths), max(lengths)
    states = [(6, B, 17)] * len(own._cell.states)
    x, *draws = [torch.tensor(rng.standard_normal(s)) for s in [(T, B, 3), (T, B, 34), *states, *states]]
    cotangents, hx = draws[: 1 + len(states)], draws[1 + len(states) :]

    def found(module: Any) -> Arrays:
        return everything(module, x, hx, packing(module, torch.tensor(lengths)), cotangents)

    exact, got = found(module), found(own)
    assert_rounded(got, exact, lambda: found(own))
    own.eval()
    trained = found(own)
    with torch.no_grad():
        result = packing(own, torch.tensor(lengths))(x, as_given(hx))
    outputs = dict(zip(("y", "h_n", "c_n"), flat(result), strict=False))
    assert_same_bits({name: a.numpy() for name, a in outputs.items()}, {name: trained[name] for name in outputs})


def test_one_long_sequence_among_short_ones_is_not_padded() -> None:
    """Padding would make 90 times as many steps."""
    packed = pack_sequence([torch.ones(2000, 8), *[torch.ones(2, 8)] * 99])
    module = fastrnn.torch.GRU(8, 16, 2, dropout=0.5, bidirectional=True)
    module(pack_sequence([torch.ones(3, 8)]))[0].data.sum().backward()  # memory kept between calls
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        tracemalloc.start()
        module(packed)[0].data.sum().backward()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    masks = sum(event.self_cpu_memory_usage for event in profile.key_averages() if event.self_cpu_memory_usage > 0)
    assert peak + masks < 60 * len(packed.data) * (8 + 2 * 16) * 4 < 100 * 2000 * 32 * 4


LSTM = fastrnn.torch.LSTM


def packed_by_hand(**fields: Any) -> PackedSequence:
    """Return sequences of lengths 2, 4 and 3 with some replaced fields, which PyTorch does not check."""
    return PackedSequence._make((PACKED._asdict() | fields).values())


PACKED = pack_sequence([torch.ones(n, 3) for n in (2, 4, 3)], enforce_sorted=False)  # batch_sizes [3, 3, 2, 1]
INDEX = torch.tensor

MALFORMED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no sequence at a step": ({"batch_sizes": INDEX([3, 0, 6])}, ValueError, r"^batch_sizes: .* got \[3, 0, 6\]"),
    "none at the end": ({"batch_sizes": INDEX([3, 3, 3, 0])}, ValueError, "^batch_sizes: expected positive"),
    "rising": ({"batch_sizes": INDEX([1, 2, 3, 3])}, ValueError, "^batch_sizes: .* never increase"),
    "rising within": ({"batch_sizes": INDEX([3, 2, 3, 1])}, ValueError, "^batch_sizes: .* never increase"),
    "negative": ({"batch_sizes": INDEX([6, 5, -2])}, ValueError, "^batch_sizes: expected positive"),
    "negative first": ({"batch_sizes": INDEX([-1, 10])}, ValueError, "^batch_sizes: expected positive"),
    "more than the rows": ({"batch_sizes": INDEX([3, 3, 3, 1])}, ValueError, "^batch_sizes: .* the sum 9"),
    "fewer than the rows": ({"batch_sizes": INDEX([3, 3, 2])}, ValueError, "^batch_sizes: .* the sum 9"),
    "a sum that overflows": ({"batch_sizes": INDEX([2**62] * 4 + [9])}, ValueError, "^batch_sizes: .* the sum 9"),
    "no steps": ({"batch_sizes": INDEX([], dtype=torch.int64)}, ValueError, r"^batch_sizes: .* got \[\]"),
    "int32": ({"batch_sizes": PACKED.batch_sizes.int()}, TypeError, "^batch_sizes: expected .*int64.* got torch.int32"),
    "floats": ({"batch_sizes": PACKED.batch_sizes.double()}, TypeError, "^batch_sizes: .* got torch.float64"),
    "two axes": ({"batch_sizes": PACKED.batch_sizes[None]}, TypeError, r"^batch_sizes: .* 1-D .* \(1, 4\)"),
    "no axis": ({"batch_sizes": INDEX(9)}, TypeError, r"^batch_sizes: .* of shape \(\)"),
    "sizes elsewhere": ({"batch_sizes": PACKED.batch_sizes.to("meta")}, TypeError, "^batch_sizes: .* on meta"),
    "a list": ({"batch_sizes": [3, 3, 2, 1]}, TypeError, "^batch_sizes: .* got list"),
    "no sizes": ({"batch_sizes": None}, TypeError, "^batch_sizes: .* got NoneType"),
    "no data": ({"data": None}, TypeError, "^data: expected a tensor, got NoneType"),
    "an array": ({"data": PACKED.data.numpy()}, TypeError, "^data: expected a tensor, got ndarray"),
    "whole numbers": ({"data": PACKED.data.long()}, RuntimeError, "^data: expected .* got torch.int64"),
    "data elsewhere": ({"data": PACKED.data.to("meta")}, RuntimeError, "^data: expected .* got device meta"),
    "sparse": ({"data": PACKED.data.to_sparse()}, RuntimeError, "^data: expected a dense tensor, got .*sparse_coo"),
    "data of one axis": ({"data": PACKED.data[:, 0]}, RuntimeError, r"^input: expected data .* got \(9,\)"),
    "a number": ({"data": torch.tensor(1.0)}, ValueError, r"^input: expected data of shape \(N, 3\), got \(\)"),
    "data of three axes": ({"data": PACKED.data[:, None]}, RuntimeError, r"^input: expected data .* got \(9, 1, 3\)"),
    "one row less": ({"data": PACKED.data[:-1]}, ValueError, "^batch_sizes: .* the sum 8"),
    "no rows": ({"data": PACKED.data[:0]}, ValueError, "^batch_sizes: .* the sum 0"),
    "far outside": ({"sorted_indices": INDEX([1, 2, 10**12])}, ValueError, "^sorted_indices: expected each of 0 to 2"),
    "from the end": ({"sorted_indices": INDEX([1, 2, -3])}, ValueError, "^sorted_indices: expected each of 0 to 2"),
    "twice": ({"sorted_indices": INDEX([1, 2, 2])}, ValueError, r"^sorted_indices: .* once, got \[1, 2, 2\]"),
    "too short": ({"sorted_indices": INDEX([1, 0])}, ValueError, "^sorted_indices: expected each of 0 to 2"),
    "too long": ({"unsorted_indices": INDEX([2, 0, 1, 3])}, ValueError, "^unsorted_indices: expected each of 0 to 2"),
    "outside": ({"unsorted_indices": INDEX([2, 0, 3])}, ValueError, "^unsorted_indices: expected each of 0 to 2"),
    "back from the end": ({"unsorted_indices": INDEX([-1, 0, 1])}, ValueError, "^unsorted_indices: .* 0 to 2 once"),
    "alone": ({"sorted_indices": None, "unsorted_indices": INDEX([0, 0, 1])}, ValueError, "^unsorted_indices: .* once"),
    "no inverse": ({"unsorted_indices": INDEX([0, 1, 2])}, ValueError, "^unsorted_indices: expected the inverse of"),
    "float indices": ({"sorted_indices": INDEX([1.0, 2.0, 0.0])}, TypeError, "^sorted_indices: .* got torch.float32"),
    "indices elsewhere": ({"unsorted_indices": INDEX([2, 0, 1]).to("meta")}, TypeError, "^unsorted_indices: .* meta"),
    "listed indices": ({"sorted_indices": [1, 2, 0]}, TypeError, "^sorted_indices: .* got list"),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("grad", [True, False])
def test_malformed_packed_sequences_are_errors(what: str, grad: bool) -> None:
    fields, error, message = MALFORMED[what]
    for module in (LSTM(3, 5), fastrnn.torch.GRU(3, 5, 2, dropout=0.5, bidirectional=True)):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
            module(packed_by_hand(**fields))


def test_malformed_packed_sequences_are_errors_in_transforms_and_compiled() -> None:
    module = LSTM(3, 5)

    def run(data: Any) -> Any:
        return module(packed_by_hand(data=data, batch_sizes=INDEX([3, 0, 6])))[0].data.sum()

    for call in (torch.func.grad(run), torch.compile(run, backend="eager")):
        with pytest.raises(ValueError, match=r"^batch_sizes: expected"):
            call(PACKED.data)


def test_two_batches_compile_for_any_lengths() -> None:
    """The first two batches show the compiler that lengths vary; later lengths cause no compilation."""
    module, counted = LSTM(3, 5), torch._dynamo.utils.counters["stats"]
    compiled, graphs = torch.compile(lambda packed: module(packed)[0].data, backend="eager"), []
    for T in range(4, 16):
        packed = pack_sequence([torch.randn(n, 3) for n in (2, T, T - 1)], enforce_sorted=False)
        with torch.no_grad():
            assert torch.equal(compiled(packed), module(packed)[0].data)
        graphs.append(counted["unique_graphs"])
    assert graphs[1] == graphs[-1]


@pytest.mark.parametrize("B", [2, 4])
def test_states_of_another_batch_size_raise_an_error(B: int) -> None:
    """They are checked before they are sorted, which could select three of four."""
    with pytest.raises(ValueError, match=rf"^hx: expected shape \(1, 3, 5\), got \(1, {B}, 5\)"):
        LSTM(3, 5)(PACKED, (torch.ones(1, B, 5), torch.ones(1, B, 5)))


def test_packed_sequences_in_any_memory_layout() -> None:
    """Fields may have any strides, and either order may be absent."""
    module = fastrnn.torch.GRU(3, 5)
    strided = {name: None if a is None else torch.stack([a, a - 9], 1)[:, 0] for name, a in PACKED._asdict().items()}
    y, h = module(PACKED)
    again, h_again = module(packed_by_hand(**strided))
    assert torch.equal(again.data, y.data)
    assert torch.equal(h_again, h)
    assert torch.equal(module(packed_by_hand(sorted_indices=None))[1], h)
    assert torch.equal(module(packed_by_hand(sorted_indices=None, unsorted_indices=None))[1][:, [2, 0, 1]], h)
