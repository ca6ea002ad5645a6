/* Runs the problems of make_vectors.py through every instruction set and dtype of the C core:
 *
 *     run_vectors FILE
 *
 * The file says what to expect, so no formula stands here. Every result must be within its error, and have the same bits
 * for any number of threads, with and without checkpoints, and when the team is somebody else's. Outputs and work areas
 * have no more than they asked for and start out full of NaN; the bytes round them must survive. Arrays of the caller
 * are aligned to their elements only, work areas to FRNN_ALIGN only.
 */
#include "fastrnn.h"
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

/* In the order of the file: inputs, cotangents, outputs of forward, gradients. */
#define TENSORS(T)                                                                                                     \
    T(x) T(W) T(U) T(b) T(b_rec) T(p) T(h0) T(c0) T(lengths) T(resets) T(dy) T(dh_n) T(dc_n) T(dc)                     \
    T(y) T(h_n) T(c_n) T(c) T(dx) T(dW) T(dU) T(db) T(db_rec) T(dp) T(dh0) T(dc0)
#define NUMBER(name) N_##name,
#define NAME(name) #name,
enum { TENSORS(NUMBER) COUNT, OUTPUTS = N_y, GRADIENTS = N_dx };
static const char *const names[] = {TENSORS(NAME)};

typedef struct {
    int64_t size; /* -1: absent */
    double tolerance[2];
    const double *values;
} Tensor;

typedef struct {
    int64_t number; /* in the file */
    char cell[16];
    int64_t T, B, I, H, reverse, layout, checkpoint, shared;
    Tensor tensor[COUNT];
} Problem;

enum { TIME_MAJOR, BATCH_FIRST, BACKWARDS };

/* One way to compute a problem. */
typedef struct {
    int threads, checkpointed;
    int denied; /* the team is taken, so the call must do alone what it has laid out for several threads */
    int fill;   /* every byte of outputs and work areas at the start; 0xff makes NaNs */
} Way;

static const Way ways[] = {
    {1, 0, 0, 0xff}, {2, 0, 0, 0xff}, {3, 0, 0, 0x00}, {3, 0, 1, 0xff},
    {1, 1, 0, 0xff}, {2, 1, 0, 0x7f}, {3, 1, 0, 0xff}, {3, 1, 1, 0xff},
};
enum { WAYS = sizeof ways / sizeof *ways };

typedef struct {
    int passed, failed, complaints; /* complaints: of the test at hand */
    double worst;                   /* error as a part of the error allowed */
    char worst_name[64];
} Report;

/* What one call has to do with: a problem on a table, computed in one way. */
typedef struct {
    const char *isa;
    const frnn_table *table;
    int wide; /* 0 float32, 1 float64 */
    const Problem *problem;
    Way way;
    Report *report;
} Run;

typedef struct {
    char *dense[COUNT]; /* outputs, time-major without gaps; null when absent */
} Result;

static void complain(const Run *run, const char *format, ...)
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

static void end_test(Report *report)
{
    if (report->complaints)
        report->failed++;
    else
        report->passed++;
    report->complaints = 0;
}

/* ---- arrays between guard bytes ---- */

#if defined(__SANITIZE_ADDRESS__)
enum { GUARD = 0 }; /* the sanitizer's own guards are better: they notice reads */
#else
enum { GUARD = 256 };
#endif
enum { GUARD_BYTE = 0xa5, GAP = 3 };

typedef struct {
    unsigned char *block;
    size_t bytes;      /* of the block */
    ptrdiff_t T, B, n; /* elements */
    size_t size;       /* of an element */
    frnn_array at;
} Array;

static unsigned char *row_at(const Array *a, ptrdiff_t t, ptrdiff_t b)
{
    return (unsigned char *)a->at.data + (t * a->at.step + b * a->at.row) * (ptrdiff_t)a->size;
}

/* T x B x n elements full of `fill`, `offset` bytes from an address that is aligned to more than anybody asks. */
static Array new_array(ptrdiff_t T, ptrdiff_t B, ptrdiff_t n, size_t size, int64_t layout, size_t offset, int around,
                       int fill)
{
    Array a = {.T = T, .B = B, .n = n, .size = size};
    const ptrdiff_t row = layout == BACKWARDS ? n + GAP : n;
    a.bytes = GUARD + offset + (size_t)(T * B * row) * size + GUARD;
    if (posix_memalign((void **)&a.block, 4 * FRNN_ALIGN, a.bytes)) abort();
    memset(a.block, around, a.bytes);
    a.at = (frnn_array){a.block + GUARD + offset, B * row, row};
    if (layout == BATCH_FIRST) a.at = (frnn_array){a.at.data, row, T * row};
    if (layout == BACKWARDS && T > 0) a.at = (frnn_array){row_at(&a, T - 1, 0), -B * row, row};
    for (ptrdiff_t t = 0; t < T; t++)
        for (ptrdiff_t b = 0; b < B; b++) memset(row_at(&a, t, b), fill, (size_t)n * size);
    return a;
}

static Array work_area(const Run *run, size_t bytes)
{
    return new_array(1, 1, (ptrdiff_t)bytes, 1, TIME_MAJOR, FRNN_ALIGN, GUARD_BYTE, run->way.fill);
}

/* The array's elements without gaps, after a look at all the bytes round them; frees the array. */
static char *collect(const Run *run, Array *a, const char *name)
{
    const size_t row = (size_t)a->n * a->size;
    char *dense = malloc((size_t)(a->T * a->B) * row + 1);
    if (!a->block) return free(dense), NULL;
    for (ptrdiff_t t = 0; t < a->T; t++)
        for (ptrdiff_t b = 0; b < a->B; b++) {
            memcpy(dense + (size_t)(t * a->B + b) * row, row_at(a, t, b), row);
            memset(row_at(a, t, b), GUARD_BYTE, row);
        }
    for (size_t i = 0; i < a->bytes; i++)
        if (a->block[i] != GUARD_BYTE) {
            complain(run, "wrote outside of %s, %td bytes from its start", name,
                     a->block + i - (unsigned char *)a->at.data);
            break;
        }
    free(a->block);
    return dense;
}

static double get(const void *data, size_t i, int wide)
{
    return wide ? ((const double *)data)[i] : (double)((const float *)data)[i];
}

static void put(void *to, size_t size, int tensor, double value)
{
    const float narrow = (float)value;
    const int64_t integer = (int64_t)value;
    const unsigned char byte = value != 0;
    memcpy(to, tensor == N_resets ? (const void *)&byte : tensor == N_lengths ? (const void *)&integer
               : size == sizeof narrow ? (const void *)&narrow : (const void *)&value, size);
}

/* Room for one tensor of a problem; no block when it is absent. */
static Array tensor_array(const Run *run, int k, int around, int fill)
{
    const Problem *p = run->problem;
    const int by_step = k == N_x || k == N_resets || k == N_dy || k == N_dc || k == N_y || k == N_c || k == N_dx;
    const size_t size = k == N_resets ? 1 : k == N_lengths || run->wide ? 8 : 4;
    const ptrdiff_t n = k == N_resets ? 1 : k == N_x || k == N_dx ? p->I : p->H;
    if (p->tensor[k].size < 0) return (Array){0};
    if (by_step) return new_array(p->T, p->B, n, size, p->layout, size, around, fill);
    return new_array(1, 1, p->tensor[k].size, size, TIME_MAJOR, size, around, fill);
}

/* An input; what lies round it and in the padding of its sequences is NaN, and nobody's business. */
static Array input_array(const Run *run, int k)
{
    const Tensor *tensor = &run->problem->tensor[k], *lengths = &run->problem->tensor[N_lengths];
    Array a = tensor_array(run, k, 0xff, 0xff);
    for (ptrdiff_t t = 0; t < a.T; t++)
        for (ptrdiff_t b = 0; b < a.B; b++) {
            const int by_step = k == N_x || k == N_resets || k == N_dy || k == N_dc;
            if (by_step && lengths->size >= 0 && t >= (ptrdiff_t)lengths->values[b]) continue;
            for (ptrdiff_t i = 0; i < a.n; i++)
                put(row_at(&a, t, b) + (size_t)i * a.size, a.size, k, tensor->values[(t * a.B + b) * a.n + i]);
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

static void execute(const Run *run, void (*entry)(const frnn_call *), const frnn_call *call)
{
    const int held = run->way.denied ? frnn_team_acquire(2) : 1;
    const unsigned long mode = floating_point_mode();
    entry(call);
    if (floating_point_mode() != mode) complain(run, "left another floating-point mode");
    frnn_team_release(held);
}

static frnn_call describe(const Run *run, const Array *in)
{
    const Problem *p = run->problem;
    frnn_call call = {.reverse = (int)p->reverse, .threads = run->way.threads, .T = p->T, .B = p->B, .I = p->I, .H = p->H};
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
    for (int k = OUTPUTS; k < GRADIENTS; k++) result->dense[k] = collect(run, &out[k], names[k]);
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
    for (int k = GRADIENTS; k < COUNT; k++) result->dense[k] = collect(run, &out[k], names[k]);
}

/* ---- what must hold ---- */

static void same_bits(const Run *run, const Result *got, const Result *expected, int last, const char *where)
{
    for (int k = OUTPUTS; k < last; k++) {
        const size_t bytes = got->dense[k] ? (size_t)run->problem->tensor[k].size * (run->wide ? 8 : 4) : 0;
        if (bytes && memcmp(got->dense[k], expected->dense[k], bytes)) complain(run, "%s has other bits %s", names[k], where);
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
            complain(run, "%s is off by %.3g of its norm, allowed is %.3g", names[k], sqrt(distance / size), tolerance);
        if (ratio > run->report->worst) {
            run->report->worst = ratio;
            snprintf(run->report->worst_name, sizeof run->report->worst_name, "%s of #%d %s", names[k],
                     (int)run->problem->number, run->problem->cell);
        }
    }
}

static void free_result(Result *result)
{
    for (int k = 0; k < COUNT; k++) free(result->dense[k]);
}

/* Inference, training and backward in run->way. */
static Result compute(const Run *run, const Array *in)
{
    Result trained = {{0}}, inferred = {{0}};
    frnn_call call = describe(run, in);
    forward(run, &call, &inferred);
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

/* ---- several callers at once ---- */

enum { CALLERS = 3 };

typedef struct {
    Run run;
    const Problem *problems;
    int64_t count;
    int id;
    Report report;
} Caller;

static void *call_along(void *arg)
{
    Caller *caller = arg;
    caller->run.report = &caller->report;
    for (int64_t i = caller->id; i < caller->count; i += CALLERS) {
        caller->run.problem = &caller->problems[i];
        if (caller->problems[i].shared) test_problem(caller->run);
    }
    return NULL;
}

/* The large problems again, dealt to callers that all want the team. */
static void test_callers(Run run, const Problem *problems, int64_t count)
{
    Caller callers[CALLERS];
    pthread_t threads[CALLERS];
    for (int id = 0; id < CALLERS; id++) {
        callers[id] = (Caller){run, problems, count, id, {0}};
        if (pthread_create(&threads[id], NULL, call_along, &callers[id])) abort();
    }
    for (int id = 0; id < CALLERS; id++) {
        pthread_join(threads[id], NULL);
        run.report->passed += callers[id].report.passed;
        run.report->failed += callers[id].report.failed;
    }
}

/* ---- activations ---- */

enum { POINTS = 100003 };

static double ulp(double exact, int wide)
{
    return wide ? nextafter(fabs(exact), INFINITY) - fabs(exact)
                : (double)(nextafterf(fabsf((float)exact), INFINITY) - fabsf((float)exact));
}

/* Even steps over the bit patterns, then over where the function is neither flat nor linear, and special values. */
static void fill_points(Array *x, int wide)
{
    static const double special[] = {0, -0.0, INFINITY, -INFINITY, NAN};
    const double range = wide ? 740 : 100;
    for (int i = 0; i < POINTS; i++) {
        double value = i < 5 ? special[i] : range * (2.0 * i / POINTS - 1);
        const uint64_t pattern = UINT64_MAX / POINTS * (uint64_t)i;
        const uint32_t narrow = (uint32_t)(pattern >> 32);
        float single;
        if (i % 2 && i >= 5) {
            memcpy(&value, &pattern, sizeof value);
            memcpy(&single, &narrow, sizeof single);
            if (!wide) value = (double)single;
        }
        put(row_at(x, 0, 0) + (size_t)i * x->size, x->size, N_x, value);
    }
}

/* Whether y is what the function must be at x when that is no normal number, or x is none. */
static int is_special(double x, double y, double exact, double tiny)
{
    if (isnan(x)) return isnan(y);
    if (isinf(x)) return y == exact;
    return fabs(exact) < tiny && fabs(y) <= tiny && !signbit(y) == !signbit(exact);
}

/* Within 2 ulp of the C library's next wider type. */
static void test_activation(Run run, int is_tanh)
{
    const char *name = is_tanh ? "tanh" : "sigmoid";
    const size_t size = run.wide ? 8 : 4;
    const double tiny = run.wide ? 0x1p-1022 : 0x1p-126;
    double worst = 0;
    run.way.fill = 0xff;
    Array in = new_array(1, 1, POINTS, size, TIME_MAJOR, size, 0xff, 0xff);
    Array out = new_array(1, 1, POINTS, size, TIME_MAJOR, size, GUARD_BYTE, 0xff);
    fill_points(&in, run.wide);
    (is_tanh ? run.table->tanh : run.table->sigmoid)(POINTS, in.at.data, out.at.data);
    char *got = collect(&run, &out, name);
    for (size_t i = 0; i < POINTS; i++) {
        const double x = get(in.at.data, i, run.wide), y = get(got, i, run.wide);
        const long double exact = is_tanh ? tanhl(x) : 1 / (1 + expl(-(long double)x));
        const double error = fabs((double)(y - exact)) / ulp((double)exact, run.wide);
        if (is_special(x, y, (double)exact, tiny)) continue;
        if (!(error <= 2)) complain(&run, "%s(%.17g) is %.17g, off by %.3g ulp", name, x, y, error);
        if (error > worst) worst = error;
    }
    printf("%-10s float%d: %s within %.2f ulp\n", run.isa, run.wide ? 64 : 32, name, worst);
    free(in.block);
    free(got);
    end_test(run.report);
}

/* ---- the file ---- */

static const char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    const size_t bytes = (size_t)ftell(file);
    char *data = malloc(bytes);
    rewind(file);
    if (fread(data, 1, bytes, file) != bytes) return NULL;
    fclose(file);
    return data;
}

/* The problems in `data`, which they point into; null when the file's tensors are not ours. */
static Problem *parse(const char *data, int64_t *count)
{
    enum { LINE = 256 };
    char line[LINE] = "";
    for (int k = 0; k < COUNT; k++) strcat(strcat(line, k ? " " : ""), names[k]);
    if (memcmp(line, data, LINE)) return NULL;
    data += LINE;
    memcpy(count, data, sizeof *count);
    data += sizeof *count;
    Problem *problems = calloc((size_t)*count, sizeof *problems);
    for (int64_t i = 0; i < *count; i++) {
        const size_t head = offsetof(Problem, tensor) - offsetof(Problem, cell);
        problems[i].number = i;
        memcpy(problems[i].cell, data, head);
        data += head;
        for (int k = 0; k < COUNT; k++) {
            Tensor *tensor = &problems[i].tensor[k];
            memcpy(tensor, data, offsetof(Tensor, values));
            data += offsetof(Tensor, values);
            tensor->values = (const double *)data;
            if (tensor->size > 0) data += (size_t)tensor->size * sizeof(double);
        }
    }
    return problems;
}

static void test_table(Run run, const Problem *problems, int64_t count, int callers)
{
    run.report->worst = 0;
    for (int64_t i = 0; i < count; i++) {
        run.problem = &problems[i];
        test_problem(run);
    }
    printf("%-10s float%d: worst error %.2g of what is allowed, %s\n", run.isa, run.wide ? 64 : 32, run.report->worst,
           run.report->worst_name);
    run.problem = NULL;
    test_activation(run, 0);
    test_activation(run, 1);
    if (callers) test_callers(run, problems, count);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int64_t count = 0;
    Report report = {0};
    const char *data = argc == 2 ? read_file(argv[1]) : NULL;
    Problem *problems = data ? parse(data, &count) : NULL;
    if (!problems) return fprintf(stderr, "usage: %s FILE, one of this version's make_vectors.py\n", argv[0]), 2;
    for (int i = 0; i < frnn_isa_count; i++) {
        const frnn_isa *isa = &frnn_isas[i];
        if (!isa->supported()) {
            printf("%-10s does not run here\n", isa->name);
            continue;
        }
        test_table((Run){isa->name, isa->f32, 0, NULL, ways[0], &report}, problems, count, 1);
        test_table((Run){isa->name, isa->f64, 1, NULL, ways[0], &report}, problems, count, 0);
    }
    free(problems);
    free((void *)data);
    printf("%d passed, %d failed\n", report.passed, report.failed);
    return report.failed > 0 || report.passed == 0;
}
