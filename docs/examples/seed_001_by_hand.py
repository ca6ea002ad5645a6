"""Seed 001: an RNN, an LSTM and a GRU by hand, reading the word PARK as one-hot letters.

The notebook is right, and fastrnn reproduces every digit of its printed RNN states. Its LSTM and GRU have random
weights, so here the notebook's own lines and fastrnn run with the same weights and agree up to rounding.

Lesson: a cell is a few lines of code; formulations differ only in names and in the order of the gates.

    python docs/examples/seed_001_by_hand.py
"""

from __future__ import annotations

import numpy as np
from checking import arguments, claim, relative_error

import fastrnn

WORD = np.eye(4)  # P, A, R, K: T = 4 steps of I = 4 inputs

#: the states h_1, h_2, h_3, h_4 of the RNN as printed in the notebook
PRINTED = """\
[0.19737532 0.60436778 0.83365461 0.93540907]
[0.78752106 0.98887785 0.99947397 0.99997525]
[0.88013356 0.99771501 0.99995896 0.99999926]
[0.90287178 0.99831338 0.99997209 0.99999954]"""

ROUNDING = 1e-14


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def rnn() -> None:
    """h = tanh(W_x x + W_h h + b)"""
    print("RNN, the state after P, A, R and K:")
    W = np.arange(1, 17).reshape(4, 4) / 10  # W_x and W_h both
    b = np.array([0.1, 0.2, 0.3, 0.4])

    states = fastrnn.rnn_forward(WORD, W, W, b).y

    lines = "\n".join(str(h) for h in states)
    print(lines)
    claim("every digit that the notebook printed", lines == PRINTED)


def lstm(rng: np.random.Generator) -> None:
    """The notebook has a matrix for each gate; fastrnn stacks them in the order i, f, c, o."""
    W, U, b = rng.random((4, 4, 4)), rng.random((4, 4, 4)), rng.random((4, 4))
    (W_i, W_f, W_c, W_o), (U_i, U_f, U_c, U_o), (b_i, b_f, b_c, b_o) = W, U, b

    def lstm_step(x: np.ndarray, h_prev: np.ndarray, c_prev: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f_t = sigmoid(np.dot(W_f, x) + np.dot(U_f, h_prev) + b_f)
        i_t = sigmoid(np.dot(W_i, x) + np.dot(U_i, h_prev) + b_i)
        c_tilde = np.tanh(np.dot(W_c, x) + np.dot(U_c, h_prev) + b_c)
        c_t = f_t * c_prev + i_t * c_tilde
        o_t = sigmoid(np.dot(W_o, x) + np.dot(U_o, h_prev) + b_o)
        return o_t * np.tanh(c_t), c_t

    h, c, by_hand = np.zeros(4), np.zeros(4), []
    for x in WORD:
        h, c = lstm_step(x, h, c)
        by_hand.append(h)

    states = fastrnn.lstm_forward(WORD, np.concatenate(W), np.concatenate(U), np.concatenate(b)).y

    print(f"\nLSTM, the state after each letter:\n{states}")
    claim("the notebook's step gives the same", relative_error(states, np.array(by_hand)) < ROUNDING)


def gru(rng: np.random.Generator) -> None:
    """The notebook's update gate weights the new state, h = (1 - z) h_prev + z h~; fastrnn's, like Cho's (2014), the
    old state. As 1 - sigmoid(a) = sigmoid(-a), negating that gate's weights converts one to the other."""
    W, U, b = rng.random((3, 4, 4)), rng.random((3, 4, 4)), rng.random((3, 4))
    (W_r, W_z, W_h), (U_r, U_z, U_h), (b_r, b_z, b_h) = W, U, b

    def gru_step(x: np.ndarray, h_prev: np.ndarray) -> np.ndarray:
        z_t = sigmoid(np.dot(W_z, x) + np.dot(U_z, h_prev) + b_z)
        r_t = sigmoid(np.dot(W_r, x) + np.dot(U_r, h_prev) + b_r)
        h_tilde = np.tanh(np.dot(W_h, x) + np.dot(U_h, r_t * h_prev) + b_h)
        return (1 - z_t) * h_prev + z_t * h_tilde

    h, by_hand = np.zeros(4), []
    for x in WORD:
        h = gru_step(x, h)
        by_hand.append(h)

    stacked = [np.concatenate([r, -z, n]) for r, z, n in (W, U, b)]
    states = fastrnn.gru_forward(WORD, *stacked, reset_after=False).y

    print(f"\nGRU, the state after each letter:\n{states}")
    claim("the notebook's step gives the same", relative_error(states, np.array(by_hand)) < ROUNDING)


def main() -> None:
    _, rng = arguments(__doc__)  # it is fast anyway
    rnn()
    lstm(rng)
    gru(rng)


if __name__ == "__main__":
    main()
