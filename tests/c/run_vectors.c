/* Runs the problems of make_vectors.py through every instruction set and dtype of the C core:
 *
 *     run_vectors FILE [threads|memory]
 *
 * The file contains the expected results, so there are no formulas here. Every result must be within its error, and have
 * the same bits for any number of threads, with and without checkpoints, and if another caller holds the team. Outputs
 * and work areas have exactly the requested size and are initially NaN; the bytes around them must not change. The
 * caller's arrays are aligned only to their elements, work areas only to FRNN_ALIGN. Stacks of the large problems,
 * forward and backward of all layers in one call, have the bits of single layers; several callers request the team; a
 * row alone has the bits that it has among others; and no thread is kept off a CPU permanently. With `threads`, only
 * cases where several threads share the work; with `memory`, only the baseline, without sigmoid and tanh, whose results
 * below the normal numbers are not flushed to zero under valgrind.
 */
#include "check.h"
#include "team.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define NAME(name) #name,
const char *const tensor_names[] = {TENSORS(NAME)};

void complain(const Run *run, const char *format, ...)
{
    va_list arguments;
    const Problem *p = run->problem;
    if (run->report->complaints++ >= 3) return;
    flockfile(stderr);
    fprintf(stderr, "%s float%d: ", run->isa, run->wide ? 64 : 32);
    if (p)
        fprintf(stderr, "#%d %s (%d, %d, %d, %d), %d threads%s%s%s: ", (int)p->number, p->cell, (int)p->T, (int)p->B,
                (int)p->I, (int)p->H, run->way.threads, run->way.checkpointed ? ", checkpoints" : "",
                run->way.denied ? ", team denied" : "", run->way.left ? ", left to one" : "");
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

enum { ALL, THREADS, MEMORY };

static void test_table(Run run, const Vectors *vectors, int part)
{
    run.report->worst = 0;
    for (int64_t i = 0; i < vectors->count; i++) {
        run.problem = &vectors->problems[i];
        if (part != THREADS || run.problem->work == SHARED) test_problem(run, part == THREADS);
    }
    printf("%-10s float%d: worst error %.2g of what is allowed, %s\n", run.isa, run.wide ? 64 : 32, run.report->worst,
           run.report->worst_name);
    run.problem = NULL;
    if (part == ALL) test_activations(&run);
    test_dense(&run, part == THREADS);
    if (!run.wide) {
        test_int8(&run);
        test_stacks(run, vectors);
        test_callers(run, vectors);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    Report report = {0};
    Vectors vectors = {0};
    frnn_team_set_backoff(FRNN_NEVER);
    test_places(&report);
    const char *wanted = argc == 3 ? argv[2] : "";
    const int part = strcmp(wanted, "threads") == 0 ? THREADS : strcmp(wanted, "memory") == 0 ? MEMORY : ALL;
    if (argc == 2 || part) vectors = read_vectors(argv[1]);
    if (!vectors.problems)
        return fprintf(stderr, "usage: %s FILE [threads|memory], by this make_vectors.py\n", argv[0]), 2;
    for (int i = 0; i < frnn_isa_count; i++) {
        const frnn_isa *isa = &frnn_isas[i];
        if (part == MEMORY && i) break;
        if (!isa->supported()) {
            printf("%-10s does not run here\n", isa->name);
            continue;
        }
        test_table((Run){isa->name, isa->f32, 0, .report = &report}, &vectors, part);
        test_table((Run){isa->name, isa->f64, 1, .report = &report}, &vectors, part);
    }
    free_vectors(&vectors);
    printf("%d passed, %d failed\n", report.passed, report.failed);
    return report.failed > 0 || report.passed == 0;
}
