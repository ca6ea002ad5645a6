"""Functions for equations, on traced values, NumPy arrays of any dtype, PyTorch tensors and JAX arrays.

The NumPy versions, `ARRAYS`, are the textbook formulas. They work for any dtype. For complex numbers comparisons use
the real part, so complex-step differentiation works. Numba compiles these same functions.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from fastrnn.cells.graph import COMPARISONS, UNARY, Node
from fastrnn.types import Array

# 1 in the narrowest type: the literal is an int64, with which Numba would widen float32 arrays.
one = np.int8(1)


def _sigmoid(a: Array) -> Array:
    """Use only exp(-|a|), which cannot overflow and keeps full precision for small values."""
    e = np.exp(np.where(a.real < 0, a, -a))
    return np.where(a.real < 0, e, np.ones_like(e)) / (one + e)


def _relu(a: Array) -> Array:
    return np.where(a.real < 0, np.zeros_like(a), a)  # NaN stays NaN


def _softplus(a: Array) -> Any:
    result = np.log1p(np.exp(np.where(a.real < 0, a, -a)))
    result += np.where(a.real < 0, np.zeros_like(a), a)
    return result


def _abs(a: Array) -> Array:
    return np.where(a.real < 0, -a, a)


def _minimum(a: Array, b: Array) -> Array:
    return np.where(a.real <= b.real, a, b)


def _maximum(a: Array, b: Array) -> Array:
    return np.where(a.real >= b.real, a, b)


def _clip(a: Array, low: Any, high: Any) -> Array:
    return np.where(a.real <= low, np.full_like(a, low), np.where(a.real >= high, np.full_like(a, high), a))


def _where(condition: Array, a: Any, b: Any) -> Any:
    return np.where(condition, a, b)


def _mean(a: Array) -> Any:
    return a.mean(axis=-1, keepdims=True) if a.ndim else a


ARRAYS: dict[str, Callable[..., Any]] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": _relu,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "softplus": _softplus,
    "sqrt": np.sqrt,
    "abs": _abs,
    "sin": np.sin,
    "cos": np.cos,
    "minimum": _minimum,
    "maximum": _maximum,
    "clip": _clip,
    "where": _where,
    "mean": _mean,
}

#: Every operation of a graph on arrays, except products.
FORMULAS: dict[str, Callable[..., Any]] = ARRAYS | {
    **{op: getattr(operator, op) for op in (*COMPARISONS, "add", "sub", "mul", "neg")},
    "div": operator.truediv,
    "mix": lambda z, n, h: n + z * (h - n),
}


@cache
def _of_framework(name: str) -> dict[str, Callable[..., Any]]:
    """Return the functions for PyTorch or JAX, with fastrnn's derivatives at kinks."""
    module: Any = importlib.import_module("torch" if name == "torch" else "jax.numpy")
    functions = {f: getattr(module, f) for f in UNARY if hasattr(module, f)}
    functions["sigmoid"] = module.sigmoid if name == "torch" else importlib.import_module("jax.nn").sigmoid
    functions["softplus"] = lambda a: module.logaddexp(a, module.zeros_like(a))  # their softplus is linear above 20
    functions["relu"] = lambda a: module.where(a <= 0, module.zeros_like(a), a)
    functions["minimum"] = lambda a, b: module.where(a <= b, a, b)
    functions["maximum"] = lambda a, b: module.where(a >= b, a, b)
    functions["clip"] = lambda a, low, high: module.where(a <= low, low, module.where(a >= high, high, a))
    functions["where"] = module.where
    functions["mean"] = lambda a: module.mean(a, -1, keepdims=True)
    return functions


def _apply(name: str, *args: Any) -> Any:
    for a in args:
        if isinstance(a, Node):
            return a.graph.make(name, *args)
    for a in args:
        home = type(a).__module__.split(".")[0]
        if home in ("torch", "jax", "jaxlib") and home in sys.modules:
            return _of_framework("torch" if home == "torch" else "jax")[name](*args)
    return ARRAYS[name](*[a if isinstance(a, np.ndarray | np.generic) else np.asarray(a) for a in args])


def sigmoid(a: Any) -> Any:
    """``1 / (1 + exp(-a))``."""
    return _apply("sigmoid", a)


def hard_sigmoid(a: Any) -> Any:
    """``clip(a / 6 + 1/2, 0, 1)``, as in Keras 3 and PyTorch; `hard_sigmoid_keras2` is the other variant."""
    return clip(a * (1 / 6) + 0.5, 0, 1)


def hard_sigmoid_keras2(a: Any) -> Any:
    """``clip(a / 5 + 1/2, 0, 1)``, as in Keras 1 and 2 and ONNX's default."""
    return clip(a * 0.2 + 0.5, 0, 1)


def tanh(a: Any) -> Any:
    """The hyperbolic tangent."""
    return _apply("tanh", a)


def relu(a: Any) -> Any:
    """``maximum(a, 0)``; its derivative at 0 is 0."""
    return _apply("relu", a)


def exp(a: Any) -> Any:
    """The exponential."""
    return _apply("exp", a)


def log(a: Any) -> Any:
    """The natural logarithm."""
    return _apply("log", a)


def log1p(a: Any) -> Any:
    """``log(1 + a)``, accurate near 0."""
    return _apply("log1p", a)


def softplus(a: Any) -> Any:
    """``log(1 + exp(a))``, without overflow."""
    return _apply("softplus", a)


def sqrt(a: Any) -> Any:
    """The square root."""
    return _apply("sqrt", a)


def abs(a: Any) -> Any:
    """The absolute value; its derivative at 0 is 0."""
    return _apply("abs", a)


def sin(a: Any) -> Any:
    """The sine of an angle in radians."""
    return _apply("sin", a)


def cos(a: Any) -> Any:
    """The cosine of an angle in radians."""
    return _apply("cos", a)


def minimum(a: Any, b: Any) -> Any:
    """The elementwise minimum; in a tie `a` gets the gradient."""
    return _apply("minimum", a, b)


def maximum(a: Any, b: Any) -> Any:
    """The elementwise maximum; in a tie `a` gets the gradient."""
    return _apply("maximum", a, b)


def clip(a: Any, low: float, high: float) -> Any:
    """`a` limited to [low, high]; its derivative is 0 at and beyond the limits."""
    if not (isinstance(low, Real) and isinstance(high, Real) and low <= high):
        raise TypeError(
            f"clip: expected two numbers low <= high, got {low!r} and {high!r}; "
            "other limits need minimum(maximum(a, low), high)"
        )
    return _apply("clip", a, float(low), float(high))


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the comparison holds, else `b`; the other branch gets no gradient."""
    return _apply("where", condition, a, b)


def mean(a: Any) -> Any:
    """The mean over the hidden units, broadcast to all of them."""
    return _apply("mean", a)
