"""fastrnn in JAX: `rnn`, `gru` and `lstm` on JAX arrays, under ``jit``, ``grad`` and ``vmap``.

The kernels run on the host, called from the compiled program (``jax.pure_callback``), float32 or, with
``jax_enable_x64``, float64. Arguments are those of `fastrnn.lstm_forward` and its sisters, time-major.

* Reverse mode is differentiable (``grad``, ``value_and_grad``, ``vjp``); forward mode and a gradient of a gradient are
  not, and JAX says so.
* ``vmap`` over x, states, lengths or resets alone is one call with a larger batch. Over weights, and in training, it
  is a call for each. So sequences that JAX's users map over, ``vmap(lambda x: lstm(x, W, U))`` with x (T, I), infer as
  fast as a batch; to train them as fast, give the batch: x (T, B, I).
* A training forward keeps nothing: backward runs it again, inside the same call of the kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends
from fastrnn.call import Backward, Call
from fastrnn.cells import CELLS, Array
from fastrnn.checks import Options, checked_call
from fastrnn.extras import needed
from fastrnn.run import gru_cell, lstm_cell, rnn_cell

jax = needed("jax", "jax")

#: Arrays by name, None where absent.
Given = dict[str, Any]

WEIGHTS = ("W", "U", "b", "b_rec", "p")

OUTPUTS = ("y", "h_n", "c_n")

#: Which axis is that of the batch.
BATCH = {"x": 1, "h0": 0, "c0": 0, "lengths": 0, "resets": 1, "y": 1, "h_n": 0, "c_n": 0}


class Settings(NamedTuple):
    """What is fixed when a call is traced."""

    cell: str
    reverse: bool
    threads: int | None


def rnn(
    x: Any,
    W: Any,
    U: Any,
    b: Any = None,
    b_rec: Any = None,
    *,
    h0: Any = None,
    activation: str = "tanh",
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """`fastrnn.rnn_forward` in JAX: y (T, B, H) and h_n (B, H); see `lstm`.

    Examples
    --------
    >>> import jax.numpy as jnp, fastrnn.jax
    >>> x, W, U = jnp.ones((3, 1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1))
    >>> fastrnn.jax.rnn(x, W, U, activation="identity")[0].ravel().tolist()
    [1.0, 2.0, 3.0]
    """
    settings = Settings(rnn_cell(activation), reverse, threads)
    y, h_n = _run(settings, x, (W, U, b, b_rec, None), {"h0": h0}, lengths, resets)
    return y, h_n


def gru(
    x: Any,
    W: Any,
    U: Any,
    b: Any = None,
    b_rec: Any = None,
    *,
    reset_after: bool,
    h0: Any = None,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """`fastrnn.gru_forward` in JAX: y (T, B, H) and h_n (B, H); see `lstm`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fastrnn.jax
    >>> x, W, U = jnp.ones((3, 2, 4)), jnp.ones((15, 4)), jnp.ones((15, 5))
    >>> y, h_n = fastrnn.jax.gru(x, W, U, reset_after=True)
    >>> y.shape, h_n.shape
    ((3, 2, 5), (2, 5))
    """
    settings = Settings(gru_cell(reset_after), reverse, threads)
    y, h_n = _run(settings, x, (W, U, b, b_rec, None), {"h0": h0}, lengths, resets)
    return y, h_n


def lstm(
    x: Any,
    W: Any,
    U: Any,
    b: Any = None,
    b_rec: Any = None,
    *,
    p: Any = None,
    h0: Any = None,
    c0: Any = None,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    threads: int | None = None,
) -> tuple[Any, Any, Any]:
    """`fastrnn.lstm_forward` in JAX.

    Parameters
    ----------
    x : (T, B, I) array, or (T, I) for one sequence
        Inputs, float32 or float64 (dimensionless). One sequence comes back without the batch axis, everywhere.
    W, U, b, b_rec, p, h0, c0
        As `fastrnn.lstm_forward` has them, of x's dtype.
    lengths : (B,) integers, optional
        Valid steps of each sequence.
    resets : (T, B) booleans, optional
        Start afresh before these steps.
    reverse, threads
        As `fastrnn.lstm_forward` has them; Python values, not traced.

    Returns
    -------
    y : (T, B, H) array
    h_n, c_n : (B, H) array

    Raises
    ------
    TypeError, ValueError
        As `fastrnn.lstm_forward`, when it is traced; for lengths beyond T, when it runs, as a JaxRuntimeError.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fastrnn.jax
    >>> x, W, U = jnp.ones((3, 2, 4)), jnp.ones((20, 4)), jnp.ones((20, 5))
    >>> @jax.jit
    ... @jax.value_and_grad
    ... def loss(U):
    ...     y, h_n, c_n = fastrnn.jax.lstm(x, W, U)
    ...     return (y**2).sum()
    >>> value, dU = loss(U)
    >>> dU.shape
    (20, 5)
    """
    settings = Settings(lstm_cell(p), reverse, threads)
    y, h_n, c_n = _run(settings, x, (W, U, b, b_rec, p), {"h0": h0, "c0": c0}, lengths, resets)
    return y, h_n, c_n


def _run(settings: Settings, x: Any, weights: Sequence[Any], init: Given, lengths: Any, resets: Any) -> tuple[Any, ...]:
    """y and the final states. What is wrong with shapes and dtypes is said here, while tracing."""
    arrays = {"x": x, **dict(zip(WEIGHTS, weights, strict=True)), **init}
    fixed = {"lengths": lengths, "resets": resets}
    arrays, fixed = (each(jax.numpy.asarray, given) for given in (arrays, fixed))
    blank = [each(lambda a: np.zeros(a.shape, a.dtype), given) for given in (arrays, fixed)]
    _, unbatched = _checked(settings, blank[0], blank[1])
    if unbatched:
        for own in (arrays, fixed):
            own |= each(jax.numpy.expand_dims, {name: own[name] for name in own.keys() & BATCH}, BATCH)
    outputs = _call(settings, arrays, fixed)
    if unbatched:
        outputs = each(jax.numpy.squeeze, outputs, BATCH)
    return tuple([outputs[name] for name in OUTPUTS if name in outputs])


def _checked(settings: Settings, arrays: Given, fixed: Given, training: bool = False) -> tuple[Call, bool]:
    # By name: JAX sorts what it is given.
    weights, init = ({name: arrays[name] for name in names if name in arrays} for names in (WEIGHTS, ("h0", "c0")))
    threads = backends.get_num_threads() if settings.threads is None else settings.threads
    options = Options(**fixed, reverse=settings.reverse, training=training, threads=threads)
    return checked_call(settings.cell, arrays["x"], weights, init, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(settings: Settings, arrays: Given, fixed: Given) -> Given:
    (T, B, _), H, dtype = arrays["x"].shape, arrays["U"].shape[1], arrays["x"].dtype
    shapes = {"y": (T, B, H), **{f"{name}_n": (B, H) for name in CELLS[settings.cell].states}}
    return _on_host(_forward, settings, each(lambda s: jax.ShapeDtypeStruct(s, dtype), shapes), arrays, fixed)


def _call_forward(settings: Settings, arrays: Given, fixed: Given) -> tuple[Given, tuple[Given, Given]]:
    return _call(settings, arrays, fixed), (arrays, fixed)


def _call_backward(settings: Settings, kept: tuple[Given, Given], cotangents: Given) -> tuple[Given, None]:
    arrays, fixed = kept
    shapes = each(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    return _on_host(_backward, settings, shapes, arrays, fixed, cotangents), None


_call.defvjp(_call_forward, _call_backward)


def _on_host(run: Callable[..., Given], settings: Settings, shapes: Given, *given: Given) -> Given:
    """`run` in NumPy; each vmap puts an axis in front of all arrays, of length 1 where it does not map an array."""

    def call(*given: Given) -> Given:
        return run(settings, *(each(np.asarray, own) for own in given))

    outputs: Given = jax.pure_callback(call, shapes, *given, vmap_method="expand_dims")
    return outputs


def _forward(settings: Settings, arrays: Given, fixed: Given) -> Given:
    def one(arrays: Given, fixed: Given) -> Given:
        call, _ = _checked(settings, arrays, fixed)
        (result,) = backends.current().forward([call])
        return dict(zip(OUTPUTS, (result.y, *result.final), strict=False))

    k = arrays["U"].ndim - 2
    if any(np.prod(arrays[name].shape[:k]) > 1 for name in WEIGHTS if arrays[name] is not None):
        return mapped(one, k, arrays, fixed)
    return as_one_batch(one, k, arrays, fixed)


def _backward(settings: Settings, arrays: Given, fixed: Given, cotangents: Given) -> Given:
    backend = backends.current()

    def one(arrays: Given, fixed: Given, cotangents: Given) -> Given:
        call, _ = _checked(settings, arrays, fixed, training=True)
        dy, *dfinal = (cotangents[name] for name in OUTPUTS if name in cotangents)
        (result,) = backend.forward([call])
        (g,) = backend.backward([Backward(call, result.saved, dy, tuple(dfinal))])
        named = {"x": g.dx, "W": g.dW, "U": g.dU, "b": g.db, "b_rec": g.db_rec, "p": g.dp}
        return named | dict(zip(("h0", "c0"), g.dinit, strict=False))

    return mapped(one, arrays["U"].ndim - 2, arrays, fixed, cotangents)


def each(function: Callable[..., Any], given: Given, *more: Given) -> Given:
    """The function of each by its name, with what `more` has of this name; what is absent stays absent."""
    return {n: None if a is None else function(a, *(other[n] for other in more)) for n, a in given.items()}


def lead(k: int, *given: Given) -> tuple[int, ...]:
    """The lengths of the k axes in front."""
    return np.broadcast_shapes(*(a.shape[:k] for own in given for a in own.values() if a is not None))


def mapped(run: Callable[..., Given], k: int, *given: Given) -> Given:
    """`run` for each element along the k axes in front."""
    if not k:
        return run(*given)

    def at(a: Array, index: tuple[int, ...]) -> Array:
        mine: Array = a[tuple([min(i, n - 1) for i, n in zip(index, a.shape, strict=False)])]
        return mine

    front = lead(k, *given)
    results = [run(*(each(functools.partial(at, index=i), own) for own in given)) for i in np.ndindex(front)]
    stacks = {name: None if a is None else [result[name] for result in results] for name, a in results[0].items()}
    return each(lambda stack: np.stack(stack).reshape(front + stack[0].shape), stacks)


def as_one_batch(run: Callable[..., Given], k: int, *given: Given) -> Given:
    """The same with one call, of weights that all have in common."""
    front = lead(k, *given)

    def joined(name: str, a: Array) -> Array:
        if name not in BATCH:
            return a.reshape(a.shape[k:])
        axis, shape = BATCH[name], a.shape[k:]
        a = np.moveaxis(np.broadcast_to(a, front + shape), range(k), range(axis, axis + k))
        return a.reshape(*shape[:axis], -1, *shape[axis + 1 :])

    def parted(a: Array, axis: int) -> Array:
        a = a.reshape(*a.shape[:axis], *front, -1, *a.shape[axis + 1 :])
        return np.moveaxis(a, range(axis, axis + k), range(k))

    whole = [{name: None if a is None else joined(name, a) for name, a in own.items()} for own in given]
    return each(parted, run(*whole), BATCH)
