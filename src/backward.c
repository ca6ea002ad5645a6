/* The backward driver: backpropagation through time (Werbos, Proc. IEEE 78, 1990).
 *
 * Step by step against the travel: the gradient that reaches h is the product of the gate gradients of the step after
 * with U, plus what the cell carries past the products, plus the caller's dy; the cell turns it into this step's gate
 * gradients. What can wait, waits until a chunk of steps is whole (gradients.c).
 */
#include "drive.h"
#include "team.h"

static void zero_row(real *row, ptrdiff_t n) { memset(row, 0, (size_t)n * sizeof *row); }

static void add_to(real *to, const real *from, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) to[i] += from[i];
}

/* Turn rows of a product, the gradient of the first state after step s by way of step s + 1, into the whole gradient of
 * all states. Rows that have no step s leave: what reached them is the gradient of their initial state. */
static void complete(const Plan *p, const BackwardTile *t, ptrdiff_t s, ptrdiff_t row)
{
    const frnn_call *call = p->call;
    const ptrdiff_t left = p->H - t->at, n = left < t->lanes ? left : t->lanes;
    const int states = p->cell->states, product = p->cell->phase_gates[0];
    for (int i = 0; i < t->rows; i++) {
        const ptrdiff_t r = row + i, at = p->sequence[r] * p->H + t->at;
        real *dh = row_of(t->dout, i), *carry = row_of(t->carry, i) + t->at;
        if (r >= active_rows(p, s + 1) || is_reset(p, s + 1, r)) {
            zero_row(dh, t->lanes);
            for (int k = 0; k < states; k++) zero_row(carry + k * p->Hp, t->lanes);
        } else if (p->cell->carries_h && product)
            add_to(dh, carry, t->lanes);
        else if (p->cell->carries_h)
            memcpy(dh, carry, (size_t)t->lanes * sizeof(real));
        else if (!product)
            zero_row(dh, t->lanes);
        for (int k = 0; k < states; k++) {
            real *const d = k ? carry + k * p->Hp : dh;
            if (r >= active_rows(p, s)) {
                if (call->dinit[k]) memcpy((real *)call->dinit[k] + at, d, (size_t)n * sizeof(real));
                continue;
            }
            /* onto zeros: copied, for a sum would lose the sign of a zero carried back */
            if (s == last_step(p, r) && call->dfinal[k])
                memcpy(d, (const real *)call->dfinal[k] + at, (size_t)n * sizeof(real));
            if (call->dout[k].data) add_to(d, element(p, call->dout[k], s, r) + t->at, n);
        }
    }
}

/* Point `left` at the rows of gate gradients that phase q's incoming product reads: those of the phase after it, or for
 * the last phase those of step s + 1. */
static void find_left(const Plan *p, int id, Chunk chunk, ptrdiff_t s, int q, ptrdiff_t n)
{
    const real **left = p->scratch[id].left;
    const int last = q == p->cell->phases - 1;
    Rows from = last ? p->da_before : rows_from(p->da_rec, chunk_row(p, chunk, s));
    if (last && s < chunk.high) from = rows_from(p->da_rec, chunk_row(p, chunk, s + 1));
    const ptrdiff_t field = last ? 0 : first_product(p->cell, q + 1) * p->Hp, ready = last ? active_rows(p, s + 1) : n;
    EACH_TILE(t, p, id, n, ROWS_ONCE)
        for (ptrdiff_t r = t.row; r < t.row + t.rows; r++) left[r] = r < ready ? row_of(from, r) + field : p->zeros;
}

/* One phase of step s against the travel. s = -1 only lets the last rows leave. */
static void undo_phase(const Plan *p, int id, Chunk chunk, ptrdiff_t s, int q)
{
    const Cell *cell = p->cell;
    const int last = q == cell->phases - 1, source = last ? 0 : q + 1;
    const Panels *U = &p->U_back[source];
    const ptrdiff_t active = active_rows(p, s), after = active_rows(p, s + 1);
    const ptrdiff_t n = last && after > active ? after : active, start = s < 0 ? 0 : segment_start(p, s);
    const ptrdiff_t at_row = s < 0 ? 0 : chunk_row(p, chunk, s);
    const Rows next = states_after(p, s < 0 ? 0 : s, start), kept = kept_of(p, s < 0 ? 0 : s, start);
    if (ended(p)) return;
    const int means = cell->phase_means[source];
    real dout[ROWS_ONCE * FRNN_MAX_PHASE_MEANS * MAX_VECTORS * LANES] __attribute__((aligned(FRNN_ALIGN)));
    BackwardTile tile = {.Hp = p->Hp, .p = {p->weights.p, 0}};
    find_left(p, id, chunk, s, q, n);
    if (means) {
        const ptrdiff_t first = products_of(cell) + first_mean(cell, source);
        X(take_means)(p, id, n, rows_at(rows_from(p->da_rec, at_row), first * p->Hp), means);
    }
    for (ptrdiff_t group = first_group(p, U, id); group < last_group(p, U, id); group++) {
        tile.at = group_start(U, group);
        tile.lanes = group_lanes(U, group);
        tile.dout = (Rows){dout, (means ? means : 1) * tile.lanes};
        EACH_TILE(t, p, id, n, ROWS_ONCE)
        {
            if (cell->phase_gates[source])
                X(multiply)(t.rows, p->scratch[id].left + t.row, cell->phase_gates[source], p->Hp, U, group, 0, tile.dout);
            put_means(p, id, means, t.row, t.rows, tile.dout, tile.lanes);
            tile.rows = t.rows;
            tile.carry = rows_from(p->carry, t.row);
            if (last) complete(p, &tile, s, t.row);
            if (t.row >= active) continue;
            if (t.row + t.rows > active) tile.rows = (int)(active - t.row);
            tile.prev = p->scratch[id].prev + t.row;
            tile.next = rows_from(next, t.row);
            tile.kept = rows_from(kept, t.row);
            tile.e = rows_from(p->e, t.row);
            tile.de = rows_from(p->de, t.row);
            tile.da = rows_from(p->da, at_row + t.row);
            tile.da_rec = rows_from(p->da_rec, at_row + t.row);
            tile.dp = rows_from(p->dp, at_row + t.row);
            cell->backward[q](&tile);
        }
    }
}

/* Note for every row of step s what its weight gradients will multiply: x, and each phase's operand. */
static void note_operands(const Plan *p, int id, Chunk chunk, ptrdiff_t s)
{
    const Cell *cell = p->cell;
    const ptrdiff_t first = chunk_row(p, chunk, s), start = segment_start(p, s);
    const Rows kept = kept_of(p, s, start);
    EACH_TILE(t, p, id, active_rows(p, s), ROWS_ONCE)
        for (ptrdiff_t r = t.row; r < t.row + t.rows; r++) {
            p->scratch[id].prev[r] = states_before(p, s, start, r);
            if (splits_hidden(p) && id > 0) continue;
            p->x_rows[first + r] = element(p, p->call->x, s, r);
            p->dx_rows[first + r] = element(p, p->call->dx, s, r);
            for (int q = 0; q < cell->phases; q++) {
                if (!cell->phase_gates[q]) continue;
                const real *operand = p->scratch[id].prev[r];
                if (cell->operand[q] >= 0) operand = row_of(kept, r) + cell->operand[q] * p->Hp;
                if (p->operand_copy[q].data) {
                    real *copy = row_of(p->operand_copy[q], first + r);
                    memcpy(copy, operand, (size_t)p->Hp * sizeof(real));
                    operand = copy;
                }
                p->operand[q][first + r] = operand;
            }
        }
}

/* The gradients of the extra inputs of step s, this thread's part. */
static void write_de(const Plan *p, int id, ptrdiff_t s)
{
    const Panels *U = &p->U_back[0];
    const ptrdiff_t from = first_unit(p, U, id), to = end_unit(p, U, id), end = to < p->H ? to : p->H;
    for (int k = 0; k < p->cell->inputs; k++)
        EACH_TILE(t, p, id, active_rows(p, s), ROWS_ONCE)
            for (ptrdiff_t r = t.row; r < t.row + t.rows; r++)
                if (from < end)
                    memcpy(element(p, p->call->de[k], s, r) + from, row_of(p->de, r) + k * p->Hp + from,
                           (size_t)(end - from) * sizeof(real));
}

static void undo_step(const Plan *p, int id, Chunk chunk, ptrdiff_t s)
{
    if (s >= 0) note_operands(p, id, chunk, s);
    if (s >= 0 && p->cell->inputs) X(fill_inputs)(p, id, s, &p->U_back[0]); /* all are grouped alike */
    for (int q = p->cell->phases - 1; q >= (s < 0 ? p->cell->phases - 1 : 0); q--) {
        undo_phase(p, id, chunk, s, q);
        end_phase(p);
    }
    if (s >= 0 && p->cell->inputs) write_de(p, id, s);
}

/* Bring back the states and gates of the segment that ends with step s. */
static void recompute(const Plan *p, int id, ptrdiff_t s)
{
    const ptrdiff_t start = segment_start(p, s);
    const Rows from = rows_from(p->checkpoints, start / p->segment * p->B);
    if (splits_hidden(p)) frnn_team_barrier(p->threads); /* nobody still reads the segment before */
    if (start > 0 && (!splits_hidden(p) || id == 0))
        EACH_TILE(t, p, id, active_rows(p, start - 1), ROWS_ONCE)
            for (ptrdiff_t r = t.row; r < t.row + t.rows; r++)
                memcpy(row_of(p->states, r), row_of(from, r), (size_t)(p->cell->states * p->Hp) * sizeof(real));
    if (splits_hidden(p)) frnn_team_barrier(p->threads);
    X(run_steps)(p, id, start, start, s + 1);
}

/* Transposed panels, and zeros in everything that is only added to or never reached. */
static void prepare(const Plan *p, int id)
{
    const frnn_call *call = p->call;
    const Cell *cell = p->cell;
    const int products = products_of(cell);
    const ptrdiff_t H = p->H, I = p->I;
    if (call->checkpoint && !call->packed) X(fill_panels)(&p->weights, call, id, p->threads, 0);
    if (!packs_W_back_late(p))
        X(pack)(&p->W_back, share(p->W_back.groups, id, p->threads), share(p->W_back.groups, id + 1, p->threads),
                call->W, 0, 1, I);
    for (int q = 0; q < cell->phases; q++) {
        const Panels *U = &p->U_back[q];
        X(pack)(U, share(U->groups, id, p->threads), share(U->groups, id + 1, p->threads),
                (const real *)call->U + first_product(cell, q) * H * H, 0, 1, H);
    }
    if (id == 0) {
        if (p->steps == 0) { /* else the first chunk writes them */
            zero_row(call->dW, cell->gates * H * I);
            if (products) zero_row(call->dU, products * H * H);
        }
        memset(p->db, 0, (size_t)(cell->gates * H) * sizeof *p->db);
        if (cell->split) memset(p->db_rec, 0, (size_t)(products * H) * sizeof *p->db_rec);
        memset(p->dp_sums, 0, (size_t)(cell->parameters * H) * sizeof *p->dp_sums);
    }
    for (ptrdiff_t row = share(p->B, id, p->threads); row < share(p->B, id + 1, p->threads); row++) {
        const ptrdiff_t b = p->sequence[row];
        for (ptrdiff_t t = p->length[row]; t < call->T; t++) {
            zero_row((real *)call->dx.data + t * call->dx.step + b * call->dx.row, I);
            for (int k = 0; k < cell->inputs; k++)
                zero_row((real *)call->de[k].data + t * call->de[k].step + b * call->de[k].row, H);
        }
        for (int k = 0; k < cell->states && p->length[row] == 0; k++) {
            if (!call->dinit[k]) continue;
            real *to = (real *)call->dinit[k] + b * H;
            if (call->dfinal[k])
                memcpy(to, (const real *)call->dfinal[k] + b * H, (size_t)H * sizeof(real));
            else
                zero_row(to, H);
        }
    }
}

void X(backward_job)(void *arg, int id)
{
    const Plan *p = arg;
    prepare(p, id);
    frnn_team_barrier(p->threads);
    ptrdiff_t ready = p->call->checkpoint ? p->steps : 0; /* gates of steps [ready, ...) are at hand */
    Chunk chunk = {0, 0};
    for (chunk.high = p->steps - 1; chunk.high >= 0; chunk.high = chunk.low - 1) {
        chunk.low = chunk.high + 1 > p->back_chunk ? chunk.high + 1 - p->back_chunk : 0;
        for (ptrdiff_t s = chunk.high; s >= chunk.low; s--) {
            if (s < ready) {
                recompute(p, id, s);
                ready = segment_start(p, s);
            }
            undo_step(p, id, chunk, s);
        }
        X(finish_chunk)(p, id, chunk);
    }
    chunk.high = -1; /* step 0 is behind us: its gate gradients are the ones kept before */
    undo_step(p, id, chunk, -1);
    if (id == 0) X(write_sums)(p);
}
