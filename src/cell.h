/* A cell is pairs of pointwise functions; the drivers own time, batch, threads and the matrix products. Those that
 * fastrnn/cells/generate.py chooses are generated from their equations; others are compiled while the program runs.
 *
 * A step runs in phases. Phase q multiplies its operand, the first state before the step or a kept field that an earlier
 * phase wrote, by the recurrent weights of its gates, and hands the cell a tile of a few rows by one block of hidden
 * units. A phase may instead take means over all hidden units of what earlier phases made; it finds them where products would be, in
 * the first vector of their block, for each is the same for all units. The first phase may have neither. Backward runs the phases in the opposite order and hands the cell the
 * gradient of what is multiplied next: of the first state for the last phase, of the operand of phase q + 1 for phase q.
 *
 * All rows are padded to Hp hidden units, so a cell works on whole vectors only: `at` is the block's first unit,
 * `lanes` its units (a multiple of LANES). In rows of states, kept values and gradients, field f stands at f*Hp.
 */
#ifndef FRNN_CELL_H
#define FRNN_CELL_H

#include "cells.h"
#include "fastrnn.h"
#include "vec.h"

typedef struct ForwardTile {
    int rows, keep;          /* keep: what backward needs is written to `kept` too */
    ptrdiff_t at, lanes, Hp;
    Rows wx;                 /* W x + b of this block: gates `lanes` apart */
    Rows uh;                 /* the phase's products, laid out alike */
    const real *const *prev; /* states before the step */
    Rows next;               /* states after it */
    Rows kept;               /* the cell's fields for later phases and for backward */
    Rows made;               /* what means are taken of, a field each */
    Rows b_rec, p, e;        /* biases of all products, parameters, extra inputs; the same for every row but for e, */
} ForwardTile;               /* unless the rows are neighbouring blocks of a single one, and strides lead to each */

typedef struct BackwardTile {
    int rows;
    ptrdiff_t at, lanes, Hp;
    Rows dout;               /* gradient of what is multiplied next, or of each operand of means; only this block */
    const real *const *prev; /* states before the step */
    Rows next, kept;         /* states after it, and what forward kept */
    Rows carry;              /* per state: gradient that reaches the state before the step past the products. On entry
                                the last phase finds that of the states after this step, but for the first. Then fields
                                that one phase leaves to the next */
    Rows da, da_rec;         /* gradients of W x + b, and of all products + b_rec, then of means; the same array unless
                                the cell splits, as one with means does */
    Rows dp, de;             /* terms of the parameters' gradient; gradients of the extra inputs */
    Rows p, e;
} BackwardTile;

typedef frnn_cell Cell;

/* The products before those of a phase. */
INLINE int first_product(const Cell *cell, int phase)
{
    int sum = 0;
    for (int q = 0; q < phase; q++) sum += cell->phase_gates[q];
    return sum;
}
INLINE int products_of(const Cell *cell) { return first_product(cell, cell->phases); }

/* The means before those of a phase. */
INLINE int first_mean(const Cell *cell, int phase)
{
    int sum = 0;
    for (int q = 0; q < phase; q++) sum += cell->phase_means[q];
    return sum;
}
INLINE int means_of(const Cell *cell) { return first_mean(cell, cell->phases); }

/* The registry, in the order of fastrnn/cells/generate.py. */
#define CELL(name) FRNN_EXPAND(name, FRNN_BITS, FRNN_CELLS_ISA)
#define DECLARE(name) extern const Cell CELL(name);
FRNN_CELLS(DECLARE)
#undef DECLARE

#endif
