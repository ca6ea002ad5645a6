/* The product with int8 weights, for inference: a quarter of the bytes, and the same bits on every instruction set.
 * int8.h has the arithmetic.
 *
 * A panel begins with two rows: the scales of its columns, and the sums of their integers. Then come the weights, four
 * neighbouring k at a time: a quad. Where the CPU multiplies bytes (VNNI) a 32-bit lane holds one:
 * [k/4][vector][lane][4]. It multiplies unsigned by signed bytes, so the inputs' high bytes are offset by 128, which
 * the columns' sums undo, and their low bytes go by themselves. Elsewhere a half of a vector is widened to 16 bits and
 * holds pairs: [k/2][vector][lane][2].
 */
#include "matmul.h"

#if FRNN_BITS == 32

#include "int8.h"

enum {
    QUADS = 1024,              /* quads of a row that are rounded at a time */
    FETCH_AHEAD = 32,          /* quads */
    FOLD = 128,                /* quads whose sum of products fits in 32 bits, and is rounded once */
    FAR = 512 << 10,           /* bytes of a matrix that does not fit in every CPU's L2 */
    INT8_MR = NR == 4 ? 3 : 2, /* with two accumulators each they fill the registers */
};

/* A row's integers: of 16 bits; or the high bytes of all quads, then the low ones. */
typedef struct {
    int32_t quads[2 * QUADS];
} Left;

/* Exact sums of one row by one panel: 256 high + low. */
typedef struct {
    ivec high[MAX_NR], low[MAX_NR];
} Sums;

#if defined(__AVX512F__)
#define MULTIPLIES_BYTES __builtin_cpu_supports("avx512vnni")
#define ADD_BYTES(acc, inputs, weights) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(inputs), "v"(weights))
#elif defined(FRNN_AVX_VNNI)
#define MULTIPLIES_BYTES __builtin_cpu_supports("avxvnni")
#define ADD_BYTES(acc, inputs, weights) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(inputs), "x"(weights))
#else
#define MULTIPLIES_BYTES 0
#define ADD_BYTES(acc, inputs, weights) ((void)(inputs), (void)(weights))
#endif

/* Round n elements of a row; zeros follow up to the next quad. */
INLINE void round_row(const int bytewise, const real *a, ptrdiff_t n, real inverse, Left *left)
{
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        const ivec codes = input_codes(a + k, n - k, inverse);
        if (bytewise) {
            const bytes high = __builtin_convertvector((codes >> 8) + 128, bytes);
            const bytes low = __builtin_convertvector(codes & 255, bytes);
            memcpy((char *)left->quads + k, &high, sizeof high);
            memcpy((char *)(left->quads + QUADS) + k, &low, sizeof low);
        } else {
            const shorts both = __builtin_convertvector(codes, shorts);
            memcpy((int16_t *)left->quads + k, &both, sizeof both);
        }
    }
}

/* m rows by n vectors, all constants once inlined: add the products of `quads` quads, from one on, to the sums. */
INLINE void run_tile(const int bytewise, const int m, const int n, const Left *left, ptrdiff_t from, ptrdiff_t quads,
                     const real *panel, int far, Sums *sums)
{
    ivec acc[2][MAX_MR][MAX_NR] = {0};
    for (ptrdiff_t q = from; q < from + quads; q++, panel += n * LANES)
#pragma GCC unroll 4
        for (int v = 0; v < n; v++) {
            if (m == 1 && far && v * VBYTES % 64 == 0)
                __builtin_prefetch(panel + (FETCH_AHEAD * n + v) * LANES);
            if (bytewise) {
                const ivec weights = (ivec)load(panel + v * LANES);
#pragma GCC unroll 4
                for (int i = 0; i < m; i++) {
                    ADD_BYTES(acc[0][i][v], splat_bits(left[i].quads[q]), weights);
                    ADD_BYTES(acc[1][i][v], splat_bits(left[i].quads[QUADS + q]), weights);
                }
            } else {
                const int8_t *const weights = (const int8_t *)panel + v * 2 * LANES;
                const ivec first = widened(weights), second = widened(weights + n * 2 * LANES);
#pragma GCC unroll 4
                for (int i = 0; i < m; i++) {
                    acc[0][i][v] = add_pairs(acc[0][i][v], first, splat_bits(left[i].quads[2 * q]));
                    acc[0][i][v] = add_pairs(acc[0][i][v], second, splat_bits(left[i].quads[2 * q + 1]));
                }
            }
        }
#pragma GCC unroll 4
    for (int i = 0; i < m; i++)
#pragma GCC unroll 4
        for (int v = 0; v < n; v++) {
            sums[i].high[v] += bytewise ? acc[0][i][v] : acc[0][i][v] >> 8;
            sums[i].low[v] += bytewise ? acc[1][i][v] : acc[0][i][v] & 255;
        }
}

/* The values of the sums: init + the exact sum, rounded, times the scales of the column and the row. */
INLINE void finish(const int bytewise, int n, ptrdiff_t K, const Sums *sums, const real *panel, real step,
                   const real *init, real *out)
{
    for (int v = 0; v < n; v++) {
        const vec scale = load(panel + v * LANES) * splat(step);
        const ivec totals = (ivec)load(panel + (n + v) * LANES), low = sums->low[v];
        const ivec high = bytewise ? sums->high[v] - (totals << 7) : sums->high[v];
        const vec sum = K <= 4 * FOLD ? __builtin_convertvector((high << 8) + low, vec) : rounded_sum(high, low);
        store(out + v * LANES, init ? load(init + v * LANES) + sum * scale : sum * scale);
    }
}

typedef void (*TileFn)(const Left *, ptrdiff_t, ptrdiff_t, const real *, int, Sums *);
#define TILE(way, bytewise, m, n)                                                                                      \
    static void way##_##m##_##n(const Left *left, ptrdiff_t from, ptrdiff_t quads, const real *panel, int far,         \
                                Sums *sums)                                                                            \
    {                                                                                                                  \
        run_tile(bytewise, m, n, left, from, quads, panel, far, sums);                                                 \
    }
#define TILES(way, bytewise, n) TILE(way, bytewise, 1, n) TILE(way, bytewise, 2, n) TILE(way, bytewise, 3, n)
#define ROW(way, n) {way##_1_##n, way##_2_##n, way##_3_##n}
#define WAY(way, bytewise)                                                                                             \
    TILES(way, bytewise, 1) TILES(way, bytewise, 2) TILES(way, bytewise, 3) TILES(way, bytewise, 4)                    \
    static const TileFn way[MAX_NR][3] = {ROW(way, 1), ROW(way, 2), ROW(way, 3), ROW(way, 4)};
WAY(by_pairs, 0)
WAY(by_bytes, 1)

/* A panel's sums for m rows, which `left` holds from `*held` on: other parts are rounded when their turn comes. */
INLINE void sum_panel(const int bytewise, const TileFn *tiles, int m, int width, const real *const *rows,
                      const Step16 *steps, const Panels *p, const real *panel, Left *left, ptrdiff_t *held, Sums *sums)
{
    const ptrdiff_t K = p->K;
    const int far = panels_size(p) * (ptrdiff_t)sizeof(real) > FAR;
    for (ptrdiff_t k = 0; k < K; k += 4 * QUADS) {
        const ptrdiff_t n = K - k < 4 * QUADS ? K - k : 4 * QUADS, quads = (n + 3) / 4;
        for (int i = 0; i < m && *held != k; i++) round_row(bytewise, rows[i] + k, n, steps[i].inverse, &left[i]);
        *held = k;
        for (ptrdiff_t q = 0; q < quads; q += bytewise ? QUADS : FOLD) {
            const ptrdiff_t once = bytewise || quads - q < FOLD ? quads - q : FOLD;
            tiles[m - 1](left, q, once, panel + (2 + k / 4 + q) * width * LANES, far, sums);
        }
    }
}

/* m rows by groups [first, last). */
INLINE void multiply_rows(const int bytewise, const TileFn (*tiles)[3], int m, const real *const *rows, const Panels *p,
                          ptrdiff_t first, ptrdiff_t last, const real *init, Rows out)
{
    Left left[INT8_MR];
    Step16 steps[INT8_MR];
    ptrdiff_t held = -1;
    for (int i = 0; i < m; i++) steps[i] = step_of(rows[i], p->K);
    const real *panel = p->data + group_start(p, first) * p->gates * panel_rows(p);
    for (ptrdiff_t group = first, at = 0; group < last; group++) {
        const int vectors = group_width(p, group);
        for (int part = 0; part < panel_count(vectors); part++) {
            const int width = panel_width(vectors, part);
            Sums sums[INT8_MR];
            for (int i = 0; i < m; i++)
                for (int v = 0; v < width; v++) sums[i].high[v] = sums[i].low[v] = (ivec){0};
            sum_panel(bytewise, tiles[width - 1], m, width, rows, steps, p, panel, left, &held, sums);
            for (int i = 0; i < m; i++)
                finish(bytewise, width, p->K, &sums[i], panel, steps[i].step, init ? init + at : 0,
                       row_of(out, i) + at);
            panel += width * LANES * panel_rows(p);
            at += width * LANES;
        }
    }
}

static void multiply(ptrdiff_t n, const real *const *a, const Panels *p, ptrdiff_t first, ptrdiff_t last,
                     const real *init, Rows out)
{
    for (ptrdiff_t i = 0; i < n; i += INT8_MR) {
        const int m = (int)(n - i < INT8_MR ? n - i : INT8_MR);
        if (MULTIPLIES_BYTES)
            multiply_rows(1, by_bytes, m, a + i, p, first, last, init, rows_from(out, i));
        else
            multiply_rows(0, by_pairs, m, a + i, p, first, last, init, rows_from(out, i));
    }
}

static void pack_column(const Panels *p, ptrdiff_t group, ptrdiff_t unit, const real *row, real *panel, ptrdiff_t lanes,
                        ptrdiff_t lane)
{
    const ptrdiff_t K = unit < p->units ? p->K : 0, once = MULTIPLIES_BYTES ? 4 : 2;
    const real scale = scale_of(row, K);
    int8_t *const codes = (int8_t *)(panel + 2 * lanes) + lane * once;
    int32_t sum = 0;
    (void)group;
    for (ptrdiff_t k = 0; k < (p->K + 3) / 4 * 4; k++) {
        const int8_t code = k < K ? (int8_t)code_of(row[k], scale) : 0;
        codes[k / once * once * lanes + k % once] = code;
        sum += code;
    }
    panel[lane] = scale;
    memcpy(panel + lanes + lane, &sum, sizeof sum);
}

const Format X(int8) = {pack_column, multiply};

#endif
