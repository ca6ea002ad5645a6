"""The C source of a model under construction.

All sizes are constants. Vectors between layers are padded to the vector width of the widest instruction set, so that
one file works on all of them; products read no padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells.c_functions import UNFUSED, WRITTEN, function
from fastrnn.types import Array
from fastrnn.weight_dtypes import int8_codes

#: Bytes of the widest vector, and of a row of a panel (src/single.h).
VECTOR, PANEL = 64, 256


class Sequence(NamedTuple):
    """An array (T, width) in C."""

    name: str
    width: int
    kind: str

    def at(self, t: str) -> str:
        return f"{self.name} + {t} * {self.width}"


class Source:
    """Arrays, functions, and the statements of a step, of the end, or of a whole sequence."""

    def __init__(self, name: str, dtype: np.dtype[Any], inputs: int | None) -> None:
        self.name, self.dtype, self.inputs = name, dtype, inputs
        self.real = "float" if dtype == np.float32 else "double"
        self.numbers = 0  #: rows of the embedding table, if `inputs` is None
        self.helpers: dict[tuple[str, bool], str] = {}
        self.arrays: list[str] = []
        self.functions: list[str] = []
        self.states: list[str] = []  #: members of the struct
        self.body: list[str] = []  #: statements of every step
        self.head: list[str] = []  #: statements after the layer that returns only the last step
        self.last = ""  #: the output of that layer; "" without one
        self.x, self.width = "x", inputs or 1  #: what the next layer reads
        self.sequence = Sequence("x", self.width, "int32_t" if inputs is None else self.real)  #: what `body` reads
        self.passes: list[str] = []  #: statements of a whole sequence, if a layer needs all steps at once
        self.work = 0  #: numbers per step of the arrays of these
        self.recurrent = False  #: whether it is the output of a recurrent layer
        self.int8 = False  #: whether a matrix is stored as int8
        self.count = 0

    def number(self) -> int:
        self.count += 1
        return self.count - 1

    def padded(self, n: int) -> int:
        lanes = VECTOR // self.dtype.itemsize
        return -(-n // lanes) * lanes

    def array(self, name: str, a: Array) -> str:
        if not np.isfinite(a).all():
            raise ValueError("model: expected finite weights and outputs, got NaN or infinity")
        if a.dtype == np.int8:
            return lines_of("int8_t", name, a.ravel().tolist())
        end = "f" if self.dtype == np.float32 else ""
        return lines_of(f"{self.real}", name, [f"{text(v)}{end}" for v in a.ravel().tolist()])

    def keep(self, name: str, a: Array) -> str:
        """Add an array to the file; return its name."""
        self.arrays.append(self.array(name, a))
        return name

    def rows(self, name: str, a: Array | None) -> str:
        """Add an array of a matrix's rows, each padded; return its name, or "0" for None."""
        return "0" if a is None else self.keep(name, padded(a, self.padded(a.shape[-1])))

    def matrix(self, name: str, a: Array, gates: int = 1) -> str:
        """Add an array of a (gates * H, K) matrix in the layout of `multiply`; return its name."""
        return self.keep(name, self.panels(self.columns(a, gates)))

    def matrices(self, name: str, blocks: Array) -> str:
        """Add an array of (H, K) matrices, each in the layout of `multiply`; return its name."""
        return self.keep(name, np.concatenate([self.panels(self.columns(block, 1)) for block in blocks]))

    def int8_matrix(self, name: str, a: Array, gates: int = 1) -> str:
        """Add the arrays of a (gates * H, K) matrix for `multiply_int8`; return their names, separated by a comma."""
        self.int8 = True
        codes, scales = int8_codes(a)
        columns = np.pad(self.columns(codes, gates), [(0, a.shape[1] % 2), (0, 0)])
        matrix = self.keep(name, self.panels(columns.reshape(-1, 2, columns.shape[1]).swapaxes(1, 2)))
        return f"{matrix}, {self.rows(f'{name}_scales', scales.reshape(gates, -1))}"

    def columns(self, a: Array, gates: int) -> Array:
        """Return a (gates * H, K) matrix as (K, columns), those of each gate padded."""
        n, K = a.shape
        columns = padded(a.reshape(gates, n // gates, K).swapaxes(1, 2), self.padded(n // gates))
        return columns.swapaxes(0, 1).reshape(K, -1)

    def panels(self, whole: Array) -> Array:
        """Return an array (rows, columns, ...) cut into panels of columns, one after another."""
        width = PANEL // self.dtype.itemsize
        return np.concatenate([whole[:, c : c + width].ravel() for c in range(0, whole.shape[1], width)])

    def call(self, names: set[str], *, int8: bool) -> None:
        """Add the functions of these names that are not in src/activation.h."""
        for name in UNFUSED if int8 else WRITTEN:
            if name in names:
                self.helpers[name, int8] = function(name, 8 * self.dtype.itemsize, fused=not int8)

    def statements(self, *lines: str) -> None:
        (self.head if self.last else self.body).extend(lines)

    def gives(self, x: str, width: int, *, recurrent: bool = False) -> None:
        self.x, self.width, self.recurrent = x, width, recurrent

    def gives_last(self) -> None:
        self.last = self.last or self.x

    def whole(self, width: int) -> Sequence:
        """Add an array of all steps."""
        name = f"all_{self.number()}"
        self.passes.append(f"real *const {name} = work + T * {self.work};")
        self.work += width
        return Sequence(name, width, "real")

    def all_steps(self) -> Sequence:
        """Run the statements of a step on every step; return what the last of them gives."""
        if self.body:
            self.passing(self.whole(self.width))
        return self.sequence

    def passing(self, made: Sequence | None) -> None:
        """Make a function of the statements of a step, and call it for every step; `made` receives their results."""
        i, read = self.number(), self.sequence
        lines = ["(void)state;", *self.body, *([f"memcpy(y, {self.x}, {made.width} * sizeof *y);"] if made else [])]
        text = "".join([f"    {line}\n" for line in lines])
        y = ", real *y" if made else ""
        self.functions.append(
            f"static void steps_{i}({self.name}_state *state, const {read.kind} *x{y})\n{{\n{text}}}\n"
        )
        to = f", {made.at('t')}" if made else ""
        self.passes.append(f"for (size_t t = 0; t < T; t++) steps_{i}(state, {read.at('t')}{to});")
        self.body = []
        if made:
            self.sequence, self.x = made, "x"

    def end(self) -> None:
        """Copy the last layer's output to the caller's y."""
        if self.passes and (self.body or not self.last):
            self.passing(None if self.last else Sequence("y", self.width, "real"))
        if self.last or not self.passes:
            self.statements(f"memcpy(y, {self.x}, {self.width} * sizeof *y);")
        if self.last and self.passes:
            self.passes.append("finish(state, y);")


def text(value: float) -> str:
    """Return an exact C literal (hexadecimal) of a number."""
    digits, _, exponent = value.hex().partition("p")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}p{exponent}"


def lines_of(kind: str, name: str, values: list[Any]) -> str:
    lines = [", ".join(map(str, values[i : i + 8])) for i in range(0, len(values), 8)]
    return f"static const {kind} {name}[] ALIGNED = {{\n    " + ",\n    ".join(lines) + "};\n"


def padded(a: Array, n: int) -> Array:
    """Pad the last axis with zeros to n."""
    return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, n - a.shape[-1])])
