"""A cell's loops as C over src/cell.h, src/vec.h and src/activation.h."""

from __future__ import annotations

from collections.abc import Iterable

from fastrnn.cells.definition import Cell
from fastrnn.cells.graph import COMPARISONS, Node
from fastrnn.cells.program import BLOCKS, Loop, Place, Program

#: What each operation is, of its arguments.
FORMS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "fma": "FMA({}, {}, {})",
    "fms": "FMA({}, {}, -{})",
    "fnma": "FMA(-{}, {}, {})",
    "mix": "FMA({0}, {2} - {1}, {1})",
    "sigmoid": "vsigmoid({})",
    "tanh": "vtanh({})",
    "relu": "VMAX(splat(0), {})",
    "clip": "VMIN({2}, VMAX({1}, {0}))",
    "where": "choose({}, {}, {})",
} | dict(zip(COMPARISONS, ("{} < {}", "{} <= {}", "{} > {}", "{} >= {}", "{} == {}", "{} != {}"), strict=True))

#: Where an array begins for row r; "same" lies behind the kept fields.
ROWS = {"prev": "t->prev[r] + at", "wx": "row_of(t->wx, r)", "uh": "row_of(t->uh, r)", "dout": "row_of(t->dout, r)"}


def source(cells: Iterable[Cell]) -> str:
    """The whole of a cell_<family>.c."""
    parts = ["/* Generated from fastrnn/cells. */", '#include "activation.h"', '#include "cell.h"', ""]
    for cell in cells:
        program = cell.program
        for q, phase in enumerate(program.phases):
            parts.append(function(program, f"{cell.name}_forward_{q}", "ForwardTile", phase.forward, q))
            parts.append(function(program, f"{cell.name}_backward_{q}", "BackwardTile", [phase.backward], q))
        parts.append(table(cell))
    return "\n".join(parts)


def table(cell: Cell) -> str:
    """The entry that the drivers read."""
    fields = dict(shape(cell.program))
    fields["name"] = f'"{cell.name}"'
    for way in ("forward", "backward"):
        fields[way] = "{" + ", ".join(f"{cell.name}_{way}_{q}" for q in range(len(cell.program.phases))) + "}"
    lines = ",\n".join(f"    .{name} = {value}" for name, value in fields.items())
    return f"const Cell X({cell.name}) = {{\n{lines},\n}};\n"


def shape(program: Program) -> dict[str, str]:
    """What the drivers know of a cell, as initialisers of frnn_cell's fields."""
    numbers = program.shape()
    return {k: "{" + ", ".join(map(str, v)) + "}" if isinstance(v, list) else str(v) for k, v in numbers.items()}


def function(program: Program, name: str, tile: str, loops: list[Loop], q: int) -> str:
    lines = [
        f"static void {name}(const {tile} *t)",
        "{",
        "    const ptrdiff_t at = t->at, n = t->lanes, Hp = t->Hp;",
        "    (void)Hp, (void)at;",
    ]
    for loop in loops:
        once_a_row, each_unit = bodies(program, loop, q)
        lines += [
            "    for (int r = 0; r < t->rows; r++) {",
            *[f"        {line}" for line in pointers(program, loop, q)],
            *[f"        {line}" for line in once_a_row],
            "        for (ptrdiff_t l = 0; l < n; l += LANES) {",
            *[f"            {line}" for line in each_unit],
            "        }",
            "    }",
        ]
    return "\n".join([*lines, "}", ""])


def pointers(program: Program, loop: Loop, q: int) -> list[str]:
    written = {place.array for place, _ in loop.stores}
    arrays = dict.fromkeys(place.array for place in program.places(loop, q))
    starts = ROWS | {"same": f"row_of(t->kept, r) + {len(program.kept)} * Hp"}
    return [
        f"{'' if array in written else 'const '}real *{array} = {starts.get(array, f'row_of(t->{array}, r) + at')};"
        for array in arrays
    ]


def address(place: Place, unit: str = " + l") -> str:
    apart = "n" if place.array in BLOCKS else "LANES" if place.array == "same" else "Hp"
    field = f" + {place.field} * {apart}" if place.field else ""
    return f"{place.array}{field}{unit}"


def bodies(program: Program, loop: Loop, q: int) -> tuple[list[str], list[str]]:
    """What is the same for all units, from their first vector; and what is computed for each."""
    once: list[str] = []
    lines: list[str] = []
    same = program.same_for_all(loop.values())
    for node, op, args in loop.steps():
        kind, unit = "ivec" if op in COMPARISONS else "vec", "" if node in same else " + l"
        value = expression(program, loop, q, node, op, args, unit)
        (once if node in same else lines).append(f"const {kind} v{node.number} = {value};")
    whole = [(place, node) for place, node in loop.stores if place.array != "same" and place not in loop.training]
    stores = [f"store({address(place)}, v{node.number});" for place, node in whole]
    for place, node in loop.stores:
        if place.array == "same":
            once.append(f"if (at == 0) store({address(place, '')}, v{node.number});")
    kept = [f"    store({address(place)}, v{node.number});" for place, node in loop.stores if place in loop.training]
    return once, [*lines, *stores, *(["if (t->keep) {", *kept, "}"] if kept else [])]


def expression(program: Program, loop: Loop, q: int, node: Node, op: str, args: tuple[Node, ...], unit: str) -> str:
    if op == "const":
        return f"splat((real){node.name!r})"
    if op == "load":
        place = loop.loads[node]
        if place.array != "u":
            return f"load({address(place, unit)})"
        product, bias = Place("uh", place.field), Place("b_rec", program.first_product(q) + place.field)
        return f"load({address(product)}) + load({address(bias)})"
    return FORMS[op].format(*[f"v{a.number}" for a in args])
