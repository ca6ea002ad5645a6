/* A cell is pairs of pointwise functions; the drivers own time, batch, threads and the matrix products. The cells that
 * fastrnn/cells/generate.py lists are generated in C from their equations; others are compiled at run time.
 *
 * A step runs in phases. A phase with products multiplies its operand (the first state before the step, or a kept
 * field that an earlier phase wrote) by the recurrent weights of its gates. A phase with means computes them, over all
 * hidden units, of values from earlier phases. The first phase may have neither. The cell's function for the phase is
 * then called on one tile after the other, each a few rows by one block of hidden units. A mean takes the place of a
 * product, but only in the first vector of the block, because it is the same for all units.
 *
 * Backward runs the phases in reverse order, and passes each the gradient of what the next phase reads: of the operand
 * of its products, or of each operand of its means. The last phase gets the gradient of the first state after the step.
 *
 * Cells do not see projections: after the last phase the driver multiplies the first state by R, and the next step and
 * the caller see the product.
 *
 * All rows are padded to Hp hidden units, so a cell works on whole vectors only: `at` is the block's first unit,
 * `lanes` its units (a multiple of LANES). In rows of states, kept values (saved activations) and gradients,
 * field f starts at f*Hp.
 */
#ifndef FRNN_CELL_H
#define FRNN_CELL_H

#include "cells.h"
#include "fastrnn.h"
#include "vec.h"

typedef struct ForwardTile {
    int rows, keep;          /* keep: also write what backward needs to `kept` */
    ptrdiff_t at, lanes, Hp;
    Rows wx;                 /* W x + b of this block: gates `lanes` apart */
    Rows uh;                 /* the phase's products or means, in the same layout */
    const real *const *prev; /* states before the step */
    Rows next;               /* states after it */
    Rows kept;               /* the cell's fields for later phases and for backward */
    Rows made;               /* operands of the means, one field each */
    /* Biases of all products, parameters, extra inputs. All rows read the same biases and parameters, unless the rows
     * are neighbouring blocks of a single row; then the stride is that between blocks. */
    Rows b_rec, p, e;
} ForwardTile;

typedef struct BackwardTile {
    int rows;
    ptrdiff_t at, lanes, Hp;
    Rows dout;               /* gradients of what the next phase reads, one field each; this block only. For a cell that
                                scans: the caller's gradient of y; the rest is in `carry`, as for other states */
    const real *const *prev; /* states before the step */
    Rows next, kept;         /* states after it, and the values that forward kept */
    Rows carry;              /* per state: gradient of the state before the step that bypasses the products. On entry of
                                the last phase: that of the states after this step, except the first. Then fields that
                                one phase passes to the next */
    Rows da, da_rec;         /* gradients of W x + b; and of all products + b_rec, then of all means. One array, unless
                                the cell splits, as a cell with means does */
    Rows dp, de;             /* terms of the parameters' gradient; gradients of the extra inputs */
    Rows p, e;
} BackwardTile;

typedef frnn_cell Cell;

/* The number of products in the phases before this one. */
INLINE int first_product(const Cell *cell, int phase)
{
    int sum = 0;
    for (int q = 0; q < phase; q++) sum += cell->phase_gates[q];
    return sum;
}
INLINE int products_of(const Cell *cell) { return first_product(cell, cell->phases); }

/* The number of means in the phases before this one. */
INLINE int first_mean(const Cell *cell, int phase)
{
    int sum = 0;
    for (int q = 0; q < phase; q++) sum += cell->phase_means[q];
    return sum;
}
INLINE int means_of(const Cell *cell) { return first_mean(cell, cell->phases); }

/* The registry, in the order of fastrnn/cells/generate.py. */
#define UNFUSED(name) FRNN_EXPAND(name, FRNN_BITS, FRNN_UNFUSED_ISA) /* float only, and forward only */
#define DECLARE(name) extern const Cell X(name), UNFUSED(name);
FRNN_CELLS(DECLARE)
#undef DECLARE

#endif
