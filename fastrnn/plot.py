"""Plots of training curves, gates and gradient norms with matplotlib (``pip install 'fastrnn[plot]'``);
`fastrnn.inspect` computes the data of the last two.

Every function returns the figure and does not show it: use ``figure.savefig("gates.png")``, or a notebook.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastrnn import inspect
from fastrnn.extras import needed
from fastrnn.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["gates", "gradient_norms", "history"]

#: Okabe and Ito's colour-blind-safe palette, without the colours too light for a white background
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

#: quantity of a built-in cell -> its display name
LABELS = {
    "i": "input gate i",
    "f": "forget gate f",
    "o": "output gate o",
    "r": "reset gate r",
    "z": "update gate z",
    "g": "candidate g",
    "n": "candidate n",
    "c": "cell state c",
    "h": "hidden state h",
}


def history(history: Any, ax: Axes | Sequence[Axes] | None = None) -> Figure:
    """Draw training curves: one panel per quantity, together with its validation curve.

    Parameters
    ----------
    history : History, or a mapping of names to numbers by epoch
        As returned by `Sequential.fit`; ``val_loss`` is drawn in the panel of ``loss``, and so on.
    ax : Axes, or a sequence with one per panel, optional
        Where to draw; a new figure when absent.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If `history` is not a history, or `ax` not Axes.
    ValueError
        If the history has no epoch, or the number of axes differs from that of panels.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import fastrnn.plot
    >>> figure = fastrnn.plot.history({"loss": [0.9, 0.5, 0.4], "val_loss": [1.0, 0.6, 0.6]})
    >>> figure.axes[0].get_ylabel()
    'loss'
    """
    curves = getattr(history, "history", history)
    if not isinstance(curves, Mapping):
        raise TypeError(f"history: expected a History or a mapping of names to numbers, got {type(history).__name__}")
    names = [name for name in curves if not (name.startswith("val_") and name.removeprefix("val_") in curves)]
    if not any(len(curves[name]) for name in names):
        raise ValueError("history: expected at least one epoch, got none")
    chosen = panels(ax, len(names))
    for name, axes in zip(names, chosen, strict=True):
        curve(axes, curves[name], "training", COLOURS[0])
        if f"val_{name}" in curves:
            curve(axes, curves[f"val_{name}"], "validation", COLOURS[1])
            axes.legend(frameon=False)
        quantity = name.replace("_", " ")
        axes.set(xlabel="epoch", ylabel=quantity, title=quantity.capitalize())
        plain(axes)
    return whole(chosen[0])


def curve(axes: Axes, values: Sequence[float], label: str, colour: str) -> None:
    """Draw one value per epoch, starting at epoch 1; a single value is drawn as a point."""
    epochs = range(1, len(values) + 1)
    axes.plot(epochs, values, label=label, color=colour, linewidth=2, marker="o" if len(values) == 1 else None)


def gates(net: Any, x: Any, *, sequence: int = 0, lengths: Any = None, **options: Any) -> Figure:
    """Draw the gates and the states of one sequence over time as heat maps, units by time steps.

    Sigmoid gates go from white at 0 to black at 1; signed values are red above 0, blue below and white at 0, from -1 to
    1 or to the largest magnitude if that is greater.

    Parameters
    ----------
    net, x, lengths
        As for `inspect.gates`.
    sequence : int
        Index in the batch; the sequence is drawn up to its length.
    **options
        `layer`, `reverse`, `state`, `resets`: also as for `inspect.gates`.

    Returns
    -------
    matplotlib.figure.Figure
        One panel each: the gates in the top row, the candidate and the states below.

    Raises
    ------
    TypeError, ValueError
        As for `inspect.gates`; also if `sequence` is not in the batch.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, fastrnn.plot
    >>> figure = fastrnn.plot.gates(fastrnn.GRU(3, 8, reset_after=True, rng=0), np.ones((20, 3), np.float32))
    >>> [axes.get_title() for axes in figure.axes[:4]]
    ['reset gate r', 'update gate z', 'candidate n', 'hidden state h']
    """
    found = inspect.gates(net, x, lengths=lengths, **options)
    cell = net.stack.cell
    h = cell.states[0]
    if found[h].ndim == 3:
        found = {name: sequences(a, net) for name, a in found.items()}
        B = found[h].shape[1]
        if not -B <= sequence < B:
            raise ValueError(f"sequence: expected one of {-B}..{B - 1}, got {sequence}")
        found = {name: a[:, sequence] for name, a in found.items()}
    if lengths is not None:
        found = {name: a[: np.ravel(lengths)[sequence]] for name, a in found.items()}
    sigmoids = {name for node, name in cell.names.items() if node.op == "sigmoid"} - {*cell.states}  # between 0 and 1
    rows = [[name for name in found if (name in sigmoids) is opening] for opening in (True, False)]
    rows = [row for row in rows if row]
    columns = max(map(len, rows))
    figure: Figure = pyplot().figure(figsize=(3.8 * columns, 0.4 + 2.7 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns)
    for r, row in enumerate(rows):
        for k, name in enumerate(row):
            axes = figure.add_subplot(grid[r, k])
            heat_map(axes, found[name], name in sigmoids)
            axes.set_title(LABELS.get(name, name) if cell.builtin else name)
            axes.set(xlabel="time step t" if r == len(rows) - 1 else None, ylabel="unit" if k == 0 else None)
    bars(figure)
    return figure


def gradient_norms(layers: Any, x: Any, dy: Any = None, *, ax: Axes | None = None, **options: Any) -> Figure:
    """Draw the norm of dL/dh[t] by time step, on a logarithmic scale: vanishing and exploding gradients at a glance.

    A line is the median over the sequences that have the step; with several sequences, a band spans the smallest to
    the largest. Values that are 0, infinite, NaN or more than 250 decades from 1 are left out, which ends the line.

    Parameters
    ----------
    layers : layer, or mapping of labels to layers
        Recurrent layers to compare, each given the same x and dy.
    x, dy
        As for `inspect.gradient_norms`; without dy and `dstate` every line is 1 at the end of a sequence.
    ax : Axes, optional
        Where to draw; a new figure when absent.
    **options
        `dstate`, `layer`, `reverse`, `state`, `lengths`, `resets`: also as for `inspect.gradient_norms`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError, ValueError
        As for `inspect.gradient_norms`.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, fastrnn.plot
    >>> nets = {"RNN": fastrnn.RNN(3, 8, rng=0), "LSTM": fastrnn.LSTM(3, 8, forget_bias=1.0, rng=0)}
    >>> figure = fastrnn.plot.gradient_norms(nets, np.ones((20, 3), np.float32))
    >>> [line.get_label() for line in figure.axes[0].get_lines()]
    ['RNN', 'LSTM']
    """
    layers = layers if isinstance(layers, Mapping) else {type(layers).__name__: layers}
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    [axes] = panels(ax, 1)
    for (label, layer), colour in zip(layers.items(), itertools.cycle(COLOURS)):
        norms = inspect.gradient_norms(layer, x, dy, **options)
        norms = norms[:, None] if norms.ndim == 1 else sequences(norms, layer)
        low, middle, high = spread(norms)
        t = np.arange(len(norms))
        axes.plot(t, middle, label=label, color=colour, linewidth=2)
        if norms.shape[1] > 1:
            axes.fill_between(t, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set(xlabel="time step t", ylabel="norm of dL/dh[t]", title="Gradient that reaches each step")
    plain(axes)
    decades(axes.yaxis)
    if len(layers) > 1:
        axes.legend(frameon=False)
    return whole(axes)


def pyplot() -> Any:
    return needed("matplotlib.pyplot", "plot")


def panels(ax: Any, count: int) -> list[Axes]:
    """Return the given axes, or those of a new figure, side by side."""
    if ax is None:
        size = 5.2 * count, 3.6
        _, grid = pyplot().subplots(1, count, squeeze=False, figsize=size, layout="constrained")
        return list(grid[0])
    given = list(np.ravel(ax))
    if len(given) != count:
        raise ValueError(f"ax: expected {count} axes, got {len(given)}")
    for axes in given:
        if not hasattr(axes, "get_figure"):
            raise TypeError(f"ax: expected matplotlib Axes, got {axes!r:.80}")
    return given


def whole(axes: Axes) -> Figure:
    """Return the figure of the axes."""
    return cast("Figure", axes.get_figure())


def plain(axes: Axes) -> None:
    """Style axes: a grid line at each labelled value, no top and right spines."""
    whole_numbers(axes.xaxis)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def decades(axis: Any) -> None:
    """Put ticks at round exponents; gradients may span hundreds of decades."""
    ends = np.log10(axis.get_view_interval())
    if np.ptp(ends) > 8:
        exponents = needed("matplotlib.ticker", "plot").MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(*ends)
        axis.set_ticks(10.0 ** exponents[(ends[0] <= exponents) & (exponents <= ends[1])])
        axis.set_ticks([], minor=True)


def heat_map(axes: Axes, values: Array, opening: bool) -> None:
    """Draw units (downwards) by time steps."""
    T, H = values.shape
    limit = 1.0 if opening else max(1.0, float(np.abs(values[np.isfinite(values)]).max(initial=0)))
    axes.imshow(
        values.T,
        cmap="Greys" if opening else "RdBu_r",
        vmin=0 if opening else -limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, T - 0.5, H - 0.5, -0.5),
    )
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)


def whole_numbers(axis: Any) -> None:
    """Restrict ticks to integers."""
    axis.set_major_locator(needed("matplotlib.ticker", "plot").MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def bars(figure: Figure) -> None:
    """Add a colour bar to each heat map, labelled at both ends and in the middle."""
    for axes in figure.axes:
        [image] = axes.get_images()
        low, high = image.get_clim()
        figure.colorbar(image, ax=axes, pad=0.02, aspect=18, ticks=[low, (low + high) / 2, high], format="%.3g")


def sequences(a: Array, layer: Any) -> Array:
    """Return a as (T, B, ...)."""
    return a.swapaxes(0, 1) if layer.batch_first else a


def spread(norms: Array) -> tuple[Array, Array, Array]:
    """Return minimum, median and maximum over the sequences that have the step, (T,) each; NaN where none has."""
    shown = np.where((norms > 1e-250) & (norms < 1e250), norms, np.nan)  # matplotlib's margins would overflow
    some = np.isfinite(shown).any(axis=1)
    low, middle, high = np.full((3, len(norms)), np.nan)
    low[some], high[some] = np.nanmin(shown[some], axis=1), np.nanmax(shown[some], axis=1)
    middle[some] = np.nanmedian(shown[some], axis=1)
    return low, middle, high
