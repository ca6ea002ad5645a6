"""Seed 003: the ten answers of an exercise on RNNs, with their models built and trained on fastrnn.

Lesson: the cells, their costs, and their training. All data is random, as in the notebook, so a falling loss means
memorisation. Three answers are wrong and are corrected below: the first model has no recurrence, the two models of the
third answer show neither vanishing nor exploding gradients, and the peephole LSTM has no peepholes.

Keras cells have one bias, except the reset-after GRU, which has one for each side: bias="input" and bias=True here.

    python docs/examples/seed_003_ten_answers.py
"""

from __future__ import annotations

import numpy as np
from checking import arguments, claim

import fastrnn
from fastrnn import GRU, LSTM, RNN, Dense, Sequential
from fastrnn.initializers import RandomNormal, Zeros
from fastrnn.layers import Layer
from fastrnn.training import SGD

T, I = 10, 32  # steps and inputs


def title(text: str) -> None:
    print(f"\n{text}")


def uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.random(shape, dtype=np.float32)


def count(layer: Layer) -> int:
    return sum(array.size for array in layer.parameters().values())


def cell(rng: np.random.Generator) -> None:
    title("1. The cell of an RNN")
    rnn = RNN(I, 128, bias="input", initializer="keras", batch_first=True, rng=rng)
    claim(f"SimpleRNNCell(128) has {count(rnn):,} parameters", count(rnn) == 20_608)

    # Wrong: the notebook passes its cell all ten steps at once and one zero state, so each step is a sequence of its
    # own, independent of the others. A cell has to be called step by step, as a layer does.
    W, U, b = rnn.get_weights()
    x = uniform(rng, 1, T, I)
    other = x.copy()
    other[:, 0] += 1  # the same except for its first step

    def notebook(x: np.ndarray) -> np.ndarray:
        return fastrnn.rnn_step(x[0], np.zeros((T, 128), np.float32), W, U, b)

    felt = float(np.abs(notebook(x) - notebook(other))[-1].max()), float(np.abs(rnn(x)[0] - rnn(other)[0])[:, -1].max())
    claim("the notebook's last output does not depend on the first input", felt[0] == 0)
    claim(f"the RNN's does, and changes by {felt[1]:.2f}", felt[1] > 0.01)


def rnn_and_dense(rng: np.random.Generator, epochs: int) -> None:
    title("2. Backpropagation through time trains an RNN")
    model = Sequential(
        [
            RNN(I, 64, bias="input", return_sequences=False, initializer="keras", rng=rng),
            Dense(64, 10, initializer="keras", rng=rng),
        ]
    )
    model.compile(optimizer="adam", loss="mse")
    history = model.fit(uniform(rng, 100, T, I), uniform(rng, 100, 10), epochs=epochs, rng=rng).history
    print("loss by epoch:", *[f"{loss:.4f}" for loss in history["loss"]])
    claim("the loss falls below half of the first epoch's", history["loss"][-1] < history["loss"][0] / 2)


def chain(activation: str, initializer: object, rng: np.random.Generator) -> Sequential:
    """Return the notebook's three layers of ten units."""
    return Sequential([Dense(n, 10, activation, initializer=initializer, rng=rng) for n in (2, 10, 10)])


def gradient_norms_by_layer(model: Sequential, x: np.ndarray, y: np.ndarray) -> list[float]:
    out = model.forward(x, training=True)
    _, dy = fastrnn.training.MeanSquaredError().gradient(out.y, y)
    grads = model.backward(dy, out.cache).grads
    return [float(np.linalg.norm(grads[f"{i}.weight"])) for i in range(3)]


def gradient_norms_by_step(activation: str, scale: float, rng: np.random.Generator) -> list[float]:
    """Return ||dL/dh_t|| for t = 0..T-2 and ||dL/dh_(T-1)|| = 1: h_t is the initial state of the remaining steps."""
    x, W, U = rng.random((T, I)), scale * rng.standard_normal((10, I)), scale * rng.standard_normal((10, 10))
    h = fastrnn.rnn_forward(x, W, U, activation=activation).y
    norms = []
    for t in range(T - 1):
        rest = fastrnn.rnn_forward(x[t + 1 :], W, U, h0=h[t], activation=activation, training=True)
        grads = fastrnn.rnn_backward(None, rest.cache, dh_n=np.full(10, 10**-0.5))
        norms.append(float(np.linalg.norm(grads.dh0)))
    return norms


def vanishing_and_exploding(rng: np.random.Generator, epochs: int) -> None:
    """Wrong in the notebook: it shows losses, and a loss does not show it. 0.25 is as good as guessing coins can be,
    so the sigmoids' 0.253 is no sign of vanishing; and Adam's steps do not grow with the gradient, so the loss of
    3.5e7 falls. What vanishes and explodes is the gradient, from layer to layer, and in an RNN from step to step."""
    X_train = uniform(rng, 100, 2)
    y_train = np.repeat(rng.integers(0, 2, (100, 1)), 10, axis=1).astype(np.float32)  # ten equal outputs

    title("3a. Vanishing gradients: sigmoids")
    model = chain("sigmoid", "keras", rng)
    norms = gradient_norms_by_layer(model, X_train, y_train)
    print("gradient norm by layer:", *[f"{norm:.1e}" for norm in norms])
    claim("the first layer's is below a tenth of the last one's", norms[0] < norms[-1] / 10)
    norms = gradient_norms_by_step("sigmoid", 10**-0.5, rng)
    print("of an RNN, by step:    ", *[f"{norm:.1e}" for norm in norms])
    claim("the first step's is below 1e-5 of the last one's", norms[0] < 1e-5)
    model.compile(optimizer="adam", loss="mse")
    history = model.fit(X_train, y_train, epochs=epochs, rng=rng).history
    print("loss by epoch:", *[f"{loss:.4f}" for loss in history["loss"]])

    title("3b. Exploding gradients: weights of standard deviation 10")
    wide = {"weight": RandomNormal(stddev=10.0), "bias": Zeros()}
    model = chain("linear", wide, rng)
    norms = gradient_norms_by_layer(model, X_train, y_train)
    print("gradient norm by layer:", *[f"{norm:.1e}" for norm in norms])
    claim("they are above 1e4, all of them", min(norms) > 1e4)
    norms = gradient_norms_by_step("identity", 10.0, rng)
    print("of an RNN, by step:    ", *[f"{norm:.1e}" for norm in norms])
    claim("the first step's is above 1e10 of the last one's", norms[0] > 1e10)

    start = model.state_dict()
    model.compile(SGD(learning_rate=1e-4), loss="mse")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            model.fit(X_train, y_train, epochs=epochs, rng=rng)
        problem = "none"
    except FloatingPointError as error:
        problem = str(error)
    print(f"gradient descent without clipping: {problem}")
    claim("it diverges, and fit says so", problem != "none")

    model.load_state_dict(start)
    model.compile(SGD(learning_rate=0.1, clip_norm=10.0), loss="mse")
    loss = model.fit(X_train, y_train, epochs=5 * epochs, rng=rng).history["loss"]
    print(f"with the norm clipped to 10: loss {loss[0]:.1e} in the first epoch, {loss[-1]:.1e} in the last")
    claim("clipping cures it: the loss falls below a tenth", loss[-1] < loss[0] / 10)


def lstm_and_softmax(rng: np.random.Generator, epochs: int) -> None:
    title("4. An LSTM with a softmax on every step")
    X_train, y_train = uniform(rng, 100, T, I), rng.integers(0, 2, (100, T))
    model = Sequential(
        [
            LSTM(I, 64, bias="input", initializer="keras", rng=rng),
            Dense(64, 2, "softmax", initializer="keras", rng=rng),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    one_hot = np.eye(2, dtype=np.float32)[y_train]
    history = model.fit(X_train, one_hot, epochs=epochs, batch_size=32, rng=rng).history
    print("loss by epoch:    ", *[f"{loss:.4f}" for loss in history["loss"]])
    print("accuracy by epoch:", *[f"{accuracy:.4f}" for accuracy in history["accuracy"]])
    claim("the loss falls", history["loss"][-1] < history["loss"][0])
    claim("the labels as integers are the same", model.evaluate(X_train, y_train) == model.evaluate(X_train, one_hot))


def gru_and_dense(rng: np.random.Generator) -> None:
    title("5. A GRU")
    gru = GRU(I, 64, reset_after=True, return_sequences=False, initializer="keras", rng=rng)
    model = Sequential([gru, Dense(64, 10, initializer="keras", rng=rng)])
    y = model.predict(uniform(rng, 4, T, I))
    claim(f"4 sequences give {y.shape}, and the model has {count(model):,} parameters", count(model) == 19_466)


def peephole(rng: np.random.Generator) -> None:
    title("6. A peephole LSTM")
    X = uniform(rng, 1, T, I)
    lstm = LSTM(I, 24, bias="input", peephole=True, batch_first=True, rng=rng)
    predictions, _ = lstm(X)
    print(f"Predictions: shape {predictions.shape}, the first of\n{predictions[0, 0]}")

    # Wrong: implementation=2 only selects how Keras multiplies; its LSTM has no peepholes, and 5,472 parameters.
    plain = LSTM(I, 24, bias="input", batch_first=True)
    state = lstm.state_dict()
    p = state.pop("peephole_l0")
    plain.load_state_dict(state)
    claim("the notebook's has 5,472 parameters", count(plain) == 5_472)
    claim(f"peepholes are {p.size} more", count(lstm) == count(plain) + 3 * 24)
    difference = float(np.abs(predictions - plain(X)[0]).max())
    claim(f"and make a difference, of {difference:.3f} here", difference > 1e-3)
    lstm.load_state_dict(state | {"peephole_l0": np.zeros_like(p)})
    claim("with peepholes of 0 there is none", np.allclose(lstm(X)[0], plain(X)[0], rtol=0, atol=1e-6))


def bidirectional(rng: np.random.Generator) -> None:
    title("7. A bidirectional LSTM")
    model = Sequential(
        [
            LSTM(I, 64, bias="input", bidirectional=True, initializer="keras", rng=rng),
            Dense(2 * 64, 1, "sigmoid", initializer="keras", rng=rng),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    print(model.summary())
    counts = tuple(count(layer) for layer in model.layers)
    claim(f"as in Keras: {counts[0]:,} + {counts[1]:,} parameters", counts == (49_664, 129))


def weights(rng: np.random.Generator) -> None:
    title("8. The gates of an LSTM: its weights")
    lstm = LSTM(I, 64, bias="input", initializer="keras", rng=rng)
    for (name, array), copy in zip(lstm.parameters().items(), lstm.get_weights(), strict=True):
        print(f"{name} {array.shape}, gates i, f, g, o: mean {copy.mean():+.4f}, standard deviation {copy.std():.4f}")
    forget = lstm.parameters()["bias_ih_l0"][64:128]
    claim("Keras' initial forget bias is 1, so that an LSTM remembers to begin with", bool((forget == 1).all()))


def both_ways(rng: np.random.Generator) -> None:
    title("9 and 10. BiLSTM and BiGRU")
    x = uniform(rng, 1, T, I)
    for layer, parameters in (
        (LSTM(I, 64, bias="input", bidirectional=True, batch_first=True, rng=rng), 49_664),
        (GRU(I, 64, reset_after=True, bidirectional=True, batch_first=True, rng=rng), 37_632),
    ):
        y, _ = layer(x)
        own = count(layer)
        claim(f"{type(layer).__name__}: {x.shape} -> {y.shape}, {own:,} parameters", own == parameters)


def main() -> None:
    quick, rng = arguments(__doc__)
    epochs = 5 if quick else 10
    cell(rng)
    rnn_and_dense(rng, epochs)
    vanishing_and_exploding(rng, epochs)
    lstm_and_softmax(rng, epochs)
    gru_and_dense(rng)
    peephole(rng)
    bidirectional(rng)
    weights(rng)
    both_ways(rng)


if __name__ == "__main__":
    main()
