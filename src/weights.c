#include "weights.h"

#define POINTER(name) &X(name),
const Cell *const X(cells)[] = {FRNN_CELLS(POINTER)};
#undef POINTER

#if FRNN_BITS == 32
#define POINTER(name) &UNFUSED(name),
const Cell *const X(unfused)[] = {FRNN_CELLS(POINTER)};
#undef POINTER
#endif

Weights X(take_weights)(const frnn_call *call, Arena *arena, int parameters_only)
{
    const Cell *cell = call->cell;
    const ptrdiff_t H = call->H, Hp = padded(H);
    int most = products_of(cell) ? 0 : cell->gates;
    for (int q = 0; q < cell->phases; q++) { /* a phase has either */
        const int wide = cell->phase_gates[q] + cell->phase_means[q];
        if (wide > most) most = wide;
    }
    const int group_vectors = vectors_of_group(call, GROUP_VECTORS(most));
    Weights w = {.parameters = take_reals(arena, cell->parameters * Hp)};
    Arena nowhere = {0, 0};
    if (parameters_only) arena = &nowhere;
    w.bias = take_reals(arena, cell->gates * Hp);
    w.b_rec = take_reals(arena, products_of(cell) * Hp);
    Panels own = {.units = H, .group_vectors = group_vectors, .format = call->format};
    own.K = call->I;
    own.gates = cell->gates;
    w.W = take_panels(arena, own);
    own.head = call->D;
    for (int q = 0; q < cell->phases; q++) {
        own.K = operand_width(call, q);
        own.gates = cell->phase_gates[q];
        w.U[q] = take_panels(arena, own);
    }
    const Panels R = {.K = H, .units = call->P, .gates = 1, .group_vectors = NR, .format = call->format};
    w.R = take_panels(arena, R);
    return w;
}

void X(fill_vectors)(const Weights *w, const frnn_call *call, int parameters_only)
{
    const Cell *cell = call->cell;
    const int gates = cell->gates;
    const ptrdiff_t H = call->H, Hp = padded(H);
    const real *b = call->b, *b_rec = call->b_rec;
    for (int k = 0; k < cell->parameters; k++) {
        zero_row(w->parameters + k * Hp, Hp);
        copy_row(w->parameters + k * Hp, (const real *)call->p + k * H, H);
    }
    if (parameters_only) return;
    for (int k = 0; k < products_of(cell); k++)
        for (ptrdiff_t l = 0; l < Hp; l++) w->b_rec[k * Hp + l] = b_rec && l < H ? b_rec[k * H + l] : 0;
    for (ptrdiff_t group = 0; group < w->W.groups; group++) {
        const ptrdiff_t start = group_start(&w->W, group), lanes = group_lanes(&w->W, group);
        for (int g = 0; g < gates; g++)
            for (ptrdiff_t l = 0; l < lanes; l++) {
                const ptrdiff_t unit = start + l;
                const real own = b && unit < H ? b[g * H + unit] : 0;
                const real rec = cell->added[g] < 0 ? 0 : w->b_rec[cell->added[g] * Hp + unit];
                w->bias[start * gates + g * lanes + l] = own + rec;
            }
    }
}

void X(fill_panels)(const Weights *w, const frnn_call *call, int id, int threads, int U_alone)
{
    const Cell *cell = call->cell;
    const ptrdiff_t H = call->H, K = recurrent_columns(call);
    if (!U_alone) X(pack)(&w->W, id, threads, call->W, H * call->I, call->I, 1);
    for (int q = 0; q < cell->phases; q++)
        X(pack)(&w->U[q], id, threads, (const real *)call->U + first_product(cell, q) * H * K, H * K, K, 1);
    X(pack)(&w->R, id, threads, call->R, 0, H, 1);
}

size_t X(packed_size)(const frnn_call *call)
{
    Arena arena = {0, 0};
    X(take_weights)(call, &arena, 0);
    return arena.used;
}

void X(pack_weights)(const frnn_call *call, void *packed)
{
    Arena arena = {packed, 0};
    const Weights w = X(take_weights)(call, &arena, 0);
    X(fill_vectors)(&w, call, 0);
    X(fill_panels)(&w, call, 0, 1, 0);
}
