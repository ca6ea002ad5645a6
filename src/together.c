/* Run several layers at once: if one layer cannot fill the cores, two directions run in parallel, and a stack's forward
 * as a wavefront, each layer a few steps behind the one below it.
 *
 * Call i runs on thread i % threads, and each thread takes its calls in order, so the first unfinished call can always
 * proceed: there is no deadlock. The order of summation is fixed, so results are bit-identical to sequential calls.
 */
#include "drive.h"
#include "team.h"

enum {
    AT_ONCE = 16,     /* calls laid out together */
    STEPS_BEHIND = 8, /* delay of a call that reads the previous one: enough rows for a product, and an early start */
};

typedef struct {
    int n, threads;
    frnn_job job;
    Plan plans[AT_ONCE];
    frnn_progress done[AT_ONCE];
} Batch;

static void batch_job(void *arg, int id)
{
    Batch *batch = arg;
    for (int i = id; i < batch->n; i += batch->threads) batch->job(&batch->plans[i], 0);
}

/* The number of threads for running n calls in parallel: 1 unless this keeps more threads busy than each call alone, or
 * as many without waiting for one another. */
static int threads_side_by_side(const frnn_call *calls, int n, int backward, double *flop)
{
    int alone = 1, reads_previous = 0;
    for (int i = 0; i < n; i++) {
        Plan plan;
        X(plan)(&plan, &calls[i], calls[i].threads, backward, 0);
        if (plan.threads > alone) alone = plan.threads;
        reads_previous |= i > 0 && calls[i].reads_previous && !backward;
        *flop += plan.flop;
    }
    const int together = n < calls[0].threads ? n : calls[0].threads;
    if (*flop < WORTH_THREADS) return 1;
    return together > alone || (together == alone && !reads_previous) ? together : 1;
}

static void run_alone(const frnn_call *call, int backward, frnn_job job)
{
    Plan plan;
    X(plan)(&plan, call, call->threads, backward, 0);
    const int granted = frnn_team_acquire(plan.threads, plan.flop);
    X(plan)(&plan, call, granted, backward, call->work);
    frnn_team_run(plan.threads, job, &plan);
    frnn_team_release(granted);
}

static void run_batch(const frnn_call *calls, int n, int backward, frnn_job job)
{
    double flop = 0;
    const int wanted = n > 1 ? threads_side_by_side(calls, n, backward, &flop) : 1;
    const int threads = frnn_team_acquire(wanted, flop);
    if (threads == 1) {
        for (int i = 0; i < n; i++) run_alone(&calls[i], backward, job);
        return;
    }
    Batch batch = {.n = n, .threads = threads, .job = job};
    for (int i = 0; i < n; i++) {
        Plan *plan = &batch.plans[i];
        X(plan)(plan, &calls[i], 1, backward, calls[i].work);
        if (backward) continue;
        plan->done = &batch.done[i];
        if (i == 0 || !calls[i].reads_previous) continue;
        plan->below = &batch.done[i - 1];
        plan->chunk = STEPS_BEHIND;
    }
    frnn_team_run(threads, batch_job, &batch);
    frnn_team_release(threads);
}

static void run(const frnn_call *calls, int n, int backward, frnn_job job)
{
    for (int i = 0; i < n; i += AT_ONCE) run_batch(calls + i, n - i < AT_ONCE ? n - i : AT_ONCE, backward, job);
}

void X(forward)(const frnn_call *calls, int n) { run(calls, n, 0, X(forward_job)); }
void X(backward)(const frnn_call *calls, int n) { run(calls, n, 1, X(backward_job)); }
