/* This (dtype, instruction set)'s entry points. */
#include "dense.h"
#include "drive.h"
#include "roofline.h"
#include "team.h"

/* The team may grant only one thread, so allocate enough for either layout. */
static size_t work_bytes(const frnn_call *call, int backward)
{
    Plan plan;
    const size_t alone = X(plan)(&plan, call, 1, backward, 0);
    const size_t together = X(plan)(&plan, call, call->threads, backward, 0);
    return alone > together ? alone : together;
}

static size_t forward_bytes(const frnn_call *call) { return work_bytes(call, 0); }
static size_t backward_bytes(const frnn_call *call) { return work_bytes(call, 1); }

static void prepare(const frnn_call *call, void *prepared)
{
    X(plan)(prepared, call, call->threads, 0, call->work);
}
static void forward_prepared(void *prepared)
{
    Plan *plan = prepared;
    const int granted = frnn_team_acquire(plan->threads, plan->flop);
    if (granted == plan->threads) {
        plan->odd ^= 1;
        X(fill_init)(plan);
        frnn_team_run(granted, X(forward_job), plan);
    } else { /* lay it out for one thread, this once */
        X(forward)(plan->call, 1);
        prepare(plan->call, plan);
    }
    frnn_team_release(granted);
}

#ifdef FUSED
const int X(vector)[] = {VBYTES, 1};
#else
const int X(vector)[] = {VBYTES, 0};
#endif

#define COUNT_ONE(name) 0,

const frnn_table X(table) = {
    .cells = sizeof((const char[]){FRNN_CELLS(COUNT_ONE)}),
    .cell = X(cells),
#if FRNN_BITS == 32
    .unfused = X(unfused),
#endif
    .packed_bytes = X(packed_size),
    .pack = X(pack_weights),
    .saved_bytes = X(saved_size),
    .forward_bytes = forward_bytes,
    .backward_bytes = backward_bytes,
    .forward = X(forward),
    .prepared_bytes = sizeof(Plan),
    .prepare = prepare,
    .forward_prepared = forward_prepared,
    .backward = X(backward),
    .dense_packed_bytes = X(dense_packed_size),
    .pack_dense = X(pack_dense),
    .dense_bytes = X(dense_size),
    .dense = X(dense),
    .peak_flops = X(peak_flops),
    .read_bandwidth = X(read_bandwidth),
};
