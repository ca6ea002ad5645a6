"""One step of each cell from raw weights: the textbook equations, for teaching and tests.

Any dtype works, including complex, so complex-step differentiation applies. Numbers are dimensionless.
"""

from __future__ import annotations

from typing import Any

from fastrnn.cells import Cell
from fastrnn.run import checked_step, gru_cell, lstm_cell, rnn_cell
from fastrnn.types import Array, Arrays


def rnn_step(x: Any, h: Any, W: Any, U: Any, b: Any = None, b_rec: Any = None, *, activation: str = "tanh") -> Array:
    """Run one step of `rnn_forward`: ``activation(W x + b + U h + b_rec)``.

    Parameters
    ----------
    x : (B, I) array
        Inputs.
    h : (B, H) array
        State before the step.
    W, U, b, b_rec : array
        As in `rnn_forward`.
    activation : {"tanh", "relu", "sigmoid", "identity"}
        "linear" is an alias of "identity".

    Returns
    -------
    h : (B, H) array
        State after the step.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an array or has the wrong shape; the message names it.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> fastrnn.rnn_step(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), activation="identity")
    array([[2.]])
    """
    return _step(rnn_cell(activation), x, {"h": h}, {"W": W, "U": U, "b": b, "b_rec": b_rec})[0]


def gru_step(
    x: Any, h: Any, W: Any, U: Any, b: Any = None, b_rec: Any = None, *, reset_after: bool | None = None
) -> Array:
    """Run one step of `gru_forward`, which gives the equations.

    Parameters
    ----------
    x : (B, I) array
        Inputs.
    h : (B, H) array
        State before the step.
    W, U, b, b_rec : array
        As in `gru_forward`.
    reset_after : bool
        Which of the two GRU variants; required.

    Returns
    -------
    h : (B, H) array
        State after the step.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an array or has the wrong shape; the message names it.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> fastrnn.gru_step(np.ones((1, 2)), np.ones((1, 1)), np.zeros((3, 2)), np.zeros((3, 1)), reset_after=True)
    array([[0.5]])
    """
    return _step(gru_cell(reset_after), x, {"h": h}, {"W": W, "U": U, "b": b, "b_rec": b_rec})[0]


def lstm_step(
    x: Any, h: Any, c: Any, W: Any, U: Any, b: Any = None, b_rec: Any = None, *, p: Any = None
) -> tuple[Array, Array]:
    """Run one step of `lstm_forward`, which gives the equations.

    Parameters
    ----------
    x : (B, I) array
        Inputs.
    h, c : (B, H) array
        State before the step.
    W, U, b, b_rec, p : array
        As in `lstm_forward`.

    Returns
    -------
    h, c : (B, H) array
        State after the step.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an array or has the wrong shape; the message names it.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> h, c = np.zeros((1, 1)), np.ones((1, 1))
    >>> h, c = fastrnn.lstm_step(np.ones((1, 2)), h, c, np.zeros((4, 2)), np.zeros((4, 1)))
    >>> c
    array([[0.5]])
    """
    h, c = _step(lstm_cell(p), x, {"h": h, "c": c}, {"W": W, "U": U, "b": b, "b_rec": b_rec, "p": p})
    return h, c


def _step(cell: Cell, x: Any, state: dict[str, Any], weights: dict[str, Any]) -> Arrays:
    x, before, parameters = checked_step(cell, x, state, {"p": None, **weights})
    return cell.evaluate(x, before, **parameters)
