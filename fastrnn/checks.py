"""Validate arguments: numbers, arrays, and what runs along a sequence.

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
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastrnn.cells import CELLS, Cell
from fastrnn.types import Array, Arrays

BOOLEANS = (bool, np.bool_)

#: More threads than any machine has; fits in a C int.
MANY_THREADS = 2**16

#: The dtype in which the binding takes row indices of a table.
NUMBER = np.dtype(np.intp)

Found = TypeVar("Found")

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class titled:
    """Begin the messages of errors in a ``with`` block with a title, such as the name of a layer or an argument."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for own in (TypeError, ValueError, MemoryError):
            if isinstance(error, own):
                raise own(f"{self._title}: {error}") from error


class Layout(NamedTuple):
    """The axes of the caller's arrays; those of a `Call` are time-major, (T, B, ...)."""

    unbatched: bool  #: one sequence, (T, ...)
    batch_first: bool  #: (B, T, ...), unless unbatched

    def time_major(self, a: Array) -> Array:
        """Return a (T, B, ...) view of an array in this layout."""
        if self.unbatched:
            return a[:, None]
        return a.swapaxes(0, 1) if self.batch_first else a

    def restore(self, a: Array) -> Array:
        """Return a view in this layout of a (T, B, ...) array."""
        if self.unbatched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self.batch_first else a

    def restore_state(self, a: Array) -> Array:
        """Return a view in this layout of a (B, ...) array."""
        return a[0] if self.unbatched else a

    def every_step(self, T: int, B: int, *H: int) -> tuple[str, tuple[int, ...]]:
        """Return the meaning and the shape of an array with an entry, or H, for every step of every sequence."""
        tail = ", H" if H else ""
        if self.unbatched:
            return f"(T{tail or ','})", (T, *H)
        return (f"(B, T{tail})", (B, T, *H)) if self.batch_first else (f"(T, B{tail})", (T, B, *H))

    def input_shapes(self, T: int, B: int, H: int) -> dict[tuple[int, ...], bool]:
        """Return the shapes that an extra input may have, and whether it is then the same for every step."""
        shapes: dict[tuple[int, ...], bool] = {}
        for width in (H, 1):
            shapes[self.every_step(T, B, width)[1]] = False
            shapes[(width,) if self.unbatched else (B, width)] = True
        return shapes


UNBATCHED, TIME_MAJOR, BATCH_FIRST = Layout(True, False), Layout(False, False), Layout(False, True)


def checked_x(x: Array, batch_first: bool, I: int | None = None) -> tuple[Array, Layout]:
    """Return x as (T, B, I), and the layout in which it was given; I is the number of inputs, if it is known."""
    if x.ndim not in (2, 3) or (I is not None and x.shape[-1] != I):
        expected = "(B, T, I)" if batch_first else "(T, B, I)"
        size = "" if I is None else f", with I = {I}"
        raise ValueError(f"x: expected shape {expected}, or (T, I) for one sequence{size}, got {x.shape}")
    layout = UNBATCHED if x.ndim == 2 else BATCH_FIRST if batch_first else TIME_MAJOR
    return rows(layout.time_major(x)), layout


def checked_inputs(
    cell: Cell, e: Any, sizes: tuple[int, int, int], dtype: np.dtype[Any] | None, layout: Layout
) -> tuple[Arrays, tuple[bool, ...]]:
    """Return each extra input, in the cell's order, as (T, B, H) or (T, B, 1), and whether it had no time axis."""
    e = extras("e", e, cell.inputs)
    T, B, H = sizes
    found: list[Array] = []
    fixed = []
    for name in cell.inputs:
        a = expect_dtype(name, as_array(name, e[name]), dtype)
        shapes = layout.input_shapes(T, B, H)
        if a.shape not in shapes:
            expected = ", ".join(map(str, shapes))
            raise ValueError(f"{name}: expected one of the shapes {expected}, got {a.shape}, for cell {cell.name}")
        fixed.append(shapes[a.shape])
        whole = a.reshape(1, B, -1) if fixed[-1] else layout.time_major(a)
        found.append(np.broadcast_to(rows(whole), (T, B, whole.shape[-1])))
    return tuple(found), tuple(fixed)


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


def checked_state(name: str, s: Any, B: int, H: int, dtype: np.dtype[Any], layout: Layout) -> Array | None:
    """Return an initial state, or the gradient of a final one, as (B, H); an unbatched call gives (H,)."""
    if s is None:
        return None
    return floats(name, s, "(H,)", (H,), dtype)[None] if layout.unbatched else floats(name, s, "(B, H)", (B, H), dtype)


def checked_lengths(lengths: Any, T: int, B: int, layout: Layout = TIME_MAJOR, name: str = "lengths") -> Array | None:
    if lengths is None:
        return None
    a = as_array(name, lengths, sequence=True)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{name}: expected integers, got {describe(a.dtype)}")
    if layout.unbatched and a.ndim == 0:
        a = a[None]
    expect_shape(name, a, "(B,)", (B,))
    if B and not (0 <= a.min() and a.max() <= T):
        b = int(np.flatnonzero((a < 0) | (a > T))[0])
        raise ValueError(f"{name}: expected each in 0..T = 0..{T}, got {a[b]} for sequence {b}")
    return a.astype(np.int64)


def checked_resets(resets: Any, T: int, B: int, layout: Layout) -> Array | None:
    """Return resets as (T, B)."""
    if resets is None:
        return None
    a = as_array("resets", resets, sequence=True)
    if a.dtype != np.bool_ and a.size:
        raise TypeError(f"resets: expected booleans, got {describe(a.dtype)}")
    expect_shape("resets", a, *layout.every_step(T, B))
    return np.ascontiguousarray(layout.time_major(a.astype(np.bool_, copy=False)))


def checked_gradient(name: str, d: Any, T: int, B: int, H: int, dtype: np.dtype[Any], layout: Layout) -> Array | None:
    """Return the gradient of an output at every step, as (T, B, H)."""
    if d is None:
        return None
    a = expect_dtype(name, as_array(name, d), dtype)
    return rows(layout.time_major(expect_shape(name, a, *layout.every_step(T, B, H))))


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
            prefix = prefix_of(names, has) if problem == "missing" else ""
            hint = f"; names have the prefix {prefix!r}: pass those that start with it, without it" if prefix else ""
            raise error(f"{name}: {problem} {', '.join(sorted(map(repr, names)))}{hint}")


def prefix_of(names: Iterable[str], given: Iterable[Any]) -> str:
    """Return the prefix with which one of these names is given, as in the state_dict of a larger model, or ""."""
    ends = tuple([f".{name}" for name in names])
    found = next((key for key in sorted(map(str, given)) if key.endswith(ends)), "")
    return next((found.removesuffix(end[1:]) for end in ends if found.endswith(end)), "")


def extras(name: str, e: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """Return the extra inputs of cells by name, which must be exactly these; None if there are none."""
    e = {} if e is None else e
    expect_mapping(name, e)
    expect_names(name, e, names, ValueError)
    found: Mapping[str, Any] = e
    return found


def expect_room(name: str, meaning: str, sizes: tuple[int, ...], *factors: int) -> None:
    """Raise ValueError if the product of the factors (0 counts as 1) exceeds the address space, not free memory."""
    if math.prod([n or 1 for n in factors]) > sys.maxsize // 8:
        raise ValueError(f"{name}: {meaning} = {', '.join(map(str, sizes))} is more than memory can hold")


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


def by_name(name: str, value: Any, kind: type[Any], table: Mapping[str, Callable[[], Found]]) -> Found:
    """Return `value` if it is an instance of `kind`, else a new instance of that name."""
    if isinstance(value, kind):
        instance: Found = value
        return instance
    expected = f"an instance of {kind.__name__} or one of {', '.join(map(repr, table))}"
    if not among(value, table):
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name}: expected {expected}, got {value!r}")
    return table[value]()


def count(name: str, value: Any) -> int:
    return integer(name, value, "an integer of at least 0", 0)


def positive(name: str, value: Any) -> int:
    return integer(name, value, "a positive integer", 1)


def integer(name: str, value: Any, expected: str, least: float = -math.inf) -> int:
    """Return a Python int from any integer of at least `least`, including a 0-d array."""
    try:
        found = None if isinstance(value, BOOLEANS) else operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if found < least:
        raise ValueError(f"{name}: expected {expected}, got {found}")
    return found


def size(name: str, value: Any) -> int:
    """Return a positive int that can be the size of something in memory."""
    found = positive(name, value)
    if found > sys.maxsize:
        raise ValueError(f"{name}: {found} is more than memory can hold")
    return found


def generator(rng: Any) -> np.random.Generator:
    """Return a generator from anything that `numpy.random.default_rng` accepts."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng: expected a non-negative integer or a Generator, got {rng!r} ({error})") from error
