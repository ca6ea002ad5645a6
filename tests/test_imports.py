"""Imports go one way: no module imports one that imports it, be it late, in a function, or for types alone."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import fastrnn

PACKAGE = Path(fastrnn.__file__).parent

MODULES = {
    ".".join(("fastrnn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """The modules of fastrnn that a file names in its imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if name in MODULES else str(node.module) for name in found)
    return names & MODULES.keys()


def test_imports_go_one_way() -> None:
    """Else there is a CycleError, which has the modules."""
    graph = {name: imported(path) - {name} for name, path in MODULES.items()}
    assert {"fastrnn.checks", "fastrnn.training.chain", "fastrnn.convert"} <= graph.keys()
    assert "fastrnn.call" in graph["fastrnn.checks"]
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("fastrnn.call") < order.index("fastrnn.checks") < order.index("fastrnn.functional")
