/* One persistent team of threads for the whole process.
 *
 * A call acquires the team, runs one job on it, and releases it. When another Python thread holds the team, the system
 * gives no more threads, or other work has just kept them from the CPUs, acquire says 1 and the call runs on its
 * caller's thread alone: by the fixed order of summation its result has the same bits. A child of fork starts with an
 * empty team.
 */
#ifndef FRNN_TEAM_H
#define FRNN_TEAM_H

#include "fastrnn.h"

#include <stdatomic.h>
#include <stddef.h>

enum { FRNN_MAX_THREADS = 256 }; /* plans ask for no more */

static const double WORTH_THREADS = 1e7; /* flop of a job that repay handing a part to a thread that is awake; */
static const double WORTH_WAKING = 5e7;  /* and to one that sleeps, up to 0.2 ms on a virtual machine */

typedef void (*frnn_job)(void *arg, int id);

/* The number of threads granted for a job of so many flop: `wanted`, or 1. Every acquire is followed by one release of
 * what it granted, after the job. */
int frnn_team_acquire(int wanted, double flop);
void frnn_team_release(int granted);

/* Whether threads that sleep, or were kept from the CPUs, are left alone where they would cost more than they bring, as
 * they are unless told; tests want them. */
void frnn_team_set_retreat(int on);

/* job(arg, id) for id = 0 (the caller) .. granted - 1, denormals flushed; returns when all have returned. */
void frnn_team_run(int granted, frnn_job job, void *arg);

/* Inside a job: how far one thread has come, for another that waits for it. */
typedef atomic_ptrdiff_t frnn_progress;
void frnn_team_reach(frnn_progress *progress, ptrdiff_t steps);
void frnn_team_await(const frnn_progress *progress, ptrdiff_t steps);

/* Inside a job: whether it is to end early, asked after so much more work. Who sees that it is does no more work, but
 * keeps every appointment: so all come to the end, whenever each of them sees it. */
int frnn_team_ended(frnn_stop *stop, double flop);

/* Inside a job: wait until all of its threads are here. What they wrote before is visible after. */
void frnn_team_barrier(int granted);

#endif
