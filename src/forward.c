/* The forward driver: for every step and phase, product and pointwise function on one tile after the other.
 *
 * Panels are outside, tiles of rows inside, so that a panel is read once a step from wherever it lives and a tile's
 * product never leaves L1 before the cell has used it.
 */
#include "drive.h"
#include "team.h"

enum { MAX_GROUP_VECTORS = 2 * MAX_VECTORS };

/* List the inputs of steps [from, to): this thread's rows, step by step. Returns how many. */
static ptrdiff_t list_inputs(const Plan *p, int id, ptrdiff_t from, ptrdiff_t to)
{
    const Scratch *scratch = &p->scratch[id];
    ptrdiff_t rows = 0;
    for (ptrdiff_t s = from; s < to; s++) {
        scratch->wx_start[s - from] = rows;
        EACH_TILE(t, p, id, active_rows(p, s), ROWS_ONCE)
            for (int i = 0; i < t.rows; i++) scratch->x_rows[rows++] = element(p, p->call->x, s, t.row + i);
    }
    return rows;
}

/* W x + b of one group for the inputs listed. */
static void input_product(const Plan *p, int id, ptrdiff_t group, ptrdiff_t rows, Rows wx)
{
    for (ptrdiff_t row = 0; row < rows; row += ROWS_ONCE) {
        const ptrdiff_t n = rows - row < ROWS_ONCE ? rows - row : ROWS_ONCE;
        X(multiply)(n, p->scratch[id].x_rows + row, 1, 0, &p->weights.W, group,
                    p->weights.bias + group_start(&p->weights.W, group) * p->cell->gates, rows_from(wx, row));
    }
}

/* Copy n units, whole vectors where that is all there is. */
INLINE void copy_units(real *to, const real *from, ptrdiff_t n)
{
    if (n % LANES == 0)
        for (ptrdiff_t i = 0; i < n; i += LANES) store(to + i, load(from + i));
    else
        memcpy(to, from, (size_t)n * sizeof(real));
}

/* Copy a finished tile's states to the caller's arrays. */
static void deliver(const Plan *p, const ForwardTile *t, ptrdiff_t s, ptrdiff_t row)
{
    const frnn_call *call = p->call;
    const ptrdiff_t left = p->H - t->at, n = left < t->lanes ? left : t->lanes;
    for (int i = 0; i < t->rows; i++) {
        const real *h = row_of(t->next, i) + t->at;
        if (call->y.data) copy_units(element(p, call->y, s, row + i) + t->at, h, n);
        if (call->c.data) copy_units(element(p, call->c, s, row + i) + t->at, h + p->Hp, n);
        for (int k = 0; k < p->cell->states && s == last_step(p, row + i); k++)
            if (call->final[k])
                copy_units((real *)call->final[k] + p->sequence[row + i] * p->H + t->at, h + k * p->Hp, n);
    }
}

/* One phase of step s: this thread's groups and rows. The step's inputs are in wx; or, where `inputs` of them are
 * listed, their product is made here group by group, in a strip that stays in L2. */
static void run_phase(const Plan *p, int id, ptrdiff_t start, ptrdiff_t s, int q, const real *wx, ptrdiff_t inputs)
{
    const Cell *cell = p->cell;
    const Scratch *scratch = &p->scratch[id];
    const Panels *U = &p->weights.U[q];
    const Rows next = states_after(p, s, start), kept = kept_of(p, s, start);
    const ptrdiff_t n = active_rows(p, s);
    const real *const *left = q ? scratch->left : scratch->prev;
    real uh[ROWS_ONCE * MAX_GROUP_VECTORS * LANES] __attribute__((aligned(FRNN_ALIGN)));
    ForwardTile tile = {.Hp = p->Hp, .b_rec = p->weights.b_rec, .p = p->weights.p};
    if (q)
        EACH_TILE(t, p, id, n, ROWS_ONCE)
            for (int i = 0; i < t.rows; i++) scratch->left[t.row + i] = row_of(kept, t.row + i) + cell->mid * p->Hp;
    for (ptrdiff_t group = first_group(p, U, id); group < last_group(p, U, id); group++) {
        tile.at = group_start(U, group);
        tile.lanes = group_lanes(U, group);
        tile.uh = (Rows){uh, cell->phase_gates[q] * tile.lanes};
        Rows wx_group = {(real *)wx + tile.at * cell->gates + first_gate(cell, q) * tile.lanes, cell->gates * p->Hp};
        if (inputs) {
            wx_group = (Rows){scratch->wx, cell->gates * tile.lanes};
            input_product(p, id, group, inputs, wx_group);
        }
        EACH_TILE(t, p, id, n, ROWS_ONCE)
        {
            if (p->call->y.data && q == cell->phases - 1) /* y comes from memory: ask for it while the product runs */
                for (int i = 0; i < t.rows; i++) __builtin_prefetch(element(p, p->call->y, s, t.row + i) + tile.at, 1);
            X(multiply)(t.rows, left + t.row, 1, 0, U, group, 0, tile.uh);
            tile.rows = t.rows;
            tile.wx = rows_from(wx_group, t.local);
            tile.prev = scratch->prev + t.row;
            tile.next = rows_from(next, t.row);
            tile.gates = rows_from(kept, t.row);
            cell->forward[q](&tile);
            if (q == cell->phases - 1) deliver(p, &tile, s, t.row);
        }
    }
}

void X(run_steps)(const Plan *p, int id, ptrdiff_t start, ptrdiff_t from, ptrdiff_t to)
{
    const Scratch *scratch = &p->scratch[id];
    const int at_once = p->chunk == 1 && p->cell->phases == 1; /* a later phase would want its inputs again */
    for (ptrdiff_t s = from; s < to; s++) {
        const ptrdiff_t n = active_rows(p, s), in_chunk = (s - from) % p->chunk;
        ptrdiff_t inputs = 0;
        if (in_chunk == 0) {
            const ptrdiff_t end = s + p->chunk < to ? s + p->chunk : to;
            if (p->below) frnn_team_await(p->below, end);
            inputs = list_inputs(p, id, s, end);
        }
        for (ptrdiff_t group = first_group(p, &p->weights.W, id); !at_once && inputs && group < last_group(p, &p->weights.W, id); group++)
            input_product(p, id, group, inputs,
                          (Rows){scratch->wx + group_start(&p->weights.W, group) * p->cell->gates, p->cell->gates * p->Hp});
        EACH_TILE(t, p, id, n, ROWS_ONCE)
            for (int i = 0; i < t.rows; i++) scratch->prev[t.row + i] = states_before(p, s, start, t.row + i);
        const real *wx = scratch->wx + scratch->wx_start[in_chunk] * p->cell->gates * p->Hp;
        for (int q = 0; q < p->cell->phases; q++) {
            run_phase(p, id, start, s, q, wx, at_once ? inputs : 0);
            if (splits_hidden(p)) frnn_team_barrier(p->threads);
        }
        if (p->done) frnn_team_reach(p->done, s + 1);
    }
}

/* Keep the states before step s, this thread's rows (or all of them, by the first of threads that split H). */
static void save_checkpoint(const Plan *p, int id, ptrdiff_t s)
{
    const Rows to = rows_from(p->checkpoints, s / p->segment * p->B), from = states_after(p, s - 1, 0);
    if (splits_hidden(p) && id > 0) return;
    EACH_TILE(t, p, id, active_rows(p, s - 1), ROWS_ONCE)
        for (int i = 0; i < t.rows; i++)
            memcpy(row_of(to, t.row + i), row_of(from, t.row + i),
                   (size_t)(p->cell->states * p->Hp) * sizeof(real));
}

/* Outputs of steps that a sequence does not have are 0; of a sequence without steps, the initial state is the final. */
static void fill_padding(const Plan *p, int id)
{
    const frnn_call *call = p->call;
    const frnn_array outputs[] = {call->y, call->c};
    const size_t bytes = (size_t)p->H * sizeof(real);
    for (ptrdiff_t row = share(p->B, id, p->threads); row < share(p->B, id + 1, p->threads); row++) {
        const ptrdiff_t b = p->sequence[row];
        for (int k = 0; k < 2; k++)
            for (ptrdiff_t t = p->length[row]; outputs[k].data && t < call->T; t++)
                memset((real *)outputs[k].data + t * outputs[k].step + b * outputs[k].row, 0, bytes);
        for (int k = 0; k < p->cell->states && p->length[row] == 0; k++)
            if (call->final[k]) memcpy((real *)call->final[k] + b * p->H, row_of(p->init, row) + k * p->Hp, bytes);
    }
}

void X(forward_job)(void *arg, int id)
{
    const Plan *p = arg;
    fill_padding(p, id);
    if (!p->call->packed) {
        X(fill_panels)(&p->weights, p->call, id, p->threads);
        frnn_team_barrier(p->threads);
    }
    if (!p->checkpoints.data) {
        X(run_steps)(p, id, 0, 0, p->steps);
        return;
    }
    for (ptrdiff_t s = 0; s < p->steps; s += p->segment) {
        if (s > 0) save_checkpoint(p, id, s);
        X(run_steps)(p, id, 0, s, s + p->segment < p->steps ? s + p->segment : p->steps);
    }
}
