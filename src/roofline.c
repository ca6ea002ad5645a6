/* Peak arithmetic and peak reading of one core, with this instruction set. The caller measures the time.
 *
 * Each needs enough independent chains to hide an operation's latency: as many as the widest tile has accumulators.
 */
#include "roofline.h"

enum { CHAINS = MR(NR) * NR, STREAMS = 8 };

double X(peak_flops)(size_t rounds)
{
    /* x = x/2 + 1/2 tends to 1; volatile, so that the compiler cannot know. */
    const volatile real half = (real)0.5;
    const vec a = splat(half), b = splat(half);
    vec chain[CHAINS];
    for (int i = 0; i < CHAINS; i++) chain[i] = splat((real)i); /* equal chains would be merged into one */
    for (size_t round = 0; round < rounds; round++)
#pragma GCC unroll 32
        for (int i = 0; i < CHAINS; i++) chain[i] = FMA(chain[i], a, b);
    vec sum = chain[0];
    for (int i = 1; i < CHAINS; i++) sum += chain[i];
    const double done = 2.0 * CHAINS * (double)LANES * (double)rounds;
    return sum[0] > 0 ? done : 0; /* always done, but sum has to be computed for it */
}

double X(read_bandwidth)(size_t n, const void *x, size_t times)
{
    const real *from = x;
    const size_t lanes = (size_t)LANES, block = STREAMS * lanes;
    vec stream[STREAMS] = {0};
    double sum = 0;
    for (size_t time = 0; time < times; time++) {
        size_t i = 0;
        for (; i + block <= n; i += block)
#pragma GCC unroll 8
            for (size_t s = 0; s < STREAMS; s++) stream[s] += load(from + i + s * lanes);
        for (; i < n; i++) sum += from[i];
    }
    for (int s = 1; s < STREAMS; s++) stream[0] += stream[s];
    for (size_t lane = 0; lane < lanes; lane++) sum += stream[0][lane];
    return sum;
}
