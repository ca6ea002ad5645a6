/* Vanilla RNN (Elman, Cognitive Science 14, 1990, with a choice of activation):
 *
 *   h = f(a),  a = W x + b + U h_prev + b_rec
 *   da = dh f'(a), and f' follows from h alone, so nothing else is kept
 */
#include "activation.h"
#include "cell.h"

typedef enum { TANH, RELU, SIGMOID, IDENTITY } Kind;

INLINE vec activate(Kind kind, vec a)
{
    switch (kind) {
    case TANH: return vtanh(a);
    case SIGMOID: return vsigmoid(a);
    case RELU: return VMAX(splat(0), a);
    default: return a;
    }
}

/* f'(a) times d, from h = f(a). */
INLINE vec through(Kind kind, vec h, vec d)
{
    switch (kind) {
    case TANH: return d * tanh_slope(h);
    case SIGMOID: return d * sigmoid_slope(h);
    case RELU: return choose(h <= splat(0), splat(0), d); /* a NaN lets d through */
    default: return d;
    }
}

INLINE void forward(Kind kind, const ForwardTile *t)
{
    for (int i = 0; i < t->rows; i++) {
        const real *wx = row_of(t->wx, i), *uh = row_of(t->uh, i);
        real *h = row_of(t->next, i) + t->at;
        for (ptrdiff_t l = 0; l < t->lanes; l += LANES) store(h + l, activate(kind, load(wx + l) + load(uh + l)));
    }
}

INLINE void backward(Kind kind, const BackwardTile *t)
{
    for (int i = 0; i < t->rows; i++) {
        const real *dh = row_of(t->dout, i), *h = row_of(t->next, i) + t->at;
        real *da = row_of(t->da, i) + t->at;
        for (ptrdiff_t l = 0; l < t->lanes; l += LANES) store(da + l, through(kind, load(h + l), load(dh + l)));
    }
}

#define RNN(cell, kind)                                                                                                \
    static void forward_##cell(const ForwardTile *t) { forward(kind, t); }                                             \
    static void backward_##cell(const BackwardTile *t) { backward(kind, t); }                                          \
    const Cell X(cell) = {                                                                                             \
        .name = #cell,                                                                                                 \
        .gates = 1,                                                                                                    \
        .states = 1,                                                                                                   \
        .phases = 1,                                                                                                   \
        .phase_gates = {1},                                                                                            \
        .forward = {forward_##cell},                                                                                   \
        .backward = {backward_##cell},                                                                                 \
    };
RNN(rnn_tanh, TANH)
RNN(rnn_relu, RELU)
RNN(rnn_sigmoid, SIGMOID)
RNN(rnn_identity, IDENTITY)
