"""The seed programs of docs/examples: each runs, makes every claim of its own good, and prints what the seed printed.

A program ends with an error where a claim of its own fails, so these tests only have to see it end well, and that it
made the claims that it is there for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"

PROGRAMS = {path.name[:8]: path for path in sorted(EXAMPLES.glob("seed_*.py"))}

#: what each program prints, line for line; of seed 001 the states in all of the notebook's digits
GOLDEN = {
    "seed_000": [
        "  ok: from its own h_init (3, 1) each state has shape (3, 3)",
        "  ok: fastrnn's are right",
        "  ok: the notebook's are all more than a tenth off",
    ],
    "seed_001": [
        "[0.19737532 0.60436778 0.83365461 0.93540907]",
        "[0.78752106 0.98887785 0.99947397 0.99997525]",
        "[0.88013356 0.99771501 0.99995896 0.99999926]",
        "[0.90287178 0.99831338 0.99997209 0.99999954]",
        "  ok: every digit that the notebook printed",
    ],
    "seed_002": [
        "  ok: fastrnn's are right",
        "  ok: the cost after 1000 epochs is under 0.01 (the notebook's: 0.12)",
    ],
    "seed_004": [
        "  ok: the notebook's loop gives the same",
        "  ok: fastrnn's are right",
        "  ok: the loss is under 0.01 in the end",
    ],
}


def test_there_is_one_for_each_seed() -> None:
    assert list(PROGRAMS) == list(GOLDEN)


@pytest.mark.parametrize("seed", GOLDEN)
def test_seed(seed: str, python: Callable[..., CompletedProcess[str]]) -> None:
    done = python("-W", "error", str(PROGRAMS[seed]), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in GOLDEN[seed] if line not in done.stdout.splitlines()]
