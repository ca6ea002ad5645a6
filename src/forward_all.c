/* Several layers at once: where one layer cannot fill the cores, two directions run side by side, and a stack runs as a
 * wavefront, each layer a few steps behind the one below it.
 *
 * Call i is run by thread i % threads, each thread taking its calls in order, so the first unfinished call can always
 * go on: nobody waits for ever. The order of summation is fixed, so the bits are those of the calls made one by one.
 */
#include "drive.h"
#include "team.h"

enum {
    AT_ONCE = 16,     /* calls laid out together */
    STEPS_BEHIND = 8, /* a follower's chunk: enough rows for its input product, few enough to start soon */
};

typedef struct {
    int n, threads;
    Plan plans[AT_ONCE];
    frnn_progress done[AT_ONCE];
} Batch;

static void batch_job(void *arg, int id)
{
    const Batch *batch = arg;
    for (int i = id; i < batch->n; i += batch->threads) X(forward_job)((void *)&batch->plans[i], 0);
}

/* Threads that n calls repay side by side: 1 unless that keeps more of them busy than each call does alone, or as many
 * with no need to wait for one another. */
static int threads_side_by_side(const frnn_call *calls, int n)
{
    int alone = 1, follows = 0;
    double flop = 0;
    for (int i = 0; i < n; i++) {
        Plan plan;
        X(plan)(&plan, &calls[i], calls[i].threads, 0, 0);
        if (plan.threads > alone) alone = plan.threads;
        follows |= i > 0 && calls[i].follows;
        flop += plan.flop;
    }
    const int together = n < calls[0].threads ? n : calls[0].threads;
    if (flop < WORTH_THREADS) return 1;
    return together > alone || (together == alone && !follows) ? together : 1;
}

static void run_batch(const frnn_call *calls, int n)
{
    const int threads = frnn_team_acquire(n > 1 ? threads_side_by_side(calls, n) : 1);
    if (threads > 1) {
        Batch batch = {.n = n, .threads = threads};
        for (int i = 0; i < n; i++) {
            Plan *plan = &batch.plans[i];
            X(plan)(plan, &calls[i], 1, 0, calls[i].work);
            plan->done = &batch.done[i];
            if (i == 0 || !calls[i].follows) continue;
            plan->below = &batch.done[i - 1];
            if (plan->chunk > STEPS_BEHIND) plan->chunk = STEPS_BEHIND;
        }
        frnn_team_run(threads, batch_job, &batch);
        frnn_team_release(threads);
        return;
    }
    for (int i = 0; i < n; i++) X(forward_alone)(&calls[i]);
}

void X(forward_all)(const frnn_call *calls, int n)
{
    for (int i = 0; i < n; i += AT_ONCE) run_batch(calls + i, n - i < AT_ONCE ? n - i : AT_ONCE);
}
