/* This (dtype, instruction set)'s entry points. */
#include "activation.h"
#include "drive.h"
#include "team.h"

static frnn_cell_info cell_info(int cell)
{
    return (frnn_cell_info){X(cells)[cell]->name, X(cells)[cell]->gates, X(cells)[cell]->states};
}

typedef struct {
    size_t n;
    const real *x;
    real *y;
} Elements;

/* y = f(x) as a kernel would compute it: in whole vectors, in the kernels' floating-point mode. */
#define ELEMENTWISE(name)                                                                                              \
    static void name##_job(void *arg, int id)                                                                          \
    {                                                                                                                  \
        const Elements *e = arg;                                                                                       \
        (void)id;                                                                                                      \
        for (size_t i = 0; i < e->n; i += (size_t)LANES) {                                                             \
            const size_t bytes = (e->n - i < (size_t)LANES ? e->n - i : (size_t)LANES) * sizeof(real);                 \
            vec v = splat(0);                                                                                          \
            memcpy(&v, e->x + i, bytes);                                                                               \
            v = v##name(v);                                                                                            \
            memcpy(e->y + i, &v, bytes);                                                                               \
        }                                                                                                              \
    }                                                                                                                  \
    static void each_##name(size_t n, const void *x, void *y)                                                          \
    {                                                                                                                  \
        Elements elements = {n, x, y};                                                                                 \
        frnn_team_run(1, name##_job, &elements);                                                                       \
    }
ELEMENTWISE(sigmoid)
ELEMENTWISE(tanh)

#define COUNT_ONE(name) 0,

const frnn_table X(table) = {
    .cells = sizeof((const char[]){FRNN_CELLS(COUNT_ONE)}),
    .cell_info = cell_info,
    .saved_bytes = X(saved_size),
    .forward_bytes = X(forward_bytes),
    .backward_bytes = X(backward_bytes),
    .forward = X(forward),
    .backward = X(backward),
    .sigmoid = each_sigmoid,
    .tanh = each_tanh,
};
