"""C of functions from the operations of `llvm`: those missing from src/activation.h, and ones of unfused products."""

from __future__ import annotations

import math
import re

from fastrnn.cells.llvm import Machine, Writer, single

#: The functions missing from src/activation.h (no built-in cell uses them), by their names in equations.
WRITTEN = ("exp", "log", "log1p", "softplus", "abs")

#: The functions of fused products, which cells of int8 layers need without.
UNFUSED = (*WRITTEN, "sigmoid", "tanh")

#: LLVM comparisons in C; the unordered ones ("u") are also true for NaN.
OPERATORS = {"olt": "<", "ole": "<=", "ogt": ">", "oge": ">=", "oeq": "==", "une": "!="}
UNORDERED = {"ult": "~({} >= {})", "ueq": "~(({0} < {1}) | ({0} > {1}))"}

SHIFTS = {"add": "+", "sub": "-", "and": "&", "or": "|", "shl": "<<", "ashr": ">>"}


def function(name: str, bits: int, *, fused: bool) -> str:
    """Return the C of v<name>, or unfused_<name>, for vectors of numbers with this many bits."""
    writer = InC(bits, fused)
    value = writer.fabs("x") if name == "abs" else getattr(writer, name)("x")
    lines = [f"return {value};"]
    for k, line in reversed([*enumerate(writer.lines)]):  # compilers warn about unused values
        if any(re.search(rf"\bv{k}\b", later) for later in lines):
            lines.insert(0, line)
    prefix = "v" if fused else "unfused_"
    return f"INLINE vec {prefix}{name}(vec x)\n{{\n" + "".join([f"    {line}\n" for line in lines]) + "}\n"


def number(value: float) -> str:
    """Return a number as a C constant."""
    if math.isfinite(value):
        return f"(real){value!r}"
    return f"(real){'-' if value < 0 else ''}__builtin_inf()" if value == value else '(real)__builtin_nan("")'


class InC(Writer):
    """The operations of the LLVM writer, written as C over src/lanes.h."""

    def __init__(self, bits: int, fused: bool) -> None:
        self._machine = Machine(bits, 0, fused)  # lanes.h handles lanes and FMA
        self.lines: list[str] = []

    def _named(self, kind: str, value: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"const {kind} {name} = {value};")
        return name

    def const(self, value: float) -> str:
        return f"splat({number(single(value) if self._machine.bits == 32 else value)})"

    def integer(self, value: int) -> str:
        return f"((ivec){{0}} + (integer){value})"

    def add(self, a: str, b: str) -> str:
        return self._named("vec", f"{a} + {b}")

    def sub(self, a: str, b: str) -> str:
        return self._named("vec", f"{a} - {b}")

    def mul(self, a: str, b: str) -> str:
        return self._named("vec", f"{a} * {b}")

    def div(self, a: str, b: str) -> str:
        return self._named("vec", f"{a} / {b}")

    def neg(self, a: str) -> str:
        return self._named("vec", f"-{a}")

    def fma(self, a: str, b: str, c: str) -> str:
        return self._named("vec", f"FMA({a}, {b}, {c})") if self._machine.fused else super().fma(a, b, c)

    def compare(self, test: str, a: str, b: str) -> str:
        form = UNORDERED[test] if test in UNORDERED else f"{{}} {OPERATORS[test]} {{}}"
        return self._named("ivec", form.format(a, b))

    def select(self, mask: str, a: str, b: str) -> str:
        return self._named("vec", f"choose({mask}, {a}, {b})")

    def fabs(self, a: str) -> str:
        return self._named("vec", f"(vec)((ivec){a} & ~(ivec)splat(-(real)0))")

    def _bits(self, a: str) -> str:
        return self._named("ivec", f"(ivec){a}")

    def _number(self, a: str) -> str:
        return self._named("vec", f"(vec){a}")

    def _real(self, whole: str) -> str:
        return self._named("vec", f"__builtin_convertvector({whole}, vec)")

    def _whole(self, op: str, a: str, b: str) -> str:
        return self._named("ivec", f"{a} {SHIFTS[op]} {b}")
