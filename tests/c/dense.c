/* Operations on single rows: values, and the same bits packed or not, on any number of threads, and row by row. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    ptrdiff_t n, I, N;
} Sizes;

/* The last two are large enough for threads: by their rows, and by their weights. */
static const Sizes sizes[] = {{1, 1, 1}, {3, 5, 7}, {70, 17, 33}, {2, 200, 130}, {300, 130, 140}, {20, 300, 900}};
enum { WITHOUT_THREADS = 4, SIZES = sizeof sizes / sizeof *sizes };

static Array random_array(const Run *run, ptrdiff_t rows, ptrdiff_t n, uint32_t seed)
{
    const size_t size = run->wide ? sizeof(double) : sizeof(float);
    Array a = new_array((Array){.T = 1, .B = rows, .n = n, .size = size, .alignment = size}, 0xff, 0xff);
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t i = 0; i < n; i++) {
            seed = seed * 1664525u + 1013904223u;
            put(row_at(&a, 0, row), (size_t)i, run->wide, (double)(seed >> 8) / (1 << 23) - 1);
        }
    return a;
}

/* y of rows [first, first + n), without gaps. */
static char *rows_of(const Run *run, frnn_dense d, const Array *x, ptrdiff_t first, ptrdiff_t n)
{
    const size_t size = x->size;
    Array y = new_array((Array){.T = 1, .B = n, .n = d.N, .size = size, .alignment = size}, GUARD_BYTE, 0xff);
    d.n = n;
    d.x = row_at(x, 0, first);
    d.x_row = x->at.row;
    d.y = y.at.data;
    d.y_row = y.at.row;
    Array work = work_area(run, run->table->dense_bytes(&d));
    d.work = work.at.data;
    run->table->dense(&d);
    free(collect(run, &work, "work"));
    return collect(run, &y, "y");
}

enum { SCALE = 2, SHIFT = 3 };

/* Normalized rows have the mean SHIFT and, but for epsilon, the standard deviation SCALE. */
static void check_normalized(const Run *run, const frnn_dense *d, const char *y)
{
    for (ptrdiff_t row = 0; row < d->n; row++) {
        long double sum = 0, squares = 0;
        for (ptrdiff_t j = 0; j < d->N; j++) {
            const long double n = ((long double)get(y, (size_t)(row * d->N + j), run->wide) - SHIFT) / SCALE;
            sum += n;
            squares += n * n;
        }
        if (!(fabsl(sum) <= 1e-5L * (long double)d->N)) complain(run, "dense: row %d has a mean", (int)row);
        if (d->N > 1 && !(fabsl(squares / (long double)d->N - 1) <= 1e-3L))
            complain(run, "dense: row %d has variance %.17Lg", (int)row, squares / (long double)d->N);
    }
}

/* An element of y, where it is a sum, or 0 if that is negative. */
static void check_sum(const Run *run, const frnn_dense *d, const Array *x, ptrdiff_t row, ptrdiff_t j, double got)
{
    const double eps = run->wide ? 0x1p-52 : 0x1p-23;
    long double a = get(d->b, (size_t)j, run->wide), bound = fabsl(a);
    for (ptrdiff_t i = 0; i < d->I; i++) {
        const long double term = (long double)get(row_at(x, 0, row), (size_t)i, run->wide)
                                 * get(d->W, (size_t)(j * d->I + i), run->wide);
        a += term;
        bound += fabsl(term);
    }
    if (d->function == FRNN_RELU && !(a > 0)) a = 0;
    if (!(fabsl(got - a) <= 130 * eps * bound))
        complain(run, "dense: row %d of y[%d] is %.17g, not %.17Lg", (int)row, (int)j, got, a);
}

static void check_values(const Run *run, const frnn_dense *d, const Array *x, const char *y)
{
    if (d->function == FRNN_NORMALIZE) {
        check_normalized(run, d, y);
        return;
    }
    const double eps = run->wide ? 0x1p-52 : 0x1p-23;
    for (ptrdiff_t row = 0; row < d->n; row++) {
        long double sum = 0;
        for (ptrdiff_t j = 0; j < d->N; j++) {
            const double got = get(y, (size_t)(row * d->N + j), run->wide);
            sum += got;
            if (d->function == FRNN_IDENTITY || d->function == FRNN_RELU) check_sum(run, d, x, row, j, got);
        }
        if (d->function == FRNN_SOFTMAX && !(fabsl(sum - 1) <= (double)d->N * eps))
            complain(run, "dense: row %d of softmax sums to %.17Lg", (int)row, sum);
    }
}

static void test_sizes(const Run *run, Sizes s, int function)
{
    Array x = random_array(run, s.n, s.I, 1), W = random_array(run, 1, s.N * s.I, 2), b = random_array(run, 1, s.N, 3);
    Array scale = random_array(run, 1, s.N, 4), shift = random_array(run, 1, s.N, 5);
    for (size_t j = 0; j < (size_t)s.N; j++) {
        put(scale.at.data, j, run->wide, SCALE);
        put(shift.at.data, j, run->wide, SHIFT);
    }
    frnn_dense d = {.function = function, .threads = 1, .n = s.n, .I = s.I, .N = s.N, .epsilon = 1e-5};
    d.W = W.at.data;
    d.b = b.at.data;
    d.scale = scale.at.data;
    d.shift = shift.at.data;
    char *const y = rows_of(run, d, &x, 0, s.n);
    const size_t row_bytes = (size_t)s.N * x.size;
    check_values(run, &d, &x, y);
    Array packed = work_area(run, run->table->dense_packed_bytes(&d));
    run->table->pack_dense(&d, packed.at.data);
    for (int way = 1; way < 4; way++) {
        frnn_dense other = d;
        other.threads = way & 1 ? 3 : 1;
        if (way & 2) other.packed = packed.at.data, other.W = other.b = NULL;
        char *again = rows_of(run, other, &x, 0, s.n);
        if (memcmp(again, y, (size_t)s.n * row_bytes) != 0) complain(run, "dense: other bits in way %d", way);
        free(again);
        again = rows_of(run, other, &x, s.n - 1, 1);
        if (memcmp(again, y + (size_t)(s.n - 1) * row_bytes, row_bytes) != 0)
            complain(run, "dense: other bits of a row alone in way %d", way);
        free(again);
    }
    free(collect(run, &packed, "packed"));
    free(x.block);
    free(W.block);
    free(b.block);
    free(scale.block);
    free(shift.block);
    free(y);
    end_test(run->report);
}

void test_dense(const Run *run, int threads_alone)
{
    Run filled = *run;
    filled.way.fill = 0xff;
    for (int i = threads_alone ? WITHOUT_THREADS : 0; i < SIZES; i++)
        for (int function = FRNN_IDENTITY; function <= FRNN_NORMALIZE; function++)
            test_sizes(&filled, sizes[i], function);
}
