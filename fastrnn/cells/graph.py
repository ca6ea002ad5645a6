"""The graph of a cell's equations: what one step computes, its nodes made by tracing, and the reverse pass over it.

Equal expressions are one node. A node's arguments are older than itself, so ascending numbers are an order of
computation, and descending ones that of the reverse pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

Number = int | float

#: Elementwise functions of one argument, and of two or more.
UNARY = ("sigmoid", "tanh", "relu", "exp", "log", "log1p", "softplus", "sqrt", "abs", "sin", "cos")
FUNCTIONS = (*UNARY, "minimum", "maximum", "clip", "where")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")

#: What is not elementwise: a product with U, and the mean over the hidden units. What hangs on one waits for all units.
JOINTS = ("u", "mean")


class Node:
    """One value, (B, H), of an equation. Arithmetic on nodes makes nodes.

    What is given has its kind as `op`: "const", "x", "state", "parameter", "input", and in the reverse pass "dstate",
    the gradient of a next state, and "doperand", that of a joint's operand.
    """

    __slots__ = ("args", "graph", "line", "name", "number", "op")

    def __init__(self, graph: Graph, op: str, args: tuple[Node, ...], name: Any, line: int | None) -> None:
        self.graph, self.op, self.args, self.name, self.line = graph, op, args, name, line
        self.number = 0

    def __add__(self, other: Any) -> Node:
        return self.graph.add(self, other)

    def __radd__(self, other: Any) -> Node:
        return self.graph.add(other, self)

    def __sub__(self, other: Any) -> Node:
        return self.graph.make("sub", self, other)

    def __rsub__(self, other: Any) -> Node:
        return self.graph.make("sub", other, self)

    def __mul__(self, other: Any) -> Node:
        return self.graph.make("mul", self, other)

    def __rmul__(self, other: Any) -> Node:
        return self.graph.make("mul", other, self)

    def __truediv__(self, other: Any) -> Node:
        return self.graph.make("div", self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return self.graph.make("div", other, self)

    def __neg__(self) -> Node:
        return self.graph.make("neg", self)

    def __matmul__(self, other: Any) -> Node:
        raise TypeError("a product is with U alone: U.g @ v")

    __rmatmul__ = __matmul__

    def __abs__(self) -> Node:
        return self.graph.make("abs", self)

    def __pow__(self, power: Any) -> Node:
        if isinstance(power, bool) or not isinstance(power, int):
            raise TypeError(f"** takes an integer power, got {power!r}; write exp(power * log(a)), or sqrt(a)")
        if power < 0:
            return 1 / self**-power
        result = None
        square = self
        for bit in reversed(f"{power:b}"):
            if bit == "1":
                result = square if result is None else result * square
            square = square * square if power > 1 else square
        return self.graph.constant(1) if result is None else result

    def __lt__(self, other: Any) -> Node:
        return self.graph.make("lt", self, other)

    def __le__(self, other: Any) -> Node:
        return self.graph.make("le", self, other)

    def __gt__(self, other: Any) -> Node:
        return self.graph.make("gt", self, other)

    def __ge__(self, other: Any) -> Node:
        return self.graph.make("ge", self, other)

    def __eq__(self, other: Any) -> Node:  # type: ignore[override]
        return self.graph.make("eq", self, other)

    def __ne__(self, other: Any) -> Node:  # type: ignore[override]
        return self.graph.make("ne", self, other)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("a value is not known while equations are read: use where(condition, a, b) in place of `if`")

    def __iter__(self) -> Any:
        raise TypeError("a value is elementwise: it has no parts to unpack or to iterate over")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a value has no attribute {name!r}; the functions of equations are those of fastrnn.cells"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Node:
        """Of NumPy's numbers, whose operators these are."""
        ops = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div"}
        op = ops.get(ufunc.__name__)
        if op is None or method != "__call__" or options:
            raise TypeError(f"NumPy's {ufunc.__name__} cannot take a value that is not known yet: use fastrnn.cells")
        return self.graph.add(*inputs) if op == "add" else self.graph.make(op, *inputs)

    @property
    def is_number(self) -> bool:
        """Whether it is a constant."""
        return self.op == "const"


class Matrix:
    """U.g of a trace: it stands in ``U.g @ v`` alone, and there once."""

    def __init__(self, graph: Graph, gate: str) -> None:
        self._graph, self._gate, self._used = graph, gate, False

    def __matmul__(self, operand: Any) -> Node:
        if self._used:
            raise TypeError(f"U.{self._gate} is used twice; keep the first product in a variable, or add a gate")
        self._used = True
        return self._graph.node("u", (self._graph.value(operand),), self._gate)

    def alone(self, *_: Any) -> Any:
        raise TypeError(f"U.{self._gate} stands in U.{self._gate} @ v alone")

    __add__ = __sub__ = __mul__ = __truediv__ = __rmatmul__ = alone


class Graph:
    """All nodes of one trace. `code` is that of the function traced, whose lines errors name."""

    def __init__(self, code: CodeType | None = None) -> None:
        self._code = code
        self._known: dict[Any, Node] = {}
        self.nodes: list[Node] = []

    def node(self, op: str, args: tuple[Node, ...] = (), name: Any = None) -> Node:
        """The node that is this, made if there is none."""
        key = (op, tuple(a.number for a in args), name if op != "const" else repr(name))
        if key not in self._known:
            node = self._known[key] = Node(self, op, args, name, self._line())
            node.number = len(self.nodes)
            self.nodes.append(node)
        return self._known[key]

    def _line(self) -> int | None:
        frame = inspect.currentframe()
        while frame and frame.f_code is not self._code:
            frame = frame.f_back
        return frame.f_lineno if frame else None

    def constant(self, value: Number) -> Node:
        return self.node("const", (), float(value))

    def value(self, a: Any) -> Node:
        """A node as it is, a number as a constant."""
        if isinstance(a, Node):
            if a.graph is not self:
                raise TypeError("a value of another trace; equations may not keep values from call to call")
            return a
        if isinstance(a, Matrix):
            a.alone()
        if isinstance(a, int | float) and not isinstance(a, bool):
            return self.constant(a)
        if getattr(a, "ndim", None) == 0 and getattr(getattr(a, "dtype", None), "kind", "") in "fiu":
            return self.constant(float(a))
        raise TypeError(
            f"{type(a).__name__} is neither a number nor a value of the equations; an array is a parameter or an input"
        )

    def make(self, op: str, *args: Any) -> Node:
        """A node of an operator or a function, or the constant that it comes to."""
        nodes = tuple([self.value(a) for a in args])
        for k, a in enumerate(nodes):
            if (a.op in COMPARISONS) != (op == "where" and k == 0):
                raise TypeError(
                    "a comparison is no number: use where(condition, a, b)"
                    if a.op in COMPARISONS
                    else "where: the first argument is a comparison"
                )
        if op not in COMPARISONS and op != "where" and all(a.is_number for a in nodes):
            return self.constant(evaluated(op, *[a.name for a in nodes]))
        return self.node(op, nodes)

    def add(self, a: Any, b: Any) -> Node:
        """a + b, where (1 - z) n + z h of a sigmoid z is the node `mix`: n + z (h - n) in fewer roundings."""
        a, b = self.value(a), self.value(b)
        for first, second in ((a, b), (b, a)):
            for one_minus, n in pairs(first):
                for z, h in pairs(second):
                    if (
                        z.op == "sigmoid"
                        and one_minus.op == "sub"
                        and one_minus.args[1] is z
                        and is_one(one_minus.args[0])
                    ):
                        return self.node("mix", (z, n, h))
        return self.make("add", a, b)


def pairs(node: Node) -> tuple[tuple[Node, Node], ...]:
    """The factors of a product, either first."""
    return (node.args, node.args[::-1]) if node.op == "mul" else ()  # type: ignore[return-value]


def is_one(node: Node) -> bool:
    return node.is_number and node.name == 1


def evaluated(op: str, *a: float) -> float:
    """A constant expression; what mathematics does not define is NaN, and what is too large infinite, as for arrays."""
    rules: dict[str, Callable[..., float]] = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "neg": lambda x: -x,
        "sigmoid": lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0,
        "relu": lambda x: max(x, 0.0),
        "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
        "minimum": min,
        "maximum": max,
        "clip": lambda x, low, high: min(max(x, low), high),
        "abs": abs,
        "mean": lambda x: x,
    }
    return rules.get(op, getattr(math, op, None))(*a)  # type: ignore[misc]


def needed(roots: Iterable[Node]) -> list[Node]:
    """The nodes that these depend on, themselves included, in an order of computation."""
    found: dict[int, Node] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node.number not in found:
            found[node.number] = node
            stack.extend(node.args)
    return [found[number] for number in sorted(found)]


#: A part of an adjoint: it counts only where all its conditions, each a comparison and what it must be, hold.
Part = tuple[frozenset[tuple[Node, bool]], Node]


def reverse(graph: Graph, seeds: list[tuple[Node, Node]]) -> dict[Node, Node]:
    """The adjoints of all that the seeds (a node, an adjoint of it) depend on, by their nodes.

    A condition, as of `where` or a kink, is carried along and applied where paths meet or end: a factor that is
    infinite or NaN on the branch not taken does not get through.
    """
    parts: dict[Node, list[Part]] = {}
    for node, d in seeds:
        parts.setdefault(node, []).append((frozenset(), d))
    adjoints: dict[Node, Node] = {}
    pending = {node.number: node for node in needed(node for node, _ in seeds)}
    for number in sorted(pending, reverse=True):
        node = pending[number]
        if node not in parts:
            continue
        given = parts.pop(node)
        if len({conditions for conditions, _ in given}) == 1:
            conditions, d = given[0][0], total(graph, [d for _, d in given])
        else:
            conditions, d = frozenset(), total(graph, [masked(graph, *part) for part in given])
        if not node.args or node.op in JOINTS:
            adjoints[node] = masked(graph, conditions, d)
            continue
        for argument, condition, contribution in local(node, d):
            if not argument.is_number:
                parts.setdefault(argument, []).append((conditions | condition, contribution))
    return adjoints


def total(graph: Graph, terms: list[Node]) -> Node:
    result = terms[0]
    for term in terms[1:]:
        result = graph.make("add", result, term)
    return result


def masked(graph: Graph, conditions: frozenset[tuple[Node, bool]], d: Node) -> Node:
    for test, wanted in sorted(conditions, key=lambda c: c[0].number):
        d = graph.make("where", test, d, 0) if wanted else graph.make("where", test, 0, d)
    return d


def local(node: Node, d: Node) -> list[tuple[Node, frozenset[tuple[Node, bool]], Node]]:
    """What a node's adjoint d adds to those of its arguments: (argument, conditions, term), after the chain rule.

    Kinks: relu' (0) = abs' (0) = 0, clip's derivative is 0 at and beyond its bounds, ties go to the first argument.
    """
    a, b, c = (*node.args, node, node)[:3]
    always: frozenset[tuple[Node, bool]] = frozenset()

    def given(test: Node, wanted: bool) -> frozenset[tuple[Node, bool]]:
        return frozenset({(test, wanted)})

    match node.op:
        case "add":
            return [(a, always, d), (b, always, d)]
        case "sub":
            return [(a, always, d), (b, always, -d)]
        case "mul":
            return [(a, always, d * b), (b, always, d * a)]
        case "div":
            return [(a, always, d / b), (b, always, -(d * node / b))]
        case "neg":
            return [(a, always, -d)]
        case "mix":
            return [(a, always, d * (c - b)), (b, always, d * (1 - a)), (c, always, d * a)]
        case "sigmoid":
            return [(a, always, d * (node * (1 - node)))]
        case "tanh":
            return [(a, always, d * ((1 - node) * (1 + node)))]
        case "exp":
            return [(a, always, d * node)]
        case "log":
            return [(a, always, d / a)]
        case "log1p":
            return [(a, always, d / (1 + a))]
        case "softplus":
            return [(a, always, d * node.graph.make("sigmoid", a))]
        case "sqrt":
            return [(a, always, d / (2 * node))]
        case "sin":
            return [(a, always, d * node.graph.make("cos", a))]
        case "cos":
            return [(a, always, -(d * node.graph.make("sin", a)))]
        case "relu":
            return [(a, given(node <= 0, False), d)]
        case "abs":
            return [(a, given(a > 0, True), d), (a, given(a < 0, True), -d)]
        case "clip":
            return [(a, given(node <= b, False) | given(node >= c, False), d)]
        case "minimum":
            return [(a, given(a <= b, True), d), (b, given(a <= b, False), d)]
        case "maximum":
            return [(a, given(a >= b, True), d), (b, given(a >= b, False), d)]
        case "where":
            return [(b, given(a, True), d), (c, given(a, False), d)]
    raise AssertionError(node.op)
