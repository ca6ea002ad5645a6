"""Per-sample gradients by PyTorch's `call_for_per_sample_grads` equal those of single sequences."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from support.torch_modules import KINDS  # noqa: E402
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads  # noqa: E402

import fastrnn.torch  # noqa: E402

X = torch.linspace(-1, 1, 24).reshape(4, 2, 3)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "peephole"])
def test_per_sample_gradients_equal_those_of_single_sequences(kind: str, batch_first: bool) -> None:
    """For both reductions, and with frozen weights, which get none."""
    torch.manual_seed(0)
    own, options = ("LSTM", {"peephole": True}) if kind == "peephole" else (kind, {})
    options |= {"bidirectional": True, "batch_first": batch_first, "dtype": torch.float64}
    module = getattr(fastrnn.torch, own)(3, 5, 2, **options)
    frozen = [module.weight_ih_l0, module.weight_hh_l1, list(module.parameters())[-1]]
    for parameter in frozen:
        parameter.requires_grad_(False)
    x = torch.randn(4, 3, 3, dtype=torch.float64).transpose(0, int(not batch_first)).contiguous().requires_grad_()
    axis, trained = int(not batch_first), [p for p in module.parameters() if p.requires_grad]
    dy = torch.randn(module(x)[0].shape, dtype=torch.float64)
    for reduction, factor in (("sum", 1), ("mean", 4)):
        for parameter in module.parameters():
            vars(parameter).pop("grad_sample", None)
        x.grad = None
        y, _ = call_for_per_sample_grads(module, loss_reduction=reduction, batch_first=batch_first)(x)
        y.backward(dy)
        assert torch.equal(y, module(x)[0])
        pairs = [(x.narrow(axis, b, 1), dy.narrow(axis, b, 1)) for b in range(4)]
        alone = [torch.autograd.grad(module(one)[0], [x, *trained], d) for one, d in pairs]
        dx, *expected = [torch.stack(parts) for parts in zip(*alone, strict=True)]
        torch.testing.assert_close(x.grad, dx.sum(0))
        for parameter, d in zip(trained, expected, strict=True):
            torch.testing.assert_close(parameter.grad_sample, factor * d)
        assert not any(hasattr(parameter, "grad_sample") for parameter in frozen)
    for parameter in trained:
        del parameter.grad_sample
    with pytest.raises(ValueError, match=r"^input: expected 2 sequences, .*, got 4"):
        call_for_per_sample_grads(module, batch_size=2, batch_first=batch_first)(x)


def test_per_sample_gradients_of_packed_sequences() -> None:
    """In the caller's order."""
    torch.manual_seed(0)
    module = fastrnn.torch.GRU(3, 4, 2, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 5, 1, 5)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    packed.data.requires_grad_()
    y, h = call_for_per_sample_grads(module, batch_size=4, loss_reduction="sum", batch_first=False)(packed)
    (y.data.square().sum() + h.sum()).backward()
    dx = torch.nn.utils.rnn.unpack_sequence(packed._replace(data=packed.data.grad))
    for b, sequence in enumerate(sequences):
        alone = sequence.clone().requires_grad_()
        own, last = module(alone)
        loss = own.square().sum() + last.sum()
        of_x, *grads = torch.autograd.grad(loss, [alone, *module.parameters()])
        torch.testing.assert_close(dx[b], of_x)
        for (name, parameter), grad in zip(module.named_parameters(), grads, strict=True):
            torch.testing.assert_close(parameter.grad_sample[b], grad, msg=name)


def test_per_sample_gradients_with_dropout_and_resets() -> None:
    module = fastrnn.torch.GRU(3, 5, 3, dropout=0.5)
    resets = torch.tensor([[0, 1], [1, 0], [0, 1], [0, 0]]).bool()
    torch.manual_seed(1)
    dy = torch.randn(4, 2, 5)
    torch.manual_seed(2)
    expected = torch.autograd.grad(module(X, resets=resets)[0], list(module.parameters()), dy)
    torch.manual_seed(2)
    call_for_per_sample_grads(module, loss_reduction="sum", batch_first=False)(X, resets=resets)[0].backward(dy)
    for parameter, d in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad_sample.sum(0), d)
