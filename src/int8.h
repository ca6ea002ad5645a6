/* Exact products of 8-bit weights and 16-bit inputs. Like lanes.h this does not depend on the kernels.
 *
 * A row of weights is integers, at most 127 in size, times the row's scale, which has 17 significant bits, so every
 * weight is exactly a float. The vector that it multiplies is rounded to 16-bit integers times a step, a 32767th of its
 * largest element. Sums of products of integers are exact; each is rounded to float once. So a result has the same bits
 * in any order of summation, on every instruction set.
 */
#ifndef FRNN_INT8_H
#define FRNN_INT8_H

#include "lanes.h"

#if FRNN_BITS == 32

#define MOST_CODE 127
#define MOST_INPUT 32767
#define NEAREST 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, whose bits are then the lowest */
#define NOTHING 1e-30f      /* rows and vectors without a larger element count as zeros */

enum { NOT_FINITE = 0x7f800000 }; /* as integers, absolute values of floats are ordered: finite, infinity, NaN */

typedef int16_t shorts __attribute__((vector_size(VBYTES / 2)));
typedef int8_t bytes __attribute__((vector_size(VBYTES / 4)));

INLINE real as_real(integer bits)
{
    real a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
INLINE integer bits_of(real a)
{
    integer bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}

INLINE ivec larger(ivec a, ivec b) { return ((a > b) & a) | (~(a > b) & b); }
INLINE ivec splat_bits(integer bits) { return (ivec){0} + bits; }

/* The largest absolute value of n elements, as bits. */
INLINE integer largest(const real *a, ptrdiff_t n)
{
    ivec most = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES)
        most = larger(most, (ivec)load_some(a + i, n - i, 0) & splat_bits(0x7fffffff));
#pragma GCC unroll 4
    for (int width = 1; width < LANES; width *= 2) {
        ivec other;
#pragma GCC unroll 16
        for (int l = 0; l < LANES; l++) other[l] = most[l ^ width];
        most = larger(most, other);
    }
    return most[0];
}

/* The scale of a row of weights, rounded up to 17 bits, so that no code exceeds MOST_CODE. */
INLINE real scale_of(const real *row, ptrdiff_t n)
{
    const integer most = largest(row, n);
    if (most >= NOT_FINITE) return as_real(most | 1 << 22); /* NaN */
    return as_real(most) < NOTHING ? 0 : as_real((bits_of(as_real(most) / MOST_CODE) + 127) & ~127);
}
INLINE integer code_of(real weight, real scale)
{
    return scale > 0 ? bits_of(weight / scale + NEAREST) - bits_of(NEAREST) : 0;
}

/* An input vector's step, and the factor of its elements before they are rounded. */
typedef struct {
    real step, inverse;
} Step16;

INLINE Step16 step_of(const real *a, ptrdiff_t n)
{
    const integer most = largest(a, n);
    if (most >= NOT_FINITE) return (Step16){as_real(most | 1 << 22), 0};
    if (as_real(most) < NOTHING) return (Step16){0, 0};
    return (Step16){as_real(most) / MOST_INPUT, MOST_INPUT / as_real(most)};
}
INLINE ivec input_codes(const real *a, ptrdiff_t n, real inverse)
{
    return (ivec)(load_some(a, n, 0) * splat(inverse) + splat(NEAREST)) - splat_bits(bits_of(NEAREST));
}

/* 256 high + low, rounded once: both parts below are exact, of any sum over up to 2^16 products. */
INLINE vec rounded_sum(ivec high, ivec low)
{
    high += low >> 8;
    low &= 255;
    const vec upper = __builtin_convertvector(high >> 12, vec);
    const vec lower = __builtin_convertvector((high & 4095) << 8 | low, vec);
    return upper * splat(1 << 20) + lower;
}

/* Half a vector of bytes as 16-bit numbers. */
INLINE ivec widened(const int8_t *half)
{
#if defined(__AVX512BW__)
    return (ivec)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)half));
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)half));
#elif defined(__x86_64__)
    const __m128i loaded = _mm_loadl_epi64((const __m128i *)half);
    return (ivec)_mm_srai_epi16(_mm_unpacklo_epi8(loaded, loaded), 8);
#elif defined(__aarch64__)
    return (ivec)vmovl_s8(vld1_s8(half));
#else
    int16_t wide[2 * LANES];
    ivec v;
    for (int i = 0; i < 2 * LANES; i++) wide[i] = half[i];
    memcpy(&v, wide, sizeof v);
    return v;
#endif
}

/* acc + the sum of the products of two neighbouring 16-bit numbers, in each 32-bit lane. */
INLINE ivec add_pairs(ivec acc, ivec a, ivec b)
{
#if defined(__AVX512BW__)
    return acc + (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return acc + (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return acc + (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return acc + (ivec)vpaddq_s32(low, high);
#else
    const ivec a_low = a << 16 >> 16, a_high = a >> 16, b_low = b << 16 >> 16, b_high = b >> 16;
    return acc + a_low * b_low + a_high * b_high;
#endif
}

#endif

#endif
