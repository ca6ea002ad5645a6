/* A problem's arrays, and calls of it. */
#include "check.h"
#include "team.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

Array work_area(const Run *run, size_t bytes)
{
    const Array like = {.T = 1, .B = 1, .n = (ptrdiff_t)bytes, .size = 1, .alignment = FRNN_ALIGN};
    return new_array(like, GUARD_BYTE, run->way.fill);
}

static int has_steps(int k)
{
    return k == N_x || k == N_resets || k == N_dy || k == N_dc || k == N_y || k == N_c || k == N_dx;
}

Array tensor_array(const Run *run, int k, int around, int fill)
{
    const Problem *p = run->problem;
    const size_t size = k == N_resets ? 1 : k == N_lengths || run->wide ? 8 : 4;
    const ptrdiff_t n = k == N_resets ? 1 : k == N_x || k == N_dx ? p->I : p->H;
    Array like = {.T = 1, .B = 1, .n = p->tensor[k].size, .size = size, .alignment = size};
    if (p->tensor[k].size < 0) return (Array){0};
    if (has_steps(k)) like = (Array){p->T, p->B, n, size, size, p->layout, .block = NULL};
    return new_array(like, around, fill);
}

/* An input; the memory around it and the padding of its sequences are NaN, and must not be read. */
static Array input_array(const Run *run, int k)
{
    const Tensor *tensor = &run->problem->tensor[k], *lengths = &run->problem->tensor[N_lengths];
    Array a = tensor_array(run, k, 0xff, 0xff);
    for (ptrdiff_t t = 0; t < a.T; t++)
        for (ptrdiff_t b = 0; b < a.B; b++) {
            if (has_steps(k) && lengths->size >= 0 && t >= (ptrdiff_t)lengths->values[b]) continue;
            for (ptrdiff_t i = 0; i < a.n; i++) {
                const double value = tensor->values[(t * a.B + b) * a.n + i];
                if (k == N_resets)
                    *row_at(&a, t, b) = value != 0;
                else if (k == N_lengths)
                    ((int64_t *)a.at.data)[i] = (int64_t)value;
                else
                    put(row_at(&a, t, b), (size_t)i, run->wide, value);
            }
        }
    return a;
}

void make_inputs(const Run *run, Array *in)
{
    for (int k = 0; k < OUTPUTS; k++) in[k] = input_array(run, k);
}

void free_inputs(Array *in)
{
    for (int k = 0; k < OUTPUTS; k++) free(in[k].block);
}

/* The floating-point control register: how to round, what traps, whether denormals are flushed. */
static unsigned long floating_point_mode(void)
{
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3ful; /* without the exception flags */
#elif defined(__aarch64__)
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
}

_Thread_local int team_jobs;

/* The linker redirects the core's calls of frnn_team_run to this function. */
void __real_frnn_team_run(int granted, frnn_job job, void *arg);
void __wrap_frnn_team_run(int granted, frnn_job job, void *arg);
void __wrap_frnn_team_run(int granted, frnn_job job, void *arg)
{
    team_jobs += granted > 1;
    __real_frnn_team_run(granted, job, arg);
}

void execute(const Run *run, Entry entry, const frnn_call *calls, int n)
{
    const int held = run->way.denied ? frnn_team_acquire(2, WORTH_WAKING) : 1;
    const unsigned long mode = floating_point_mode();
    entry(calls, n);
    if (floating_point_mode() != mode) complain(run, "left another floating-point mode");
    frnn_team_release(held);
}

frnn_call describe(const Run *run, const Array *in)
{
    const Problem *p = run->problem;
    frnn_call call = {.T = p->T, .B = p->B, .I = p->I, .H = p->H};
    call.reverse = (int)p->reverse;
    call.threads = run->way.threads;
    const frnn_cell *const *cell = run->table->cell;
    while (strcmp((*cell)->name, p->cell)) cell++;
    call.cell = *cell;
    call.x = in[N_x].at;
    call.W = in[N_W].at.data;
    call.U = in[N_U].at.data;
    call.b = in[N_b].at.data;
    call.b_rec = in[N_b_rec].at.data;
    call.p = in[N_p].at.data;
    call.init[0] = in[N_h0].at.data;
    call.init[1] = in[N_c0].at.data;
    call.lengths = in[N_lengths].at.data;
    call.resets = in[N_resets].at;
    call.dout[0] = in[N_dy].at;
    call.dout[1] = in[N_dc].at;
    call.dfinal[0] = in[N_dh_n].at.data;
    call.dfinal[1] = in[N_dc_n].at.data;
    return call;
}

void forward(const Run *run, frnn_call *call, Result *result)
{
    Array out[COUNT];
    for (int k = OUTPUTS; k < GRADIENTS; k++) out[k] = tensor_array(run, k, GUARD_BYTE, run->way.fill);
    call->out[0] = out[N_y].at;
    call->out[1] = out[N_c].at;
    call->final[0] = out[N_h_n].at.data;
    call->final[1] = out[N_c_n].at.data;
    Array work = work_area(run, run->table->forward_bytes(call));
    call->work = work.at.data;
    execute(run, run->table->forward, call, 1);
    free(collect(run, &work, "the work area of forward"));
    for (int k = OUTPUTS; k < GRADIENTS; k++) result->dense[k] = collect(run, &out[k], tensor_names[k]);
}

void backward(const Run *run, frnn_call *call, Array *saved, Result *result)
{
    Array out[COUNT];
    for (int k = GRADIENTS; k < COUNT; k++) out[k] = tensor_array(run, k, GUARD_BYTE, run->way.fill);
    call->out[0] = call->out[1] = (frnn_array){0};
    call->final[0] = call->final[1] = NULL;
    call->dx = out[N_dx].at;
    call->dW = out[N_dW].at.data;
    call->dU = out[N_dU].at.data;
    call->db = out[N_db].at.data;
    call->db_rec = out[N_db_rec].at.data;
    call->dp = out[N_dp].at.data;
    call->dinit[0] = out[N_dh0].at.data;
    call->dinit[1] = out[N_dc0].at.data;
    char *before = malloc(saved->bytes);
    memcpy(before, saved->block, saved->bytes);
    Array work = work_area(run, run->table->backward_bytes(call));
    call->work = work.at.data;
    execute(run, run->table->backward, call, 1);
    if (memcmp(before, saved->block, saved->bytes)) complain(run, "backward wrote to what forward saved");
    free(before);
    free(collect(run, &work, "the work area of backward"));
    for (int k = GRADIENTS; k < COUNT; k++) result->dense[k] = collect(run, &out[k], tensor_names[k]);
}

void free_result(Result *result)
{
    for (int k = 0; k < COUNT; k++) free(result->dense[k]);
}
