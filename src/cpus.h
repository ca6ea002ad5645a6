/* The CPU that a thread is on, and its affinity; on Linux only, elsewhere no-ops. */
#ifndef FRNN_CPUS_H
#define FRNN_CPUS_H

#include <pthread.h>
#include <sched.h>

/* -1 if unknown. */
static inline int current_cpu(void)
{
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

/* Remove a CPU from a thread's affinity mask, but never the last one, or add it back; return whether it changed. */
static inline int allow_cpu(pthread_t thread, int cpu, int allowed)
{
#if defined(__linux__)
    cpu_set_t cpus;
    if (cpu < 0 || pthread_getaffinity_np(thread, sizeof cpus, &cpus) || !CPU_ISSET(cpu, &cpus) == !allowed) return 0;
    if (allowed)
        CPU_SET(cpu, &cpus);
    else
        CPU_CLR(cpu, &cpus);
    return CPU_COUNT(&cpus) && !pthread_setaffinity_np(thread, sizeof cpus, &cpus);
#else
    (void)thread, (void)cpu, (void)allowed;
    return 0;
#endif
}

#endif
