/* This (dtype, instruction set)'s entry points. */
#include "activation.h"
#include "drive.h"

static frnn_cell_info cell_info(int cell)
{
    return (frnn_cell_info){X(cells)[cell]->name, X(cells)[cell]->gates, X(cells)[cell]->states};
}

#define ELEMENTWISE(name, function)                                                                                    \
    static void name(size_t n, const void *x, void *y)                                                                 \
    {                                                                                                                  \
        for (size_t i = 0; i < n; i += (size_t)LANES) {                                                                \
            const size_t bytes = (n - i < (size_t)LANES ? n - i : (size_t)LANES) * sizeof(real);                       \
            vec v = splat(0);                                                                                          \
            memcpy(&v, (const real *)x + i, bytes);                                                                    \
            v = function(v);                                                                                           \
            memcpy((real *)y + i, &v, bytes);                                                                          \
        }                                                                                                              \
    }
ELEMENTWISE(elementwise_sigmoid, vsigmoid)
ELEMENTWISE(elementwise_tanh, vtanh)

#define COUNT_ONE(name) 0,

const frnn_table X(table) = {
    .cells = sizeof((const char[]){FRNN_CELLS(COUNT_ONE)}),
    .cell_info = cell_info,
    .saved_bytes = X(saved_size),
    .forward_bytes = X(forward_bytes),
    .backward_bytes = X(backward_bytes),
    .forward = X(forward),
    .backward = X(backward),
    .sigmoid = elementwise_sigmoid,
    .tanh = elementwise_tanh,
};
