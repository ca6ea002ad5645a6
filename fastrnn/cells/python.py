"""Generate Python for loops on arrays: run by the NumPy and Numba backends, and printed as a cell's derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.cells.functions import ARRAYS
from fastrnn.cells.graph import COMPARISONS, FUNCTIONS, Node, needed
from fastrnn.cells.program import Loop, Program

#: Precedence and format of each operator.
OPERATORS = {
    "add": (1, "{} + {}"),
    "sub": (1, "{} - {}"),
    "mul": (2, "{} * {}"),
    "div": (2, "{} / {}"),
    "neg": (3, "-{}"),
}
BINDING = {op: own for op, (own, _) in OPERATORS.items()} | {"mix": 1} | dict.fromkeys(COMPARISONS, 0)
TESTS = dict(zip(COMPARISONS, ("<", "<=", ">", ">=", "==", "!="), strict=True))


def compiled(loop: Loop, names: dict[Node, str], dtype: Any, njit: Callable[..., Any] | None = None) -> Any:
    """Compile the loop to a function from the arrays it loads, in `loop.loads` order, to a tuple of those it stores.

    `njit` compiles the functions that it calls.
    """
    scope: dict[str, Any] = {f: ARRAYS[f] if njit is None else njit(ARRAYS[f]) for f in FUNCTIONS}
    writer = Writer(names, scope, np.dtype(dtype).type)
    arguments = [writer.name(node) for node in loop.loads]
    lines = [*writer.lines(loop), f"    return ({''.join(f'{writer.text(node)}, ' for _, node in loop.stores)})"]
    source = "\n".join([f"def loop({', '.join(arguments)}):", *lines])
    exec(source, scope)
    return scope["loop"]


def derivative(program: Program, names: dict[Node, str]) -> str:
    """Return the backward loops as readable text."""
    blocks = []
    for q in range(len(program.phases) - 1, -1, -1):
        whole = program.phases[q].backward
        handed = {
            n: f"handed_{place.field - len(program.states)}"
            for n, place in whole.loads.items()
            if program.is_pending(place)
        }
        loads = {n: place for n, place in whole.loads.items() if n in names or n in handed}
        loop = Loop(loads, whole.stores)
        writer = Writer(names | handed, None, float)
        lines = [line.strip() for line in writer.lines(loop)]
        for place, node in loop.stores:
            lines.append(f"{target(program, place)} = {writer.text(node)}")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def target(program: Program, place: Any) -> str:
    """Return the name of a gradient that a backward loop stores."""
    match place.array:
        case "da":
            return f"dx_{program.gates[place.field]}"
        case "da_rec":
            k = place.field - len(program.order)
            return f"du_{program.order[place.field]}" if k < 0 else f"dmean_{k}"
        case "dp":
            return f"dp_{program.parameters[place.field]}"
        case "de":
            return f"de_{program.inputs[place.field]}"
    states = program.states
    return f"handed_{place.field - len(states)}" if program.is_pending(place) else f"d{states[place.field]}_prev"


def node_names(program: Program) -> dict[Node, str]:
    """Name the meaningful values: x_f, u_f, c_prev, p_i; gates, next states, gradients."""
    names: dict[Node, str] = {}
    for node in program.graph.nodes:
        match node.op:
            case "x" | "u":
                names[node] = f"{node.op}_{node.name}"
            case "state":
                names[node] = f"{node.name}_prev"
            case "parameter" | "input":
                names[node] = f"{node.op[0] if node.op == 'parameter' else 'e'}_{node.name}"
            case "dstate":
                names[node] = f"d{program.states[node.name]}"
            case "doperand":
                names[node] = "doperand_" + "_".join(str(k) for k in node.name)
    names |= {mean: f"mean_{k}" for k, mean in enumerate(program.means)}
    for state, node in zip(program.states, program.after, strict=True):
        names.setdefault(node, state)
    taken = {*names.values(), *FUNCTIONS}
    forward = needed(program.after)
    for node in forward:
        if node.op not in FUNCTIONS or node in names:
            continue
        gates = _gates_behind(node, names)
        name = next(iter(gates)) if len(gates) == 1 else f"{node.op}_{names.get(node.args[0], '')}".rstrip("_")
        if name.isidentifier() and name not in taken:
            names[node] = name
            taken.add(name)
    return names


def _gates_behind(node: Node, names: dict[Node, str]) -> set[str]:
    """Return the gates whose x or u a value depends on, not through already named values."""
    found, stack = set(), list(node.args)
    while stack:
        a = stack.pop()
        if a.op in ("x", "u"):
            found.add(a.name)
        elif a not in names:
            stack.extend(a.args)
    return found


class Writer:
    """Writes expressions: values used once are inlined, the others get a line and a name."""

    def __init__(self, names: dict[Node, str], scope: dict[str, Any] | None, constant: Callable[[float], Any]) -> None:
        self._names, self._scope, self._constant = names, scope, constant
        self._own: dict[Node, str] = {}
        self._numbers: dict[str, str] = {}
        self._lined: set[Node] = set()

    def name(self, node: Node) -> str:
        if node in self._names:
            return self._names[node]
        return self._own.setdefault(node, f"v{len(self._own)}")

    def lines(self, loop: Loop) -> list[str]:
        values = loop.values()
        uses: dict[Node, int] = {}
        for node in (a for v in values if v not in loop.loads for a in v.args):
            uses[node] = uses.get(node, 0) + 1
        for _, node in loop.stores:
            uses[node] = uses.get(node, 0) + 1
        self._lined = set(loop.loads)
        lines = []
        for node in values:
            simple = node in loop.loads or node.is_number or (uses[node] == 1 and node not in self._names)
            if not simple:
                lines.append(f"    {self.name(node)} = {self._expression(node)}")
                self._lined.add(node)
        return lines

    def text(self, node: Node, binding: int = 0) -> str:
        """Return the text of a value inside an expression of this precedence."""
        if node in self._lined:
            return self.name(node)
        if node.is_number:
            return self._number(node.name)
        own = BINDING.get(node.op, 9)
        written = self._expression(node)
        return f"({written})" if own < binding or (own == 0 and binding) else written

    def _number(self, value: float) -> str:
        if self._scope is None:
            return f"{value:g}"
        name = self._numbers.setdefault(repr(value), f"k{len(self._numbers)}")
        self._scope[name] = self._constant(value)
        return name

    def _expression(self, node: Node) -> str:
        if node.op == "mix":
            z, n, h = (self.text(a, 2) for a in node.args)
            return f"({self._number(1)} - {z}) * {n} + {z} * {h}"
        if node.op in TESTS:
            a, b = (
                f"{self.text(a, 9)}.real" if self._scope is not None and not a.is_number else self.text(a, 1)
                for a in node.args
            )
            return f"{a} {TESTS[node.op]} {b}"
        if node.op in OPERATORS:
            own, form = OPERATORS[node.op]
            right = own + (node.op in ("sub", "div", "mul"))
            return form.format(*[self.text(a, own if k == 0 else right) for k, a in enumerate(node.args)])
        return f"{node.op}({', '.join(self.text(a) for a in node.args)})"
