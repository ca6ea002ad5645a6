"""The documentation is complete: the reference lists every public name, and every example is run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")])


MODULES = [
    "", ".layers", ".initializers", ".training", ".convert", ".inspect", ".plot", ".sklearn", ".torch", ".catalogue",
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_reference(module: str) -> None:
    """Each public name has an entry, as a member of its module or of one that re-exports it."""
    if module in (".sklearn", ".torch"):
        pytest.importorskip(module[1:])
    public = importlib.import_module(f"fastrnn{module}")
    pages = "\n".join(page.read_text() for page in (DOCS / "api").iterdir())
    entries = set(re.findall(r"^\.\. auto(?:function|class|data):: (\w+)", pages, re.MULTILINE))
    assert not set(public.__all__) - entries - {"__version__", "initializers"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_examples_are_doctests(page: Path) -> None:
    """All Python code is in doctest blocks that Sphinx runs, which end with an empty line."""
    text = page.read_text()
    assert not re.findall(r"^```(?:python|py|pycon)$|code-block:: py", text, re.MULTILINE)
    for block in re.findall(r"^```\{doctest\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        assert re.match(r"(:skipif: .*\n)?>>> ", block), block
        assert block.endswith("\n\n"), block
