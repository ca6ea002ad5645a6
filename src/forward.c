/* The forward driver: for every step and phase, product and pointwise function on one tile after the other; after the
 * last phase the projection, if any.
 *
 * The outer loop runs over panels, the inner one over tiles of rows: a panel is read from memory once per step, and a
 * tile's product stays in L1 until the cell has used it.
 */
#include "drive.h"
#include "team.h"

/* Where a chunk that begins with step `from` ends, at `to` at the latest: its rows find room. */
static ptrdiff_t chunk_end(const Plan *p, ptrdiff_t from, ptrdiff_t to)
{
    ptrdiff_t end = from, rows = 0;
    if (to - from > p->chunk) to = from + p->chunk;
    if (p->before[to] - p->before[from] <= p->chunk_rows) return to;
    for (; end < to; end++) {
        const ptrdiff_t active = active_rows(p, end);
        rows += active < p->own_rows ? active : p->own_rows;
        if (rows > p->chunk_rows) break;
    }
    return end;
}

/* List the inputs of steps [from, to): this thread's rows, step by step. Returns how many. */
static ptrdiff_t list_inputs(const Plan *p, int id, ptrdiff_t from, ptrdiff_t to)
{
    const Scratch *scratch = &p->scratch[id];
    ptrdiff_t rows = 0;
    for (ptrdiff_t s = from; s < to; s++) {
        scratch->wx_start[s - from] = rows;
        EACH_TILE(t, p, id, active_rows(p, s), MC)
            for (int i = 0; i < t.rows; i++) scratch->x_rows[rows++] = element(p, p->call->x, s, t.row + i);
    }
    return rows;
}

/* W x + b of one group for the inputs listed. */
static void input_product(const Plan *p, int id, ptrdiff_t group, ptrdiff_t rows, Rows wx)
{
    const Panels *W = &p->weights.W;
    const real *bias = p->weights.bias + group_start(W, group) * p->cell->gates;
    Panels one;
    if (packs_W_late(p)) {
        const ptrdiff_t I = p->I, room = group_start(W, first_group(p, W, id)) * W->gates * panel_rows(W);
        one = one_group(W, group, W->data + room);
        X(pack)(&one, 0, 1, (const real *)p->call->W + group_start(W, group) * I, p->H * I, I, 1);
        W = &one;
        group = 0;
    }
    for (ptrdiff_t row = 0; row < rows; row += MC) {
        const ptrdiff_t n = rows - row < MC ? rows - row : MC;
        X(multiply)(n, p->scratch[id].x_rows + row, 1, 0, W, group, bias, rows_from(wx, row));
    }
}

/* Groups at a time, with one row: chains enough for the cell, and parts small enough for `part_at`. Products with int8
 * weights round the row each time. */
INLINE ptrdiff_t groups_at_once(const Plan *p) { return p->call->format == FRNN_INT8 ? 16 : 8; }

/* The same of all this thread's groups, from step s on. */
static void input_products(const Plan *p, int id, ptrdiff_t s, ptrdiff_t rows)
{
    const Panels *W = &p->weights.W;
    const int gates = p->cell->gates;
    const Parts parts = parts_of(p, W, id, groups_at_once(p));
    const Rows wx = {p->scratch[id].wx, gates * p->Hp};
    if (rows > 1 || packs_W_late(p)) {
        for (ptrdiff_t group = parts.first; group < parts.end; group++)
            input_product(p, id, group, rows, rows_at(wx, group_start(W, group) * gates));
        return;
    }
    for (ptrdiff_t turn = 0; turn < parts.n; turn++) {
        const Groups part = part_at(p, &parts, s, turn);
        const ptrdiff_t at = group_start(W, part.first) * gates;
        X(multiply_row)(p->scratch[id].x_rows[0], 1, 0, W, part.first, part.end, p->weights.bias + at, wx.data + at);
    }
}

/* Copy n units, whole vectors where that is all there is. */
INLINE void copy_units(real *to, const real *from, ptrdiff_t n)
{
    if (n % LANES == 0)
        for (ptrdiff_t i = 0; i < n; i += LANES) store(to + i, load(from + i));
    else
        copy_row(to, from, n);
}

/* Copy n units of a state of the tile's rows to one of the caller's arrays. */
static void deliver_rows(const Plan *p, const ForwardTile *tile, frnn_array to, const real *from, ptrdiff_t s,
                         ptrdiff_t row, ptrdiff_t n)
{
    real *const base = (real *)to.data + p->place[s] * to.step + tile->at;
    const ptrdiff_t *const sequence = p->sequence + row, stride = tile->next.stride;
    for (int i = 0; i < tile->rows; i++) copy_units(base + sequence[i] * to.row, from + i * stride, n);
}

/* Copy states [first, end) of a finished tile to the caller's arrays. */
static void deliver(const Plan *p, const ForwardTile *tile, ptrdiff_t s, ptrdiff_t row, int first, int end)
{
    const frnn_call *call = p->call;
    const real *const state = tile->next.data + tile->at;
    const int goes_on = s < last_step(p, row + tile->rows - 1); /* the shortest of the sequences */
    for (int k = first; k < end; k++) {
        if (goes_on && !call->out[k].data) continue;
        const ptrdiff_t width = width_of(p, k), rest = width - tile->at, n = rest < tile->lanes ? rest : tile->lanes;
        const real *const from = state + field_of(p, k);
        if (call->out[k].data) deliver_rows(p, tile, call->out[k], from, s, row, n);
        for (int i = 0; i < tile->rows && !goes_on && call->final[k]; i++)
            if (s == last_step(p, row + i))
                copy_units((real *)call->final[k] + p->sequence[row + i] * width + tile->at,
                           from + i * tile->next.stride, n);
    }
}

/* The first of the states that are final after a step's last phase: state 0 is not if it is projected. */
INLINE int first_ready(const Plan *p) { return projects(p) ? 1 : 0; }

/* One step: where its segment begins, and W x + b of its rows. Where `inputs` are listed instead, that product is made
 * group by group, in a strip that stays in L2. */
typedef struct {
    ptrdiff_t s;
    real *wx;
    ptrdiff_t inputs;
} Step;

INLINE Rows wx_of(const Plan *p, const Step *step, const ForwardTile *tile)
{
    const int gates = p->cell->gates;
    return (Rows){step->wx + tile->at * gates, gates * p->Hp};
}

enum { TILE_ROOM = MC * MAX_GROUP_VECTORS }; /* vectors of a product that wait for the cell */

/* One phase of a step that has one row. Its groups are to the cell what rows are otherwise: alone, a group's chain of
 * operations would leave the core waiting. */
static void run_row(const Plan *p, int id, const Step *step, int q, const real *left)
{
    const Panels *U = &p->weights.U[q], *W = &p->weights.W;
    const int gates = p->cell->phase_gates[q];
    const Parts parts = parts_of(p, W, id, groups_at_once(p));
    const Rows next = states_after(p, step->s), kept = kept_of(p, step->s);
    const real *prev[MC];
    real uh[TILE_ROOM * LANES] __attribute__((aligned(FRNN_ALIGN)));
    ForwardTile tile = {.Hp = p->Hp, .prev = prev, .keep = p->keeps};
    for (ptrdiff_t turn = 0; turn < parts.n; turn++) {
        const Groups part = part_at(p, &parts, step->s, turn);
        if (gates) X(multiply_row)(left, 1, 0, U, part.first, part.end, 0, uh);
        tile.uh.data = uh;
        for (ptrdiff_t g = part.first; g < part.end; g += tile.rows) {
            const ptrdiff_t lanes = group_lanes(W, g);
            tile.at = group_start(W, g);
            tile.lanes = lanes;
            tile.rows = (int)(part.end - g);
            if (group_lanes(W, part.end - 1) != lanes) tile.rows--; /* the last may be smaller */
            for (int i = 0; i < tile.rows; i++) prev[i] = p->scratch[id].prev[0] + i * lanes;
            tile.uh.stride = gates * lanes;
            tile.wx = (Rows){wx_of(p, step, &tile).data, p->cell->gates * lanes};
            tile.next = (Rows){next.data, lanes};
            tile.kept = (Rows){kept.data, lanes};
            tile.b_rec = (Rows){p->weights.b_rec, lanes};
            tile.p = (Rows){p->weights.parameters, lanes};
            tile.e = (Rows){p->e.data, lanes};
            p->cell->forward[q](&tile);
            tile.uh.data += tile.rows * tile.uh.stride;
        }
    }
    if (q < p->cell->phases - 1) return;
    tile.rows = 1;
    tile.at = group_start(W, parts.first);
    tile.lanes = (parts.end < W->groups ? group_start(W, parts.end) : p->Hp) - tile.at;
    deliver(p, &tile, step->s, 0, first_ready(p), p->cell->states);
}

/* One phase of a step: this thread's groups and rows. */
static void run_rows(const Plan *p, int id, const Step *step, int q, const real *const *left)
{
    const Cell *cell = p->cell;
    const Panels *U = &p->weights.U[q], *W = &p->weights.W;
    const ptrdiff_t n = active_rows(p, step->s), s = step->s;
    const Rows next = states_after(p, s), kept = kept_of(p, s);
    real uh[TILE_ROOM * LANES] __attribute__((aligned(FRNN_ALIGN)));
    ForwardTile tile = {.Hp = p->Hp, .keep = p->keeps};
    tile.b_rec = (Rows){p->weights.b_rec, 0};
    tile.p = (Rows){p->weights.parameters, 0};
    const Parts parts = parts_of(p, W, id, 1);
    for (ptrdiff_t turn = 0; turn < parts.n; turn++) {
        const ptrdiff_t group = part_at(p, &parts, s, turn).first;
        tile.at = group_start(W, group);
        tile.lanes = group_lanes(W, group);
        tile.uh = (Rows){uh, (cell->phase_gates[q] + cell->phase_means[q]) * tile.lanes};
        Rows wx = wx_of(p, step, &tile);
        if (step->inputs) {
            wx = (Rows){p->scratch[id].wx, cell->gates * tile.lanes};
            input_product(p, id, group, step->inputs, wx);
        }
        EACH_TILE(t, p, id, n, MC)
        {
            /* prefetch y while the product runs */
            if (p->call->out[0].data && q == cell->phases - 1 && !projects(p))
                for (int i = 0; i < t.rows; i++)
                    __builtin_prefetch(element(p, p->call->out[0], s, t.row + i) + tile.at, 1);
            if (cell->phase_gates[q]) X(multiply)(t.rows, left + t.row, 1, 0, U, group, 0, tile.uh);
            put_means(p, id, cell->phase_means[q], t.row, t.rows, tile.uh, tile.lanes);
            tile.rows = t.rows;
            tile.wx = rows_from(wx, t.local);
            tile.prev = p->scratch[id].prev + t.row;
            tile.next = rows_from(next, t.row);
            tile.kept = rows_from(kept, t.row);
            tile.made = rows_from(p->made, t.row);
            tile.e = rows_from(p->e, t.row);
            cell->forward[q](&tile);
            if (q == cell->phases - 1) deliver(p, &tile, s, t.row, first_ready(p), cell->states);
        }
    }
}

static void run_phase(const Plan *p, int id, const Step *step, int q)
{
    const Scratch *scratch = &p->scratch[id];
    const ptrdiff_t n = active_rows(p, step->s);
    if (ended(p)) return;
    const int reads_kept = p->cell->phase_gates[q] && p->cell->operand[q] >= 0, means = p->cell->phase_means[q];
    if (means) X(take_means)(p, id, n, rows_at(p->made, first_mean(p->cell, q) * p->Hp), means);
    if (reads_kept) {
        const Rows operand = rows_at(kept_of(p, step->s), p->cell->operand[q] * p->Hp);
        EACH_TILE(t, p, id, n, MC)
            for (int i = 0; i < t.rows; i++) scratch->left[t.row + i] = row_of(operand, t.row + i);
    }
    if (!reads_kept && projects(p))
        EACH_TILE(t, p, id, n, MC)
            for (int i = 0; i < t.rows; i++) scratch->left[t.row + i] = scratch->prev[t.row + i] + p->y_field;
    const real *const *left = reads_kept || projects(p) ? scratch->left : scratch->prev;
    if (n == 1 && p->owners == 1 && !step->inputs && !p->made.data)
        run_row(p, id, step, q, left[0]);
    else
        run_rows(p, id, step, q, left);
}

/* The projection of a step's first state: this thread's groups and rows. */
static void project(const Plan *p, int id, const Step *step)
{
    const Panels *R = &p->weights.R;
    const ptrdiff_t n = active_rows(p, step->s);
    const Rows next = states_after(p, step->s);
    const real **left = p->scratch[id].left;
    if (ended(p)) return;
    EACH_TILE(t, p, id, n, MC)
        for (int i = 0; i < t.rows; i++) left[t.row + i] = row_of(next, t.row + i);
    for (ptrdiff_t group = first_group(p, R, id); group < last_group(p, R, id); group++) {
        ForwardTile tile = {.at = group_start(R, group), .lanes = group_lanes(R, group)};
        EACH_TILE(t, p, id, n, MC)
        {
            tile.rows = t.rows;
            tile.next = rows_from(next, t.row);
            X(multiply)(t.rows, left + t.row, 1, 0, R, group, 0, rows_at(tile.next, p->y_field + tile.at));
            deliver(p, &tile, step->s, t.row, 0, 1);
        }
    }
}

/* Steps [from, to) of one sequence whose units do not see each other, this thread's groups. To the cell, steps are
 * rows, each of which begins with what the one before it wrote. */
static void scan_steps(const Plan *p, int id, ptrdiff_t from, ptrdiff_t to)
{
    const Cell *cell = p->cell;
    const Panels *W = &p->weights.W;
    const real *prev[MC];
    ForwardTile tile = {.Hp = p->Hp, .keep = 1, .prev = prev, .p = {p->weights.parameters, 0}};
    for (ptrdiff_t group = first_group(p, W, id); group < last_group(p, W, id) && !ended(p); group++) {
        tile.at = group_start(W, group);
        tile.lanes = group_lanes(W, group);
        for (ptrdiff_t s = from; s < to; s += MC) {
            const int m = (int)(to - s < MC ? to - s : MC);
            const Step step = {.wx = p->scratch[id].wx + (s - from) * cell->gates * p->Hp};
            for (int i = 0; i < m; i++) prev[i] = states_before(p, s + i, 0);
            tile.rows = m;
            tile.wx = wx_of(p, &step, &tile);
            tile.next = states_after(p, s);
            tile.kept = kept_of(p, s);
            cell->forward[0](&tile);
            tile.rows = 1;
            for (int i = 0; i < m; i++, tile.next = rows_from(tile.next, 1))
                deliver(p, &tile, s + i, 0, 0, cell->states);
        }
    }
}

int X(run_steps)(const Plan *p, int id, ptrdiff_t from, ptrdiff_t to)
{
    const Scratch *scratch = &p->scratch[id];
    for (ptrdiff_t s = from, chunk = from, end = from; s < to; s++) {
        Step step = {.s = s};
        if (s == end) {
            chunk = s;
            end = chunk_end(p, s, to);
            if (p->below) frnn_team_await(p->below, end);
            const ptrdiff_t inputs = list_inputs(p, id, s, end);
            /* A later phase would want its inputs again; a single row has no strip to keep in L2. */
            if (end == s + 1 && p->cell->phases == 1 && active_rows(p, s) > 1)
                step.inputs = inputs;
            else if (inputs && !ended(p))
                input_products(p, id, s, inputs);
            if (scans(p) && p->keeps) { /* every step's states stay */
                scan_steps(p, id, s, end);
                if (p->done) frnn_team_reach(p->done, end);
                s = end - 1;
                continue;
            }
        }
        EACH_TILE(t, p, id, active_rows(p, s), MC)
            for (int i = 0; i < t.rows; i++) scratch->prev[t.row + i] = states_before(p, s, t.row + i);
        if (p->cell->inputs) X(fill_inputs)(p, id, s, &p->weights.W);
        step.wx = scratch->wx + scratch->wx_start[s - chunk] * p->cell->gates * p->Hp;
        int leave = 0;
        for (int q = 0; q < p->cell->phases; q++) {
            run_phase(p, id, &step, q);
            leave = end_phase(p);
        }
        if (projects(p)) {
            project(p, id, &step);
            leave = end_phase(p);
        }
        if (leave) {
            const Plan alone = left_alone(p);
            if (id == 0) X(run_steps)(&alone, 0, s + 1, to);
            return 1;
        }
        if (p->done) frnn_team_reach(p->done, s + 1);
    }
    return 0;
}

/* Keep the states before step s, this thread's rows (or all of them, by the first of threads that split H). */
static void save_checkpoint(const Plan *p, int id, ptrdiff_t s)
{
    const Rows to = rows_from(p->checkpoints, s / p->segment * p->B), from = states_after(p, s - 1);
    if (splits_hidden(p) && id > 0) return;
    EACH_TILE(t, p, id, active_rows(p, s - 1), MC)
        for (int i = 0; i < t.rows; i++)
            copy_row(row_of(to, t.row + i), row_of(from, t.row + i), p->fields * p->Hp);
}

/* Zero the outputs of padded steps; the final state of an empty sequence is its initial state. */
static void fill_padding(const Plan *p, int id)
{
    const frnn_call *call = p->call;
    for (ptrdiff_t row = share(p->B, id, p->threads); row < share(p->B, id + 1, p->threads); row++)
        for (int k = 0; k < p->cell->states; k++) {
            const ptrdiff_t b = p->sequence[row], width = width_of(p, k);
            for (ptrdiff_t time = call->T - padding_of(p, row); call->out[k].data && time < call->T; time++)
                zero_step(call->out[k], time, b, width);
            if (p->length[row] == 0 && call->final[k])
                copy_row((real *)call->final[k] + b * width, row_of(p->init, row) + field_of(p, k), width);
        }
}

void X(forward_job)(void *arg, int id)
{
    const Plan *p = arg;
    Plan alone;
    fill_padding(p, id);
    if (!p->call->packed) {
        X(fill_panels)(&p->weights, p->call, id, p->threads, packs_W_late(p));
        frnn_team_barrier(p->threads);
    }
    for (ptrdiff_t s = 0; s < p->steps; s += p->segment) {
        if (s > 0) save_checkpoint(p, id, s);
        if (X(run_steps)(p, id, s, s + p->segment < p->steps ? s + p->segment : p->steps)) {
            if (id > 0) return;
            alone = left_alone(p);
            p = &alone;
        }
    }
}
