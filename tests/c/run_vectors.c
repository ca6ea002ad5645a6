/* Runs the problems of make_vectors.py through every instruction set and dtype of the C core:
 *
 *     run_vectors FILE
 *
 * The file says what to expect, so no formula stands here. Every result must be within its error, and have the same
 * bits for any number of threads, with and without checkpoints, and when the team is somebody else's. Outputs and work
 * areas have no more than they asked for and start out full of NaN; the bytes round them must survive. Arrays of the
 * caller are aligned to their elements only, work areas to FRNN_ALIGN only. Stacks of the large problems, forward and
 * backward of all their layers in one call, have the bits of their layers one by one; and several callers want the team.
 */
#include "check.h"
#include "team.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define NAME(name) #name,
const char *const tensor_names[] = {TENSORS(NAME)};

static const Way ways[] = {
    {1, 0, 0, 0xff}, {2, 0, 0, 0xff}, {3, 0, 0, 0x00}, {3, 0, 1, 0xff},
    {1, 1, 0, 0xff}, {2, 1, 0, 0x7f}, {3, 1, 0, 0xff}, {3, 1, 1, 0xff},
};
enum { WAYS = sizeof ways / sizeof *ways };

typedef struct {
    char *dense[COUNT]; /* outputs, time-major without gaps; null when absent */
} Result;

void complain(const Run *run, const char *format, ...)
{
    va_list arguments;
    const Problem *p = run->problem;
    if (run->report->complaints++ >= 3) return;
    flockfile(stderr);
    fprintf(stderr, "%s float%d: ", run->isa, run->wide ? 64 : 32);
    if (p)
        fprintf(stderr, "#%d %s (%d, %d, %d, %d), %d threads%s%s: ", (int)p->number, p->cell, (int)p->T, (int)p->B,
                (int)p->I, (int)p->H, run->way.threads, run->way.checkpointed ? ", checkpoints" : "",
                run->way.denied ? ", team denied" : "");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    funlockfile(stderr);
}

void end_test(Report *report)
{
    if (report->complaints)
        report->failed++;
    else
        report->passed++;
    report->complaints = 0;
}

/* ---- a problem's arrays ---- */

static Array work_area(const Run *run, size_t bytes)
{
    const Array like = {.T = 1, .B = 1, .n = (ptrdiff_t)bytes, .size = 1, .alignment = FRNN_ALIGN};
    return new_array(like, GUARD_BYTE, run->way.fill);
}

static int has_steps(int k)
{
    return k == N_x || k == N_resets || k == N_dy || k == N_dc || k == N_y || k == N_c || k == N_dx;
}

/* Room for one tensor of a problem; no block when it is absent. */
static Array tensor_array(const Run *run, int k, int around, int fill)
{
    const Problem *p = run->problem;
    const size_t size = k == N_resets ? 1 : k == N_lengths || run->wide ? 8 : 4;
    const ptrdiff_t n = k == N_resets ? 1 : k == N_x || k == N_dx ? p->I : p->H;
    Array like = {.T = 1, .B = 1, .n = p->tensor[k].size, .size = size, .alignment = size};
    if (p->tensor[k].size < 0) return (Array){0};
    if (has_steps(k)) like = (Array){p->T, p->B, n, size, size, p->layout, .block = NULL};
    return new_array(like, around, fill);
}

/* An input; what lies round it and in the padding of its sequences is NaN, and nobody's business. */
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

/* ---- calls ---- */

/* The floating-point control register: how to round, what traps, whether denormals are flushed. */
static unsigned long floating_point_mode(void)
{
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3ful; /* without the flags of what has happened */
#elif defined(__aarch64__)
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
}

static void execute(const Run *run, void (*entry)(const frnn_call *, int), const frnn_call *call)
{
    const int held = run->way.denied ? frnn_team_acquire(2) : 1;
    const unsigned long mode = floating_point_mode();
    entry(call, 1);
    if (floating_point_mode() != mode) complain(run, "left another floating-point mode");
    frnn_team_release(held);
}

static frnn_call describe(const Run *run, const Array *in)
{
    const Problem *p = run->problem;
    frnn_call call = {.T = p->T, .B = p->B, .I = p->I, .H = p->H};
    call.reverse = (int)p->reverse;
    call.threads = run->way.threads;
    while (strcmp(run->table->cell_info(call.cell).name, p->cell)) call.cell++;
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
    call.dy = in[N_dy].at;
    call.dc = in[N_dc].at;
    call.dfinal[0] = in[N_dh_n].at.data;
    call.dfinal[1] = in[N_dc_n].at.data;
    return call;
}

/* Forward into `result`; a training one leaves `call->saved`. */
static void forward(const Run *run, frnn_call *call, Result *result)
{
    Array out[COUNT];
    for (int k = OUTPUTS; k < GRADIENTS; k++) out[k] = tensor_array(run, k, GUARD_BYTE, run->way.fill);
    call->y = out[N_y].at;
    call->c = out[N_c].at;
    call->final[0] = out[N_h_n].at.data;
    call->final[1] = out[N_c_n].at.data;
    Array work = work_area(run, run->table->forward_bytes(call));
    call->work = work.at.data;
    execute(run, run->table->forward, call);
    free(collect(run, &work, "the work area of forward"));
    for (int k = OUTPUTS; k < GRADIENTS; k++) result->dense[k] = collect(run, &out[k], tensor_names[k]);
}

static void backward(const Run *run, frnn_call *call, Array *saved, Result *result)
{
    Array out[COUNT];
    for (int k = GRADIENTS; k < COUNT; k++) out[k] = tensor_array(run, k, GUARD_BYTE, run->way.fill);
    call->y = call->c = (frnn_array){0};
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
    execute(run, run->table->backward, call);
    if (memcmp(before, saved->block, saved->bytes)) complain(run, "backward wrote to what forward saved");
    free(before);
    free(collect(run, &work, "the work area of backward"));
    for (int k = GRADIENTS; k < COUNT; k++) result->dense[k] = collect(run, &out[k], tensor_names[k]);
}

/* ---- what must hold ---- */

static void free_result(Result *result)
{
    for (int k = 0; k < COUNT; k++) free(result->dense[k]);
}

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

/* Inference with weights packed once, which is all that it may read of them: `forward`, and twice by a prepared plan. */
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
    call.y = out[N_y].at;
    call.c = out[N_c].at;
    call.final[0] = out[N_h_n].at.data;
    call.final[1] = out[N_c_n].at.data;
    call.work = work.at.data;
    table->prepare(&call, plan.at.data);
    for (int i = 0; i < 2; i++) {
        const int held = run->way.denied ? frnn_team_acquire(2) : 1;
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

/* One problem in every way. */
static void test_problem(Run run)
{
    Array in[COUNT];
    for (int k = 0; k < OUTPUTS; k++) in[k] = input_array(&run, k);
    run.way = ways[0];
    Result first = compute(&run, in);
    compare(&run, &first);
    frnn_call alone = describe(&run, in), together = alone;
    together.threads = 2;
    if (run.problem->shared && run.table->forward_bytes(&together) <= run.table->forward_bytes(&alone))
        complain(&run, "asks for no more work area on two threads, so it is not shared; make_vectors.py thinks it is");
    for (int i = 1; i < WAYS; i++) {
        if (ways[i].checkpointed && !run.problem->checkpoint) continue;
        if (!run.problem->shared && (ways[i].threads == 2 || ways[i].denied)) continue; /* it asks for no team */
        run.way = ways[i];
        Result again = compute(&run, in);
        same_bits(&run, &again, &first, COUNT, "than on one thread without checkpoints");
        free_result(&again);
    }
    free_result(&first);
    for (int k = 0; k < OUTPUTS; k++) free(in[k].block);
    end_test(run.report);
}

/* ---- several calls at once ---- */

enum { STACK = 4, STACK_OUTPUTS = 6 };

/* A stack of layers upon a problem's, those above with U for their W: its calls, and what they write. */
typedef struct {
    frnn_call calls[STACK];
    Array out[STACK][STACK_OUTPUTS], saved[STACK], work[STACK];
} Stack;

static Array room(const Run *run, const frnn_call *call, ptrdiff_t T, ptrdiff_t n)
{
    const size_t size = run->wide ? 8 : 4;
    return new_array((Array){.T = T, .B = call->B, .n = n, .size = size, .alignment = size}, GUARD_BYTE, run->way.fill);
}

static void expect_same_bits(const Run *run, Array *a, Array *b, const char *name)
{
    const size_t bytes = (size_t)(a->T * a->B * a->n) * a->size;
    char *got = collect(run, a, name), *expected = collect(run, b, name);
    if (bytes && memcmp(got, expected, bytes)) complain(run, "%s of a stack has other bits than of its layers alone", name);
    free(got);
    free(expected);
}

/* Forward and backward of all the calls, one by one or together; every cotangent of y is that of the problem. */
static void run_stack(const Run *run, Stack *s, const Array *in, int together)
{
    const frnn_table *table = run->table;
    for (int i = 0; i < STACK; i++) {
        frnn_call *call = &s->calls[i];
        *call = describe(run, in);
        const ptrdiff_t G = table->cell_info(call->cell).gates;
        if (i) {
            call->x = s->calls[i - 1].y;
            call->W = call->U;
            call->I = call->H;
            call->follows = 1;
        }
        call->training = 1;
        Array *out = s->out[i];
        out[0] = room(run, call, call->T, call->H);
        for (int k = 1; k < 3; k++) out[k] = room(run, call, 1, call->H);
        out[3] = room(run, call, call->T, call->I);
        out[4] = room(run, &(frnn_call){.B = G * call->H}, 1, call->I);
        out[5] = room(run, &(frnn_call){.B = G * call->H}, 1, call->H);
        call->y = out[0].at;
        for (int k = 0; k < 2; k++) call->final[k] = out[1 + k].at.data;
        s->saved[i] = work_area(run, table->saved_bytes(call));
        call->saved = s->saved[i].at.data;
        const size_t a = table->forward_bytes(call), b = table->backward_bytes(call);
        s->work[i] = work_area(run, a > b ? a : b);
        call->work = s->work[i].at.data;
        call->dx = out[3].at;
        call->dW = out[4].at.data;
        call->dU = out[5].at.data;
    }
    for (int i = 0; i < STACK && !together; i++) table->forward(&s->calls[i], 1);
    if (together) table->forward(s->calls, STACK);
    for (int i = 0; i < STACK && !together; i++) table->backward(&s->calls[i], 1);
    if (together) table->backward(s->calls, STACK);
}

/* The large problems as stacks: a wavefront forward, the layers' backward side by side. */
static void test_stacks(Run run, const Vectors *vectors)
{
    static const char *const names[STACK_OUTPUTS] = {"y", "h_n", "c_n", "dx", "dW", "dU"};
    for (int64_t i = 0; i < vectors->count; i++) {
        run.problem = &vectors->problems[i];
        if (!run.problem->shared || run.problem->layout != TIME_MAJOR) continue;
        Array in[COUNT];
        for (int k = 0; k < OUTPUTS; k++) in[k] = input_array(&run, k);
        for (int threads = 2; threads <= 3; threads++) {
            Stack alone, together;
            run.way = (Way){1, 0, 0, 0xff};
            run_stack(&run, &alone, in, 0);
            run.way = (Way){threads, 0, 0, 0x00};
            run_stack(&run, &together, in, 1);
            for (int l = 0; l < STACK; l++) {
                const int states = run.table->cell_info(alone.calls[l].cell).states;
                for (int k = 0; k < STACK_OUTPUTS; k++) {
                    if (k == 2 && states < 2) { /* no c */
                        free(alone.out[l][k].block);
                        free(together.out[l][k].block);
                    } else
                        expect_same_bits(&run, &together.out[l][k], &alone.out[l][k], names[k]);
                }
                Stack *both[2] = {&alone, &together};
                for (int k = 0; k < 2; k++) {
                    free(collect(&run, &both[k]->saved[l], "what a stack saves"));
                    free(collect(&run, &both[k]->work[l], "the work area of a stack"));
                }
            }
        }
        for (int k = 0; k < OUTPUTS; k++) free(in[k].block);
        end_test(run.report);
    }
}

/* ---- several callers at once ---- */

enum { CALLERS = 3 };

typedef struct {
    Run run;
    const Vectors *vectors;
    int id;
    Report report;
} Caller;

static void *call_along(void *arg)
{
    Caller *caller = arg;
    caller->run.report = &caller->report;
    for (int64_t i = caller->id; i < caller->vectors->count; i += CALLERS) {
        caller->run.problem = &caller->vectors->problems[i];
        if (caller->run.problem->shared) test_problem(caller->run);
    }
    return NULL;
}

/* The large problems again, dealt to callers that all want the team. */
static void test_callers(Run run, const Vectors *vectors)
{
    Caller callers[CALLERS];
    pthread_t threads[CALLERS];
    for (int id = 0; id < CALLERS; id++) {
        callers[id] = (Caller){run, vectors, id, {0}};
        if (pthread_create(&threads[id], NULL, call_along, &callers[id])) abort();
    }
    for (int id = 0; id < CALLERS; id++) {
        pthread_join(threads[id], NULL);
        run.report->passed += callers[id].report.passed;
        run.report->failed += callers[id].report.failed;
    }
}

static void test_table(Run run, const Vectors *vectors, int callers)
{
    run.report->worst = 0;
    for (int64_t i = 0; i < vectors->count; i++) {
        run.problem = &vectors->problems[i];
        test_problem(run);
    }
    printf("%-10s float%d: worst error %.2g of what is allowed, %s\n", run.isa, run.wide ? 64 : 32, run.report->worst,
           run.report->worst_name);
    run.problem = NULL;
    test_activations(&run);
    if (callers) test_stacks(run, vectors);
    if (callers) test_callers(run, vectors);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    Report report = {0};
    Vectors vectors = {0};
    frnn_team_set_retreat(0);
    if (argc == 2) vectors = read_vectors(argv[1]);
    if (!vectors.problems) return fprintf(stderr, "usage: %s FILE, by this make_vectors.py\n", argv[0]), 2;
    for (int i = 0; i < frnn_isa_count; i++) {
        const frnn_isa *isa = &frnn_isas[i];
#if defined(FRNN_TEST_BASELINE)
        if (i) break;
#endif
        if (!isa->supported()) {
            printf("%-10s does not run here\n", isa->name);
            continue;
        }
        test_table((Run){isa->name, isa->f32, 0, NULL, ways[0], &report}, &vectors, 1);
        test_table((Run){isa->name, isa->f64, 1, NULL, ways[0], &report}, &vectors, 0);
    }
    free_vectors(&vectors);
    printf("%d passed, %d failed\n", report.passed, report.failed);
    return report.failed > 0 || report.passed == 0;
}
