"""Recurrent cells from the literature, as equations; use them in `fastrnn.Recurrent` or on their own.

`x.g` is W_g x[t] + b_g, `U.g @ v` is U_g v + b_rec_g, `s` holds the states before the step, `p` the parameters and `e`
the extra inputs; see `fastrnn.cell`. Each docstring says which variant it is where papers and libraries differ.
Parameters of a `Recurrent` layer are initialised by its initializers, not as in the papers, except the gains and biases
of the layer-normalised cells.

Examples
--------
>>> import numpy as np, fastrnn
>>> layer = fastrnn.Recurrent(fastrnn.catalogue.li_gru, 3, 4)
>>> y, h = layer(np.ones((5, 2, 3), np.float32))
>>> y.shape
(5, 2, 4)
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec

from fastrnn.cells import (
    abs,
    clip,
    cos,
    exp,
    hard_sigmoid,
    hard_sigmoid_keras2,
    maximum,
    mean,
    minimum,
    relu,
    sigmoid,
    sin,
    softplus,
    sqrt,
    tanh,
    where,
)
from fastrnn.checks import BOOLEANS, boolean, titled
from fastrnn.defined import DefinedCell, cell
from fastrnn.run import gru_cell

__all__ = [
    "cifg_lstm_forget",
    "cifg_lstm_input",
    "clipped_lstm",
    "ctrnn",
    "gru_with",
    "ind_rnn",
    "ind_rnn_tanh",
    "janet",
    "layer_norm_gru",
    "layer_norm_lstm",
    "layer_norm_lstm_addons",
    "leaky_esn",
    "li_gru",
    "lru",
    "lstm_with",
    "min_gru",
    "min_gru_log",
    "min_lstm",
    "min_lstm_log",
    "minimal_gated_unit",
    "rnn_with",
    "slstm",
    "slstm_floor",
    "sru",
]

Arguments = ParamSpec("Arguments")


def slstm_sums(x: Any, U: Any, s: Any) -> tuple[Any, Any, Any, Any]:
    """Return the output gate, and c, n and m after the step."""
    a = x.i + U.i @ s.h
    kept = s.m - softplus(-(x.f + U.f @ s.h))
    m = where(s.n == 0, a, maximum(a, kept))
    i, f = exp(a - m), exp(minimum(kept - m, 0))  # at a sequence's start nothing is kept, however large `kept`
    c = f * s.c + i * tanh(x.z + U.z @ s.h)
    return sigmoid(x.o + U.o @ s.h), c, f * s.n + i, m


def normalised(eps: float, *gates: Any) -> list[Any]:
    """Layer-normalise gates jointly, as one row: subtract the mean and divide by the standard deviation."""
    n = len(gates)
    middle = mean(sum(gates[1:], gates[0])) * (1 / n)
    centred = [a - middle for a in gates]
    squares = [a * a for a in centred]
    scale = 1 / sqrt(mean(sum(squares[1:], squares[0])) * (1 / n) + eps)
    return [a * scale for a in centred]


def gains_and_biases(gates: str, **others: float) -> dict[str, float]:
    """Return the parameters, with initial values, of a cell whose W x and U h are normalised."""
    return {f"g{of}{k}": 1.0 for of in "xh" for k in gates} | {f"b{k}": 0.0 for k in gates} | others


def layer_norm_gates(x: Any, U: Any, s: Any, p: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """Return the gates of an LSTM whose W x and U h are normalised."""
    xi, xf, xg, xo = normalised(eps, x.i, x.f, x.g, x.o)
    hi, hf, hg, ho = normalised(eps, U.i @ s.h, U.f @ s.h, U.g @ s.h, U.o @ s.h)
    i = sigmoid(p.gxi * xi + p.ghi * hi + p.bi)
    f = sigmoid(p.gxf * xf + p.ghf * hf + p.bf)
    g = tanh(p.gxg * xg + p.ghg * hg + p.bg)
    return i, f, g, sigmoid(p.gxo * xo + p.gho * ho + p.bo)


def positive(a: Any) -> Any:
    """Map `a` to a positive number, monotonically."""
    return where(a >= 0, a + 0.5, sigmoid(a))


@cell(gates="zn", states="h")
def li_gru(x: Any, U: Any, s: Any) -> Any:
    """The light GRU (Li-GRU): no reset gate, and relu.

    z is the share of the old state, as in the paper and in PyTorch's GRU. The paper's batch normalisation of W x is not
    included: with fixed statistics it folds into W and b.

    References
    ----------
    M. Ravanelli, P. Brakel, M. Omologo, Y. Bengio, "Light gated recurrent units for speech recognition", IEEE
    Transactions on Emerging Topics in Computational Intelligence 2, 2018.
    """
    z = sigmoid(x.z + U.z @ s.h)
    return z * s.h + (1 - z) * relu(x.n + U.n @ s.h)


@cell(gates="fn", states="h")
def minimal_gated_unit(x: Any, U: Any, s: Any) -> Any:
    """A GRU with a single gate that both resets and updates.

    f is the share of the new state, as in the paper; it resets before the product.

    References
    ----------
    G.-B. Zhou, J. Wu, C.-L. Zhang, Z.-H. Zhou, "Minimal gated unit for recurrent neural networks",
    International Journal of Automation and Computing 13, 2016.
    """
    f = sigmoid(x.f + U.f @ s.h)
    return (1 - f) * s.h + f * tanh(x.n + U.n @ (f * s.h))


@cell(gates="igo", states="hc")
def cifg_lstm_input(x: Any, U: Any, s: Any) -> Any:
    """The LSTM with coupled input and forget gates, f = 1 - i: the input gate has the weights.

    As in ONNX (``input_forget=1``). `cifg_lstm_forget` is the same function with the gate's weights negated.

    References
    ----------
    K. Greff, R. K. Srivastava, J. Koutnik, B. R. Steunebrink, J. Schmidhuber, "LSTM: a search space odyssey",
    IEEE Transactions on Neural Networks and Learning Systems 28, 2017.
    """
    i = sigmoid(x.i + U.i @ s.h)
    kept, new = 1 - i, tanh(x.g + U.g @ s.h)
    c = kept * s.c + i * new
    return sigmoid(x.o + U.o @ s.h) * tanh(c), c


@cell(gates="fgo", states="hc")
def cifg_lstm_forget(x: Any, U: Any, s: Any) -> Any:
    """The LSTM with coupled input and forget gates, i = 1 - f: the forget gate has the weights.

    As in TensorFlow Lite and TensorFlow 1 (CoupledInputForgetGateLSTMCell); see `cifg_lstm_input`.
    """
    f = sigmoid(x.f + U.f @ s.h)
    c = f * s.c + (1 - f) * tanh(x.g + U.g @ s.h)
    return sigmoid(x.o + U.o @ s.h) * tanh(c), c


@cell(gates="fn", states="h")
def janet(x: Any, U: Any, s: Any) -> Any:
    """An LSTM with only a forget gate.

    The input's share is 1 - sigmoid(a - 1), with the paper's constant beta = 1, so it and the forget gate do not add up
    to 1.

    References
    ----------
    J. van der Westhuizen, J. Lasenby, "The unreasonable effectiveness of the forget gate", 2018.
    """
    a = x.f + U.f @ s.h
    return sigmoid(a) * s.h + sigmoid(1 - a) * tanh(x.n + U.n @ s.h)


@cell(gates="n", states="h", parameters=("u",))
def ind_rnn(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The independently recurrent network (IndRNN): each unit sees only its own past. With relu, as in the paper.

    References
    ----------
    S. Li, W. Li, C. Cook, C. Zhu, Y. Gao, "Independently recurrent neural network (IndRNN)", CVPR 2018.
    """
    return relu(x.n + p.u * s.h)


@cell(gates="n", states="h", parameters=("u",))
def ind_rnn_tanh(x: Any, U: Any, s: Any, p: Any) -> Any:
    """`ind_rnn` with tanh, as in the library haste."""
    return tanh(x.n + p.u * s.h)


@cell(gates="zn", states="h")
def min_gru(x: Any, U: Any, s: Any) -> Any:
    """A GRU whose gate and candidate do not depend on the state.

    z is the share of the new state, as in the paper and opposite to PyTorch's GRU. The candidate is linear;
    `min_gru_log` is the other variant.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * x.n


@cell(gates="zn", states="h")
def min_gru_log(x: Any, U: Any, s: Any) -> Any:
    """`min_gru` with a positive candidate, as in the paper's log-space form and minGRU-pytorch.

    The candidate is a + 1/2 for a >= 0, else sigmoid(a). The initial state is used unchanged; the log-space form
    applies the same function to it first.
    """
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * positive(x.n)


@cell(gates="fin", states="h")
def min_lstm(x: Any, U: Any, s: Any) -> Any:
    """An LSTM whose gates and candidate do not depend on the state, with gates normalised to f + i = 1.

    The candidate is linear; `min_lstm_log` is the other variant. f / (f + i) is computed as
    sigmoid(softplus(-a_i) - softplus(-a_f)), which avoids 0 / 0.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """
    f = sigmoid(softplus(-x.i) - softplus(-x.f))
    return f * s.h + (1 - f) * x.n


@cell(gates="fin", states="h")
def min_lstm_log(x: Any, U: Any, s: Any) -> Any:
    """`min_lstm` with a positive candidate, as in `min_gru_log`."""
    f = sigmoid(softplus(-x.i) - softplus(-x.f))
    return f * s.h + (1 - f) * positive(x.n)


@cell(gates="ufrx", states="hc", parameters=("f", "r"))
def sru(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The simple recurrent unit (SRU), version 2: both gates see the cell state before the step.

    Version 1 is this cell with parameters f and r (the paper's v) set to 0. Gate x is the input of the highway
    connection: for I = H, the paper's cell has the identity as its W and no bias. c has no activation, the default of
    the library sru.

    References
    ----------
    T. Lei, Y. Zhang, S. I. Wang, H. Dai, Y. Artzi, "Simple recurrent units for highly parallelizable
    recurrence", EMNLP 2018.
    """
    f = sigmoid(x.f + p.f * s.c)
    r = sigmoid(x.r + p.r * s.c)
    c = f * s.c + (1 - f) * x.u
    return r * c + (1 - r) * x.x, c


@cell(gates="n", states="h", parameters=("leak",))
def leaky_esn(x: Any, U: Any, s: Any, p: Any) -> Any:
    """Leaky integrator units of echo state networks: h moves towards tanh(a) at a rate `leak` per unit.

    The leak is outside tanh, as in reservoirpy (`lr`); in `ctrnn` it is inside.

    References
    ----------
    H. Jaeger, M. Lukosevicius, D. Popovici, U. Siewert, "Optimization and applications of echo state networks
    with leaky-integrator neurons", Neural Networks 20, 2007.
    """
    return (1 - p.leak) * s.h + p.leak * tanh(x.n + U.n @ s.h)


@cell(gates="n", states=("rate", "current"), parameters=("alpha",), inputs=("noise",))
def ctrnn(x: Any, U: Any, s: Any, p: Any, e: Any) -> Any:
    """The rate network of neuroscience: currents leak at the rate alpha = dt / tau, and units fire at relu(current).

    The noise is added without scaling: pass sqrt(2 alpha) sigma times standard normal numbers, as in the paper and in
    PsychRNN. Only the current's initial state is used: the rate before the step is its relu.

    References
    ----------
    H. F. Song, G. R. Yang, X.-J. Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive
    tasks", PLOS Computational Biology 12, 2016.
    """
    current = (1 - p.alpha) * s.current + p.alpha * (x.n + U.n @ relu(s.current)) + e.noise
    return relu(current), current


@cell(gates=("re", "im"), states=("re", "im"), parameters=("nu", "theta", "gamma"))
def lru(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The linear recurrent unit (LRU): lambda h + gamma B x with complex lambda and h. The output is Re(h).

    lambda is exp(-exp(nu) + i exp(theta)), with modulus below 1; gamma is the exponential of its parameter, as in the
    paper's listing, which names them nu_log, theta_log and gamma_log. The paper's output, Re(C h) + D x, can be
    computed from both states.

    References
    ----------
    A. Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML 2023, appendix A.
    """
    modulus, angle, gamma = exp(-exp(p.nu)), exp(p.theta), exp(p.gamma)
    real, imaginary = modulus * cos(angle), modulus * sin(angle)
    return (
        real * s.re - imaginary * s.im + gamma * x.re,
        real * s.im + imaginary * s.re + gamma * x.im,
    )


@cell(gates="ifzo", states="hcnm")
def slstm(x: Any, U: Any, s: Any) -> Any:
    """The sLSTM of xLSTM: exponential input gate, normaliser n, and stabiliser m that bounds the exponentials.

    The forget gate is a sigmoid. n has no floor, as in the package xlstm. n = 0 marks the start of a sequence, where m
    is taken from the input gate alone; this is decided per unit, so resets within a batch work (xlstm tests whether the
    whole batch is 0). For the paper's heads, use a layer's `heads`.

    References
    ----------
    M. Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, eq. 8-17.
    """
    o, c, n, m = slstm_sums(x, U, s)
    return o * c / n, c, n, m


@cell(gates="ifzo", states="hcnm")
def slstm_floor(x: Any, U: Any, s: Any) -> Any:
    """`slstm` with n at least 1, as in FlashRNN. The gradient is exact: 0 through n where the floor is active.

    Starting from zero states n is never below 1, so the two cells differ only for a nonzero initial n below 1.

    References
    ----------
    K. Poeppel, M. Beck, S. Hochreiter, "FlashRNN: I/O-aware optimization of traditional RNNs on modern
    hardware", ICLR 2025.
    """
    o, c, n, m = slstm_sums(x, U, s)
    n = maximum(n, 1)
    return o * c / n, c, n, m


@cell(gates="ifgo", states="hc", parameters=gains_and_biases("ifgo", gc=1, bc=0) | {"bf": 1.0})
def layer_norm_lstm(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The layer-normalised LSTM of the paper and haste: the cell state is normalised only in the output.

    W x and U h are normalised over all four gates together, each with a gain for every gate and unit (``gxi``,
    ``ghi``, ...), and one bias is added afterwards (``bi``, ...). Use ``bias=False`` in the layer, because b would be
    normalised with W x. epsilon is 1e-5. As in haste, the forget gate's bias starts at 1. `layer_norm_lstm_addons` is
    the other variant.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016, eq. 20-22.
    """
    i, f, g, o = layer_norm_gates(x, U, s, p, 1e-5)
    c = f * s.c + i * g
    [seen] = normalised(1e-5, c)
    return o * tanh(p.gc * seen + p.bc), c


@cell(gates="ifgo", states="hc", parameters=gains_and_biases("ifgo", gc=1, bc=0) | {"bf": 1.0})
def layer_norm_lstm_addons(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The layer-normalised LSTM of TensorFlow Addons: the normalised cell state is carried to the next step.

    Otherwise like `layer_norm_lstm`, with an epsilon of 1e-3. TensorFlow Addons has three biases per gate, two of the
    normalisations and the gate's own; ``bi``, ... are their sums.
    """
    i, f, g, o = layer_norm_gates(x, U, s, p, 1e-3)
    [seen] = normalised(1e-3, f * s.c + i * g)
    c = p.gc * seen + p.bc
    return o * tanh(c), c


@cell(gates="rzn", states="h", parameters=gains_and_biases("rzn", bhn=0))
def layer_norm_gru(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The layer-normalised GRU of haste: W x and U h are normalised over all three gates together.

    The reset acts after the product and its bias ``bhn``; ``br`` and ``bz`` are each the sum of haste's two biases. As
    for `layer_norm_lstm`, use ``bias=False`` in the layer; epsilon is 1e-5.
    """
    xr, xz, xn = normalised(1e-5, x.r, x.z, x.n)
    hr, hz, hn = normalised(1e-5, U.r @ s.h, U.z @ s.h, U.n @ s.h)
    r = sigmoid(p.gxr * xr + p.ghr * hr + p.br)
    z = sigmoid(p.gxz * xz + p.ghz * hz + p.bz)
    n = tanh(p.gxn * xn + p.bn + r * (p.ghn * hn + p.bhn))
    return (1 - z) * n + z * s.h


def softsign(a: Any) -> Any:
    """``a / (1 + |a|)``."""
    return a / (1 + abs(a))


def elu(a: Any, alpha: float = 1.0) -> Any:
    """``a`` for a >= 0, else ``alpha * (exp(a) - 1)``."""
    return where(a < 0, alpha * (exp(minimum(a, 0)) - 1), a)


def selu(a: Any) -> Any:
    """`elu` with an alpha and a scale that preserve mean 0 and variance 1 from layer to layer.

    References
    ----------
    G. Klambauer, T. Unterthiner, A. Mayr, S. Hochreiter, "Self-normalizing neural networks", NeurIPS 2017.
    """
    return 1.0507009873554805 * elu(a, 1.6732632423543772)


def silu(a: Any) -> Any:
    """``a * sigmoid(a)``, also called swish."""
    return a * sigmoid(a)


def exponential(a: Any) -> Any:
    """``exp(a)``."""
    return exp(a)


def identity(a: Any) -> Any:
    """``a``."""
    return a


Activation = str | Callable[[Any], Any]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    f.__name__: f
    for f in (
        *(tanh, relu, sigmoid, hard_sigmoid, hard_sigmoid_keras2),
        *(identity, softsign, softplus, elu, selu, silu, exponential),
    )
}
ACTIVATIONS |= {"linear": identity, "swish": silu}  # aliases


def function(name: str, given: Activation, bound: float | None = None) -> Callable[[Any], Any]:
    """Return the named or given function, applied to values clipped to +-bound."""
    f = ACTIVATIONS.get(given) if isinstance(given, str) else given
    if not callable(f):
        raise ValueError(f"{name}: expected one of {', '.join(ACTIVATIONS)}, or a function, got {given!r}")
    if bound is None:
        return f
    bound = positive_number("clip", bound)
    return lambda a: f(clip(a, -bound, bound))


def positive_number(name: str, given: Any) -> float:
    """Return an argument that went through `plain`; raise ValueError unless it is positive."""
    if not isinstance(given, float) or not given > 0:
        raise ValueError(f"{name}: expected a positive number, got {given!r}")
    return given


def factory(make: Callable[Arguments, DefinedCell]) -> Callable[Arguments, DefinedCell]:
    """Decorate a function that makes cells so that equal arguments return the same cell.

    The cells are pickled by their arguments, which are also their options, and named after the call.
    """
    signature = inspect.signature(make)

    @lru_cache(None, typed=True)  # True is not 1.0
    def made(**arguments: Any) -> DefinedCell:
        new = make(**arguments)  # type: ignore[call-arg]
        new.maker, new.options = partial(get, **arguments), arguments
        chosen = {k: given for k, given in arguments.items() if given != signature.parameters[k].default}
        written = [f"{k}={getattr(given, '__name__', repr(given))}" for k, given in chosen.items()]
        new.name = f"{make.__name__}({', '.join(written)})"
        if not any(callable(given) for given in chosen.values()):
            new.publish(new.name)
        return new

    @wraps(make)
    def get(*args: Arguments.args, **kwargs: Arguments.kwargs) -> DefinedCell:
        with titled(make.__name__):
            bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return made(**{k: plain(given) for k, given in bound.arguments.items()})

    return get


def plain(given: Any) -> Any:
    """Normalise an argument: numbers to Python's, named activations to their names."""
    if isinstance(given, BOOLEANS):
        return bool(given)
    if isinstance(given, numbers.Real):
        return float(given)
    f = ACTIVATIONS.get(given, given)
    return f.__name__ if f in ACTIVATIONS.values() else given


@factory
def clipped_lstm(cell_clip: float) -> DefinedCell:
    """The LSTM with its cell state clipped to +-cell_clip, as in TensorFlow Lite and TensorFlow 1.

    The clipped state is carried to the next step and used in the output. Its gradient is 0 at and beyond the bounds;
    TensorFlow 1 passes it through.

    Parameters
    ----------
    cell_clip : float
        Positive bound.

    Returns
    -------
    DefinedCell
        Equal arguments return the same object.

    Raises
    ------
    ValueError
        If the bound is not positive.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.Recurrent(fastrnn.catalogue.clipped_lstm(3.0), 3, 4)
    """
    bound = positive_number("cell_clip", cell_clip)

    @cell(gates="ifgo", states="hc")
    def clipped_lstm(x: Any, U: Any, s: Any) -> Any:
        i = sigmoid(x.i + U.i @ s.h)
        f = sigmoid(x.f + U.f @ s.h)
        c = clip(f * s.c + i * tanh(x.g + U.g @ s.h), -bound, bound)
        return sigmoid(x.o + U.o @ s.h) * tanh(c), c

    return clipped_lstm


@factory
def rnn_with(activation: Activation = "tanh", *, clip: float | None = None) -> DefinedCell:
    """The vanilla RNN with another activation; see `lstm_with`.

    Parameters
    ----------
    activation, clip
        As in `lstm_with`.

    Returns
    -------
    DefinedCell
        Equal arguments return the same object.

    Raises
    ------
    ValueError
        If an activation is unknown, or a bound is not positive.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.Recurrent(fastrnn.catalogue.rnn_with("softsign"), 3, 4)
    """
    f = function("activation", activation, clip)

    @cell(gates="h", states="h")
    def rnn(x: Any, U: Any, s: Any) -> Any:
        return f(x.h + U.h @ s.h)

    return rnn


@factory
def gru_with(
    gate: Activation = "sigmoid",
    candidate: Activation = "tanh",
    *,
    reset_after: bool | None = None,
    clip: float | None = None,
) -> DefinedCell:
    """The GRU with other activations; see `lstm_with`.

    Parameters
    ----------
    gate, candidate : str or function
        The activations of gates r and z, and of n.
    reset_after : bool
        As in `fastrnn.GRU`: whether gate r acts after the product (PyTorch, Keras 3) or before it (the paper, ONNX).
    clip : float, optional
        As in `lstm_with`.

    Returns
    -------
    DefinedCell
        Equal arguments return the same object. z is the share of the old state.

    Raises
    ------
    ValueError
        If an activation is unknown, or a bound is not positive.
    TypeError
        If `reset_after` is missing.

    Examples
    --------
    >>> import fastrnn
    >>> keras_1 = fastrnn.catalogue.gru_with(gate="hard_sigmoid_keras2", reset_after=False)
    >>> layer = fastrnn.Recurrent(keras_1, 3, 4)
    """
    gru_cell(reset_after)  # raises TypeError unless True or False
    f, g = function("gate", gate, clip), function("candidate", candidate, clip)

    @cell(gates="rzn", states="h")
    def gru(x: Any, U: Any, s: Any) -> Any:
        r = f(x.r + U.r @ s.h)
        z = f(x.z + U.z @ s.h)
        n = g(x.n + (r * (U.n @ s.h) if reset_after else U.n @ (r * s.h)))
        return (1 - z) * n + z * s.h

    return gru


@factory
def lstm_with(
    gate: Activation = "sigmoid",
    candidate: Activation = "tanh",
    output: Activation = "tanh",
    *,
    clip: float | None = None,
    input_forget: bool = False,
    peephole: bool = False,
) -> DefinedCell:
    """The LSTM with other activations, clipping, coupled gates and peepholes: the options of ONNX's operator.

    Parameters
    ----------
    gate, candidate, output : str or function
        The activations of gates i, f and o, of g, and of the cell state in the output: "tanh", "relu", "sigmoid",
        "hard_sigmoid" (Keras 3's and PyTorch's), "hard_sigmoid_keras2", "identity" (also "linear"), "softsign",
        "softplus", "elu", "selu", "silu" (also "swish"), "exponential", or a function of one argument, which can be
        pickled if it is defined in a module.
    clip : float, optional
        Clip the inputs of the gate and candidate activations to +-clip, after bias and peepholes, as in ONNX. The cell
        state is not clipped; `clipped_lstm` does that.
    input_forget : bool
        Use f = 1 - i instead of a gate f, as in `cifg_lstm_input`.
    peephole : bool
        Add peepholes from the old cell state to i and f, and from the new one to o.

    Returns
    -------
    DefinedCell
        Equal arguments return the same object.

    Raises
    ------
    TypeError, ValueError
        If an activation is unknown, a bound is not positive, or an option is neither True nor False.

    Examples
    --------
    >>> import fastrnn
    >>> keras_1 = fastrnn.catalogue.lstm_with(gate="hard_sigmoid_keras2")
    >>> layer = fastrnn.Recurrent(keras_1, 3, 4)
    """
    boolean("input_forget", input_forget)
    boolean("peephole", peephole)
    f, g, h = function("gate", gate, clip), function("candidate", candidate, clip), function("output", output)

    def lstm(x: Any, U: Any, s: Any, p: Any = None) -> Any:
        def gate(k: str, c: Any) -> Any:
            a = getattr(x, k) + getattr(U, k) @ s.h
            return f(a + getattr(p, k) * c if peephole else a)

        i = gate("i", s.c)
        kept = 1 - i if input_forget else gate("f", s.c)
        new = g(x.g + U.g @ s.h)
        c = kept * s.c + i * new
        return gate("o", c) * h(c), c

    gates = "igo" if input_forget else "ifgo"
    return DefinedCell(lstm, gates, "hc", tuple(gates.replace("g", "")) if peephole else ())
