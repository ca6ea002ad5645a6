"""Frozen layers: `fit` changes neither their weights nor their optimizer state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import K, N, T, classes, inputs, letters, targets
from support.problems import Arrays
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn import training
from fastrnn.training import CategoricalCrossentropy, Sequential


def three(seed: int = 0, **options: Any) -> Sequential:
    """Return a model of two recurrent layers and a dense one that predicts every step."""
    gru = fastrnn.GRU(3, 4, reset_after=True, dtype=np.float64, rng=[seed, 1], **options)
    rnn = fastrnn.RNN(4, 5, dtype=np.float64, rng=[seed, 2])
    return Sequential([gru, rnn, fastrnn.Dense(5, K, dtype=np.float64, rng=[seed, 3])])


def of(layer: int, arrays: Arrays) -> Arrays:
    return {name: a for name, a in arrays.items() if f".{layer}." in f".{name}"}


@pytest.mark.parametrize("optimizer", [training.Adam, training.AdamW, training.RMSprop, training.SGD])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_layers_do_not_change(frozen: int, optimizer: Any) -> None:
    """Weights and state keep every bit, in spite of decay and moments; the other layers are trained."""
    model = three()
    model.compile(optimizer(0.01, weight_decay=0.1), "mse")
    model.fit(inputs(), targets(N, T), epochs=2, rng=0)
    before, state = model.state_dict(), model.compiled.optimizer.state_dict()
    model.layers[frozen].trainable = False
    model.fit(inputs(), targets(N, T), epochs=2, batch_size=4, rng=1)
    after, kept = model.state_dict(), model.compiled.optimizer.state_dict()
    for i in range(3):
        if i == frozen:
            assert_same_bits(of(i, after), of(i, before))
            names = [name for name in of(i, state) if not name.startswith("steps")]
            assert_same_bits({name: kept[name] for name in names}, {name: state[name] for name in names})
        else:
            assert all((a != before[name]).all() for name, a in of(i, after).items())
    model.layers[frozen].trainable = True
    model.fit(inputs(), targets(N, T), rng=2)
    assert all((a != before[name]).all() for name, a in model.state_dict().items())


@pytest.mark.parametrize("frozen", [{0}, {0, 1}, {1}, {2}, {1, 2}])
def test_other_layers_learn_as_without_freezing(frozen: set[int]) -> None:
    """The first step of each trained layer equals that of a model without frozen layers."""
    models = three(), three()
    for i in frozen:
        models[0].layers[i].trainable = False
    for model in models:
        model.compile(training.SGD(0.1), "mse")
        model.fit(inputs(), targets(N, T), batch_size=N, rng=0)
    for i in {0, 1, 2} - frozen:
        assert_same_bits(of(i, models[0].state_dict()), of(i, models[1].state_dict()))


def test_backward_ends_at_the_lowest_layer_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    model, went = three(), []
    for i, layer in enumerate(model.layers):
        backward = layer.backward
        monkeypatch.setattr(layer, "backward", lambda *a, i=i, f=backward, **o: went.append(i) or f(*a, **o))
    model.compile("sgd", "mse")
    for frozen, expected in (((), [2, 1, 0]), ((1,), [2, 1, 0]), ((0, 1), [2]), ((0, 2), [2, 1])):
        for i, layer in enumerate(model.layers):
            layer.trainable = i not in frozen
        went.clear()
        model.fit(inputs(), targets(N, T), batch_size=N)
        assert went == expected


@pytest.mark.parametrize("how", ["whole", "its layers"])
def test_models_in_models(how: str) -> None:
    inner = three()
    model = Sequential([inner, fastrnn.Dense(K, 2, dtype=np.float64, rng=4)])
    for layer in [inner] if how == "whole" else inner.layers:
        layer.trainable = False
    model.compile("adam", "mse")
    before = model.state_dict()
    model.fit(inputs(), targets(N, T)[..., :2], rng=0)
    assert_same_bits(of(0, inner.state_dict()), of(0, three().state_dict()))
    assert list(model.trainable_parameters()) == ["1.weight", "1.bias"]
    assert all((model.parameters()[name] != before[name]).all() for name in ("1.weight", "1.bias"))
    model.layers[1].trainable = False
    with pytest.raises(ValueError, match=r"^trainable: every layer is frozen"):
        model.fit(inputs(), targets(N, T)[..., :2])
    inner.trainable = "no"  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"^trainable: expected True or False, got 'no'"):
        model.fit(inputs(), targets(N, T)[..., :2])


def test_a_frozen_embedding() -> None:
    model = letters()
    model.layers[0].trainable = False
    model.compile("adam", "categorical_crossentropy")
    before = model.state_dict()
    model.fit(classes(N, T), classes(N, T), epochs=2, batch_size=4, accumulate=2, rng=0)
    assert_same_bits(of(0, model.state_dict()), of(0, before))


def test_a_callback_unfreezes_layers() -> None:
    """Unfreezing layer by layer, as in fine-tuning, gives the same as several fits."""

    class Unfreeze(training.Callback):
        def on_epoch_begin(self, training: training.Training) -> None:
            training.model.layers[0].trainable = training.epoch >= 2

    models = three(), three()
    for model in models:
        model.compile(training.Adam(0.01), "mse")
    models[0].fit(inputs(), targets(N, T), epochs=4, shuffle=False, callbacks=[Unfreeze()])
    for trainable in (False, True):
        models[1].layers[0].trainable = trainable
        models[1].fit(inputs(), targets(N, T), epochs=2, shuffle=False)
    assert_same_bits(models[0].state_dict(), models[1].state_dict())
    assert_same_bits(models[0].compiled.optimizer.state_dict(), models[1].compiled.optimizer.state_dict())


def test_a_checkpoint_resumes(tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("safetensors")

    def model() -> Sequential:
        made = three()
        made.layers[1].trainable = False
        made.compile(training.Adam(0.01), "mse")
        return made

    whole, part = model(), model()
    whole.fit(inputs(), targets(N, T), epochs=4, rng=0)
    path = tmp_path / "checkpoint"
    part.fit(inputs(), targets(N, T), epochs=2, rng=0, callbacks=[training.Checkpoint(path)])
    resumed = model()
    resumed.fit(inputs(), targets(N, T), epochs=4, rng=9, resume=path, callbacks=[training.Checkpoint(path)])
    assert_same_bits(resumed.state_dict(), whole.state_dict())


def test_file_and_summary_show_frozen_layers(tmp_path: Path, oracle: Callable[[str], Any]) -> None:
    oracle("safetensors")
    model = Sequential([three(), fastrnn.Dense(K, 2, dtype=np.float64)])
    plain = model.summary()
    assert "frozen" not in plain
    model.layers[0].layers[1].trainable = model.layers[1].trainable = False
    model.save(tmp_path / "model")
    loaded = fastrnn.load(tmp_path / "model")
    assert [layer.trainable for layer in (*loaded.layers, *loaded.layers[0].layers)] == [True, False, True, False, True]
    frozen = sum(a.size for name, a in model.parameters().items() if name.startswith(("0.1.", "1.")))
    assert f"\nTotal, {frozen} frozen " in model.summary() == loaded.summary()


def test_an_optimizer_of_other_parameters() -> None:
    optimizer, other = training.Adam(), training.Adam()
    optimizer.step({"w": np.ones(2)}, {"w": np.ones(2)})
    other.load_state_dict(optimizer.state_dict())
    model = three()
    model.compile(other, "mse")
    with pytest.raises(ValueError, match=r"^optimizer: its state has 'w', which this model lacks"):
        model.fit(inputs(), targets(N, T))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [None, ".keras", ".h5"])
def test_from_and_to_keras(suffix: str | None, tmp_path: Path, keras: Any) -> None:
    k, rng = keras.layers, np.random.default_rng(0)
    stack = [
        keras.Input((None, 3)),
        k.Bidirectional(k.LSTM(2, return_sequences=True)),
        k.RNN([k.GRUCell(3), k.GRUCell(2)], return_sequences=True),
        k.TimeDistributed(k.Dense(2)),
        k.LayerNormalization(),
        k.Bidirectional(k.GRU(2, return_sequences=True, trainable=False)),
        k.Activation("tanh"),
    ]
    model = keras.Sequential(stack)
    for i in (0, 2):
        model.layers[i].trainable = False
    model.set_weights([rng.standard_normal(w.shape).astype(w.dtype) for w in model.get_weights()])
    if suffix:
        model.save(tmp_path / f"model{suffix}")
    ours = fastrnn.from_keras(tmp_path / f"model{suffix}" if suffix else model)
    assert [layer.trainable for layer in ours.layers] == [False, True, True, False, True, False, True]
    x = rng.standard_normal((2, 5, 3)).astype(np.float32)
    assert_close({"y": ours.predict(x)}, {"y": keras.ops.convert_to_numpy(model(x))}, 5e-6)
    back = fastrnn.to_keras(ours)
    assert [layer.trainable for layer in back.layers] == [False, True, True, False, True, False, True]
    sizes = [int(np.prod(w.shape)) for w in back.trainable_weights]
    assert sum(sizes) == sum(a.size for a in ours.trainable_parameters().values())
    for cell in (0, 1):
        model.layers[1].cell.cells[cell].trainable = False
        model.save(tmp_path / f"{cell}{suffix or '.keras'}")
        cells_frozen = fastrnn.from_keras(tmp_path / f"{cell}{suffix or '.keras'}")
        assert [layer.trainable for layer in cells_frozen.layers] == [False, False, cell == 0, False, True, False, True]
    again = fastrnn.from_keras(back)
    assert list(again.trainable_parameters()) == list(ours.trainable_parameters())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "SGD"])
def test_freezing_and_unfreezing_is_torch(name: str, seed: int, oracle: Callable[[str], Any]) -> None:
    """Compare with requires_grad: 5 steps with all layers, 5 without the first ones, 10 with all again."""
    torch = oracle("torch")
    options = {"momentum": 0.9} if name == "SGD" else {}
    rng = np.random.default_rng(seed)
    x, c = rng.standard_normal((N, T, 3)), rng.integers(0, K, (N, T))
    model = three(seed)
    modules = torch.nn.ModuleList(
        [torch.nn.GRU(3, 4, batch_first=True), torch.nn.RNN(4, 5, batch_first=True), torch.nn.Linear(5, K)]
    ).double()
    modules.load_state_dict({key: torch.tensor(a) for key, a in model.state_dict().items()})
    model.compile(getattr(training, name)(0.02, **options), CategoricalCrossentropy(from_logits=True))
    optimizer = getattr(torch.optim, name)(modules.parameters(), 0.02, **options)
    for trainable, steps in ((True, 5), (False, 5), (True, 10)):
        for i in (0, 1):
            model.layers[i].trainable = trainable
            modules[i].requires_grad_(trainable)
        model.fit(x, c, epochs=steps, batch_size=N, shuffle=False)
        for _ in range(steps):
            logits = modules[2](modules[1](modules[0](torch.tensor(x))[0])[0])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(c).flatten()).backward()
            optimizer.step()
    theirs = {key: a.detach().numpy() for key, a in modules.state_dict().items()}
    assert_close(model.parameters(), theirs, 1e-9)
