"""Seed 000: a GRU, an LSTM and backpropagation through time from scratch, and a bidirectional LSTM that trains.

Three of the notebook's four programs have a mistake, which is shown below together with the correct code: the GRU's
state becomes a matrix by broadcasting, the RNN's gradient is wrong, and the backward LSTM's outputs are at the wrong
steps. The LSTM is right.

Lesson: check shapes and gradients by machine, not by eye. All three mistakes ran without an error.

    python docs/examples/seed_000_from_scratch.py
"""

from __future__ import annotations

import numpy as np
from checking import arguments, claim, compare_gradients, finite_differences, relative_error

import fastrnn
from fastrnn.training import Adam

ROUNDING = 1e-14

Weights = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru(rng: np.random.Generator) -> None:
    """Without biases. The notebook's z weights the new state, fastrnn's the old one: negate that gate's weights."""
    W_r, W_z, W = rng.standard_normal((3, 3, 1))
    U_r, U_z, U = rng.standard_normal((3, 3, 3))
    inputs = np.array([[0.1], [0.2], [0.3]])  # T = 3 steps of I = 1

    def gru_step(x: np.ndarray, h_prev: np.ndarray) -> np.ndarray:
        z = sigmoid(np.dot(W_z, x) + np.dot(U_z, h_prev))
        r = sigmoid(np.dot(W_r, x) + np.dot(U_r, h_prev))
        h_candidate = np.tanh(np.dot(W, x) + np.dot(U, r * h_prev))
        return (1 - z) * h_prev + z * h_candidate

    def gru_forward(h: np.ndarray) -> np.ndarray:
        return np.array([h := gru_step(x, h) for x in inputs])

    states = fastrnn.gru_forward(
        inputs, np.concatenate([W_r, -W_z, W]), np.concatenate([U_r, -U_z, U]), reset_after=False
    ).y

    print(f"GRU, the state after each step:\n{states}")
    by_hand = gru_forward(np.zeros(3))
    claim("the notebook's step gives the same from h_init (3,)", relative_error(states, by_hand) < ROUNDING)
    # Wrong: h_init is (3, 1) and W x is (3,), so their sum is (3, 3), and so is every state that the notebook prints.
    broadcast = gru_forward(np.zeros((3, 1)))
    claim(f"from its own h_init (3, 1) each state has shape {broadcast[0].shape}", broadcast[0].shape == (3, 3))


def lstm(rng: np.random.Generator) -> None:
    """Without biases; the notebook is right."""
    W_i, W_f, W_c, W_o = W = rng.standard_normal((4, 3, 2))
    U_i, U_f, U_c, U_o = U = rng.standard_normal((4, 3, 3))
    inputs = rng.standard_normal((5, 2))  # T = 5 steps of I = 2

    def lstm_cell(x: np.ndarray, h_prev: np.ndarray, c_prev: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f_t = sigmoid(np.dot(W_f, x) + np.dot(U_f, h_prev))
        i_t = sigmoid(np.dot(W_i, x) + np.dot(U_i, h_prev))
        c_tilde_t = np.tanh(np.dot(W_c, x) + np.dot(U_c, h_prev))
        c_t = f_t * c_prev + i_t * c_tilde_t
        o_t = sigmoid(np.dot(W_o, x) + np.dot(U_o, h_prev))
        return o_t * np.tanh(c_t), c_t

    result = fastrnn.lstm_forward(inputs, np.concatenate(W), np.concatenate(U), return_cells=True)

    print("\nLSTM")
    h, c = np.zeros(3), np.zeros(3)
    errors = []
    for t, x in enumerate(inputs):
        h, c = lstm_cell(x, h, c)
        print(f"Time step {t + 1}:  hidden state (h) {result.y[t]}  memory cell (c) {result.c[t]}")
        errors += [relative_error(result.y[t], h), relative_error(result.c[t], c)]
    claim("the notebook's cell gives the same", max(errors) < ROUNDING)


def half_squares(w: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Return the loss whose derivative by the output is the notebook's error_prime: sum((V h - y)^2) / 2."""
    h = fastrnn.rnn_forward(x, w["U"], w["W"], activation="sigmoid").y
    return float(np.sum((h @ w["V"].T - y) ** 2)) / 2


def gradients(w: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """delta[t] = (V' error[t] + W' delta[t+1]) * g'(a[t]); the notebook's W is the recurrent matrix, U the input's."""
    h, _, cache = fastrnn.rnn_forward(x, w["U"], w["W"], activation="sigmoid", training=True)
    error = h @ w["V"].T - y
    g = fastrnn.rnn_backward(error @ w["V"], cache)
    return {"W": g.dU, "U": g.dW, "V": error.T @ h}


def notebook_gradients(w: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the notebook's gradients. Wrong: (1) the error is h - y, of the hidden state by broadcasting, without V;
    (2) delta goes from step to step without W' and without g' of the step that it comes to, it only adds up;
    (3) dV multiplies the error with g' of the step before where h belongs."""
    T, H = len(x), len(w["W"])
    h, h_prime = np.zeros((T + 1, H)), np.zeros((T + 1, H))
    for t in range(1, T + 1):
        h[t] = sigmoid(w["U"] @ x[t - 1] + w["W"] @ h[t - 1])
        h_prime[t] = h[t] * (1 - h[t])
    dW, dU, dV, delta = np.zeros_like(w["W"]), np.zeros_like(w["U"]), np.zeros_like(w["V"]), np.zeros(H)
    for t in range(T, 0, -1):
        delta = delta + (h[t] - y[t - 1]) * h_prime[t]
        dW += np.outer(delta, h[t - 1])
        dU += np.outer(delta, x[t - 1])
        dV += (h[t] - y[t - 1]) * h_prime[t - 1]
    return {"W": dW, "U": dU, "V": dV}


def backpropagation(rng: np.random.Generator) -> None:
    w = {"W": rng.standard_normal((4, 4)), "U": rng.standard_normal((4, 3)), "V": rng.standard_normal((1, 4))}
    x, y = rng.standard_normal((3, 3)), rng.standard_normal((3, 1))
    ours, theirs = gradients(w, x, y), notebook_gradients(w, x, y)
    exact = {name: finite_differences(lambda: half_squares(w, x, y), array) for name, array in w.items()}

    print("\nRNN, backpropagation through time")
    for name in w:
        print(f"Gradients for {name}:\n{ours[name]}")
    notebook_error = compare_gradients(ours, theirs, exact)
    claim("the notebook's are all more than a tenth off", min(notebook_error.values()) > 0.1)


def right_half(layer: fastrnn.LSTM, x: np.ndarray) -> np.ndarray:
    """Return the output of the backward direction, (T, H), for each step of one sequence x (T, I)."""
    y, _ = layer(x)
    return y[:, layer.hidden_size :]


def backward_outputs(layer: fastrnn.LSTM, rng: np.random.Generator) -> None:
    """Wrong in the notebook: go_backwards=True gives the outputs from last step to first, and they are joined so to the
    forward ones, first to last. Beside step t stands what the backward LSTM said of step T-1-t."""
    x = rng.random((10, 32), dtype=np.float32)
    past = x.copy()
    past[0] += 1  # the same except for the first step, which is in no other step's future
    right, right_past = right_half(layer, x), right_half(layer, past)
    notebook, notebook_past = right[::-1], right_past[::-1]

    moved = [np.flatnonzero((a != b).any(axis=1)).tolist() for a, b in ((right, right_past), (notebook, notebook_past))]
    print("\nBidirectional LSTM")
    claim(f"another first input moves the backward output beside step {moved[0]}, as it should", moved[0] == [0])
    claim(f"in the notebook that beside step {moved[1]}, which has nothing to do with it", moved[1] == [9])


def bidirectional(rng: np.random.Generator, epochs: int) -> None:
    """Train on the notebook's targets, which are noise: the best guess is 1/2, with a mean square error of 1/12 =
    0.0833.
    """
    X_train, y_train = rng.random((1000, 10, 32), dtype=np.float32), rng.random((1000, 10, 1), dtype=np.float32)
    lstm = fastrnn.LSTM(32, 64, bidirectional=True, initializer="keras", rng=rng)
    model = fastrnn.Sequential([lstm, fastrnn.Dense(128, 1, initializer="keras", rng=rng)])
    backward_outputs(lstm, rng)

    model.compile(optimizer=Adam(learning_rate=0.001), loss="mse")
    loss = model.fit(X_train, y_train, batch_size=32, epochs=epochs, rng=rng).history["loss"]
    print("loss by epoch:", *[f"{value:.4f}" for value in loss])
    claim("the loss falls to that of the best guess, 0.083", loss[-1] < loss[0] and abs(loss[-1] - 1 / 12) < 0.005)


def main() -> None:
    quick, rng = arguments(__doc__)
    epochs = 5 if quick else 10
    gru(rng)
    lstm(rng)
    backpropagation(rng)
    bidirectional(rng, epochs)


if __name__ == "__main__":
    main()
