/* The mean over a row: sums of lanes, added in the order of the lanes. */
#ifndef FRNN_MEAN_H
#define FRNN_MEAN_H

#include "lanes.h"

INLINE real mean_of(const real *a, ptrdiff_t n)
{
    vec even = splat(0), odd = splat(0);
    real lanes[LANES], sum = 0;
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += load(a + i);
        odd += load(a + i + LANES);
    }
    store(lanes, even + odd);
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    for (; i < n; i++) sum += a[i];
    return sum / (real)n;
}

#endif
