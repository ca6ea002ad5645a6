"""Every cell, as the textbook has it: one step and, right under it, that step's backward.

These few lines are what the fast code is tested against. Nothing here depends on the dtype: complex numbers work, so a
complex step through `step` differentiates it to machine precision. Time, lengths, resets and absent biases are the
driver's business (`backends.numpy`); a step sees B sequences at one moment, and every argument is an array:

    step(x, state, weights) -> state, saved
    step_backward(dstate, x, state, saved, weights) -> dx, dstate, dweights

where `state` is (h,) or (h, c) before the step, each (B, H); `weights` is (W, U, b, b_rec), and p for peepholes, with
the G gates stacked along the first axis in the order of the equations; `saved` is what backward wants to see again.
A name with `d` in front is the gradient of a scalar with respect to that name; `dweights` are sums over the batch.

`backends.numba` compiles these very functions, so they keep to what it understands, and call `dot` for `@`.

References
----------
.. [1] J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
.. [2] F. A. Gers, J. Schmidhuber, F. Cummins, "Learning to forget: continual prediction with LSTM", Neural
   Computation 12, 2000.
.. [3] F. A. Gers, N. N. Schraudolph, J. Schmidhuber, "Learning precise timing with LSTM recurrent networks",
   JMLR 3, 2002.
.. [4] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
   translation", EMNLP 2014, eq. 5-8.
.. [5] J. Chung, C. Gulcehre, K. Cho, Y. Bengio, "Empirical evaluation of gated recurrent neural networks on sequence
   modeling", 2014. The reset after the product is cuDNN's form of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]

# The number 1 in the narrowest type there is: Numba would widen a float32 array by the literal, an int64.
one = np.int8(1)


def dot(a: Array, b: Array) -> Array:
    return a @ b


def linear(x: Array, W: Array, b: Array) -> Array:
    return dot(x, W.T) + b


def linear_backward(da: Array, x: Array, W: Array) -> tuple[Array, Array, Array]:
    """dx, dW, db of a = linear(x, W, b)."""
    return dot(da, W), dot(da.T, x), da.sum(axis=0)


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), by the exponential of -|a| alone: it cannot overflow, and small values keep every digit."""
    e = np.exp(np.where(a.real < 0, a, -a))
    return np.where(a.real < 0, e, np.ones_like(e)) / (one + e)


def sigmoid_backward(ds: Array, s: Array) -> Array:
    return ds * s * (one - s)


def tanh(a: Array) -> Array:
    return np.tanh(a)


def tanh_backward(dt: Array, t: Array) -> Array:
    return dt * (one - t) * (one + t)


def relu(a: Array) -> Array:
    return np.where(a.real < 0, np.zeros_like(a), a)  # NaN stays NaN


def relu_backward(dr: Array, r: Array) -> Array:
    return np.where(r.real <= 0, np.zeros_like(dr), dr)


def identity(a: Array) -> Array:
    return a


def identity_backward(da: Array, a: Array) -> Array:
    return da


def thirds(a: Array) -> tuple[Array, Array, Array]:
    """Views of three gates that lie side by side along the last axis."""
    H = a.shape[-1] // 3
    return a[..., :H], a[..., H : 2 * H], a[..., 2 * H :]


def quarters(a: Array) -> tuple[Array, Array, Array, Array]:
    """Views of four gates that lie side by side along the last axis."""
    H = a.shape[-1] // 4
    return a[..., :H], a[..., H : 2 * H], a[..., 2 * H : 3 * H], a[..., 3 * H :]


@dataclass(frozen=True)
class Cell:
    """What the rest of the package knows of a cell."""

    name: str
    gates: tuple[str, ...]  #: in the order in which the weights stack them
    saved: tuple[str, ...]  #: what step saves, in its order
    states: tuple[str, ...]  #: ("h",) or ("h", "c")
    step: Callable[..., Any]
    step_backward: Callable[..., Any]
    peepholes: bool = False  #: takes p

    @property
    def G(self) -> int:
        """How many gates there are."""
        return len(self.gates)

    def weights(self, W: Array, U: Array, b: Array | None, b_rec: Array | None, p: Array | None) -> Arrays:
        """The weights as a step takes them: zeros for an absent bias."""
        zeros = np.zeros(len(W), W.dtype)
        biases = (zeros if b is None else b, zeros if b_rec is None else b_rec)
        return (W, U, *biases) if p is None else (W, U, *biases, p)


def rnn(name: str, f: Callable[[Array], Array], f_backward: Callable[[Array, Array], Array]) -> Cell:
    """The vanilla RNN [1] with activation f: h' = f(W x + b + U h + b_rec).

    f_backward(dh, h) is f's backward, by f's own result.
    """

    def step(x: Array, state: Arrays, weights: Arrays) -> Any:
        (h,) = state
        W, U, b, b_rec = weights
        h = f(linear(x, W, b) + linear(h, U, b_rec))
        return (h,), (h,)

    def step_backward(dstate: Arrays, x: Array, state: Arrays, saved: Arrays, weights: Arrays) -> Any:
        (dh,) = dstate
        (h_prev,) = state
        (h,) = saved
        W, U, _, _ = weights
        da = f_backward(dh, h)
        dx, dW, db = linear_backward(da, x, W)
        dh_prev, dU, db_rec = linear_backward(da, h_prev, U)
        return dx, (dh_prev,), (dW, dU, db, db_rec)

    return Cell(f"rnn_{name}", ("h",), ("h",), ("h",), step, step_backward)


def lstm(x: Array, state: Arrays, weights: Arrays) -> Any:
    """c' = f c + i g, h' = o tanh(c'); i, f, o = sigmoid, g = tanh of W x + b + U h + b_rec [2]."""
    h, c = state
    W, U, b, b_rec = weights
    i, f, g, o = quarters(linear(x, W, b) + linear(h, U, b_rec))
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + i * g
    tanh_c = tanh(c)
    return (o * tanh_c, c), (i, f, g, o, tanh_c)


def lstm_backward(dstate: Arrays, x: Array, state: Arrays, saved: Arrays, weights: Arrays) -> Any:
    dh, dc = dstate
    h_prev, c_prev = state
    i, f, g, o, tanh_c = saved
    W, U, _, _ = weights
    do = sigmoid_backward(dh * tanh_c, o)
    dc = dc + tanh_backward(dh * o, tanh_c)
    di = sigmoid_backward(dc * g, i)
    df = sigmoid_backward(dc * c_prev, f)
    dg = tanh_backward(dc * i, g)
    da = np.hstack((di, df, dg, do))
    dx, dW, db = linear_backward(da, x, W)
    dh_prev, dU, db_rec = linear_backward(da, h_prev, U)
    return dx, (dh_prev, dc * f), (dW, dU, db, db_rec)


def lstm_peephole(x: Array, state: Arrays, weights: Arrays) -> Any:
    """The LSTM with + p_i c, + p_f c, + p_o c' inside the sigmoids of i, f, o [3]."""
    h, c = state
    W, U, b, b_rec, p = weights
    p_i, p_f, p_o = thirds(p)
    i, f, g, o = quarters(linear(x, W, b) + linear(h, U, b_rec))
    i, f, g = sigmoid(i + p_i * c), sigmoid(f + p_f * c), tanh(g)
    c = f * c + i * g
    o = sigmoid(o + p_o * c)
    tanh_c = tanh(c)
    return (o * tanh_c, c), (i, f, g, o, tanh_c, c)


def lstm_peephole_backward(dstate: Arrays, x: Array, state: Arrays, saved: Arrays, weights: Arrays) -> Any:
    dh, dc = dstate
    h_prev, c_prev = state
    i, f, g, o, tanh_c, c = saved
    W, U, _, _, p = weights
    p_i, p_f, p_o = thirds(p)
    do = sigmoid_backward(dh * tanh_c, o)
    dc = dc + tanh_backward(dh * o, tanh_c) + do * p_o
    di = sigmoid_backward(dc * g, i)
    df = sigmoid_backward(dc * c_prev, f)
    dg = tanh_backward(dc * i, g)
    da = np.hstack((di, df, dg, do))
    dx, dW, db = linear_backward(da, x, W)
    dh_prev, dU, db_rec = linear_backward(da, h_prev, U)
    dp = np.hstack((di * c_prev, df * c_prev, do * c)).sum(axis=0)
    return dx, (dh_prev, dc * f + di * p_i + df * p_f), (dW, dU, db, db_rec, dp)


def gru_after(x: Array, state: Arrays, weights: Arrays) -> Any:
    """h' = (1-z) n + z h; r, z = sigmoid(W x + b + U h + b_rec), n = tanh(W x + b + r (U h + b_rec)) [5]."""
    (h,) = state
    W, U, b, b_rec = weights
    r, z, n = thirds(linear(x, W, b))
    u_r, u_z, u_n = thirds(linear(h, U, b_rec))
    r, z = sigmoid(r + u_r), sigmoid(z + u_z)
    n = tanh(n + r * u_n)
    return ((one - z) * n + z * h,), (r, z, n, u_n)


def gru_after_backward(dstate: Arrays, x: Array, state: Arrays, saved: Arrays, weights: Arrays) -> Any:
    (dh,) = dstate
    (h_prev,) = state
    r, z, n, u_n = saved
    W, U, _, _ = weights
    dz = sigmoid_backward(dh * (h_prev - n), z)
    dn = tanh_backward(dh * (one - z), n)
    dr = sigmoid_backward(dn * u_n, r)
    dx, dW, db = linear_backward(np.hstack((dr, dz, dn)), x, W)
    dh_prev, dU, db_rec = linear_backward(np.hstack((dr, dz, dn * r)), h_prev, U)
    return dx, (dh_prev + dh * z,), (dW, dU, db, db_rec)


def gru_before(x: Array, state: Arrays, weights: Arrays) -> Any:
    """h' = (1-z) n + z h; r, z = sigmoid(W x + b + U h + b_rec), n = tanh(W x + b + U (r h) + b_rec) [4]."""
    (h,) = state
    W, U, b, b_rec = weights
    H = h.shape[1]
    r, z, n = thirds(linear(x, W, b))
    u_rz = linear(h, U[: 2 * H], b_rec[: 2 * H])
    r, z = sigmoid(r + u_rz[:, :H]), sigmoid(z + u_rz[:, H:])
    n = tanh(n + linear(r * h, U[2 * H :], b_rec[2 * H :]))
    return ((one - z) * n + z * h,), (r, z, n)


def gru_before_backward(dstate: Arrays, x: Array, state: Arrays, saved: Arrays, weights: Arrays) -> Any:
    (dh,) = dstate
    (h_prev,) = state
    r, z, n = saved
    W, U, _, _ = weights
    H = h_prev.shape[1]
    dz = sigmoid_backward(dh * (h_prev - n), z)
    dn = tanh_backward(dh * (one - z), n)
    drh, dU_n, db_n = linear_backward(dn, r * h_prev, U[2 * H :])
    dr = sigmoid_backward(drh * h_prev, r)
    dx, dW, db = linear_backward(np.hstack((dr, dz, dn)), x, W)
    dh_prev, dU_rz, db_rz = linear_backward(np.hstack((dr, dz)), h_prev, U[: 2 * H])
    dU, db_rec = np.vstack((dU_rz, dU_n)), np.hstack((db_rz, db_n))
    return dx, (dh_prev + drh * r + dh * z,), (dW, dU, db, db_rec)


IFGO, RZN = ("i", "f", "g", "o"), ("r", "z", "n")

#: Every cell by its name.
CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        rnn("tanh", tanh, tanh_backward),
        rnn("relu", relu, relu_backward),
        rnn("sigmoid", sigmoid, sigmoid_backward),
        rnn("identity", identity, identity_backward),
        Cell("lstm", IFGO, (*IFGO, "tanh_c"), ("h", "c"), lstm, lstm_backward),
        Cell(
            "lstm_peephole", IFGO, (*IFGO, "tanh_c", "c"), ("h", "c"), lstm_peephole, lstm_peephole_backward,
            peepholes=True,
        ),
        Cell("gru_after", RZN, (*RZN, "u_n"), ("h",), gru_after, gru_after_backward),
        Cell("gru_before", RZN, RZN, ("h",), gru_before, gru_before_backward),
    )
}
