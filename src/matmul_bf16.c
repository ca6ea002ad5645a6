/* The product with bfloat16 weights, for inference: half the bytes when reading the weights is the bottleneck.
 *
 * A 32-bit lane of a panel holds the weights of two neighbouring k, the even one low: [k/2][vector][lane]. A bfloat16
 * is the upper half of a float, so a shift and a mask turn a lane into two floats, exactly; products and sums are
 * float's. Compiled for CPUs that multiply pairs of bfloat16, this file is the format BFLOAT16_PAIRS, which rounds the
 * left operand to bfloat16 as well.
 *
 * The order of summation is fixed here too: even and odd pairs are two chains, added up every KC terms.
 */
#include "matmul.h"

#if FRNN_BITS == 32

enum {
    PAIRS = KC / 2,
    PAIR_MR = NR == 4 ? 3 : 2, /* with two accumulators each they fill the registers */
    FETCH_AHEAD = 16,          /* pairs */
    PANELS_ONCE = 2,           /* panels of equal width that a single row multiplies at a time */
};

__attribute__((unused)) static const integer HIGH_HALF = -65536; /* 0xffff0000 */

/* One register tile: out = init + left * panel over `pairs` pairs of k, or out += ... */
typedef struct {
    const void *left[MAX_MR]; /* rows: pairs of bfloat16 where the CPU multiplies them, else floats */
    const real *panel;
    ptrdiff_t panel_stride; /* to the next of several panels */
    ptrdiff_t K;
    const real *init;
    real *out;
    ptrdiff_t out_stride;
    int add;
} Tile;

INLINE vec multiply_pair(const void *left, ptrdiff_t pair, ptrdiff_t K, vec weights, vec acc)
{
#if defined(__AVX512BF16__)
    (void)K;
    const int32_t both = ((const int32_t *)left)[pair];
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(both));
#else
    const real *row = left;
    acc = FMA(splat(row[2 * pair]), (vec)((ivec)weights << 16), acc);
    if (2 * pair + 1 == K) return acc; /* the last of an odd K */
    return FMA(splat(row[2 * pair + 1]), (vec)((ivec)weights & HIGH_HALF), acc);
#endif
}

/* m rows by `count` neighbouring panels of n vectors, all constants once inlined. A single row uses several panels,
 * because one panel has too few chains to hide the FMA's latency. */
INLINE void run_tile(const int m, const int count, const int n, const Tile *t)
{
    vec acc[2][MAX_MR][MAX_NR * PANELS_ONCE] = {0};
    const real *panel = t->panel, *const init = t->init;
    const ptrdiff_t K = t->K, pairs = (K + 1) / 2, panel_stride = t->panel_stride, out_stride = t->out_stride;
    real *const out = t->out;
    const int add = t->add;
    for (ptrdiff_t pair = 0; pair < pairs; pair += 2) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            if (pair + odd == pairs) break;
#pragma GCC unroll 8
            for (int v = 0; v < count * n; v++) {
                const real *at = panel + v / n * panel_stride + v % n * LANES;
                if (m == 1 && v % n * VBYTES % 64 == 0) __builtin_prefetch(at + FETCH_AHEAD * n * LANES);
                const vec weights = load(at);
#pragma GCC unroll 4
                for (int i = 0; i < m; i++)
                    acc[odd][i][v] = multiply_pair(t->left[i], pair + odd, K, weights, acc[odd][i][v]);
            }
            panel += n * LANES;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int v = 0; v < count * n; v++) {
            real *to = out + i * out_stride + v * LANES;
            vec start = add ? load(to) : init ? load(init + v * LANES) : splat(0);
            store(to, start + (acc[0][i][v] + acc[1][i][v]));
        }
}

typedef void (*TileFn)(const Tile *);
#define TILE(m, n)                                                                                                     \
    static void tile_##m##_##n(const Tile *t) { run_tile(m, 1, n, t); }
#define TILES(n)                                                                                                       \
    TILE(1, n) TILE(2, n) TILE(3, n)                                                                                   \
    static void row_##n(const Tile *t) { run_tile(1, PANELS_ONCE, n, t); }
TILES(1)
TILES(2)
TILES(3)
TILES(4)
#define ROW(n) {tile_1_##n, tile_2_##n, tile_3_##n}
static const TileFn tiles[MAX_NR][3] = {ROW(1), ROW(2), ROW(3), ROW(4)};
static const TileFn row_panels[MAX_NR] = {row_1, row_2, row_3, row_4};

/* K elements of a row in the form that the tiles read: unchanged, or rounded into `room`. */
INLINE const void *left_operand(const real *row, ptrdiff_t K, int32_t *room)
{
#if defined(__AVX512BF16__)
    for (ptrdiff_t k = 0; k < K; k += LANES) {
        const __mmask16 valid = K - k < LANES ? (__mmask16)((1u << (K - k)) - 1) : 0xffff;
        const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(valid, row + k));
        memcpy(room + k / 2, &rounded, sizeof rounded);
    }
    return room;
#else
    (void)K, (void)room;
    return row;
#endif
}

/* n rows by one group. */
static void multiply_group(ptrdiff_t n, const real *const *a, const Panels *p, ptrdiff_t group, const real *init,
                           Rows out)
{
    const int vectors = group_width(p, group);
    int32_t rounded[MC][PAIRS + LANES / 2];
    const void *left[MC];
    const real *panels = p->data + group_start(p, group) * p->gates * panel_rows(p);
    const ptrdiff_t from = window_start(p, group);
    for (ptrdiff_t k = 0; k < p->K; k += KC) {
        const ptrdiff_t K = p->K - k < KC ? p->K - k : KC;
        for (ptrdiff_t i = 0; i < n; i++) left[i] = left_operand(a[i] + from + k, K, rounded[i]);
        for (int panel = 0, v = 0, count; panel < panel_count(vectors); panel += count) {
            const int width = panel_width(vectors, panel);
            const int pair_of_panels = panel + 1 < panel_count(vectors) && panel_width(vectors, panel + 1) == width;
            count = n == 1 && pair_of_panels ? PANELS_ONCE : 1;
            Tile t = {
                .panel = panels + v * LANES * panel_rows(p) + k / 2 * width * LANES,
                .panel_stride = width * LANES * panel_rows(p),
                .K = K,
                .init = init ? init + v * LANES : 0,
                .out_stride = out.stride,
                .add = k > 0,
            };
            for (ptrdiff_t i = 0; i < n; i += PAIR_MR) {
                const int m = (int)(n - i < PAIR_MR ? n - i : PAIR_MR);
                for (int r = 0; r < m; r++) t.left[r] = left[i + r];
                t.out = row_of(out, i) + v * LANES;
                (count > 1 ? row_panels[width - 1] : tiles[width - 1][m - 1])(&t);
            }
            v += count * width;
        }
    }
}

static void multiply(ptrdiff_t n, const real *const *a, const Panels *p, ptrdiff_t first, ptrdiff_t last,
                     const real *init, Rows out)
{
    for (ptrdiff_t group = first; group < last; group++) {
        const ptrdiff_t at = (group_start(p, group) - group_start(p, first)) * p->gates;
        multiply_group(n, a, p, group, init ? init + at : 0, rows_at(out, at));
    }
}

static void pack_column(const Panels *p, ptrdiff_t group, ptrdiff_t unit, const real *row, real *panel, ptrdiff_t lanes,
                        ptrdiff_t lane)
{
    const ptrdiff_t from = p->head ? unit / p->head * p->head - window_start(p, group) : 0;
    const ptrdiff_t to = unit >= p->units ? 0 : p->head ? from + p->head : p->K;
    for (ptrdiff_t k = 0; k < p->K; k += 2) {
        uint16_t pair[2][2] = {{0}}; /* little-endian: a float's upper half is its second */
        for (ptrdiff_t i = k; i < k + 2; i++)
            if (i >= from && i < to) memcpy(pair[i - k], row + i - from, sizeof *pair);
        const uint32_t both = pair[0][1] | (uint32_t)pair[1][1] << 16;
        memcpy(panel + k / 2 * lanes + lane, &both, sizeof both);
    }
}

#if defined(__AVX512BF16__)
const Format X(bfloat16_pairs) = {pack_column, multiply};
#else
const Format X(bfloat16) = {pack_column, multiply};
#endif

#endif
