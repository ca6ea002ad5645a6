"""Initial weights.

An initializer is called as ``f(shape, rng, dtype)`` and returns a new array. The shape is that of the weight,
(out, in), so fan in is shape[1] and fan out shape[0]; for a vector both are its length.
All numbers are dimensionless.

References
----------
X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", ICCV 2015.

A. M. Saxe, J. L. McClelland, S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear
neural networks", ICLR 2014.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastrnn.checks import finite
from fastrnn.types import Array

__all__ = [
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Initializer",
    "Ones",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "Zeros",
]

Shape = tuple[int, ...]


class Initializer(Protocol):
    """A callable that returns initial weights."""

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array: ...


@dataclass(frozen=True)
class Constant:
    """Set every element to `value`.

    Parameters
    ----------
    value : float

    Examples
    --------
    >>> from fastrnn.initializers import Constant
    >>> Constant(0.5)((2,))
    array([0.5, 0.5], dtype=float32)
    """

    value: float

    def __post_init__(self) -> None:
        finite("value", self.value)

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        return np.full(shape, self.value, dtype)


@dataclass(frozen=True)
class Zeros:
    """Set every element to 0.

    Examples
    --------
    >>> from fastrnn.initializers import Zeros
    >>> Zeros()((2,))
    array([0., 0.], dtype=float32)
    """

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        return np.zeros(shape, dtype)


@dataclass(frozen=True)
class Ones:
    """Set every element to 1.

    Examples
    --------
    >>> from fastrnn.initializers import Ones
    >>> Ones()((2,))
    array([1., 1.], dtype=float32)
    """

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        return np.ones(shape, dtype)


@dataclass(frozen=True)
class RandomUniform:
    """Uniform in [-limit, limit].

    Parameters
    ----------
    limit : float
        At least 0.

    Examples
    --------
    >>> from fastrnn.initializers import RandomUniform
    >>> bool(abs(RandomUniform(0.1)((4, 3), rng=0)).max() <= 0.1)
    True
    """

    limit: float

    def __post_init__(self) -> None:
        finite("limit", self.limit, 0)

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        values: Array = self.limit * np.random.default_rng(rng).uniform(-1, 1, shape)
        return values.astype(dtype)


@dataclass(frozen=True)
class RandomNormal:
    """Normal with the given mean and standard deviation.

    Parameters
    ----------
    mean, stddev : float
        `stddev` is at least 0.

    Examples
    --------
    >>> from fastrnn.initializers import RandomNormal
    >>> RandomNormal(stddev=10)((4, 3), rng=0).shape
    (4, 3)
    """

    mean: float = 0.0
    stddev: float = 0.05

    def __post_init__(self) -> None:
        finite("mean", self.mean)
        finite("stddev", self.stddev, 0)

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        values: Array = np.random.default_rng(rng).normal(self.mean, self.stddev, shape)
        return values.astype(dtype)


def fans(shape: Shape) -> tuple[int, int]:
    """Return fan in and fan out of a weight (out, in)."""
    if len(shape) not in (1, 2):
        raise ValueError(f"shape: expected (out, in) or (n,), got {shape}")
    return shape[-1], shape[0]


@dataclass(frozen=True)
class GlorotUniform:
    """Uniform within sqrt(6 / (fan in + fan out)): variance 2 / (fan in + fan out); Keras' default.

    Glorot and Bengio 2010, eq. 16.

    Examples
    --------
    >>> from fastrnn.initializers import GlorotUniform
    >>> bool(abs(GlorotUniform()((4, 2), rng=0)).max() <= 1)
    True
    """

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        return RandomUniform(float(np.sqrt(6 / sum(fans(shape)))))(shape, rng, dtype)


@dataclass(frozen=True)
class GlorotNormal:
    """Normal of variance 2 / (fan in + fan out), not truncated; Glorot and Bengio 2010, eq. 12.

    Examples
    --------
    >>> from fastrnn.initializers import GlorotNormal
    >>> GlorotNormal()((4, 2), rng=0).shape
    (4, 2)
    """

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        return RandomNormal(0, float(np.sqrt(2 / sum(fans(shape)))))(shape, rng, dtype)


@dataclass(frozen=True)
class HeUniform:
    """Uniform within sqrt(6 / fan in): variance 2 / fan in, He et al. 2015, eq. 10.

    Examples
    --------
    >>> from fastrnn.initializers import HeUniform
    >>> bool(abs(HeUniform()((2, 6), rng=0)).max() <= 1)
    True
    """

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        return RandomUniform(float(np.sqrt(6 / fans(shape)[0])))(shape, rng, dtype)


@dataclass(frozen=True)
class HeNormal:
    """Normal of variance 2 / fan in, He et al. 2015, eq. 10; not truncated.

    Examples
    --------
    >>> from fastrnn.initializers import HeNormal
    >>> HeNormal()((2, 6), rng=0).shape
    (2, 6)
    """

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        return RandomNormal(0, float(np.sqrt(2 / fans(shape)[0])))(shape, rng, dtype)


@dataclass(frozen=True)
class Orthogonal:
    """`gain` times a random matrix with orthonormal columns (rows if it is wider than high), uniformly distributed.

    Saxe et al. 2014.

    Parameters
    ----------
    gain : float

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.initializers import Orthogonal
    >>> U = Orthogonal()((8, 2), rng=0)
    >>> np.allclose(U.T @ U, np.eye(2), atol=1e-6)
    True
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        finite("gain", self.gain)

    def __call__(self, shape: Shape, rng: Any = None, dtype: Any = np.float32) -> Array:
        if len(shape) != 2:
            raise ValueError(f"shape: expected (out, in), got {shape}")
        rows, columns = max(shape), min(shape)
        q, r = np.linalg.qr(np.random.default_rng(rng).standard_normal((rows, columns)))
        q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # QR's choice of signs would make it non-uniform
        values: Array = self.gain * (q if shape == q.shape else q.T)
        return np.ascontiguousarray(values, dtype)


def chosen(initializer: Any, schemes: Mapping[str, Mapping[str, Initializer]]) -> dict[str, Initializer]:
    """Return an initializer per parameter, from a scheme's name or a dict; "torch" supplies missing keys."""
    default = schemes["torch"]
    if isinstance(initializer, str):
        if initializer not in schemes:
            names = ", ".join(map(repr, schemes))
            raise ValueError(f"initializer: expected one of {names}, or a dict, got {initializer!r}")
        return {**default, **schemes[initializer]}
    if not isinstance(initializer, Mapping):
        raise TypeError(f"initializer: expected a string or a dict, got {type(initializer).__name__}")
    for key, f in initializer.items():
        if key not in default:
            raise ValueError(f"initializer: expected keys among {', '.join(map(repr, default))}, got {key!r}")
        if not callable(f):
            raise TypeError(f"initializer: expected a function of (shape, rng, dtype) for {key!r}, got {f!r}")
    return {**default, **initializer}


def initial(f: Initializer, name: str, shape: Shape, rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
    """Call f, which may be a user's function, and return an array of this shape and dtype."""
    value = np.array(f(shape, rng, dtype), dtype)
    if value.shape != shape:
        raise ValueError(f"initializer: expected shape {shape} for {name!r}, got {value.shape}")
    return np.ascontiguousarray(value)
