/* The parameters of forward in the kernels' layout. They depend only on the layer, not on T, B or threads, so they can
 * be packed once and used in every call.
 */
#ifndef FRNN_WEIGHTS_H
#define FRNN_WEIGHTS_H

#include "arena.h"
#include "cell.h"
#include "matmul.h"

typedef struct {
    Panels W, U[FRNN_MAX_PHASES]; /* W defines the groups of units, because a cell may have no product with U */
    Panels R;    /* of the projection, if there is one */
    real *bias;  /* one row in wx's layout: b plus the parts of b_rec that may be added to it */
    real *b_rec; /* of each product */
    real *parameters;
} Weights;

/* Units of the operand of phase q's products. */
INLINE ptrdiff_t operand_width(const frnn_call *call, int q)
{
    return call->P && call->cell->phase_gates[q] && call->cell->operand[q] < 0 ? call->P : call->H;
}

/* Columns of U and dU. */
INLINE ptrdiff_t recurrent_columns(const frnn_call *call) { return call->D ? call->D : call->P ? call->P : call->H; }

/* The number of vectors of units in a group: at most the given number and, if possible, from a single head. */
INLINE int vectors_of_group(const frnn_call *call, int most)
{
    for (int n = most; call->D && n > 0; n--)
        if (call->D % (n * LANES) == 0) return n;
    return most;
}

/* K counts all segments; for a block-diagonal matrix it is reduced to their windows. */
INLINE Panels take_panels(Arena *arena, Panels p)
{
    if (p.head) {
        p.window = window_of(&p);
        p.K = p.K / p.units * p.window;
    }
    p.groups = (vectors_of(p.units) + p.group_vectors - 1) / p.group_vectors;
    p.data = take_reals(arena, panels_size(&p));
    return p;
}

/* Lay out the parameters of a call's layer; backward reads only those of `p`. */
Weights X(take_weights)(const frnn_call *call, Arena *arena, int parameters_only);

/* The whole of it in `call->packed`. */
size_t X(packed_size)(const frnn_call *call);
void X(pack_weights)(const frnn_call *call, void *packed);

/* Fill everything except the panels; fill one thread's share of the panels (with `U_alone`, except those of W). */
void X(fill_vectors)(const Weights *weights, const frnn_call *call, int parameters_only);
void X(fill_panels)(const Weights *weights, const frnn_call *call, int id, int threads, int U_alone);

extern const Cell *const X(cells)[];
#if FRNN_BITS == 32
extern const Cell *const X(unfused)[];
#endif

#endif
