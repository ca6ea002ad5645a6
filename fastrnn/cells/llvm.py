"""Generate LLVM IR for a cell's loops over the tiles of src/cell.h.

The formulas are those of src/activation.h, operation by operation, so a cell gives bit-identical results whether it is
compiled by C or LLVM; exp and log, which no built-in cell uses, are within 2 ulp.

References
----------
.. [1] Sun Microsystems, fdlibm, e_log.c: log by its series in f / (2 + f).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastrnn.cells.graph import COMPARISONS, Node
from fastrnn.cells.program import BLOCKS, Loop, Place, Program


@dataclass(frozen=True)
class Machine:
    """The target: bits per number, bytes per vector, and whether multiply-add is fused."""

    bits: int
    vector_bytes: int
    fused: bool

    @property
    def lanes(self) -> int:
        return self.vector_bytes * 8 // self.bits

    @property
    def real(self) -> str:
        return "float" if self.bits == 32 else "double"

    @property
    def wide(self) -> bool:
        """Whether reciprocals start from an estimate: on AVX-512, with fused multiply-add."""
        return self.vector_bytes == 64 and self.fused


#: The tiles of src/cell.h: field numbers and types.
ROWS = "%Rows"
FORWARD = ("rows", "keep", "at", "lanes", "Hp", "wx", "uh", "prev", "next", "kept", "made", "b_rec", "p", "e")
BACKWARD = ("rows", "at", "lanes", "Hp", "dout", "prev", "next", "kept", "carry", "da", "da_rec", "dp", "de", "p", "e")
TYPES = {"rows": "i32", "keep": "i32", "at": "i64", "lanes": "i64", "Hp": "i64", "prev": "ptr"}


def tile_type(fields: tuple[str, ...]) -> str:
    return "{ " + ", ".join(TYPES.get(name, ROWS) for name in fields) + " }"


def module(program: Program, machine: Machine) -> str:
    """Return a module with functions forward_q and backward_q for every phase q."""
    declared: dict[str, str] = {}
    functions = []
    for q, phase in enumerate(program.phases):
        functions.append(Writer(program, machine, declared, q, "forward", FORWARD).function(phase.forward))
        functions.append(Writer(program, machine, declared, q, "backward", BACKWARD).function([phase.backward]))
    width = machine.vector_bytes * 8
    attributes = f'attributes #0 = {{ nounwind "prefer-vector-width"="{width}" "min-legal-vector-width"="{width}" }}'
    return "\n".join(
        [
            f"{ROWS} = type {{ ptr, i64 }}",
            f"%forward = type {tile_type(FORWARD)}",
            f"%backward = type {tile_type(BACKWARD)}",
            *functions,
            *declared.values(),
            attributes,
            "",
        ]
    )


class Writer:
    """Writes one function; methods return the name of the value they compute."""

    def __init__(
        self, program: Program, machine: Machine, declared: dict[str, str], q: int, way: str, fields: tuple[str, ...]
    ) -> None:
        self._program, self._machine, self._declared = program, machine, declared
        self._q, self._way, self._fields = q, way, fields
        self._lines: list[str] = []
        self._count = 0
        self._vec = f"<{machine.lanes} x {machine.real}>"
        self._ivec = f"<{machine.lanes} x i{machine.bits}>"
        self._mask = f"<{machine.lanes} x i1>"

    # Text ---------------------------------------------------------------------------------------------------------

    def _emit(self, text: str) -> str:
        self._count += 1
        name = f"%v{self._count}"
        self._lines.append(f"  {name} = {text}")
        return name

    def _label(self, name: str) -> None:
        self._lines.append(f"{name}:")

    def function(self, loops: list[Loop]) -> str:
        head = f"define void @{self._way}_{self._q}(ptr %t) #0 {{"
        self._label("entry")
        count = self._emit(f"sext i32 {self._scalar('rows')} to i64")
        at, lanes, Hp = (self._scalar(name) for name in ("at", "lanes", "Hp"))
        keep = None
        if self._way == "forward":
            keep = self._emit(f"icmp ne i32 {self._scalar('keep')}, 0")
        before = "entry"
        for k, loop in enumerate(loops):
            before = self._loop(f"l{k}", loop, before, count, at, lanes, Hp, keep)
        self._lines.append("  ret void")
        return "\n".join([head, *self._lines, "}"])

    def _scalar(self, name: str) -> str:
        at = self._emit(f"getelementptr %{self._way}, ptr %t, i32 0, i32 {self._fields.index(name)}")
        return self._emit(f"load {TYPES[name]}, ptr {at}")

    def _loop(
        self, label: str, loop: Loop, before: str, count: str, at: str, lanes: str, Hp: str, keep: str | None
    ) -> str:
        """Write a loop over rows and, inside, vectors of units; return the name of its last block."""
        places = self._program.places(loop, self._q)
        bases = {array: self._rows(array) for array in dict.fromkeys(place.array for place in places)}
        self._lines += [
            f"  %{label}.any = icmp sgt i64 {count}, 0",
            f"  br i1 %{label}.any, label %{label}.row, label %{label}.end",
        ]
        self._label(f"{label}.row")
        row = f"%{label}.r"
        self._lines.append(f"  {row} = phi i64 [ 0, %{before} ], [ {row}.next, %{label}.done ]")
        starts = {place: self._start(place, bases[place.array], row, at, lanes, Hp) for place in places}
        same = self._program.same_for_all(loop.values())
        values: dict[int, str] = {}
        self._compute(loop, values, starts, "0", lambda node: node in same)
        first = self._emit(f"icmp eq i64 {at}, 0")
        self._lines.append(f"  br i1 {first}, label %{label}.first, label %{label}.units")
        self._label(f"{label}.first")
        for place, node in loop.stores:
            if place.array == "same":
                self._store(starts[place], "0", values[node.number])
        self._lines.append(f"  br label %{label}.units")
        self._label(f"{label}.units")
        self._lines.append(f"  br label %{label}.unit")
        self._label(f"{label}.unit")
        unit = f"%{label}.l"
        self._lines.append(f"  {unit} = phi i64 [ 0, %{label}.units ], [ {unit}.next, %{label}.unit.end ]")
        self._compute(loop, values, starts, unit, lambda node: node not in same)
        for place, node in loop.stores:
            if place not in loop.training and place.array != "same":
                self._store(starts[place], unit, values[node.number])
        if loop.training:
            self._lines.append(f"  br i1 {keep}, label %{label}.keep, label %{label}.unit.end")
            self._label(f"{label}.keep")
            for place, node in loop.stores:
                if place in loop.training:
                    self._store(starts[place], unit, values[node.number])
        self._lines.append(f"  br label %{label}.unit.end")
        self._label(f"{label}.unit.end")
        self._lines += [
            f"  {unit}.next = add i64 {unit}, {self._machine.lanes}",
            f"  %{label}.more = icmp slt i64 {unit}.next, {lanes}",
            f"  br i1 %{label}.more, label %{label}.unit, label %{label}.done",
        ]
        self._label(f"{label}.done")
        self._lines += [
            f"  {row}.next = add i64 {row}, 1",
            f"  %{label}.again = icmp slt i64 {row}.next, {count}",
            f"  br i1 %{label}.again, label %{label}.row, label %{label}.end",
        ]
        self._label(f"{label}.end")
        return f"{label}.end"

    def _rows(self, array: str) -> tuple[str, str]:
        """Return the data and the stride of an array of the tile; for `prev` the pointers to rows."""
        name = "kept" if array == "same" else array  # it is stored after the kept fields
        at = self._emit(f"getelementptr %{self._way}, ptr %t, i32 0, i32 {self._fields.index(name)}")
        data = self._emit(f"load ptr, ptr {at}")
        if array == "prev":
            return data, ""
        second = self._emit(f"getelementptr {ROWS}, ptr {at}, i32 0, i32 1")
        return data, self._emit(f"load i64, ptr {second}")

    def _start(self, place: Place, base: tuple[str, str], row: str, at: str, lanes: str, Hp: str) -> str:
        """Return a pointer to a field's first unit of this block, in a row."""
        data, stride = base
        real = self._machine.real
        if place.array == "prev":
            pointer = self._emit(f"getelementptr ptr, ptr {data}, i64 {row}")
            start = self._emit(f"load ptr, ptr {pointer}")
        else:
            offset = self._emit(f"mul i64 {row}, {stride}")
            start = self._emit(f"getelementptr {real}, ptr {data}, i64 {offset}")
        if place.array == "same":
            kept = self._emit(f"mul i64 {Hp}, {len(self._program.kept)}")
            field = self._emit(f"add i64 {kept}, {place.field * self._machine.lanes}")
            return self._emit(f"getelementptr {real}, ptr {start}, i64 {field}")
        field = self._emit(f"mul i64 {lanes if place.array in BLOCKS else Hp}, {place.field}")
        if place.array not in BLOCKS:
            field = self._emit(f"add i64 {field}, {at}")
        return self._emit(f"getelementptr {real}, ptr {start}, i64 {field}")

    def _load(self, start: str, unit: str) -> str:
        at = self._emit(f"getelementptr {self._machine.real}, ptr {start}, i64 {unit}")
        return self._emit(f"load {self._vec}, ptr {at}, align {self._machine.bits // 8}")

    def _store(self, start: str, unit: str, value: str) -> None:
        at = self._emit(f"getelementptr {self._machine.real}, ptr {start}, i64 {unit}")
        self._lines.append(f"  store {self._vec} {value}, ptr {at}, align {self._machine.bits // 8}")

    def _compute(
        self, loop: Loop, values: dict[int, str], starts: dict[Place, str], unit: str, wanted: Callable[[Node], bool]
    ) -> None:
        """Add those of the loop's values that are wanted, by node number."""
        for node, op, args in loop.steps():
            if not wanted(node):
                continue
            if op == "load":
                values[node.number] = self._loaded(loop.loads[node], starts, unit)
            elif op == "const":
                values[node.number] = self.const(node.name)
            else:
                values[node.number] = self._operation(op, *[values[a.number] for a in args])

    def _loaded(self, place: Place, starts: dict[Place, str], unit: str) -> str:
        if place.array == "total":
            return self.add(self._load(starts[Place("carry")], unit), self._load(starts[Place("dout")], unit))
        if place.array != "u":
            return self._load(starts[place], unit)
        product = self._load(starts[Place("uh", place.field)], unit)
        bias = self._load(starts[Place("b_rec", self._program.first_product(self._q) + place.field)], unit)
        return self.add(product, bias)

    def _operation(self, op: str, *a: str) -> str:
        if op in COMPARISONS:
            return self.compare("une" if op == "ne" else f"o{op}", *a)
        rule: Callable[..., str] = getattr(self, {"where": "select", "abs": "fabs"}.get(op, op))
        return rule(*a)

    # Arithmetic -----------------------------------------------------------------------------------------------------

    def const(self, value: float) -> str:
        exact = single(value) if self._machine.bits == 32 else float(value)
        text = f"{self._machine.real} 0x{struct.unpack('>Q', struct.pack('>d', exact))[0]:016X}"
        return "<" + ", ".join([text] * self._machine.lanes) + ">"

    def integer(self, value: int) -> str:
        return "<" + ", ".join([f"i{self._machine.bits} {value}"] * self._machine.lanes) + ">"

    def add(self, a: str, b: str) -> str:
        return self._emit(f"fadd {self._vec} {a}, {b}")

    def sub(self, a: str, b: str) -> str:
        return self._emit(f"fsub {self._vec} {a}, {b}")

    def mul(self, a: str, b: str) -> str:
        return self._emit(f"fmul {self._vec} {a}, {b}")

    def div(self, a: str, b: str) -> str:
        return self._emit(f"fdiv {self._vec} {a}, {b}")

    def neg(self, a: str) -> str:
        return self._emit(f"fneg {self._vec} {a}")

    def fma(self, a: str, b: str, c: str) -> str:
        return self._intrinsic("fma", a, b, c) if self._machine.fused else self.add(self.mul(a, b), c)

    def fms(self, a: str, b: str, c: str) -> str:
        return self.fma(a, b, self.neg(c))

    def fnma(self, a: str, b: str, c: str) -> str:
        return self.fma(self.neg(a), b, c)

    def mix(self, z: str, n: str, h: str) -> str:
        return self.fma(z, self.sub(h, n), n)

    def compare(self, test: str, a: str, b: str) -> str:
        return self._emit(f"fcmp {test} {self._vec} {a}, {b}")

    def select(self, mask: str, a: str, b: str) -> str:
        return self._emit(f"select {self._mask} {mask}, {self._vec} {a}, {self._vec} {b}")

    def vmin(self, a: str, b: str) -> str:
        """Return the minimum, or b if either is NaN."""
        return self.select(self.compare("olt", a, b), a, b)

    def vmax(self, a: str, b: str) -> str:
        return self.select(self.compare("ogt", a, b), a, b)

    def minimum(self, a: str, b: str) -> str:
        return self.select(self.compare("ole", a, b), a, b)

    def maximum(self, a: str, b: str) -> str:
        return self.select(self.compare("oge", a, b), a, b)

    def relu(self, a: str) -> str:
        return self.vmax(self.const(0), a)

    def clip(self, a: str, low: str, high: str) -> str:
        return self.vmin(high, self.vmax(low, a))

    def fabs(self, a: str) -> str:
        return self._intrinsic("fabs", a)

    def sqrt(self, a: str) -> str:
        return self._intrinsic("sqrt", a)

    def sin(self, a: str) -> str:
        return self._intrinsic("sin", a)

    def cos(self, a: str) -> str:
        return self._intrinsic("cos", a)

    def _intrinsic(self, name: str, *a: str) -> str:
        full = f"llvm.{name}.v{self._machine.lanes}f{self._machine.bits}"
        types = ", ".join([self._vec] * len(a))
        self._declared[full] = f"declare {self._vec} @{full}({types})"
        return self._emit(f"call {self._vec} @{full}({', '.join(f'{self._vec} {v}' for v in a)})")

    def _bits(self, a: str) -> str:
        return self._emit(f"bitcast {self._vec} {a} to {self._ivec}")

    def _number(self, a: str) -> str:
        return self._emit(f"bitcast {self._ivec} {a} to {self._vec}")

    def _real(self, whole: str) -> str:
        return self._emit(f"sitofp {self._ivec} {whole} to {self._vec}")

    def _whole(self, op: str, a: str, b: str) -> str:
        return self._emit(f"{op} {self._ivec} {a}, {b}")

    def _with_sign(self, a: str, of: str) -> str:
        sign = self.integer(-(1 << (self._machine.bits - 1)))
        return self._number(self._whole("or", self._bits(a), self._whole("and", self._bits(of), sign)))

    def rough_reciprocal(self, a: str) -> str:
        """As in src/vec.h."""
        if not self._machine.wide:
            return self.div(self.const(1), a)
        kind, mask = ("ps", "i16") if self._machine.bits == 32 else ("pd", "i8")
        full = f"llvm.x86.avx512.rcp14.{kind}.512"
        self._declared[full] = f"declare {self._vec} @{full}({self._vec}, {self._vec}, {mask})"
        r = self._emit(f"call {self._vec} @{full}({self._vec} {a}, {self._vec} zeroinitializer, {mask} -1)")
        return r if self._machine.bits == 32 else self.fma(self.fnma(a, r, self.const(1)), r, r)

    # Functions, as in src/activation.h ------------------------------------------------------------------------------

    @property
    def _numbers(self) -> Numbers:
        return FLOAT if self._machine.bits == 32 else DOUBLE

    def _exp_parts(self, z: str) -> tuple[str, str, str, str, str]:
        """shifted, scale, r, its square, q: exp(z) = scale (1 + r + square q)."""
        n = self._numbers
        shifted = self.fma(z, self.const(n.log2e), self.const(n.rounder))
        whole = self.sub(shifted, self.const(n.rounder))
        r = self.fma(whole, self.const(-n.ln2_high), z)
        r = self.fma(whole, self.const(-n.ln2_low), r)
        return shifted, self._scale(shifted), r, self.mul(r, r), self._exp_tail(r)

    def _scale(self, shifted: str) -> str:
        return self._number(self._whole("shl", self._bits(shifted), self.integer(self._numbers.mantissa)))

    def _exp_tail(self, r: str) -> str:
        fma, c = self.fma, self.const
        r2 = self.mul(r, r)
        if self._machine.bits == 32:
            low = fma(r, c(0.16666666681704215), c(0.50000000135387298))
            mid = fma(r, c(0.0083333108446478626), c(0.041666464197405692))
            top = fma(r, c(0.00019891080463998842), c(0.0013933730715792082))
            return fma(r2, fma(r2, top, mid), low)
        r4 = self.mul(r2, r2)
        c01 = fma(r, c(0.1666666666666667103), c(0.5))
        c23 = fma(r, c(0.0083333333333260831202), c(0.041666666666666669783))
        c45 = fma(r, c(0.00019841269875002278793), c(0.0013888888888883711167))
        c67 = fma(r, c(2.7557255170000887438e-6), c(0.0000248015873256774619))
        c89 = fma(r, c(2.5105312729622101787e-8), c(2.7557273478718580474e-7))
        low, mid = fma(r2, c23, c01), fma(r2, c67, c45)
        top = fma(r2, c(2.09147553258932022e-9), c89)
        return fma(r4, fma(r4, top, mid), low)

    def _over_one_plus(self, h: str) -> str:
        one = self.const(1)
        b, inverse = self.vmin(one, h), self.div(one, self.add(one, h))
        return self.fma(self.neg(self.mul(b, b)), inverse, b)

    @property
    def _divides(self) -> bool:
        return self._machine.bits == 32 and self._machine.fused and not self._machine.wide

    def sigmoid(self, x: str) -> str:
        fma, c, n = self.fma, self.const, self._numbers
        one = c(1)
        if not self._divides:
            z = self.vmin(c(n.exp_limit), self.vmax(c(-n.exp_limit), self.neg(x)))
            _, scale, r, square, q = self._exp_parts(z)
            e = fma(scale, fma(square, q, r), scale)
            y = self.rough_reciprocal(self.add(one, e))
            return fma(y, fma(self.neg(y), e, self.sub(one, y)), y)
        x = self.vmin(c(n.exp_limit), self.vmax(c(-n.exp_limit), x))
        shifted = fma(x, c(n.log2e), c(n.rounder))
        whole = self.sub(shifted, c(n.rounder))
        r = fma(whole, c(-n.ln2_low), fma(whole, c(-n.ln2_high), x))
        r2, scale = self.mul(r, r), self._scale(shifted)
        low = fma(r, c(0.1666654348373413), c(0.4999999701976776))
        top = fma(r, c(0.008366514928638935), c(0.04166720062494278))
        q = fma(r2, fma(r2, c(0.0013882522471249104), top), low)
        return self._over_one_plus(fma(scale, fma(r2, q, r), scale))

    def tanh(self, x: str) -> str:
        fma, c, n = self.fma, self.const, self._numbers
        z = self.vmin(c(n.tanh_limit), self.fabs(x))
        if self._divides:
            shifted = self.add(fma(z, c(2 * single(n.log2e)), c(-0.22)), c(n.rounder))
            whole = self.sub(shifted, c(n.rounder))
            r = fma(whole, c(-0.34657359027997264), z)
            r2, scale = self.mul(r, r), self._scale(shifted)
            low = fma(r, c(4 * single(0.16666667345889633)), c(2 * single(0.49999999458577915)))
            mid = fma(r, c(16 * single(0.008332247446457053)), c(8 * single(0.04166711863582362)))
            top = fma(r, c(64 * single(0.00022659263393201567)), c(32 * single(0.0013817466525623597)))
            q = fma(r2, fma(r2, top, mid), low)
            h = fma(scale, fma(r2, q, r), fma(scale, c(0.5), c(-0.5)))
            return self._with_sign(self._over_one_plus(h), x)
        return self._with_sign(self._tanh_by_estimate(z), x)

    def exp(self, x: str) -> str:
        c, n = self.const, self._numbers
        z = self.vmin(c(n.exp_most), self.vmax(c(n.exp_least), x))
        shifted, _, r, square, q = self._exp_parts(z)
        whole = self._whole("sub", self._bits(shifted), self._bits(c(n.rounder)))
        half = self._whole("ashr", whole, self.integer(1))  # 2^n may overflow where exp(x) does not
        first, second = (
            self._number(self._whole("shl", self._whole("add", part, self.integer(n.bias)), self.integer(n.mantissa)))
            for part in (half, self._whole("sub", whole, half))
        )
        return self.mul(self.fma(first, self.fma(square, q, r), first), second)

    def log(self, x: str) -> str:
        """Compute log as in [1]: x = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2)."""
        fma, c, n, bits = self.fma, self.const, self._numbers, self._machine.bits
        whole, mantissa = self._bits(x), n.mantissa
        root = struct.unpack("<i" if bits == 32 else "<q", struct.pack("<f" if bits == 32 else "<d", 0.5**0.5))[0]
        above = self._whole("sub", whole, self.integer(root))
        k = self._whole("ashr", above, self.integer(mantissa))
        rest = self._whole("sub", whole, self._whole("shl", k, self.integer(mantissa)))
        f = self.sub(self._number(rest), c(1))
        exponent = self._real(k)
        s = self.div(f, self.add(c(2), f))
        z = self.mul(s, s)
        series = c(n.log_series[-1])
        for coefficient in reversed(n.log_series[:-1]):
            series = fma(z, series, c(coefficient))
        half = self.mul(self.mul(f, f), c(0.5))
        low = fma(s, self.add(half, self.mul(z, series)), self.mul(exponent, c(n.log_ln2_low)))
        y = fma(exponent, c(n.log_ln2_high), self.sub(f, self.sub(half, low)))
        y = self.select(self.compare("ult", x, c(n.tiny)), c(-np.inf), y)  # 0 and subnormals
        y = self.select(self.compare("olt", x, c(0)), c(np.nan), y)
        return self.select(self.compare("ueq", x, c(np.inf)), x, y)

    def log1p(self, x: str) -> str:
        """Compute log(u) x / (u - 1) with u = 1 + x, in which the rounding of u cancels."""
        c = self.const
        u = self.add(c(1), x)
        rest = self.sub(u, c(1))
        y = self.mul(self.log(u), self.div(x, rest))
        y = self.select(self.compare("oeq", rest, c(0)), x, y)
        return self.select(self.compare("ueq", x, c(np.inf)), x, y)

    def softplus(self, x: str) -> str:
        return self.add(self.vmax(self.const(0), x), self.log1p(self.exp(self.neg(self.fabs(x)))))

    def _tanh_by_estimate(self, z: str) -> str:
        fma, c, one = self.fma, self.const, self.const(1)
        _, scale, r, square, q = self._exp_parts(self.add(z, z))
        whole = self.sub(scale, one)
        head = fma(scale, r, whole)
        if self._machine.bits == 32:
            tail = self.mul(scale, self.mul(square, q))
        else:
            tail = fma(scale, self.mul(square, q), fma(scale, r, self.sub(whole, head)))
        e = self.add(head, tail)
        inverse = self.rough_reciprocal(self.add(e, c(2)))
        y = self.mul(e, inverse)
        rest = self.sub(one, y)
        return fma(fma(rest, tail, fma(rest, head, self.mul(c(-2), y))), inverse, y)


def single(value: float) -> float:
    """Round to float32."""
    return float(np.float32(value))


@dataclass(frozen=True)
class Numbers:
    """Constants of src/activation.h, and those of exp and log, for one precision."""

    mantissa: int
    bias: int
    exp_limit: float
    tanh_limit: float
    rounder: float
    log2e: float
    ln2_high: float
    ln2_low: float
    exp_least: float
    exp_most: float
    log_series: tuple[float, ...]
    log_ln2_high: float
    log_ln2_low: float
    tiny: float


FLOAT = Numbers(
    23, 127, 88.0, 9.2, 12583039.0, 1.44269504, 0.693359375, -2.12194440e-4, -104.0, 89.0,
    (0.66666662693, 0.40000972152, 0.28498786688, 0.24279078841),
    6.9313812256e-01, 9.0580006145e-06, 2.0**-126,
)  # fmt: skip
DOUBLE = Numbers(
    52, 1023, 709.0, 20.0, 6755399441056767.0, 1.4426950408889634, 6.93147180369123816490e-01,
    1.90821492927058770002e-10, -746.0, 710.0,
    (
        6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01,
        1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01,
    ),
    6.93147180369123816490e-01, 1.90821492927058770002e-10, 2.0**-1022,
)  # fmt: skip
