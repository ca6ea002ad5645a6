/* Names, tiles and rows of the kernels of an instruction set. Code for single instruction
 * sets is here, in lanes.h and int8.h, and for products of narrow weights in matmul_bf16.c and matmul_int8.c.
 *
 * Compiled with FRNN_BITS (32 or 64) and FRNN_ISA (a suffix for names).
 */
#ifndef FRNN_VEC_H
#define FRNN_VEC_H

#include "lanes.h"

/* Register tiles, as BLIS names them: at most NR vectors of columns, and MR rows with each width, which leave room for
 * the operands. A group of units takes GROUP_VECTORS vectors of each of its gates: with 32 registers the smallest
 * number that fills a tile; with 16 the number that makes all tiles whole, since 4 rows by 3 vectors need fewer loads
 * than 6 by 2. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define NR 4
#define MR(vectors) ((vectors) == 4 ? 6 : 8)
#define GROUP_VECTORS(gates) ((NR + (gates)-1) / (gates))
#else
#define NR 3
#define MR(vectors) ((vectors) == 3 ? 4 : (vectors) == 2 ? 6 : 8)
#define GROUP_VECTORS(gates) ((void)(gates), NR)
#endif
enum { MAX_MR = 8, MAX_NR = 4, MAX_GROUP_VECTORS = 12 }; /* over all instruction sets */

#define FRNN_PASTE(name, bits, isa) frnn_##name##_f##bits##_##isa
#define FRNN_EXPAND(name, bits, isa) FRNN_PASTE(name, bits, isa)
#define X(name) FRNN_EXPAND(name, FRNN_BITS, FRNN_ISA)

/* A block of rows spaced evenly. */
typedef struct {
    real *data;
    ptrdiff_t stride;
} Rows;
INLINE real *row_of(Rows rows, ptrdiff_t i) { return rows.data + i * rows.stride; }
INLINE Rows rows_from(Rows rows, ptrdiff_t first)
{
    return (Rows){rows.data ? rows.data + first * rows.stride : 0, rows.stride};
}
INLINE Rows rows_at(Rows rows, ptrdiff_t column) { return (Rows){rows.data + column, rows.stride}; }

INLINE void zero_row(real *row, ptrdiff_t n) { memset(row, 0, (size_t)n * sizeof *row); }
INLINE void copy_row(real *to, const real *from, ptrdiff_t n) { memcpy(to, from, (size_t)n * sizeof *to); }

/* Lane i is lane index[i] of a, or of b from LANES on. */
INLINE vec pick(vec a, vec b, ivec index)
{
#if defined(__clang__)
    vec v;
    for (ptrdiff_t i = 0; i < LANES; i++) v[i] = index[i] < LANES ? a[index[i]] : b[index[i] - LANES];
    return v;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

/* acc = FMA(a, b, acc), in acc's own register: in an unrolled loop GCC 12 overwrites another of the three, and then
 * copies and spills. */
#if defined(__AVX2__) && !defined(__AVX512F__) && FRNN_BITS == 32
#define ACCUMULATE(acc, a, b) __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b))
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define ACCUMULATE(acc, a, b) __asm__("vfmadd231pd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b))
#else
#define ACCUMULATE(acc, a, b) ((acc) = FMA(a, b, acc))
#endif

#endif
