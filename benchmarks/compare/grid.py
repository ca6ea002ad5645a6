"""The points at which the project is measured, by name: sizes of a layer or a stack.

Plain data that imports nothing of fastrnn, because asv's suite loads it by its path with builds of older commits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Sizes(NamedTuple):
    T: int  #: steps
    B: int  #: sequences
    I: int  #: inputs
    H: int  #: hidden units
    layers: int = 1
    directions: int = 1

    @property
    def inputs(self) -> list[int]:
        """Return the number of inputs of each layer."""
        return [self.I] + [self.H * self.directions] * (self.layers - 1)

    def __str__(self) -> str:
        stack = (f"{self.layers} layers" if self.layers > 1 else "", "2 directions" if self.directions > 1 else "")
        return ", ".join([*map(str, self[:4]), *filter(None, stack)])


MODES = ("forward", "training")

#: from a chain of tiny dependent steps, over weights that exceed L2, to products that use the whole machine
GRID = {
    "tiny": Sizes(200, 1, 8, 16),
    "audio": Sizes(480, 1, 1, 40),
    "vad": Sizes(100, 1, 128, 128),
    "rl": Sizes(128, 1, 64, 256),
    "b1_512": Sizes(50, 1, 512, 512),
    "b1_1024": Sizes(25, 1, 1024, 1024),
    "ts": Sizes(100, 32, 8, 64),
    "seed3": Sizes(10, 32, 32, 64),
    "med": Sizes(64, 32, 128, 128),
    "rlb": Sizes(32, 64, 128, 256),
    "ptb": Sizes(35, 20, 650, 650),
    "speech": Sizes(100, 16, 256, 512),
    "big": Sizes(50, 128, 512, 512),
    "b64_1024": Sizes(25, 64, 1024, 1024),
}

#: layers of real systems, sizes that do not fill vectors, and unequal lengths; one step is a step of a stream
REAL = {
    "silero_vad": Sizes(1, 1, 128, 128),
    "rnnoise_256": Sizes(1, 1, 256, 256),
    "rnnoise_384": Sizes(1, 1, 384, 384),
    "guitarml": Sizes(1000, 50, 1, 32),
    "deepbench_b1": Sizes(25, 1, 512, 512),
    "deepbench_b4": Sizes(25, 4, 512, 512),
    "deepbench_b32": Sizes(25, 32, 512, 512),
    "deepbench_gru": Sizes(187, 1, 1024, 1024),
    "word_lm_200": Sizes(35, 20, 200, 200, layers=2),
    "word_lm_650": Sizes(35, 20, 650, 650, layers=2),
    "word_lm_1500": Sizes(35, 20, 1500, 1500, layers=2),
    "gnmt": Sizes(50, 64, 512, 512, directions=2),
    "paddle": Sizes(629, 128, 128, 128),
    "odd_33": Sizes(50, 7, 33, 33),
    "odd_65": Sizes(50, 7, 65, 65),
    "odd_127": Sizes(50, 7, 127, 127),
    "lengths": Sizes(64, 32, 128, 128),
}

POINTS = GRID | REAL

#: the cell or mode of real systems that use only one; all other points are measured for all
ONLY: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "silero_vad": (("lstm",), ("forward",)),
    "rnnoise_256": (("gru_after",), ("forward",)),
    "rnnoise_384": (("gru_after",), ("forward",)),
    "guitarml": (("lstm",), ("training",)),
    "deepbench_b1": (("lstm",), MODES),
    "deepbench_b4": (("lstm",), MODES),
    "deepbench_b32": (("lstm",), MODES),
    "deepbench_gru": (("gru_after",), MODES),
    "word_lm_200": (("lstm",), MODES),
    "word_lm_650": (("lstm",), MODES),
    "word_lm_1500": (("lstm",), MODES),
    "gnmt": (("lstm",), MODES),
    "paddle": (("lstm",), ("training",)),
}

#: One of each kind, for a first look and for asv: a chain of tiny steps, weights read at batch 1, a small batch,
#: large products.
QUICK = ("tiny", "rl", "seed3", "med", "ptb")


def runs(point: str, cell: str, mode: str) -> bool:
    """Return whether a point is measured for a cell and a mode."""
    cells, modes = ONLY.get(point, ((cell,), MODES))
    return cell in cells and mode in modes


def drawn_lengths(point: str) -> np.ndarray | None:
    """Return each sequence's number of steps (B,), uniform in 1..T; None if all sequences have T."""
    if point != "lengths":
        return None
    T, B = POINTS[point][:2]
    return np.random.default_rng(0).integers(1, T + 1, B)


def flop(G: int, P: int, sizes: Sizes, train: bool = False, lengths: np.ndarray | None = None) -> int:
    """Return the useful floating-point operations of the products: G gates' with W, P of them with U.

    Training counts three times a forward pass.
    """
    steps = sizes.T * sizes.B if lengths is None else int(lengths.sum())
    weights = sum(sizes.H * (G * I + P * sizes.H) for I in sizes.inputs) * sizes.directions
    return 2 * weights * steps * (3 if train else 1)


def least_bytes(G: int, P: int, sizes: Sizes, train: bool = False) -> int:
    """Return the bytes of float32 weights that a call must read: U in every step; W once, as its product needs no
    state.

    The backward half of training reads both as often again.
    """
    T, _, _, H = sizes[:4]
    weights = sum(H * (P * H * T + G * I) for I in sizes.inputs) * sizes.directions
    return 4 * weights * (2 if train else 1)
