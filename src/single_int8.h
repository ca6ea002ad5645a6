/* single.h's product with int8 weights, by the arithmetic of int8.h.
 *
 * A panel of PANEL columns is stored [k/2][column][2]: two neighbouring k at a time, zeros after an odd last one.
 */
#ifndef FRNN_SINGLE_INT8_H
#define FRNN_SINGLE_INT8_H

#include "int8.h"
#include "single.h"

#if defined(__AVX512F__) && !defined(__AVX512BW__)
#error "int8 weights: -mavx512f also needs -mavx512bw"
#endif

enum { PAIRS = 256 }; /* whose products' sum fits in 32 bits */

/* `vectors` neighbouring columns of a panel; `pairs` are x's integers, two in each. */
INLINE void multiply_int8_tile(const int vectors, const ptrdiff_t K, const ptrdiff_t stride, const int8_t *panel,
                               const real *scales, const real *init, real step, const int32_t *pairs, real *y)
{
    const ptrdiff_t count = (K + 1) / 2;
    ivec high[TILE] = {0}, low[TILE] = {0};
    for (ptrdiff_t first = 0; first < count; first += PAIRS) {
        const ptrdiff_t end = count - first < PAIRS ? count : first + PAIRS;
        ivec acc[TILE] = {0};
        for (ptrdiff_t k = first; k < end; k++) {
            const ivec both = splat_bits(pairs[k]);
            UNROLL
            for (int j = 0; j < vectors; j++)
                acc[j] = add_pairs(acc[j], widened(panel + 2 * (k * stride + j * LANES)), both);
        }
        UNROLL
        for (int j = 0; j < vectors; j++) {
            high[j] += acc[j] >> 8;
            low[j] += acc[j] & 255;
        }
    }
    UNROLL
    for (int j = 0; j < vectors; j++) {
        const vec product = rounded_sum(high[j], low[j]) * (load(scales + j * LANES) * splat(step));
        store(y + j * LANES, init ? load(init + j * LANES) + product : product);
    }
}

INLINE void multiply_int8_panel(const int width, const ptrdiff_t K, const int8_t *panel, const real *scales,
                                const real *init, real step, const int32_t *pairs, real *y)
{
    enum { ONCE = TILE * LANES };
    multiply_int8_tile((width < ONCE ? width : ONCE) / LANES, K, width, panel, scales, init, step, pairs, y);
    if (width > ONCE)
        multiply_int8_tile((width - ONCE) / LANES, K, width, panel + 2 * ONCE, scales + ONCE, init ? init + ONCE : 0,
                           step, pairs, y + ONCE);
}

/* y = init + x matrix; init may be null, for zeros. `pairs` has room for x's integers in whole vectors,
 * and `turn` is as in `multiply`. */
INLINE void multiply_int8(const int turn, const int columns, const ptrdiff_t K, const int8_t *matrix,
                          const real *scales, const real *init, const real *x, int32_t *pairs, real *y)
{
    const Step16 by = step_of(x, K);
    for (ptrdiff_t k = 0; k < K; k += LANES) {
        const shorts codes = __builtin_convertvector(input_codes(x + k, K - k, by.inverse), shorts);
        memcpy(pairs + k / 2, &codes, sizeof codes);
    }
    const ptrdiff_t rows = (K + 1) / 2 * 2, panels = columns / PANEL, whole = panels * PANEL;
    for (ptrdiff_t i = 0; i < panels; i++) {
        const ptrdiff_t c = (turn ? panels - 1 - i : i) * PANEL;
        multiply_int8_panel(PANEL, K, matrix + c * rows, scales + c, init ? init + c : 0, by.step, pairs, y + c);
    }
    if (columns > whole)
        multiply_int8_panel((int)(columns - whole), K, matrix + whole * rows, scales + whole,
                            init ? init + whole : 0, by.step, pairs, y + whole);
}

#endif
