/* Several layers in one call: a stack, whose forward is a wavefront if one layer does not fill the threads, and
 * parallel layers in two directions. They must have the bits of single layers.
 */
#include "check.h"

#include <stdlib.h>
#include <string.h>

enum { LAYERS = 4, WRITTEN = 6 };

static const char *const names[WRITTEN] = {"y", "h_n", "c_n", "dx", "dW", "dU"};

/* Every layer has the problem's parameters, states and cotangents. */
typedef struct {
    frnn_call calls[LAYERS];
    Array written[LAYERS][WRITTEN], saved[LAYERS], work[LAYERS];
} Stack;

static Array room(const Run *run, ptrdiff_t T, ptrdiff_t rows, ptrdiff_t n)
{
    const size_t size = run->wide ? 8 : 4;
    return new_array((Array){.T = T, .B = rows, .n = n, .size = size, .alignment = size}, GUARD_BYTE, run->way.fill);
}

/* Layer i: reads the layer below, with U as its W; or runs in parallel with it, in the other direction. */
static void lay(const Run *run, Stack *s, const Array *in, int i, int reads_previous)
{
    frnn_call *call = &s->calls[i];
    const frnn_table *table = run->table;
    Array *written = s->written[i];
    *call = describe(run, in);
    call->training = 1;
    call->checkpoint = run->way.checkpointed ? run->problem->checkpoint : 0;
    if (i && reads_previous) {
        call->x = s->calls[i - 1].out[0];
        call->W = call->U;
        call->I = call->H;
        call->reads_previous = 1;
    } else
        call->reverse ^= i % 2;
    const ptrdiff_t GH = call->cell->gates * call->H;
    written[0] = room(run, call->T, call->B, call->H);
    for (int k = 0; k < call->cell->states; k++) {
        written[1 + k] = room(run, 1, call->B, call->H);
        call->final[k] = written[1 + k].at.data;
    }
    written[3] = room(run, call->T, call->B, call->I);
    written[4] = room(run, 1, GH, call->I);
    written[5] = room(run, 1, GH, call->H);
    call->out[0] = written[0].at;
    call->dx = written[3].at;
    call->dW = written[4].at.data;
    call->dU = written[5].at.data;
    s->saved[i] = work_area(run, table->saved_bytes(call));
    call->saved = s->saved[i].at.data;
    const size_t forth = table->forward_bytes(call), back = table->backward_bytes(call);
    s->work[i] = work_area(run, forth > back ? forth : back);
    call->work = s->work[i].at.data;
}

/* All the layers in one call, or one by one. */
static void pass(const Run *run, Entry entry, const Stack *s, int together)
{
    const int before = team_jobs;
    for (int i = 0; i < LAYERS; i += together ? LAYERS : 1) execute(run, entry, s->calls + i, together ? LAYERS : 1);
    if (together && !run->way.denied && run->problem->work == STACKED && team_jobs != before + 1)
        complain(run, "took %d jobs of several threads for what is one of layers side by side", team_jobs - before);
}

static Stack compute(const Run *run, const Array *in, int reads_previous, int together)
{
    Stack s = {0};
    for (int i = 0; i < LAYERS; i++) lay(run, &s, in, i, reads_previous);
    pass(run, run->table->forward, &s, together);
    for (int i = 0; i < LAYERS; i++) { /* otherwise backward with checkpoints rewrites them while others read them */
        s.calls[i].out[0] = (frnn_array){0};
        s.calls[i].final[0] = s.calls[i].final[1] = NULL;
    }
    pass(run, run->table->backward, &s, together);
    return s;
}

static void free_stack(const Run *run, Stack *s)
{
    for (int i = 0; i < LAYERS; i++) {
        for (int k = 0; k < WRITTEN; k++) free(collect(run, &s->written[i][k], names[k]));
        free(collect(run, &s->saved[i], "what forward saves"));
        free(collect(run, &s->work[i], "the work area"));
    }
}

static void same_bits(const Run *run, const Stack *got, const Stack *expected)
{
    for (int i = 0; i < LAYERS; i++)
        for (int k = 0; k < WRITTEN; k++) {
            const Array *a = &got->written[i][k], *b = &expected->written[i][k];
            const size_t bytes = (size_t)(a->T * a->B * a->n) * a->size;
            if (a->block && memcmp(a->at.data, b->at.data, bytes))
                complain(run, "%s of layer %d has other bits than by itself", names[k], i);
        }
}

static void test_stack(Run run, int reads_previous)
{
    static const Way ways[] = {{2, 0, 0, 0x00, 0}, {3, 1, 0, 0xff, 0}, {3, 0, 1, 0x7f, 0}};
    Array in[OUTPUTS];
    make_inputs(&run, in);
    run.way = (Way){1, 0, 0, 0xff, 0};
    Stack expected = compute(&run, in, reads_previous, 0);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        run.way = ways[i];
        Stack got = compute(&run, in, reads_previous, 1);
        same_bits(&run, &got, &expected);
        free_stack(&run, &got);
    }
    free_stack(&run, &expected);
    free_inputs(in);
    end_test(run.report);
}

void test_stacks(Run run, const Vectors *vectors)
{
    for (int64_t i = 0; i < vectors->count; i++) {
        run.problem = &vectors->problems[i];
        if (run.problem->work == ALONE || (run.problem->work == SHARED && run.problem->layout != TIME_MAJOR)) continue;
        test_stack(run, 1);
        test_stack(run, 0);
    }
}
