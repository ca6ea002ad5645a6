/* Allocate arrays in memory that the caller provides; with `base` null, only count the bytes. */
#ifndef FRNN_ARENA_H
#define FRNN_ARENA_H

#include "fastrnn.h"
#include "vec.h"

typedef struct {
    char *base;
    size_t used;
} Arena;

enum { ROW_PAD = FRNN_ALIGN / sizeof(real) }; /* avoids cache set conflicts between rows: Hp may be 2^n */

INLINE void *take(Arena *arena, size_t bytes)
{
    void *p = arena->base ? arena->base + arena->used : 0;
    arena->used += (bytes + FRNN_ALIGN - 1) / FRNN_ALIGN * FRNN_ALIGN;
    return p;
}
INLINE real *take_reals(Arena *arena, ptrdiff_t n) { return take(arena, (size_t)n * sizeof(real)); }
/* n rows of `fields` fields of Hp units. */
INLINE Rows take_rows(Arena *arena, ptrdiff_t n, ptrdiff_t fields, ptrdiff_t Hp)
{
    ptrdiff_t stride = fields * Hp + (fields ? ROW_PAD : 0);
    return (Rows){take_reals(arena, n * stride), stride};
}

#endif
