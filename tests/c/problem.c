/* One problem, computed in every way: within the error of the reference, and with the same bits. */
#include "check.h"
#include "team.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Way ways[] = {
    {1, 0, 0, 0xff, 0}, {2, 0, 0, 0xff, 0}, {3, 0, 0, 0x00, 0}, {3, 0, 1, 0xff, 0},
    {1, 1, 0, 0xff, 0}, {2, 1, 0, 0x7f, 0}, {3, 1, 0, 0xff, 0}, {3, 1, 1, 0xff, 0},
    {3, 0, 0, 0xff, 1}, {3, 1, 0, 0xff, 1},
};
enum { WAYS = sizeof ways / sizeof *ways };

static void same_bits(const Run *run, const Result *got, const Result *expected, int last, const char *where)
{
    for (int k = OUTPUTS; k < last; k++) {
        const size_t bytes = got->dense[k] ? (size_t)run->problem->tensor[k].size * (run->wide ? 8 : 4) : 0;
        if (bytes && memcmp(got->dense[k], expected->dense[k], bytes))
            complain(run, "%s has other bits %s", tensor_names[k], where);
    }
}

/* ||got - exact|| <= tolerance ||exact||; exactly 0 where that is 0. */
static void compare(const Run *run, const Result *got)
{
    for (int k = OUTPUTS; k < COUNT; k++) {
        const Tensor *exact = &run->problem->tensor[k];
        const double tolerance = exact->tolerance[run->wide];
        double distance = 0, size = 0;
        for (int64_t i = 0; i < exact->size; i++) {
            const double d = get(got->dense[k], (size_t)i, run->wide) - exact->values[i];
            distance += d * d;
            size += exact->values[i] * exact->values[i];
        }
        const double allowed = tolerance * sqrt(size), ratio = distance > 0 ? sqrt(distance) / allowed : distance;
        if (!(ratio <= 1)) /* NaN too */
            complain(run, "%s is off by %.3g of its norm, not %.3g", tensor_names[k], sqrt(distance / size), tolerance);
        if (ratio > run->report->worst) {
            run->report->worst = ratio;
            snprintf(run->report->worst_name, sizeof run->report->worst_name, "%s of #%d %s", tensor_names[k],
                     (int)run->problem->number, run->problem->cell);
        }
    }
}

/* Inference that may read only weights packed once: `forward`, and a prepared plan twice. */
static void infer_packed(const Run *run, frnn_call call, const Result *expected)
{
    const frnn_table *table = run->table;
    Result first = {{0}};
    Array packed = work_area(run, table->packed_bytes(&call));
    table->pack(&call, packed.at.data);
    call.packed = packed.at.data;
    call.W = call.U = call.b = call.b_rec = call.p = NULL;
    forward(run, &call, &first);
    same_bits(run, &first, expected, GRADIENTS, "with packed weights");
    free_result(&first);

    Array out[COUNT], work = work_area(run, table->forward_bytes(&call)), plan = work_area(run, table->prepared_bytes);
    Result again = {{0}};
    for (int k = OUTPUTS; k < GRADIENTS; k++) out[k] = tensor_array(run, k, GUARD_BYTE, run->way.fill);
    call.out[0] = out[N_y].at;
    call.out[1] = out[N_c].at;
    call.final[0] = out[N_h_n].at.data;
    call.final[1] = out[N_c_n].at.data;
    call.work = work.at.data;
    table->prepare(&call, plan.at.data);
    for (int i = 0; i < 2; i++) {
        const int held = run->way.denied ? frnn_team_acquire(2, WORTH_WAKING) : 1;
        table->forward_prepared(plan.at.data);
        frnn_team_release(held);
    }
    for (int k = OUTPUTS; k < GRADIENTS; k++) again.dense[k] = collect(run, &out[k], tensor_names[k]);
    same_bits(run, &again, expected, GRADIENTS, "by a prepared plan");
    free_result(&again);
    free(collect(run, &work, "the work area of a prepared plan"));
    free(collect(run, &plan, "the plan"));
    free(collect(run, &packed, "the packed weights"));
}

/* Inference, training and backward in run->way. */
static Result compute(const Run *run, const Array *in)
{
    Result trained = {{0}}, inferred = {{0}};
    frnn_call call = describe(run, in);
    forward(run, &call, &inferred);
    infer_packed(run, describe(run, in), &inferred);
    call.training = 1;
    call.checkpoint = run->way.checkpointed ? run->problem->checkpoint : 0;
    Array saved = work_area(run, run->table->saved_bytes(&call));
    call.saved = saved.at.data;
    forward(run, &call, &trained);
    same_bits(run, &inferred, &trained, GRADIENTS, "in inference");
    backward(run, &call, &saved, &trained);
    free(collect(run, &saved, "what forward saves"));
    free_result(&inferred);
    return trained;
}

void test_problem(Run run, int contended)
{
    Array in[OUTPUTS];
    const int shared = run.problem->work == SHARED;
    make_inputs(&run, in);
    run.way = ways[0];
    Result first = compute(&run, in);
    compare(&run, &first);
    frnn_call alone = describe(&run, in), together = alone;
    together.threads = 2;
    if (shared && run.table->forward_bytes(&together) <= run.table->forward_bytes(&alone))
        complain(&run, "asks for no more work area on two threads, so it is not shared; make_vectors.py thinks it is");
    for (int i = 1; i < WAYS; i++) {
        if (ways[i].checkpointed && !run.problem->checkpoint) continue;
        if (!shared && (ways[i].threads == 2 || ways[i].denied || ways[i].left)) continue; /* it needs no team */
        if (contended && (ways[i].threads < 3 || ways[i].denied)) continue;
        run.way = ways[i];
        frnn_team_set_backoff(run.way.left ? FRNN_AT_EVERY_BARRIER : FRNN_NEVER);
        Result again = compute(&run, in);
        frnn_team_set_backoff(FRNN_NEVER);
        same_bits(&run, &again, &first, COUNT, "than on one thread without checkpoints");
        free_result(&again);
    }
    free_result(&first);
    free_inputs(in);
    end_test(run.report);
}
