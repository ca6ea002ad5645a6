"""Validate arguments and build a `Call` that a backend can trust.

Every message names the argument, what was expected and what was given. Arrays are copied only if a backend cannot read
them in place.
"""

from __future__ import annotations

import itertools
import math
import numbers
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np

from fastrnn.call import Call
from fastrnn.cells import CELLS, Array, Arrays, Cell

BOOLEANS = (bool, np.bool_)

#: More threads than any machine has; fits in a C int.
MANY_THREADS = 2**16

#: The dtype in which the binding takes row indices of a table.
NUMBER = np.dtype(np.intp)

Named = TypeVar("Named")

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Common(TypedDict, total=False):
    """The keywords of every forward; `functional.lstm_forward` documents them."""

    lengths: Any
    resets: Any
    reverse: bool
    batch_first: bool
    training: bool
    checkpoint: int | Literal["auto"] | None
    heads: int
    threads: int | None


class Options(NamedTuple):
    """The keywords of `Common` with their defaults."""

    lengths: Any = None
    resets: Any = None
    reverse: bool = False
    batch_first: bool = False
    training: bool = False
    checkpoint: int | Literal["auto"] | None = None
    heads: int = 1
    threads: int | None = None


def checked_call(
    cell: Cell,
    x: Any,
    weights: dict[str, Any],
    init: tuple[Any, ...],
    options: Options,
    return_states: bool = False,
    e: Any = None,
) -> tuple[Call, bool]:
    """Return the call, and whether x is one unbatched sequence."""
    x = floating_array("x", x)
    if x.ndim not in (2, 3):
        layout = "(B, T, I)" if options.batch_first else "(T, B, I)"
        raise ValueError(f"x: expected shape {layout}, or (T, I) for one sequence, got {x.shape}")
    for name in ("reverse", "batch_first", "training"):
        boolean(name, getattr(options, name))
    unbatched = x.ndim == 2
    batch_first = bool(options.batch_first) and not unbatched
    x = rows(time_major(x, unbatched, batch_first))
    T, B, I = x.shape
    if options.checkpoint is not None and not options.training:
        raise ValueError("checkpoint: needs training=True; got training=False")

    parameters = checked_weights(cell, weights, I, x.dtype, size("heads", options.heads))
    H = len(parameters["W"]) // cell.G
    expect_room("x", "T, B, I, H", (T, B, I, H), T, B, I + 8 * H)
    inputs: tuple[Arrays, tuple[bool, ...]] = ((), ())
    if cell.inputs or e is not None:
        inputs = checked_inputs(cell, e, (T, B, H), x.dtype, unbatched, batch_first)
    call = Call(
        cell=cell,
        x=x,
        **parameters,
        init=tuple([checked_state(n, s, B, H, x.dtype, unbatched) for n, s in zip(cell.initial, init, strict=True)]),
        lengths=checked_lengths(options.lengths, T, B, unbatched),
        resets=checked_resets(options.resets, T, B, unbatched, batch_first),
        reverse=bool(options.reverse),
        batch_first=batch_first,
        training=bool(options.training),
        checkpoint=checked_checkpoint(options.checkpoint, T),
        return_states=bool(return_states),
        threads=checked_threads(options.threads),
        e=inputs[0],
        fixed=inputs[1],
    )
    return call, unbatched


def checked_inputs(
    cell: Cell, e: Any, sizes: tuple[int, int, int], dtype: np.dtype[Any] | None, unbatched: bool, batch_first: bool
) -> tuple[Arrays, tuple[bool, ...]]:
    """Return each extra input, in the cell's order, as (T, B, H) or (T, B, 1), and whether it had no time axis."""
    e = extras("e", e, cell.inputs)
    T, B, H = sizes
    found: list[Array] = []
    fixed = []
    for name in cell.inputs:
        a = expect_dtype(name, as_array(name, e[name]), dtype)
        layouts: dict[tuple[int, ...], bool] = {}
        for width in (H, 1):
            shape = (T, B, width)
            layouts[(T, width) if unbatched else (B, T, width) if batch_first else shape] = True
            layouts.setdefault((width,) if unbatched else (B, width), False)
        if a.shape not in layouts:
            raise ValueError(f"{name}: expected one of the shapes {', '.join(map(str, layouts))}, got {a.shape}")
        fixed.append(not layouts[a.shape])
        whole = a.reshape(1, B, -1) if fixed[-1] else time_major(a, unbatched, batch_first)
        found.append(np.broadcast_to(rows(whole), (T, B, whole.shape[-1])))
    return tuple(found), tuple(fixed)


def checked_step(
    cell: Cell, x: Any, state: dict[str, Any], weights: dict[str, Any]
) -> tuple[Array, Arrays, dict[str, Any]]:
    """Return x, the state and the weights of one step, of any dtype."""
    x = as_array("x", x)
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (B, I), got {x.shape}")
    parameters = checked_weights(cell, weights, x.shape[1], None)
    H = len(parameters["W"]) // cell.G
    before = tuple(floats(name, s, "(B, H)", (len(x), H), None) for name, s in state.items())
    return x, before, parameters


def checked_weights(
    cell: Cell, weights: dict[str, Any], I: int, dtype: np.dtype[Any] | None, heads: int = 1
) -> dict[str, Any]:
    """Return W, U, b, b_rec, p by name, absent ones None; I is that of x. H follows from U, or from W without U."""
    if I < 1:
        raise ValueError("x: expected at least 1 input (I >= 1), got 0")
    G, products, P, shapes = cell.G, len(cell.products), len(cell.parameters), cell.shapes
    W, U, b, b_rec, p = weights["W"], weights["U"], weights["b"], weights["b_rec"], weights["p"]
    expect_heads(cell, heads)
    if products:
        U = as_array("U", U)
        D = U.shape[-1] if U.ndim else 0
        H = heads * D
        if U.shape != (products * H, D) or H < 1:
            shape = f"{shapes['U'][:-1]}/heads) with heads = {heads}," if heads > 1 else f"{shapes['U']} with"
            raise ValueError(f"U: expected shape {shape} H >= 1, got {U.shape}")
    else:
        W = as_array("W", W)
        H = len(W) // G if W.ndim else 0
        if W.shape != (G * H, I) or H < 1:
            raise ValueError(f"W: expected shape {shapes['W']} with H >= 1, got {W.shape}")
        for name in ("U", "b_rec"):
            if weights[name] is not None:
                raise ValueError(f"{name}: cell {cell.name} has no product with U; expected None")
    if (p is None) != (P == 0):
        wanted = f"shape {shapes['p']} for {', '.join(cell.parameters)}" if P else f"None: cell {cell.name} has none"
        raise ValueError(f"p: expected {wanted}, got {'None' if p is None else 'an array'}")
    return {
        "W": floats("W", W, shapes["W"], (G * H, I), dtype),
        "U": None if U is None else floats("U", U, shapes["U"], U.shape, dtype),
        "b": None if b is None else floats("b", b, shapes["b"], (G * H,), dtype),
        "b_rec": None if b_rec is None else floats("b_rec", b_rec, shapes["b_rec"], (products * H,), dtype),
        "p": None if p is None else floats("p", p, shapes["p"], (P * H,), dtype),
    }


def expect_heads(cell: Cell, heads: int) -> None:
    """Raise ValueError if the cell does not support this number of heads."""
    if heads > 1 and not cell.products:
        raise ValueError(f"heads: cell {cell.name} has no product with U; expected 1, got {heads}")


def checked_checkpoint(k: Any, T: int) -> int | None:
    """Return k; "auto" balances T/k saved states against k steps recomputed at a time."""
    if k is None:
        return None
    if not isinstance(k, str):
        return min(positive("checkpoint", k), T) or 1
    if k != "auto":
        raise ValueError(f'checkpoint: expected a positive integer or "auto", got {k!r}')
    return math.isqrt(T) or 1


def checked_threads(threads: Any) -> int:
    return min(positive("threads", threads), MANY_THREADS)


def checked_state(name: str, s: Any, B: int, H: int, dtype: np.dtype[Any], unbatched: bool) -> Array | None:
    """Return an initial state, or the gradient of a final one, as (B, H); an unbatched call gives (H,)."""
    if s is None:
        return None
    return floats(name, s, "(H,)", (H,), dtype)[None] if unbatched else floats(name, s, "(B, H)", (B, H), dtype)


def checked_lengths(lengths: Any, T: int, B: int, unbatched: bool, name: str = "lengths") -> Array | None:
    if lengths is None:
        return None
    a = as_array(name, lengths, sequence=True)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{name}: expected integers, got {describe(a.dtype)}")
    if unbatched and a.ndim == 0:
        a = a[None]
    expect_shape(name, a, "(B,)", (B,))
    if B and not (0 <= a.min() and a.max() <= T):
        b = int(np.flatnonzero((a < 0) | (a > T))[0])
        raise ValueError(f"{name}: expected each in 0..T = 0..{T}, got {a[b]} for sequence {b}")
    return a.astype(np.int64)


def checked_resets(resets: Any, T: int, B: int, unbatched: bool, batch_first: bool) -> Array | None:
    """Return resets as (T, B), from (T,) in an unbatched call or (B, T) in a batch-first one."""
    if resets is None:
        return None
    a = as_array("resets", resets, sequence=True)
    if a.dtype != np.bool_ and a.size:
        raise TypeError(f"resets: expected booleans, got {describe(a.dtype)}")
    expect_shape("resets", a, *every_step(T, B, (), unbatched, batch_first))
    return np.ascontiguousarray(time_major(a.astype(np.bool_, copy=False), unbatched, batch_first))


def checked_gradient(name: str, d: Any, call: Call, unbatched: bool) -> Array | None:
    """Return the gradient of an output at every step, as (T, B, H)."""
    if d is None:
        return None
    T, B, _, H = call.sizes
    a = expect_dtype(name, as_array(name, d), call.x.dtype)
    expect_shape(name, a, *every_step(T, B, (H,), unbatched, call.batch_first))
    return rows(time_major(a, unbatched, call.batch_first))


def every_step(
    T: int, B: int, rest: tuple[int, ...], unbatched: bool, batch_first: bool
) -> tuple[str, tuple[int, ...]]:
    """Return the meaning and the shape of an array with an entry for every step of every sequence."""
    tail = ", H" if rest else ""
    if unbatched:
        return f"(T{tail or ','})", (T, *rest)
    return (f"(B, T{tail})", (B, T, *rest)) if batch_first else (f"(T, B{tail})", (T, B, *rest))


def as_array(name: str, value: Any, sequence: bool = False) -> Array:
    """Return a NumPy array that shares the memory of `value`; `sequence` also accepts a number, list or tuple."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array has values missing; fill them first")
    try:
        if isinstance(value, np.ndarray):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        if sequence and (isinstance(value, Sequence) or np.isscalar(value)):
            return np.asarray(value)
        return np.asarray(memoryview(value))
    except (TypeError, ValueError, AttributeError, RuntimeError, BufferError) as error:
        kinds = "an array or a sequence" if sequence else "an array"
        why = "" if isinstance(error, TypeError) else f" ({error})"
        if isinstance(value, list) and not sequence:
            why = "; convert it with np.asarray(..., np.float32), indices with np.asarray(...)"
        raise TypeError(f"{name}: expected {kinds}, got {type(value).__name__}{why}") from error


def floats(
    name: str,
    value: Any,
    meaning: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | None,
    whose: str = "the same as x",
) -> Array:
    """Return a contiguous, aligned array of this shape, and of this dtype unless it is None."""
    a = expect_shape(name, expect_dtype(name, as_array(name, value), dtype, whose), meaning, shape)
    flags = a.flags
    return a if flags.c_contiguous and flags.aligned else np.require(a, requirements=["C", "A"])


def stepped(name: str, a: Any, shape: tuple[int, ...], dtype: Any, writable: bool) -> Array:
    """Return an array that a stream's step reads or writes; (features,) is accepted for (1, features)."""
    a = expect_dtype(name, as_array(name, a), np.dtype(dtype), "the stream's")
    short = len(shape) == 2 and shape[0] == 1 and a.shape == shape[1:]
    if not short:
        expect_shape(name, a, "(B, I)" if name == "x" else "(B, H)" if name == "out" else "(L, B, H)", shape)
    if not writable:
        return rows(a)
    if not (a.flags.writeable and a.flags.aligned and rows(a) is a) or (len(shape) == 3 and not a.flags.c_contiguous):
        raise ValueError(f"{name}: expected a writable, contiguous array")
    if a.ndim == 2 and len(a) > 1 and abs(a.strides[0]) < a.shape[1] * a.itemsize:
        raise ValueError(f"{name}: expected rows that do not overlap in memory, got strides {a.strides}")
    return a


def stepped_state(state: Any, shapes: tuple[tuple[int, ...], ...], dtype: Any) -> Arrays:
    """Return the states that a step uses instead of the stream's own: one (L, B, H) array per state."""
    number = len(shapes)
    if not isinstance(state, tuple | list) and not (isinstance(state, np.ndarray) and state.ndim):
        raise TypeError(f"state: expected a tuple of {number} array(s), got {type(state).__name__}")
    if len(state) != number:
        raise ValueError(f"state: expected {number} array(s), got {len(state)}")
    arrays = tuple([stepped("state", s, shape, dtype, True) for s, shape in zip(state, shapes, strict=True)])
    if any(np.may_share_memory(a, b) for a, b in itertools.combinations(arrays, 2)):
        raise ValueError("state: expected arrays that do not share memory; copy them")
    return arrays


def stepped_numbers(name: str, x: Any, n: int, rows: int) -> Array:
    """Return row indices of a table, (n,) and contiguous; a scalar is accepted for (1,)."""
    a = as_array(name, x, sequence=True)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {describe(a.dtype)}")
    if not (n == 1 and a.ndim == 0):
        expect_shape(name, a, "(B,)", (n,))
    return in_table(name, a, rows).astype(NUMBER)


def in_table(name: str, a: Array, rows: int) -> Array:
    """Return the row indices; raise ValueError if one is out of range."""
    if a.size and not (0 <= a.min() and a.max() < rows):
        raise ValueError(f"{name}: expected each in 0..{rows - 1}, got {a[(a < 0) | (a >= rows)].flat[0]}")
    return a


def stepped_reset(name: str, reset: Any, n: int) -> Array:
    """Return contiguous booleans (n,)."""
    a = as_array(name, reset, sequence=True)
    if a.dtype != np.bool_:
        raise TypeError(f"{name}: expected booleans, got {describe(a.dtype)}")
    return np.ascontiguousarray(expect_shape(name, a, "(B,)", (n,)))


def rows(a: Array) -> Array:
    """Return the array itself if its last axis is contiguous and its elements are aligned, else a copy."""
    contiguous = a.shape[-1] == 1 or a.strides[-1] == a.itemsize or not a.size
    return a if contiguous and a.flags.aligned else a.copy(order="C")


def time_major(a: Array, unbatched: bool, batch_first: bool) -> Array:
    """Return a (T, B, ...) view."""
    if unbatched:
        return a[:, None]
    return a.swapaxes(0, 1) if batch_first else a


def expect_dtype(name: str, a: Array, dtype: np.dtype[Any] | None, whose: str = "the same as x") -> Array:
    if dtype is not None and a.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, {whose}, got {describe(a.dtype)}")
    return a


def expect_shape(name: str, a: Array, meaning: str, shape: tuple[int, ...]) -> Array:
    if a.shape != shape:
        raise ValueError(f"{name}: expected shape {meaning} = {shape}, got {a.shape}")
    return a


def expect_mapping(name: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping from names to arrays, got {type(given).__name__}")


def expect_names(
    name: str, given: Iterable[Any], expected: Iterable[str], error: type[KeyError | ValueError] = KeyError
) -> None:
    """Raise unless the names given are exactly those expected, in any order."""
    has, wants = set(given), set(expected)
    for problem, names in (("missing", wants - has), ("unexpected", has - wants)):
        if names:
            raise error(f"{name}: {problem} {', '.join(sorted(map(repr, names)))}")


def extras(name: str, e: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """Return the extra inputs of cells by name, which must be exactly these; None if there are none."""
    e = {} if e is None else e
    expect_mapping(name, e)
    expect_names(name, e, names, ValueError)
    found: Mapping[str, Any] = e
    return found


def expect_room(name: str, meaning: str, sizes: tuple[int, ...], *factors: int) -> None:
    """Raise ValueError if the product of the factors (0 counts as 1) exceeds the address space, not free memory."""
    if math.prod(max(n, 1) for n in factors) > sys.maxsize // 8:
        raise ValueError(f"{name}: {meaning} = {', '.join(map(str, sizes))} are more than memory can hold")


def floating(dtype: Any) -> np.dtype[Any]:
    """Return float32 or float64 from any NumPy spelling except None, which NumPy takes as float64."""
    if dtype is None:
        raise TypeError("dtype: expected float32 or float64, got None")
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}") from error
    if found not in DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, got {describe(found)}")
    return found


def floating_array(name: str, value: Any) -> Array:
    """Return an array of float32 or float64."""
    a = as_array(name, value)
    if a.dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype float32 or float64 in native byte order, got {describe(a.dtype)}")
    return a


def describe(dtype: np.dtype[Any]) -> str:
    return str(dtype) if dtype.isnative else f"{dtype} (byte-swapped)"


def boolean(name: str, value: Any) -> None:
    if not isinstance(value, BOOLEANS):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def number(name: str, value: Any, expected: str = "a number") -> float:
    """Return a Python float."""
    if isinstance(value, BOOLEANS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    return float(value)


def finite(name: str, value: Any, least: float = -math.inf, above: float = -math.inf) -> float:
    """Return a finite Python float, at least `least` and above `above`."""
    bound = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
    found = number(name, value, f"a finite number{bound}")
    if not (math.isfinite(found) and found >= least and found > above):
        raise ValueError(f"{name}: expected a finite number{bound}, got {found}")
    return found


def fraction(name: str, value: Any) -> float:
    found = number(name, value)
    if not 0 <= found < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {found}")
    return found


def among(value: Any, names: Iterable[str]) -> bool:
    """Return whether value is one of these names; safe for arrays, which compare elementwise."""
    return isinstance(value, str) and value in names


def named_cell(value: Any) -> Cell:
    if not among(value, CELLS):
        raise ValueError(f"cell: expected one of {', '.join(map(repr, CELLS))}, got {value!r:.80}")
    return CELLS[value]


def activation(name: str, value: Any, known: Iterable[str]) -> str:
    """Return a known activation's name; "linear" is an alias of "identity"."""
    chosen = "identity" if among(value, ("linear",)) else value
    if not among(chosen, known):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r:.80}")
    return str(chosen)


def by_name(name: str, value: Any, kind: type[Any], table: Mapping[str, Callable[[], Named]]) -> Named:
    """Return `value` if it is an instance of `kind`, else a new instance of that name."""
    if isinstance(value, kind):
        instance: Named = value
        return instance
    expected = f"a {kind.__name__} or one of {', '.join(map(repr, table))}"
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if value not in table:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return table[value]()


def count(name: str, value: Any) -> int:
    found = integer(name, value, "an integer of at least 0")
    if found < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {found}")
    return found


def positive(name: str, value: Any) -> int:
    found = integer(name, value, "a positive integer")
    if found < 1:
        raise ValueError(f"{name}: expected a positive integer, got {found}")
    return found


def integer(name: str, value: Any, expected: str) -> int:
    """Return a Python int from any integer, including a 0-d array."""
    if not isinstance(value, BOOLEANS):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected {expected}, got {value!r}")


def size(name: str, value: Any) -> int:
    """Return a positive int that can be the size of something in memory."""
    found = positive(name, value)
    if found > sys.maxsize:
        raise ValueError(f"{name}: {found} are more than memory can hold")
    return found


def generator(rng: Any) -> np.random.Generator:
    """Return a generator from anything that `numpy.random.default_rng` accepts."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng: expected a non-negative integer or a Generator, got {rng!r} ({error})") from error
