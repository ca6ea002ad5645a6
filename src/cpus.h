/* Which CPU a thread is on, and which it may run on: Linux's own, and nothing elsewhere. */
#ifndef FRNN_CPUS_H
#define FRNN_CPUS_H

#include <pthread.h>
#include <sched.h>

/* -1 where nobody knows. */
static inline int current_cpu(void)
{
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

/* Take a CPU from those that a thread may run on, or give it back; whether that changed anything. One always stays. */
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
