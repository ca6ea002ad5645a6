/* Layer normalization of a row: (a - mean) / sqrt(variance + epsilon) * scale + shift. The sum of squares is taken lane
 * by lane, then over the lanes in order. */
#ifndef FRNN_NORMALIZE_H
#define FRNN_NORMALIZE_H

#include "mean.h"

/* scale and shift may be null, for ones and zeros; y may be a. */
INLINE void normalize(const real *a, real *y, ptrdiff_t n, real epsilon, const real *scale, const real *shift)
{
    const real mean = mean_of(a, n);
    vec squares = splat(0);
    real lanes[LANES], sum = 0;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const vec d = load_some(a + i, n - i, mean) - splat(mean);
        squares = FMA(d, d, squares);
    }
    store(lanes, squares);
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    const vec r = splat(1) / vsqrt(splat(sum / (real)n + epsilon));
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const vec d = load_some(a + i, n - i, mean) - splat(mean);
        const vec times = scale ? load_some(scale + i, n - i, 0) : splat(1);
        store_some(y + i, FMA(d * r, times, shift ? load_some(shift + i, n - i, 0) : splat(0)), n - i);
    }
}

#endif
