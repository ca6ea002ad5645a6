"""What the seed programs check themselves with: finite differences, and claims that end the program if they fail."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]

#: a step that balances the rounding of float64 against the third derivative
STEP = 1e-5


def arguments(description: str | None) -> tuple[bool, np.random.Generator]:
    """Whether the command line asks for the short settings of a test run, and random numbers from its seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter, where it takes more than a second")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    return given.quick, np.random.default_rng(given.seed)


def quick(description: str | None) -> bool:
    """The first of these, where nothing is random."""
    return arguments(description)[0]


def claim(what: str, holds: bool) -> None:
    """Say what should be true; end the program with an error if it is not."""
    print(f"  {'ok' if holds else 'FAILED'}: {what}")
    if not holds:
        sys.exit(1)


def finite_differences(loss: Callable[[], float], a: np.ndarray) -> np.ndarray:
    """The gradient of ``loss()`` with respect to the array ``a``, whose elements are moved in place, one by one."""
    gradient = np.empty_like(a)
    for index, value in np.ndenumerate(a):
        a[index] = value + STEP
        above = loss()
        a[index] = value - STEP
        below = loss()
        a[index] = value
        gradient[index] = (above - below) / (2 * STEP)
    return gradient


def relative_error(got: np.ndarray, exact: np.ndarray) -> float:
    """||got - exact|| / ||exact||."""
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def compare_gradients(ours: Arrays, notebook: Arrays, exact: Arrays) -> dict[str, float]:
    """Print how far both are from finite differences, claim that ours are right; the notebook's errors."""
    error = {name: relative_error(ours[name], exact[name]) for name in exact}
    notebook_error = {name: relative_error(notebook[name], exact[name]) for name in exact}
    print("Relative distance of the gradients from finite differences:\n      fastrnn   notebook")
    for name in exact:
        print(f"d{name:3s}  {error[name]:.1e}    {notebook_error[name]:.1e}")
    claim("fastrnn's are right", max(error.values()) < 1e-8)
    return notebook_error
