"""The graph of a cell's equations, made by tracing one step, and its reverse pass.

Equal expressions share a node. A node is created after its arguments, so ascending numbers are a topological order, and
descending ones the order of the reverse pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping
from numbers import Integral
from types import CodeType
from typing import Any

Number = int | float

#: Elementwise functions of one argument, and of two or more.
UNARY = ("sigmoid", "tanh", "relu", "exp", "log", "log1p", "softplus", "sqrt", "abs", "sin", "cos")
FUNCTIONS = (*UNARY, "minimum", "maximum", "clip", "where")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")

#: Operations across units: a product with U, and the mean over hidden units. Values that depend on one need all units.
JOINTS = ("u", "mean")


def refusal(why: str) -> Callable[..., Any]:
    """Return a method that raises TypeError, for an operation that equations cannot have."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise TypeError(why)

    return refuse


class Node:
    """One value, (B, H), of an equation. Arithmetic on nodes makes nodes.

    The `op` of a leaf is its kind: "const", "x", "state", "parameter", "input", and in the reverse pass "dstate",
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
        raise TypeError("@ is only for products with U: U.g @ v")

    __rmatmul__ = __matmul__

    def __abs__(self) -> Node:
        return self.graph.make("abs", self)

    def __pow__(self, power: Any) -> Node:
        if isinstance(power, bool) or not isinstance(power, Integral):
            raise TypeError(f"** takes an integer power, got {power!r}; write exp(power * log(a)), or sqrt(a)")
        n = int(power)
        if n < 0:
            return 1 / self**-n
        result = None
        square = self
        for bit in reversed(f"{n:b}"):
            if bit == "1":
                result = square if result is None else result * square
            square = square * square if n > 1 else square
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

    __bool__ = refusal(
        "equations are traced without values: use where(condition, a, b) instead of `if`, `and` and `or`, "
        "and maximum and minimum instead of max and min"
    )
    __iter__ = __len__ = __getitem__ = __setitem__ = refusal(
        "equations are elementwise: a value has no indices or length, and cannot be unpacked"
    )
    __float__ = __int__ = __index__ = __complex__ = refusal(
        "a value is not a Python number: equations are traced without values, with the functions of fastrnn.cells"
    )
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __round__ = __floor__ = __ceil__ = __trunc__ = refusal(
        "//, % and rounding have no derivative: use / and the functions of fastrnn.cells"
    )
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = refusal(
        "comparisons cannot be combined with & | ~: use one where inside another"
    )
    __rpow__ = refusal("** takes an integer power: write exp(log(2) * a) for 2**a")
    __array__ = refusal("NumPy cannot read a value: equations are traced with the functions of fastrnn.cells")

    def __repr__(self) -> str:
        return f"<value: {self.op if self.name is None else self.name}>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a value has no attribute {name!r}; the functions of equations are those of fastrnn.cells"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Node:
        """Handle operators between NumPy numbers and nodes."""
        ops = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div"}
        op = ops.get(ufunc.__name__)
        if op is None or method != "__call__" or options:
            raise TypeError(f"NumPy's {ufunc.__name__} cannot be traced: use the functions of fastrnn.cells")
        return self.graph.add(*inputs) if op == "add" else self.graph.make(op, *inputs)

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"NumPy's {function.__name__} cannot be traced: use the functions of fastrnn.cells")

    @property
    def is_number(self) -> bool:
        """Whether the node is a constant."""
        return self.op == "const"


class Matrix:
    """U.g in a trace, which can be used only once, in ``U.g @ v``."""

    def __init__(self, graph: Graph, gate: str) -> None:
        self._graph, self._gate, self._used = graph, gate, False

    def __matmul__(self, operand: Any) -> Node:
        if self._used:
            raise TypeError(f"U.{self._gate} is used twice; keep the first product in a variable, or add a gate")
        self._used = True
        return self._graph.node("u", (self._graph.number(operand),), self._gate)

    def alone(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"U.{self._gate} can only be used in U.{self._gate} @ v")

    __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __neg__ = __rmatmul__ = alone
    __radd__ = __rsub__ = __rmul__ = __call__ = __getitem__ = __array_ufunc__ = __getattr__ = alone


class Given:
    """x, U, s, p or e: the values that equations read by name."""

    def __init__(self, values: Mapping[str, Any], letter: str) -> None:
        self.__dict__.update(values)
        self.__dict__["_letter"] = letter

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.__dict__['_letter']} has no {name!r}; expected one of: {', '.join(self._names())}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: cannot be assigned; equations return the next states")

    def _names(self) -> list[str]:
        return [name for name in self.__dict__ if name != "_letter"]

    def alone(self, *_: Any, **__: Any) -> Any:
        letter = self.__dict__["_letter"]
        raise TypeError(f"{letter} has values by name: write {' or '.join(f'{letter}.{n}' for n in self._names())}")

    __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __neg__ = __matmul__ = __getitem__ = __iter__ = alone
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __len__ = __call__ = __array_ufunc__ = alone


class Graph:
    """All nodes of one trace. `code` is that of the traced function, for line numbers in errors."""

    def __init__(self, code: CodeType | None = None) -> None:
        self._code = code
        self._known: dict[Any, Node] = {}
        self.nodes: list[Node] = []

    def node(self, op: str, args: tuple[Node, ...] = (), name: Any = None) -> Node:
        """Return the node with these attributes, made if new."""
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
        """Return a node itself, or a number as a constant."""
        if isinstance(a, Node):
            if a.graph is not self:
                raise TypeError("a value of another trace; equations must not keep values between calls")
            return a
        if isinstance(a, Matrix | Given):
            a.alone()
        if isinstance(a, int | float) and not isinstance(a, bool):
            return self.constant(a)
        if getattr(a, "ndim", None) == 0 and getattr(getattr(a, "dtype", None), "kind", "") in "fiu":
            return self.constant(float(a))
        raise TypeError(
            f"{type(a).__name__} is neither a number nor a value of the equations; pass arrays as parameters or inputs"
        )

    def number(self, a: Any) -> Node:
        """Return a node that is not a comparison, like `value`."""
        node = self.value(a)
        if node.op in COMPARISONS:
            raise TypeError("a comparison is not a number: use where(condition, a, b)")
        return node

    def make(self, op: str, *args: Any) -> Node:
        """Return the node of an operator or a function, or its value if constant."""
        if op == "where" and not (isinstance(args[0], Node) and args[0].op in COMPARISONS):
            raise TypeError("where: expected a comparison as the first argument")
        nodes = tuple([self.value(a) if op == "where" and k == 0 else self.number(a) for k, a in enumerate(args)])
        if op not in COMPARISONS and op != "where" and all(a.is_number for a in nodes):
            return self.constant(evaluated(op, *[a.name for a in nodes]))
        return self.node(op, nodes)

    def add(self, a: Any, b: Any) -> Node:
        """Return a + b; (1 - z) n + z h with a sigmoid z becomes `mix`, n + z (h - n), which rounds less."""
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
    """Return the factors of a product in both orders."""
    return (node.args, node.args[::-1]) if node.op == "mul" else ()  # type: ignore[return-value]


def is_one(node: Node) -> bool:
    return node.is_number and node.name == 1


def evaluated(op: str, *a: float) -> float:
    """Evaluate a constant expression; raise ValueError or ArithmeticError if it is undefined or overflows."""
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


def needed(roots: Iterable[Node], given: Container[Node] = frozenset()) -> list[Node]:
    """Return the nodes that these depend on, including themselves, in order; `given` ones depend on none."""
    found: dict[int, Node] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node.number not in found:
            found[node.number] = node
            stack.extend(() if node in given else node.args)
    return [found[number] for number in sorted(found)]


#: A term of an adjoint, which applies only where all its conditions (a comparison and its required result) hold.
Part = tuple[frozenset[tuple[Node, bool]], Node]


def reverse(graph: Graph, seeds: list[tuple[Node, Node]]) -> dict[Node, Node]:
    """Return the adjoints, by node, of everything that the seeds (a node and its adjoint) depend on.

    A condition, from `where` or a kink, is propagated and applied where paths meet or end, so that an infinite or NaN
    factor on the branch not taken is masked.
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


#: Smooth operation -> the terms for its arguments, from d, its value y and the arguments.
SMOOTH: dict[str, Callable[..., tuple[Node, ...]]] = {
    "add": lambda d, y, a, b: (d, d),
    "sub": lambda d, y, a, b: (d, -d),
    "mul": lambda d, y, a, b: (d * b, d * a),
    "div": lambda d, y, a, b: (d / b, -(d * y / b)),
    "neg": lambda d, y, a: (-d,),
    "mix": lambda d, y, z, n, h: (d * (h - n), d * (1 - z), d * z),
    "sigmoid": lambda d, y, a: (d * (y * (1 - y)),),
    "tanh": lambda d, y, a: (d * ((1 - y) * (1 + y)),),
    "exp": lambda d, y, a: (d * y,),
    "log": lambda d, y, a: (d / a,),
    "log1p": lambda d, y, a: (d / (1 + a),),
    "softplus": lambda d, y, a: (d * y.graph.make("sigmoid", a),),
    "sqrt": lambda d, y, a: (d / (2 * y),),
    "sin": lambda d, y, a: (d * y.graph.make("cos", a),),
    "cos": lambda d, y, a: (-(d * y.graph.make("sin", a)),),
}


def local(node: Node, d: Node) -> list[tuple[Node, frozenset[tuple[Node, bool]], Node]]:
    """Return what a node's adjoint d adds to those of its arguments (chain rule): (argument, conditions, term).

    Kinks: relu' (0) = abs' (0) = 0, clip's derivative is 0 at and beyond its bounds, ties go to the first argument.
    """
    if node.op in SMOOTH:
        terms = SMOOTH[node.op](d, node, *node.args)
        return [(a, frozenset(), term) for a, term in zip(node.args, terms, strict=True)]
    a, b, c = (*node.args, node, node)[:3]

    def given(test: Node, wanted: bool) -> frozenset[tuple[Node, bool]]:
        return frozenset({(test, wanted)})

    match node.op:
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
