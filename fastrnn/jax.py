"""fastrnn in JAX: `rnn`, `gru` and `lstm` on JAX arrays, under ``jit``, ``grad`` and ``vmap``.

XLA calls the compiled kernels directly (``jax.ffi``), without Python and without copies; in float32 or, with
``jax_enable_x64``, float64. Arrays are time-major, with the shapes of `fastrnn.lstm_forward` and its siblings.

* Reverse mode (``grad``, ``value_and_grad``, ``vjp``) runs in the kernels. Forward mode (``jvp``, ``jacfwd``) and
  derivatives of gradients (``hessian``, ``grad`` of ``grad``) are computed from the cell's equations in a ``lax.scan``:
  correct to any order, but slow; a warning says so once.
* ``vmap`` over x, states, lengths or resets only is one call with a larger batch. Over weights, and in training, it
  makes one call per element. So inference on mapped sequences, ``vmap(lambda x: lstm(x, W, U))`` with x (T, I), is as
  fast as a batch; to train as fast, pass the batch x (T, B, I).
* A training forward saves every step's gates and states for its backward; ``jax.checkpoint`` recomputes them instead.
* The instruction set and the number of threads are fixed when the function is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn import backends, slow
from fastrnn.call import Call
from fastrnn.cells import Cell
from fastrnn.checks import Layout
from fastrnn.extras import needed
from fastrnn.run import WEIGHTS, CallOptions, checked_call, gru_cell, lstm_cell, rnn_cell

jax = needed("jax", "jax")
ad, batching, mlir = [needed(f"jax.interpreters.{name}", "jax") for name in ("ad", "batching", "mlir")]

__all__ = ["gru", "lstm", "recurrent", "rnn"]

#: The present arrays by name; JAX sorts them by name.
Given = dict[str, Any]

for way, handler in backends.load("native").xla_handlers().items():
    jax.ffi.register_ffi_target(f"fastrnn_{way}", handler, platform="cpu")


class Settings(NamedTuple):
    """The options that are fixed when a call is traced."""

    cell: Cell
    reverse: bool
    threads: int
    isa: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Unique names of the extra inputs."""
        return tuple([f"e.{name}" for name in self.cell.inputs])

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments in the order of src/xla.c; some of those after W may be absent."""
        return ("x", *WEIGHTS, *self.cell.initial, "lengths", "resets", *self.inputs)

    @property
    def bits(self) -> dict[str, int]:
        """The flags that tell src/xla.c which arguments are present."""
        names = ("U", "b", "b_rec", "p", "lengths", "resets", *self.cell.initial)
        return {name: 1 << i for i, name in enumerate(names)}

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("y", *[f"{state}_n" for state in self.cell.states])

    def axis(self, name: str) -> int | None:
        """The batch axis of an argument or an output, or None."""
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
        As for `fastrnn.rnn_forward`; see `lstm` for what JAX may trace.

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
        As for `fastrnn.gru_forward`; see `lstm` for what JAX may trace.

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
        Arrays, of the shapes and dtypes of `fastrnn.lstm_forward`; any of them may be traced.
    reverse, threads
        As for `fastrnn.lstm_forward`; Python values, not traced.

    Returns
    -------
    y : (T, B, H) array
    h_n, c_n : (B, H) array

    Raises
    ------
    TypeError, ValueError
        As `fastrnn.lstm_forward`, while tracing. Lengths greater than T raise JaxRuntimeError at run time.
    RuntimeError
        If the backend in use is not the native one.

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
    heads: int = 1,
    threads: int | None = None,
) -> tuple[Any, tuple[Any, ...]]:
    """Run the `forward` of any cell in JAX.

    Parameters
    ----------
    cell : Cell
        From `fastrnn.cell`, or one of `fastrnn.cells.CELLS`.
    x, W, U, b, b_rec, p, e, init, lengths, resets, reverse, heads, threads
        As for the cell's ``forward``; see `lstm` for what JAX may trace.

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
        raise TypeError(f"cell: expected a cell made by fastrnn.cell, got {cell!r}")
    init = cell.of_states("init", init)
    y, *final = _run(cell, x, (W, U, b, b_rec, p), init, lengths, resets, reverse, threads, e, heads)
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
    heads: int = 1,
) -> tuple[Any, ...]:
    """Return y and the final states; checks shapes and dtypes while tracing."""
    names = ("x", *WEIGHTS, *cell.initial, "lengths", "resets")
    values = (x, *weights, *init, lengths, resets)
    given = {name: _array(name, a) for name, a in zip(names, values, strict=True) if a is not None}
    inputs = {name: _array(name, a) for name, a in (e or {}).items()}
    options = CallOptions(reverse=reverse, training=True, heads=heads, threads=backends.thread_count(threads))
    call, (unbatched, _) = _checked(cell, given, inputs, options)
    if lengths is not None:  # the caller may pass any integers; the handler takes signed ones of 32 or 64 bits
        given["lengths"] = given["lengths"].astype("int64" if given["lengths"].dtype.itemsize == 8 else "int32")
    native = backends.current()
    if native.name != "native":
        raise RuntimeError(f'backend: expected native for fastrnn.jax, got {native.name}; call use_backend("native")')
    settings = Settings(cell, reverse, min(call.threads, backends.usable_cpus()), native.layout())
    room = backends.load("native").saved_bytes(call._replace(lengths=None), settings.isa)
    if unbatched:
        axes = {name: settings.axis(name) for name in given}
        given |= {name: jax.numpy.expand_dims(given[name], axis) for name, axis in axes.items() if axis is not None}
    T, B, _, H = call.sizes
    order = cell.order
    for name in {"U", "b_rec"} & given.keys() if order else ():
        given[name] = given[name].reshape(len(cell.products), H, -1)[np.array(order)].reshape(given[name].shape)
    for name, fixed in zip(cell.inputs, call.fixed, strict=True):  # broadcast to the shape of the kernels' gradient
        a = inputs[name][None] if fixed else inputs[name]
        a = jax.numpy.expand_dims(a, 1) if unbatched else a
        given[f"e.{name}"] = jax.numpy.broadcast_to(a, (T, B, H))
    y, *final = _call(settings, room, _alike(given))
    if unbatched:
        return y[:, 0], *[s[0] for s in final]
    return y, *final


def _alike(given: Given) -> Given:
    """In a `shard_map`, mark all arrays as varying if any one is, so that JAX sums gradients over the shards."""
    over = {name: _varies(a) for name, a in given.items()}
    axes = frozenset().union(*over.values())
    cast = getattr(jax.lax, "pcast", None) or (lambda a, axes, to: jax.lax.pvary(a, axes))  # before JAX 0.9
    return {
        name: cast(a, tuple(sorted(axes - over[name])), to="varying") if axes - over[name] else a
        for name, a in given.items()
    }


def _varies(a: Any) -> frozenset[str]:
    """The mesh axes along which an array varies in a `shard_map`; known since JAX 0.6."""
    kind = _kind(a)
    told = getattr(kind, "manual_axis_type", None)
    return told.varying if told is not None else getattr(kind, "vma", frozenset())


def _kind(a: Any) -> Any:
    return jax.typeof(a) if hasattr(jax, "typeof") else jax.core.get_aval(a)


def _like(x: Any, shape: tuple[int | None, ...], dtype: Any) -> Any:
    """The type of an array that is computed from one like x."""
    return _kind(x).update(shape=shape, dtype=np.dtype(dtype), weak_type=False)


def _array(name: str, a: Any) -> Any:
    try:
        return jax.numpy.asarray(a)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected an array, got {type(a).__name__}") from error


def _checked(cell: Cell, given: Given, inputs: Given, options: CallOptions) -> tuple[Call, Layout]:
    """Check a call with arrays of these shapes and dtypes, whose values are unknown while tracing."""
    blank, e = ({name: np.zeros(a.shape, a.dtype) for name, a in arrays.items()} for arrays in (given, inputs))
    weights = {name: blank.get(name) for name in WEIGHTS}
    init = tuple([blank.get(name) for name in cell.initial])
    options = options._replace(lengths=blank.get("lengths"), resets=blank.get("resets"))
    return checked_call(cell, blank.get("x"), weights, init, options, e=e or None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _call(settings: Settings, room: int, given: Given) -> list[Any]:
    """Return y and the final states; `room` is the number of bytes that a forward saves for its backward."""
    return _inference(settings)(given)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _trained(settings: Settings, room: int, given: Given) -> list[Any]:
    """Return the same and the saved bytes."""
    return _forward(settings, given, room)


def _call_jvp(
    settings: Settings, room: int, primals: tuple[Given], tangents: tuple[Given]
) -> tuple[list[Any], list[Any]]:
    *outputs, saved = _trained(settings, room, *primals)
    return outputs, _tangents_out(settings, *primals, saved, *tangents)


def _trained_jvp(
    settings: Settings, room: int, primals: tuple[Given], tangents: tuple[Given]
) -> tuple[list[Any], list[Any]]:
    *outputs, saved = _trained(settings, room, *primals)
    nothing: Any = np.zeros(saved.shape, jax.dtypes.float0)
    if _varies(saved):  # arrays of dtype float0 cannot be marked as varying
        nothing = jax.custom_derivatives.SymbolicZero(_like(saved, saved.shape, nothing.dtype))
    return [*outputs, saved], [*_tangents_out(settings, *primals, saved, *tangents), nothing]


_call.defjvp(_call_jvp)
_trained.defjvp(_trained_jvp)


def real(given: Given) -> list[str]:
    """The names of the arrays that have gradients."""
    return [name for name, a in given.items() if jax.numpy.issubdtype(a.dtype, jax.numpy.floating)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _back(settings: Settings, given: Given, saved: Any, cotangents: list[Any]) -> Given:
    """Return all gradients, from those of the results of `_call`."""
    names = [name for name in settings.arguments if name in real(given)]
    shapes = [_like(given["x"], given[name].shape, given[name].dtype) for name in names]
    return dict(zip(names, _kernels("backward", settings, shapes, given, True, [saved, *cotangents]), strict=True))


def _back_jvp(settings: Settings, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Given, Given]:
    slow.tell("fastrnn.jax", "gradients of gradients")
    (given, _, cotangents), (dgiven, _, dcotangents) = primals, tangents

    def back(leaves: Given, cotangents: list[Any]) -> Given:
        pull = jax.vjp(lambda leaves: _equations(settings, given | leaves), leaves)[1]
        found: Given = pull(cotangents)[0]
        return found

    leaves, dleaves = ({name: arrays[name] for name in real(given)} for arrays in (given, dgiven))
    return _back(settings, *primals), jax.jvp(back, (leaves, cotangents), (dleaves, dcotangents))[1]


_back.defjvp(_back_jvp)


def _equations(settings: Settings, given: Given) -> list[Any]:
    """Return the same as `_call`, computed from the cell's equations, step by step."""
    cell, jnp, x = settings.cell, jax.numpy, given["x"]
    (T, B, _), H = x.shape, given["W"].shape[0] // cell.G
    W, U, b, b_rec, p = [given.get(name) for name in WEIGHTS]
    if cell.order:  # undo the kernels' order
        order = np.argsort(cell.order)
        U, b_rec = (a if a is None else a.reshape(len(order), H, -1)[order].reshape(a.shape) for a in (U, b_rec))
    e = {name: given[f"e.{name}"] for name in cell.inputs}
    valid = None
    if "lengths" in given:  # padding must not reach the gradients, not even as the NaN of 0 * inf
        valid = (jnp.arange(T)[:, None] < given["lengths"])[:, :, None]
        x = jnp.where(valid, x, 0)
        e = {name: jnp.where(valid, a, 0.5) for name, a in e.items()}  # logarithms and reciprocals are finite at 0.5
    state = tuple([given.get(name, jnp.zeros((B, H), x.dtype)) for name in cell.initial])

    def step(state: Any, now: Any) -> Any:
        x, e, valid, reset = now
        before = state if reset is None else tuple([jnp.where(reset[:, None], 0, s) for s in state])
        after = cell.evaluate(x, before, W, U, b, b_rec, p, e)
        if valid is None:
            return after, after[0]
        state = tuple([jnp.where(valid, a, s) for a, s in zip(after, state, strict=True)])
        return state, jnp.where(valid, after[0], 0)

    final, y = jax.lax.scan(step, state, (x, e, valid, given.get("resets")), reverse=settings.reverse)
    return [y, *final]


# --- tangents of the outputs: linear in those of the arguments, transposed by the kernels

_tangents = needed("jax.extend.core", "jax").Primitive("fastrnn_tangents")
_tangents.multiple_results = True

#: For each enclosing vmap, outermost first: which of the arguments and saved bytes have a leading axis.
Mapped = tuple[tuple[bool, ...], ...]


def _tangents_out(settings: Settings, given: Given, saved: Any, tangents: Given) -> list[Any]:
    """Compute tangents of the outputs from those of the arguments."""
    leaves = [tangents[name] for name in real(given)]
    found: list[Any] = _tangents.bind(*given.values(), saved, *leaves, settings=settings, names=tuple(given), mapped=())
    return found


def _apart(arguments: Sequence[Any], names: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """Split into the arguments with the saved bytes, and the tangents."""
    n = len(names) + 1
    return list(arguments[:n]), list(arguments[n:])


def _in_vmaps(run: Callable[..., Any], mapped: Mapped) -> Callable[..., Any]:
    """Apply these vmaps to a function of (arguments with saved bytes, arrays that have all leading axes)."""
    for of in reversed(mapped):
        run = jax.vmap(run, in_axes=([0 if here else None for here in of], 0))
    return run


def _by_equations(*arguments: Any, settings: Settings, names: tuple[str, ...], mapped: Mapped) -> list[Any]:
    slow.tell("fastrnn.jax", "forward-mode derivatives")

    def run(fixed: list[Any], tangents: list[Any]) -> list[Any]:
        given = dict(zip(names, fixed[:-1], strict=True))
        leaves = {name: given[name] for name in real(given)}
        found: list[Any] = jax.jvp(
            lambda leaves: _equations(settings, given | leaves), (leaves,), (dict(zip(leaves, tangents, strict=True)),)
        )[1]
        return found

    found: list[Any] = _in_vmaps(run, mapped)(*_apart(arguments, names))
    return found


def _shapes(*arguments: Any, settings: Settings, names: tuple[str, ...], mapped: Mapped) -> list[Any]:
    tangents = dict(zip(real(dict(zip(names, arguments, strict=False))), _apart(arguments, names)[1], strict=True))
    *front, T, B, _ = tangents["x"].shape
    H = tangents["W"].shape[-2] // settings.cell.G
    sizes = [(T, B, H)] + [(B, H)] * len(settings.cell.states)
    return [tangents["x"].update(shape=(*front, *size)) for size in sizes]


def _transposed(
    cotangents: list[Any], *arguments: Any, settings: Settings, names: tuple[str, ...], mapped: Mapped
) -> list[Any]:
    fixed, tangents = _apart(arguments, names)

    def run(fixed: list[Any], cotangents: list[Any]) -> list[Any]:
        *values, saved = fixed
        given = dict(zip(names, values, strict=True))
        grads = _back(settings, given, saved, cotangents)
        return [grads[name] for name in real(given)]

    grads = _in_vmaps(run, mapped)(fixed, [ad.instantiate_zeros(a) for a in cotangents])
    asked = [ad.is_undefined_primal(a) for a in tangents]
    return [None] * len(fixed) + [d if here else None for d, here in zip(grads, asked, strict=True)]


def _differentiated(primals: list[Any], tangents: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
    whole = tuple([ad.instantiate_zeros(a) for a in tangents])
    found: tuple[list[Any], list[Any]] = jax.jvp(functools.partial(_by_equations, **options), tuple(primals), whole)
    return found


def _mapped(
    arguments: list[Any], axes: list[Any], *, names: tuple[str, ...], mapped: Mapped, **options: Any
) -> tuple[list[Any], list[int]]:
    there = [axis is not None for axis in axes]
    size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
    front = [jax.numpy.moveaxis(a, axis, 0) if axis is not None else a for a, axis in zip(arguments, axes, strict=True)]
    fixed, tangents = _apart(front, names)
    n = len(fixed)
    pairs = zip(tangents, there[n:], strict=True)
    every = [a if here else jax.numpy.broadcast_to(a, (size, *a.shape)) for a, here in pairs]
    found = _tangents.bind(*fixed, *every, names=names, mapped=(tuple(there[:n]), *mapped), **options)
    return found, [0] * len(found)


_tangents.def_impl(jax.jit(_by_equations, static_argnames=("settings", "names", "mapped")))
_tangents.def_abstract_eval(_shapes)
mlir.register_lowering(_tangents, mlir.lower_fun(_by_equations, multiple_results=True))
ad.primitive_transposes[_tangents] = _transposed
ad.primitive_jvps[_tangents] = _differentiated
batching.primitive_batchers[_tangents] = _mapped


# --- the kernels


def _forward(settings: Settings, given: Given, room: int | None = None) -> list[Any]:
    """Return y, the final states and, if `room` is given, the bytes saved for backward."""
    (T, B, _), H, dtype = given["x"].shape, given["W"].shape[0] // settings.cell.G, given["x"].dtype
    x = given["x"]
    shapes = [_like(x, (T, B, H) if name == "y" else (B, H), dtype) for name in settings.outputs]
    training = room is not None
    if training:
        shapes.append(_like(x, (room,), np.uint8))
    return _kernels("forward", settings, shapes, given, training)


def _kernels(
    way: str, settings: Settings, shapes: Sequence[Any], given: Given, training: bool, more: Sequence[Any] = ()
) -> list[Any]:
    """Call a handler; a vmap calls it once per element."""
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
    """Like `_forward`, but a vmap over anything except weights is one call."""
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
    """Join n batches into one; repeat unmapped arrays, and leave arrays without a batch axis unchanged."""
    if axis is None:
        return a
    a = jax.numpy.moveaxis(a, 0, axis) if mapped else jax.numpy.repeat(jax.numpy.expand_dims(a, axis), n, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])


def _parted(a: Any, axis: int, n: int) -> Any:
    """The inverse of `_joined`, with the axis of length n first."""
    return jax.numpy.moveaxis(a.reshape(*a.shape[:axis], n, -1, *a.shape[axis + 1 :]), axis, 0)
