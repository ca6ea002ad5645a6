/* The kernels' sigmoid and tanh, compared with the C library's. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POINTS = 300007, SPECIAL = 5 };

/* Special values, then by turns even steps over the bit patterns, over where the functions are not flat, and over the
 * logarithm of where they are neither flat nor linear. */
static void fill_points(void *x, int wide)
{
    static const double special[SPECIAL] = {0, -0.0, INFINITY, -INFINITY, NAN};
    const double range = wide ? 740 : 100;
    for (size_t i = 0; i < POINTS; i++) {
        const uint64_t pattern = UINT64_MAX / POINTS * i;
        if (i < SPECIAL)
            put(x, i, wide, special[i]);
        else if (i % 3 == 0)
            put(x, i, wide, range * (2.0 * (double)i / POINTS - 1));
        else if (i % 3 == 1)
            put(x, i, wide, (i % 2 ? 1 : -1) * exp2(9.0 * (double)i / POINTS - 6));
        else if (wide)
            memcpy((double *)x + i, &pattern, sizeof(double));
        else
            memcpy((float *)x + i, &(uint32_t){(uint32_t)(pattern >> 32)}, sizeof(float));
    }
}

static double ulp(double exact, int wide)
{
    const float narrow = (float)exact;
    return wide ? nextafter(exact, INFINITY) - exact : (double)(nextafterf(narrow, INFINITY) - narrow);
}

/* Whether y is correct where ulps are not defined. A result below the normal numbers may be any number that small. */
static int is_special(double x, double y, double exact, double tiny)
{
    if (isnan(x)) return isnan(y);
    if (isinf(x)) return y == exact;
    return fabs(exact) < tiny && fabs(y) <= tiny && !signbit(y) == !signbit(exact);
}

static long double exact_sigmoid(long double x) { return 1 / (1 + expl(-x)); }

/* Within 2 ulp of `exact`, which is computed in the next wider type or a wider one still. */
static void test_activation(const Run *run, const char *name, int function, long double (*exact)(long double))
{
    const int wide = run->wide;
    const size_t size = wide ? sizeof(double) : sizeof(float);
    const Array like = {.T = 1, .B = 1, .n = POINTS, .size = size, .alignment = size};
    Array in = new_array(like, 0xff, 0xff), out = new_array(like, GUARD_BYTE, 0xff);
    fill_points(in.at.data, wide);
    const frnn_dense row = {
        .function = function, .threads = 1, .n = 1, .I = POINTS, .N = POINTS, .x = in.at.data, .y = out.at.data,
    };
    run->table->dense(&row);
    char *got = collect(run, &out, name);
    double worst = 0;
    for (size_t i = 0; i < POINTS; i++) {
        const double x = get(in.at.data, i, wide), y = get(got, i, wide);
        const long double e = exact(x);
        if (is_special(x, y, (double)e, wide ? 0x1p-1022 : 0x1p-126)) continue;
        const double error = (double)fabsl(y - e) / ulp((double)fabsl(e), wide);
        if (!(error <= 2)) complain(run, "%s(%.17g) is %.17g, off by %.3g ulp", name, x, y, error);
        if (error > worst) worst = error;
    }
    printf("%-10s float%d: %s within %.2f ulp\n", run->isa, wide ? 64 : 32, name, worst);
    free(in.block);
    free(got);
    end_test(run->report);
}

void test_activations(const Run *run)
{
    test_activation(run, "sigmoid", FRNN_SIGMOID, exact_sigmoid);
    test_activation(run, "tanh", FRNN_TANH, tanhl);
}
