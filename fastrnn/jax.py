"""fastrnn in JAX: `rnn`, `gru` and `lstm` on JAX arrays, under ``jit``, ``grad`` and ``vmap``.

XLA calls the compiled kernels itself (``jax.ffi``), without Python and without a copy; float32 or, with
``jax_enable_x64``, float64. Arguments are those of `fastrnn.lstm_forward` and its sisters, time-major.

* Reverse mode is differentiable (``grad``, ``value_and_grad``, ``vjp``); forward mode and a gradient of a gradient are
  not, and JAX says so.
* ``vmap`` over x, states, lengths or resets alone is one call with a larger batch. Over weights, and in training, it
  is a call for each. So sequences that JAX's users map over, ``vmap(lambda x: lstm(x, W, U))`` with x (T, I), infer as
  fast as a batch; to train them as fast, give the batch: x (T, B, I).
* A training forward keeps every step's gates and states for its backward; ``jax.checkpoint`` recomputes them instead.
* The instruction set and the number of threads are those of when the function was traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends
from fastrnn.call import Call
from fastrnn.cells import Cell
from fastrnn.checks import Options, checked_call
from fastrnn.extras import needed
from fastrnn.run import gru_cell, lstm_cell, rnn_cell

jax = needed("jax", "jax")

__all__ = ["gru", "lstm", "recurrent", "rnn"]

#: Arrays by name, of those that there are; JAX sorts them by it.
Given = dict[str, Any]

WEIGHTS = ("W", "U", "b", "b_rec", "p")

for way, handler in backends.load("native").xla_handlers().items():
    jax.ffi.register_ffi_target(f"fastrnn_{way}", handler, platform="cpu")


class Settings(NamedTuple):
    """What is fixed when a call is traced."""

    cell: Cell
    reverse: bool
    threads: int
    isa: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The extra inputs, by names that nothing else has."""
        return tuple([f"e.{name}" for name in self.cell.inputs])

    @property
    def arguments(self) -> tuple[str, ...]:
        """In the order of src/xla.c; of those after W some may be absent."""
        return ("x", *WEIGHTS, *self.cell.initial, "lengths", "resets", *self.inputs)

    @property
    def bits(self) -> dict[str, int]:
        """What src/xla.c is told of those that are there."""
        names = ("U", "b", "b_rec", "p", "lengths", "resets", *self.cell.initial)
        return {name: 1 << i for i, name in enumerate(names)}

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("y", *[f"{state}_n" for state in self.cell.states])

    def axis(self, name: str) -> int | None:
        """Which axis of an argument or an output is that of the batch."""
        if name in WEIGHTS:
            return None
        return 1 if name in ("x", "y", "resets", *self.inputs) else 0


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
    """`fastrnn.rnn_forward` in JAX.

    Parameters
    ----------
    x, W, U, b, b_rec, h0, activation, lengths, resets, reverse, threads
        As `fastrnn.rnn_forward` has them; what is JAX's own is as for `lstm`.

    Returns
    -------
    y : (T, B, H) array
    h_n : (B, H) array

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `lstm`.

    Examples
    --------
    >>> import jax.numpy as jnp, fastrnn.jax
    >>> x, W, U = jnp.ones((3, 1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1))
    >>> fastrnn.jax.rnn(x, W, U, activation="identity")[0].ravel().tolist()
    [1.0, 2.0, 3.0]
    """
    y, h_n = _run(rnn_cell(activation), x, (W, U, b, b_rec, None), (h0,), lengths, resets, reverse, threads)
    return y, h_n


def gru(
    x: Any,
    W: Any,
    U: Any,
    b: Any = None,
    b_rec: Any = None,
    *,
    reset_after: bool | None = None,
    h0: Any = None,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """`fastrnn.gru_forward` in JAX.

    Parameters
    ----------
    x, W, U, b, b_rec, reset_after, h0, lengths, resets, reverse, threads
        As `fastrnn.gru_forward` has them; what is JAX's own is as for `lstm`.

    Returns
    -------
    y : (T, B, H) array
    h_n : (B, H) array

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `lstm`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fastrnn.jax
    >>> x, W, U = jnp.ones((3, 2, 4)), jnp.ones((15, 4)), jnp.ones((15, 5))
    >>> y, h_n = fastrnn.jax.gru(x, W, U, reset_after=True)
    >>> y.shape, h_n.shape
    ((3, 2, 5), (2, 5))
    """
    y, h_n = _run(gru_cell(reset_after), x, (W, U, b, b_rec, None), (h0,), lengths, resets, reverse, threads)
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
    x, W, U, b, b_rec, p, h0, c0, lengths, resets
        Arrays of the shapes and dtypes that `fastrnn.lstm_forward` has; any of them may be traced.
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
    RuntimeError
        If another backend than the native one is in use.

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
    y, h_n, c_n = _run(lstm_cell(p), x, (W, U, b, b_rec, p), (h0, c0), lengths, resets, reverse, threads)
    return y, h_n, c_n


def recurrent(
    cell: Cell,
    x: Any,
    W: Any,
    U: Any = None,
    b: Any = None,
    b_rec: Any = None,
    *,
    p: Any = None,
    e: Mapping[str, Any] | None = None,
    init: Sequence[Any] | None = None,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    threads: int | None = None,
) -> tuple[Any, tuple[Any, ...]]:
    """The `forward` of any cell in JAX.

    Parameters
    ----------
    cell : Cell
        As `fastrnn.cell` makes it, or one of `fastrnn.cells.CELLS`.
    x, W, U, b, b_rec, p, e, init, lengths, resets, reverse, threads
        As the cell's ``forward`` has them; what is JAX's own is as for `lstm`.

    Returns
    -------
    y : (T, B, H) array
    final : tuple of (B, H) arrays
        In the order of the cell's states.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `lstm`.

    Examples
    --------
    >>> import jax.numpy as jnp, fastrnn, fastrnn.jax
    >>> from fastrnn.cells import relu
    >>> @fastrnn.cell(gates="n", states="h", parameters=("u",))
    ... def ind_rnn(x, U, s, p):
    ...     return relu(x.n + p.u * s.h)
    >>> x, W = jnp.ones((3, 1, 1)), jnp.ones((1, 1))
    >>> y, (h_n,) = fastrnn.jax.recurrent(ind_rnn, x, W, p=jnp.full(1, 2.0))
    >>> y.ravel().tolist()
    [1.0, 3.0, 7.0]
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected what fastrnn.cell makes, got {cell!r}")
    if init is None:
        init = (None,) * len(cell.states)
    if not isinstance(init, tuple | list) or len(init) != len(cell.states):
        raise ValueError(f"init: expected a tuple of {', '.join(cell.states)}, got {init!r:.80}")
    y, *final = _run(cell, x, (W, U, b, b_rec, p), init, lengths, resets, reverse, threads, e)
    return y, tuple(final)


def _run(
    cell: Cell,
    x: Any,
    weights: Sequence[Any],
    init: Sequence[Any],
    lengths: Any,
    resets: Any,
    reverse: bool,
    threads: int | None,
    e: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """y and the final states. What is wrong with shapes and dtypes is said here, while tracing."""
    names = ("x", *WEIGHTS, *cell.initial, "lengths", "resets")
    values = (x, *weights, *init, lengths, resets)
    given = {name: _array(name, a) for name, a in zip(names, values, strict=True) if a is not None}
    inputs = {name: _array(name, a) for name, a in (e or {}).items()}
    options = Options(reverse=reverse, training=True, threads=backends.thread_count(threads))
    call, unbatched = _checked(cell, given, inputs, options)
    if lengths is not None:  # any integers for the caller, of 32 or 64 bits with a sign for the handler
        given["lengths"] = given["lengths"].astype("int64" if given["lengths"].dtype.itemsize == 8 else "int32")
    native = backends.current()
    if native.name != "native":
        raise RuntimeError(f'backend: fastrnn.jax needs the native one, got {native.name}; use_backend("native")')
    settings = Settings(cell, reverse, min(call.threads, backends.usable_cpus()), native.layout())
    room = backends.load("native").saved_bytes(call._replace(lengths=None), settings.isa)
    if unbatched:
        axes = {name: settings.axis(name) for name in given}
        given |= {name: jax.numpy.expand_dims(given[name], axis) for name, axis in axes.items() if axis is not None}
    T, B, _, H = call.sizes
    order = cell.order
    for name in {"U", "b_rec"} & given.keys() if order else ():
        given[name] = given[name].reshape(len(cell.products), H, -1)[np.array(order)].reshape(given[name].shape)
    for name, fixed in zip(cell.inputs, call.fixed, strict=True):  # as wide and as long as the kernels' gradient of it
        a = inputs[name][None] if fixed else inputs[name]
        a = jax.numpy.expand_dims(a, 1) if unbatched else a
        given[f"e.{name}"] = jax.numpy.broadcast_to(a, (T, B, H))
    y, *final = _call(settings, room, given)
    if unbatched:
        return y[:, 0], *[s[0] for s in final]
    return y, *final


def _array(name: str, a: Any) -> Any:
    try:
        return jax.numpy.asarray(a)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected an array, got {type(a).__name__}") from error


def _checked(cell: Cell, given: Given, inputs: Given, options: Options) -> tuple[Call, bool]:
    """Of arrays of these shapes and dtypes, whose values are not known."""
    blank: Given = {name: np.zeros(a.shape, a.dtype) for name, a in given.items()}
    weights = {name: blank.get(name) for name in WEIGHTS}
    init = tuple([blank.get(name) for name in cell.initial])
    e = {name: np.zeros(a.shape, a.dtype) for name, a in inputs.items()}
    options = options._replace(lengths=blank.get("lengths"), resets=blank.get("resets"))
    return checked_call(cell, blank.get("x"), weights, init, options, e=e or None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call(settings: Settings, room: int, given: Given) -> list[Any]:
    """y and the final states; `room` is for the bytes that a forward leaves to its backward."""
    return _inference(settings)(given)


def _call_forward(settings: Settings, room: int, given: Given) -> tuple[list[Any], tuple[Given, Any]]:
    *outputs, saved = _forward(settings, given, room)
    return outputs, (given, saved)


def _call_backward(settings: Settings, room: int, kept: tuple[Given, Any], cotangents: list[Any]) -> tuple[Given]:
    given, saved = kept
    real = {name: a for name, a in given.items() if jax.numpy.issubdtype(a.dtype, jax.numpy.floating)}
    names = [name for name in settings.arguments if name in real]
    shapes = [jax.ShapeDtypeStruct(real[name].shape, real[name].dtype) for name in names]
    found = _kernels("backward", settings, shapes, given, True, [saved, *cotangents])
    return (dict.fromkeys(given) | dict(zip(names, found, strict=True)),)


_call.defvjp(_call_forward, _call_backward)


def _forward(settings: Settings, given: Given, room: int | None = None) -> list[Any]:
    """y, the final states and, with room for it, what backward needs of this call."""
    (T, B, _), H, dtype = given["x"].shape, given["W"].shape[0] // settings.cell.G, given["x"].dtype
    shapes = [jax.ShapeDtypeStruct((T, B, H) if name == "y" else (B, H), dtype) for name in settings.outputs]
    training = room is not None
    if training:
        shapes.append(jax.ShapeDtypeStruct((room,), np.uint8))
    return _kernels("forward", settings, shapes, given, training)


def _kernels(
    way: str, settings: Settings, shapes: Sequence[Any], given: Given, training: bool, more: Sequence[Any] = ()
) -> list[Any]:
    """A handler's results; a vmap calls it for each."""
    native = backends.load("native")
    cell, isa = native.numbers(settings.cell, given["x"].dtype.itemsize, settings.isa)
    present = [name for name in settings.arguments if name in given]
    bits = sum(bit for name, bit in settings.bits.items() if name in given)
    setting = np.array([cell, isa, settings.reverse, training, settings.threads, bits], np.int64)
    run = jax.ffi.ffi_call(f"fastrnn_{way}", shapes, vmap_method="sequential")
    found: list[Any] = run(*[given[name] for name in present], *more, setting=setting)
    return found


@functools.cache
def _inference(settings: Settings) -> Callable[[Given], list[Any]]:
    """`_forward` whose vmap over all but weights is one call."""
    run: Any = jax.custom_batching.custom_vmap(functools.partial(_forward, settings))

    def mapped(n: int, axes: tuple[dict[str, bool]], given: Given) -> tuple[list[Any], list[bool]]:
        (of,) = axes
        if any(of[name] for name in of if name in WEIGHTS):
            front = ({name: 0 if of[name] else None for name in given},)
            outputs = jax.vmap(functools.partial(_forward, settings), in_axes=front)(given)
        else:
            joined = {name: _joined(a, settings.axis(name), n, of[name]) for name, a in given.items()}
            pairs = zip(settings.outputs, run(joined), strict=True)
            outputs = [_parted(a, settings.axis(name) or 0, n) for name, a in pairs]
        return outputs, [True] * len(outputs)

    run.def_vmap(mapped)
    found: Callable[[Given], list[Any]] = run
    return found


def _joined(a: Any, axis: int | None, n: int, mapped: bool) -> Any:
    """n batches as one; what is not mapped is the same in each, and what has no axis of the batch stays."""
    if axis is None:
        return a
    a = jax.numpy.moveaxis(a, 0, axis) if mapped else jax.numpy.repeat(jax.numpy.expand_dims(a, axis), n, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])


def _parted(a: Any, axis: int, n: int) -> Any:
    """The way back, the axis of the n in front."""
    return jax.numpy.moveaxis(a.reshape(*a.shape[:axis], n, -1, *a.shape[axis + 1 :]), axis, 0)
