/* The vector operations that GNU C's vector types lack. Neither this file nor activation.h depends on the kernels,
 * because fastrnn.to_c copies both into the C files that it writes.
 *
 * Compiled with FRNN_BITS (32 or 64); the compiler's own target macros choose the width. GNU vector types give
 * + - * / and comparisons. Products are fused only where `fma` is written (-ffp-contract=off), so that the bits do not
 * depend on the optimiser.
 */
#ifndef FRNN_LANES_H
#define FRNN_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if FRNN_BITS == 32
typedef float real;
typedef int32_t integer;
#elif FRNN_BITS == 64
typedef double real;
typedef int64_t integer;
#else
#error "FRNN_BITS must be 32 or 64"
#endif

#if defined(__AVX512F__)
#define VBYTES 64
#elif defined(__AVX2__)
#define VBYTES 32
#else
#define VBYTES 16
#endif

#define LANES ((ptrdiff_t)(VBYTES / sizeof(real)))
typedef real vec __attribute__((vector_size(VBYTES)));
typedef integer ivec __attribute__((vector_size(VBYTES)));

#define INLINE static inline __attribute__((always_inline, unused))

INLINE vec splat(real a) { return a - (vec){0}; /* a - 0 is a for every a, -0 too: a plain broadcast */ }
INLINE vec load(const real *a)
{
    vec v;
    memcpy(&v, a, sizeof v);
    return v;
}
INLINE void store(real *a, vec v) { memcpy(a, &v, sizeof v); }

/* n elements, at least 1, and `rest` in the other lanes. */
INLINE vec load_some(const real *a, ptrdiff_t n, real rest)
{
    if (n >= LANES) return load(a);
    vec v = splat(rest);
    memcpy(&v, a, (size_t)n * sizeof(real));
    return v;
}
INLINE void store_some(real *a, vec v, ptrdiff_t n)
{
    memcpy(a, &v, (size_t)(n < LANES ? n : LANES) * sizeof(real));
}

/* mask ? a : b, lane by lane; masks are the results of vector comparisons. */
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

/* 1 / a for a >= 1 or NaN, to at least half of real's digits: callers correct it. AVX-512's division takes four times
 * as long as its estimate (2^-14) and, for double, one Newton step. */
#if defined(FRNN_UNFUSED)
INLINE vec rough_reciprocal(vec a) { return splat(1) / a; }
#elif defined(__AVX512F__) && FRNN_BITS == 32
INLINE vec rough_reciprocal(vec a) { return (vec)_mm512_rcp14_ps((__m512)a); }
#elif defined(__AVX512F__)
INLINE vec rough_reciprocal(vec a)
{
    __m512d r = _mm512_rcp14_pd((__m512d)a);
    return (vec)_mm512_fmadd_pd(_mm512_fnmadd_pd((__m512d)a, r, _mm512_set1_pd(1)), r, r);
}
#else
INLINE vec rough_reciprocal(vec a) { return splat(1) / a; }
#endif

/* FMA(a, b, c) = a*b + c, one rounding (two where the baseline has no such instruction).
 * VMIN, VMAX(a, b): the second operand if either is NaN, so that a NaN put second comes through. */
#if defined(__AVX512F__) && FRNN_BITS == 32
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define VMIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VMAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#elif defined(__AVX512F__)
#define FMA(a, b, c) ((vec)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define VMIN(a, b) ((vec)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define VMAX(a, b) ((vec)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#elif defined(__AVX2__) && FRNN_BITS == 32
#define FMA(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define VMIN(a, b) ((vec)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define VMAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#elif defined(__AVX2__)
#define FMA(a, b, c) ((vec)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define VMIN(a, b) ((vec)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#define VMAX(a, b) ((vec)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#elif defined(__x86_64__) && FRNN_BITS == 32
#define FMA(a, b, c) ((a) * (b) + (c))
#define VMIN(a, b) ((vec)_mm_min_ps((__m128)(a), (__m128)(b)))
#define VMAX(a, b) ((vec)_mm_max_ps((__m128)(a), (__m128)(b)))
#elif defined(__x86_64__)
#define FMA(a, b, c) ((a) * (b) + (c))
#define VMIN(a, b) ((vec)_mm_min_pd((__m128d)(a), (__m128d)(b)))
#define VMAX(a, b) ((vec)_mm_max_pd((__m128d)(a), (__m128d)(b)))
#elif defined(__aarch64__) && FRNN_BITS == 32
#define FMA(a, b, c) ((vec)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define VMIN(a, b) ((vec)vminq_f32((float32x4_t)(a), (float32x4_t)(b)))
#define VMAX(a, b) ((vec)vmaxq_f32((float32x4_t)(a), (float32x4_t)(b)))
#elif defined(__aarch64__)
#define FMA(a, b, c) ((vec)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#define VMIN(a, b) ((vec)vminq_f64((float64x2_t)(a), (float64x2_t)(b)))
#define VMAX(a, b) ((vec)vmaxq_f64((float64x2_t)(a), (float64x2_t)(b)))
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#define VMIN(a, b) choose((a) < (b), (a), (b))
#define VMAX(a, b) choose((a) > (b), (a), (b))
#endif

/* Square roots, which no built-in cell uses; correctly rounded (IEEE 754), also when computed in double. */
INLINE vec vsqrt(vec x)
{
#if defined(__AVX512F__) && FRNN_BITS == 32
    return (vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX512F__)
    return (vec)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__) && FRNN_BITS == 32
    return (vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__AVX2__)
    return (vec)_mm256_sqrt_pd((__m256d)x);
#elif defined(__x86_64__) && FRNN_BITS == 32
    return (vec)_mm_sqrt_ps((__m128)x);
#elif defined(__x86_64__)
    return (vec)_mm_sqrt_pd((__m128d)x);
#elif defined(__aarch64__) && FRNN_BITS == 32
    return (vec)vsqrtq_f32((float32x4_t)x);
#elif defined(__aarch64__)
    return (vec)vsqrtq_f64((float64x2_t)x);
#else
    for (ptrdiff_t i = 0; i < LANES; i++) x[i] = (real)__builtin_sqrt(x[i]);
    return x;
#endif
}

/* FRNN_UNFUSED requests the same bits on every instruction set: not all have a multiply-add that rounds once. */
#if defined(FRNN_UNFUSED)
#undef FMA
#define FMA(a, b, c) ((a) * (b) + (c))
#elif defined(__FMA__) || defined(__aarch64__)
#define FUSED /* FMA rounds once */
#endif

#endif
