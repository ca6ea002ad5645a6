/* One persistent thread pool (the team) for the whole process.
 *
 * A call acquires the team, runs one job on it, and releases it. If another Python thread holds the team, the system
 * cannot create threads, or other work has just kept them from the CPUs, acquire returns 1 and the call runs on the
 * caller's thread alone; the result is bit-identical because the order of summation is fixed. A forked child starts
 * with an empty team.
 */
#ifndef FRNN_TEAM_H
#define FRNN_TEAM_H

#include "fastrnn.h"

#include <stdatomic.h>
#include <stddef.h>

enum { FRNN_MAX_THREADS = 256 }; /* upper limit of every plan */

static const double WORTH_THREADS = 1e7; /* least flop of a job that uses a running thread; */
static const double WORTH_WAKING = 5e7;  /* or that wakes a sleeping one, in up to 0.2 ms on a virtual machine */

typedef void (*frnn_job)(void *arg, int id);

/* Return the number of threads granted for a job of `flop`: `wanted`, or 1. After the job, call release once with the
 * granted number. */
int frnn_team_acquire(int wanted, double flop);
void frnn_team_release(int granted);

/* When to leave out threads that sleep or were kept from the CPUs: at every barrier where this is possible; by default,
 * when they would cost more time than they gain; or never. Tests set the other two. */
enum { FRNN_NEVER, FRNN_WHERE_IT_PAYS, FRNN_AT_EVERY_BARRIER };
void frnn_team_set_backoff(int when);

/* job(arg, id) for id = 0 (the caller) .. granted - 1, denormals flushed; returns when all have returned. */
void frnn_team_run(int granted, frnn_job job, void *arg);

/* Inside a job: publish one thread's progress, and wait for it in another. */
typedef atomic_ptrdiff_t frnn_progress;
void frnn_team_reach(frnn_progress *progress, ptrdiff_t steps);
void frnn_team_await(const frnn_progress *progress, ptrdiff_t steps);

/* Inside a job: whether to stop early, checked after `flop` more work. A thread that sees the stop flag skips its work
 * but still reaches every barrier, so all threads finish no matter when each one sees it. */
int frnn_team_ended(frnn_stop *stop, double flop);

/* Inside a job: wait until all of its threads arrive. Their earlier writes are visible afterwards. Returns the same to
 * all: whether to leave the rest to thread 0 if possible, because a thread was repeatedly kept from the CPUs. */
int frnn_team_barrier(int granted);

#endif
