"""Keras' models with random weights; its layers and those of `fastrnn.keras`, and all results of a call."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrnn
from support.problems import Arrays
from support.tolerance import FLOAT32, assert_close

#: Keras multiplies float64 matrices in float32, except where it has a shortcut for sequences without a mask.
BOUND = 5e-6

LAYERS = ("SimpleRNN", "GRU", "LSTM")
T, B, I, H = 9, 5, 3, 7


def randomized(made: Any, seed: int = 0) -> Any:
    """Give a layer or a model random weights, biases included."""
    rng = np.random.default_rng([30, seed])
    made.set_weights([0.5 * rng.standard_normal(w.shape).astype(w.dtype) for w in made.get_weights()])
    return made


def assert_predicts(ours: Any, theirs: Any, x: np.ndarray) -> None:
    """Check that a model or layer of fastrnn computes what Keras' model does."""
    import keras

    ours = ours if isinstance(ours, fastrnn.Sequential) else fastrnn.Sequential([ours])
    assert_close({"y": ours.predict(x)}, {"y": keras.ops.convert_to_numpy(theirs(x))}, FLOAT32)


def pair(keras: Any, ours: Any, name: str, **options: Any) -> tuple[Any, Any]:
    """Return Keras' layer and ours with its weights, all nonzero."""
    both = [getattr(module, name)(H, **{"dtype": "float64"} | options) for module in (keras.layers, ours)]
    for layer in both:
        layer.build((B, T, I))
    share_weights(both, np.random.default_rng(0))
    return both[0], both[1]


def share_weights(both: list[Any], rng: np.random.Generator) -> None:
    """Give both layers the same weights, all nonzero."""
    weights = [rng.uniform(-0.6, 0.6, w.shape) for w in both[0].get_weights()]
    for layer in both:
        layer.set_weights(weights)


def outputs_and_gradients(
    layer: Any, x: np.ndarray, mask: Any, initial: list[np.ndarray], training: bool = False
) -> Arrays:
    """Return every output of two consecutive calls, and the gradients of a random sum of the second's."""
    import torch

    torch.manual_seed(0)  # for the seed of a SimpleRNN, which Keras loses when a Bidirectional copies it
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, *initial)]
    given: dict[str, Any] = {"training": training} | ({} if mask is None else {"mask": torch.tensor(mask)})
    given |= {"initial_state": leaves[1:]} if initial else {}
    named, loss, rng = {}, 0, np.random.default_rng(1)
    for call in range(2):
        results = layer(leaves[0], **given)
        for k, y in enumerate(results if isinstance(results, tuple | list) else [results]):
            named[f"{call}.{k}"] = y.detach().numpy().copy()
            if call:
                loss = loss + (y * torch.tensor(rng.standard_normal(tuple(y.shape)))).sum()
    leaves += [variable.value for variable in layer.trainable_variables]
    gradients = torch.autograd.grad(loss, leaves)
    return named | {f"d{k}": g.numpy() for k, g in enumerate(gradients)}
