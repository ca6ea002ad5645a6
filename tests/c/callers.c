/* Several parallel callers that all request the team: the shared problems again, divided among them. */
#include "check.h"

#include <pthread.h>
#include <stdlib.h>

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
        if (caller->run.problem->work == SHARED) test_problem(caller->run, 1);
    }
    return NULL;
}

void test_callers(Run run, const Vectors *vectors)
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
