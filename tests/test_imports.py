"""Imports go one way: there are no import cycles, even in functions or only for types."""

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
    """Return the modules of fastrnn that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if name in MODULES else str(node.module) for name in found)
    return names & MODULES.keys()


#: private names of PyTorch without a public alternative
PYTORCH = {
    *("_C", "_add_batch_dim", "_are_functorch_transforms_active", "_current_level", "_dynamo", "_functorch"),
    *("_get_tracing_state", "_init_flat_weights", "_len_torch_dispatch_stack", "_remove_batch_dim"),
    *("_torchdynamo_disable", "_version", "_vmapmode_decrement_nesting", "_vmapmode_increment_nesting"),
}

NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}


def reached_into(path: Path) -> list[str]:
    """Return the private members of other modules that a file uses."""
    tree = ast.parse(path.read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    members = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and private(node.attr)]
    own = [node for node in members if ast.unparse(node.value) in ("self", "cls", "super()")]
    defined |= {node.attr for node in own}
    foreign = [ast.unparse(node) for node in members if node not in own and node.attr not in defined]
    modules = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return foreign + [alias.name for node in modules for alias in node.names if private(alias.name)]


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PYTORCH | NAMEDTUPLE


def test_private_members_stay_in_their_module() -> None:
    found = {str(path.relative_to(PACKAGE)): names for path in MODULES.values() if (names := reached_into(path))}
    assert not found


def test_private_members_are_detected(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("from a import _b\n\n\ndef f(c):\n    return c._d(c._replace(), c.e)\n")
    assert reached_into(tmp_path / "module.py") == ["c._d", "_b"]


def test_imports_go_one_way() -> None:
    """Otherwise a CycleError names the modules."""
    graph = {name: imported(path) - {name} for name, path in MODULES.items()}
    assert {"fastrnn.checks", "fastrnn.training.chain", "fastrnn.convert"} <= graph.keys()
    assert "fastrnn.call" in graph["fastrnn.run"]
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("fastrnn.checks") < order.index("fastrnn.run") < order.index("fastrnn.functional")


def test_no_test_imports_another() -> None:
    """Code that several tests share is in tests/support."""
    for path in Path(__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.startswith("test_")], path
