/* Layers that process each row independently: y = f(W x + b), or only f(x), for f of frnn_function.
 *
 * Products use the panels of matmul.h, so each element is one chain over k in order, and a row has the same bits
 * whatever the other rows are. If W is not packed, it is packed group by group, just before each product.
 */
#include "dense.h"

#include "normalize.h"
#include "softmax.h"
#include "team.h"
#include "weights.h"

enum {
    ROWS_EACH = 64, /* from this many rows per thread, each thread packs W itself; otherwise threads share W's groups */
    STRIP = MC * NR,
};

typedef struct {
    const frnn_dense *dense;
    int threads, by_groups;
    Panels W;
    real *bias; /* in whole vectors */
    real *room; /* one group of W for each thread, if W is not packed */
} Layout;

INLINE ptrdiff_t group_room(const frnn_dense *d) { return d->I * NR * LANES; }
INLINE double flop_of(const frnn_dense *d) { return 2.0 * (double)d->n * (double)d->I * (double)d->N; }

/* The number of threads to use; results do not depend on it. */
static int threads_of(const frnn_dense *d)
{
    const ptrdiff_t most = d->threads < FRNN_MAX_THREADS ? d->threads : FRNN_MAX_THREADS;
    const ptrdiff_t groups = (vectors_of(d->N) + NR - 1) / NR, by_rows = d->n / ROWS_EACH;
    const ptrdiff_t parts = by_rows > groups ? by_rows : groups;
    if (!d->W && !d->packed) return 1;
    return flop_of(d) < WORTH_THREADS || parts < 2 ? 1 : (int)(parts < most ? parts : most);
}

/* With `whole`, allocate space for all of W. */
static Layout lay_out(const frnn_dense *d, Arena *arena, int whole, int threads)
{
    Layout l = {.dense = d, .threads = threads, .by_groups = d->n < threads * ROWS_EACH};
    Arena nowhere = {0, 0};
    l.bias = take_reals(arena, padded(d->N));
    l.W = take_panels(whole ? arena : &nowhere,
                      (Panels){.K = d->I, .units = d->N, .gates = 1, .group_vectors = NR});
    if (!whole) l.room = take_reals(arena, threads * group_room(d));
    return l;
}

static void fill_bias(const Layout *l)
{
    const frnn_dense *d = l->dense;
    zero_row(l->bias, padded(d->N));
    if (d->b) copy_row(l->bias, d->b, d->N);
}

INLINE vec relu(vec a) { return choose(a < splat(0), splat(0), a); /* NaN stays NaN */ }

#define EACH(f)                                                                                                        \
    for (ptrdiff_t i = 0; i < n; i += LANES) store_some(y + i, f(load_some(a + i, n - i, 0)), n - i)

/* y = f(a), if f is elementwise; functions of a whole row are applied later. */
static void apply(int function, const real *a, real *y, ptrdiff_t n)
{
    switch (function) {
    case FRNN_SIGMOID: EACH(vsigmoid); break;
    case FRNN_TANH: EACH(vtanh); break;
    case FRNN_RELU: EACH(relu); break;
    default:
        if (a != y) copy_row(y, a, n);
    }
}

/* Copy n elements; calling memcpy for each row would take longer than the product of a narrow row. */
INLINE void deliver(real *to, const real *from, ptrdiff_t n)
{
    if (n == 1)
        *to = *from;
    else
        copy_row(to, from, n);
}

INLINE const real *x_of(const frnn_dense *d, ptrdiff_t row) { return (const real *)d->x + row * d->x_row; }
INLINE real *y_of(const frnn_dense *d, ptrdiff_t row) { return (real *)d->y + row * d->y_row; }

/* m rows by one group, which is group `at` of W. */
static void run_group(const Layout *l, const Panels *W, ptrdiff_t at, ptrdiff_t group, ptrdiff_t row, ptrdiff_t m)
{
    const frnn_dense *d = l->dense;
    real strip[STRIP * LANES] __attribute__((aligned(FRNN_ALIGN)));
    const real *rows[MC];
    const ptrdiff_t start = group_start(&l->W, group), lanes = group_lanes(&l->W, group);
    const ptrdiff_t units = group_units(&l->W, group);
    for (ptrdiff_t i = 0; i < m; i++) rows[i] = x_of(d, row + i);
    X(multiply)(m, rows, 1, 0, W, at, l->bias + start, (Rows){strip, lanes});
    apply(d->function, strip, strip, m * lanes);
    for (ptrdiff_t i = 0; i < m; i++)
        deliver(y_of(d, row + i) + start, strip + i * lanes, units);
}

/* One row by groups [first, last) of a packed W: several at once, whose chains the core interleaves. */
static void run_row(const Layout *l, ptrdiff_t first, ptrdiff_t last)
{
    const frnn_dense *d = l->dense;
    real strip[STRIP * LANES] __attribute__((aligned(FRNN_ALIGN)));
    for (ptrdiff_t group = first; group < last; group += MC) {
        const ptrdiff_t end = last - group < MC ? last : group + MC, start = group_start(&l->W, group);
        const ptrdiff_t left = d->N - start, lanes = group_start(&l->W, end) - start;
        X(multiply_row)(d->x, 1, 0, &l->W, group, end, l->bias + start, strip);
        apply(d->function, strip, strip, lanes);
        deliver(y_of(d, 0) + start, strip, left < lanes ? left : lanes);
    }
}

static void run_groups(const Layout *l, int id, ptrdiff_t row, ptrdiff_t end, ptrdiff_t first, ptrdiff_t last)
{
    const frnn_dense *d = l->dense;
    for (ptrdiff_t group = first; group < last; group++) {
        Panels own = l->W;
        if (!d->packed) {
            own = one_group(&l->W, group, l->room + id * group_room(d));
            X(pack)(&own, 0, 1, (const real *)d->W + group_start(&l->W, group) * d->I, 0, d->I, 1);
        }
        for (ptrdiff_t r = row; r < end; r += MC)
            run_group(l, &own, d->packed ? group : 0, group, r, end - r < MC ? end - r : MC);
    }
}

static void dense_job(void *arg, int id)
{
    const Layout *l = arg;
    const frnn_dense *d = l->dense;
    const ptrdiff_t groups = l->W.groups, row = share(d->n, id, l->threads), end = share(d->n, id + 1, l->threads);
    const ptrdiff_t first = share(groups, id, l->threads), last = share(groups, id + 1, l->threads);
    const int product = d->W || d->packed;
    if (!product)
        for (ptrdiff_t r = row; r < end; r++) apply(d->function, x_of(d, r), y_of(d, r), d->N);
    else if (d->n == 1 && d->packed)
        run_row(l, first, last);
    else if (l->by_groups)
        run_groups(l, id, 0, d->n, first, last);
    else
        run_groups(l, id, row, end, 0, groups);
    if (d->function < FRNN_SOFTMAX) return;
    if (l->by_groups) frnn_team_barrier(l->threads);
    for (ptrdiff_t r = row; r < end; r++)
        if (d->function == FRNN_SOFTMAX)
            softmax(y_of(d, r), y_of(d, r), d->N);
        else
            normalize(y_of(d, r), y_of(d, r), d->N, (real)d->epsilon, d->scale, d->shift);
}

size_t X(dense_packed_size)(const frnn_dense *d)
{
    Arena arena = {0, 0};
    lay_out(d, &arena, 1, 1);
    return arena.used;
}

void X(pack_dense)(const frnn_dense *d, void *packed)
{
    Arena arena = {packed, 0};
    const Layout l = lay_out(d, &arena, 1, 1);
    fill_bias(&l);
    X(pack)(&l.W, 0, 1, d->W, 0, d->I, 1);
}

size_t X(dense_size)(const frnn_dense *d)
{
    Arena arena = {0, 0};
    if (d->W && !d->packed) lay_out(d, &arena, 0, threads_of(d));
    return arena.used;
}

void X(dense)(const frnn_dense *d)
{
    Arena arena = {d->packed ? (char *)d->packed : d->work, 0};
    const int granted = frnn_team_acquire(threads_of(d), flop_of(d));
    Layout l = lay_out(d, &arena, d->packed != 0, granted);
    if (d->W && !d->packed) fill_bias(&l);
    frnn_team_run(granted, dense_job, &l);
    frnn_team_release(granted);
}
