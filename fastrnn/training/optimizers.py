"""Optimizers, with the arithmetic and the defaults of PyTorch: the base class, and SGD to RMSprop.

In the equations p is a parameter, g its gradient, a the learning rate, t the step counted from 1; everything is
elementwise and dimensionless. The state is stored per parameter name, in the parameter's dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypedDict, Unpack

import numpy as np

from fastrnn.checks import (
    as_array,
    boolean,
    count,
    describe,
    expect_dtype,
    expect_mapping,
    expect_names,
    expect_shape,
    finite,
    floating_array,
    fraction,
)
from fastrnn.layers.gradients import RowGradient
from fastrnn.training.clipping import clip_by_norm, clip_by_value, gradient
from fastrnn.types import Array

Schedule = Callable[[int], float]

#: Elements updated at a time: with their state and all temporaries they fit in a core's private cache.
BLOCK = 2**14


class Clipping(TypedDict, total=False):
    """Keyword arguments of all optimizers; see `Optimizer`."""

    clip_norm: float | None
    clip_value: float | None


class Optimizer(ABC):
    """Base class of optimizers; a subclass defines `update`, and `slots` if it has state.

    An optimizer holds state from one model's gradients, so each model trained with `fit` needs its own. To continue
    with another model, create a new optimizer and load the `state_dict` into it.

    Parameters
    ----------
    learning_rate : float or callable
        A number, or a schedule, which is called with the number of steps made so far; it can be changed at any time.
    weight_decay : float
        ``weight_decay * p`` is added to g.
    clip_value : float, optional
        Clip the gradients' elements to -clip_value..clip_value, in place, before anything else; see `clip_by_value`.
    clip_norm : float, optional
        Then scale all gradients, in place, to a joint norm of at most this; see `clip_by_norm`.

    Raises
    ------
    TypeError, ValueError
        For an invalid argument, such as a negative rate; the message names it.
    """

    #: Names of the state arrays of every parameter, as in PyTorch.
    slots: tuple[str, ...] = ()

    #: Identifier of the model that `fit` trained with it; copies of the model and of this optimizer share it.
    _model: bytes | None = None

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = finite("weight_decay", weight_decay, 0)
        self.clip_norm = None if clip_norm is None else finite("clip_norm", clip_norm, above=0)
        self.clip_value = None if clip_value is None else finite("clip_value", clip_value, above=0)
        self._steps = 0
        self._state: dict[str, tuple[Array, ...]] = {}
        self._updates: dict[str, int] = {}  # per parameter: less than the steps if it was frozen for a while
        self._updated = 0  # that of the parameter which is being updated

    @property
    def learning_rate(self) -> float | Schedule:
        """A number or a schedule, as given."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | Schedule) -> None:
        self._learning_rate = value if callable(value) else finite("learning_rate", value, 0)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        given = self._learning_rate
        return finite(f"learning_rate at step {self._steps}", given(self._steps), 0) if callable(given) else given

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return self._steps

    @abstractmethod
    def update(self, rate: float, p: Array, g: Array, *state: Array) -> None:
        """Update p and the state in place; g must not change.

        Parameters
        ----------
        rate : float
            The learning rate of this step.
        p, g : array
            A parameter, or a part of one, and its gradient, of the same shape and dtype.
        *state : array
            One array like p for each of `slots`.
        """

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array | RowGradient]) -> None:
        """Update all parameters in place by one step of descent.

        Parameters
        ----------
        parameters : mapping of names to arrays
            float32 or float64, contiguous and writable; shapes and dtypes must be the same in every step. A parameter
            that is left out is unchanged, and so is its state, like a frozen one in PyTorch.
        grads : mapping of the same names to arrays of the same shapes and dtypes
            Only clipping changes them in place. A `fastrnn.layers.RowGradient` updates only its own rows and their
            state: no moment, momentum or decay moves the others.

        Raises
        ------
        KeyError
            For a name that is missing or unexpected.
        TypeError, ValueError
            For an array of another dtype or shape. On an error nothing is changed.
        """
        ps, gs = self._checked(parameters, grads)
        rate = self.rate
        if self.clip_value is not None:
            clip_by_value(gs, self.clip_value)
        if self.clip_norm is not None:
            clip_by_norm(gs, self.clip_norm)
        self._steps += 1
        with np.errstate(all="ignore"):  # infinity and NaN propagate
            for name, p in ps.items():
                if name not in self._state:
                    self._state[name] = tuple([np.zeros_like(p) for _ in self.slots])
                self._updates[name] = self._updated = self._updates.get(name, 0) + 1
                g, state = gs[name], self._state[name]
                if isinstance(g, RowGradient):
                    p_rows, *state_rows = [a[g.rows] for a in (p, *state)]
                    self._update(rate, p_rows, g.values, state_rows)
                    for a, changed in zip((p, *state), (p_rows, *state_rows), strict=True):
                        a[g.rows] = changed
                else:
                    self._update(rate, p, g, state)

    def _update(self, rate: float, p: Array, g: Array, state: Iterable[Array]) -> None:
        for block in blocks(p, g, *state):
            self.update(rate, *block)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the state that `step` changes: "steps", and "slot.name" for each parameter.

        A parameter that was left out of some steps also has "steps.name", its own number of steps. Options, including
        the learning rate, are not part of the state: pass them to the constructor.
        """
        arrays = {
            f"{slot}.{name}": a.copy()
            for name, state in self._state.items()
            for slot, a in zip(self.slots, state, strict=True)
        }
        own = {f"steps.{name}": n for name, n in self._updates.items() if self.slots and n < self._steps}
        return {name: np.array(n, np.int64) for name, n in ({"steps": self._steps} | own).items()} | arrays

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`: the next steps are bit-identical to those of the optimizer it came from.

        Parameters
        ----------
        state : mapping of names to arrays

        Raises
        ------
        KeyError
            For a name that is missing or unexpected.
        TypeError, ValueError
            For a wrong type, dtype or shape. On an error the optimizer is unchanged.
        """
        expect_mapping("state", state)
        keys = [str(key).partition(".") for key in state]
        names = list(dict.fromkeys([name for _, dot, name in keys if dot]))
        own = {name: f"steps.{name}" for name in names if f"steps.{name}" in state and self.slots}
        slots = [f"{slot}.{name}" for name in names for slot in self.slots]
        expect_names("state", state, ["steps", *own.values(), *slots])
        steps = steps_made("steps", state)
        updates = {name: steps_made(own[name], state) if name in own else steps for name in names}
        given = {key: floating_array(f"state {key!r}", state[key]) for key in slots}
        if self.slots and steps > 0 and not names:
            raise KeyError(f"state: missing {', '.join(map(repr, self.slots))} of the parameters")
        self._model = None
        self._steps, self._updates = steps, updates
        self._state = {name: tuple([given[f"{slot}.{name}"].copy() for slot in self.slots]) for name in names}

    def expect_of(self, mark: bytes | None) -> None:
        """Raise ValueError if it has trained another model than the one with this mark."""
        if self._model not in (None, mark):
            raise ValueError(
                "optimizer: it trained another model and holds its moments and steps; give each model its own"
            )

    def belong(self, mark: bytes, names: Iterable[str]) -> None:
        """Bind the optimizer to the model with this mark, whose parameters have these names."""
        self.expect_of(mark)
        if other := self._state.keys() - set(names):
            kept = ", ".join(sorted(map(repr, other)))
            raise ValueError(f"optimizer: its state has {kept}, which this model lacks; give each model its own")
        self._model = mark

    def _checked(
        self, parameters: Mapping[str, Any], grads: Mapping[str, Any]
    ) -> tuple[dict[str, Array], dict[str, Array | RowGradient]]:
        expect_mapping("parameters", parameters)
        expect_mapping("grads", grads)
        expect_names("grads", grads, parameters)
        ps = {name: floating_array(f"parameters {name!r}", p) for name, p in parameters.items()}
        gs = {name: gradient(name, grads[name]) for name in ps}
        for name, p in ps.items():
            if not (p.flags.c_contiguous and p.flags.writeable):
                raise ValueError(f"parameters {name!r}: expected a contiguous, writable array")
            expect_alike(f"grads {name!r}", gs[name], p)
            for a in self._state.get(name, ()):
                expect_alike(f"parameters {name!r}", p, a, "in the steps before")
        return ps, gs

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
        self.momentum, self.nesterov = fraction("momentum", momentum), bool(nesterov)
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
        self.beta_1 = fraction("beta_1", beta_1)
        self.beta_2 = fraction("beta_2", beta_2)
        self.epsilon = finite("epsilon", epsilon, 0)

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
        self.rho = fraction("rho", rho)
        self.epsilon = finite("epsilon", epsilon, 0)
        self.momentum = fraction("momentum", momentum)
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


def steps_made(key: str, state: Mapping[str, Any]) -> int:
    """Return the number of steps stored under this key."""
    name = f"state {key!r}"
    steps = as_array(name, state[key], sequence=True)
    if steps.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an integer, got {describe(steps.dtype)}")
    return count(name, expect_shape(name, steps, "()", ())[()])


def blocks(*arrays: Array) -> Iterator[list[Array]]:
    """Yield views of the same BLOCK elements of all arrays; the first, and those written to, must be contiguous."""
    flat = [a.reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield [a[start : start + BLOCK] for a in flat]


def expect_alike(name: str, a: Any, other: Array, whose: str = "the parameter's") -> None:
    if (a.dtype, a.shape) != (other.dtype, other.shape):
        expect_dtype(name, a, other.dtype, whose)
        expect_shape(name, a, whose, other.shape)


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}
