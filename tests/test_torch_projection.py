"""`fastrnn.torch` with proj_size: as the layer, with resets, lengths and peepholes; what only it has, and is refused.

Beside `torch.nn.LSTM` it is one of the options of test_torch_modules.py, test_torch_higher.py and others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_close, assert_same_bits

import fastrnn

torch = pytest.importorskip("torch")

from support.torch_modules import assert_equal, both, drawn, everything, flat, of_layer, slow  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import fastrnn.torch  # noqa: E402

pytestmark = slow

T, B, I, H, P = 5, 4, 3, 7, 4


def peers(**options: Any) -> tuple[Any, Any]:
    return both("LSTM", I, H, proj_size=P, dtype=torch.float64, **options)


def inputs(module: Any) -> tuple[Any, tuple[Any, Any]]:
    """Return x and the initial states for a module's options."""
    calls = module.num_layers * (1 + module.bidirectional)
    x = drawn(1, B, T, I) if module.batch_first else drawn(1, T, B, I)
    return x, (drawn(2, calls, B, P), drawn(3, calls, B, H))


def test_equals_the_layer() -> None:
    """Outputs and gradients have the bits of `fastrnn.LSTM`, with resets."""
    _, module = peers(num_layers=2, bidirectional=True)
    resets = torch.rand(T, B, generator=torch.manual_seed(0)) < 0.4
    assert resets.any()
    got = everything(module, *inputs(module), lambda x, hx: module(x, hx, resets=resets))
    assert_same_bits(got, of_layer(fastrnn.from_torch(module), *inputs(module), resets=resets))


def test_derivatives_by_equations() -> None:
    """Forward mode and second gradients by finite differences, with resets and lengths; vmap of inputs."""
    _, module = peers(num_layers=2, bidirectional=True)
    x, states = inputs(module)
    names = list(dict(module.named_parameters()))
    resets = torch.rand(T, B, generator=torch.manual_seed(0)) < 0.4
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 1, 3]), enforce_sorted=False)

    def run(data: Any, h: Any, c: Any, *weights: Any) -> Any:
        named = dict(zip(names, weights, strict=True))
        given = packed._replace(data=data), (h, c)
        return tuple(flat(torch.func.functional_call(module, named, given, {"resets": resets})))

    leaves = [a.clone().requires_grad_() for a in (packed.data, *states)] + list(module.parameters())
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
    several = drawn(9, 3, T, B, I)
    got = torch.func.vmap(lambda x: module(x, states)[0])(several)
    assert_equal(got, torch.stack([module(x, states)[0] for x in several]))


def test_replace() -> None:
    """Also back into a NumPy layer."""
    model, _ = peers(num_layers=2, bidirectional=True)
    expected = everything(model, *inputs(model))
    assert str(fastrnn.torch.replace(model)).startswith("(the model): fastrnn.torch.LSTM(3, 7, proj_size=4")
    assert type(model) is fastrnn.torch.LSTM
    assert_close(everything(model, *inputs(model)), expected)
    layer = fastrnn.from_torch(model)
    assert (layer.proj_size, layer.hidden_size) == (P, H)
    x, states = inputs(model)
    with torch.no_grad():
        expected = {"y": layer(x.numpy(), tuple([s.numpy() for s in states]))[0]}
        assert_same_bits({"y": model(x, states)[0].numpy()}, expected)


def test_peepholes() -> None:
    """Those of the cell state have H units."""
    torch.manual_seed(0)
    module = fastrnn.torch.LSTM(I, H, proj_size=P, peephole=True, dtype=torch.float64)
    assert list(dict(module.named_parameters()))[-2:] == ["weight_hr_l0", "peephole_l0"]
    assert_same_bits(everything(module, *inputs(module)), of_layer(fastrnn.from_torch(module), *inputs(module)))


def test_other_cells_with_a_projection() -> None:
    """Cells with one product of h equal the layer, by the kernels and by the equations; others raise an error."""
    torch.manual_seed(0)
    cell = fastrnn.catalogue.cifg_lstm_input
    module = fastrnn.torch.Recurrent(cell, I, H, 2, bidirectional=True, proj_size=P, dtype=torch.float64)
    layer = fastrnn.Recurrent(cell, I, H, 2, bidirectional=True, proj_size=P, dtype=np.float64)
    layer.load_state_dict(module.state_dict())
    x, states = inputs(module)
    expected = of_layer(layer, x, states)
    assert_same_bits(everything(module, x, states), expected)
    several = torch.func.vmap(lambda x: module(x, states)[0])(x[None])
    assert_close({"y": several[0].detach().numpy()}, {"y": expected["y"]})
    with pytest.raises(ValueError, match=r"^proj_size: li_gru reads h outside a single product with U"):
        fastrnn.torch.Recurrent(fastrnn.catalogue.li_gru, I, H, proj_size=P)


def test_unsupported_options_raise_an_error() -> None:
    for size, message in ((5, "smaller than hidden_size"), (-1, "positive integer or zero")):
        with pytest.raises(ValueError, match=f"proj_size .*{message}"):  # PyTorch's own
            fastrnn.torch.LSTM(3, 5, proj_size=size)
    for kind in (fastrnn.torch.GRU, fastrnn.torch.RNN):
        with pytest.raises(ValueError, match=r"^proj_size: expected 0 .only an LSTM has it, .*, got 2"):
            kind(3, 5, proj_size=2)
    module, x = fastrnn.torch.LSTM(3, 5, proj_size=2), torch.ones(4, 2, 3)
    h, c = torch.ones(1, 2, 2), torch.ones(1, 2, 5)
    with pytest.raises(ValueError, match=r"^hx: expected shape \(1, 2, 2\), got \(1, 2, 5\)"):
        module(x, (c, c))
    with pytest.raises(ValueError, match=r"^hx: expected shape \(1, 2, 5\), got \(1, 2, 2\)"):
        module(x, (h, h))
    by_position = nn.GRU(3, 5, 1, True, False, 0.0, False, 2)  # PyTorch accepts it but cannot call it
    assert str(fastrnn.torch.replace(by_position)) == "(the model): kept, proj_size=2 is only for an LSTM"
