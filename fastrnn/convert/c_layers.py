"""Write layers as C on top of src/single.h: arrays of weights, a function per recurrent layer, and a step's statements.

A layer of two directions needs all steps at once: the layers before it run on every step, then it does, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.cells.c import FORMS, inference
from fastrnn.cells.c_functions import number
from fastrnn.cells.graph import needed
from fastrnn.convert.c_source import Sequence, Source
from fastrnn.convert.stack import unstacked
from fastrnn.layers import Activation, Dense, Dropout, Embedding, LastStep, Layer, LayerNormalization
from fastrnn.layers.options import features
from fastrnn.layers.recurrent import Recurrent
from fastrnn.packed import Part
from fastrnn.types import Array
from fastrnn.weight_dtypes import dequantized

#: bytes of a CPU's first cache: steps read larger matrices in turns, forwards and backwards
LEVEL_1 = 32768

#: A layer's `merge` -> the statement that joins the outputs b of the reverse direction to those of the other, in y.
EACH = "for (int k = 0; k < {n}; k++) {y}[k] = "
MERGES: dict[str | None, str] = {
    "concat": "memcpy({y} + {n}, {b}, {n} * sizeof(real));",
    "sum": EACH + "{y}[k] + {b}[k];",
    "mul": EACH + "{y}[k] * {b}[k];",
    "average": EACH + "({y}[k] + {b}[k]) / 2;",
}


def write_recurrent(source: Source, layer: Recurrent) -> None:
    refuse(layer)
    for one in unstacked(layer):
        if isinstance(one, Recurrent):
            (write_both if layer.bidirectional else write_one)(source, one)
    if not layer.return_sequences:
        source.gives_last()


def write_one(source: Source, layer: Recurrent) -> None:
    """Write a layer of one direction."""
    function, arguments, y = write_direction(source, layer, layer.stack.parts[0])
    source.statements(f"{function}({source.x}, {arguments});")
    source.gives(y, layer.proj_size or layer.hidden_size, recurrent=True)


def write_both(source: Source, layer: Recurrent) -> None:
    """Write a layer of two directions."""
    read, n, width = source.all_steps(), layer.proj_size or layer.hidden_size, features(layer)
    (forward, forward_arguments, first), (backward, backward_arguments, second) = (
        write_direction(source, layer, part) for part in layer.stack.parts
    )
    y = source.whole(width) if layer.return_sequences else Sequence(f"y_{source.number()}", width, "real")
    row = y.at("t") if layer.return_sequences else y.name
    take = f"memcpy({row}, {first}, {n} * sizeof(real));"
    join = MERGES[layer.merge].format(y=f"({row})", b=f"({second})", n=n)
    for steps, function, arguments, done in (
        ("t = 0; t < T; t++", forward, forward_arguments, take),
        ("t = T; t-- > 0;", backward, backward_arguments, join),
    ):
        call = f"{function}({read.at('t')}, {arguments});"
        source.passes.append(f"for (size_t {steps}) {{ {call}{f' {done}' if layer.return_sequences else ''} }}")
    if layer.return_sequences:
        source.sequence, source.x = y, "x"
    else:
        source.x = source.last = y.name
        source.statements(f"real {y.name}[{source.padded(width)}] ALIGNED;", take, join)
    source.gives(source.x, width, recurrent=True)


def refuse(layer: Recurrent) -> None:
    """Raise ValueError for options that a step in C does not support."""
    cell = layer.stack.inference
    if layer.weight_dtype not in (None, "int8"):
        raise ValueError(f'weight_dtype: expected None or "int8", got {layer.weight_dtype!r}, which C does not support')
    if cell.inputs:
        raise ValueError(f"cell: {cell.name} has extra inputs {', '.join(cell.inputs)}; expected one without")
    if beyond := {node.op for node in needed(cell.program.after)} & {"sin", "cos"}:
        raise ValueError(f"cell: {cell.name} uses {min(beyond)}, which needs a library in C; expected one without")


def write_direction(source: Source, layer: Recurrent, part: Part) -> tuple[str, str, str]:
    """Write the function of one direction; return its name, its arguments after x, and its output in the state.

    The state array holds the states, then the projected output.
    """
    i, cell, program = source.number(), layer.stack.inference, layer.stack.inference.program
    part = {key: dequantized(a) for key, a in part.items()}
    H, P, G, S = layer.hidden_size, layer.proj_size, cell.G, len(cell.states)
    Hp, Pp = source.padded(H), source.padded(P)
    D, Dp = H // layer.heads, source.padded(H // layer.heads)
    beyond = f" + {Dp}] ALIGNED = {{0}};" if layer.heads > 1 else "] ALIGNED;"
    int8 = layer.weight_dtype == "int8"
    stored, multiply, room = (
        (source.int8_matrix, "multiply_int8", "pairs, ") if int8 else (source.matrix, "multiply", "")
    )
    source.call({node.op for node in needed(program.after)}, int8=int8)
    y = "state" if not P else f"state + {S} * Hp"
    W, bias = stored(f"W_{i}", part["W"], G), source.rows(f"bias_{i}", bias_of(cell, part))
    lines = [f"{multiply}(turn, {G} * Hp, {layer.input_size}, {W}, {bias}, x, {room}wx);"]
    arrays = set[str]()
    for q, phase in enumerate(program.phases):
        if phase.gates:
            U = by_product(cell, part["U"], phase.gates)
            left = y if q not in program.made else f"kept + {program.places_kept[program.made[q]].field} * Hp"
            if layer.heads == 1:
                matrix = stored(f"U_{i}_{q}", U.reshape(-1, U.shape[-1]), len(phase.gates))
                sizes = f"{len(phase.gates)} * Hp, {U.shape[-1]}"
                lines.append(f"{multiply}(turn, {sizes}, {matrix}, 0, {left}, {room}uh);")
            else:
                blocks = source.matrices(f"U_{i}_{q}", U.reshape(-1, D, D))
                lines.append(f"multiply_heads({len(phase.gates)}, {layer.heads}, {D}, {Dp}, Hp, {blocks}, {left}, uh);")
        first = sum(len(before.means) for before in program.phases[:q])
        for j in range(len(phase.means)):
            lines.append(f"store(uh + {j} * Hp, splat(mean_of(made + {first + j} * Hp, {H})));")
        loops, named = inference(program, q, int8=int8)
        lines, arrays = lines + loops, arrays | named
    if P:
        lines.append(f"{multiply}(turn, {Pp}, {H}, {stored(f'R_{i}', part['R'])}, 0, state, {room}{y});")
    pointers: dict[str, Callable[[], str]] = {
        "prev": lambda: "const real *const prev = state;",
        "next": lambda: "real *const next = state;",
        "uh": lambda: f"real uh[{max(len(phase.gates + phase.means) for phase in program.phases)} * Hp{beyond}",
        "made": lambda: f"real made[{len(program.means)} * Hp] ALIGNED;",
        "same": lambda: f"real same[{len(program.kept_same)} * LANES] ALIGNED;",
        "kept": lambda: f"real kept[{len(program.kept)} * Hp] ALIGNED;",
        "b_rec": lambda: f"const real *const b_rec = {source.rows(f'b_rec_{i}', biases(cell, part))};",
        "p": lambda: f"const real *const p = {source.rows(f'p_{i}', part['p'].reshape(-1, H))};",
    }
    begin = [f"enum {{ Hp = {Hp}, n = Hp }};", f"real wx[{G} * Hp] ALIGNED;"]
    if int8:
        begin.append(f"int32_t pairs[{source.padded(max(layer.input_size, H))} / 2];")
    begin += [line() for array, line in pointers.items() if array in arrays]
    text = "".join([f"    {line}\n" for line in [*begin, *lines]])
    head = f"/* {layer!r} */\nstatic void layer_{i}(const real *x, real *state, int turn)"
    source.functions.append(f"{head}\n{{\n{text}}}\n")
    source.states.append(f"{source.real} layer_{i}[{S * Hp + Pp}]; /* {', '.join(cell.states)}: each {Hp} */")
    turn = "0"
    if max(a.size for a in part.values()) * (1 if int8 else source.dtype.itemsize) > LEVEL_1:
        source.states.append(f"int turn_{i}; /* 0 or 1: in which order a step reads the weights */")
        turn = f"state->turn_{i} ^= 1"
    return f"layer_{i}", f"state->layer_{i}, {turn}", f"state->layer_{i}" + (f" + {S * Hp}" if P else "")


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
        f"multiply(0, {source.padded(N)}, {layer.input_size}, {W}, {bias}, {x}, y_{i});",
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


def write_normalization(source: Source, layer: LayerNormalization) -> None:
    i, F = source.number(), layer.input_size
    scale, shift = (
        "0" if p is None else source.keep(f"{name}_{i}", p)
        for name, p in (("scale", layer.weight), ("shift", layer.bias))
    )
    epsilon = number(layer.epsilon)
    source.statements(f"real y_{i}[{F}];", f"normalize({source.x}, y_{i}, {F}, {epsilon}, {scale}, {shift});")
    source.gives(f"y_{i}", F)


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
        raise ValueError("expected only directly after a recurrent layer; layers of single steps may follow it")
    if source.x == "x":  # the steps of two directions are not in the state
        last, width = f"last_{source.number()}", source.width
        source.states.append(f"{source.real} {last}[{width}];")
        source.passes.append(f"if (T) memcpy(state->{last}, {source.sequence.at('(T - 1)')}, sizeof state->{last});")
        source.gives(f"state->{last}", width)
    source.gives_last()


def leave_out(source: Source, layer: Layer) -> None:
    """Omit a layer that only acts in training."""


WRITERS: dict[type[Layer], Callable[[Source, Any], None]] = {
    Recurrent: write_recurrent,
    Dense: write_dense,
    Activation: write_activation,
    LayerNormalization: write_normalization,
    Embedding: write_embedding,
    LastStep: write_last,
    Dropout: leave_out,
}
