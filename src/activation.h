/* sigmoid and tanh on vectors, from one expm1.
 *
 *   expm1:   z = n ln 2 + r, |r| <= ln(2)/2, then exp(z) - 1 = 2^n (p + 1) - 1 with p = r + r^2 q(r) = exp(r) - 1;
 *            q is the Chebyshev fit of (exp(r) - 1 - r) / r^2, relative error of p under 2^-30 (float), 2^-60 (double)
 *   sigmoid: 1 / (1 + exp(-x)), which keeps its relative accuracy for very negative x (0.5 + 0.5 tanh(x/2) does not)
 *   tanh:    sign(x) e / (e + 2) with e = expm1(2|x|), accurate at 0 too
 *   both are h / (1 + h), with h = exp(x) and h = e / 2. Float with fused products computes this quotient, in a fifth
 *   less time. AVX-512, which estimates the reciprocal, float64 and the baseline correct a rough quotient instead
 *
 * Both are within 2 ulp over every finite input (tests/test_activations.py), keep the sign of 0, give 0, 1 and -1 at
 * +-infinity, and propagate NaN. A result below the smallest normal number is flushed to zero. tanh(-x) is -tanh(x) to
 * the last bit. From a number to the next larger one, the result may decrease by one ulp.
 */
#ifndef FRNN_ACTIVATION_H
#define FRNN_ACTIVATION_H

#include "lanes.h"

#if FRNN_BITS == 32
#define MANTISSA 23
#define EXP_LIMIT 88.0f  /* exp(+-88) is finite, and so is 2^n with n = round(88 / ln 2) = 127 */
#define TANH_LIMIT 9.2f  /* tanh is 1 to the last bit from 9.02 */
/* 1.5 * 2^23 + 127: adding it rounds to an integer, and leaves that integer's power of 2 in the low bits */
#define ROUNDER 12583039.0f
#define LOG2E 1.44269504f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#else
#define MANTISSA 52
#define EXP_LIMIT 709.0
#define TANH_LIMIT 20.0
#define ROUNDER 6755399441056767.0 /* 1.5 * 2^52 + 1023 */
#define LOG2E 1.4426950408889634
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#endif

/* q(r), by Estrin's scheme: short chains matter more than few operations in a small net. */
INLINE vec exp_tail(vec r)
{
    vec r2 = r * r;
#if FRNN_BITS == 32
    vec low = FMA(r, splat(0.16666666681704215f), splat(0.50000000135387298f));
    vec mid = FMA(r, splat(0.0083333108446478626f), splat(0.041666464197405692f));
    vec top = FMA(r, splat(0.00019891080463998842f), splat(0.0013933730715792082f));
    return FMA(r2, FMA(r2, top, mid), low);
#else
    vec r4 = r2 * r2;
    vec c01 = FMA(r, splat(0.1666666666666667103), splat(0.5));
    vec c23 = FMA(r, splat(0.0083333333333260831202), splat(0.041666666666666669783));
    vec c45 = FMA(r, splat(0.00019841269875002278793), splat(0.0013888888888883711167));
    vec c67 = FMA(r, splat(2.7557255170000887438e-6), splat(0.0000248015873256774619));
    vec c89 = FMA(r, splat(2.5105312729622101787e-8), splat(2.7557273478718580474e-7));
    vec low = FMA(r2, c23, c01), mid = FMA(r2, c67, c45);
    vec top = FMA(r2, splat(2.09147553258932022e-9), c89);
    return FMA(r4, FMA(r4, top, mid), low);
#endif
}

/* exp(z) = scale (1 + r + square q) with |r| <= ln(2)/2, square = r^2 and q about 1/2, for |z| <= EXP_LIMIT. */
typedef struct {
    vec scale, r, square, q;
} ExpParts;

INLINE ExpParts exp_parts(vec z)
{
    vec shifted = FMA(z, splat(LOG2E), splat(ROUNDER));
    vec n = shifted - splat(ROUNDER);
    vec r = FMA(n, splat(-(LN2_HIGH)), z);
    r = FMA(n, splat(-(LN2_LOW)), r);
    return (ExpParts){(vec)((ivec)shifted << MANTISSA), r, r * r, exp_tail(r)};
}

#if FRNN_BITS == 32 && defined(FUSED) && !defined(__AVX512F__)

/* h / (1 + h) for h >= 0: with b = min(h, 1) it is b - b^2 / (1 + h). The quotient is the smaller term, so its
 * rounding and that of 1 + h have little effect, and a single operation follows the division. */
INLINE vec over_one_plus(vec h)
{
    const vec b = VMIN(splat(1), h), inverse = splat(1) / (splat(1) + h);
    return FMA(-(b * b), inverse, b);
}

/* h = exp(x); its q has one term less than that of exp_tail: relative error of p under 2^-26. */
INLINE vec vsigmoid(vec x)
{
    x = VMIN(splat(EXP_LIMIT), VMAX(splat(-EXP_LIMIT), x));
    const vec shifted = FMA(x, splat(LOG2E), splat(ROUNDER)), n = shifted - splat(ROUNDER);
    const vec r = FMA(n, splat(-(LN2_LOW)), FMA(n, splat(-(LN2_HIGH)), x)), r2 = r * r;
    const vec scale = (vec)((ivec)shifted << MANTISSA);
    const vec low = FMA(r, splat(0.1666654348373413f), splat(0.4999999701976776f));
    const vec top = FMA(r, splat(0.008366514928638935f), splat(0.04166720062494278f));
    const vec q = FMA(r2, FMA(r2, splat(0.0013882522471249104f), top), low);
    return over_one_plus(FMA(scale, FMA(r2, q, r), scale));
}

/* h = expm1(2|x|) / 2 from r = |x| - n ln(2)/2, with q of 2r. The shift of 0.22 before rounding keeps n at 0 up to
 * |x| = 0.2495, where the result's ulp doubles: without a scale to multiply by, h is at its most accurate. */
INLINE vec vtanh(vec x)
{
    const ivec sign = (ivec)splat(-(real)0);
    const vec z = VMIN(splat(TANH_LIMIT), (vec)((ivec)x & ~sign));
    const vec shifted = FMA(z, splat(2 * LOG2E), splat(-0.22f)) + splat(ROUNDER), n = shifted - splat(ROUNDER);
    const vec r = FMA(n, splat(-0.34657359027997264f), z), r2 = r * r;
    const vec scale = (vec)((ivec)shifted << MANTISSA);
    const vec low = FMA(r, splat(4 * 0.16666667345889633f), splat(2 * 0.49999999458577915f));
    const vec mid = FMA(r, splat(16 * 0.008332247446457053f), splat(8 * 0.04166711863582362f));
    const vec top = FMA(r, splat(64 * 0.00022659263393201567f), splat(32 * 0.0013817466525623597f));
    const vec q = FMA(r2, FMA(r2, top, mid), low);
    const vec h = FMA(scale, FMA(r2, q, r), FMA(scale, splat(0.5f), splat(-0.5f)));
    return (vec)((ivec)over_one_plus(h) | ((ivec)x & sign));
}

#else

/* With e = exp(-x) and a rough y = 1 / (1 + e), the error 1 - y (1 + e) is formed from e itself, so that neither the
 * rounding of 1 + e nor that of y stays in the result. */
INLINE vec vsigmoid(vec x)
{
    const ExpParts exp = exp_parts(VMIN(splat(EXP_LIMIT), VMAX(splat(-EXP_LIMIT), -x)));
    vec e = FMA(exp.scale, FMA(exp.square, exp.q, exp.r), exp.scale);
    vec y = rough_reciprocal(splat(1) + e);
    return FMA(y, FMA(-y, e, splat(1) - y), y);
}

/* With e = expm1(2|x|) = head + tail and a rough y = e / (e + 2), the error e - y (e + 2) is formed as
 * (1 - y) (head + tail) - 2 y, likewise; head is exact near 0. */
INLINE vec vtanh(vec x)
{
    const ivec sign = (ivec)splat(-(real)0);
    vec z = VMIN(splat(TANH_LIMIT), (vec)((ivec)x & ~sign));
    const ExpParts exp = exp_parts(z + z);
    vec whole = exp.scale - splat(1), head = FMA(exp.scale, exp.r, whole);
#if FRNN_BITS == 32
    vec tail = exp.scale * (exp.square * exp.q);
#else
    vec lost = FMA(exp.scale, exp.r, whole - head); /* by head's rounding, which would be 0.6 ulp of y */
    vec tail = FMA(exp.scale, exp.square * exp.q, lost);
#endif
    vec e = head + tail;
    vec inverse = rough_reciprocal(e + splat(2)), y = e * inverse, rest = splat(1) - y;
    vec error = FMA(rest, tail, FMA(rest, head, splat(-2) * y));
    return (vec)((ivec)FMA(error, inverse, y) | ((ivec)x & sign));
}

#endif

#endif
