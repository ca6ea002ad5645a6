"""A cell says itself what it is: nothing asks for its family, or for what it is, by a name.

What others call a cell stands in `fastrnn.frameworks`, and is looked up there.
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

#: Where names are at home.
HOME = ("frameworks.py", "cells/")

FAMILIES = {cell.family for cell in CELLS.values()}
NAMES = FAMILIES | CELLS.keys() | {*PYTORCH.families, *KERAS.families, *ONNX.families, *CUDNN}

#: "lstm", "LSTMCell", "rnn_" and their like, whatever the case.
NAME = re.compile(rf"({'|'.join(NAMES)})(_|cell)?", re.IGNORECASE)

#: Methods that take a name apart, or ask what it begins or ends in.
SURGERY = ("startswith", "endswith", "removeprefix", "removesuffix", "replace", "split", "partition", "rpartition")


def named(node: ast.AST) -> list[str]:
    """The names of cells among the strings in a part of a comparison."""
    strings = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [text for text in strings if NAME.fullmatch(text)]


def asked_by_name(source: str) -> list[str]:
    """Comparisons with a cell's name, look-ups in a table that is made on the spot, and surgery on names."""
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
    """Whether it is `cell.name` or `cell.family`, of any cell."""
    if not isinstance(node, ast.Attribute) or node.attr not in ("name", "family"):
        return False
    return ast.unparse(node.value).rpartition(".")[2] in ("cell", "_cell")


def test_nothing_asks_by_name() -> None:
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
def test_names_are_seen(source: str) -> None:
    assert asked_by_name(source)


@pytest.mark.parametrize("source", ['find("lstm", peephole=True)', 'name.startswith("weight_hh")', 'a == "tanh"'])
def test_other_strings_are_left_alone(source: str) -> None:
    assert not asked_by_name(source)
