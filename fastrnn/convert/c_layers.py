"""Write layers as C on top of src/single.h: arrays of weights, a function per recurrent layer, and a step's statements.

All sizes are constants. Vectors between layers are padded to the vector width of the widest instruction set, so that
one file works on all of them; products read no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.cells import Array, Cell
from fastrnn.cells.c import FORMS, inference
from fastrnn.cells.c_functions import WRITTEN, function
from fastrnn.cells.graph import needed
from fastrnn.convert.stack import unstacked
from fastrnn.layers import Activation, Dense, Dropout, Embedding, LastStep, Layer
from fastrnn.layers.recurrent import Recurrent
from fastrnn.packed import Part

#: Bytes of the widest vector, and of a row of a panel (src/single.h).
VECTOR, PANEL = 64, 256


class Source:
    """The C source of a model under construction."""

    def __init__(self, dtype: np.dtype[Any], inputs: int | None) -> None:
        self.dtype, self.inputs = dtype, inputs
        self.real = "float" if dtype == np.float32 else "double"
        self.numbers = 0  #: rows of the embedding table, if `inputs` is None
        self.helpers: dict[str, str] = {}
        self.arrays: list[str] = []
        self.functions: list[str] = []
        self.states: list[str] = []  #: members of the struct
        self.body: list[str] = []  #: statements of every step
        self.head: list[str] = []  #: statements after the layer that returns only the last step
        self.last = ""  #: the output of that layer; "" without one
        self.x, self.width = "x", inputs or 1  #: what the next layer reads
        self.recurrent = False  #: whether it is the output of a recurrent layer
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
        n, K = a.shape
        columns = padded(a.reshape(gates, n // gates, K).swapaxes(1, 2), self.padded(n // gates))
        whole = columns.swapaxes(0, 1).reshape(K, -1)
        width = PANEL // self.dtype.itemsize
        panels = [whole[:, c : c + width].ravel() for c in range(0, whole.shape[1], width)]
        return self.keep(name, np.concatenate(panels))

    def call(self, names: set[str]) -> None:
        """Add the functions of these names that are not in src/activation.h."""
        for name in WRITTEN:
            if name in names:
                self.helpers[name] = function(name, 8 * self.dtype.itemsize)

    def statements(self, *lines: str) -> None:
        (self.head if self.last else self.body).extend(lines)

    def gives(self, x: str, width: int, *, recurrent: bool = False) -> None:
        self.x, self.width, self.recurrent = x, width, recurrent

    def gives_last(self) -> None:
        self.last = self.last or self.x

    def end(self) -> None:
        """Copy the last layer's output to the caller's y."""
        self.statements(f"memcpy(y, {self.x}, {self.width} * sizeof *y);")


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


def write_recurrent(source: Source, layer: Recurrent) -> None:
    refuse(layer)
    for one in unstacked(layer):
        if isinstance(one, Recurrent):
            write_one(source, one, one.stack.parts[0])
    if not layer.return_sequences:
        source.gives_last()


def refuse(layer: Recurrent) -> None:
    """Raise ValueError for options that a step in C does not support."""
    cell = layer.stack.inference
    if layer.bidirectional:
        raise ValueError("bidirectional: expected False, got True, because a step in C cannot see later steps")
    if layer.heads > 1:
        raise ValueError(f"heads: expected 1, got {layer.heads}")
    if layer.weight_dtype is not None:
        raise ValueError(f"weight_dtype: expected None, got {layer.weight_dtype!r}; weights in C are float32")
    if cell.inputs:
        raise ValueError(f"cell: {cell.name} has extra inputs {', '.join(cell.inputs)}; expected one without")
    if beyond := {node.op for node in needed(cell.program.after)} & {"sin", "cos"}:
        raise ValueError(f"cell: {cell.name} uses {min(beyond)}, which in C needs a library; expected one without")


def write_one(source: Source, layer: Recurrent, part: Part) -> None:
    """Write the function of one layer; its state array holds the states, then the projected output."""
    i, cell, program = source.number(), layer.stack.inference, layer.stack.inference.program
    H, P, G, S = layer.hidden_size, layer.proj_size, cell.G, len(cell.states)
    Hp, Pp = source.padded(H), source.padded(P)
    source.call({node.op for node in needed(program.after)})
    y = "state" if not P else f"state + {S} * Hp"
    W, bias = source.matrix(f"W_{i}", part["W"], G), source.rows(f"bias_{i}", bias_of(cell, part))
    lines = [f"multiply({G} * Hp, {layer.input_size}, {W}, {bias}, x, wx);"]
    arrays = set[str]()
    for q, phase in enumerate(program.phases):
        if phase.gates:
            U = by_product(cell, part["U"], phase.gates)
            left = y if q not in program.made else f"kept + {program.places_kept[program.made[q]].field} * Hp"
            matrix = source.matrix(f"U_{i}_{q}", U.reshape(-1, U.shape[-1]), len(phase.gates))
            lines.append(f"multiply({len(phase.gates)} * Hp, {U.shape[-1]}, {matrix}, 0, {left}, uh);")
        first = sum(len(before.means) for before in program.phases[:q])
        for j in range(len(phase.means)):
            lines.append(f"store(uh + {j} * Hp, splat(mean_of(made + {first + j} * Hp, {H})));")
        loops, named = inference(program, q)
        lines, arrays = lines + loops, arrays | named
    if P:
        lines.append(f"multiply({Pp}, {H}, {source.matrix(f'R_{i}', part['R'])}, 0, state, {y});")
    pointers: dict[str, Callable[[], str]] = {
        "prev": lambda: "const real *const prev = state;",
        "next": lambda: "real *const next = state;",
        "uh": lambda: f"real uh[{max(len(phase.gates + phase.means) for phase in program.phases)} * Hp] ALIGNED;",
        "made": lambda: f"real made[{len(program.means)} * Hp] ALIGNED;",
        "same": lambda: f"real same[{len(program.kept_same)} * LANES] ALIGNED;",
        "kept": lambda: f"real kept[{len(program.kept)} * Hp] ALIGNED;",
        "b_rec": lambda: f"const real *const b_rec = {source.rows(f'b_rec_{i}', biases(cell, part))};",
        "p": lambda: f"const real *const p = {source.rows(f'p_{i}', part['p'].reshape(-1, H))};",
    }
    begin = [f"enum {{ Hp = {Hp}, n = Hp }};", f"real wx[{G} * Hp] ALIGNED;"]
    begin += [line() for array, line in pointers.items() if array in arrays]
    text = "".join([f"    {line}\n" for line in [*begin, *lines]])
    source.functions.append(f"/* {layer!r} */\nstatic void layer_{i}(const real *x, real *state)\n{{\n{text}}}\n")
    source.states.append(f"{source.real} layer_{i}[{S * Hp + Pp}]; /* {', '.join(cell.states)}: each {Hp} */")
    source.statements(f"layer_{i}({source.x}, state->layer_{i});")
    source.gives(f"state->layer_{i}" + (f" + {S * Hp}" if P else ""), P or H, recurrent=True)


def by_product(cell: Cell, a: Array, gates: tuple[str, ...]) -> Array:
    """Select these gates from an array stacked by product along the first axis; return (gates, H, ...)."""
    n = len(cell.products)
    return a.reshape(n, len(a) // n, *a.shape[1:])[[cell.products.index(g) for g in gates]]


def biases(cell: Cell, part: Part) -> Array:
    """Return b_rec (products, H) in the order of the phases."""
    n, (rows, _) = len(cell.products), part["W"].shape
    own = part["b_rec"] if "b_rec" in part else np.zeros(n * (rows // cell.G), part["W"].dtype)
    return by_product(cell, own, cell.program.order)


def bias_of(cell: Cell, part: Part) -> Array | None:
    """Return b plus b_rec of the products that are simply added, (G, H), summed as in src/weights.c; None if absent."""
    if not part.keys() & {"b", "b_rec"}:
        return None
    rows = len(part["W"])
    total = part["b"] if "b" in part else np.zeros(rows, part["W"].dtype)
    total = total.reshape(cell.G, -1) + 0
    for g in cell.program.order:
        if g not in cell.program.apart:
            total[cell.gates.index(g)] += biases(cell, part)[cell.program.order.index(g)]
    return total


def write_dense(source: Source, layer: Dense) -> None:
    i, N, x = source.number(), layer.output_size, source.x
    W = source.matrix(f"W_{i}", layer.weight)
    bias = source.rows(f"bias_{i}", None if layer.bias is None else layer.bias[None])
    source.statements(
        f"real y_{i}[{source.padded(N)}] ALIGNED;",
        f"multiply({source.padded(N)}, {layer.input_size}, {W}, {bias}, {x}, y_{i});",
    )
    source.gives(f"y_{i}", N)
    apply(source, layer.activation)


def write_activation(source: Source, layer: Activation) -> None:
    if layer.activation == "identity":
        return
    i, n = source.number(), source.width
    source.statements(
        f"real y_{i}[{source.padded(n)}] ALIGNED = {{0}};", f"memcpy(y_{i}, {source.x}, {n} * sizeof(real));"
    )
    source.gives(f"y_{i}", n)
    apply(source, layer.activation)


def apply(source: Source, function: str) -> None:
    """Apply a function to the last layer's output, in place."""
    y = source.x
    if function == "softmax":
        source.statements(f"softmax({y}, {y}, {source.width});")
    elif function != "identity":
        value, n = FORMS[function].format(f"load({y} + l)"), source.padded(source.width)
        source.statements(f"for (ptrdiff_t l = 0; l < {n}; l += LANES) store({y} + l, {value});")


def write_embedding(source: Source, layer: Embedding) -> None:
    i, (n, E) = source.number(), layer.weight.shape
    table = source.keep(f"table_{i}", layer.weight)
    source.numbers = n
    source.statements(
        f"real y_{i}[{E}];",
        f"for (int k = 0; k < {E}; k++)",
        f'    y_{i}[k] = *x >= 0 && *x < {n} ? {table}[(ptrdiff_t)*x * {E} + k] : (real)__builtin_nan("");',
    )
    source.gives(f"y_{i}", E)


def write_last(source: Source, layer: LastStep) -> None:
    if not source.recurrent:
        raise ValueError("expected only directly after a recurrent layer")
    source.gives_last()


def leave_out(source: Source, layer: Layer) -> None:
    """Omit a layer that only acts in training."""


WRITERS: dict[type[Layer], Callable[[Source, Any], None]] = {
    Recurrent: write_recurrent,
    Dense: write_dense,
    Activation: write_activation,
    Embedding: write_embedding,
    LastStep: write_last,
    Dropout: leave_out,
}
