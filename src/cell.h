/* A cell is pairs of pointwise functions; the drivers own time, batch, threads and the matrix products.
 *
 * A step runs in one or two phases. Phase q multiplies its operand (phase 0: h of the step before; phase 1: the kept
 * field `mid`, which phase 0 wrote) by the recurrent weights of its gates, and hands the cell a tile of a few rows by
 * one block of hidden units. Backward runs the phases in the opposite order and hands the cell the gradient of what the
 * forward phase made: h for the last phase, field `mid` for the one before.
 *
 * All rows are padded to Hp hidden units, so a cell works on whole vectors only: `at` is the block's first unit,
 * `lanes` its units (a multiple of LANES). In rows of states, gates and gradients, field f stands at f*Hp.
 */
#ifndef FRNN_CELL_H
#define FRNN_CELL_H

#include "fastrnn.h"
#include "vec.h"

enum { MAX_PHASES = 2, MAX_GATES = 4 };

typedef struct {
    int rows;
    ptrdiff_t at, lanes, Hp;
    Rows wx;                 /* W x + b of this block: this phase's first gate, gates `lanes` apart */
    Rows uh;                 /* the phase's recurrent product, laid out alike */
    const real *const *prev; /* states before the step: h, c */
    Rows next;               /* states after it */
    Rows gates;              /* the cell's `kept` fields, for backward and for phase 1; data may be null in one phase */
    Rows b_rec, p;           /* parameters: G and 3 fields; the same for every row, */
} ForwardTile;               /* unless the rows are neighbouring blocks of a single one, and strides lead to each */

typedef struct {
    int rows;
    ptrdiff_t at, lanes, Hp;
    Rows dout;               /* gradient of what this phase made; only this block: no `at`, no fields */
    const real *const *prev; /* states before the step */
    Rows next, gates;        /* states after it, and what forward kept */
    Rows carry;              /* per state: gradient that reaches the state before the step past the products. On entry
                                the last phase finds dc of this step in field 1 */
    Rows da, da_rec;         /* gradients of W x + b and of U h + b_rec, G fields; the same unless the cell splits */
    Rows dp;                 /* terms of the peepholes' gradient, 3 fields */
    const real *p;
} BackwardTile;

typedef struct {
    const char *name;
    int gates, states, kept;
    int phases, phase_gates[MAX_PHASES]; /* consecutive gates of each phase */
    int mid;       /* the kept field that phase 1 multiplies by its recurrent weights */
    int split;     /* the last `split` gates see U h + b_rec only through a factor: their b_rec is not added to b */
    int carries_h; /* part of dh reaches the step before past the products (carry field 0) */
    int peepholes; /* fields of p */
    void (*forward[MAX_PHASES])(const ForwardTile *);
    void (*backward[MAX_PHASES])(const BackwardTile *);
} Cell;

/* The registry: one line a cell, in the order of fastrnn.cells.CELLS. */
#define FRNN_CELLS(CELL)                                                                                               \
    CELL(rnn_tanh)                                                                                                     \
    CELL(rnn_relu)                                                                                                     \
    CELL(rnn_sigmoid)                                                                                                  \
    CELL(rnn_identity)                                                                                                 \
    CELL(lstm)                                                                                                         \
    CELL(lstm_peephole)                                                                                                \
    CELL(gru_after)                                                                                                    \
    CELL(gru_before)

#define DECLARE(name) extern const Cell X(name);
FRNN_CELLS(DECLARE)
#undef DECLARE

#endif
