"""Code never looks at the name of a cell to find out its family or kind: the cell itself says so.

Other frameworks' names of cells are in `fastrnn.frameworks`, and are looked up there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.frameworks import CUDNN, KERAS, ONNX, PYTORCH

PACKAGE = Path(fastrnn.__file__).parent

#: files that may contain names
HOME = ("frameworks.py", "cells/")

FAMILIES = {cell.family for cell in CELLS.values()}
NAMES = FAMILIES | CELLS.keys() | {*PYTORCH.families, *KERAS.families, *ONNX.families, *CUDNN}

#: "lstm", "LSTMCell", "rnn_" and similar, in any case
NAME = re.compile(rf"({'|'.join(NAMES)})(_|cell)?", re.IGNORECASE)

#: methods that split a name, or test its beginning or end
SURGERY = ("startswith", "endswith", "removeprefix", "removesuffix", "replace", "split", "partition", "rpartition")


def named(node: ast.AST) -> list[str]:
    """Return the names of cells among the strings in a part of a comparison."""
    strings = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [text for text in strings if NAME.fullmatch(text)]


def asked_by_name(source: str) -> list[str]:
    """Find comparisons with a cell's name, look-ups in an inline table, and splitting of names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            parts = [key for key in node.value.keys if key is not None]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SURGERY:
            parts = [*node.args]
            if cell_of(node.func.value):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        if any(named(part) for part in parts):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def cell_of(node: ast.AST) -> bool:
    """Return whether it is `cell.name` or `cell.family` of any cell."""
    if not isinstance(node, ast.Attribute) or node.attr not in ("name", "family"):
        return False
    return ast.unparse(node.value).rpartition(".")[2] in ("cell", "_cell")


def test_no_code_depends_on_a_cells_name() -> None:
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    assert set(HOME) & paths.keys()
    found = {name: asked for name, path in paths.items() if (asked := asked_by_name(path.read_text()))}
    assert not {name: asked for name, asked in found.items() if not name.startswith(HOME)}


@pytest.mark.parametrize(
    "source",
    [
        'cell.family == "lstm"',
        'kind != "GRU"',
        'op in ("LSTM", "other")',
        '"rnn_tanh" == name',
        'name.removeprefix("rnn_")',
        'name.startswith("lstm")',
        'cell.name.split("_")[0]',
        'layer.stack.cell.name.partition("_")',
        '{"gru": 3, "lstm": 4}[family]',
        'match op:\n    case "SimpleRNN":\n        pass',
    ],
)
def test_names_are_detected(source: str) -> None:
    assert asked_by_name(source)


@pytest.mark.parametrize("source", ['find("lstm", peephole=True)', 'name.startswith("weight_hh")', 'a == "tanh"'])
def test_other_strings_are_ignored(source: str) -> None:
    assert not asked_by_name(source)
