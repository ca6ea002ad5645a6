/* The backward driver: backpropagation through time (Werbos, Proc. IEEE 78, 1990).
 *
 * Runs step by step against the direction of travel. The gradient of h is the product of the next step's gate gradients
 * with U, plus the part that bypasses the products, plus the caller's dy; the cell turns it into this step's gate
 * gradients. With a projection that sum is the gradient of the projected h, and its product with R that of h itself.
 * Everything else is deferred until a chunk of steps is complete (gradients.c).
 */
#include "drive.h"
#include "team.h"

/* Groups at a time, with one row: narrow vectors of one panel are too few chains for the latency of multiply-adds; with
 * more groups there are too few parts for `part_at`. */
enum { GROUPS_ONCE = VBYTES == 64 ? 1 : 2 };

static void add_to(real *to, const real *from, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) to[i] += from[i];
}

/* Sum up the gradients of states [first, end) after step s. From step s + 1 comes, for the first state, the product in
 * tile->dout, and for the others what that step carried; the caller's gradients are added. Rows that have no step s
 * leave: what reached them is the gradient of their initial state. */
static void sum_gradients(const Plan *p, const BackwardTile *tile, ptrdiff_t s, ptrdiff_t row, int first, int end)
{
    const frnn_call *call = p->call;
    const int product = p->cell->phase_gates[0], carries = p->cell->carries_h;
    const ptrdiff_t active = active_rows(p, s), after = active_rows(p, s + 1);
    for (int k = first; k < end; k++) {
        const ptrdiff_t width = width_of(p, k), rest = width - tile->at, n = rest < tile->lanes ? rest : tile->lanes;
        for (int i = 0; i < tile->rows; i++) {
            const ptrdiff_t r = row + i, at = p->sequence[r] * width + tile->at;
            real *const carry = row_of(tile->carry, i) + tile->at + k * p->Hp, *const dh = row_of(tile->dout, i);
            const int apart = k == 0 && p->cell->scans; /* what comes from outside stays in dh, the rest in carry */
            real *const d = k || apart ? carry : dh;
            if (r >= after || is_reset(p, s + 1, r))
                zero_row(d, tile->lanes);
            else if (d == dh && carries && product)
                add_to(d, carry, tile->lanes);
            else if (d == dh && carries)
                copy_row(d, carry, tile->lanes);
            else if (d == dh && !product)
                zero_row(d, tile->lanes);
            if (apart) zero_row(dh, tile->lanes);
            if (r >= active) {
                if (call->dinit[k]) copy_row((real *)call->dinit[k] + at, d, n);
                continue;
            }
            /* onto zeros: copied, for a sum would lose the sign of a zero carried back */
            if (s == last_step(p, r) && call->dfinal[k]) copy_row(d, (const real *)call->dfinal[k] + at, n);
            const real *outside = call->dout[k].data ? element(p, call->dout[k], s, r) + tile->at : 0;
            if (outside && apart)
                copy_row(dh, outside, n);
            else if (outside)
                add_to(d, outside, n);
        }
    }
}

/* Point `left` at the rows of gate gradients that phase q's incoming product reads: those of the phase after it, or for
 * the last phase those of step s + 1. */
static void find_left(const Plan *p, int id, Chunk chunk, ptrdiff_t s, int q, ptrdiff_t n)
{
    const real **left = p->scratch[id].left;
    const int last = q == p->cell->phases - 1;
    Rows from = last ? p->back.da_before : rows_from(p->back.da_rec, chunk_row(p, chunk, s));
    if (last && s < chunk.high) from = rows_from(p->back.da_rec, chunk_row(p, chunk, s + 1));
    const ptrdiff_t field = last ? 0 : first_product(p->cell, q + 1) * p->Hp, ready = last ? active_rows(p, s + 1) : n;
    EACH_TILE(t, p, id, n, MC)
        for (ptrdiff_t r = t.row; r < t.row + t.rows; r++) left[r] = r < ready ? row_of(from, r) + field : p->zeros;
}

/* The gradient of the projected state after step s, this thread's part; s = -1 only lets the last rows leave. */
static void backward_projection(const Plan *p, int id, Chunk chunk, ptrdiff_t s)
{
    const Panels *U = &p->back.U[0];
    const ptrdiff_t active = active_rows(p, s), after = active_rows(p, s + 1), n = after > active ? after : active;
    const Rows dh = rows_from(p->back.dh, s < 0 ? 0 : chunk_row(p, chunk, s));
    if (ended(p)) return;
    real out[MC * MAX_NR * LANES] __attribute__((aligned(FRNN_ALIGN)));
    find_left(p, id, chunk, s, p->cell->phases - 1, n);
    for (ptrdiff_t group = first_group(p, U, id); group < last_group(p, U, id); group++) {
        BackwardTile tile = {.at = group_start(U, group), .lanes = group_lanes(U, group)};
        tile.dout = (Rows){out, tile.lanes};
        EACH_TILE(t, p, id, n, MC)
        {
            tile.rows = t.rows;
            tile.carry = rows_from(p->back.carry, t.row);
            X(multiply)(t.rows, p->scratch[id].left + t.row, p->cell->phase_gates[0], p->Hp, U, group, 0, tile.dout);
            sum_gradients(p, &tile, s, t.row, 0, 1);
            for (int i = 0; i < t.rows && t.row + i < active; i++) /* those that leave have no place in the chunk */
                copy_row(row_of(dh, t.row + i) + tile.at, out + i * tile.lanes, tile.lanes);
        }
    }
}

/* One phase of one step; s = -1 only lets the last rows leave. */
typedef struct {
    ptrdiff_t s;
    int q;
    int projected;           /* whether its first state was multiplied by R */
    ptrdiff_t active, first; /* rows of step s, the first of them in the chunk */
    Rows next, kept;
} Phase;

/* One tile, from the sums of its incoming products in `dout` on. */
static void backward_tile(const Plan *p, int id, const Phase *phase, BackwardTile *tile, ptrdiff_t row)
{
    const Cell *cell = p->cell;
    const ptrdiff_t at = phase->first + row;
    tile->carry = rows_from(p->back.carry, row);
    if (phase->q == cell->phases - 1) sum_gradients(p, tile, phase->s, row, phase->projected, cell->states);
    if (row >= phase->active) return;
    if (row + tile->rows > phase->active) tile->rows = (int)(phase->active - row);
    tile->prev = p->scratch[id].prev + row;
    tile->next = rows_from(phase->next, row);
    tile->kept = rows_from(phase->kept, row);
    tile->e = rows_from(p->e, row);
    tile->de = rows_from(p->back.de, row);
    tile->da = rows_from(p->back.da, at);
    tile->da_rec = rows_from(p->back.da_rec, at);
    tile->dp = rows_from(p->back.dp, at);
    cell->backward[phase->q](tile);
}

/* This thread's groups and rows of a phase. */
static void backward_phase(const Plan *p, int id, Chunk chunk, ptrdiff_t s, int q)
{
    const Cell *cell = p->cell;
    const int last = q == cell->phases - 1, source = last ? 0 : q + 1, means = cell->phase_means[source];
    Phase phase = {.s = s, .q = q, .projected = last && projects(p), .active = active_rows(p, s)};
    phase.first = s < 0 ? 0 : chunk_row(p, chunk, s);
    phase.next = s < 0 ? p->states : states_after(p, s);
    phase.kept = s < 0 ? p->kept : kept_of(p, s);
    const Panels *U = phase.projected ? &p->back.R : &p->back.U[source];
    const ptrdiff_t gates = phase.projected ? 1 : cell->phase_gates[source], after = active_rows(p, s + 1);
    const ptrdiff_t n = last && after > phase.active ? after : phase.active;
    if (ended(p)) return;
    const real **left = p->scratch[id].left;
    if (phase.projected)
        EACH_TILE(t, p, id, n, MC)
            for (ptrdiff_t r = t.row; r < t.row + t.rows; r++)
                left[r] = r < phase.active ? row_of(p->back.dh, phase.first + r) : p->zeros;
    else
        find_left(p, id, chunk, s, q, n);
    if (means) {
        const ptrdiff_t mean = products_of(cell) + first_mean(cell, source);
        X(take_means)(p, id, n, rows_at(rows_from(p->back.da_rec, phase.first), mean * p->Hp), means);
    }
    real dout[MC * FRNN_MAX_PHASE_MEANS * MAX_NR * LANES] __attribute__((aligned(FRNN_ALIGN)));
    BackwardTile tile = {.Hp = p->Hp, .p = {p->weights.parameters, 0}};
    const int one_row = n == 1 && p->owners == 1;
    const Parts parts = parts_of(p, U, id, one_row ? GROUPS_ONCE : 1);
    for (ptrdiff_t turn = 0; turn < parts.n; turn++) {
        const Groups part = part_at(p, &parts, s, turn);
        if (gates && one_row) X(multiply_row)(left[0], gates, p->Hp, U, part.first, part.end, 0, dout);
        for (ptrdiff_t group = part.first; group < part.end; group++) {
            tile.at = group_start(U, group);
            tile.lanes = group_lanes(U, group);
            tile.dout = (Rows){dout + tile.at - group_start(U, part.first), (means ? means : 1) * tile.lanes};
            EACH_TILE(t, p, id, n, MC)
            {
                if (gates && !one_row) X(multiply)(t.rows, left + t.row, gates, p->Hp, U, group, 0, tile.dout);
                put_means(p, id, means, t.row, t.rows, tile.dout, tile.lanes);
                tile.rows = t.rows;
                backward_tile(p, id, &phase, &tile, t.row);
            }
        }
    }
}

static void note_operand(const Plan *p, int which, ptrdiff_t row, const real *operand)
{
    const Rows copies = p->back.operand_copy[which];
    if (copies.data) copy_row(row_of(copies, row), operand, p->Hp);
    p->back.operand[which][row] = copies.data ? row_of(copies, row) : operand;
}

/* Note for every row of step s what its weight gradients will multiply: x, and each phase's operand. */
static void note_operands(const Plan *p, int id, Chunk chunk, ptrdiff_t s)
{
    const Cell *cell = p->cell;
    const ptrdiff_t first = chunk_row(p, chunk, s);
    const Rows kept = kept_of(p, s);
    EACH_TILE(t, p, id, active_rows(p, s), MC)
        for (ptrdiff_t r = t.row; r < t.row + t.rows; r++) {
            p->scratch[id].prev[r] = states_before(p, s, r);
            if (splits_hidden(p) && id > 0) continue;
            p->back.x_rows[first + r] = element(p, p->call->x, s, r);
            p->back.dx_rows[first + r] = element(p, p->call->dx, s, r);
            for (int q = 0; q < cell->phases; q++) {
                if (!cell->phase_gates[q]) continue;
                const real *operand = p->scratch[id].prev[r] + p->y_field;
                if (cell->operand[q] >= 0) operand = row_of(kept, r) + cell->operand[q] * p->Hp;
                note_operand(p, q, first + r, operand);
            }
            if (projects(p)) note_operand(p, cell->phases, first + r, row_of(states_after(p, s), r));
        }
}

/* By which hidden units are dealt in backward. */
static const Panels *hidden_panels(const Plan *p) { return projects(p) ? &p->back.R : &p->back.U[0]; }

/* The gradients of the extra inputs of step s, this thread's part. */
static void write_de(const Plan *p, int id, ptrdiff_t s)
{
    const Panels *U = hidden_panels(p);
    const ptrdiff_t from = first_unit(p, U, id), to = end_unit(p, U, id), end = to < p->H ? to : p->H;
    for (int k = 0; k < p->cell->inputs; k++)
        EACH_TILE(t, p, id, active_rows(p, s), MC)
            for (ptrdiff_t r = t.row; r < t.row + t.rows; r++)
                if (from < end)
                    copy_row(element(p, p->call->de[k], s, r) + from, row_of(p->back.de, r) + k * p->Hp + from,
                             end - from);
}

/* Whether backward does as scan_steps: nothing comes to other states than the first from outside. */
static int scans_backward(const Plan *p)
{
    int others = 0;
    for (int k = 1; k < p->cell->states; k++) others |= p->call->dout[k].data != 0;
    return scans(p) && !p->call->checkpoint && !others;
}

/* A chunk of such steps, this thread's groups: to the cell, steps are rows, the last one first. */
static void backward_scan(const Plan *p, int id, Chunk chunk)
{
    const frnn_call *call = p->call;
    const Panels *W = &p->back.U[0];
    const real *prev[MC];
    real dout[MC * MAX_NR * LANES] __attribute__((aligned(FRNN_ALIGN)));
    BackwardTile tile = {.Hp = p->Hp, .prev = prev, .carry = {p->back.carry.data, 0}, .p = {p->weights.parameters, 0}};
    for (ptrdiff_t s = chunk.high; s >= chunk.low; s--) note_operands(p, id, chunk, s);
    for (ptrdiff_t group = first_group(p, W, id); group < last_group(p, W, id) && !ended(p); group++) {
        const ptrdiff_t lanes = group_lanes(W, group), at = group_start(W, group), units = group_units(W, group);
        tile.at = at;
        tile.lanes = lanes;
        tile.dout = (Rows){dout, lanes};
        for (ptrdiff_t s = chunk.high; s >= chunk.low; s -= tile.rows) {
            const int last = s == p->steps - 1, begins = last || is_reset(p, s + 1, 0);
            for (int k = 0; begins && k < p->cell->states; k++) {
                real *carry = p->back.carry.data + k * p->Hp + at;
                zero_row(carry, lanes);
                if (last && call->dfinal[k]) copy_row(carry, (const real *)call->dfinal[k] + at, units);
            }
            for (tile.rows = 0; tile.rows < MC && s - tile.rows >= chunk.low; tile.rows++) {
                const ptrdiff_t step = s - tile.rows;
                if (tile.rows && is_reset(p, step + 1, 0)) break;
                real *dh = dout + tile.rows * lanes;
                zero_row(dh, lanes);
                if (call->dout[0].data) copy_row(dh, element(p, call->dout[0], step, 0) + at, units);
                prev[tile.rows] = states_before(p, step, 0);
            }
            const Rows next = states_after(p, s), kept = kept_of(p, s);
            tile.next = (Rows){next.data, -next.stride};
            tile.kept = (Rows){kept.data, -kept.stride};
            tile.da = rows_from(p->back.da, chunk_row(p, chunk, s));
            tile.da_rec = rows_from(p->back.da_rec, chunk_row(p, chunk, s));
            tile.dp = rows_from(p->back.dp, chunk_row(p, chunk, s));
            p->cell->backward[0](&tile);
        }
    }
}

/* Returns whether the threads are to leave the rest to thread 0. */
static int backward_step(const Plan *p, int id, Chunk chunk, ptrdiff_t s)
{
    int leave = 0;
    if (s >= 0) note_operands(p, id, chunk, s);
    if (s >= 0 && p->cell->inputs) X(fill_inputs)(p, id, s, hidden_panels(p));
    if (projects(p)) {
        backward_projection(p, id, chunk, s);
        end_phase(p); /* a phase follows */
    }
    for (int q = p->cell->phases - 1; q >= (s < 0 ? p->cell->phases - 1 : 0); q--) {
        backward_phase(p, id, chunk, s, q);
        leave = end_phase(p);
    }
    if (s >= 0 && p->cell->inputs) write_de(p, id, s);
    return leave;
}

/* Recompute the states and gates of the segment that ends with step s. Returns as run_steps does. */
static int recompute(const Plan *p, int id, ptrdiff_t s)
{
    const ptrdiff_t start = segment_start(p, s);
    const Rows from = rows_from(p->checkpoints, start / p->segment * p->B);
    frnn_team_barrier(p->threads); /* wait until no thread reads the previous segment, whose rows lie elsewhere */
    if (start > 0 && (!splits_hidden(p) || id == 0))
        EACH_TILE(t, p, id, active_rows(p, start - 1), MC)
            for (ptrdiff_t r = t.row; r < t.row + t.rows; r++)
                copy_row(row_of(p->states, r), row_of(from, r), p->fields * p->Hp);
    if (splits_hidden(p)) frnn_team_barrier(p->threads);
    return X(run_steps)(p, id, start, s + 1);
}

/* Pack the weights for products with gate gradients. */
static void pack_transposed(const Plan *p, int id)
{
    const frnn_call *call = p->call;
    const ptrdiff_t columns = recurrent_columns(call);
    if (call->checkpoint && !call->packed) X(fill_panels)(&p->weights, call, id, p->threads, 0);
    if (!packs_W_back_late(p)) X(pack)(&p->back.W, id, p->threads, call->W, 0, 1, p->I);
    for (int q = 0; q < p->cell->phases; q++)
        X(pack)(&p->back.U[q], id, p->threads, (const real *)call->U + first_product(p->cell, q) * p->H * columns, 0, 1,
                columns);
    X(pack)(&p->back.R, id, p->threads, call->R, 0, 1, p->H);
}

/* Zero what is only added to, and what no chunk writes. */
static void zero_sums(const Plan *p)
{
    const frnn_call *call = p->call;
    const ptrdiff_t gates = p->cell->gates * p->H, products = products_of(p->cell) * p->H;
    if (p->steps == 0) {
        zero_row(call->dW, gates * p->I);
        if (products) zero_row(call->dU, products * recurrent_columns(call));
        if (call->P) zero_row(call->dR, call->P * p->H);
    }
    memset(p->back.db, 0, (size_t)gates * sizeof *p->back.db);
    if (p->cell->split) memset(p->back.db_rec, 0, (size_t)products * sizeof *p->back.db_rec);
    memset(p->back.dp_sums, 0, (size_t)(p->cell->parameters * p->H) * sizeof *p->back.dp_sums);
}

/* Zero the gradients of padded steps; those of an empty sequence's initial state are those of its final state. */
static void fill_padding_gradients(const Plan *p, int id)
{
    const frnn_call *call = p->call;
    for (ptrdiff_t row = share(p->B, id, p->threads); row < share(p->B, id + 1, p->threads); row++) {
        const ptrdiff_t b = p->sequence[row];
        for (ptrdiff_t time = call->T - padding_of(p, row); time < call->T; time++) {
            zero_step(call->dx, time, b, p->I);
            for (int k = 0; k < p->cell->inputs; k++) zero_step(call->de[k], time, b, p->H);
        }
        for (int k = 0; k < p->cell->states && p->length[row] == 0; k++) {
            if (!call->dinit[k]) continue;
            const ptrdiff_t width = width_of(p, k);
            real *to = (real *)call->dinit[k] + b * width;
            if (call->dfinal[k])
                copy_row(to, (const real *)call->dfinal[k] + b * width, width);
            else
                zero_row(to, width);
        }
    }
}

void X(backward_job)(void *arg, int id)
{
    const Plan *p = arg;
    Plan alone;
    pack_transposed(p, id);
    if (id == 0) zero_sums(p);
    fill_padding_gradients(p, id);
    frnn_team_barrier(p->threads);
    ptrdiff_t ready = p->call->checkpoint ? p->steps : 0; /* gates of steps [ready, ...) are at hand */
    Chunk chunk = {0, 0};
    for (chunk.high = p->steps - 1; chunk.high >= 0; chunk.high = chunk.low - 1) {
        chunk.low = chunk.high;
        while (chunk.low > 0 && p->before[chunk.high + 1] - p->before[chunk.low - 1] <= p->back.rows) chunk.low--;
        if (scans_backward(p)) backward_scan(p, id, chunk);
        for (ptrdiff_t s = chunk.high; s >= chunk.low && !scans_backward(p); s--) {
            const int leaves = s < ready && recompute(p, id, s);
            if (s < ready) ready = segment_start(p, s);
            if (leaves || backward_step(p, id, chunk, s)) {
                if (id > 0) return;
                alone = left_alone(p);
                p = &alone;
                if (leaves) backward_step(p, 0, chunk, s);
            }
        }
        X(finish_chunk)(p, id, chunk);
    }
    chunk.high = -1; /* step 0 is behind us: its gate gradients are the ones kept before */
    backward_step(p, id, chunk, -1);
    if (id == 0) X(write_sums)(p);
}
