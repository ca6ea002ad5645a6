/* A cell is pairs of pointwise functions; the drivers own time, batch, threads and the matrix products. The cells that
 * fastrnn/cells/generate.py chooses are written in C from their equations; others are compiled while the program runs.
 *
 * A step runs in phases. A phase with products multiplies its operand, the first state before the step or a kept field
 * that an earlier phase wrote, by the recurrent weights of its gates. A phase with means takes them, over all hidden
 * units, of what earlier phases made. The first phase may have neither. The phase's function of the cell is then handed
 * one tile after the other, a few rows by one block of hidden units. It finds a mean where a product would be, but only
 * in the first vector of the block, for a mean is the same for all units.
 *
 * Backward runs the phases in the opposite order, and hands each the gradient of what the phase after it reads: of the
 * operand of its products, or of each operand of its means. The last phase gets that of the first state after the step.
 *
 * A projection is none of the cell's business: after the last phase the driver multiplies the first state by R, and the
 * product is what the next step and the caller see of it.
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
    Rows uh;                 /* the phase's products or means, laid out alike */
    const real *const *prev; /* states before the step */
    Rows next;               /* states after it */
    Rows kept;               /* the cell's fields for later phases and for backward */
    Rows made;               /* what means are taken of, a field each */
    /* Biases of all products, parameters, extra inputs. Of the first two every row reads the same, unless the rows are
     * neighbouring blocks of a single row; then strides lead from block to block. */
    Rows b_rec, p, e;
} ForwardTile;

typedef struct BackwardTile {
    int rows;
    ptrdiff_t at, lanes, Hp;
    Rows dout;               /* gradients of what the phase after reads, a field each; only this block. Of a cell that
                                scans: what reaches y from outside, while the rest is in `carry` as for other states */
    const real *const *prev; /* states before the step */
    Rows next, kept;         /* states after it, and what forward kept */
    Rows carry;              /* per state: gradient that reaches the state before the step past the products. On entry
                                the last phase finds that of the states after this step, but for the first. Then fields
                                that one phase leaves to the next */
    Rows da, da_rec;         /* gradients of W x + b; and of all products + b_rec, then of all means. One array, unless
                                the cell splits, as a cell with means does */
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
