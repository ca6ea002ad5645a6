"""Optimizers: how parameters follow their gradients. The arithmetic and the defaults are PyTorch's.

In the equations p is a parameter, g its gradient, a the learning rate, t the step counted from 1; everything is
elementwise and dimensionless. The state is kept by the parameters' names and in their dtypes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import DTYPES, as_array, boolean, describe, expect_dtype, expect_shape
from fastrnn.training.arguments import by_name, count, number
from fastrnn.training.clipping import clip_by_norm, clip_by_value

Schedule = Callable[[int], float]

#: Elements that are updated at a time: with their state and all temporaries they stay in a core's own cache.
BLOCK = 2**14


class Optimizer(ABC):
    """What optimizers have in common; a new one needs `update`, and `slots` if it keeps anything.

    Parameters
    ----------
    learning_rate : float or callable
        Or a schedule, which is called with the number of steps made so far; it may be set anew at any time.
    weight_decay : float
        This times p is added to g.
    clip_value : float, optional
        Clip the gradients' elements to -clip_value..clip_value, in place, before anything else; see `clip_by_value`.
    clip_norm : float, optional
        Then scale the gradients, in place, to a norm of at most this, all together; see `clip_by_norm`.

    Raises
    ------
    TypeError, ValueError
        For a negative rate and the like; the message names the argument.
    """

    #: What is kept for every parameter, under PyTorch's names.
    slots: tuple[str, ...] = ()

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = number("weight_decay", weight_decay)
        self.clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, positive=True)
        self.clip_value = None if clip_value is None else number("clip_value", clip_value, positive=True)
        self._steps = 0
        self._state: dict[str, tuple[Array, ...]] = {}

    @property
    def learning_rate(self) -> float | Schedule:
        """As it was given: a number or a schedule."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | Schedule) -> None:
        self._learning_rate = value if callable(value) else number("learning_rate", value)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        given = self._learning_rate
        return number(f"learning_rate at step {self._steps}", given(self._steps)) if callable(given) else given

    @property
    def steps(self) -> int:
        """How many steps have been made."""
        return self._steps

    @abstractmethod
    def update(self, rate: float, p: Array, g: Array, *state: Array) -> None:
        """Change p and the state, one array for each of `slots`, in place, and leave g as it is."""

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Change all parameters, in place, by one step against their gradients.

        Parameters
        ----------
        parameters : mapping of names to arrays
            float32 or float64, contiguous and writable; the same names, shapes and dtypes in every step.
        grads : mapping of the same names to arrays of the same shapes and dtypes
            Changed in place by clipping, and by nothing else.

        Raises
        ------
        KeyError
            For a name that is missing or unexpected.
        TypeError, ValueError
            For an array of another dtype or shape; nothing has changed then.
        """
        self._check(parameters, grads)
        rate = self.rate
        if self.clip_value is not None:
            clip_by_value(grads, self.clip_value)
        if self.clip_norm is not None:
            clip_by_norm(grads, self.clip_norm)
        if not self._state:
            self._state = {name: tuple([np.zeros_like(p) for _ in self.slots]) for name, p in parameters.items()}
        self._steps += 1
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN propagate
            for name, p in parameters.items():
                for block in blocks(p, grads[name], *self._state[name]):
                    self.update(rate, *block)

    def state_dict(self) -> dict[str, Array]:
        """Copies of all that `step` has changed in this optimizer: "steps", and "slot.name" for each parameter.

        The options, the learning rate among them, are not in it: they are the constructor's.
        """
        arrays = {
            f"{slot}.{name}": a.copy()
            for name, state in self._state.items()
            for slot, a in zip(self.slots, state, strict=True)
        }
        return {"steps": np.array(self._steps, np.int64)} | arrays

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`: the next steps are, bit by bit, those of the optimizer that it is from.

        Raises
        ------
        KeyError
            For a name that is missing or unexpected.
        TypeError, ValueError
            For what is not such an array. After an error the optimizer is as it was.
        """
        if "steps" not in state:
            raise KeyError("state: missing 'steps'")
        steps = as_array("state 'steps'", state["steps"], sequence=True)
        if steps.dtype.kind not in "iu":
            raise TypeError(f"state 'steps': expected an integer, got {describe(steps.dtype)}")
        expect_shape("state 'steps'", steps, "()", ())
        given = {key: floats(f"state {key!r}", value) for key, value in state.items() if key != "steps"}
        names = list(dict.fromkeys([key.partition(".")[2] for key in given]))
        expected = {f"{slot}.{name}" for name in names for slot in self.slots}
        same_names("state", given, expected)
        self._steps = count("state 'steps'", steps[()])
        self._state = {name: tuple([given[f"{slot}.{name}"].copy() for slot in self.slots]) for name in names}

    def _check(self, parameters: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        same_names("grads", grads, parameters)
        if self._state:
            same_names("parameters", parameters, self._state)
        for name, p in parameters.items():
            p = floats(f"parameters {name!r}", p)
            if not (p.flags.c_contiguous and p.flags.writeable):
                raise ValueError(f"parameters {name!r}: expected a contiguous, writable array")
            like_it: dict[str, Any] = {f"grads {name!r}": grads[name]}
            like_it |= zip([f"state {slot!r} of {name!r}" for slot in self.slots], self._state.get(name, ()))
            for what, a in like_it.items():
                expect_dtype(what, as_array(what, a), p.dtype, "the parameter's")
                expect_shape(what, a, "that of the parameter", p.shape)

    def __repr__(self) -> str:
        options = {"learning_rate": self._learning_rate} | vars(self)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in options.items() if k[0] != '_')})"


class SGD(Optimizer):
    """Stochastic gradient descent: ``p -= a g``, or with momentum m ``b = m b + g; p -= a b`` [1]_.

    Parameters
    ----------
    learning_rate : float or schedule
    momentum : float
        m, at least 0 and below 1.
    nesterov : bool
        ``p -= a (g + m b)`` [2]_, which needs momentum.
    weight_decay, clip_norm, clip_value
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        For a negative rate and the like; the message names the argument.

    References
    ----------
    .. [1] B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, eq. 9.
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
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm, clip_value=clip_value)
        boolean("nesterov", nesterov)
        self.momentum, self.nesterov = number("momentum", momentum, below=1), bool(nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov: expected momentum above 0 with it, got 0")
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
    """Adam [1]_: steps of about the learning rate, whatever the gradients' size.

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
        For a negative rate and the like; the message names the argument.

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
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm, clip_value=clip_value)
        self.beta_1 = number("beta_1", beta_1, below=1)
        self.beta_2 = number("beta_2", beta_2, below=1)
        self.epsilon = number("epsilon", epsilon)

    def update(self, rate: float, p: Array, g: Array, *state: Array) -> None:
        self._adam(rate, p, decayed(g, p, self.weight_decay), *state)

    def _adam(self, rate: float, p: Array, g: Array, m: Array, v: Array) -> None:
        m += (1 - self.beta_1) * (g - m)
        v *= self.beta_2
        v += (1 - self.beta_2) * g * g
        step = rate / (1 - self.beta_1**self._steps)
        root = np.sqrt(v)
        root /= math.sqrt(1 - self.beta_2**self._steps)
        root += self.epsilon
        p -= step * m / root


class AdamW(Adam):
    """Adam with decoupled weight decay [1]_: ``p -= a d p`` for decay d, then the step of `Adam` without it.

    Parameters
    ----------
    learning_rate, beta_1, beta_2, epsilon
        See `Adam`.
    weight_decay : float
        d, which the learning rate multiplies.
    clip_norm, clip_value
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        For a negative rate and the like; the message names the argument.

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
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        options: dict[str, Any] = {"weight_decay": weight_decay, "clip_norm": clip_norm, "clip_value": clip_value}
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **options)

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
        For a negative rate and the like; the message names the argument.

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
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, clip_norm=clip_norm, clip_value=clip_value)
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
    """The gradient of the loss with weight_decay / 2 * p^2 added."""
    return g + weight_decay * p if weight_decay else g


def blocks(*arrays: Array) -> Iterator[list[Array]]:
    """Views of the same elements of all arrays, some at a time; the first, and those that are written, contiguous."""
    flat = [a.reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield [a[start : start + BLOCK] for a in flat]


def floats(name: str, value: Any) -> Array:
    """An array of float32 or float64."""
    a = as_array(name, value)
    if a.dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {describe(a.dtype)}")
    return a


def same_names(argument: str, given: Mapping[str, Any], expected: Any) -> None:
    for problem, names in (("missing", set(expected) - set(given)), ("unexpected", set(given) - set(expected))):
        if names:
            raise KeyError(f"{argument}: {problem} {', '.join(map(repr, sorted(names)))}")


OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}


def optimizer(which: str | Optimizer) -> Optimizer:
    """A new optimizer of this name, "sgd", "adam", "adamw" or "rmsprop", with its defaults; an `Optimizer` is itself.

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
