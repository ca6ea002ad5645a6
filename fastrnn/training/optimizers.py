"""Optimizers, with the arithmetic and the defaults of PyTorch.

In the equations p is a parameter, g its gradient, a the learning rate, t the step counted from 1; everything is
elementwise and dimensionless. The state is stored per parameter name, in the parameter's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import boolean
from fastrnn.training.arguments import by_name, number
from fastrnn.training.optimizer import Clipping, Optimizer, Schedule


class SGD(Optimizer):
    """Stochastic gradient descent: ``p -= a g``, or with momentum m ``b = m b + g; p -= a b`` [1]_.

    Parameters
    ----------
    learning_rate : float or schedule
    momentum : float
        m, at least 0 and below 1.
    nesterov : bool
        Use ``p -= a (g + m b)`` [2]_; needs momentum above 0.
    weight_decay, clip_norm, clip_value
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.

    References
    ----------
    .. [1] B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    .. [2] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in deep
       learning", ICML 2013, eq. 3 and 4, in PyTorch's form.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import SGD
    >>> p = {"w": np.array([1.0])}
    >>> SGD(0.5).step(p, {"w": np.array([0.5])})
    >>> p["w"]
    array([0.75])
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        weight_decay: float = 0.0,
        **clipping: Unpack[Clipping],
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **clipping)
        boolean("nesterov", nesterov)
        self.momentum, self.nesterov = number("momentum", momentum, below=1), bool(nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov: expected momentum above 0, got 0")
        self.slots = ("momentum_buffer",) if momentum else ()

    def update(self, rate: float, p: Array, g: Array, *state: Array) -> None:
        g = decayed(g, p, self.weight_decay)
        if self.momentum:
            (b,) = state
            b *= self.momentum
            b += g
            g = g + self.momentum * b if self.nesterov else b
        p -= rate * g


class Adam(Optimizer):
    """Adam [1]_: steps of about the learning rate, whatever the scale of the gradients.

    ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``, ``p -= a m' / (sqrt(v') + e)`` with
    ``m' = m / (1 - b1^t)`` and ``v' = v / (1 - b2^t)``: algorithm 1.

    Parameters
    ----------
    learning_rate : float or schedule
    beta_1, beta_2 : float
        b1 and b2, at least 0 and below 1.
    epsilon : float
        e.
    weight_decay, clip_norm, clip_value
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.

    References
    ----------
    .. [1] D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import Adam
    >>> p = {"w": np.array([1.0, 1.0])}
    >>> Adam(0.25).step(p, {"w": np.array([1e-3, -1e3])})
    >>> p["w"].round(4)
    array([0.75, 1.25])
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        weight_decay: float = 0.0,
        **clipping: Unpack[Clipping],
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **clipping)
        self.beta_1 = number("beta_1", beta_1, below=1)
        self.beta_2 = number("beta_2", beta_2, below=1)
        self.epsilon = number("epsilon", epsilon)

    def update(self, rate: float, p: Array, g: Array, *state: Array) -> None:
        self._adam(rate, p, decayed(g, p, self.weight_decay), *state)

    def _adam(self, rate: float, p: Array, g: Array, m: Array, v: Array) -> None:
        m += (1 - self.beta_1) * (g - m)
        v *= self.beta_2
        v += (1 - self.beta_2) * g * g
        step = rate / (1 - self.beta_1**self._updated)
        root = np.sqrt(v)
        root /= math.sqrt(1 - self.beta_2**self._updated)
        root += self.epsilon
        p -= step * m / root


class AdamW(Adam):
    """Adam with decoupled weight decay [1]_: ``p -= a d p`` for decay d, then the step of `Adam` without it.

    Parameters
    ----------
    learning_rate, beta_1, beta_2, epsilon
        See `Adam`.
    weight_decay : float
        d; the learning rate scales it.
    clip_norm, clip_value
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import AdamW
    >>> p = {"w": np.array([1.0])}
    >>> AdamW(0.5, weight_decay=0.5).step(p, {"w": np.array([0.0])})
    >>> p["w"]
    array([0.75])
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        weight_decay: float = 0.01,
        **clipping: Unpack[Clipping],
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, weight_decay=weight_decay, **clipping)

    def update(self, rate: float, p: Array, g: Array, *state: Array) -> None:
        p *= 1 - rate * self.weight_decay
        self._adam(rate, p, g, *state)


class RMSprop(Optimizer):
    """RMSprop [1]_: ``v = r v + (1 - r) g^2``, ``p -= a g / (sqrt(v) + e)``.

    Parameters
    ----------
    learning_rate : float or schedule
    rho : float
        r, at least 0 and below 1.
    epsilon : float
        e.
    momentum : float
        m, at least 0 and below 1: ``b = m b + g / (sqrt(v) + e); p -= a b``.
    weight_decay, clip_norm, clip_value
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.

    References
    ----------
    .. [1] T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", COURSERA: Neural Networks for Machine Learning, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import RMSprop
    >>> p = {"w": np.array([1.0])}
    >>> RMSprop(0.25, rho=0.75).step(p, {"w": np.array([4.0])})
    >>> p["w"].round(4)
    array([0.5])
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        rho: float = 0.99,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        **clipping: Unpack[Clipping],
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **clipping)
        self.rho = number("rho", rho, below=1)
        self.epsilon = number("epsilon", epsilon)
        self.momentum = number("momentum", momentum, below=1)
        self.slots = ("square_avg", "momentum_buffer") if momentum else ("square_avg",)

    def update(self, rate: float, p: Array, g: Array, *state: Array) -> None:
        g = decayed(g, p, self.weight_decay)
        v, *momentum = state
        v *= self.rho
        v += (1 - self.rho) * g * g
        scaled = g / (np.sqrt(v) + self.epsilon)
        for b in momentum:
            b *= self.momentum
            b += scaled
            scaled = b
        p -= rate * scaled


def decayed(g: Array, p: Array, weight_decay: float) -> Array:
    """Return the gradient of the loss plus weight_decay / 2 * p^2."""
    return g + weight_decay * p if weight_decay else g


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}


def optimizer(which: str | Optimizer) -> Optimizer:
    """Return a new optimizer named "sgd", "adam", "adamw" or "rmsprop", with defaults, or a given `Optimizer` as is.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> from fastrnn.training import optimizers
    >>> optimizers.optimizer("sgd").learning_rate
    0.01
    """
    return by_name("optimizer", which, Optimizer, OPTIMIZERS)
