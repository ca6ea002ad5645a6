/* A plan: how one call is laid out in memory and divided among threads. The caller makes it once; it is then read-only.
 *
 * Travel. Steps are counted in the direction of travel, s = 0 .. steps-1; time(s) is their place in x. Sequences are
 * sorted by falling length into rows, so that the rows at work in a step are always the first active(s).
 *
 * Threads share the rows when there are enough (no barrier is needed), or else the groups of hidden units (a barrier
 * after every phase and projection, unless no unit sees another).
 */
#ifndef FRNN_PLAN_H
#define FRNN_PLAN_H

#include "team.h"
#include "weights.h"

typedef struct {
    ptrdiff_t *wx_start; /* per step of the input chunk: its first row in wx */
    const real **x_rows; /* per row of wx */
    const real **prev;   /* per row: the states before this step */
    const real **left;   /* per row: left operand of the current product */
    real *means;         /* per row: the phase's means, in room for FRNN_MAX_PHASE_MEANS */
    real *wx;            /* [row][group][gate][lane]: W x + b for a chunk of steps */
    real *columns;       /* backward: one gate's gradients of the thread's units, packed */
} Scratch;

/* Backward: its weights, and a chunk of steps, in falling order, whose weight gradients are computed together. */
typedef struct {
    Panels W, U[FRNN_MAX_PHASES], R; /* transposed */
    Rows carry, de;                  /* as in a BackwardTile, B rows: of the step at hand alone */
    ptrdiff_t rows;                  /* of a chunk at most, and at least one step's */
    Rows da, da_rec, dp;             /* as in a BackwardTile */
    Rows dh;                         /* gradients of the projected states */
    Rows da_before;                  /* da_rec of the step done last in the chunk before, B rows */
    const real **x_rows, **operand[FRNN_MAX_PHASES + 1]; /* per chunk row: x, what each phase's products multiplied, and
                                                            behind the phases what the projection did */
    real **dx_rows;
    Rows operand_copy[FRNN_MAX_PHASES + 1]; /* with checkpoints, where operands do not outlive their segment */
    Panels x_panels, operand_panels[FRNN_MAX_PHASES + 1];
    int packs_columns;             /* the weight gradients are wide enough to repay packing their left operand */
    double *db, *db_rec, *dp_sums; /* sums so far; db_rec is db unless the cell splits */
} Backward;

typedef struct {
    const frnn_call *call;
    const Cell *cell;
    ptrdiff_t steps, B, I, H, Hp;
    int fields;                 /* of a row of states: one for each state, and one for the first state's projection */
    ptrdiff_t y_field, y_width; /* the output, the first state or its projection: its place in a row, its units */
    double flop;                /* of a forward pass */
    frnn_stop *stop;            /* of a call that is long enough; or null */

    /* threads */
    int threads;
    int owners;                 /* threads that share the rows; 1 if threads share hidden groups instead */
    ptrdiff_t dealt;            /* consecutive rows that go to one thread */
    int waits;                  /* threads sharing hidden groups meet after every phase; else units are independent */
    Scratch *scratch;           /* per thread */
    frnn_progress *done;        /* steps delivered, for a call that reads them; or null */
    const frnn_progress *below; /* of the call that this one reads; or null */

    /* rows and steps */
    ptrdiff_t *sequence; /* per row: its place in the batch */
    ptrdiff_t *length;   /* per row, falling */
    ptrdiff_t *active;   /* per time, and 0 after the last: rows still at work */
    ptrdiff_t *before;   /* per step, and after the last: rows of all the steps before it, summed */
    ptrdiff_t rows;      /* of all steps */
    ptrdiff_t *place;    /* per step: where it begins in the caller's arrays, in their steps */

    /* forward */
    Weights weights;
    int odd;            /* 1 if step 0 counts as an odd one to `part_at`: prepared calls and streams take turns */
    real *zeros;        /* as long as the widest row that they stand for */
    Rows e;             /* of a step: extra inputs of B rows */
    Rows init;          /* B rows of states */
    Rows states;        /* B rows that begin the segment, then those of each step */
    Rows kept;          /* rows of each step; data is null when nothing needs them */
    Rows made;          /* B rows of what all means are taken of; data is null without means */
    int keeps;          /* every step of a segment; else two take turns with 2*B rows of states, and all share B rows of
                           kept */
    ptrdiff_t *reads_at, *writes_at; /* per step: where in `states` the rows that it reads and writes begin */
    ptrdiff_t segment;               /* steps between checkpoints; `steps` without */
    Rows checkpoints;                /* states at the start of each segment, B rows each */
    ptrdiff_t own_rows;              /* of a step, a thread's at most */
    ptrdiff_t chunk, chunk_rows;     /* of one input product: steps, and a thread's rows, at most */

    Backward back;
} Plan;

/* Lay out a call in `work` (and `call->saved`) for `threads` threads; returns the bytes of work. With work null it
 * only computes their number. */
size_t X(plan)(Plan *plan, const frnn_call *call, int threads, int backward, void *work);
size_t X(saved_size)(const frnn_call *call);

/* Copy the call's initial states; X(plan) has done this once. */
void X(fill_init)(const Plan *plan);

INLINE ptrdiff_t time_of(const Plan *p, ptrdiff_t s) { return p->call->reverse ? p->steps - 1 - s : s; }
INLINE ptrdiff_t active_rows(const Plan *p, ptrdiff_t s)
{
    return s < 0 || s >= p->steps ? 0 : p->active[time_of(p, s)];
}
INLINE ptrdiff_t first_step(const Plan *p, ptrdiff_t row) { return p->call->reverse ? p->steps - p->length[row] : 0; }
INLINE ptrdiff_t last_step(const Plan *p, ptrdiff_t row)
{
    return p->call->reverse ? p->steps - 1 : p->length[row] - 1;
}
INLINE int is_reset(const Plan *p, ptrdiff_t s, ptrdiff_t row)
{
    const frnn_array *resets = &p->call->resets;
    return resets->data
           && ((const uint8_t *)resets->data)[p->place[s] * resets->step + p->sequence[row] * resets->row];
}
/* Element 0 of (step s, row) in one of the caller's arrays. */
INLINE real *element(const Plan *p, frnn_array a, ptrdiff_t s, ptrdiff_t row)
{
    return (real *)a.data + p->place[s] * a.step + p->sequence[row] * a.row;
}
/* The number of padded steps after a row's last one; ragged arrays have none. */
INLINE ptrdiff_t padding_of(const Plan *p, ptrdiff_t row)
{
    return p->call->ragged ? 0 : p->call->T - p->length[row];
}
INLINE int projects(const Plan *p) { return p->y_field != 0; }
/* The units of state k after a projection, and its offset in a row. */
INLINE ptrdiff_t width_of(const Plan *p, int k) { return k == 0 ? p->y_width : p->H; }
INLINE ptrdiff_t field_of(const Plan *p, int k) { return k == 0 ? p->y_field : k * p->Hp; }
INLINE ptrdiff_t segment_start(const Plan *p, ptrdiff_t s) { return s / p->segment * p->segment; }
/* The states after step s, and the values that it keeps. */
INLINE Rows states_after(const Plan *p, ptrdiff_t s) { return rows_from(p->states, p->writes_at[s]); }
INLINE Rows kept_of(const Plan *p, ptrdiff_t s) { return rows_from(p->kept, p->keeps ? p->writes_at[s] - p->B : 0); }
INLINE const real *states_before(const Plan *p, ptrdiff_t s, ptrdiff_t row)
{
    if (is_reset(p, s, row)) return p->zeros;
    if (s == first_step(p, row)) return row_of(p->init, row);
    return row_of(p->states, p->reads_at[s] + row);
}

/* Whether W is multiplied in a single product of the whole call, forward or backward. Then each of a thread's groups is
 * packed just before its product, all in the same place, which stays in cache; packing a large W as a whole would write
 * it to memory and read it back. */
INLINE int packs_W_late(const Plan *p)
{
    return !p->call->packed && !p->call->checkpoint && p->owners == 1 && p->chunk_rows >= p->rows
           && p->chunk >= p->steps;
}
INLINE int packs_W_back_late(const Plan *p) { return p->back.rows >= p->rows && p->back.W.groups >= p->threads; }

/* Whether no more is to be computed; asked in every phase of a step. */
INLINE int ended(const Plan *p)
{
    return p->stop && frnn_team_ended(p->stop, p->flop / (double)(p->steps * p->cell->phases));
}

/* Whether one sequence is run unit by unit, many steps at a time. Of more sequences a tile has rows enough. */
INLINE int scans(const Plan *p) { return p->cell->scans && p->B == 1; }

INLINE int splits_hidden(const Plan *p) { return p->owners < p->threads; }
/* Returns whether the threads are to leave all later steps to thread 0, which goes on by left_alone(p). */
INLINE int end_phase(const Plan *p)
{
    return splits_hidden(p) && p->waits && frnn_team_barrier(p->threads);
}
INLINE Plan left_alone(const Plan *p)
{
    Plan alone = *p;
    alone.threads = 1;
    return alone;
}
INLINE ptrdiff_t first_group(const Plan *p, const Panels *panels, int id)
{
    return splits_hidden(p) ? share(panels->groups, id, p->threads) : 0;
}
INLINE ptrdiff_t last_group(const Plan *p, const Panels *panels, int id)
{
    return splits_hidden(p) ? share(panels->groups, id + 1, p->threads) : panels->groups;
}

/* A thread's groups, `most` at a time. Every other step begins with the parts that the step before it read last: of
 * weights too large for a cache, those are still there. With more rows arithmetic takes longer than reading. */
enum { FEW_ROWS = 8 };
typedef struct {
    ptrdiff_t first, end, most, n;
} Parts;
typedef struct {
    ptrdiff_t first, end;
} Groups;
INLINE Parts parts_of(const Plan *p, const Panels *panels, int id, ptrdiff_t most)
{
    const ptrdiff_t first = first_group(p, panels, id), end = last_group(p, panels, id);
    return (Parts){first, end, most, (end - first + most - 1) / most};
}
INLINE Groups part_at(const Plan *p, const Parts *parts, ptrdiff_t s, ptrdiff_t turn)
{
    const ptrdiff_t i = p->B <= FEW_ROWS && (s + p->odd) % 2 ? parts->n - 1 - turn : turn;
    const ptrdiff_t first = parts->first + i * parts->most, rest = parts->end - first;
    return (Groups){first, rest < parts->most ? parts->end : first + parts->most};
}

/* A thread's units, [first_unit, end_unit), where groups are those of these panels. */
INLINE ptrdiff_t first_unit(const Plan *p, const Panels *panels, int id)
{
    return group_start(panels, first_group(p, panels, id));
}
INLINE ptrdiff_t end_unit(const Plan *p, const Panels *panels, int id)
{
    const ptrdiff_t last = last_group(p, panels, id);
    return last < panels->groups ? group_start(panels, last) : p->Hp;
}

/* The means of n neighbouring fields, for this thread's rows among the first `active`, into its scratch. */
void X(take_means)(const Plan *p, int id, ptrdiff_t active, Rows fields, int n);

/* Put the n means of each of m rows, from `row` on, where the cell finds them: in the first vector of each block. */
INLINE void put_means(const Plan *p, int id, int n, ptrdiff_t row, int m, Rows to, ptrdiff_t lanes)
{
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            store(row_of(to, i) + j * lanes, splat(p->scratch[id].means[(row + i) * FRNN_MAX_PHASE_MEANS + j]));
}

/* Bring the extra inputs of step s to whole vectors: this thread's rows, and its units by these panels. */
void X(fill_inputs)(const Plan *p, int id, ptrdiff_t s, const Panels *panels);

/* The tiles of a thread's rows among the first n: at most `most` consecutive rows that were dealt together. `local`
 * counts the thread's own rows. */
typedef struct {
    ptrdiff_t row, local;
    int rows;
} RowTile;

/* This runs for every step of a net that may be tiny, where a division is as long as the work: none if it can be. */
INLINE RowTile tile_at(const Plan *p, ptrdiff_t row, ptrdiff_t local, ptrdiff_t n, int most)
{
    ptrdiff_t end = p->owners > 1 ? (row / p->dealt + 1) * p->dealt : n, rest = (end < n ? end : n) - row;
    if (rest <= most) return (RowTile){row, local, rest > 0 ? (int)rest : 0};
    ptrdiff_t tiles = (rest + most - 1) / most;
    return (RowTile){row, local, (int)((rest + tiles - 1) / tiles)};
}
INLINE RowTile first_tile(const Plan *p, int id, ptrdiff_t n, int most)
{
    return tile_at(p, p->owners > 1 ? id * p->dealt : 0, 0, n, most);
}
INLINE RowTile next_tile(const Plan *p, RowTile t, ptrdiff_t n, int most)
{
    ptrdiff_t row = t.row + t.rows;
    if (p->owners > 1 && row % p->dealt == 0) row += (p->owners - 1) * p->dealt;
    return tile_at(p, row, t.local + t.rows, n, most);
}
#define EACH_TILE(t, plan, id, n, most)                                                                                \
    for (RowTile t = first_tile(plan, id, n, most); t.rows > 0; t = next_tile(plan, t, n, most))

#endif
