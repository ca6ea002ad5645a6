"""`fastrnn.torch.replace` and `restore`: what is swapped, what is kept and why, and that nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastrnn.torch  # noqa: E402


class Own(nn.LSTM):
    def forward(self, *given: Any) -> Any:
        return super().forward(*given)


def test_replace_swaps_layers_and_keeps_training() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True),
            "gru": nn.GRU(10, 5, batch_first=True),
            "rnn": nn.RNN(5, 5, nonlinearity="relu", batch_first=True),
            "projected": nn.LSTM(3, 5, proj_size=2),
            "own": Own(3, 5),
            "bfloat": nn.GRU(3, 5, dtype=torch.bfloat16),
            "unmade": nn.GRU(3, 5, device="meta"),
            "cell": nn.LSTMCell(3, 5),
            "linear": nn.Linear(5, 1),
        }
    )
    model["patched"] = nn.GRU(3, 5)
    model["patched"].forward = model["gru"].forward
    x, calls = torch.randn(2, 7, 3), []
    model["gru"].register_forward_hook(lambda *_: calls.append("hook"))
    used = [p for name in ("lstm", "gru", "rnn", "linear") for p in model[name].parameters()]
    optimizer = torch.optim.SGD(used, 0.1)

    def step() -> float:
        y = model["linear"](model["rnn"](model["gru"](model["lstm"](x)[0])[0])[0])
        optimizer.zero_grad()
        loss = (y - 1).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    twin, expected = copy.deepcopy(model.state_dict()), [step() for _ in range(3)]
    model.load_state_dict(twin)
    report = fastrnn.torch.replace(model)
    assert list(report.swapped) == ["lstm", "gru", "rnn", "projected", "unmade"]
    assert report.swapped["gru"] == "fastrnn.torch.GRU(10, 5, batch_first=True)"
    assert list(report.kept) == ["own", "bfloat", "cell", "patched"]
    why = ["Own is a custom class", "torch.bfloat16", "single steps", "its method forward was replaced"]
    assert all(part in reason for part, reason in zip(why, report.kept.values(), strict=True))
    assert [p is q for p, q in zip(used, optimizer.param_groups[0]["params"], strict=True)]
    assert [step() for _ in range(3)] == pytest.approx(expected, rel=1e-5)
    assert calls == ["hook"] * 6
    assert isinstance(model["lstm"], fastrnn.torch.LSTM)
    assert fastrnn.torch.replace(model).swapped == {}
    assert str(fastrnn.torch.replace(nn.Linear(1, 1))) == "no recurrent modules"


def test_replace_takes_a_layer_itself() -> None:
    module, x = nn.GRU(3, 5), torch.randn(4, 2, 3)
    expected = module(x)[0]
    assert str(fastrnn.torch.replace(module)) == "(the model): fastrnn.torch.GRU(3, 5)"
    assert type(module) is fastrnn.torch.GRU
    assert torch.allclose(module(x)[0], expected, atol=1e-6)
    with pytest.raises(TypeError, match="model: expected"):
        fastrnn.torch.replace("model")  # type: ignore[arg-type]
