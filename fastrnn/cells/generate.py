"""The built-in cells in C, over src/cell.h: run by CMake when the package is built.

    python fastrnn/cells/generate.py FOLDER

writes one cell_<family>.c for each family of cells, and cells.h, their list. Nothing is written that is there already,
so that only what changed is compiled again. It wants this package alone: the rest of fastrnn is not built yet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def main(folder: Path) -> None:
    from fastrnn.cells import CELLS, Cell
    from fastrnn.cells.c import source

    entries = " \\\n".join(f"    CELL({name})" for name in CELLS)
    write(folder / "cells.h", f"#define FRNN_CELLS(CELL) \\\n{entries}\n")
    families: dict[str, list[Cell]] = {}
    for cell in CELLS.values():
        families.setdefault(cell.family, []).append(cell)
    for family, cells in families.items():
        write(folder / f"cell_{family}.c", source(cells))
    for path in folder.glob("cell_*.c"):  # CMake compiles all that it finds
        if path.stem.removeprefix("cell_") not in families:
            path.unlink()


def write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    package = ModuleType("fastrnn")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["fastrnn"] = package
    sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]))
