"""Recurrent cells from the literature, each as its equations: for `fastrnn.Recurrent`, or run by themselves.

`x.g` is W_g x[t] + b_g, `U.g @ v` is U_g v + b_rec_g, `s` holds the states before the step, `p` the parameters and `e`
the extra inputs; see `fastrnn.cell`. Each docstring says which form it is where papers and libraries differ. Parameters
of a `Recurrent` layer start as its initializers say, not as the papers do, but for the gains and biases of the
layer-normalised cells.

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
from fastrnn.checks import BOOLEANS
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
    """The output gate, and c, n and m after the step."""
    a = x.i + U.i @ s.h
    kept = s.m - softplus(-(x.f + U.f @ s.h))
    m = where(s.n == 0, a, maximum(a, kept))
    i, f = exp(a - m), exp(minimum(kept - m, 0))  # at a beginning nothing is kept, however large `kept`
    c = f * s.c + i * tanh(x.z + U.z @ s.h)
    return sigmoid(x.o + U.o @ s.h), c, f * s.n + i, m


def normalised(eps: float, *gates: Any) -> list[Any]:
    """Layer normalisation of gates that are one row: less their mean, over the square root of their variance."""
    n = len(gates)
    middle = mean(sum(gates[1:], gates[0])) * (1 / n)
    centred = [a - middle for a in gates]
    squares = [a * a for a in centred]
    scale = 1 / sqrt(mean(sum(squares[1:], squares[0])) * (1 / n) + eps)
    return [a * scale for a in centred]


def gains_and_biases(gates: str, **others: float) -> dict[str, float]:
    """Parameters of a cell whose W x and U h are normalised, as they start."""
    return {f"g{of}{k}": 1.0 for of in "xh" for k in gates} | {f"b{k}": 0.0 for k in gates} | others


def layer_norm_gates(x: Any, U: Any, s: Any, p: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """The gates of an LSTM whose W x and U h are normalised."""
    xi, xf, xg, xo = normalised(eps, x.i, x.f, x.g, x.o)
    hi, hf, hg, ho = normalised(eps, U.i @ s.h, U.f @ s.h, U.g @ s.h, U.o @ s.h)
    i = sigmoid(p.gxi * xi + p.ghi * hi + p.bi)
    f = sigmoid(p.gxf * xf + p.ghf * hf + p.bf)
    g = tanh(p.gxg * xg + p.ghg * hg + p.bg)
    return i, f, g, sigmoid(p.gxo * xo + p.gho * ho + p.bo)


def positive(a: Any) -> Any:
    """A function above 0 that grows as `a` does."""
    return where(a >= 0, a + 0.5, sigmoid(a))


@cell(gates="zn", states="h")
def li_gru(x: Any, U: Any, s: Any) -> Any:
    """The light GRU: no reset gate, and a rectifier.

    z is the share of the old state, as in the paper and in PyTorch's GRU. The paper's batch normalisation of W x is not
    part of it: where its statistics are fixed, it folds into W and b.

    References
    ----------
    M. Ravanelli, P. Brakel, M. Omologo, Y. Bengio, "Light gated recurrent units for speech recognition", IEEE
    Transactions on Emerging Topics in Computational Intelligence 2, 2018.
    """
    z = sigmoid(x.z + U.z @ s.h)
    return z * s.h + (1 - z) * relu(x.n + U.n @ s.h)


@cell(gates="fn", states="h")
def minimal_gated_unit(x: Any, U: Any, s: Any) -> Any:
    """The GRU whose one gate both resets and updates.

    f is the share of the new state, as in the paper; it acts before the product.

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

    As ONNX has it (``input_forget=1``). `cifg_lstm_forget` is the same function where the gate's weights have the other
    sign.

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

    As TensorFlow Lite and TensorFlow 1 (CoupledInputForgetGateLSTMCell) have it; see `cifg_lstm_input`.
    """
    f = sigmoid(x.f + U.f @ s.h)
    c = f * s.c + (1 - f) * tanh(x.g + U.g @ s.h)
    return sigmoid(x.o + U.o @ s.h) * tanh(c), c


@cell(gates="fn", states="h")
def janet(x: Any, U: Any, s: Any) -> Any:
    """The LSTM with the forget gate alone.

    The input's share is 1 - sigmoid(a - 1), with the paper's constant beta = 1: what is forgotten and what comes in do
    not add up to 1.

    References
    ----------
    J. van der Westhuizen, J. Lasenby, "The unreasonable effectiveness of the forget gate", 2018.
    """
    a = x.f + U.f @ s.h
    return sigmoid(a) * s.h + sigmoid(1 - a) * tanh(x.n + U.n @ s.h)


@cell(gates="n", states="h", parameters=("u",))
def ind_rnn(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The independently recurrent network: each unit sees its own past alone. With a rectifier, as in the paper.

    References
    ----------
    S. Li, W. Li, C. Cook, C. Zhu, Y. Gao, "Independently recurrent neural network (IndRNN)", CVPR 2018.
    """
    return relu(x.n + p.u * s.h)


@cell(gates="n", states="h", parameters=("u",))
def ind_rnn_tanh(x: Any, U: Any, s: Any, p: Any) -> Any:
    """`ind_rnn` with tanh, as the library haste has it."""
    return tanh(x.n + p.u * s.h)


@cell(gates="zn", states="h")
def min_gru(x: Any, U: Any, s: Any) -> Any:
    """The GRU whose gate and candidate do not see the state.

    z is the share of the new state, as in the paper: the other way round than in PyTorch's GRU. The candidate is
    linear; `min_gru_log` has the other form.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * x.n


@cell(gates="zn", states="h")
def min_gru_log(x: Any, U: Any, s: Any) -> Any:
    """`min_gru` whose candidate is positive, as the paper's log-space form and minGRU-pytorch have it.

    The candidate is a + 1/2 for a >= 0, else sigmoid(a). The initial state is taken as it is; the log-space form puts
    it through the same function first.
    """
    z = sigmoid(x.z)
    return (1 - z) * s.h + z * positive(x.n)


@cell(gates="fin", states="h")
def min_lstm(x: Any, U: Any, s: Any) -> Any:
    """The LSTM whose gates and candidate do not see the state, gates normalised to f + i = 1.

    The candidate is linear; `min_lstm_log` has the other form. f / (f + i) is computed as
    sigmoid(softplus(-a_i) - softplus(-a_f)), which no gate that is 0 makes 0 / 0.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", 2024.
    """
    f = sigmoid(softplus(-x.i) - softplus(-x.f))
    return f * s.h + (1 - f) * x.n


@cell(gates="fin", states="h")
def min_lstm_log(x: Any, U: Any, s: Any) -> Any:
    """`min_lstm` whose candidate is positive, as that of `min_gru_log`."""
    f = sigmoid(softplus(-x.i) - softplus(-x.f))
    return f * s.h + (1 - f) * positive(x.n)


@cell(gates="ufrx", states="hc", parameters=("f", "r"))
def sru(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The simple recurrent unit, version 2: both gates see the cell state before the step.

    Version 1 has no parameters f and r (the paper's v): it is this with zeros. Gate x is the highway's input: where
    I = H, the paper's cell has the identity for its W and no bias. As in the library sru by default, c has no
    activation.

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
    """Leaky integrator units of echo state networks: h moves to tanh(a) at the rate `leak`, each unit at its own.

    The leak is outside of tanh, as in reservoirpy (`lr`). `ctrnn` is the form in which it is inside.

    References
    ----------
    H. Jaeger, M. Lukosevicius, D. Popovici, U. Siewert, "Optimization and applications of echo state networks
    with leaky-integrator neurons", Neural Networks 20, 2007.
    """
    return (1 - p.leak) * s.h + p.leak * tanh(x.n + U.n @ s.h)


@cell(gates="n", states=("rate", "current"), parameters=("alpha",), inputs=("noise",))
def ctrnn(x: Any, U: Any, s: Any, p: Any, e: Any) -> Any:
    """The rate network of neuroscience: currents leak at the rate alpha = dt / tau, and units fire at relu(current).

    The noise is added as it is, as in the paper and in PsychRNN: sqrt(2 alpha) sigma times standard normal numbers. Of
    the initial states the current alone counts: the rate before the step is relu of it.

    References
    ----------
    H. F. Song, G. R. Yang, X.-J. Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive
    tasks", PLOS Computational Biology 12, 2016.
    """
    current = (1 - p.alpha) * s.current + p.alpha * (x.n + U.n @ relu(s.current)) + e.noise
    return relu(current), current


@cell(gates=("re", "im"), states=("re", "im"), parameters=("nu", "theta", "gamma"))
def lru(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The linear recurrent unit: lambda h + gamma B x with complex lambda and h. The output is the real part of h.

    lambda is exp(-exp(nu) + i exp(theta)) and its modulus below 1; gamma is the exponential of its parameter, as in the
    paper's listing, where nu_log, theta_log and gamma_log are the names. The output of the paper, Re(C h) + D x,
    follows from both states.

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
    """The sLSTM of xLSTM: exponential input gate, normaliser n, and m that keeps the exponentials within bounds.

    The forget gate is a sigmoid. n has no floor, as in the package xlstm. A sequence begins where n is 0: there m is
    the input gate's alone, for each unit, so resets within a batch count (xlstm asks whether the whole batch is 0).
    The paper's heads are a layer's `heads`.

    References
    ----------
    M. Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, eq. 8-17.
    """
    o, c, n, m = slstm_sums(x, U, s)
    return o * c / n, c, n, m


@cell(gates="ifzo", states="hcnm")
def slstm_floor(x: Any, U: Any, s: Any) -> Any:
    """`slstm` with n at least 1, as FlashRNN has it. The gradient is the exact one, 0 through n where 1 is larger.

    Of states that begin with zeros n is never below 1, and both cells are the same: they differ where an initial n is
    below 1.

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
    """The layer-normalised LSTM, as the paper and haste have it: the cell state is normalised in the output alone.

    W x and U h are normalised over all four gates together, each with a gain for every gate and unit (``gxi``,
    ``ghi``, ...), and one bias is added afterwards (``bi``, ...): give the layer ``bias=False``, for b would be
    normalised with W x. epsilon is 1e-5. As in haste the forget gate's bias starts at 1. `layer_norm_lstm_addons` is
    the other form.

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
    """The layer-normalised LSTM of TensorFlow Addons: the normalised cell state is also what is carried on.

    Otherwise `layer_norm_lstm`, with an epsilon of 1e-3. TensorFlow Addons has three biases for a gate, those of both
    normalisations and its own: ``bi``, ... are their sums.
    """
    i, f, g, o = layer_norm_gates(x, U, s, p, 1e-3)
    [seen] = normalised(1e-3, f * s.c + i * g)
    c = p.gc * seen + p.bc
    return o * tanh(c), c


@cell(gates="rzn", states="h", parameters=gains_and_biases("rzn", bhn=0))
def layer_norm_gru(x: Any, U: Any, s: Any, p: Any) -> Any:
    """The layer-normalised GRU of haste: W x and U h are normalised over all three gates together.

    The reset acts after the product and its bias ``bhn``; haste's two biases of r and of z are one, ``br`` and ``bz``.
    As for `layer_norm_lstm`, give the layer ``bias=False``; epsilon is 1e-5.
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
    """``a``, below 0 ``alpha * (exp(a) - 1)``."""
    return where(a < 0, alpha * (exp(minimum(a, 0)) - 1), a)


def selu(a: Any) -> Any:
    """`elu` with an alpha and a scale that keep activations at mean 0 and variance 1 from layer to layer.

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
ACTIVATIONS |= {"linear": identity, "swish": silu}  # two names of one function, as everywhere


def function(name: str, given: Activation, bound: float | None = None) -> Callable[[Any], Any]:
    """The function of this name, or what is given itself, of values that are clipped to +-bound first."""
    f = ACTIVATIONS.get(given) if isinstance(given, str) else given
    if not callable(f):
        raise ValueError(f"{name}: expected one of {', '.join(ACTIVATIONS)}, or a function, got {given!r}")
    if bound is None:
        return f
    bound = positive_number("clip", bound)
    return lambda a: f(clip(a, -bound, bound))


def positive_number(name: str, given: Any) -> float:
    """Of an argument that is `plain`."""
    if not isinstance(given, float) or not given > 0:
        raise ValueError(f"{name}: expected a positive number, got {given!r}")
    return given


def factory(make: Callable[Arguments, DefinedCell]) -> Callable[Arguments, DefinedCell]:
    """Of a function that makes cells, one that makes each once.

    Its cells pickle as their arguments, have them as options, and are called by the call that makes them.
    """
    signature = inspect.signature(make)

    @lru_cache(None, typed=True)  # True is no number
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
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return made(**{k: plain(given) for k, given in bound.arguments.items()})

    return get


def plain(given: Any) -> Any:
    """The one form of an argument that has several: a number of Python's own, the name of an activation with a name."""
    if isinstance(given, BOOLEANS):
        return bool(given)
    if isinstance(given, numbers.Real):
        return float(given)
    f = ACTIVATIONS.get(given, given)
    return f.__name__ if f in ACTIVATIONS.values() else given


@factory
def clipped_lstm(cell_clip: float) -> DefinedCell:
    """The LSTM whose cell state stays within +-cell_clip, as TensorFlow Lite and TensorFlow 1 have it.

    The state that is clipped is carried on and makes the output. Its gradient is 0 at and beyond the bounds;
    TensorFlow 1 lets it through.

    Parameters
    ----------
    cell_clip : float
        The bound, above 0.

    Returns
    -------
    DefinedCell
        Equal arguments give the same object.

    Raises
    ------
    ValueError
        For a bound that is not positive.

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
        Equal arguments give the same object.

    Raises
    ------
    ValueError
        For an activation that is not known, and for a bound that is not positive.

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
        As of `fastrnn.GRU`: whether gate r acts after the product (PyTorch, Keras 3) or before it (the paper, ONNX).
    clip : float, optional
        As in `lstm_with`.

    Returns
    -------
    DefinedCell
        Equal arguments give the same object. z is the share of the old state.

    Raises
    ------
    ValueError
        For an activation that is not known, and for a bound that is not positive.
    TypeError
        Without `reset_after`.

    Examples
    --------
    >>> import fastrnn
    >>> keras_1 = fastrnn.catalogue.gru_with(gate="hard_sigmoid_keras2", reset_after=False)
    >>> layer = fastrnn.Recurrent(keras_1, 3, 4)
    """
    gru_cell(reset_after)  # or an error that says what True and False are
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
    """The LSTM with other activations, clipped, and with coupled gates: what ONNX's operator has.

    Parameters
    ----------
    gate, candidate, output : str or function
        The activations of gates i, f and o, of g, and of the cell state in the output: "tanh", "relu", "sigmoid",
        "hard_sigmoid" (Keras 3's and PyTorch's), "hard_sigmoid_keras2", "identity" (also "linear"), "softsign",
        "softplus", "elu", "selu", "silu" (also "swish"), "exponential", or a function of one value, which pickles if it
        is one of a module.
    clip : float, optional
        What gates and candidate are functions of is clipped to +-clip, after bias and peepholes, and the cell state is
        not, as ONNX has it; `clipped_lstm` clips the cell state.
    input_forget : bool
        f = 1 - i, and no gate f, as in `cifg_lstm_input`.
    peephole : bool
        Gates see the cell state, o the new one.

    Returns
    -------
    DefinedCell
        Equal arguments give the same object.

    Raises
    ------
    ValueError
        For an activation that is not known, and for a bound that is not positive.

    Examples
    --------
    >>> import fastrnn
    >>> keras_1 = fastrnn.catalogue.lstm_with(gate="hard_sigmoid_keras2")
    >>> layer = fastrnn.Recurrent(keras_1, 3, 4)
    """
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
