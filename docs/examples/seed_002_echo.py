"""Seed 002: the 2-back echo task. An RNN of 6 units reads 50 random bits and must repeat each of them two steps later.

The notebook's loss stalls near 0.12 for 1000 epochs, no better than always answering 1/2, because its backpropagation
through time is wrong in three ways, described and measured below. With the correct gradient, the same network, learning
rate and 1000 epochs reach a loss below 0.01.

Lesson: backpropagation through time is a chain of small products, and one dot product in place of an outer product
breaks it.

    python docs/examples/seed_002_echo.py
"""

from __future__ import annotations

import numpy as np
from checking import arguments, claim, compare_gradients, finite_differences, relative_error

import fastrnn

STEPS, DELAY, HIDDEN = 50, 2, 6
EPOCHS, LEARNING_RATE = 1000, 0.01

Weights = dict[str, np.ndarray]


def make_data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bits (T,), and the same bits two steps later, after two zeros."""
    x = rng.choice(2, STEPS).astype(float)
    y = np.roll(x, DELAY)
    y[:DELAY] = 0
    return x, y


def make_weights(rng: np.random.Generator) -> Weights:
    shapes = {"U": (HIDDEN, HIDDEN), "V": (HIDDEN, 1), "w": (HIDDEN,)}
    return {name: 0.1 * rng.standard_normal(shape) for name, shape in shapes.items()}


def predict(weights: Weights, x: np.ndarray, training: bool = False) -> tuple[np.ndarray, fastrnn.RNNResult]:
    """yh[t] = w h[t] with h[t] = tanh(V x[t] + U h[t-1]); the states and the cache are in the second result."""
    result = fastrnn.rnn_forward(x[:, None], weights["V"], weights["U"], training=training)
    return result.y @ weights["w"], result


def cost(weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Return the notebook's cost: half of the mean square error."""
    return float(np.sum((predict(weights, x)[0] - y) ** 2)) / (2 * len(y))


def gradients(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the gradients of the sum of (yh[t] - y[t])^2 / 2 over all steps, like 50 updates of the notebook."""
    yh, result = predict(weights, x, training=True)
    error = yh - y
    g = fastrnn.rnn_backward(np.outer(error, weights["w"]), result.cache)
    return {"U": g.dU, "V": g.dW, "w": error @ result.y}


def notebook_gradients(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the notebook's gradients, summed over its steps. Wrong: (1) dU and dV begin with y - yh, dw with yh - y,
    so the hidden weights ascend; (2) dU adds the same number np.dot(q, h) for every weight instead of the outer
    product of q and h; (3) dw uses the state before the step, h[t-1], instead of that after it."""
    yh, result = predict(weights, x)
    h = np.vstack([np.zeros(HIDDEN), result.y])  # h[t] is the state before step t
    slope = 1 - result.y**2
    dU, dV, dw = np.zeros((HIDDEN, HIDDEN)), np.zeros((HIDDEN, 1)), np.zeros(HIDDEN)
    for t in range(STEPS):
        q = (y[t] - yh[t]) * weights["w"] * slope[t]
        for i in range(t, -1, -1):
            dU += np.dot(q, h[i])
            dV[:, 0] += q * x[i]
            q = q @ weights["U"] * slope[i - 1]
        dw += (yh[t] - y[t]) * h[t]
    return {"U": dU, "V": dV, "w": dw}


def compare(weights: Weights, x: np.ndarray, y: np.ndarray) -> None:
    ours, theirs = gradients(weights, x, y), notebook_gradients(weights, x, y)
    exact = {name: STEPS * finite_differences(lambda: cost(weights, x, y), array) for name, array in weights.items()}
    error = compare_gradients(ours, theirs, exact)
    claim("the notebook's are all more than a hundredth off", min(error.values()) > 0.01)
    claim("its dV points exactly the other way", relative_error(-theirs["V"], exact["V"]) < 1e-8)


def train(weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Descend the gradient with one update per epoch; return the last cost."""
    print("\nepoch   cost")
    for epoch in range(1, EPOCHS + 1):
        for name, gradient in gradients(weights, x, y).items():
            weights[name] -= LEARNING_RATE * gradient
        if epoch == 1 or epoch % 100 == 0:
            print(f"{epoch:5d}   {cost(weights, x, y):.5f}")
    return cost(weights, x, y)


def main() -> None:
    _, rng = arguments(__doc__)  # 1000 epochs take a tenth of a second
    x, y = make_data(rng)
    weights = make_weights(rng)
    compare(weights, x, y)
    final = train(weights, x, y)
    claim(f"the cost after {EPOCHS} epochs is under 0.01 (the notebook's: 0.12)", final < 0.01)

    fresh, echo = make_data(rng)
    heard = predict(weights, fresh)[0] > 0.5
    print("\nUnseen bits, and the network's output:")
    print("".join(str(int(bit)) for bit in fresh), "", "".join(str(int(bit)) for bit in heard), sep="\n")
    claim("every bit comes back two steps later", np.array_equal(heard, echo == 1))


if __name__ == "__main__":
    main()
