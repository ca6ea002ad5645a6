"""The points that the project is measured at, by name: sizes (T, B, I, H) of one layer.

The first fourteen are those of the first comparison with PyTorch (README); the rest are layers of real systems, and
sizes that fit no vector. Plain data: asv, the comparison scripts and the tests import it alike.
"""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    T: int  #: steps
    B: int  #: sequences
    I: int  #: inputs
    H: int  #: hidden units


#: From a chain of tiny dependent steps, over weights that leave L2, to products that fill the machine.
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

REAL = {
    "silero_vad": Sizes(1, 1, 128, 128),
    "rnnoise_256": Sizes(1, 1, 256, 256),
    "rnnoise_384": Sizes(1, 1, 384, 384),
    "guitarml": Sizes(1000, 50, 1, 32),
    "deepbench_b1": Sizes(25, 1, 512, 512),
    "deepbench_b4": Sizes(25, 4, 512, 512),
    "deepbench_b32": Sizes(25, 32, 512, 512),
    "deepbench_gru": Sizes(187, 1, 1024, 1024),
    "word_lm_200": Sizes(35, 20, 200, 200),
    "word_lm_650": Sizes(35, 20, 650, 650),
    "word_lm_1500": Sizes(35, 20, 1500, 1500),
    "gnmt": Sizes(50, 64, 512, 512),
    "paddle": Sizes(629, 128, 128, 128),
    "odd_33": Sizes(50, 7, 33, 33),
    "odd_65": Sizes(50, 7, 65, 65),
    "odd_127": Sizes(50, 7, 127, 127),
}

POINTS = GRID | REAL


def flop(gates: int, sizes: Sizes, train: bool = False) -> int:
    """Useful floating-point operations of the matrix products; training counts three times a forward pass."""
    T, B, I, H = sizes
    return 2 * gates * H * (I + H) * T * B * (3 if train else 1)
