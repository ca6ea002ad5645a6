/* LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) and its peephole variant (Gers,
 * Schraudolph and Schmidhuber, JMLR 3, 2002). Gates i, f, g, o; a = W x + b + U h_prev + b_rec:
 *
 *   i = sigmoid(a_i + p_i c_prev)    f = sigmoid(a_f + p_f c_prev)    g = tanh(a_g)
 *   c = f c_prev + i g               o = sigmoid(a_o + p_o c)         h = o tanh(c)
 *
 * Kept for backward: i, f, g, o; tanh(c) is computed anew, which costs less than its memory traffic.
 */
#include "activation.h"
#include "cell.h"

enum { GATE_I, GATE_F, GATE_G, GATE_O };
enum { PEEP_I, PEEP_F, PEEP_O };

INLINE void forward(int peephole, const ForwardTile *t)
{
    const ptrdiff_t n = t->lanes, Hp = t->Hp;
    for (int r = 0; r < t->rows; r++) {
        const real *wx = row_of(t->wx, r), *uh = row_of(t->uh, r), *p = row_of(t->p, r) + t->at;
        const real *c_prev = t->prev[r] + Hp + t->at;
        real *h = row_of(t->next, r) + t->at, *gates = t->gates.data ? row_of(t->gates, r) + t->at : 0;
        for (ptrdiff_t l = 0; l < n; l += LANES) {
            vec ai = load(wx + GATE_I * n + l) + load(uh + GATE_I * n + l);
            vec af = load(wx + GATE_F * n + l) + load(uh + GATE_F * n + l);
            vec ag = load(wx + GATE_G * n + l) + load(uh + GATE_G * n + l);
            vec ao = load(wx + GATE_O * n + l) + load(uh + GATE_O * n + l);
            vec c = load(c_prev + l);
            if (peephole) {
                ai = FMA(load(p + PEEP_I * Hp + l), c, ai);
                af = FMA(load(p + PEEP_F * Hp + l), c, af);
            }
            vec i = vsigmoid(ai), f = vsigmoid(af), g = vtanh(ag);
            c = FMA(f, c, i * g);
            if (peephole) ao = FMA(load(p + PEEP_O * Hp + l), c, ao);
            vec o = vsigmoid(ao);
            store(h + l, o);
            store(h + Hp + l, c);
            if (gates) {
                store(gates + GATE_I * Hp + l, i);
                store(gates + GATE_F * Hp + l, f);
                store(gates + GATE_G * Hp + l, g);
                store(gates + GATE_O * Hp + l, o);
            }
        }
    }
    /* A loop of its own: the chain from the gates through tanh(c) is longer than what a core can hold of it at once. */
    for (int r = 0; r < t->rows; r++) {
        real *h = row_of(t->next, r) + t->at;
        for (ptrdiff_t l = 0; l < n; l += LANES) store(h + l, load(h + l) * vtanh(load(h + Hp + l)));
    }
}

INLINE void backward(int peephole, const BackwardTile *t)
{
    const ptrdiff_t Hp = t->Hp;
    for (int r = 0; r < t->rows; r++) {
        const real *dh = row_of(t->dout, r), *gates = row_of(t->gates, r) + t->at, *p = t->p + t->at;
        const real *c_prev = t->prev[r] + Hp + t->at, *c_next = row_of(t->next, r) + Hp + t->at;
        real *dc_carry = row_of(t->carry, r) + Hp + t->at, *da = row_of(t->da, r) + t->at;
        for (ptrdiff_t l = 0; l < t->lanes; l += LANES) {
            vec i = load(gates + GATE_I * Hp + l), f = load(gates + GATE_F * Hp + l);
            vec g = load(gates + GATE_G * Hp + l), o = load(gates + GATE_O * Hp + l);
            vec c = load(c_next + l), c_before = load(c_prev + l), tanh_c = vtanh(c), d = load(dh + l);
            vec dao = d * tanh_c * sigmoid_slope(o);
            vec dc = FMA(d * o, tanh_slope(tanh_c), load(dc_carry + l));
            if (peephole) dc = FMA(dao, load(p + PEEP_O * Hp + l), dc);
            vec dai = dc * g * sigmoid_slope(i);
            vec daf = dc * c_before * sigmoid_slope(f);
            vec dag = dc * i * tanh_slope(g);
            vec dc_prev = dc * f;
            if (peephole) {
                real *dp = row_of(t->dp, r) + t->at;
                dc_prev = FMA(dai, load(p + PEEP_I * Hp + l), dc_prev);
                dc_prev = FMA(daf, load(p + PEEP_F * Hp + l), dc_prev);
                store(dp + PEEP_I * Hp + l, dai * c_before);
                store(dp + PEEP_F * Hp + l, daf * c_before);
                store(dp + PEEP_O * Hp + l, dao * c);
            }
            store(dc_carry + l, dc_prev);
            store(da + GATE_I * Hp + l, dai);
            store(da + GATE_F * Hp + l, daf);
            store(da + GATE_G * Hp + l, dag);
            store(da + GATE_O * Hp + l, dao);
        }
    }
}

static void forward_plain(const ForwardTile *t) { forward(0, t); }
static void forward_peephole(const ForwardTile *t) { forward(1, t); }
static void backward_plain(const BackwardTile *t) { backward(0, t); }
static void backward_peephole(const BackwardTile *t) { backward(1, t); }

#define LSTM_SHAPE .gates = 4, .states = 2, .kept = 4, .phases = 1, .phase_gates = {4}

const Cell X(lstm) = {.name = "lstm", LSTM_SHAPE, .forward = {forward_plain}, .backward = {backward_plain}};
const Cell X(lstm_peephole) = {
    .name = "lstm_peephole", LSTM_SHAPE,
    .peepholes = 3, .forward = {forward_peephole}, .backward = {backward_peephole}};
