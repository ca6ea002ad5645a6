/* Packing: from matrices in rows to panels (matmul.h). */
#include "matmul.h"

/* Transpose a square of LANES vectors in place: swap blocks off the diagonal, of one lane, then two, then four ... The
 * indices must be constants to the compiler: vectors filled lane by lane are not to GCC 12, which fills them anew for
 * every square (2 to 4 times as long). */
INLINE void transpose(vec *v)
{
    static const integer numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    ivec lane;
    memcpy(&lane, numbers, sizeof lane);
#pragma GCC unroll 4
    for (integer width = 1; width < LANES; width *= 2) {
        const ivec moves = (lane & width) != 0, low = lane + (moves & (integer)(LANES - width)), high = low + width;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            if (i & width) continue;
            const vec a = v[i], b = v[i + width];
            v[i] = pick(a, b, low);
            v[i + width] = pick(a, b, high);
        }
    }
}

/* K of one vector column of a panel: lanes [from, to) from src, the rest zero. */
static void pack_vector(real *dst, ptrdiff_t dst_stride, const real *src, ptrdiff_t from, ptrdiff_t to, ptrdiff_t K,
                        ptrdiff_t unit_stride, ptrdiff_t k_stride)
{
    ptrdiff_t k = 0;
    const int whole = from <= 0 && to >= LANES;
    if (whole && unit_stride == 1)
        for (; k < K; k++) store(dst + k * dst_stride, load(src + k * k_stride));
    else if (whole && k_stride == 1)
        for (; k + LANES <= K; k += LANES) {
            vec v[LANES];
#pragma GCC unroll 16
            for (int lane = 0; lane < LANES; lane++) v[lane] = load(src + lane * unit_stride + k);
            transpose(v);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(dst + (k + i) * dst_stride, v[i]);
        }
    for (; k < K; k++)
        for (ptrdiff_t lane = 0; lane < LANES; lane++)
            dst[k * dst_stride + lane] = lane >= from && lane < to ? src[lane * unit_stride + k * k_stride] : 0;
}

/* A panel of whole vectors that lie side by side in a row of src: row by row, since the next is often a page away. */
static void copy_panel(real *dst, int width, const real *src, ptrdiff_t K, ptrdiff_t k_stride)
{
    for (ptrdiff_t k = 0; k < K; k++, src += k_stride)
        for (int j = 0; j < width; j++, dst += LANES) store(dst, load(src + j * LANES));
}

/* All of K, to column `lane` of a panel of so many lanes: of a block-diagonal matrix one head of the window after the
 * other. */
static void pack_column(const Panels *p, ptrdiff_t group, ptrdiff_t unit, const real *src, ptrdiff_t unit_stride,
                        ptrdiff_t k_stride, real *panel, ptrdiff_t lanes, ptrdiff_t lane)
{
#if FRNN_BITS == 32
    if (p->format) {
        for (ptrdiff_t l = 0; l < LANES; l++)
            format_of(p)->pack_column(p, group, unit + l, src + l * unit_stride, panel, lanes, lane + l);
        return;
    }
#endif
    real *dst = panel + lane;
    if (!p->head) {
        pack_vector(dst, lanes, src, 0, p->units - unit, p->K, unit_stride, k_stride);
        return;
    }
    const ptrdiff_t first = window_start(p, group);
    for (ptrdiff_t rows = 0; rows < p->K / p->window * p->units; rows += p->units)
        for (ptrdiff_t k = first; k < first + p->window; k += p->head, dst += p->head * lanes)
            pack_vector(dst, lanes, src + (rows + k) * k_stride - k, k - unit, k + p->head - unit, p->head, unit_stride,
                        k_stride);
}

void X(pack)(const Panels *p, int id, int threads, const real *src, ptrdiff_t gate_stride, ptrdiff_t unit_stride,
             ptrdiff_t k_stride)
{
    const int side_by_side = unit_stride == 1 && p->gates == 1 && !p->head && !p->format;
    for (ptrdiff_t group = share(p->groups, id, threads); group < share(p->groups, id + 1, threads); group++) {
        const ptrdiff_t start = group_start(p, group), per_gate = group_lanes(p, group) / LANES;
        const int vectors = group_width(p, group);
        real *dst = p->data + start * p->gates * panel_rows(p);
        for (int panel = 0, v = 0; panel < panel_count(vectors); panel++) {
            const int width = panel_width(vectors, panel), end = v + width;
            const ptrdiff_t lanes = width * LANES, first = start + v * LANES;
            if (side_by_side && first + lanes <= p->units) {
                copy_panel(dst, width, src + first, p->K, k_stride);
                v = end;
            }
            for (; v < end; v++) {
                const ptrdiff_t unit = start + v % per_gate * LANES;
                pack_column(p, group, unit, src + v / per_gate * gate_stride + unit * unit_stride, unit_stride,
                            k_stride, dst, lanes, lanes - (end - v) * LANES);
            }
            dst += lanes * panel_rows(p);
        }
    }
}

void X(pack_rows)(const Panels *p, ptrdiff_t first, ptrdiff_t last, const real *const *src, ptrdiff_t at)
{
    for (ptrdiff_t group = 0; group < p->groups; group++) {
        const ptrdiff_t start = group_start(p, group), lanes = group_lanes(p, group), units = group_units(p, group);
        for (ptrdiff_t k = first; k < last; k++) {
            real *dst = p->data + start * p->K + k * lanes;
            copy_row(dst, src[k] + at + start, units);
            zero_row(dst + units, lanes - units);
        }
    }
}

Columns X(pack_columns)(real *dst, Rows rows, ptrdiff_t K, ptrdiff_t n)
{
    const ptrdiff_t whole = n - n % OUTER_MR;
    for (ptrdiff_t i = 0; i < whole; i += OUTER_MR)
        for (ptrdiff_t r = 0; r < K; r++) /* of a constant size: a call for each would cost more than the copy */
            copy_row(dst + i * K + r * OUTER_MR, row_of(rows, r) + i, OUTER_MR);
    for (ptrdiff_t r = 0; r < K && whole < n; r++)
        copy_row(dst + whole * K + r * OUTER_MR, row_of(rows, r) + whole, n - whole);
    return (Columns){dst, OUTER_MR * K, OUTER_MR};
}
