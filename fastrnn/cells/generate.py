"""Generate the C of the cells compiled into the package; run by CMake at build time.

    python fastrnn/cells/generate.py FOLDER

writes one cell_<family>.c for each family of built-in cells, cell_catalogue.c for all others, cells.h, their list, and
headers.h, which holds the text of the headers that `fastrnn.to_c` copies into what it writes.
Unchanged files are not rewritten, so that only changed ones are recompiled. It imports only modules of fastrnn that do
not need the extension, which is not built yet.
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

#: Activations of gates and candidates of the LSTMs and GRUs: those of old and new Keras layers with tanh or relu.
GATES, CANDIDATES = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"), ("tanh", "relu")

#: The headers of src that know nothing of the kernels, in the order in which they include one another.
HEADERS = ("lanes.h", "activation.h", "softmax.h", "mean.h", "normalize.h", "single.h")

#: Those that follow them for layers with int8 weights.
INT8_HEADERS = ("int8.h", "single_int8.h")


def chosen() -> Iterator[Cell]:
    """Yield the cells that need no compiler at run time: the built-in ones, then the most used of the catalogue."""
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
    """Return these cells by their C names, in the order of the core, without duplicates."""
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
    texts = {"frnn_headers": HEADERS, "frnn_int8_headers": INT8_HEADERS}
    lines = [f"static const char {array}[] =\n{literal(headers(names))};\n" for array, names in texts.items()]
    write(folder / "headers.h", "".join(lines))
    families: dict[str, dict[str, Cell]] = {}
    for name, cell in cells.items():
        families.setdefault(cell.family if cell.builtin else "catalogue", {})[name] = cell
    for family, its in families.items():
        write(folder / f"cell_{family}.c", source(its))
    for path in folder.glob("cell_*.c"):  # CMake compiles every such file
        if path.stem.removeprefix("cell_") not in families:
            path.unlink()


def headers(names: tuple[str, ...]) -> str:
    """Return the text of these headers, concatenated, without their own includes."""
    source = Path(__file__).parents[2] / "src"
    lines = "".join([(source / name).read_text() for name in names]).splitlines()
    return "".join([f"{line}\n" for line in lines if not line.startswith('#include "')])


def literal(text: str) -> str:
    """Return text as a C string literal."""
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
    os.environ["FASTRNN_BACKEND"] = "numpy"  # avoids the warning about the missing extension
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]))
