"""The chart of the report: for each mode and number of threads, R_peer of every cell at every point."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

from .figures import Row
from .grid import POINTS
from .machine import described
from .report import MODES, threads

#: colours and markers of cells, in order; distinguishable for colour-blind readers
STYLES = [("#0072b2", "o"), ("#56b4e9", "s"), ("#d55e00", "^"), ("#e69f00", "v"), ("#009e73", "D"), ("#cc79a7", "P")]
Styles = dict[str, tuple[str, str]]  #: by the cell's name
FILLED = {"ms": 6, "mec": "white", "mew": 0.5}  # against the best peer
HOLLOW = {"ms": 5, "mfc": "none", "alpha": 0.6}  # against PyTorch
SHARE = 0.68  # part of a point's width for its cells

#: in inches: margins, a panel, the space between panels, a point's width, and the least width for the titles
TOP, BOTTOM, LEFT, RIGHT, PANEL, GAP, SLOT, WIDTH = 1.5, 1.15, 0.7, 0.2, 2.2, 0.55, 0.6, 9.0


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the chart; this needs matplotlib, and rows with a peer."""
    figures: Any = importlib.import_module("matplotlib.figure")
    rows = [row for row in result["rows"] if row["ratios"]["R_peer"] is not None]
    styles = dict(zip(dict.fromkeys(row["cell"] for row in rows), itertools.cycle(STYLES), strict=False))
    panels = sorted({(row["threads"], row["mode"]) for row in rows})
    points = [point for point in POINTS if any(row["point"] == point for row in rows)]
    width = max(WIDTH, LEFT + RIGHT + SLOT * len(points))
    height = TOP + BOTTOM + PANEL * len(panels) + GAP * (len(panels) - 1)
    figure = figures.Figure(figsize=(width, height))
    axes = figure.subplots(
        len(panels),
        squeeze=False,
        sharex=True,
        sharey=True,
        gridspec_kw={
            "left": LEFT / width,
            "right": 1 - RIGHT / width,
            "top": 1 - TOP / height,
            "bottom": BOTTOM / height,
            "hspace": GAP / PANEL,
        },
    )[:, 0]
    for axis, (n, mode) in zip(axes, panels, strict=True):
        panel(axis, [row for row in rows if (row["threads"], row["mode"]) == (n, mode)], points, styles)
        axis.set_title(f"{MODES[mode]}, {threads(n)}", loc="left", fontsize=10.5, fontweight="bold")
    labels = [f"{point}\n{POINTS[point]}" for point in points]
    axes[-1].set_xticks(range(len(points)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    for line, (text, style) in enumerate(titles(result)):
        figure.text(LEFT / width, 1 - (0.3 + 0.22 * line) / height, text, va="center", **style)
    legend(figure, axes[0], rows, styles, (LEFT / width, 1 - (TOP - 0.45) / height))
    figure.savefig(path, dpi=150)


def titles(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the lines of the title and their styles: what was measured, on which machine, against which peers."""
    machine = result["machine"]
    own, small = machine["fastrnn"], {"fontsize": 8.5, "color": "0.35"}
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in result["peers"])
    return [
        (f"fastrnn {own['version']}: a peer's time over fastrnn's", {"fontsize": 13, "fontweight": "bold"}),
        (f"float32 on {described(machine)}; {own['isa']}; under each name T, B, I, H; {result['date']}", small),
        (f"peers: {versions}", small),
    ]


def panel(axis: Any, rows: list[Row], points: list[str], styles: Styles) -> None:
    """Draw one mode and number of threads: filled marks against the best peer, hollow marks against PyTorch."""
    for k in range(1, len(points), 2):
        axis.axvspan(k - 0.5, k + 0.5, color="0.96", zorder=0)
    axis.axhline(1, color="0.2", lw=1)
    for k, (cell, (colour, marker)) in enumerate(styles.items()):
        own = [row for row in rows if row["cell"] == cell]
        at = [points.index(row["point"]) + SHARE * ((k + 0.5) / len(styles) - 0.5) for row in own]
        axis.plot(at, [row["ratios"]["R_torch"] or float("nan") for row in own], marker, color=colour, ls="", **HOLLOW)
        axis.plot(at, [row["ratios"]["R_peer"] for row in own], marker, color=colour, ls="", **FILLED)
    axis.set_xlim(-0.5, len(points) - 0.5)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axis.grid(axis="y", color="0.88", lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def legend(figure: Any, axis: Any, rows: list[Row], styles: Styles, place: tuple[float, float]) -> None:
    """Explain the measured cells, and the filled and hollow marks."""
    entries = {name: axis.plot([], [], style, color=colour, **FILLED)[0] for name, (colour, style) in styles.items()}
    entries["filled: the best peer"] = axis.plot([], [], "o", color="0.4", **FILLED)[0]
    if any(row["ratios"]["R_torch"] for row in rows):
        entries["hollow: PyTorch"] = axis.plot([], [], "o", color="0.4", **HOLLOW)[0]
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="center left",
        bbox_to_anchor=place,
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        borderpad=0,
        handletextpad=0.2,
        columnspacing=1.4,
    )
