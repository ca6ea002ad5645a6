"""The seed programs of docs/examples run, check their own claims, and print what the seed notebooks printed.

A program exits with an error if one of its claims fails, so these tests only check its exit code and that it printed
its main claims.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.python import Python

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"

PROGRAMS = {path.name[:8]: path for path in sorted(EXAMPLES.glob("seed_*.py"))}

#: expected lines of each program's output; for seed 001 the states in all of the notebook's digits
GOLDEN = {
    "seed_000": [
        "  ok: from its own h_init (3, 1) each state has shape (3, 3)",
        "  ok: fastrnn's are right",
        "  ok: the notebook's are all more than a tenth off",
        "  ok: another first input moves the backward output beside step [0], as it should",
        "  ok: the loss falls to that of the best guess, 0.083",
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
    "seed_003": [
        "  ok: SimpleRNNCell(128) has 20,608 parameters",
        "  ok: it diverges, and fit says so",
        "  ok: clipping cures it: the loss falls below a tenth",
        "  ok: the notebook's has 5,472 parameters",
        "  ok: as in Keras: 49,664 + 129 parameters",
        "  ok: GRU: (1, 10, 32) -> (1, 10, 128), 37,632 parameters",
    ],
    "seed_004": [
        "  ok: the notebook's loop gives the same",
        "  ok: fastrnn's are right",
        "  ok: the loss is under 0.01 in the end",
    ],
}


def test_every_seed_has_a_program() -> None:
    assert list(PROGRAMS) == list(GOLDEN)


def test_a_failed_claim_ends_the_program(python: Python) -> None:
    """The tests below rely on it."""
    done = python("-c", "import checking; checking.claim('1 < 0', 1 < 0); print('went on')", PYTHONPATH=str(EXAMPLES))
    assert (done.returncode, done.stdout) == (1, "  FAILED: 1 < 0\n")


@pytest.mark.parametrize("seed", GOLDEN)
def test_seed(seed: str, python: Python) -> None:
    done = python("-W", "error", str(PROGRAMS[seed]), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in GOLDEN[seed] if line not in done.stdout.splitlines()]


def test_voice_pool(python: Python) -> None:
    done = python("-W", "error", str(EXAMPLES / "voice_pool.py"), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  ok: each stream's results are bit-identical to those alone" in done.stdout.splitlines()
