"""A cell: its equations and everything derived from them."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import keyword
import math
import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from numbers import Real
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from fastrnn.cells import program as limits
from fastrnn.cells.functions import FORMULAS
from fastrnn.cells.graph import JOINTS, Given, Graph, Matrix, Node, needed
from fastrnn.cells.program import Program
from fastrnn.cells.python import derivative, node_names
from fastrnn.types import Array

#: Every cell of this process by its `key`; of equal cells, the last one made.
KNOWN: dict[str, Cell] = {}

#: Names not allowed for extra inputs: those of other arguments, which errors mention.
RESERVED = ("x", "W", "U", "b", "b_rec", "p", "R", "init", "lengths", "resets")


#: Samples of each value by which `without_numbers` judges, and those that its arguments must have.
SAMPLES, ENOUGH = 256, 32

#: Operations by what errors call them, if not by their own names.
SIGNS = {"const": "a constant", "add": "+", "sub": "-", "mul": "*", "div": "/", "neg": "-", "mix": "+"}


class CellError(ValueError):
    """Invalid equations; the message names the cell, the line and what to do."""


class Cell:
    """One step of a recurrence, made from a function by `fastrnn.cell`.

    Attributes
    ----------
    name : str
    gates, states, parameters, inputs : tuple of str
        In the order in which weights, states and parameters are stacked.
    products : tuple of str
        The gates that have a product with U.
    starts : dict
        Initial values of the parameters that a layer does not initialise at random.
    family : str
        The prefix of its public functions, if any; for a user's cell its name.
    options : dict
        The options that select it in its family.
    builtin : bool
        Whether it is a built-in cell.
    maker : callable, or None
        Recreates the cell in another process, if it is not defined in a module.
    """

    maker: Callable[[], Cell] | None = None

    def __init__(
        self,
        function: Callable[..., Any],
        gates: Iterable[str],
        states: Iterable[str],
        parameters: Iterable[str] | Mapping[str, float] = (),
        inputs: Iterable[str] = (),
        family: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(function) or not hasattr(function, "__code__"):
            raise TypeError(f"cell: expected a Python function, got {function!r}")
        self.function = function
        self.name: str = function.__name__
        self.family, self.options, self.builtin = family or self.name, dict(options or {}), family is not None
        self.__module__, self.__doc__, self.__qualname__ = function.__module__, function.__doc__, function.__qualname__
        self.gates = self._names("gates", gates, 1, limits.MAX_GATES)
        self.states = self._names("states", states, 1, limits.MAX_STATES)
        self.parameters = self._names("parameters", parameters, 0, limits.MAX_PARAMETERS)
        self.starts = self._starts(parameters)
        self.inputs = self._names("inputs", inputs, 0, limits.MAX_INPUTS)
        self.G = len(self.gates)
        arguments = ["x", "U", "s", *["p"] * bool(self.parameters), *["e"] * bool(self.inputs)]
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError as error:
            raise self._error(f"expected a function of {', '.join(arguments)}: {error}") from error
        self.initial = tuple([f"{s}0" for s in self.states])  #: names of the initial states
        self.arguments = ("x", "W", "U", "b", "b_rec", "p", "R", *self.initial, "resets", *self.inputs)
        self._graph, self._after = self._traced()
        self.digest = self._digest()  #: hash of its equations and names: equal cells run the same code
        self.publish(self.__qualname__)
        self.products = tuple(g for g in self.gates if any(n.op == "u" and n.name == g for n in needed(self._after)))
        G, N, P = (f"{n}*H" if n > 1 else "H" for n in (self.G, len(self.products), len(self.parameters)))
        #: The weights' shapes as text.
        self.shapes = {"W": f"({G}, I)", "U": f"({N}, H)", "b": f"({G},)", "b_rec": f"({N},)", "p": f"({P},)"}
        self.program: Program = self._cut()  # raises an error here if the drivers cannot run it

    def _names(self, what: str, names: Iterable[str], least: int, most: int) -> tuple[str, ...]:
        try:
            found = tuple(names)
        except TypeError as error:
            raise self._error(f"{what}: expected a string of letters or a tuple of names, got {names!r}") from error
        word = isinstance(names, str) and len(names) > 1
        hint = f"; each letter of a string is a name: for a single name write ({names!r},)" if word else ""
        for name in found:
            if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
                raise self._error(f"{what}: expected attribute names, got {name!r}{hint}")
            if what == "inputs" and name in (*RESERVED, *[f"{s}0" for s in self.states]):
                raise self._error(f"inputs: {name!r} is the name of another argument; rename it{hint}")
        if len(set(found)) < len(found):
            raise self._error(f"{what}: expected distinct names, got {found}{hint}")
        if not least <= len(found) <= most:
            raise self._error(f"{what}: expected {least} to {most} names, got {len(found)}{hint}")
        return found

    def _starts(self, parameters: Iterable[str] | Mapping[str, float]) -> dict[str, float]:
        given = dict(parameters) if isinstance(parameters, Mapping) else {}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise self._error(f"parameters: expected a number as the initial value of {name}, got {value!r}")
        return {name: float(value) for name, value in given.items()}

    def of_states(self, name: str, given: Any) -> tuple[Any, ...]:
        """Check an argument with a value or None for each state; None stands for all None."""
        if given is None:
            return (None,) * len(self.states)
        if not isinstance(given, tuple | list) or len(given) != len(self.states):
            raise ValueError(f"{name}: expected a tuple of {', '.join(self.states)}, got {given!r:.80}")
        return tuple(given)

    def begin(self, p: Any) -> None:
        """Set the parameters that have an initial value in an array of all parameters, (P*H,)."""
        H = len(p) // len(self.parameters)
        for k, name in enumerate(self.parameters):
            if name in self.starts:
                p[k * H : (k + 1) * H] = self.starts[name]

    def _error(self, message: str, line: int | None = None) -> CellError:
        code = self.function.__code__
        return CellError(f"cell {self.name}, {code.co_filename}:{line or code.co_firstlineno}: {message}")

    def _traced(self) -> tuple[Graph, tuple[Node, ...]]:
        graph = Graph(self.function.__code__)

        def leaves(op: str, names: tuple[str, ...], letter: str) -> Any:
            return Given({n: graph.node(op, (), n) for n in names}, letter)

        x, U = leaves("x", self.gates, "x"), Given({g: Matrix(graph, g) for g in self.gates}, "U")
        s, p = leaves("state", self.states, "s"), leaves("parameter", self.parameters, "p")
        try:
            with np.errstate(all="ignore"):  # of constants; `without_numbers` finds them
                after = self._call(x, U, s, p, leaves("input", self.inputs, "e"))
            nodes = self._returned(graph, after)
        except Exception as error:
            raise self._explained(error) from error
        bad = None if self.builtin else without_numbers(needed(nodes))
        if bad is not None:
            raise self._error(
                f"{SIGNS.get(bad.op, bad.op)} gives NaN or infinity for any values: check for a divisor that is zero, "
                "and for the logarithm or root of a negative number",
                bad.line,
            )
        used = {n.name for n in needed(nodes) if n.op in ("x", "u")}
        for g in self.gates:
            if g not in used:
                raise self._error(f"gate {g} is not used: remove it from gates, or use x.{g} or U.{g}")
        for op, names in (("parameter", self.parameters), ("input", self.inputs)):
            for name in names:
                if not any(n.op == op and n.name == name for n in needed(nodes)):
                    raise self._error(f"{op} {name} is not used: remove it from {op}s, or use it")
        return graph, nodes

    def _returned(self, graph: Graph, after: Any) -> tuple[Node, ...]:
        """Return the next states, from what the function returned."""
        if after is None or isinstance(after, list | dict):
            got = "None" if after is None else f"a {type(after).__name__}"
            raise TypeError(f"it returns {got}; end it with: return {', '.join(self.states)}")
        after = after if isinstance(after, tuple) else (after,)
        if len(after) != len(self.states):
            raise TypeError(f"it returns {len(after)} states, expected {len(self.states)}: {', '.join(self.states)}")
        return tuple([graph.number(a) for a in after])

    def _explained(self, error: Exception) -> CellError:
        """Return the error of a trace with its line, and with advice if Python or a library raised it."""
        trace = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in trace if f.filename == self.function.__code__.co_filename]
        message = str(error)
        if os.path.dirname(trace[-1].filename) != os.path.dirname(__file__):
            first = ": ".join([type(error).__name__, *message.splitlines()[:1]])
            message = f"{first}; equations take operators and the functions of fastrnn.cells"
        return self._error(message, lines[-1] if lines else None)

    def publish(self, written: str) -> None:
        """Set the cell's `key`, unique in this process, by which `by_key` finds it in another.

        The key of a built-in cell is its name. Other keys consist of the module, an expression in it (a name, or a call
        with literal arguments), and the digest of the equations.
        """
        self.key = self.name if self.builtin else f"{self.__module__}:{written}:{self.digest}"
        KNOWN[self.key] = self

    def _digest(self) -> str:
        nodes = [(n.op, [a.number for a in n.args], n.name) for n in self._graph.nodes]
        names = (self.gates, self.states, self.parameters, self.inputs, [n.number for n in self._after])
        return hashlib.sha256(repr((nodes, names)).encode()).hexdigest()[:16]

    def _call(self, x: Any, U: Any, s: Any, p: Any, e: Any) -> Any:
        return self.function(x, U, s, *[p] * bool(self.parameters), *[e] * bool(self.inputs))

    @cached_property
    def order(self) -> tuple[int, ...] | None:
        """The order in which the core needs the products stacked, or None if it is that of the gates."""
        order = tuple([self.products.index(g) for g in self.program.order])
        return None if order == tuple(sorted(order)) else order

    def _cut(self) -> Program:
        """Split the equations into phases and loops."""
        try:
            return Program(self._graph, self.gates, self.states, self.parameters, self.inputs, self._after)
        except ValueError as error:
            last = max([node.line or 0 for node in needed(self._after) if node.op in JOINTS], default=0)
            raise self._error(str(error), last) from error

    @cached_property
    def names(self) -> dict[Node, str]:
        """Readable names of the computed values."""
        return node_names(self.program)

    def equations(self, x: Any, U: Any, s: Any, p: Any = None, e: Any = None) -> tuple[Any, ...]:
        """Call the function on arrays of NumPy, PyTorch or JAX; return a tuple of states."""
        after = self._call(x, U, s, p, e)
        return after if isinstance(after, tuple) else (after,)

    def evaluate(
        self,
        x: Any,
        state: Any,
        W: Any,
        U: Any,
        b: Any,
        b_rec: Any,
        p: Any = None,
        e: Mapping[str, Any] | None = None,
        R: Any = None,
    ) -> tuple[Any, ...]:
        """Run one step on arrays of any library; return the states after it."""
        H = W.shape[0] // self.G

        def cut(a: Any, k: int) -> Any:
            return None if a is None else a[k * H : (k + 1) * H]

        gates = {g: add(x @ cut(W, k).T, cut(b, k)) for k, g in enumerate(self.gates)}
        products = {g: Product(cut(U, k), cut(b_rec, k)) for k, g in enumerate(self.products)}
        first, *others = self.equations(
            SimpleNamespace(**gates),
            SimpleNamespace(**products),
            SimpleNamespace(**dict(zip(self.states, state, strict=True))),
            SimpleNamespace(**{name: cut(p, k) for k, name in enumerate(self.parameters)}),
            SimpleNamespace(**(e or {})),
        )
        return (first if R is None else first @ R.T, *others)

    def derivative(self) -> str:
        """Return the derived backward of a step as text.

        ``dh`` is the gradient of a state after the step, ``dh_prev`` that of a state before it without the part through
        the products with U, ``dx_g`` and ``du_g`` those of ``x.g`` and ``U.g @ ...``.
        """
        return derivative(self.program, self.names)

    def __str__(self) -> str:
        try:
            return inspect.getsource(self.function).rstrip()
        except OSError:  # typed at a prompt
            return repr(self)

    def __repr__(self) -> str:
        return f"<cell {self.name}: gates {' '.join(self.gates)}, states {' '.join(self.states)}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.maker:
            return self.maker, ()
        module, name = self.__module__, self.__qualname__
        try:
            there = found(module, name)
        except (ImportError, AttributeError, TypeError):
            there = None
        if there is not self:  # such as one made in a function, or an earlier one of a loop
            raise pickle.PicklingError(
                f"cell {self.name}: a cell is pickled by name, and {module}.{name} is not this cell; define it at the "
                "top level of a module, under its function's name"
            )
        return found, (module, name)

    def weights(
        self, W: Array, U: Array | None, b: Array | None, b_rec: Array | None, p: Array | None, R: Array | None
    ) -> tuple[Array, ...]:
        """Return the weights for a step: zeros for an absent bias, arrays without rows for other absent ones."""
        H = len(W) // self.G
        n = len(self.products) * H
        return (
            W,
            np.zeros((0, H), W.dtype) if U is None else U,
            np.zeros(len(W), W.dtype) if b is None else b,
            np.zeros(n, W.dtype) if b_rec is None else b_rec,
            np.zeros(0, W.dtype) if p is None else p,
            np.zeros((0, H), W.dtype) if R is None else R,
        )


class Product:
    """U.g on arrays: ``U.g @ v`` is U_g v + b_rec_g, one row per sequence; heads = width of v / columns of U_g."""

    __array_ufunc__ = None

    def __init__(self, U: Any, b_rec: Any) -> None:
        self._U, self._b_rec = U, b_rec

    def __matmul__(self, v: Any) -> Any:
        U, (H, columns) = self._U, self._U.shape
        if not getattr(v, "shape", ()) or v.shape[-1] < columns:  # a number, or one for each row: equal for all units
            return add(v * U.sum(-1), self._b_rec)
        heads = v.shape[-1] // columns
        if heads == 1:
            return add(v @ U.T, self._b_rec)
        uh = U.reshape(heads, columns, columns) @ v.reshape(*v.shape[:-1], heads, columns, 1)
        return add(uh.reshape(*v.shape[:-1], H), self._b_rec)


def add(a: Any, b: Any) -> Any:
    """Return a + b, or a if b is None."""
    return a if b is None else a + b


def without_numbers(nodes: Iterable[Node]) -> Node | None:
    """Return the first value that is never finite where its arguments are, judged by samples, or None."""
    rng = np.random.default_rng(0)
    values: dict[Node, Array] = {}
    for node in nodes:
        if node.op == "const":
            values[node] = np.full(SAMPLES, node.name)
            if np.isnan(node.name):
                return node
            continue
        if not node.args or node.op in JOINTS:
            values[node] = rng.choice((-1.0, 1.0), SAMPLES) * 10 ** rng.uniform(-4, 4, SAMPLES)
            continue
        with np.errstate(all="ignore"):
            values[node] = FORMULAS[node.op](*[values[a] for a in node.args])
        usable = np.all([np.isfinite(values[a]) for a in node.args if not a.is_number], axis=0)
        if usable.sum() >= ENOUGH and not np.isfinite(values[node])[usable].any():
            return node
    return None


def by_key(key: str) -> Cell:
    """Return the cell with this key, imported if this process does not know it yet."""
    if key not in KNOWN:
        module, name, _ = key.split(":")
        cell = found(module, name)
        if cell.key != key:
            raise ValueError(f"{module}.{name}: its equations differ from those in the requesting process")
    return KNOWN[key]


def found(module: str, written: str) -> Cell:
    """Import a cell: a name in the module, or a call with literal arguments."""
    name, call, _ = written.partition("(")
    place: Any = importlib.import_module(module)
    for part in name.split("."):
        place = getattr(place, part)
    if call:
        expression: Any = ast.parse(written, mode="eval").body
        place = place(**{argument.arg: ast.literal_eval(argument.value) for argument in expression.keywords})
    if not isinstance(place, Cell):
        raise TypeError(f"{module}.{written}: expected a cell, got {place!r}")
    return place
