"""The cells that are compiled into the package, in C over src/cell.h: run by CMake when it is built.

    python fastrnn/cells/generate.py FOLDER

writes one cell_<family>.c for each family of built-in cells, cell_catalogue.c for all others, cells.h, their list, and
headers.h, which holds the text of the headers that `fastrnn.to_c` copies into what it writes.
Nothing is written that is there already, so that only what changed is compiled again. Of fastrnn it imports what needs
no extension: that is not built yet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrnn.cells import Cell

#: Activations of gates, and of candidates, of the LSTMs and GRUs: all of Keras' layers, old and new, with tanh or relu.
GATES, CANDIDATES = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"), ("tanh", "relu")

#: The headers of src that know nothing of the kernels, in the order in which they include one another.
HEADERS = ("lanes.h", "activation.h", "softmax.h", "single.h")


def chosen() -> Iterator[Cell]:
    """What needs no compiler where it runs: the built-in cells, then of the catalogue those that are met most."""
    from fastrnn import catalogue
    from fastrnn.cells import CELLS

    yield from CELLS.values()
    for gate, candidate in product(GATES, CANDIDATES):
        yield catalogue.lstm_with(gate, candidate, candidate)
        for reset_after in (True, False):
            yield catalogue.gru_with(gate, candidate, reset_after=reset_after)
    yield catalogue.cifg_lstm_input
    yield catalogue.cifg_lstm_forget
    yield catalogue.ind_rnn
    yield catalogue.min_gru
    yield catalogue.leaky_esn


def compiled() -> dict[str, Cell]:
    """Those by their names in C, in the order in which the core has them; each once."""
    cells: dict[str, Cell] = {}
    for cell in chosen():
        cells.setdefault(cell.digest, cell)
    return {
        cell.name if cell.builtin else f"{cell.name.partition('(')[0]}_{cell.digest}": cell for cell in cells.values()
    }


def main(folder: Path) -> None:
    from fastrnn.cells.c import source

    cells = compiled()
    entries = " \\\n".join(f"    CELL({name})" for name in cells)
    write(folder / "cells.h", f"#define FRNN_CELLS(CELL) \\\n{entries}\n")
    write(folder / "headers.h", f"static const char frnn_headers[] =\n{literal(headers())};\n")
    families: dict[str, dict[str, Cell]] = {}
    for name, cell in cells.items():
        families.setdefault(cell.family if cell.builtin else "catalogue", {})[name] = cell
    for family, its in families.items():
        write(folder / f"cell_{family}.c", source(its))
    for path in folder.glob("cell_*.c"):  # CMake compiles all that it finds
        if path.stem.removeprefix("cell_") not in families:
            path.unlink()


def headers() -> str:
    """One after another, without what includes them."""
    source = Path(__file__).parents[2] / "src"
    lines = "".join([(source / name).read_text() for name in HEADERS]).splitlines()
    return "".join([f"{line}\n" for line in lines if not line.startswith('#include "')])


def literal(text: str) -> str:
    """A string of C."""
    lines = [line.replace("\\", "\\\\").replace('"', '\\"') for line in text.splitlines()]
    return "\n".join([f'    "{line}\\n"' for line in lines])


def write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    package = ModuleType("fastrnn")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["fastrnn"] = package
    sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]
    os.environ["FASTRNN_BACKEND"] = "numpy"  # or the import would warn that there is no extension
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]))
