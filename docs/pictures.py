"""Small pictures of the guide, drawn when the pages are built."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

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
