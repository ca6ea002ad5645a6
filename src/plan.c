#include "plan.h"

#include "mean.h"
#include "team.h"

enum {
    CHUNK_BYTES = 256 << 10, /* of wx a thread: stays in its L2 beside the panels */
    CHUNK_ROWS = 512,        /* of a weight-gradient product: enough to repay reading and writing dW once a chunk */
    WIDE = 256,              /* columns of [dW dU] that repay packing the gate gradients, by measurement */
};

static const double WORTH_ASKING = 1e9;  /* least flop of an interruptible call: some 10 ms */
static const double WORTH_BARRIER = 2e5; /* least flop of a step that justify a barrier, some 0.2 us */
enum {
    LEAST_ROWS = 4, /* a thread: fewer stream the weights too often for their work; */
    LEAST_FAR = 16, /* where the weights do not stay in a core's L2, and splitting them halves what each must fetch */
    FAR_BYTES = 1 << 20,
    ROWS_DEALT = 8, /* at a time where lengths differ, so that every thread gets long ones and short ones */
};

static ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* K by N, to be multiplied from the left; one gate. */
static Panels take_matrix(Arena *arena, ptrdiff_t K, ptrdiff_t N)
{
    return take_panels(arena, (Panels){.K = K, .units = N, .gates = 1, .group_vectors = NR});
}

static ptrdiff_t longest(const frnn_call *call)
{
    if (!call->lengths) return call->B ? call->T : 0;
    ptrdiff_t most = 0;
    for (ptrdiff_t b = 0; b < call->B; b++)
        if (call->lengths[b] > most) most = call->lengths[b];
    return most;
}

/* The most rows that n steps one after another have together: in no sequence are more than n of its own. */
static ptrdiff_t rows_of_steps(const frnn_call *call, ptrdiff_t n)
{
    if (!call->lengths) return n * call->B;
    ptrdiff_t rows = 0;
    for (ptrdiff_t b = 0; b < call->B; b++) rows += least(call->lengths[b], n);
    return rows;
}

/* Steps between checkpoints, or all of them; at least 1. */
static ptrdiff_t segment_length(const frnn_call *call, ptrdiff_t steps)
{
    if (call->checkpoint && call->checkpoint < steps) return call->checkpoint;
    return steps ? steps : 1;
}

/* Begin a plan with what follows from the call's sizes. */
static void begin(Plan *p, const frnn_call *call)
{
    const int states = call->cell->states;
    *p = (Plan){.call = call, .cell = call->cell, .steps = longest(call), .B = call->B, .I = call->I, .H = call->H};
    p->Hp = padded(p->H);
    p->fields = call->P ? states + 1 : states;
    p->y_field = call->P ? states * p->Hp : 0;
    p->y_width = call->P ? call->P : p->H;
    p->rows = rows_of_steps(call, p->steps);
    p->segment = segment_length(call, p->steps);
}

/* n rows of what the cell keeps. */
static Rows take_kept(const Plan *p, Arena *arena, ptrdiff_t n)
{
    const ptrdiff_t same = (p->cell->kept_same * LANES + p->Hp - 1) / p->Hp; /* in whole fields */
    return take_rows(arena, n, p->cell->kept + same, p->Hp);
}

/* What a training forward saves for backward: the states after every step and its gates, or the checkpoints. */
static void take_saved(Plan *p, Arena *arena)
{
    const frnn_call *call = p->call;
    if (call->checkpoint)
        p->checkpoints = take_rows(arena, (p->steps / p->segment + 1) * p->B, p->fields, p->Hp);
    else {
        p->states = take_rows(arena, p->B + p->rows, p->fields, p->Hp);
        p->kept = take_kept(p, arena, p->rows);
    }
}

/* Rows are dealt when every thread gets a few of them; else hidden groups, if a step's product outweighs a barrier. */
static void share_out(Plan *p, int threads)
{
    const frnn_call *call = p->call;
    const int products = products_of(p->cell);
    p->waits = p->cell->phases > 1 || products || call->checkpoint;
    const ptrdiff_t columns = recurrent_columns(call);
    const double product = 2.0 * (products * columns + call->P) * p->H, step = product * p->B;
    const double input = 2.0 * p->cell->gates * p->H * p->I;
    if (threads > FRNN_MAX_THREADS) threads = FRNN_MAX_THREADS;
    p->flop = (product + input) * (double)p->rows;
    p->stop = p->flop < WORTH_ASKING ? 0 : call->stop;
    if (p->flop < WORTH_THREADS) threads = 1;
    const ptrdiff_t weights = (products * columns + p->cell->gates * p->I) * p->H * (ptrdiff_t)sizeof(real);
    const ptrdiff_t by_rows = least(threads, p->B / (weights > FAR_BYTES ? LEAST_FAR : LEAST_ROWS));
    const ptrdiff_t by_groups = p->waits && step < WORTH_BARRIER ? 1 : least(threads, p->weights.W.groups);
    const int deal_rows = by_rows >= by_groups;
    p->threads = (int)(deal_rows ? by_rows : by_groups);
    if (p->threads < 1) p->threads = 1;
    p->owners = deal_rows ? p->threads : 1;
    p->dealt = (p->B + p->owners - 1) / p->owners;
    if (call->lengths && p->owners > 1) p->dealt = least(p->dealt, ROWS_DEALT);
    if (p->dealt < 1) p->dealt = 1;
}

static void take_forward(Plan *p, Arena *arena, int scratch_only)
{
    const Cell *cell = p->cell;
    const ptrdiff_t deals = (p->B + p->dealt - 1) / p->dealt;
    const ptrdiff_t mine = (deals + p->owners - 1) / p->owners * p->dealt;
    const ptrdiff_t row_bytes = cell->gates * p->Hp * (ptrdiff_t)sizeof(real);
    ptrdiff_t whole = mine ? CHUNK_BYTES / (mine * row_bytes) : 1; /* steps that all sequences have */
    if (mine && whole < MC / mine) whole = MC / mine; /* large weights: W comes from afar */
    if (whole < 1) whole = 1;
    p->own_rows = mine;
    p->chunk = p->steps;
    p->chunk_rows = least(whole, p->steps) * mine;
    for (int i = 0; i < p->threads; i++) {
        Scratch s = {0};
        if (!scratch_only) {
            s.wx_start = take(arena, (size_t)p->chunk * sizeof *s.wx_start);
            s.x_rows = take(arena, (size_t)p->chunk_rows * sizeof *s.x_rows);
            s.wx = take_reals(arena, p->chunk_rows * cell->gates * p->Hp);
        }
        s.prev = take(arena, (size_t)p->B * sizeof *s.prev);
        s.left = take(arena, (size_t)p->B * sizeof *s.left);
        s.means = take_reals(arena, means_of(cell) ? p->B * FRNN_MAX_PHASE_MEANS : 0);
        if (arena->base) p->scratch[i] = s;
    }
}

/* Room for what a product multiplied in a chunk of so many rows: one matrix a head, or one of all units. */
static void take_operand(Plan *p, Arena *arena, int which, ptrdiff_t rows, ptrdiff_t width)
{
    const ptrdiff_t columns = p->call->D ? p->call->D : width;
    p->back.operand_panels[which] = take_matrix(arena, width / columns * rows, columns);
    p->back.operand_panels[which].K = rows;
    p->back.operand[which] = take(arena, (size_t)rows * sizeof *p->back.operand[which]);
    if (p->call->checkpoint) p->back.operand_copy[which] = take_rows(arena, rows, 1, p->Hp);
}

static void take_backward(Plan *p, Arena *arena)
{
    Backward *const back = &p->back;
    const Cell *cell = p->cell;
    const int products = products_of(cell);
    const ptrdiff_t B = p->B, Hp = p->Hp;
    const ptrdiff_t whole = B && B < CHUNK_ROWS ? CHUNK_ROWS / B : 1; /* steps that all sequences have */
    const ptrdiff_t rows = back->rows = least(whole * B, p->rows);
    back->W = take_matrix(arena, cell->gates * p->H, p->I);
    back->x_panels = take_matrix(arena, rows, p->I);
    for (int q = 0; q < cell->phases; q++) {
        const ptrdiff_t width = operand_width(p->call, q);
        const Panels U = {.K = cell->phase_gates[q] * p->H, .units = width, .gates = 1, .head = p->call->D,
                          .group_vectors = vectors_of_group(p->call, NR)};
        back->U[q] = take_panels(arena, U);
        if (cell->phase_gates[q]) take_operand(p, arena, q, rows, width);
    }
    if (p->call->P) {
        back->R = take_matrix(arena, p->call->P, p->H);
        take_operand(p, arena, cell->phases, rows, p->H);
        back->dh = take_rows(arena, rows, 1, Hp);
    }
    back->da = take_rows(arena, rows, cell->gates, Hp);
    back->da_rec = cell->split ? take_rows(arena, rows, products + means_of(cell), Hp) : back->da;
    back->dp = take_rows(arena, rows, cell->parameters, Hp);
    back->de = take_rows(arena, B, cell->inputs, Hp);
    back->da_before = take_rows(arena, B, products, Hp);
    back->carry = take_rows(arena, B, cell->states + cell->pending, Hp);
    back->db = take(arena, (size_t)(cell->gates * p->H) * sizeof *back->db);
    back->db_rec = cell->split ? take(arena, (size_t)(products * p->H) * sizeof *back->db_rec) : back->db;
    back->dp_sums = take(arena, (size_t)(cell->parameters * p->H) * sizeof *back->dp_sums);
    back->packs_columns = p->I + p->H >= WIDE;
    for (int i = 0; i < p->threads && back->packs_columns; i++) {
        const ptrdiff_t units = i == 0 ? p->H : (p->H + p->threads - 1) / p->threads; /* all may be left to thread 0 */
        real *columns = take_reals(arena, rows * (units + OUTER_MR));
        if (arena->base) p->scratch[i].columns = columns;
    }
    back->x_rows = take(arena, (size_t)rows * sizeof *back->x_rows);
    back->dx_rows = take(arena, (size_t)rows * sizeof *back->dx_rows);
}

/* Sort sequences by descending length (a stable counting sort) and count the rows of every step. */
static void sort_rows(Plan *p, ptrdiff_t *cursor)
{
    const int64_t *lengths = p->call->lengths;
    for (ptrdiff_t time = 0; time <= p->steps; time++) p->active[time] = lengths || time == p->steps ? 0 : p->B;
    if (lengths) {
        for (ptrdiff_t b = 0; b < p->B; b++)
            if (lengths[b]) p->active[lengths[b] - 1]++;
        for (ptrdiff_t time = p->steps - 1; time >= 0; time--) p->active[time] += p->active[time + 1];
    }
    for (ptrdiff_t time = 0; lengths && time <= p->steps; time++) cursor[time] = p->active[time];
    for (ptrdiff_t b = 0; b < p->B; b++) {
        ptrdiff_t row = lengths ? cursor[lengths[b]]++ : b;
        p->sequence[row] = b;
        p->length[row] = lengths ? lengths[b] : p->steps;
    }
}

/* Compute where each step's rows are, in the caller's arrays and in the states. */
static void place_rows(Plan *p)
{
    const int ragged = p->call->ragged, reverse = p->call->reverse, keeps = p->keeps;
    const ptrdiff_t steps = p->steps, B = p->B, all = p->rows, segment = p->segment, *const active = p->active;
    ptrdiff_t *const before = p->before, *const place = p->place;
    ptrdiff_t *const reads_at = p->reads_at, *const writes_at = p->writes_at;
    ptrdiff_t rows = 0, start = 0, end = 0; /* rows so far, those before the segment, and the step that ends it */
    for (ptrdiff_t s = 0; s < steps; s++) {
        const ptrdiff_t time = reverse ? steps - 1 - s : s;
        const int begins = s == end;
        if (begins) {
            start = rows;
            end += segment;
        }
        before[s] = rows;
        reads_at[s] = s > 0 && !(begins && keeps) ? writes_at[s - 1] : 0;
        writes_at[s] = keeps ? B + rows - start : (s + 1) % 2 * B;
        rows += active[time];
        place[s] = !ragged ? time : reverse ? all - rows : before[s];
    }
    before[steps] = rows;
}

void X(fill_init)(const Plan *p)
{
    for (ptrdiff_t row = 0; row < p->B; row++) {
        zero_row(row_of(p->init, row), p->fields * p->Hp);
        for (int k = 0; k < p->cell->states; k++) {
            const real *from = p->call->init[k];
            const ptrdiff_t n = width_of(p, k);
            if (from) copy_row(row_of(p->init, row) + field_of(p, k), from + p->sequence[row] * n, n);
        }
    }
}

/* The widest of the rows that zeros stand for: states, and the products' gradients. */
static ptrdiff_t zeros_size(const Plan *p)
{
    const int products = products_of(p->cell);
    return (products > p->fields ? products : p->fields) * p->Hp;
}

static void take_common(Plan *p, Arena *arena)
{
    p->scratch = take(arena, (size_t)p->threads * sizeof *p->scratch);
    p->sequence = take(arena, (size_t)p->B * sizeof *p->sequence);
    p->length = take(arena, (size_t)p->B * sizeof *p->length);
    p->active = take(arena, (size_t)(p->steps + 1) * sizeof *p->active);
    p->before = take(arena, (size_t)(p->steps + 1) * sizeof *p->before);
    p->place = take(arena, (size_t)p->steps * sizeof *p->place);
    p->reads_at = take(arena, (size_t)p->steps * sizeof *p->reads_at);
    p->writes_at = take(arena, (size_t)p->steps * sizeof *p->writes_at);
    p->init = take_rows(arena, p->B, p->fields, p->Hp);
    p->zeros = take_reals(arena, zeros_size(p));
    p->e = take_rows(arena, p->B, p->cell->inputs, p->Hp);
    if (means_of(p->cell)) p->made = take_rows(arena, p->B, means_of(p->cell), p->Hp);
}

void X(fill_inputs)(const Plan *p, int id, ptrdiff_t s, const Panels *panels)
{
    const ptrdiff_t from = first_unit(p, panels, id), to = end_unit(p, panels, id), end = to < p->H ? to : p->H;
    EACH_TILE(t, p, id, active_rows(p, s), MC)
        for (ptrdiff_t r = t.row; r < t.row + t.rows; r++)
            for (int k = 0; k < p->cell->inputs; k++) {
                const real *given = element(p, p->call->e[k], s, r);
                real *field = row_of(p->e, r) + k * p->Hp;
                for (ptrdiff_t i = from; i < end; i++) field[i] = given[p->call->narrow[k] ? 0 : i];
                for (ptrdiff_t i = end; i < to; i++) field[i] = 0;
            }
}

void X(take_means)(const Plan *p, int id, ptrdiff_t active, Rows fields, int n)
{
    EACH_TILE(t, p, id, active, MC)
        for (ptrdiff_t r = t.row; r < t.row + t.rows; r++)
            for (int j = 0; j < n; j++)
                p->scratch[id].means[r * FRNN_MAX_PHASE_MEANS + j] = mean_of(row_of(fields, r) + j * p->Hp, p->H);
}

size_t X(plan)(Plan *p, const frnn_call *call, int threads, int backward, void *work)
{
    const Cell *cell = call->cell;
    begin(p, call);
    Arena arena = {work, 0}, saved = {call->saved, 0}, packed = {(char *)call->packed, 0};
    const int recompute = backward && call->checkpoint, keep_all = call->training && !call->checkpoint;
    p->weights = X(take_weights)(call, call->packed ? &packed : &arena, backward && !recompute);
    share_out(p, threads);
    take_common(p, &arena);
    if (call->training) take_saved(p, &saved);
    if (recompute) { /* one segment's worth of what is otherwise saved */
        const ptrdiff_t rows = rows_of_steps(call, p->segment);
        p->states = take_rows(&arena, p->B + rows, p->fields, p->Hp);
        p->kept = take_kept(p, &arena, rows);
    } else if (!keep_all) { /* the states before and after one step; gates only to hand from phase to phase */
        p->states = take_rows(&arena, 2 * p->B, p->fields, p->Hp);
        if (cell->phases > 1) p->kept = take_kept(p, &arena, p->B);
    }
    p->keeps = recompute || keep_all;
    take_forward(p, &arena, backward && !recompute);
    if (backward) take_backward(p, &arena);
    ptrdiff_t *cursor = take(&arena, (size_t)(p->steps + 1) * sizeof *cursor);

    if (work) {
        zero_row(p->zeros, zeros_size(p));
        sort_rows(p, cursor);
        place_rows(p);
        X(fill_init)(p);
        if (!call->packed) X(fill_vectors)(&p->weights, call, backward && !recompute);
    }
    return arena.used;
}

size_t X(saved_size)(const frnn_call *call)
{
    Plan p;
    Arena arena = {0, 0};
    begin(&p, call);
    take_saved(&p, &arena);
    return arena.used;
}
