"""Seed 004: an RNN of sigmoids over a batch, and an RNN that learns one number from three inputs.

The first program is right, but by luck: at t = 0 it reads the state at t - 1 = -1, which is the last one and still
zero. The second one's backward pass is wrong in two ways, described and measured below. This goes unnoticed because in
100 epochs, starting from such small weights, only the output bias learns: the loss falls as 0.99^(2 epoch) even without
the RNN.

Lesson: a falling loss does not prove that a gradient is correct; finite differences do.

    python docs/examples/seed_004_one_target.py
"""

from __future__ import annotations

import numpy as np
from checking import arguments, claim, compare_gradients, finite_differences, relative_error

import fastrnn

INPUTS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # (T, I)
TARGET = 1.0
LEARNING_RATE = 0.01

Weights = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def batch_of_sigmoids(rng: np.random.Generator) -> None:
    """Batch-first sequences, (B, T, I), and transposed weights, (I, H): x W where fastrnn has W x."""
    X, W_xh, W_hh, W_hy = rng.random((2, 4, 10)), rng.random((10, 5)), rng.random((5, 5)), rng.random((5, 2))
    b_h, b_y = np.zeros(5), np.zeros(2)

    def notebook() -> np.ndarray:
        hidden_state, output = np.zeros((2, 4, 5)), np.zeros((2, 4, 2))
        for t in range(4):
            hidden_state[:, t, :] = sigmoid(X[:, t, :] @ W_xh + hidden_state[:, t - 1, :] @ W_hh + b_h)
            output[:, t, :] = sigmoid(hidden_state[:, t, :] @ W_hy + b_y)
        return output

    h = fastrnn.rnn_forward(X, W_xh.T, W_hh.T, b_h, activation="sigmoid", batch_first=True).y
    output = sigmoid(h @ W_hy + b_y)

    print(f"Outputs of the sigmoid RNN, 2 sequences of 4 steps:\n{output}")
    claim("the notebook's loop gives the same", relative_error(output, notebook()) < 1e-14)


def small_weights(rng: np.random.Generator, scale: float) -> Weights:
    """Return the notebook's weights, with scale 0.01."""
    shapes = {"Wx": (3, 2), "Wh": (3, 3), "Wy": (1, 3)}
    return {name: rng.random(shape) * scale for name, shape in shapes.items()} | {"bh": np.zeros(3), "by": np.zeros(1)}


def predict(w: Weights, training: bool = False) -> tuple[np.ndarray, np.ndarray, fastrnn.Cache | None]:
    """Return y (1,) from the last state h (3,), and the cache."""
    _, h, cache = fastrnn.rnn_forward(INPUTS, w["Wx"], w["Wh"], w["bh"], training=training)
    return w["Wy"] @ h + w["by"], h, cache


def half_square(w: Weights) -> float:
    """Return the loss whose derivative is (y - target); the notebook prints twice this value."""
    return float(np.sum((predict(w)[0] - TARGET) ** 2)) / 2


def gradients(w: Weights) -> Weights:
    """Backpropagate through time: many to one, so the gradient enters only at the last state."""
    y, h, cache = predict(w, training=True)
    error = y - TARGET
    g = fastrnn.rnn_backward(None, cache, dh_n=w["Wy"].T @ error)
    return {"Wx": g.dW, "Wh": g.dU, "Wy": np.outer(error, h), "bh": g.db, "by": error}


def notebook_gradients(w: Weights) -> Weights:
    """Return the notebook's gradients. Wrong: (1) every step uses the last state h, both as its own and as the previous
    one; (2) the derivative of tanh is taken at h, which is already a tanh: 1 - tanh(h)^2 instead of 1 - h^2."""
    y, h, _ = predict(w)
    error = y - TARGET
    dWx, dWh, dbh, dh = np.zeros((3, 2)), np.zeros((3, 3)), np.zeros(3), w["Wy"].T @ error
    for x in INPUTS[::-1]:
        dhraw = dh * (1 - np.tanh(h) ** 2)
        dWx += np.outer(dhraw, x)
        dWh += np.outer(dhraw, h)
        dbh += dhraw
        dh = w["Wh"].T @ dhraw
    return {"Wx": dWx, "Wh": dWh, "Wy": np.outer(error, h), "bh": dbh, "by": error}


def compare(rng: np.random.Generator) -> None:
    """Compare at weights of order 1, where the RNN matters."""
    w = small_weights(rng, 1.0)
    exact = {name: finite_differences(lambda: half_square(w), array) for name, array in w.items()}
    print("\nMany to one")
    error = compare_gradients(gradients(w), notebook_gradients(w), exact)
    wrong = [name for name in w if error[name] > 0.1]
    claim(f"the notebook's are more than a tenth off for {', '.join(wrong)}", wrong == ["Wx", "Wh", "bh"])


def train(w: Weights, epochs: int) -> list[float]:
    """Descend the gradient; return the loss (y - target)^2 before each update."""
    losses = []
    for _ in range(epochs):
        losses.append(2 * half_square(w))
        for name, gradient in gradients(w).items():
            w[name] -= LEARNING_RATE * gradient
    return losses


def main() -> None:
    quick, rng = arguments(__doc__)
    epochs = 300 if quick else 1000
    batch_of_sigmoids(rng)
    compare(rng)

    losses = train(small_weights(rng, 0.01), epochs)
    print("\nTraining with the right gradient:\nepoch   loss       of a bias alone")
    for epoch in [*range(0, 100, 10), epochs - 1]:
        print(f"{epoch:5d}   {losses[epoch]:.2e}   {0.99 ** (2 * epoch):.2e}")
    claim("the loss is under 0.01 in the end", losses[-1] < 0.01)


if __name__ == "__main__":
    main()
