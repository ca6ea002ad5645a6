/* int8 weights: products by their definition, and the bits of LSTMs from the x86-64 baseline. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { T = 3, B = 5, LSTMS = 3 };

/* One of K lets a row's exact sum exceed 32 bits, one exceeds what is rounded at a time. */
static const struct {
    ptrdiff_t I, H;
} sizes[] = {{1, 1}, {3, 7}, {34, 33}, {130, 97}, {700, 17}, {4100, 3}};

static const uint32_t lstm_bits[LSTMS] = {0x3b6a2d22, 0x5338b969, 0x1781c2ba};

static float *numbers(size_t n, uint32_t seed)
{
    float *const a = aligned_alloc(FRNN_ALIGN, (n * sizeof(float) + FRNN_ALIGN) / FRNN_ALIGN * FRNN_ALIGN);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        a[i] = (float)(seed >> 8) / (1 << 23) - 1;
    }
    return a;
}

static float largest(const float *a, ptrdiff_t n)
{
    float most = 0;
    for (ptrdiff_t i = 0; i < n; i++) most = fmaxf(most, fabsf(a[i]));
    return most;
}

/* The product of a row of weights and a vector. Volatile, so that each operation is rounded. */
static float product(const float *w, const float *x, ptrdiff_t n)
{
    const float quotient = largest(w, n) / 127, most = largest(x, n);
    int exponent;
    frexpf(quotient, &exponent);
    const float scale = ldexpf(ceilf(ldexpf(quotient, 17 - exponent)), exponent - 17), step = most / 32767;
    const float inverse = 32767 / most;
    int64_t sum = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const volatile float scaled = x[i] * inverse;
        sum += (int64_t)rintf(w[i] / scale) * (int64_t)rintf(scaled);
    }
    const volatile float both = scale * step, result = (float)sum * both;
    return result;
}

typedef struct {
    float *x, *W, *U, *b, *y, *final[2], *init;
    char *work, *packed;
    ptrdiff_t I, H;
} Layer;

static const frnn_cell *cell_named(const frnn_table *table, const char *name)
{
    for (int i = 0; i < table->cells; i++)
        if (strcmp(table->unfused[i]->name, name) == 0) return table->unfused[i];
    abort();
}

/* Run it, packed before or not, on up to so many threads. */
static Layer run_layer(const frnn_table *table, const char *name, ptrdiff_t I, ptrdiff_t H, int packs, int threads)
{
    const frnn_cell *const cell = cell_named(table, name);
    const size_t rows = (size_t)(cell->gates * H);
    Layer l = {.I = I, .H = H};
    l.x = numbers((size_t)(T * B * I), 1);
    l.W = numbers(rows * (size_t)I, 2);
    l.U = numbers(rows * (size_t)H, 3);
    l.b = numbers(rows, 4);
    l.y = numbers((size_t)(T * B * H), 5);
    l.init = numbers((size_t)(B * H), 6);
    frnn_call call = {.cell = cell, .format = FRNN_INT8, .threads = threads, .T = T, .B = B, .I = I, .H = H};
    call.x = (frnn_array){l.x, B * I, I};
    call.out[0] = (frnn_array){l.y, B * H, H};
    call.W = l.W;
    call.U = l.U;
    call.b = l.b;
    for (int k = 0; k < cell->states; k++) {
        call.init[k] = l.init;
        call.final[k] = l.final[k] = numbers((size_t)(B * H), 7);
    }
    if (packs) {
        l.packed = (char *)numbers(table->packed_bytes(&call), 8);
        table->pack(&call, l.packed);
        call.packed = l.packed;
    }
    l.work = (char *)numbers(table->forward_bytes(&call), 9);
    call.work = l.work;
    table->forward(&call, 1);
    return l;
}

static void free_layer(Layer *l)
{
    void *const all[] = {l->x, l->W, l->U, l->b, l->y, l->final[0], l->final[1], l->init, l->work, l->packed};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void test_products(const Run *run, ptrdiff_t I, ptrdiff_t H, int packs)
{
    Layer l = run_layer(run->table, "rnn_identity", I, H, packs, 1);
    for (ptrdiff_t t = 0; t < T; t++)
        for (ptrdiff_t b = 0; b < B; b++) {
            const float *const before = t ? l.y + ((t - 1) * B + b) * H : l.init + b * H;
            for (ptrdiff_t j = 0; j < H; j++) {
                const volatile float wx = l.b[j] + product(l.W + j * I, l.x + (t * B + b) * I, I);
                const float expected = wx + product(l.U + j * H, before, H), got = l.y[(t * B + b) * H + j];
                if (memcmp(&got, &expected, sizeof got) != 0)
                    complain(run, "int8: I %d, H %d: y[%d, %d, %d] is %a, not %a", (int)I, (int)H, (int)t, (int)b,
                             (int)j, got, expected);
            }
        }
    free_layer(&l);
    end_test(run->report);
}

static void test_bits(const Run *run, int which, int packs, int threads)
{
    Layer l = run_layer(run->table, "lstm", sizes[which + 1].I, sizes[which + 1].H, packs, threads);
    uint32_t hash = 2166136261u;
    for (ptrdiff_t i = 0; i < T * B * l.H; i++) {
        uint32_t bits;
        memcpy(&bits, &l.y[i], sizeof bits);
        hash = (hash ^ bits) * 16777619u;
    }
    if (hash != lstm_bits[which]) complain(run, "int8: an LSTM's bits are 0x%08x, not 0x%08x", hash, lstm_bits[which]);
    free_layer(&l);
    end_test(run->report);
}

void test_int8(const Run *run)
{
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int packs = 0; packs < 2; packs++) test_products(run, sizes[i].I, sizes[i].H, packs);
    for (int way = 0; way < 4; way++)
        for (int which = 0; which < LSTMS; which++) test_bits(run, which, way & 1, way & 2 ? 3 : 1);
}
