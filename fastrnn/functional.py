"""The functional interface: one call runs a whole sequence; its backward computes all gradients.

Shapes throughout: T steps, B sequences, I inputs, H hidden units, G gates stacked along the first axis of W, U and
the biases in PyTorch's order. All numbers are dimensionless, float32 or float64, one dtype per call. Anything with
``__dlpack__`` or the buffer protocol is accepted as an array, and copied only if the kernels cannot read it in place.
"""

from __future__ import annotations

from typing import Any, Unpack

from fastrnn.checks import boolean
from fastrnn.results import Cache, GRUGrads, GRUResult, LSTMGrads, LSTMResult, RNNGrads, RNNResult
from fastrnn.run import Common, gru_cell, lstm_cell, rnn_cell, run_backward, run_forward


def rnn_forward(
    x: Any,
    W: Any,
    U: Any,
    b: Any = None,
    b_rec: Any = None,
    *,
    h0: Any = None,
    activation: str = "tanh",
    **common: Unpack[Common],
) -> RNNResult:
    """Run a vanilla RNN over time: ``h[t] = activation(W x[t] + b + U h[t-1] + b_rec)``, after Elman [1]_.

    Parameters
    ----------
    x : (T, B, I) array, or (T, I) for one sequence
        Inputs, float32 or float64 (dimensionless).
    W : (H, I) array
        Input weights.
    U : (H, H) array
        Recurrent weights.
    b, b_rec : (H,) array, optional
        Input and recurrent biases.
    h0 : (B, H) array, optional
        Initial state; zeros when absent.
    activation : {"tanh", "relu", "sigmoid", "identity"}
        "linear" is an alias of "identity".
    **common
        `lengths`, `resets`, `reverse`, `batch_first`, `training`, `checkpoint`, `heads`, `threads`: see `lstm_forward`.

    Returns
    -------
    RNNResult
        ``y`` (T, B, H), ``h_n`` (B, H), and the ``cache`` for `rnn_backward`.

    Raises
    ------
    TypeError, ValueError
        As `lstm_forward`.

    References
    ----------
    .. [1] J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> x, W, U = np.ones((3, 1, 1)), np.ones((1, 1)), np.ones((1, 1))
    >>> fastrnn.rnn_forward(x, W, U, activation="identity").y.ravel()
    array([1., 2., 3.])
    """
    weights = {"W": W, "U": U, "b": b, "b_rec": b_rec, "p": None}
    y, final, _, cache = run_forward(rnn_cell(activation), x, weights, (h0,), common)
    return RNNResult(y, final[0], cache)


def rnn_backward(dy: Any, cache: Cache | None, *, dh_n: Any = None) -> RNNGrads:
    """Backpropagate through time for `rnn_forward`, any number of times, on the backend that made the cache.

    Parameters
    ----------
    dy, cache, dh_n
        As for `lstm_backward`; the cache is that of `rnn_forward`.

    Returns
    -------
    RNNGrads
        dx, dW, dU, db, db_rec, dh0, each shaped like its argument; None for an absent one.

    Raises
    ------
    TypeError, ValueError
        As `lstm_backward`.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> x, W, U = np.ones((3, 1, 1)), np.ones((1, 1)), np.ones((1, 1))
    >>> y, h_n, cache = fastrnn.rnn_forward(x, W, U, activation="identity", training=True)
    >>> fastrnn.rnn_backward(None, cache, dh_n=np.ones((1, 1))).dU  # h_n = x0 U^2 + x1 U + x2
    array([[3.]])
    """
    g = run_backward("rnn", dy, cache, {"dh_n": dh_n}, {})
    assert g.dU is not None  # these cells have a product
    return RNNGrads(g.dx, g.dW, g.dU, g.db, g.db_rec, *g.dinit)


def gru_forward(
    x: Any,
    W: Any,
    U: Any,
    b: Any = None,
    b_rec: Any = None,
    *,
    reset_after: bool | None = None,
    h0: Any = None,
    **common: Unpack[Common],
) -> GRUResult:
    """Run a gated recurrent unit over time, ``h[t] = (1 - z) n + z h[t-1]``, after Cho et al. [1]_, equations 5-8.

    r and z are ``sigmoid(W x[t] + b + U h[t-1] + b_rec)``, each with its third of the weights. The candidate is
    ``n = tanh(W x[t] + b + r (U h[t-1] + b_rec))`` with `reset_after` (PyTorch, cuDNN, Keras 3; ONNX with
    linear_before_reset=1), else ``n = tanh(W x[t] + b + U (r h[t-1]) + b_rec)`` (the paper; ONNX by default).

    Parameters
    ----------
    x : (T, B, I) array, or (T, I) for one sequence
        Inputs, float32 or float64 (dimensionless).
    W : (3*H, I) array
        Input weights of the gates r, z, n.
    U : (3*H, H) array
        Recurrent weights, likewise.
    b, b_rec : (3*H,) array, optional
        Input and recurrent biases.
    reset_after : bool
        Which of the two GRU variants; required, because they are often confused.
    h0 : (B, H) array, optional
        Initial state; zeros when absent.
    **common
        `lengths`, `resets`, `reverse`, `batch_first`, `training`, `checkpoint`, `heads`, `threads`: see `lstm_forward`.

    Returns
    -------
    GRUResult
        ``y`` (T, B, H), ``h_n`` (B, H), and the ``cache`` for `gru_backward`.

    Raises
    ------
    TypeError, ValueError
        As `lstm_forward`.

    References
    ----------
    .. [1] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
       translation", EMNLP 2014.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> rng = np.random.default_rng(0)
    >>> x, W, U = rng.standard_normal((5, 2, 3)), rng.standard_normal((12, 3)), rng.standard_normal((12, 4))
    >>> fastrnn.gru_forward(x, W, U, reset_after=True).y.shape
    (5, 2, 4)
    """
    weights = {"W": W, "U": U, "b": b, "b_rec": b_rec, "p": None}
    y, final, _, cache = run_forward(gru_cell(reset_after), x, weights, (h0,), common)
    return GRUResult(y, final[0], cache)


def gru_backward(dy: Any, cache: Cache | None, *, dh_n: Any = None) -> GRUGrads:
    """Backpropagate through time for `gru_forward`, any number of times, on the backend that made the cache.

    Parameters
    ----------
    dy, cache, dh_n
        As for `lstm_backward`; the cache is that of `gru_forward`.

    Returns
    -------
    GRUGrads
        dx, dW, dU, db, db_rec, dh0, each shaped like its argument; None for an absent one.

    Raises
    ------
    TypeError, ValueError
        As `lstm_backward`.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> rng = np.random.default_rng(0)
    >>> x, W, U = rng.standard_normal((5, 2, 3)), rng.standard_normal((12, 3)), rng.standard_normal((12, 4))
    >>> y, h_n, cache = fastrnn.gru_forward(x, W, U, reset_after=True, training=True)
    >>> fastrnn.gru_backward(np.ones_like(y), cache).dx.shape
    (5, 2, 3)
    """
    g = run_backward("gru", dy, cache, {"dh_n": dh_n}, {})
    assert g.dU is not None  # these cells have a product
    return GRUGrads(g.dx, g.dW, g.dU, g.db, g.db_rec, *g.dinit)


def lstm_forward(
    x: Any,
    W: Any,
    U: Any,
    b: Any = None,
    b_rec: Any = None,
    *,
    p: Any = None,
    h0: Any = None,
    c0: Any = None,
    return_cells: bool = False,
    **common: Unpack[Common],
) -> LSTMResult:
    """Run a long short-term memory over time, ``c[t] = f c[t-1] + i g``, ``h[t] = o tanh(c[t])``, after [1]_.

    i, f, o are the sigmoid, and g the tanh, of ``W x[t] + b + U h[t-1] + b_rec``, each with its quarter of the
    weights. Peepholes [2]_ add ``p_i c[t-1]``, ``p_f c[t-1]`` and ``p_o c[t]`` inside i, f and o.

    Parameters
    ----------
    x : (T, B, I) array, or (T, I) for one sequence
        Inputs, float32 or float64 (dimensionless). For one sequence every result lacks the batch axis.
    W : (4*H, I) array
        Input weights of the gates i, f, g, o.
    U : (4*H, H) array
        Recurrent weights, likewise; (4*H, H/heads) with several heads.
    b, b_rec : (4*H,) array, optional
        Input and recurrent biases.
    p : (3*H,) array, optional
        Peephole weights of i, f, o.
    h0, c0 : (B, H) array, optional
        Initial state; zeros when absent.
    return_cells : bool
        Also return c of every step.
    lengths : (B,) integers, optional
        Valid steps of each sequence, 0..T in any order; x is ignored past them. T when absent.
    resets : (T, B) booleans, optional
        Zero the state, including h0 and c0, before step t in the direction of travel; no gradient crosses a reset.
    reverse : bool
        Run from each sequence's last valid step to its first; ``y[t]`` still belongs to ``x[t]``.
    batch_first : bool
        Take and return (B, T, ...) for x, y, c, resets and their gradients; states stay (B, H).
    training : bool
        Save what backward needs in ``cache``. The cache refers to the arguments without copying them: do not change
        them before backward, which compares a sample of elements and raises ValueError if any has changed.
    checkpoint : int or "auto", optional
        Save only the state of every `checkpoint`-th step and recompute the rest: bit-identical gradients, less memory.
        "auto" is sqrt(T), which needs the least memory, O(sqrt(T)), for about the time of one more forward.
    heads : int
        Number of heads, each H/heads consecutive units: row r of each gate of U, (4*H, H/heads), multiplies the units
        of h in the head of unit r. Products with U cost 1/heads.
    threads : int, optional
        At most this many; `get_num_threads()` when absent. The result does not depend on it.

    Returns
    -------
    LSTMResult
        ``y`` (T, B, H), ``h_n`` and ``c_n`` (B, H), the ``cache`` for `lstm_backward`, and ``c`` (T, B, H) or None.

    Raises
    ------
    TypeError
        If an argument is not an array or not of x's dtype; the message names it.
    ValueError
        If a shape or value is wrong; the message names the argument, what was expected and what was given.

    References
    ----------
    .. [1] F. A. Gers, J. Schmidhuber, F. Cummins, "Learning to forget: continual prediction with LSTM", Neural
       Computation 12, 2000.
    .. [2] F. A. Gers, N. N. Schraudolph, J. Schmidhuber, "Learning precise timing with LSTM recurrent networks",
       JMLR 3, 2002.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> rng = np.random.default_rng(0)
    >>> x, W, U = rng.standard_normal((5, 2, 3)), rng.standard_normal((16, 3)), rng.standard_normal((16, 4))
    >>> y, h_n, c_n, *_ = fastrnn.lstm_forward(x, W, U, lengths=[5, 2])
    >>> np.array_equal(h_n[1], y[1, 1]), np.any(y[2:, 1])
    (True, np.False_)
    """
    boolean("return_cells", return_cells)
    weights = {"W": W, "U": U, "b": b, "b_rec": b_rec, "p": p}
    y, final, states, cache = run_forward(lstm_cell(p), x, weights, (h0, c0), common, return_cells)
    return LSTMResult(y, final[0], final[1], cache, states[0])


def lstm_backward(dy: Any, cache: Cache | None, *, dh_n: Any = None, dc_n: Any = None, dc: Any = None) -> LSTMGrads:
    """Backpropagate through time for `lstm_forward`, any number of times, on the backend that made the cache.

    The arguments of the forward must be unchanged. Up to 16 elements of each are compared, enough to detect an
    optimizer step or a reused batch buffer; a change of a few elements may go undetected.

    Parameters
    ----------
    dy : (T, B, H) array or None
        Gradient of a scalar with respect to ``y``; ignored past a sequence's length.
    cache : Cache
        The cache from ``lstm_forward(..., training=True)``.
    dh_n, dc_n : (B, H) array, optional
        Gradients with respect to ``h_n`` and ``c_n``.
    dc : (T, B, H) array, optional
        Gradient with respect to ``c``.

    Returns
    -------
    LSTMGrads
        dx, dW, dU, db, db_rec, dp, dh0, dc0, each shaped like its argument; None for an absent one.

    Raises
    ------
    TypeError
        If the cache is missing or of another cell, or a gradient is not an array of the call's dtype.
    ValueError
        If a gradient has the wrong shape, or an argument of the forward has changed since.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> rng = np.random.default_rng(0)
    >>> x, W, U = rng.standard_normal((5, 2, 3)), rng.standard_normal((16, 3)), rng.standard_normal((16, 4))
    >>> result = fastrnn.lstm_forward(x, W, U, training=True)
    >>> grads = fastrnn.lstm_backward(np.ones_like(result.y), result.cache)
    >>> grads.dW.shape, grads.db
    ((16, 3), None)
    """
    g = run_backward("lstm", dy, cache, {"dh_n": dh_n, "dc_n": dc_n}, {"dc": dc})
    assert g.dU is not None  # these cells have a product
    return LSTMGrads(g.dx, g.dW, g.dU, g.db, g.db_rec, g.dp, *g.dinit)
