"""The contract between the public functions and the backends.

Data flows one way: `functional` takes the user's arguments, `run` turns them into a `Call`, a backend computes it.
A backend may rely on everything stated here and does not check it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastrnn import memory
from fastrnn.cells import Cell


class Call(NamedTuple):
    """One checked recurrence: T steps, B sequences, I inputs, H hidden units, G gates, one dtype throughout.

    Every array is aligned, in native byte order, and shares no memory with any output. `x` and `resets` have a
    contiguous last axis and any strides in the others (a batch-first input is a transposed view). All other arrays are
    C-contiguous.

    A ragged call has one axis, N, in place of T and B in every array: sequences are sorted by descending length, and N
    runs over the valid steps only: step 0 of all sequences, then step 1, and so on.
    """

    cell: Cell
    x: np.ndarray  #: (T, B, I); (N, I) makes the call ragged
    W: np.ndarray  #: (G*H, I)
    init: tuple[np.ndarray | None, ...]  #: one (B, H) per state of the cell; None is zeros
    U: np.ndarray | None = None  #: (products*H, H / heads), with R (products*H, P); None if the cell has no product
    b: np.ndarray | None = None  #: (G*H,)
    b_rec: np.ndarray | None = None  #: (products*H,)
    p: np.ndarray | None = None  #: (parameters*H,), if the cell has any
    R: np.ndarray | None = None  #: (P, H) projects the cell's first state, and so y, to P units
    lengths: np.ndarray | None = None  #: (B,) int64, each in 0..T
    resets: np.ndarray | None = None  #: (T, B) bool
    reverse: bool = False
    batch_first: bool = False  #: y, c and dx are (B, T, ...) in memory; shapes here stay time-major
    training: bool = False
    checkpoint: int | None = None  #: save the state of every k-th step only; None saves all that backward needs
    return_states: bool = False  #: return all states of every step, not only the first
    threads: int = 1  #: an upper bound
    packed: Any = None  #: the weights packed by the backend's own `pack`; forward may use it in their place
    y: np.ndarray | None = None  #: (T, B, H), last axis contiguous: where to write y; None is a new array
    weight_dtype: str | None = None  #: W, U and R hold only values that it can, so `packed` may store them as such
    reads_previous: bool = False  #: in a list of calls: x is the previous call's y, with the same steps and lengths
    clean: bool = False  #: the saved data must have no undefined bytes, and exactly the size that `room` returns
    e: tuple[np.ndarray, ...] = ()  #: (T, B, H) or (T, B, 1) for each extra input of the cell, through any strides
    fixed: tuple[bool, ...] = ()  #: whether each extra input is the same for all steps

    def arrays(self) -> tuple[np.ndarray | None, ...]:
        """The caller's arrays that backward reads, in the order of the cell's `arguments`."""
        return (self.x, self.W, self.U, self.b, self.b_rec, self.p, self.R, *self.init, self.resets, *self.e)

    def arguments(self) -> dict[str, np.ndarray | None]:
        """Return these arrays by the names of the caller's arguments."""
        return dict(zip(self.cell.arguments, self.arrays(), strict=True))

    @property
    def weights(self) -> tuple[Any, ...]:
        """The weights in the order of `Cell.weights`."""
        return self.W, self.U, self.b, self.b_rec, self.p, self.R

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, B, I, H."""
        shape, H = self.x.shape, self.W.shape[0] // self.cell.G
        if len(shape) == 3:
            return *shape, H
        assert self.lengths is not None
        return int(self.lengths[0]) if len(self.lengths) else 0, len(self.lengths), shape[1], H

    @property
    def ragged(self) -> bool:
        return self.x.ndim == 2

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each state: H, or P for a projected first state."""
        H = self.W.shape[0] // self.cell.G
        return (H,) * len(self.init) if self.R is None else (self.R.shape[0], *(H,) * (len(self.init) - 1))

    def output(self) -> np.ndarray:
        """Return the array for y, a new one if none was given."""
        return self.empty(self.widths[0]) if self.y is None else self.y

    def empty(self, features: int) -> np.ndarray:
        """Return an uninitialised (T, B, features) output in the caller's memory order."""
        return empty(self.x, features, self.batch_first)


def empty(x: np.ndarray, features: int, batch_first: bool) -> np.ndarray:
    """Return an empty (T, B, features) array, in memory (B, T, features) if `batch_first`; (N, features) if x is."""
    if batch_first:
        T, B, _ = x.shape
        return memory.empty((B, T, features), x.dtype).transpose(1, 0, 2)
    return memory.empty((*x.shape[:-1], features), x.dtype)


class DenseCall(NamedTuple):
    """A checked rowwise operation: y = f(x W' + b), or f(x) without W. One dtype throughout."""

    function: str  #: f, of `functions.FUNCTIONS`, or "normalize": `functions.normalized`, times scale plus shift
    x: np.ndarray  #: (n, I), last axis contiguous
    W: np.ndarray | None = None  #: (N, I), C-contiguous
    b: np.ndarray | None = None  #: (N,)
    threads: int = 1  #: an upper bound
    packed: Any = None  #: W and b packed by the backend's own `pack_dense`; steps use it in their place
    epsilon: float = 0.0  #: of "normalize", and so are:
    scale: np.ndarray | None = None  #: (N,), or None for ones
    shift: np.ndarray | None = None  #: (N,), or None for zeros

    @property
    def features(self) -> int:
        """N, the features of y."""
        width: int = self.x.shape[1] if self.W is None else self.W.shape[0]
        return width


#: A stage of a step: a stack of one-step calls, each reading the y of the previous one, or a rowwise operation.
Stage = list[Call] | DenseCall


class ForwardResult(NamedTuple):
    """Result of a backend's forward."""

    y: np.ndarray  #: (T, B, H), 0 past a sequence's length
    final: tuple[np.ndarray, ...]  #: one (B, H) per state
    states: tuple[np.ndarray | None, ...]  #: (T, B, H) for each state but the first; None without `return_states`
    saved: Any  #: data for its own backward; None unless `training`


class BackwardCall(NamedTuple):
    """Arguments of one backward call."""

    call: Call  #: with `training`
    saved: Any  #: the data saved by its forward
    dy: np.ndarray | None  #: (T, B, H), last axis contiguous
    dfinal: tuple[np.ndarray | None, ...]  #: one (B, H) per state
    dstates: tuple[np.ndarray | None, ...] = ()  #: (T, B, H) for each state but the first, last axis contiguous; or ()


class Gradients(NamedTuple):
    """Result of a backend's backward; None for arguments the call did not have."""

    dx: np.ndarray  #: (T, B, I)
    dW: np.ndarray
    dU: np.ndarray | None
    db: np.ndarray | None
    db_rec: np.ndarray | None
    dp: np.ndarray | None
    dinit: tuple[np.ndarray | None, ...]  #: one (B, H) per state
    de: tuple[np.ndarray, ...] = ()  #: (T, B, H) for each extra input, 0 past a length
    dR: np.ndarray | None = None


class Stepper(Protocol):
    """Runs one step at a time; its `step` is that of `layers.Stream`."""

    def step(self, x: Any, out: Any = None, state: Any = None, reset: Any = None) -> np.ndarray: ...


class Sessions(Protocol):
    """Runs a step of any of many sequences together; see `layers.Pool`."""

    def step(self, slots: list[int], x: Any, out: Any = None) -> np.ndarray:
        """Return y (n, N) for x (n, I). `slots` are distinct places in the stores, not in use by any other call."""
        ...


class Prepared(Protocol):
    """A stack of layers for inputs of one shape, described to the kernels once."""

    def __call__(self, x: Any, state: Any = None) -> tuple[np.ndarray, tuple[np.ndarray, ...]] | None:
        """Return y, laid out like x, and (L, B, H) for each state; None if x or state need the general path."""
        ...


class Backend(Protocol):
    """A module with these functions and `name` is a backend; see `backends`."""

    name: str

    def forward(self, calls: Sequence[Call]) -> list[ForwardResult]:
        """Run calls of one dtype, each after those whose y it reads."""
        ...

    def layout(self) -> str:
        """Return the layout of packed weights, such as the name of an instruction set; `pack` is specific to it."""
        ...

    def pack(self, call: Call, layout: str, packed: Any = None) -> Any:
        """Return the weights of `call` packed for forward, or None if not needed; of x only the shape is used.

        `packed`, if given, is the result of an earlier `pack` of this layer; it is overwritten, which updates streams.
        """
        ...

    def dense(self, call: DenseCall) -> np.ndarray:
        """Return y (n, N)."""
        ...

    def pack_dense(self, call: DenseCall, layout: str, packed: Any = None) -> Any:
        """Return W and b packed for steps, like `pack`."""
        ...

    def stepper(
        self,
        stages: Sequence[Stage],
        table: np.ndarray | None,
        states: Sequence[np.ndarray],
        B: int,
        flat: Callable[[Any], Any],
    ) -> Stepper:
        """Return a stepper for B rows through packed stages, each reading the output of the previous one.

        With a table (n, E), x holds row indices. `states` are (L, B, width) for each state of each stack of L calls,
        and are updated by every step; `flat` converts a caller's state to such a sequence.
        """
        ...

    def sessions(
        self, stages: Sequence[Stage], table: np.ndarray | None, stores: Sequence[np.ndarray], capacity: int
    ) -> Sessions:
        """Like `stepper`, with stages for one row and `stores` (capacity, L, 1, width) for each state of a stack."""
        ...

    def prepared(
        self, calls: Sequence[Call], x_shape: tuple[int, ...], batch_first: bool, every_step: bool
    ) -> Prepared:
        """Prepare a stack of packed calls for x of this shape.

        x and y are in the caller's layout; unless `every_step`, y is only the h of the last step.
        """
        ...

    def backward(self, calls: Sequence[BackwardCall]) -> list[Gradients]:
        """Return every gradient of calls of one dtype, none of which reads another's output."""
        ...

    def to_bytes(self, saved: Any) -> np.ndarray:
        """Return a forward's saved data as bytes, which a framework may keep and copy."""
        ...

    def room(self, cell: Cell, dtype: np.dtype, H: int, P: int, rows: Any, B: Any) -> Any:
        """Return the bytes that a `clean` call saves (P is 0 without R), or None if known only after it ran."""
        ...

    def from_bytes(self, memory: np.ndarray, layout: str) -> Any:
        """Invert `to_bytes`, for backward; `layout` is the one in which the forward ran."""
        ...
