"""What the documentation shows a reader, run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from types import FunctionType

import pytest
from support.python import Python

import fastrnn

README = Path(__file__).resolve().parents[1] / "README.md"
LAYERS = [f"layers.{name}" for name in ("rnn", "stream", "pool", "dense", "embedding", "dropout", "activation")]
MODULES = ["functional", "steps", "backends", "initializers", *LAYERS, "frameworks", "inspect", "plot", "sklearn"]
MODULES += [f"training.{name}" for name in ("losses", "metrics", "optimizers", "schedules", "clipping")]
MODULES += [f"training.{name}" for name in ("padding", "callbacks", "fitting", "model", "sequential")]
MODULES += [f"convert.{name}" for name in ("by_gate", "files", "keras", "onnx", "torch")]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module: str) -> None:
    threads = fastrnn.get_num_threads()
    failed, attempted = doctest.testmod(importlib.import_module(f"fastrnn.{module}"))
    fastrnn.set_num_threads(threads)
    assert (attempted > 0, failed) == (True, 0)


def test_every_public_function_has_an_example() -> None:
    functions = [f for name in fastrnn.__all__ if isinstance(f := getattr(fastrnn, name), FunctionType)]
    assert not [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")]


def test_readme(python: Python) -> None:
    """The README's Python blocks, one after the other as a reader would type them."""
    assert EXAMPLES
    done = python("-W", "error", "-c", "\n".join(EXAMPLES))
    assert done.returncode == 0, done.stderr


def test_info(python: Python) -> None:
    done = python("-m", "fastrnn", "info")
    assert done.returncode == 0, done.stderr
    assert fastrnn.__version__ in done.stdout
    done = python("-m", "fastrnn", "--version")
    assert (done.returncode, done.stdout.split()) == (0, ["fastrnn", fastrnn.__version__]), done.stderr


def test_demo(python: Python) -> None:
    """Learns the echo task, and says how well on sequences that it has not seen."""
    done = python("-m", "fastrnn", "demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 3
