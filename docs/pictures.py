"""Figures of the documentation, drawn when the pages are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

#: Matplotlib runs these functions in this file's folder.
ROOT = Path("..")

LENGTHS, STEPS, RESET = np.array([12, 7, 9, 4, 0, 10]), 12, (0, 6)


def travel() -> None:
    """How many steps the state has seen at each: as it comes, in reverse, and with a reset."""
    steps, valid = np.arange(STEPS), np.arange(STEPS) < LENGTHS[:, None]
    forward = np.where(valid, steps + 1, 0)
    reverse = np.where(valid, LENGTHS[:, None] - steps, 0)
    resets = forward.copy()
    resets[RESET[0], RESET[1] :] -= RESET[1]
    _, panels = plt.subplots(1, 3, figsize=(11, 2.9), sharey=True, layout="constrained")
    for axes, numbers, title in zip(
        panels, (forward, reverse, resets), ("lengths=", "lengths=, reverse=True", "lengths=, resets="), strict=True
    ):
        axes.imshow(np.ma.masked_equal(numbers, 0), cmap="Blues", vmin=0, vmax=18, aspect="auto")
        for (b, t), number in np.ndenumerate(numbers):
            axes.text(t, b, number or "", ha="center", va="center", fontsize=8)
        axes.set_title(title, family="monospace", fontsize=10)
        axes.set_xlabel("step t")
        axes.set_xticks(range(0, STEPS, 2))
        axes.set_yticks(range(len(LENGTHS)))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[2].plot([RESET[1] - 0.5] * 2, [RESET[0] - 0.5, RESET[0] + 0.5], color="C3", linewidth=3)
    panels[0].set_ylabel("sequence b")


def table(page: str, heading: str) -> tuple[list[str], list[list[str]]]:
    """The first table below a heading of a page: its header and its rows, as text."""
    below = (ROOT / page).read_text().split(f"\n## {heading}\n")[1]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    end = next(i for i, row in enumerate(rows) if row[0] == "geometric mean")
    return rows[0], rows[2:end]


def speeds() -> None:
    """Training: the best peer's time over fastrnn's, for each size, on two kinds of CPU."""
    _, panels = plt.subplots(2, 1, figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
    sources = (("AVX-512", "docs/performance.md"), ("AVX2", "benchmarks/report.md"))
    for axes, (kind, page) in zip(panels, sources, strict=True):
        header, rows = table(page, kind)
        trainings = [i for i, name in enumerate(header) if name == "training"]
        for n, (name, column) in enumerate(zip(("LSTM", "GRU", "RNN"), trainings, strict=True)):
            ratios = [float(row[column].split()[0]) for row in rows]
            axes.bar(np.arange(len(rows)) + 0.27 * (n - 1), ratios, 0.25, label=name)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_title(kind)
        axes.set_ylabel("best peer's time / fastrnn's")
        axes.set_xticks(range(len(rows)), [row[0] for row in rows], rotation=30)
    panels[0].legend(ncols=3)


def panels() -> None:
    """The product of one step: rows of h against a packed panel of U, and the tile that the cell then reads."""
    _, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    K, B, panel = 8, 6, 2

    def block(x: float, y: float, width: float, height: float, **style: Any) -> None:
        axes.add_patch(plt.Rectangle((x, y), width, height, edgecolor="black", linewidth=0.8, **style))

    block(0, 0, K, B, facecolor="none")
    block(0, 2, K, 2, facecolor="C0", alpha=0.5)
    for g in range(6):
        block(K + 1 + panel * g, B + 1, panel, K, facecolor="C1" if g == 2 else "none", alpha=0.6 if g == 2 else 1)
        block(K + 1 + panel * g, 0, panel, B, facecolor="none")
    block(K + 1 + 2 * panel, 2, panel, 2, facecolor="C2", alpha=0.7)
    beside = K + 1 + 6 * panel + 0.4
    for x, y, text in (
        (K / 2, 3, "a tile of rows of h"),
        (K / 2, B + 0.5, "h: B rows, K units"),
        (beside, B + 1 + K / 2, "U, packed: each panel holds\nthe gates of a few units,\nread from start to end"),
        (beside, 3, "tile in L1: the cell computes\nsigmoid, tanh and the new state\nbefore the next tile"),
    ):
        axes.text(x, y, text, ha="left" if x == beside else "center", va="center", fontsize=9)
    axes.set_xlim(-0.5, K + 6 * panel + 11)
    axes.set_ylim(-0.5, B + K + 1.5)
    axes.set_aspect("equal")
    axes.axis("off")


def threads() -> None:
    """Two ways to divide a step among threads: by rows of the batch, and by hidden units."""
    _, two = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    titles = (
        "many rows: each thread has its own,\nand never waits",
        "few rows: each thread has some units,\nand all meet after every step",
    )
    for axes, title, by_rows in zip(two, titles, (True, False), strict=True):
        for t in range(5):
            for n in range(2):
                x, y, width, height = (t, 2 * n, 0.9, 1.9) if by_rows else (t + 0.45 * n, 0, 0.4, 3.9)
                axes.add_patch(plt.Rectangle((x, y), width, height, facecolor=f"C{n}", alpha=0.6))
            if not by_rows:
                axes.axvline(t + 0.94, color="black", linewidth=1)
        axes.set_xlim(-0.1, 5)
        axes.set_ylim(-0.1, 4.1)
        axes.set_xlabel("step")
        axes.set_yticks([])
        axes.set_xticks([])
        axes.set_ylabel("rows of the batch" if by_rows else "all rows")
        axes.set_title(title, fontsize=10)
        axes.spines[:].set_visible(False)
