"""Training with `fastrnn.keras`: same learning as Keras' layers, derivatives of any order, changing weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.keras_layers import BOUND, LAYERS, B, H, I, T, pair
from support.tolerance import assert_close, assert_same_bits

# Keras' variables do not know NumPy 2's __array__(copy=).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_dropout_acts_only_in_training(ours: Any, torch: Any) -> None:
    """Also if inference runs between training calls."""
    lstm, x = ours.LSTM(H, recurrent_dropout=0.5, seed=1), np.ones((B, T, I), np.float32)
    plain = ours.LSTM(H)
    for layer in (lstm, plain):
        layer.build(x.shape)
    plain.set_weights(lstm.get_weights())
    with torch.no_grad():
        assert (lstm(x) == plain(x)).all()
        first, again = lstm(x, training=True), lstm(x, training=True)
        assert (lstm(x) == plain(x)).all()
    assert (first != again).any()  # masks differ between calls
    assert (first != first[0]).any()  # and between sequences


@pytest.mark.filterwarnings("ignore:fastrnn.torch. gradients of gradients:RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.4, "dropout": 0.4, "seed": 1}])
def test_gradient_of_a_gradient(options: dict[str, Any], keras: Any, ours: Any, torch: Any) -> None:
    """With a mask; in float32, like Keras' products."""
    theirs, mine = both(keras, ours, **options)
    found = []
    for layer in (theirs, mine):
        x = torch.linspace(-1, 1, 24).reshape(2, 4, 3).requires_grad_()
        y = layer(x, mask=torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool(), training=True)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), x)[0].numpy())
    assert_close({"": found[1]}, {"": found[0]}, BOUND)


@pytest.mark.filterwarnings("ignore:fastrnn.torch. forward-mode derivatives:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.4, "dropout": 0.4, "seed": 1}])
def test_forward_mode(options: dict[str, Any], keras: Any, ours: Any, torch: Any) -> None:
    x = torch.linspace(-1, 1, 24).reshape(2, 4, 3)
    found = []
    for layer in both(keras, ours, **options):
        with torch.autograd.forward_ad.dual_level():
            y = layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), training=True)
            found.append(torch.autograd.forward_ad.unpack_dual(y).tangent.detach().numpy())
    assert_close({"": found[1]}, {"": found[0]}, BOUND)


def both(keras: Any, ours: Any, **options: Any) -> tuple[Any, Any]:
    """Return a GRU of Keras and ours with the same weights."""
    theirs, mine = keras.layers.GRU(5, **options), ours.GRU(5, **options)
    for layer in (theirs, mine):
        layer.build((2, 4, 3))
    mine.set_weights(theirs.get_weights())
    return theirs, mine


@pytest.mark.parametrize("name", LAYERS)
def test_state_is_not_overwritten_before_backward(name: str, keras: Any, ours: Any, torch: Any) -> None:
    """A stateful layer starts from its state, and the gradient refers to the state that it started from."""
    x = np.random.default_rng(3).standard_normal((B, T, I))
    _, free = pair(keras, ours, name, return_state=True)
    _, stateful = pair(keras, ours, name, stateful=True)
    _, *state = free(x)
    stateful(x)
    expected, got = free(x, initial_state=[s.detach() for s in state])[0], stateful(x)
    kernels = [layer.trainable_variables[1].value for layer in (free, stateful)]
    exact, dU = (torch.autograd.grad((y**2).sum(), U)[0].numpy() for y, U in zip((expected, got), kernels, strict=True))
    assert_close({"dU": dU}, {"dU": exact})


@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.2}, {"recurrent_dropout": 0.2, "dropout": 0.2}])
@pytest.mark.parametrize("name", LAYERS)
def test_models_learn_in_the_same_steps(name: str, options: dict[str, Any], keras: Any, ours: Any, torch: Any) -> None:
    """A model with a masking embedding and two bidirectional layers."""
    rng = np.random.default_rng(4)
    keras.utils.set_random_seed(0)
    words, classes = rng.integers(0, 11, (20, T)), rng.integers(0, 2, 20)
    losses, start = [], None
    for layer in (getattr(keras.layers, name), getattr(ours, name)):
        model = keras.Sequential(
            [
                keras.Input((T,)),
                keras.layers.Embedding(11, 6, mask_zero=True),
                keras.layers.Bidirectional(layer(H, return_sequences=True, seed=1, **options)),
                keras.layers.Bidirectional(layer(H, seed=2, **options)),
                keras.layers.Dense(1),
            ]
        )
        start = model.get_weights() if start is None else start
        model.set_weights(start)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        torch.manual_seed(0)  # for the seed of a SimpleRNN, which Keras loses when a Bidirectional copies it
        losses.append(model.fit(words, classes, epochs=3, batch_size=8, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert options or losses[1][-1] < losses[1][0]  # with dropout three epochs guarantee nothing


def test_gradients_use_the_weights_of_the_forward(ours: Any, torch: Any) -> None:
    """If these were changed in place, autograd raises its own error."""

    def gradients(layer: Any, changed: list[Any]) -> Any:
        y = layer(np.ones((B, T, I), np.float32))
        with torch.no_grad():
            for variable in changed:
                variable.value.mul_(2)
        return torch.autograd.grad(y.square().sum(), [v.value for v in layer.trainable_variables])

    gru, lstm = ours.GRU(H), ours.LSTM(H)
    gru.build((B, T, I))
    lstm.build((B, T, I))
    both = [gradients(gru, changed) for changed in ([], gru.trainable_variables)]
    assert_same_bits(*({str(i): a.numpy() for i, a in enumerate(found)} for found in both))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(lstm, [lstm.cell.bias])


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "set_weights": lambda layer, torch: layer.set_weights([2 * a for a in layer.get_weights()]),
    "in place": lambda layer, torch: [v.value.detach().mul_(2) for v in layer.trainable_variables],
    "another tensor": lambda layer, torch: setattr(
        layer.cell.kernel, "_value", torch.nn.Parameter(layer.cell.kernel.value.detach() * 2)
    ),
    "data": lambda layer, torch: [v.value.data.mul_(2) for v in layer.trainable_variables],
    "NumPy": lambda layer, torch: [np.multiply(a := v.value.detach().numpy(), 2, a) for v in layer.trainable_variables],
    "a fused optimizer": lambda layer, torch: stepped(
        torch.optim.Adam([v.value for v in layer.trainable_variables], fused=True)
    ),
}


def stepped(optimizer: Any) -> None:
    for weight in optimizer.param_groups[0]["params"]:
        weight.grad = weight.detach().clone()
    optimizer.step()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_inference_follows_every_change_of_the_weights(name: str, change: str, ours: Any, torch: Any) -> None:
    """Although it packs them only once."""
    layer, x = getattr(ours, name)(H), np.ones((B, T, I), np.float32)
    with torch.no_grad():
        before = layer(x)
        packed = layer._made.stack
        assert (layer(x) == before).all()
        assert layer._made.stack is packed
    CHANGES[change](layer, torch)
    fresh = getattr(ours, name)(H)
    fresh.build(x.shape)
    fresh.set_weights(layer.get_weights())
    with torch.no_grad():
        after = layer(x)
        assert (after == fresh(x)).all()
    assert (after != before).any()
    with torch.inference_mode():
        assert (layer(x) == after).all()


def test_weights_of_inference_mode_are_not_kept(ours: Any, torch: Any) -> None:
    """PyTorch does not count their changes."""
    with torch.inference_mode():
        layer, x = ours.LSTM(H), np.ones((B, T, I), np.float32)
        before = layer(x)
        layer.cell.kernel.value.mul_(2)
        assert (layer(x) != before).any()
