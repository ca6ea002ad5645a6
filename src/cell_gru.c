/* GRU (Cho et al., EMNLP 2014), gates r, z, n:
 *
 *   r = sigmoid(W_r x + b_r + U_r h_prev + b_rec_r)        z likewise        h = (1 - z) n + z h_prev
 *
 * reset after (Chung et al. 2014's implementation in cuDNN and PyTorch), one phase:
 *   n = tanh(W_n x + b_n + r q),  q = U_n h_prev + b_rec_n               kept: r, z, n, q
 * reset before (the paper's), phase 0 makes r, z and m = r h_prev, phase 1:
 *   n = tanh(W_n x + b_n + U_n m + b_rec_n)                              kept: r, z, n, m
 *
 * The sums b_r + b_rec_r, b_z + b_rec_z, and before also b_n + b_rec_n, stand in the wx that the driver hands over.
 */
#include "activation.h"
#include "cell.h"

enum { GATE_R, GATE_Z, GATE_N, KEPT_Q = 3, KEPT_M = 3 };

/* h = n + z (h_prev - n) */
INLINE vec mix(vec z, vec n, vec h_prev) { return FMA(z, h_prev - n, n); }

static void forward_after(const ForwardTile *t)
{
    const ptrdiff_t w = t->lanes, Hp = t->Hp;
    for (int i = 0; i < t->rows; i++) {
        const real *wx = row_of(t->wx, i), *uh = row_of(t->uh, i), *h_prev = t->prev[i] + t->at;
        const real *b_rec = row_of(t->b_rec, i) + GATE_N * Hp + t->at;
        real *h = row_of(t->next, i) + t->at, *gates = t->gates.data ? row_of(t->gates, i) + t->at : 0;
        for (ptrdiff_t l = 0; l < w; l += LANES) {
            vec r = vsigmoid(load(wx + GATE_R * w + l) + load(uh + GATE_R * w + l));
            vec z = vsigmoid(load(wx + GATE_Z * w + l) + load(uh + GATE_Z * w + l));
            vec q = load(uh + GATE_N * w + l) + load(b_rec + l);
            vec n = vtanh(FMA(r, q, load(wx + GATE_N * w + l)));
            store(h + l, mix(z, n, load(h_prev + l)));
            if (gates) {
                store(gates + GATE_R * Hp + l, r);
                store(gates + GATE_Z * Hp + l, z);
                store(gates + GATE_N * Hp + l, n);
                store(gates + KEPT_Q * Hp + l, q);
            }
        }
    }
}

static void backward_after(const BackwardTile *t)
{
    const ptrdiff_t Hp = t->Hp;
    const vec one = splat(1);
    for (int i = 0; i < t->rows; i++) {
        const real *dh = row_of(t->dout, i), *gates = row_of(t->gates, i) + t->at, *h_prev = t->prev[i] + t->at;
        real *carry = row_of(t->carry, i) + t->at;
        real *da = row_of(t->da, i) + t->at, *da_rec = row_of(t->da_rec, i) + t->at;
        for (ptrdiff_t l = 0; l < t->lanes; l += LANES) {
            vec r = load(gates + GATE_R * Hp + l), z = load(gates + GATE_Z * Hp + l);
            vec n = load(gates + GATE_N * Hp + l), q = load(gates + KEPT_Q * Hp + l), d = load(dh + l);
            vec dan = d * (one - z) * tanh_slope(n);
            vec daz = d * (load(h_prev + l) - n) * sigmoid_slope(z);
            vec dar = dan * q * sigmoid_slope(r);
            store(carry + l, d * z);
            store(da + GATE_R * Hp + l, dar);
            store(da + GATE_Z * Hp + l, daz);
            store(da + GATE_N * Hp + l, dan);
            store(da_rec + GATE_R * Hp + l, dar);
            store(da_rec + GATE_Z * Hp + l, daz);
            store(da_rec + GATE_N * Hp + l, dan * r);
        }
    }
}

static void forward_before_gates(const ForwardTile *t)
{
    const ptrdiff_t w = t->lanes, Hp = t->Hp;
    for (int i = 0; i < t->rows; i++) {
        const real *wx = row_of(t->wx, i), *uh = row_of(t->uh, i), *h_prev = t->prev[i] + t->at;
        real *gates = row_of(t->gates, i) + t->at;
        for (ptrdiff_t l = 0; l < w; l += LANES) {
            vec r = vsigmoid(load(wx + GATE_R * w + l) + load(uh + GATE_R * w + l));
            vec z = vsigmoid(load(wx + GATE_Z * w + l) + load(uh + GATE_Z * w + l));
            store(gates + KEPT_M * Hp + l, r * load(h_prev + l));
            store(gates + GATE_R * Hp + l, r);
            store(gates + GATE_Z * Hp + l, z);
        }
    }
}

static void forward_before_state(const ForwardTile *t)
{
    for (int i = 0; i < t->rows; i++) {
        const real *wx = row_of(t->wx, i), *uh = row_of(t->uh, i), *h_prev = t->prev[i] + t->at;
        real *gates = row_of(t->gates, i) + t->at, *h = row_of(t->next, i) + t->at;
        for (ptrdiff_t l = 0; l < t->lanes; l += LANES) {
            vec n = vtanh(load(wx + l) + load(uh + l));
            store(h + l, mix(load(gates + GATE_Z * t->Hp + l), n, load(h_prev + l)));
            store(gates + GATE_N * t->Hp + l, n);
        }
    }
}

/* Phase 1 backward: dout is dh. */
static void backward_before_state(const BackwardTile *t)
{
    const ptrdiff_t Hp = t->Hp;
    const vec one = splat(1);
    for (int i = 0; i < t->rows; i++) {
        const real *dh = row_of(t->dout, i), *gates = row_of(t->gates, i) + t->at, *h_prev = t->prev[i] + t->at;
        real *carry = row_of(t->carry, i) + t->at, *da = row_of(t->da, i) + t->at;
        for (ptrdiff_t l = 0; l < t->lanes; l += LANES) {
            vec z = load(gates + GATE_Z * Hp + l), n = load(gates + GATE_N * Hp + l), d = load(dh + l);
            store(carry + l, d * z);
            store(da + GATE_Z * Hp + l, d * (load(h_prev + l) - n) * sigmoid_slope(z));
            store(da + GATE_N * Hp + l, d * (one - z) * tanh_slope(n));
        }
    }
}

/* Phase 0 backward: dout is dm. */
static void backward_before_gates(const BackwardTile *t)
{
    for (int i = 0; i < t->rows; i++) {
        const real *dm = row_of(t->dout, i), *gates = row_of(t->gates, i) + t->at, *h_prev = t->prev[i] + t->at;
        real *carry = row_of(t->carry, i) + t->at, *da = row_of(t->da, i) + t->at;
        for (ptrdiff_t l = 0; l < t->lanes; l += LANES) {
            vec r = load(gates + GATE_R * t->Hp + l), d = load(dm + l);
            store(da + GATE_R * t->Hp + l, d * load(h_prev + l) * sigmoid_slope(r));
            store(carry + l, FMA(d, r, load(carry + l)));
        }
    }
}

const Cell X(gru_after) = {
    .name = "gru_after",
    .gates = 3,
    .states = 1,
    .kept = 4,
    .phases = 1,
    .phase_gates = {3},
    .split = 1,
    .carries_h = 1,
    .forward = {forward_after},
    .backward = {backward_after},
};

const Cell X(gru_before) = {
    .name = "gru_before",
    .gates = 3,
    .states = 1,
    .kept = 4,
    .mid = KEPT_M,
    .phases = 2,
    .phase_gates = {2, 1},
    .carries_h = 1,
    .forward = {forward_before_gates, forward_before_state},
    .backward = {backward_before_gates, backward_before_state},
};
