#include "matmul.h"

enum {
    PANELS_ONCE = NR == 4 ? 4 : 3, /* that a single row takes at a time: chains enough for FMA's latency */
    FEW_TERMS = 64, /* of an outer product: its time goes into writing, which is fastest row by row */
};

/* One register tile's work: out = init + left * panel (or out += ...) over K terms. */
typedef struct {
    const real *const *rows; /* left operand: m rows, from `offset` on; or */
    ptrdiff_t offset;
    const real *columns; /* m neighbouring columns of a matrix */
    ptrdiff_t column_stride; /* from one k to the next */
    const real *panel;
    const real *ahead; /* a vector of this is fetched with every k: part of the terms that come next */
    ptrdiff_t K;
    const real *init; /* start from this row; null: from zero */
    real *out;
    ptrdiff_t out_stride, panel_stride;
    int add; /* to what is there already */
} Tile;

/* m rows by n vectors, all constants once inlined, accumulated in registers. What the loops read of the tile is copied
 * first: for all that the compiler knows, a store changes it. */
INLINE void run_tile(const int m, const int n, const int by_columns, const Tile *t)
{
    enum { UNROLL = 4 };
    vec acc[MAX_MR][MAX_NR];
    const real *row[MAX_MR], *panel = t->panel, *column = t->columns, *ahead = t->ahead;
    const ptrdiff_t K = t->K, column_stride = t->column_stride, out_stride = t->out_stride;
    real *const out = t->out;
    const int add = t->add;
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        if (!by_columns) row[i] = t->rows[i] + t->offset;
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) acc[i][j] = t->init ? load(t->init + j * LANES) : splat(0);
        if (by_columns) /* a gradient as large as the weights is not in cache: prefetch it before writing */
#pragma GCC unroll 4
            for (int j = 0; j < n; j += 64 / VBYTES) __builtin_prefetch(out + i * out_stride + j * LANES, 1, 3);
    }
    ptrdiff_t k = 0;
    for (; !by_columns && k + UNROLL <= K; k += UNROLL) {
#pragma GCC unroll 4
        for (int u = 0; u < UNROLL; u++) {
            if (u % (64 / VBYTES) == 0) __builtin_prefetch(ahead + u * LANES, 0, 2); /* once a cache line */
            vec b[MAX_NR];
#pragma GCC unroll 4
            for (int j = 0; j < n; j++) b[j] = load(panel + (u * n + j) * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < m; i++) {
                const vec a = splat(row[i][k + u]);
#pragma GCC unroll 4
                for (int j = 0; j < n; j++) ACCUMULATE(acc[i][j], a, b[j]);
            }
        }
        panel += UNROLL * n * LANES;
        ahead += UNROLL * LANES;
    }
    for (; k < K; k++) {
        vec b[MAX_NR];
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) b[j] = load(panel + j * LANES);
        panel += n * LANES;
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const vec a = splat(by_columns ? column[i] : row[i][k]);
#pragma GCC unroll 4
            for (int j = 0; j < n; j++) ACCUMULATE(acc[i][j], a, b[j]);
        }
        column += column_stride;
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        real *const to = out + i * out_stride;
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) store(to + j * LANES, add ? load(to + j * LANES) + acc[i][j] : acc[i][j]);
    }
}

typedef void (*TileFn)(const Tile *);

#define TILE(side, by_columns, m, n)                                                                                   \
    static void side##_##m##_##n(const Tile *t) { run_tile(m, n, by_columns, t); }
#define TILES(side, by_columns, n)                                                                                     \
    TILE(side, by_columns, 2, n) TILE(side, by_columns, 3, n) TILE(side, by_columns, 4, n)                             \
    TILE(side, by_columns, 5, n) TILE(side, by_columns, 6, n) TILE(side, by_columns, 7, n)                             \
    TILE(side, by_columns, 8, n)
/* No tile of one row: a single row takes several panels instead (run_row), and rows are never dealt to leave one. */
#define BOTH_SIDES(n) TILES(rows, 0, n) TILE(columns, 1, 1, n) TILES(columns, 1, n)
BOTH_SIDES(1)
BOTH_SIDES(2)
BOTH_SIDES(3)
BOTH_SIDES(4)

#define TABLE(side, first, n)                                                                                          \
    {                                                                                                                  \
        first, side##_2_##n, side##_3_##n, side##_4_##n, side##_5_##n, side##_6_##n, side##_7_##n, side##_8_##n        \
    }
static const TileFn row_tiles[MAX_NR][MAX_MR] = {TABLE(rows, 0, 1), TABLE(rows, 0, 2), TABLE(rows, 0, 3),
                                                 TABLE(rows, 0, 4)};
static const TileFn column_tiles[MAX_NR][MAX_MR] = {
    TABLE(columns, columns_1_1, 1), TABLE(columns, columns_1_2, 2), TABLE(columns, columns_1_3, 3),
    TABLE(columns, columns_1_4, 4)};

/* One row by `count` neighbouring panels of n vectors, all constants once inlined: alone, a panel's few chains would
 * wait for the FMA's latency. The hardware fetches these streams ahead; asking for them too was a tenth slower. */
INLINE void run_row(const int count, const int n, const Tile *t)
{
    enum { MOST = 4 };
    vec acc[MOST][MAX_NR];
    const real *row = t->rows[0] + t->offset;
#pragma GCC unroll 4
    for (int c = 0; c < count; c++)
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) acc[c][j] = t->init ? load(t->init + (c * n + j) * LANES) : splat(0);
    for (ptrdiff_t k = 0, K = t->K; k < K; k++) {
        const vec a = splat(row[k]);
#pragma GCC unroll 4
        for (int c = 0; c < count; c++) {
            const real *b = t->panel + c * t->panel_stride + k * n * LANES;
#pragma GCC unroll 4
            for (int j = 0; j < n; j++) acc[c][j] = FMA(a, load(b + j * LANES), acc[c][j]);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < count; c++)
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) {
            real *to = t->out + (c * n + j) * LANES;
            store(to, t->add ? load(to) + acc[c][j] : acc[c][j]);
        }
}

#define ROW(count, n)                                                                                                  \
    static void row_##count##_##n(const Tile *t) { run_row(count, n, t); }
#define ROWS(n) ROW(1, n) ROW(2, n) ROW(3, n) ROW(4, n)
ROWS(1)
ROWS(2)
ROWS(3)
ROWS(4)
#define ROW_TABLE(n)                                                                                                   \
    {                                                                                                                  \
        row_1_##n, row_2_##n, row_3_##n, row_4_##n                                                                     \
    }
static const TileFn row_panels[MAX_NR][4] = {ROW_TABLE(1), ROW_TABLE(2), ROW_TABLE(3), ROW_TABLE(4)};

/* KC terms of one panel by all rows: they stay in L1 while the rows pass over them. */
static void multiply_terms(ptrdiff_t n, int width, Tile t)
{
    const int most = MR(width);
    const ptrdiff_t part = t.K * LANES;
    const real *const next = t.panel + width * part, *const end = next + width * part;
    t.ahead = next;
    for (ptrdiff_t rest = n, m; rest > 0; rest -= m) {
        m = rest <= most ? rest : rest < 2 * most ? (rest + 1) / 2 : most; /* no thin tile at the end */
        row_tiles[width - 1][m - 1](&t);
        t.rows += m;
        t.out += m * t.out_stride;
        t.ahead = t.ahead + part == end ? next : t.ahead + part;
    }
}

/* The terms of the chain that begins at k, of K in a segment: no head's are split where a head alone would not be. */
INLINE ptrdiff_t chain_from(const Panels *p, ptrdiff_t k, ptrdiff_t K)
{
    ptrdiff_t rest = K - k;
    if (p->head && K > KC) {
        const ptrdiff_t own = p->head < KC ? KC / p->head * p->head : p->head - k % p->head;
        if (own < rest) rest = own;
    }
    return rest < KC ? rest : KC;
}

/* A run of `count` panels of one width, by K terms in each segment; moves t on behind it. */
static void multiply_run(Tile *t, int count, int width, ptrdiff_t segments, ptrdiff_t segment_stride, const Panels *p,
                         ptrdiff_t K)
{
    const real *const from = t->panel;
    const real *const init = t->init;
    t->panel_stride = segments * K * width * LANES;
    t->add = 0;
    for (ptrdiff_t segment = 0; segment < segments; segment++)
        for (ptrdiff_t k = 0; k < K; k += t->K) {
            t->K = chain_from(p, k, K);
            t->offset = segment * segment_stride + k;
            row_panels[width - 1][count - 1](t);
            t->panel += t->K * width * LANES;
            t->init = 0;
            t->add = 1;
        }
    t->panel = from + count * t->panel_stride;
    t->out += count * width * LANES;
    t->init = init ? init + count * width * LANES : 0;
}

void X(multiply_row)(const real *a, ptrdiff_t segments, ptrdiff_t segment_stride, const Panels *p, ptrdiff_t first,
                     ptrdiff_t last, const real *init, real *out)
{
#if FRNN_BITS == 32
    if (p->format) {
        format_of(p)->multiply(1, &a, p, first, last, init, (Rows){out, 0});
        return;
    }
#endif
    const real *row = a;
    Tile t = {.rows = &row, .panel = p->data + group_start(p, first) * p->gates * p->K, .init = init, .out = out};
    const ptrdiff_t K = segments == 1 ? p->K : p->K / segments; /* a division is long beside a tiny product */
    int count = 0, width = 0;
    for (ptrdiff_t group = first; group < last; group++) {
        const int vectors = group_width(p, group);
        if (p->head) { /* a run of panels has one window */
            const real *const from = a + window_start(p, group);
            if (count && row != from) {
                multiply_run(&t, count, width, segments, segment_stride, p, K);
                count = 0;
            }
            row = from;
        }
        for (int panel = 0; panel < panel_count(vectors); panel++) {
            const int next = panel_width(vectors, panel);
            if (count && (count == PANELS_ONCE || width != next)) {
                multiply_run(&t, count, width, segments, segment_stride, p, K);
                count = 0;
            }
            width = next;
            count++;
        }
    }
    if (count) multiply_run(&t, count, width, segments, segment_stride, p, K);
}

void X(multiply)(ptrdiff_t n, const real *const *a, ptrdiff_t segments, ptrdiff_t segment_stride, const Panels *p,
                 ptrdiff_t group, const real *init, Rows out)
{
#if FRNN_BITS == 32
    if (p->format) {
        format_of(p)->multiply(n, a, p, group, group + 1, init, out);
        return;
    }
#endif
    if (n == 1) {
        X(multiply_row)(a[0], segments, segment_stride, p, group, group + 1, init, out.data);
        return;
    }
    const int vectors = group_width(p, group);
    const ptrdiff_t K = p->K / segments, from = window_start(p, group);
    Tile t = {.rows = a, .panel = p->data + group_start(p, group) * p->gates * p->K, .out_stride = out.stride};
    for (int i = 0, v = 0; i < panel_count(vectors); i++) {
        const int width = panel_width(vectors, i);
        t.out = out.data + v * LANES;
        t.init = init ? init + v * LANES : 0;
        t.add = 0;
        for (ptrdiff_t segment = 0; segment < segments; segment++)
            for (ptrdiff_t k = 0; k < K; k += t.K) {
                t.K = chain_from(p, k, K);
                t.offset = from + segment * segment_stride + k;
                multiply_terms(n, width, t);
                t.panel += t.K * width * LANES;
                t.init = 0;
                t.add = 1;
            }
        v += width;
    }
}

/* A tile that hangs over C's last column, by way of a scratch tile. */
static void outer_edge(TileFn tile_fn, int m, Tile t, ptrdiff_t valid)
{
    real scratch[MAX_MR * MAX_NR * LANES] __attribute__((aligned(64)));
    real *const c = t.out;
    const ptrdiff_t ldc = t.out_stride;
    const int add = t.add;
    t.out = scratch;
    t.out_stride = MAX_NR * LANES;
    t.add = 0;
    tile_fn(&t);
    for (int i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < valid; j++)
            c[i * ldc + j] = (add ? c[i * ldc + j] : 0) + scratch[i * MAX_NR * LANES + j];
}

/* One tile of an outer product: rows from `row` on by one group, terms from r on. */
static void outer_tile(ptrdiff_t n, Columns a, const Panels *p, Rows c, int add, ptrdiff_t group, ptrdiff_t row,
                       ptrdiff_t r)
{
    const int width = group_width(p, group), m = (int)(n - row < OUTER_MR ? n - row : OUTER_MR);
    const ptrdiff_t column = group_start(p, group), valid = p->units - column;
    const TileFn tile_fn = column_tiles[width - 1][m - 1];
    const Tile t = {
        .columns = a.data + row / OUTER_MR * a.block_stride + r * a.row_stride,
        .column_stride = a.row_stride,
        .panel = p->data + column * p->K + r * width * LANES,
        .K = p->K - r < KC ? p->K - r : KC,
        .out = row_of(c, row) + column,
        .out_stride = c.stride,
        .add = add || r > 0,
    };
    if (valid >= width * LANES)
        tile_fn(&t);
    else
        outer_edge(tile_fn, m, t, valid);
}

void X(multiply_outer)(ptrdiff_t n, Columns a, const Panels *p, Rows c, int add)
{
    if (p->K <= FEW_TERMS)
        for (ptrdiff_t row = 0; row < n; row += OUTER_MR)
            for (ptrdiff_t group = 0; group < p->groups; group++) outer_tile(n, a, p, c, add, group, row, 0);
    else
        for (ptrdiff_t group = 0; group < p->groups; group++)
            for (ptrdiff_t r = 0; r < p->K; r += KC)
                for (ptrdiff_t row = 0; row < n; row += OUTER_MR) outer_tile(n, a, p, c, add, group, row, r);
}
