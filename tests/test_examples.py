"""The examples of the documentation run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from support.python import Python

import fastrnn
from fastrnn.backends import available_isas

README = Path(__file__).resolve().parents[1] / "README.md"
PACKAGE = Path(fastrnn.__file__).parent
FRAMEWORKS = ("torch", "onnx", "jax", "keras")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


#: whose examples need more than the package itself
MARKS: dict[str, tuple[Any, ...]] = dict.fromkeys(
    FRAMEWORKS, (pytest.mark.oracle, pytest.mark.filterwarnings("ignore"))
)  # by their imports
MARKS["convert.c"] = (pytest.mark.skipif(not available_isas(), reason="no native implementation is installed"),)


def modules() -> list[Any]:
    """Those with examples."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if ">>> " in path.read_text() and name != "__init__":
            found.append(pytest.param(name, marks=MARKS.get(name, MARKS.get(name.partition(".")[0], ()))))
    return found


@pytest.mark.parametrize("module", modules())
def test_docstrings(module: str, request: pytest.FixtureRequest) -> None:
    if (framework := module.partition(".")[0]) in FRAMEWORKS:
        request.getfixturevalue(framework)
    threads = fastrnn.get_num_threads()
    failed, attempted = doctest.testmod(importlib.import_module(f"fastrnn.{module}"))
    fastrnn.set_num_threads(threads)
    assert (attempted > 0, failed) == (True, 0)


def test_every_public_function_has_an_example() -> None:
    functions = [f for name in fastrnn.__all__ if isinstance(f := getattr(fastrnn, name), FunctionType)]
    assert not [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")]


def test_readme(python: Python) -> None:
    """The README's Python blocks run one after the other, as a reader would type them."""
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
    """The demo learns the echo task and reports its error on unseen sequences."""
    done = python("-m", "fastrnn", "demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 3
