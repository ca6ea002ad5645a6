/* The team's use of its threads' CPU affinity, on a simulated machine with four CPUs. */
#define _GNU_SOURCE /* CPU sets */
#include "check.h"
#include "team.h"

#if defined(__linux__) /* elsewhere the team does not set affinities */

#include <pthread.h>
#include <sched.h>
#include <time.h>

enum { CPUS = 4, ALL_CPUS = (1 << CPUS) - 1, WORKER_CPU = CPUS - 1 };

static atomic_int simulated;
static int callers_cpu;
static pthread_t caller;
static atomic_uint workers_cpus; /* a bit for each that the one worker may run on */

/* The linker redirects the core's calls of these three functions to this file. */
int __real_sched_getcpu(void);
int __real_pthread_getaffinity_np(pthread_t thread, size_t size, cpu_set_t *cpus);
int __real_pthread_setaffinity_np(pthread_t thread, size_t size, const cpu_set_t *cpus);
int __wrap_sched_getcpu(void);
int __wrap_pthread_getaffinity_np(pthread_t thread, size_t size, cpu_set_t *cpus);
int __wrap_pthread_setaffinity_np(pthread_t thread, size_t size, const cpu_set_t *cpus);

int __wrap_sched_getcpu(void)
{
    if (!simulated) return __real_sched_getcpu();
    return pthread_equal(pthread_self(), caller) ? callers_cpu : WORKER_CPU;
}

int __wrap_pthread_getaffinity_np(pthread_t thread, size_t size, cpu_set_t *cpus)
{
    if (!simulated) return __real_pthread_getaffinity_np(thread, size, cpus);
    CPU_ZERO(cpus);
    for (int cpu = 0; cpu < CPUS; cpu++)
        if (workers_cpus >> cpu & 1) CPU_SET(cpu, cpus);
    return 0;
}

int __wrap_pthread_setaffinity_np(pthread_t thread, size_t size, const cpu_set_t *cpus)
{
    if (!simulated) return __real_pthread_setaffinity_np(thread, size, cpus);
    unsigned allowed = 0;
    for (int cpu = 0; cpu < CPUS; cpu++) allowed |= (unsigned)!!CPU_ISSET(cpu, cpus) << cpu;
    workers_cpus = allowed;
    return 0;
}

static void no_work(void *arg, int id) { (void)arg, (void)id; }

/* A worker is kept off its caller's CPU until it is awake, and then may run on all CPUs again: also a new worker that
 * fell asleep before its first job, while the caller moved to another CPU. Runs before all tests that use the team. */
void test_places(Report *report)
{
    const Run run = {.isa = "places", .report = report};
    const struct timespec until_asleep = {0, 100 * 1000 * 1000};
    simulated = 1;
    caller = pthread_self();
    workers_cpus = ALL_CPUS;
    callers_cpu = 0;
    const int granted = frnn_team_acquire(2, WORTH_WAKING);
    nanosleep(&until_asleep, NULL);
    callers_cpu = 1;
    frnn_team_run(granted, no_work, NULL);
    frnn_team_release(granted);
    if (workers_cpus != ALL_CPUS) complain(&run, "a worker may run on CPUs %x of %x", workers_cpus, ALL_CPUS);
    simulated = 0;
    end_test(report);
}

#else
void test_places(Report *report) { (void)report; }
#endif
