/* softmax of a row: exp(a - max a) over its sum, which is taken lane by lane, then over the lanes in order. */
#ifndef FRNN_SOFTMAX_H
#define FRNN_SOFTMAX_H

#include "activation.h"

/* exp(z) for z <= 0, within 2 ulp, and NaN. */
INLINE vec exp_of_negative(vec z)
{
    const ExpParts exp = exp_parts(VMAX(splat(-EXP_LIMIT), z));
    return FMA(exp.scale, FMA(exp.square, exp.q, exp.r), exp.scale);
}

INLINE void softmax(const real *a, real *y, ptrdiff_t n)
{
    const real least = -(real)__builtin_inf();
    vec most = splat(least), sums = splat(0);
    real lanes[LANES], top = least, sum = 0;
    for (ptrdiff_t i = 0; i < n; i += LANES) most = VMAX(most, load_some(a + i, n - i, least));
    store(lanes, most);
    for (int l = 0; l < LANES; l++) top = lanes[l] > top ? lanes[l] : top;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const vec e = exp_of_negative(load_some(a + i, n - i, least) - splat(top));
        store_some(y + i, e, n - i);
        sums += e;
    }
    store(lanes, sums);
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    for (ptrdiff_t i = 0; i < n; i += LANES) store_some(y + i, load_some(y + i, n - i, 0) / splat(sum), n - i);
}

#endif
