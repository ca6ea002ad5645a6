/* The gradients that are deferred until a chunk of steps is complete, then computed as large products over its rows:
 *
 *   dW = sum of da x^T     dU = sum of da_rec operand^T     dR = sum of dh h^T     dx = da W
 *
 * and db, db_rec and dp, the sums of columns. `operand` is the product's operand, h_prev in the first phase.
 * The size of a chunk depends only on the problem's sizes and lengths, never on threads or checkpoints, so the bits
 * do not depend on those either.
 */
#include "drive.h"
#include "team.h"

/* to[j] += the sum of column j over n rows, in double: such sums cancel, and cost little compared to the products. */
static void add_columns(double *to, Rows rows, ptrdiff_t n, ptrdiff_t columns)
{
    enum { STRIP = 64 };
    for (ptrdiff_t j = 0; j < columns; j += STRIP) {
        const ptrdiff_t width = columns - j < STRIP ? columns - j : STRIP;
        double sum[STRIP] = {0};
        for (ptrdiff_t r = 0; r < n; r++) {
            const real *row = row_of(rows, r) + j;
            for (ptrdiff_t k = 0; k < width; k++) sum[k] += row[k];
        }
        for (ptrdiff_t k = 0; k < width; k++) to[j + k] += sum[k];
    }
}

/* Gradients of n hidden units, over the chunk's rows, as left operand of a product. */
static Columns left_operand(const Plan *p, int id, Rows field, ptrdiff_t rows, ptrdiff_t n)
{
    if (p->back.packs_columns) return X(pack_columns)(p->scratch[id].columns, field, rows, n);
    return (Columns){field.data, OUTER_MR, field.stride};
}

/* The operand of a product in a chunk of so many rows; with heads, the units of one head. */
static Panels operand_of(const Plan *p, int which, ptrdiff_t head, ptrdiff_t rows)
{
    Panels operand = p->back.operand_panels[which];
    operand.data += head * panels_size(&operand);
    operand.K = rows;
    return operand;
}

/* The parameters' gradients of a chunk, for n hidden units from `from` on, of one head. If the gradients of W x + b
 * and of U h are the same, one left operand serves both, because gates and products are the same, too. */
static void add_gradients(const Plan *p, int id, ptrdiff_t from, ptrdiff_t n, ptrdiff_t rows, int add)
{
    const Cell *cell = p->cell;
    const frnn_call *call = p->call;
    const ptrdiff_t H = p->H, head = call->D ? from / call->D : 0;
    Panels x = p->back.x_panels;
    x.K = rows;
    for (int g = 0; g < cell->gates && cell->split && !ended(p); g++) {
        const Rows da = rows_at(p->back.da, g * p->Hp + from);
        const ptrdiff_t at = g * H + from;
        X(multiply_outer)(n, left_operand(p, id, da, rows, n), &x, (Rows){(real *)call->dW + at * p->I, p->I}, add);
        add_columns(p->back.db + at, da, rows, n);
    }
    for (int q = 0, k = 0; q < cell->phases; q++) {
        for (int end = k + cell->phase_gates[q]; k < end && !ended(p); k++) {
            const Panels operand = operand_of(p, q, head, rows);
            const Rows rec = rows_at(p->back.da_rec, k * p->Hp + from);
            const ptrdiff_t at = k * H + from;
            const Columns left = left_operand(p, id, rec, rows, n);
            if (!cell->split) X(multiply_outer)(n, left, &x, (Rows){(real *)call->dW + at * p->I, p->I}, add);
            X(multiply_outer)(n, left, &operand, (Rows){(real *)call->dU + at * operand.units, operand.units}, add);
            add_columns(p->back.db_rec + at, rec, rows, n);
        }
    }
    for (int k = 0; k < cell->parameters; k++)
        add_columns(p->back.dp_sums + k * H + from, rows_at(p->back.dp, k * p->Hp + from), rows, n);
}

/* The same for this thread's hidden units and its part of the projection. */
static void add_weight_gradients(const Plan *p, int id, ptrdiff_t rows, int add)
{
    const frnn_call *call = p->call;
    const ptrdiff_t H = p->H, D = call->D ? call->D : H, end = share(H, id + 1, p->threads);
    for (ptrdiff_t from = share(H, id, p->threads), n; from < end; from += n) {
        const ptrdiff_t rest = D - from % D;
        n = rest < end - from ? rest : end - from;
        add_gradients(p, id, from, n, rows, add);
    }
    if (call->P && !ended(p)) {
        const ptrdiff_t first = share(call->P, id, p->threads), own = share(call->P, id + 1, p->threads) - first;
        const Panels operand = operand_of(p, p->cell->phases, 0, rows);
        const Columns left = left_operand(p, id, rows_at(p->back.dh, first), rows, own);
        X(multiply_outer)(own, left, &operand, (Rows){(real *)call->dR + first * H, H}, add);
    }
}

/* dx of rows [from, to) of a chunk for one group of inputs. */
static void write_dx_group(const Plan *p, const Panels *W, ptrdiff_t group, ptrdiff_t start, ptrdiff_t from,
                           ptrdiff_t to)
{
    const ptrdiff_t lanes = group_lanes(W, group), units = group_units(W, group);
    const real *left[MC];
    real out[MC * MAX_NR * LANES] __attribute__((aligned(FRNN_ALIGN)));
    for (ptrdiff_t row = from; row < to; row += MC) {
        const int m = (int)(to - row < MC ? to - row : MC);
        for (int i = 0; i < m; i++) left[i] = row_of(p->back.da, row + i);
        X(multiply)(m, left, p->cell->gates, p->Hp, W, group, 0, (Rows){out, lanes});
        for (int i = 0; i < m; i++) copy_row(p->back.dx_rows[row + i] + start, out + i * lanes, units);
    }
}

/* This thread's part of a chunk's dx: all columns of its rows; or, if W is packed late, all rows of its groups. */
static void write_dx(const Plan *p, int id, ptrdiff_t rows)
{
    const Panels *W = &p->back.W;
    const int late = packs_W_back_late(p);
    const ptrdiff_t first = late ? share(W->groups, id, p->threads) : 0;
    const ptrdiff_t last = late ? share(W->groups, id + 1, p->threads) : W->groups;
    for (ptrdiff_t group = first; group < last && !ended(p); group++) {
        const ptrdiff_t start = group_start(W, group);
        if (late) {
            const Panels one = one_group(W, group, W->data + group_start(W, first) * W->K);
            X(pack)(&one, 0, 1, (const real *)p->call->W + start, 0, 1, p->I);
            write_dx_group(p, &one, 0, start, 0, rows);
        } else
            write_dx_group(p, W, group, start, share(rows, id, p->threads), share(rows, id + 1, p->threads));
    }
}

/* Compute everything deferred until the chunk is complete. */
void X(finish_chunk)(const Plan *p, int id, Chunk chunk)
{
    const ptrdiff_t rows = p->before[chunk.high + 1] - p->before[chunk.low];
    const ptrdiff_t from = share(rows, id, p->threads), to = share(rows, id + 1, p->threads);
    frnn_team_barrier(p->threads);
    Panels x = p->back.x_panels;
    x.K = rows;
    X(pack_rows)(&x, from, to, p->back.x_rows, 0);
    for (int q = 0; q <= p->cell->phases; q++) {
        if (!p->back.operand[q]) continue;
        for (ptrdiff_t head = 0, heads = p->call->D ? p->H / p->call->D : 1; head < heads; head++) {
            const Panels operand = operand_of(p, q, head, rows);
            X(pack_rows)(&operand, from, to, p->back.operand[q], head * operand.units);
        }
    }
    write_dx(p, id, rows);
    const ptrdiff_t n = active_rows(p, chunk.low);
    for (ptrdiff_t r = share(n, id, p->threads); r < share(n, id + 1, p->threads); r++)
        copy_row(row_of(p->back.da_before, r), row_of(p->back.da_rec, chunk_row(p, chunk, chunk.low) + r),
                 products_of(p->cell) * p->Hp);
    frnn_team_barrier(p->threads);
    add_weight_gradients(p, id, rows, chunk.high < p->steps - 1);
    frnn_team_barrier(p->threads);
}

static void write_sum(void *to, const double *sums, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; to && i < n; i++) ((real *)to)[i] = (real)sums[i];
}

void X(write_sums)(const Plan *p)
{
    write_sum(p->call->db, p->back.db, p->cell->gates * p->H);
    write_sum(p->call->db_rec, p->back.db_rec, products_of(p->cell) * p->H);
    write_sum(p->call->dp, p->back.dp_sums, p->cell->parameters * p->H);
}
