"""`fastrnn.cell`: make a cell, forward and backward, from a function with its equations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from fastrnn.cells import Cell
from fastrnn.checks import TIME_MAJOR, checked_inputs
from fastrnn.results import Cache
from fastrnn.run import Common, checked_step, run_backward, run_forward
from fastrnn.types import Array, Arrays


class CellResult(NamedTuple):
    """Result of a cell's forward."""

    y: Array  #: (T, B, H) first state of every step, exactly 0 past a sequence's length
    final: Arrays  #: (B, H) for each state, after each sequence's last valid step in the direction of travel
    states: Arrays | None  #: (T, B, H) for each state; with return_states=True
    cache: Cache | None  #: with training=True


class CellGrads(NamedTuple):
    """Result of a cell's backward: gradients shaped like the arguments, None for absent ones."""

    dx: Array
    dW: Array
    dU: Array | None
    db: Array | None
    db_rec: Array | None
    dp: Array | None
    de: dict[str, Array] | None
    dinit: tuple[Array | None, ...]


class DefinedCell(Cell):
    """A cell made by `fastrnn.cell`."""

    def step(
        self,
        x_t: Any,
        state: Any,
        W: Any,
        U: Any,
        b: Any = None,
        b_rec: Any = None,
        *,
        p: Any = None,
        e: Mapping[str, Any] | None = None,
    ) -> Arrays:
        """Run one step directly from the equations, on NumPy arrays of any dtype, including complex.

        Parameters
        ----------
        x_t : (B, I) array
            Inputs.
        state : tuple of (B, H) arrays
            States before the step, in the order of `states`.
        W, U, b, b_rec, p
            As in `forward`.
        e : dict of (B, H) or (B, 1) arrays
            The extra inputs by name.

        Returns
        -------
        tuple of (B, H) arrays
            States after the step.

        Raises
        ------
        TypeError, ValueError
            If an argument is not an array or has the wrong shape; the message names it.
        """
        named = dict(zip(self.states, self.of_states("state", state), strict=True))
        x_t, before, weights = checked_step(self, x_t, named, {"W": W, "U": U, "b": b, "b_rec": b_rec, "p": p})
        sizes = 1, len(x_t), before[0].shape[1]
        given = dict(zip(self.inputs, checked_inputs(self, e, sizes, None, TIME_MAJOR)[0], strict=True))
        after = self.evaluate(x_t, before, **weights, e={name: a[0] for name, a in given.items()})
        return tuple([np.broadcast_to(a, before[0].shape) for a in after])

    def forward(
        self,
        x: Any,
        W: Any,
        U: Any = None,
        b: Any = None,
        b_rec: Any = None,
        *,
        p: Any = None,
        e: Mapping[str, Any] | None = None,
        init: tuple[Any, ...] | None = None,
        return_states: bool = False,
        **common: Unpack[Common],
    ) -> CellResult:
        """Run over time, as `lstm_forward` does.

        Parameters
        ----------
        x : (T, B, I) array, or (T, I) for one sequence
            Inputs, float32 or float64.
        W : (G*H, I) array
            Input weights of all gates, in their order.
        U : (N*H, H) array, or None
            Recurrent weights of the N gates that have a product with U, in the order of the gates; None if none has.
            (N*H, H/heads) with several heads.
        b : (G*H,) array, optional
            Input biases.
        b_rec : (N*H,) array, optional
            Recurrent biases, of the products with U.
        p : (P*H,) array
            The parameters, in their order; None if there are none.
        e : dict of arrays
            The extra inputs by name: (T, B, H) or (T, B, 1), laid out like x, or (B, H) or (B, 1) for every step.
        init : tuple of (B, H) arrays, optional
            Initial states; None stands for zeros.
        return_states : bool
            Return every state of every step.
        **common
            `lengths`, `resets`, `reverse`, `batch_first`, `training`, `checkpoint`, `heads`, `threads`: see
            `lstm_forward`.

        Returns
        -------
        CellResult
            ``y``, ``final``, ``states`` and the ``cache`` for `backward`.

        Raises
        ------
        TypeError, ValueError
            If an argument is not an array, or has the wrong dtype or shape; the message names it.
        """
        init = self.of_states("init", init)
        weights = {"W": W, "U": U, "b": b, "b_rec": b_rec, "p": p}
        y, final, others, cache = run_forward(self, x, weights, init, common, return_states, e)
        return CellResult(y, final, (y, *others) if return_states else None, cache)

    def backward(
        self,
        dy: Any,
        cache: Cache | None,
        *,
        dfinal: tuple[Any, ...] | None = None,
        dstates: tuple[Any, ...] | None = None,
    ) -> CellGrads:
        """Backpropagate through time for `forward`, any number of times.

        Parameters
        ----------
        dy : (T, B, H) array, or None
            Gradient of a scalar with respect to y.
        cache : Cache
            The cache from this cell's ``forward(..., training=True)``.
        dfinal : tuple of (B, H) arrays, optional
            Gradients with respect to the final states; None stands for zeros.
        dstates : tuple of (T, B, H) arrays, optional
            Gradients with respect to each state at every step; that of the first state is added to `dy`.

        Returns
        -------
        CellGrads
            Each shaped like its argument; None for an absent one.

        Raises
        ------
        TypeError, ValueError
            If the cache is of another cell, or a gradient has the wrong dtype or shape.
        """
        dfinal, dstates = self.of_states("dfinal", dfinal), self.of_states("dstates", dstates)
        if dstates[0] is not None:
            dy = dstates[0] if dy is None else np.add(dy, dstates[0])
        finals = {f"d{name}_n": d for name, d in zip(self.states, dfinal, strict=True)}
        others = {f"d{name}": d for name, d in zip(self.states[1:], dstates[1:], strict=True)}
        g = run_backward(self.name, dy, cache, finals, others, self)
        de = dict(zip(self.inputs, g.de, strict=True))
        return CellGrads(g.dx, g.dW, g.dU, g.db, g.db_rec, g.dp, de or None, g.dinit)


def cell(
    *,
    gates: Iterable[str],
    states: Iterable[str],
    parameters: Iterable[str] | Mapping[str, float] = (),
    inputs: Iterable[str] = (),
) -> Callable[[Callable[..., Any]], DefinedCell]:
    """Make a cell from a function that holds the equations of one step.

    Parameters
    ----------
    gates : str or tuple of str
        Names of the gates: each has rows in W, and in U if it has a product. In a string each letter is a name.
    states : str or tuple of str
        Names of up to four states, in the order in which the function returns them. The first is the output.
    parameters : tuple of str, or dict
        Names of learnt vectors of H elements; a dict maps each to its initial value in a layer.
    inputs : tuple of str
        Names of extra inputs, given for each step or each sequence.

    Returns
    -------
    decorator
        Turns a function of ``x, U, s``, then ``p`` if there are parameters and ``e`` if there are inputs, into a
        `DefinedCell`. ``x.g`` is ``W_g x[t] + b_g``, ``U.g @ v`` is ``U_g v + b_rec_g``, ``s.h`` a state before the
        step, ``p.a`` a parameter and ``e.m`` an input; all else is built from the functions of `fastrnn.cells`, which
        are elementwise except ``mean``.

    Raises
    ------
    CellError
        If the equations cannot be compiled; the message names the cell, the line and what to do.

    Notes
    -----
    The function is called once, on symbols; gradients are derived by reverse-mode differentiation of its graph [1]_.
    The native backend compiles the result with LLVM: ``pip install 'fastrnn[cells]'``.

    References
    ----------
    .. [1] A. Griewank, A. Walther, "Evaluating Derivatives", 2nd ed., SIAM 2008, chapter 3.2.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> from fastrnn.cells import sigmoid, tanh
    >>> @fastrnn.cell(gates="fn", states="h")
    ... def minimal_gated_unit(x, U, s):
    ...     f = sigmoid(x.f + U.f @ s.h)
    ...     return (1 - f) * s.h + f * tanh(x.n + U.n @ (f * s.h))
    >>> x, W, U = np.ones((3, 1, 2)), np.ones((2, 2)), np.ones((2, 1))
    >>> minimal_gated_unit.forward(x, W, U).y.shape
    (3, 1, 1)
    """

    def decorate(function: Callable[..., Any]) -> DefinedCell:
        return DefinedCell(function, gates, states, parameters, inputs)

    return decorate
