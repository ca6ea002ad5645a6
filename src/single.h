/* One row by a matrix, in C files of fastrnn.to_c: the terms of a sum in the order that matmul.h promises.
 *
 * A matrix (K, columns) is cut into panels of PANEL columns, the last one maybe narrower, each stored [k][column]. So
 * its layout does not depend on the width of vectors. `columns` is a multiple of the widest vector's lanes.
 */
#ifndef FRNN_SINGLE_H
#define FRNN_SINGLE_H

#include "lanes.h"

enum {
    PANEL = 256 / sizeof(real),
    KC = 128, /* matmul.h's: the terms of one chain of multiply-adds */
    TILE = 8, /* vectors that accumulate in registers at a time: enough chains to hide the multiply-add's latency */
};

#if defined(__clang__)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* `vectors` neighbouring columns of a panel, a constant once inlined. */
INLINE void multiply_tile(const int vectors, const ptrdiff_t K, const ptrdiff_t stride, const real *panel,
                          const real *init, const real *x, real *y)
{
    vec acc[TILE];
    for (ptrdiff_t first = 0; first < K; first += KC) {
        const ptrdiff_t end = K - first < KC ? K : first + KC;
        UNROLL
        for (int j = 0; j < vectors; j++) acc[j] = init && !first ? load(init + j * LANES) : splat(0);
        for (ptrdiff_t k = first; k < end; k++) {
            const vec a = splat(x[k]);
            UNROLL
            for (int j = 0; j < vectors; j++) acc[j] = FMA(a, load(panel + k * stride + j * LANES), acc[j]);
        }
        UNROLL
        for (int j = 0; j < vectors; j++) store(y + j * LANES, first ? load(y + j * LANES) + acc[j] : acc[j]);
    }
}

INLINE void multiply_panel(const int width, const ptrdiff_t K, const real *panel, const real *init, const real *x,
                           real *y)
{
    enum { ONCE = TILE * LANES };
    multiply_tile((width < ONCE ? width : ONCE) / LANES, K, width, panel, init, x, y);
    if (width > ONCE)
        multiply_tile((width - ONCE) / LANES, K, width, panel + ONCE, init ? init + ONCE : 0, x, y + ONCE);
}

/* y = init + x matrix; init may be null, for zeros. y is not x. If `turn` is 1 in every other step, each step begins
 * with the panels that the previous step read last: if the matrix is larger than a cache, those are still in it. */
INLINE void multiply(const int turn, const int columns, const ptrdiff_t K, const real *matrix, const real *init,
                     const real *x, real *y)
{
    const ptrdiff_t panels = columns / PANEL, whole = panels * PANEL;
    for (ptrdiff_t i = 0; i < panels; i++) {
        const ptrdiff_t c = (turn ? panels - 1 - i : i) * PANEL;
        multiply_panel(PANEL, K, matrix + c * K, init ? init + c : 0, x, y + c);
    }
    if (columns > whole)
        multiply_panel((int)(columns - whole), K, matrix + whole * K, init ? init + whole : 0, x, y + whole);
}

/* The same by block-diagonal matrices, for each gate a block of D units for each head, in D_padded columns. Gates are
 * H_padded apart in y, which has room for D_padded more: a block's padding is written over by the block after it. */
INLINE void multiply_heads(const int gates, const int heads, const int D, const int D_padded, const int H_padded,
                           const real *blocks, const real *x, real *y)
{
    for (int g = 0; g < gates; g++)
        for (int h = 0; h < heads; h++, blocks += D * D_padded)
            multiply(0, D_padded, D, blocks, 0, x + h * D, y + g * H_padded + h * D);
}

#endif
