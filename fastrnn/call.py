"""The contract between the public functions and the backends.

Data flows one way: `functional` takes what the user gave, `checks` turns it into a `Call`, a backend computes it.
A backend may rely on everything said here and need not check anything again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastrnn.cells import Cell


class Call(NamedTuple):
    """One checked recurrence: T steps, B sequences, I inputs, H hidden units, G gates, one dtype throughout.

    Every array is aligned, in native byte order and free of shared memory with any output. The last axis of `x`
    and of `resets` may be followed through any strides by the others (a batch-first input is a transposed view);
    the last axis itself is contiguous. All other arrays are C-contiguous.

    A ragged call has one axis, N, in the place of T and B of every array: the sequences stand in the order of falling
    lengths, and N counts the steps that there are, those of all sequences at step 0, those at step 1, and so on.
    """

    cell: Cell
    x: np.ndarray  #: (T, B, I); (N, I) makes the call ragged
    W: np.ndarray  #: (G*H, I)
    init: tuple[np.ndarray | None, ...]  #: one (B, H) per state of the cell; None is zeros
    U: np.ndarray | None = None  #: (products*H, H / heads), with R (products*H, P); None for a cell without a product
    b: np.ndarray | None = None  #: (G*H,)
    b_rec: np.ndarray | None = None  #: (products*H,)
    p: np.ndarray | None = None  #: (parameters*H,), of a cell that has any
    R: np.ndarray | None = None  #: (P, H): y and the first state are what it makes of the cell's, P wide everywhere
    lengths: np.ndarray | None = None  #: (B,) int64, each in 0..T
    resets: np.ndarray | None = None  #: (T, B) bool
    reverse: bool = False
    batch_first: bool = False  #: lay y, c and dx out as (B, T, ...) in memory; shapes here stay time-major
    training: bool = False
    checkpoint: int | None = None  #: keep the state of every k-th step only; None keeps what backward needs of each
    return_states: bool = False  #: of every step, all states and not the first alone
    threads: int = 1  #: an upper bound
    packed: Any = None  #: what the backend's own `pack` made of the weights; forward may use it in their place
    y: np.ndarray | None = None  #: (T, B, H), last axis contiguous: where to write y; None is a new array
    bf16: bool = False  #: W and U hold bfloat16 values only, so that `packed` may keep them as such
    follows: bool = False  #: in a list of calls: x is the y of the call before, of the same steps and lengths
    clean: bool = False  #: no byte of what is saved may be left undefined, and there are as many as `room` says
    e: tuple[np.ndarray, ...] = ()  #: (T, B, H) or (T, B, 1) for each extra input of the cell, through any strides
    fixed: tuple[bool, ...] = ()  #: whether each extra input is one for all steps

    def arrays(self) -> tuple[np.ndarray | None, ...]:
        """What backward reads of the caller's arrays, in the order of the cell's `arguments`."""
        return (self.x, *self.weights, *self.init, self.resets, *self.e)

    def arguments(self) -> dict[str, np.ndarray | None]:
        """The same by the caller's names for them."""
        return dict(zip(self.cell.arguments, self.arrays(), strict=True))

    @property
    def weights(self) -> tuple[Any, ...]:
        """What the cell's step takes, in the order of `Cell.weights`."""
        return self.W, self.U, self.b, self.b_rec, self.p, self.R

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, B, I, H."""
        x, H = self.x, self.W.shape[0] // self.cell.G
        if x.ndim == 3:
            return *x.shape, H
        assert self.lengths is not None
        return int(self.lengths[0]) if len(self.lengths) else 0, len(self.lengths), x.shape[1], H

    @property
    def ragged(self) -> bool:
        return self.x.ndim == 2

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each state: H, but of a first one that is projected P."""
        H = self.W.shape[0] // self.cell.G
        return (H,) * len(self.init) if self.R is None else (self.R.shape[0], *(H,) * (len(self.init) - 1))

    def output(self) -> np.ndarray:
        """Where y goes."""
        return self.empty(self.widths[0]) if self.y is None else self.y

    def empty(self, features: int) -> np.ndarray:
        """An uninitialised (T, B, features) output in the caller's memory order."""
        return empty(self.x, features, self.batch_first)


def empty(x: np.ndarray, features: int, batch_first: bool) -> np.ndarray:
    """An uninitialised (T, B, features) array, in memory (B, T, features) if `batch_first`; (N, features) if x is."""
    if batch_first:
        T, B, _ = x.shape
        return np.empty((B, T, features), x.dtype).transpose(1, 0, 2)
    return np.empty((*x.shape[:-1], features), x.dtype)


class DenseCall(NamedTuple):
    """What works on each row by itself: y = f(x W' + b), or f(x) without W. Checked, and of one dtype throughout."""

    function: str  #: f, of `functions.FUNCTIONS`
    x: np.ndarray  #: (n, I), last axis contiguous
    W: np.ndarray | None = None  #: (N, I), C-contiguous
    b: np.ndarray | None = None  #: (N,)
    threads: int = 1  #: an upper bound
    packed: Any = None  #: what the backend's own `pack_dense` made of W and b; steps use it in their place

    @property
    def features(self) -> int:
        """N, those of y."""
        width: int = self.x.shape[1] if self.W is None else self.W.shape[0]
        return width


#: A part of a step: a stack of calls of one step each, each reading the y of the one before, or what works on rows.
Stage = list[Call] | DenseCall


class Forward(NamedTuple):
    """What a backend's forward returns."""

    y: np.ndarray  #: (T, B, H), 0 past a sequence's length
    final: tuple[np.ndarray, ...]  #: one (B, H) per state
    states: tuple[np.ndarray | None, ...]  #: (T, B, H) for each state but the first; None without `return_states`
    saved: Any  #: what its own backward needs, None unless `training`


class Backward(NamedTuple):
    """One call's way back."""

    call: Call  #: with `training`
    saved: Any  #: what its forward left
    dy: np.ndarray | None  #: (T, B, H), last axis contiguous
    dfinal: tuple[np.ndarray | None, ...]  #: one (B, H) per state
    dstates: tuple[np.ndarray | None, ...] = ()  #: (T, B, H) for each state but the first, last axis contiguous; or ()


class Gradients(NamedTuple):
    """What a backend's backward returns; None for what the call did not have."""

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
    """One step after another; see `layers.Stream`, whose `step` this is."""

    def step(self, x: Any, out: Any = None, state: Any = None, reset: Any = None) -> np.ndarray: ...


class Sessions(Protocol):
    """Steps of any of many sequences together; see `layers.Pool`."""

    def step(self, slots: list[int], x: Any, out: Any = None) -> np.ndarray:
        """y (n, N) of x (n, I): `slots` are the sequences' places in the stores, each once, and no other call's."""
        ...


class Prepared(Protocol):
    """A stack of layers for inputs of one shape, described to the kernels once."""

    def __call__(self, x: Any, state: Any = None) -> tuple[np.ndarray, tuple[np.ndarray, ...]] | None:
        """y, laid out like x, and (L, B, H) for each state; None for what the general way has to look at."""
        ...


class Backend(Protocol):
    """A module with these functions and `name` is a backend; see `backends`."""

    name: str

    def forward(self, calls: Sequence[Call]) -> list[Forward]:
        """Run the calls of one dtype, each after those whose y it reads."""
        ...

    def layout(self) -> str:
        """What `pack` makes is for this layout alone: the name of an instruction set, say."""
        ...

    def pack(self, call: Call, layout: str, packed: Any = None) -> Any:
        """The weights of `call`, of whose x only the shape matters, as forward likes them best; None if as they are.

        `packed`, if given, is what an earlier `pack` of this layer returned: it is filled anew, and streams follow.
        """
        ...

    def dense(self, call: DenseCall) -> np.ndarray:
        """y (n, N)."""
        ...

    def pack_dense(self, call: DenseCall, layout: str, packed: Any = None) -> Any:
        """W and b for steps, as `pack` has it."""
        ...

    def stepper(
        self,
        stages: Sequence[Stage],
        table: np.ndarray | None,
        states: Sequence[np.ndarray],
        B: int,
        flat: Callable[[Any], Any],
    ) -> Stepper:
        """For B rows that go through stages, all packed, each reading what the one before gives.

        With a table (n, E), x is numbers of its rows. `states` are (L, B, width) for each state of each stack of L
        calls, and every step updates them; `flat` makes a caller's state such a sequence.
        """
        ...

    def sessions(
        self, stages: Sequence[Stage], table: np.ndarray | None, stores: Sequence[np.ndarray], capacity: int
    ) -> Sessions:
        """Likewise, with stages of one row, and `stores` (capacity, L, 1, width) for each state of each stack."""
        ...

    def prepared(
        self, calls: Sequence[Call], x_shape: tuple[int, ...], batch_first: bool, every_step: bool
    ) -> Prepared:
        """For a stack of calls, all packed, and x of this shape.

        x and y are laid out as the caller has them; unless `every_step`, y is the h of the last step alone.
        """
        ...

    def backward(self, calls: Sequence[Backward]) -> list[Gradients]:
        """Every gradient of calls of one dtype, none of which reads what another writes."""
        ...

    def to_bytes(self, saved: Any) -> np.ndarray:
        """What a forward saved, as bytes that a framework may keep, and copy elsewhere in memory."""
        ...

    def room(self, cell: Cell, dtype: np.dtype, H: int, P: int, rows: Any, B: Any) -> Any:
        """The bytes that a `clean` call's forward saves, P of an R or 0; None where they are known when it ran."""
        ...

    def from_bytes(self, memory: np.ndarray, layout: str) -> Any:
        """What `to_bytes` had, for backward; `layout` is the one that the forward ran in."""
        ...
