"""Export a model as a C file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np

from fastrnn import backends
from fastrnn.checks import titled
from fastrnn.convert.c_layers import WRITERS
from fastrnn.convert.c_source import Source, lines_of
from fastrnn.convert.stack import as_chain, kind_of, leaves, one_dtype
from fastrnn.layers.recurrent import Recurrent
from fastrnn.training.chain import Chain
from fastrnn.training.weight_files import file_path, replaced
from fastrnn.types import Array
from fastrnn.version import version
from fastrnn.weight_dtypes import MOST_INPUT

#: Steps of the self-test.
TESTED = 8

#: Relative norm-wise tolerance of the self-test: the recording machine may have summed in another order.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-13}

#: The same with int8 weights: such a difference may round an input to the next integer.
INT8_TOLERANCE = 1 / MOST_INPUT


def to_c(model: Any, path: str | os.PathLike[str], name: str | None = None) -> None:
    """Write a model as one C11 file and its header, which need neither fastrnn nor a maths library.

    ``to_c(model, "amp.c")`` writes amp.c and amp.h::

        typedef struct { ... } amp_state;
        void amp_init(amp_state *state);                                        /* begin a sequence */
        void amp_step(amp_state *state, const float *x, float *y);              /* I numbers in, K out */
        void amp_run(amp_state *state, const float *x, float *y, size_t T);     /* x (T, I), y (T, K) */

    Nothing is allocated, and states share no data, so each thread can have its own. ``amp_run`` continues from the
    state as ``amp_step`` does. x and y may be the same array if they have the same width. For a model that returns only
    the last step (``return_sequences=False``) y is (K,), after the last of the T steps; ``amp_step`` computes y as if
    the sequence ended there. If the first layer is an `Embedding`, x is ``const int32_t *``, one index per step; an
    index outside the table makes y NaN. A float64 model uses ``double`` in place of ``float``.

    A model with a bidirectional layer has no ``amp_step``, and its ``amp_run`` computes a whole sequence from a fresh
    state, in the caller's memory of T times ``amp_work`` numbers::

        void amp_run(amp_state *state, const float *x, float *y, size_t T, float *work);

    Results are bit-identical to the layer's on the instruction set that the C is compiled for: ``-march=x86-64-v3``,
    ``-v4``, or none for the baseline, and AArch64, except for denormal numbers, which the layer counts as 0. Compile
    with GCC or Clang.

    Recurrent layers with ``weight_dtype="int8"`` (`quantize`) keep their weights as int8 in C, a quarter of the memory,
    and their results are bit-identical on every instruction set.

    Compiled with ``-DAMP_TEST`` the file is a program that compares its outputs with outputs recorded from the model,
    and exits with 0 if they agree to rounding.

    Parameters
    ----------
    model : Layer
        A recurrent layer, or a `Sequential` of these, `Dense`, `Activation`, `LayerNormalization`, `Embedding`,
        `Dropout` (omitted), and `LastStep` directly after a recurrent layer.
    path : path
        The C file, ending in ".c".
    name : str, optional
        Prefix of the names in C; the file name without ".c" by default.

    Raises
    ------
    TypeError
        If `model` is not a layer of fastrnn, or not one of these.
    ValueError
        For an unsupported option or cell, non-finite weights, or a name that C does not allow; the message names it.
    OSError
        If a file cannot be written; FileNotFoundError if the directory does not exist.
    ImportError
        If the compiled extension is missing, which contains the C code that the files begin with.

    Examples
    --------
    >>> import os, tempfile, fastrnn
    >>> path = os.path.join(tempfile.mkdtemp(), "amp.c")
    >>> fastrnn.to_c(fastrnn.Sequential([fastrnn.LSTM(1, 16, rng=0), fastrnn.Dense(16, 1, rng=1)]), path)
    >>> sorted(os.listdir(os.path.dirname(path)))
    ['amp.c', 'amp.h']
    """
    file = file_path("path", path)
    if file.suffix != ".c":
        raise ValueError(f"path: expected a file name ending in .c, got {os.fspath(path)!r}")
    named = file.stem if name is None else name
    if not isinstance(named, str) or not re.fullmatch("[A-Za-z_][A-Za-z_0-9]*", named):
        argument = "path: its file name is the prefix of names in C;" if name is None else "name:"
        raise ValueError(
            f"{argument} expected letters, digits and _, got {named!r:.80}; pass another name= (no digit first)"
        )
    chain = as_chain("model", model)
    header, source = written(chain, named, backends.load("native").headers, file.with_suffix(".h").name)
    with replaced(file.with_suffix(".h")) as partial:
        partial.write_text(header)
    with replaced(file) as partial:
        partial.write_text(source)


def written(chain: Chain, name: str, headers: Callable[..., str], include: str) -> tuple[str, str]:
    """Return the text of the header and of the source."""
    layers = list(leaves(chain))
    if not any(isinstance(layer, Recurrent) for _, _, layer in layers):
        raise ValueError(f"model: expected at least one recurrent layer, got {chain!r:.80}")
    dtype = one_dtype(layer for _, _, layer in layers)
    source = Source(name, dtype, chain.input_shape[-1] if len(chain.input_shape) == 3 else None)
    for _, title, layer in layers:
        with titled(title) if len(layers) > 1 else nullcontext():
            WRITERS[kind_of(layer, WRITERS)](source, layer)
    source.end()
    fill = {
        "name": name,
        "test": f"{name.upper()}_TEST",
        "include": include,
        "version": version(),
        "model": repr(chain.layers[0] if len(chain) == 1 else chain),
        "real": source.real,
        "bits": 8 * source.dtype.itemsize,
        "x": "int32_t" if source.inputs is None else source.real,
        "I": source.inputs or 1,
        "K": source.width,
        "headers": headers(int8=source.int8),
        "states": "\n".join(f"    {one}" for one in source.states),
        "definitions": "\n".join([*source.helpers.values(), *source.arrays, *source.functions]),
        "body": indented(source.body),
        "passes": indented(source.passes),
        "head": indented(source.head),
        "last": source.last,
        "tested": tested(chain, source),
    }
    fill |= {"scratch": "", "given": "", "room": ""}
    if source.passes:
        fill |= {"scratch": f", {name}_work = {max(1, source.work)}", "given": ", work"}
        fill["room"] = f"\n    static {source.real} work[STEPS * {name}_work];"
    fill["declarations"] = filled(DECLARED_WHOLE if source.passes else DECLARED, fill)
    fill["finish"] = filled(FINISH, fill) if source.last else ""
    run = WHOLE if source.passes else LAST if source.last else EACH
    return filled(HEADER, fill), "\n".join([filled(part, fill) for part in (SOURCE, run, TEST)])


def filled(text: str, values: dict[str, Any]) -> str:
    """Replace each @name@ with its value."""
    return re.sub("@([a-zA-Z]+)@", lambda match: str(values[match[1]]), text)


def indented(lines: Iterable[str]) -> str:
    return "\n".join([f"    {line}" for line in lines])


def tested(chain: Chain, source: Source) -> str:
    """Return C arrays of the self-test's inputs and the model's outputs."""
    rng = np.random.default_rng(0)
    if source.inputs is None:
        x: Array = rng.integers(0, source.numbers, (1, TESTED))
        given = lines_of("int32_t", "test_x", x.ravel().tolist())
    else:
        x = rng.standard_normal((1, TESTED, source.inputs)).astype(source.dtype)
        given = source.array("test_x", x)
    y = chain.forward(x).y
    tolerance = INT8_TOLERANCE if source.int8 else TOLERANCE[source.dtype]
    return f"{given}\n{source.array('test_y', y)}\nstatic const double tolerance = {tolerance!r};"


HEADER = """\
/* Written by fastrnn @version@, fastrnn.to_c:
 * @model@ */
#ifndef @name@_H
#define @name@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { @name@_inputs = @I@, @name@_outputs = @K@@scratch@ };

typedef struct {
@states@
} @name@_state;

/* Begin a sequence. */
void @name@_init(@name@_state *state);

@declarations@
#ifdef __cplusplus
}
#endif

#endif
"""

DECLARED = """\
/* One step: x (inputs), y (outputs). */
void @name@_step(@name@_state *state, const @x@ *x, @real@ *y);

/* T steps: x (T, inputs), y (T, outputs), or (outputs) for a model that returns only the last step. */
void @name@_run(@name@_state *state, const @x@ *x, @real@ *y, size_t T);
"""

DECLARED_WHOLE = """\
/* A sequence: x (T, inputs), y (T, outputs), or (outputs) for a model that returns only the last step. The function
 * uses work (T, work), and begins with init. */
void @name@_run(@name@_state *state, const @x@ *x, @real@ *y, size_t T, @real@ *work);
"""

SOURCE = """\
/* Written by fastrnn @version@, fastrnn.to_c; see @include@ for the interface. */

#if !defined(__GNUC__)
#error "the code uses GNU C vectors: compile with GCC or Clang"
#elif defined(__FAST_MATH__)
#error "compile without -ffast-math: the functions need exact floating-point semantics"
#elif defined(__AVX2__) && !defined(__FMA__)
#error "-mavx2 also needs -mfma"
#elif __FLT_EVAL_METHOD__ < 0 || __FLT_EVAL_METHOD__ == 1 || __FLT_EVAL_METHOD__ == 2
#error "float is computed in another precision here: for 32-bit x86 add -msse2 -mfpmath=sse"
#elif defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off", "no-math-errno")
#endif

#define FRNN_BITS @bits@

@headers@
#define ALIGNED __attribute__((aligned(64)))

#include "@include@"

@definitions@
void @name@_init(@name@_state *state) { memset(state, 0, sizeof *state); }
"""

EACH = """\
void @name@_step(@name@_state *state, const @x@ *x, @real@ *y)
{
@body@
}

void @name@_run(@name@_state *state, const @x@ *x, @real@ *y, size_t T)
{
    for (size_t t = 0; t < T; t++) @name@_step(state, x + t * @name@_inputs, y + t * @name@_outputs);
}
"""

LAST = """\
static void advance(@name@_state *state, const @x@ *x)
{
@body@
}

@finish@
void @name@_step(@name@_state *state, const @x@ *x, @real@ *y)
{
    advance(state, x);
    finish(state, y);
}

void @name@_run(@name@_state *state, const @x@ *x, @real@ *y, size_t T)
{
    for (size_t t = 0; t < T; t++) advance(state, x + t * @name@_inputs);
    finish(state, y);
}
"""

FINISH = """\
static void finish(const @name@_state *state, @real@ *y)
{
@head@
}
"""

WHOLE = """\
@finish@
void @name@_run(@name@_state *state, const @x@ *x, @real@ *y, size_t T, @real@ *work)
{
    (void)work;
    @name@_init(state);
@passes@
}
"""

TEST = """\
#ifdef @test@

#include <stdio.h>

@tested@

int main(void)
{
    enum { STEPS = sizeof test_x / sizeof *test_x / @name@_inputs, OUTPUTS = sizeof test_y / sizeof *test_y };
    static @name@_state state;
    static @real@ y[OUTPUTS];@room@
    double error = 0, size = 0;
    @name@_init(&state);
    @name@_run(&state, test_x, y, STEPS@given@);
    for (int i = 0; i < OUTPUTS; i++) {
        const double own = y[i], recorded = test_y[i];
        error += (own - recorded) * (own - recorded);
        size += recorded * recorded;
    }
    const int agree = error <= tolerance * tolerance * size;
    printf("@name@: %s\\n", agree ? "as recorded" : "NOT as recorded");
    return !agree;
}

#endif
"""
