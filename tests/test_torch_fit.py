"""PyTorch as an independent oracle of training: the same model, the same weights, the same losses over 50 steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import training

STEPS, BOUND = 50, 1e-9  #: relative tolerance of every loss

N, T, I, H, K = 11, 9, 3, 6, 4

#: ours and PyTorch's, each with its options
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "SGD": (training.SGD, {"learning_rate": 0.2, "momentum": 0.9}, {"lr": 0.2, "momentum": 0.9}),
    "Adam": (training.Adam, {"learning_rate": 0.01}, {"lr": 0.01}),
    "AdamW": (training.AdamW, {"learning_rate": 0.01, "weight_decay": 0.1}, {"lr": 0.01, "weight_decay": 0.1}),
    "RMSprop": (training.RMSprop, {"learning_rate": 0.005}, {"lr": 0.005}),
}


@pytest.fixture(scope="module")
def torch(oracle: Callable[[str], Any]) -> Iterator[Any]:
    """Use one thread: the model is too small for two."""
    torch = oracle("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def model_of(kind: str) -> fastrnn.Sequential:
    """Return an embedding with a bidirectional layer and a class per step, or stacked GRUs with a final regression."""
    if kind == "classes":
        lstm = fastrnn.LSTM(I, H, bidirectional=True, dtype=np.float64, rng=1)
        embedding = fastrnn.Embedding(5, I, dtype=np.float64, rng=2)
        return fastrnn.Sequential([embedding, lstm, fastrnn.Dense(2 * H, K, dtype=np.float64, rng=3)])
    gru = fastrnn.GRU(I, H, num_layers=2, reset_after=True, return_sequences=False, dtype=np.float64, rng=1)
    return fastrnn.Sequential([gru, fastrnn.Dense(H, K, "tanh", dtype=np.float64, rng=2)])


def peer_of(torch: Any, kind: str, weights: dict[str, np.ndarray]) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Return the parameters of the same model, and its prediction from x with lengths."""
    nn, double = torch.nn, {"dtype": torch.float64, "batch_first": True}
    lstm, gru = nn.LSTM(I, H, bidirectional=True, **double), nn.GRU(I, H, num_layers=2, **double)
    recurrent = lstm if kind == "classes" else gru
    first = [nn.Embedding(5, I, dtype=torch.float64)] if kind == "classes" else []
    dense = nn.Linear(2 * H if kind == "classes" else H, K, dtype=torch.float64)
    modules = nn.ModuleList([*first, recurrent, dense])
    modules.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    def predict(x: Any, lengths: Any) -> Any:
        for module in first:
            x = module(x)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, final = recurrent(packed)
        if kind == "numbers":
            return torch.tanh(dense(final[-1]))
        return dense(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0])

    return modules, predict


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_losses_of_fifty_steps(clip_norm: float | None, name: str, kind: str, torch: Any) -> None:
    ours, options, theirs = OPTIMIZERS[name]
    rng = np.random.default_rng(4)
    lengths = np.r_[T, 1, rng.integers(1, T + 1, N - 2)]
    x = rng.integers(0, 5, (N, T)) if kind == "classes" else rng.standard_normal((N, T, I))
    y = rng.integers(0, K, (N, T)) if kind == "classes" else rng.uniform(-1, 1, (N, K))

    model = model_of(kind)
    modules, predict = peer_of(torch, kind, model.state_dict())
    loss = training.CategoricalCrossentropy(from_logits=True) if kind == "classes" else "mse"
    model.compile(ours(**options, clip_norm=clip_norm), loss)
    got = model.fit(x, y, epochs=STEPS, batch_size=N, lengths=lengths, shuffle=False).history["loss"]

    optimizer = getattr(torch.optim, name)(modules.parameters(), **theirs)
    x, y, valid = torch.tensor(x), torch.tensor(y), torch.arange(T) < torch.tensor(lengths)[:, None]
    expected = []
    for _ in range(STEPS):
        prediction = predict(x, torch.tensor(lengths))
        if kind == "classes":
            value = torch.nn.functional.cross_entropy(prediction[valid], y[valid])
        else:
            value = torch.nn.functional.mse_loss(prediction, y)
        optimizer.zero_grad()
        value.backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(modules.parameters(), clip_norm)
        optimizer.step()
        expected.append(value.item())
    assert expected[-1] < 0.95 * expected[0]
    np.testing.assert_allclose(got, expected, rtol=BOUND)
