/* Matrix products on packed panels.
 *
 * Names are those of GotoBLAS and BLIS. For C = A P a register tile is MR rows of C by NR columns, here in vectors; KC
 * is the number of terms of one pass over a panel, MC the number of A's rows in a product. There is no NC: the drivers
 * divide groups of columns among threads.
 *
 * A packed matrix P (K x N) is cut into groups of columns. A group covers up to `group_vectors` vectors of units with
 * the matrix's `gates` side by side: its columns are ordered [gate][unit]. A group is cut again into panels of at most
 * NR vectors, each stored [k][vector][lane], so that one register tile streams one panel. Units are padded with zero
 * columns to whole vectors; K is never padded.
 *
 * Block-diagonal matrices. The units of one head have nonzero terms at their own `head` neighbouring k only. A group
 * holds a window of k, equally wide in all groups: the k of every head with units in the group, and zeros.
 *
 * The order of summation is fixed by K alone: fused multiply-adds over k in order, restarted every KC terms and at
 * every segment of K; of a block-diagonal matrix, by the K of a head. So an element of the result has the same bits
 * whatever rows surround it, and a head has the same bits as alone.
 */
#ifndef FRNN_MATMUL_H
#define FRNN_MATMUL_H

#include "fastrnn.h"
#include "vec.h"

enum {
    KC = 128, /* a chain's length: bounds the rounding error, and KC terms of a panel stay in L1 */
    MC = 64,  /* rows per product of the drivers: they repay loading KC terms into L1, and fit there, too */
};

typedef struct {
    real *data;
    ptrdiff_t K;     /* of all segments; of a block-diagonal matrix, of their windows */
    ptrdiff_t units; /* columns of one gate */
    int gates;
    int group_vectors; /* vectors of units in a whole group */
    int format;        /* of frnn_format: in bfloat16 a lane holds two neighbouring k, in int8 four */
    ptrdiff_t groups;
    ptrdiff_t head, window; /* units of a head and k of a window, if block-diagonal: then each segment has `units` k */
} Panels;

INLINE ptrdiff_t vectors_of(ptrdiff_t units) { return (units + LANES - 1) / LANES; }
INLINE ptrdiff_t padded(ptrdiff_t units) { return vectors_of(units) * LANES; }
/* First unit of a group, and its units, with padding and without. */
INLINE ptrdiff_t group_start(const Panels *p, ptrdiff_t group) { return group * p->group_vectors * LANES; }
INLINE ptrdiff_t group_lanes(const Panels *p, ptrdiff_t group)
{
    ptrdiff_t rest = padded(p->units) - group_start(p, group), whole = p->group_vectors * LANES;
    return rest < whole ? rest : whole;
}
INLINE ptrdiff_t group_units(const Panels *p, ptrdiff_t group)
{
    ptrdiff_t rest = p->units - group_start(p, group), lanes = group_lanes(p, group);
    return rest < lanes ? rest : lanes;
}
INLINE ptrdiff_t panel_rows(const Panels *p)
{
    switch (p->format) {
    case FRNN_BFLOAT16:
    case FRNN_BFLOAT16_PAIRS: return (p->K + 1) / 2;
    case FRNN_INT8: return 2 + (p->K + 3) / 4; /* first scales and sums */
    default: return p->K;
    }
}
INLINE ptrdiff_t panels_size(const Panels *p) { return panel_rows(p) * p->gates * padded(p->units); }

/* For a block-diagonal matrix: the window width that suffices for any group, and the start of a group's window. */
INLINE ptrdiff_t window_of(const Panels *p)
{
    const ptrdiff_t lanes = p->group_vectors * LANES, D = p->head;
    const int whole = D % lanes == 0 || lanes % D == 0; /* else a group may begin anywhere in a head */
    const ptrdiff_t k = (whole ? (lanes + D - 1) / D : (lanes - 2) / D + 2) * D;
    return k < p->units ? k : p->units;
}
INLINE ptrdiff_t window_start(const Panels *p, ptrdiff_t group)
{
    if (!p->head) return 0;
    const ptrdiff_t start = group_start(p, group) / p->head * p->head, last = p->units - p->window;
    return start < last ? start : last;
}

/* A group's vectors are divided among panels as evenly as possible: 6 as 3 + 3, 5 as 3 + 2. */
INLINE int panel_count(int vectors) { return (vectors + NR - 1) / NR; }
INLINE int panel_width(int vectors, int panel)
{
    int count = panel_count(vectors);
    return count == 1 ? vectors : vectors / count + (panel < vectors % count);
}
INLINE int group_width(const Panels *p, ptrdiff_t group) { return (int)(p->gates * group_lanes(p, group) / LANES); }

/* One group of p as a matrix of its own, to be filled at `data`. */
INLINE Panels one_group(const Panels *p, ptrdiff_t group, real *data)
{
    Panels one = *p;
    one.units = group_units(p, group);
    one.groups = 1;
    one.data = data;
    return one;
}

/* A thread's share [share(id), share(id + 1)) of n things. */
INLINE ptrdiff_t share(ptrdiff_t n, int id, int threads) { return n * id / threads; }

/* Fill a thread's share of the groups of p: element (k, gate, unit) is
 * src[gate*gate_stride + unit*unit_stride + k*k_stride]; for a block-diagonal matrix, subtract the index of its head's
 * first unit. */
void X(pack)(const Panels *p, int id, int threads, const real *src, ptrdiff_t gate_stride, ptrdiff_t unit_stride,
             ptrdiff_t k_stride);

/* n rows of out = init + A P for one group, gates * lanes columns; init is one row, or null for zeros.
 * Row i of A is K elements in `segments` equal runs, the j-th at a[i] + j*segment_stride; if P is block-diagonal, as
 * many as P's segments have. */
void X(multiply)(ptrdiff_t n, const real *const *a, ptrdiff_t segments, ptrdiff_t segment_stride, const Panels *p,
                 ptrdiff_t group, const real *init, Rows out);

/* One row by groups [first, last): out and init are one group after the other, laid out alike. */
void X(multiply_row)(const real *a, ptrdiff_t segments, ptrdiff_t segment_stride, const Panels *p, ptrdiff_t first,
                     ptrdiff_t last, const real *init, real *out);

#if FRNN_BITS == 32
/* The same in another format: src holds values that the format can represent, each run of k contiguous; A has one
 * segment and, if it has more than one row, one group. */
typedef struct {
    /* Fill column `lane` of a panel of so many lanes with a unit's weights; of a unit beyond the last, with zeros. */
    void (*pack_column)(const Panels *p, ptrdiff_t group, ptrdiff_t unit, const real *row, real *panel, ptrdiff_t lanes,
                        ptrdiff_t lane);
    void (*multiply)(ptrdiff_t n, const real *const *a, const Panels *p, ptrdiff_t first, ptrdiff_t last,
                     const real *init, Rows out);
} Format;
extern const Format X(bfloat16), X(bfloat16_pairs), X(int8);
INLINE const Format *format_of(const Panels *p)
{
    switch (p->format) {
#ifdef __AVX512F__
    case FRNN_BFLOAT16_PAIRS: return &X(bfloat16_pairs);
#endif
    case FRNN_BFLOAT16: return &X(bfloat16);
    default: return &X(int8);
    }
}
#endif

/* Fill rows [first, last) of p, which has one gate: row k is the p->units elements at src[k] + at. */
void X(pack_rows)(const Panels *p, ptrdiff_t first, ptrdiff_t last, const real *const *src, ptrdiff_t at);

/* Neighbouring columns of a matrix, OUTER_MR at a time: column i, row r is
 * data[i / OUTER_MR * block_stride + r * row_stride + i % OUTER_MR]. Inside the matrix block_stride is OUTER_MR;
 * packed, every block is contiguous, which avoids long strides in the caches and the TLB. */
enum { OUTER_MR = MR(NR) };
typedef struct {
    const real *data;
    ptrdiff_t block_stride, row_stride;
} Columns;

/* Pack the first n columns of K rows into dst, which holds K times n rounded up to OUTER_MR. */
Columns X(pack_columns)(real *dst, Rows rows, ptrdiff_t K, ptrdiff_t n);

/* C[i][0..N) = (or, with `add`, +=) sum over r of column i of A at r, times P[r][.], for n columns: P has one gate, K
 * rows, N units. */
void X(multiply_outer)(ptrdiff_t n, Columns a, const Panels *p, Rows c, int add);

#endif
