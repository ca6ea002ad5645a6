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

/* All of K: of a block-diagonal matrix one head of the window after the other. */
static void pack_column(const Panels *p, ptrdiff_t group, real *dst, ptrdiff_t dst_stride, const real *src,
                        ptrdiff_t unit, ptrdiff_t unit_stride, ptrdiff_t k_stride)
{
    src += unit * unit_stride;
    if (!p->head) {
        pack_vector(dst, dst_stride, src, 0, p->units - unit, p->K, unit_stride, k_stride);
        return;
    }
    const ptrdiff_t first = window_start(p, group);
    for (ptrdiff_t rows = 0; rows < p->K / p->window * p->units; rows += p->units)
        for (ptrdiff_t k = first; k < first + p->window; k += p->head, dst += p->head * dst_stride)
            pack_vector(dst, dst_stride, src + (rows + k) * k_stride - k, k - unit, k + p->head - unit, p->head,
                        unit_stride, k_stride);
}

#if FRNN_BITS == 32
static void pack_narrow(const Panels *p, ptrdiff_t first, ptrdiff_t last, const real *src, ptrdiff_t gate_stride,
                        ptrdiff_t unit_stride)
{
    for (ptrdiff_t group = first; group < last; group++) {
        const ptrdiff_t start = group_start(p, group), per_gate = group_lanes(p, group) / LANES;
        const int vectors = group_width(p, group);
        real *dst = p->data + start * p->gates * panel_rows(p);
        for (int panel = 0, v = 0; panel < panel_count(vectors); panel++) {
            const int width = panel_width(vectors, panel);
            for (int j = 0; j < width; j++, v++)
                for (ptrdiff_t lane = 0; lane < LANES; lane++) {
                    const ptrdiff_t unit = start + v % per_gate * LANES + lane;
                    const real *const row = src + v / per_gate * gate_stride + unit * unit_stride;
                    format_of(p)->pack_column(p, group, unit, row, dst, width * LANES, j * LANES + lane);
                }
            dst += width * LANES * panel_rows(p);
        }
    }
}
#endif

void X(pack)(const Panels *p, ptrdiff_t first, ptrdiff_t last, const real *src, ptrdiff_t gate_stride,
             ptrdiff_t unit_stride, ptrdiff_t k_stride)
{
#if FRNN_BITS == 32
    if (p->format) {
        pack_narrow(p, first, last, src, gate_stride, unit_stride);
        return;
    }
#endif
    for (ptrdiff_t group = first; group < last; group++) {
        const ptrdiff_t start = group_start(p, group), lanes = group_lanes(p, group);
        const int vectors = group_width(p, group), per_gate = (int)(lanes / LANES);
        real *dst = p->data + start * p->gates * p->K;
        for (int panel = 0, v = 0; panel < panel_count(vectors); panel++) {
            const int width = panel_width(vectors, panel);
            const ptrdiff_t first_unit = start + v * LANES;
            if (unit_stride == 1 && p->gates == 1 && !p->head && first_unit + width * LANES <= p->units) {
                copy_panel(dst, width, src + first_unit, p->K, k_stride);
                v += width;
            } else
                for (int j = 0; j < width; j++, v++) {
                    const ptrdiff_t unit = start + v % per_gate * LANES;
                    pack_column(p, group, dst + j * LANES, width * LANES, src + v / per_gate * gate_stride, unit,
                                unit_stride, k_stride);
                }
            dst += width * LANES * p->K;
        }
    }
}

void X(pack_rows)(const Panels *p, ptrdiff_t first, ptrdiff_t last, const real *const *src, ptrdiff_t at)
{
    for (ptrdiff_t group = 0; group < p->groups; group++) {
        const ptrdiff_t start = group_start(p, group), lanes = group_lanes(p, group), rest = p->units - start;
        const size_t valid = (size_t)(rest < lanes ? rest : lanes) * sizeof(real);
        for (ptrdiff_t k = first; k < last; k++) {
            real *dst = p->data + start * p->K + k * lanes;
            memcpy(dst, src[k] + at + start, valid);
            memset((char *)dst + valid, 0, (size_t)lanes * sizeof(real) - valid);
        }
    }
}

Columns X(pack_columns)(real *dst, Rows rows, ptrdiff_t K, ptrdiff_t n)
{
    const ptrdiff_t whole = n - n % OUTER_MR;
    for (ptrdiff_t i = 0; i < whole; i += OUTER_MR)
        for (ptrdiff_t r = 0; r < K; r++) /* of a constant size: a call for each would cost more than the copy */
            memcpy(dst + i * K + r * OUTER_MR, row_of(rows, r) + i, OUTER_MR * sizeof(real));
    for (ptrdiff_t r = 0; r < K && whole < n; r++)
        memcpy(dst + whole * K + r * OUTER_MR, row_of(rows, r) + whole, (size_t)(n - whole) * sizeof(real));
    return (Columns){dst, OUTER_MR * K, OUTER_MR};
}
