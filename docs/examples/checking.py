"""Checks of the seed programs: finite differences, and claims that end the program if they fail."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]

#: a step that balances the rounding of float64 against the third derivative
STEP = 1e-5


def arguments(description: str | None) -> tuple[bool, np.random.Generator]:
    """Return whether the command line requests the short settings of a test run, and a generator with its seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter, where it takes more than a second")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    return given.quick, np.random.default_rng(given.seed)


def quick(description: str | None) -> bool:
    """Return only the first of these, for programs without random numbers."""
    return arguments(description)[0]


def claim(what: str, holds: bool) -> None:
    """Print a claim; end the program with an error if it does not hold."""
    print(f"  {'ok' if holds else 'FAILED'}: {what}")
    if not holds:
        sys.exit(1)


def finite_differences(loss: Callable[[], float], a: np.ndarray) -> np.ndarray:
    """Return the gradient of ``loss()`` with respect to the array ``a``, whose elements are changed in place, one by
    one.
    """
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
    """Print the distance of both from finite differences, and claim that fastrnn's are right; return the notebook's
    errors.
    """
    error = {name: relative_error(ours[name], exact[name]) for name in exact}
    notebook_error = {name: relative_error(notebook[name], exact[name]) for name in exact}
    print("Relative distance of the gradients from finite differences:\n      fastrnn   notebook")
    for name in exact:
        print(f"d{name:3s}  {error[name]:.1e}    {notebook_error[name]:.1e}")
    claim("fastrnn's are right", max(error.values()) < 1e-8)
    return notebook_error
