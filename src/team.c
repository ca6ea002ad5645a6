#define _GNU_SOURCE /* CPU sets */

#include "team.h"

#include "cpus.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    /* Before a thread sleeps it spins for about 3 us, many times as long as a barrier between two idle cores takes, but
     * not longer, because the awaited thread may need this core. Then it yields its core for longer than a sleeping
     * thread takes to wake (50 us on a virtual machine). Otherwise two threads could alternate to the end of the call:
     * one wakes while the other, waiting for it at the next barrier, goes to sleep. */
    SPINS = 100,
    YIELDS = 300,
    /* A job whose threads wait for CPUs takes many times as long as on one thread. After two such jobs, calls back off
     * to a single thread for BACKOFF times the time that the threads waited. Each further loss doubles this factor, so
     * that little time is lost even if calls are rare; a job without a loss halves it. */
    BACKOFF = 20,
    LONGEST_BACKOFF = 250 * 1000 * 1000, /* ns; by then the other work may have ended */
    IN_A_ROW = 300 * 1000,      /* ns between two calls within which the next call wakes sleeping threads */
    LEAST_LOSS = 100 * 1000,    /* ns for which a thread was ready but did not run, if two fifths of the job or more */
    WAKING = 300 * 1000,        /* ns that a sleeping thread may take to start, which does not count as a loss */
    /* A job with a barrier in every step may wait at each one for the end of another process's time slice. After two
     * waits of LONG_WAIT, if all waits were at least two fifths of the job's time, the threads leave the rest to the
     * first. */
    LONG_WAIT = 500 * 1000, /* ns */
    ASKING = 100 * 1000 * 1000, /* ns between two checks whether to stop a job: each takes the GIL */
};

static const double LOOK_FLOP = 1e9; /* work between two readings of the clock, each a tenth of a tiny step's time */

static atomic_int backs_off = FRNN_WHERE_IT_PAYS;

/* An eventcount: a counter that only grows, and the threads that wait for it to grow. Each worker has its own, so that
 * a job wakes no other worker. */
typedef struct {
    atomic_uint count;
    atomic_int sleepers;
    pthread_cond_t grown;
} EventCount;

static struct {
    pthread_mutex_t busy; /* held from acquire to release */
    pthread_mutex_t lock; /* guards every sleep */
    int workers;          /* threads started, the callers not counted */
    pthread_t thread[FRNN_MAX_THREADS];
    EventCount jobs[FRNN_MAX_THREADS];  /* of worker i: the jobs for it */
    int avoided_cpu[FRNN_MAX_THREADS];  /* the CPU that worker i must not wake on, if it was asleep or new; else -1 */
    int threads;                        /* of that job */
    atomic_int place[FRNN_MAX_THREADS]; /* CPUs that its threads were last seen on */
    int64_t start;                      /* ns, of CLOCK_MONOTONIC */
    atomic_int_least64_t lost;          /* ns that its threads were kept from the CPUs, if significant */
    int lost_before;                    /* the job before lost as much, so this is not a short interruption */
    int64_t backoff;                    /* duration of the backoff, as a multiple of the time lost */
    atomic_int_least64_t last_end;      /* ns: end of the last job that requested several threads */
    int64_t backoff_until;              /* ns: until then calls use one thread; 0 without a backoff */
    frnn_job job;
    void *arg;

    atomic_int arrived; /* at the barrier */
    EventCount barrier;
    atomic_int should_retreat; /* a thread has waited too long */
    int retreats;              /* the same at the last barrier, where the threads agreed on it */
} team; /* initialised by start_team */

static _Thread_local int self; /* this thread's number in a job: 0 for the caller */

/* This thread's long waits in this job, and their total in ns. */
static _Thread_local int long_waits;
static _Thread_local int64_t waited;

static int64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Pause after the i-th unsuccessful check. */
static void pause_for(int i)
{
    if (i >= SPINS) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Write only if it changes, because the cache line is shared. */
static int note_place(void)
{
    const int cpu = current_cpu();
    if (atomic_load_explicit(&team.place[self], memory_order_relaxed) != cpu)
        atomic_store_explicit(&team.place[self], cpu, memory_order_relaxed);
    return cpu;
}

/* Move a worker off the CPU of another thread of its job, without changing its affinity for good. The scheduler may
 * wake it on the CPU of the thread that notified it, and would let the two alternate for milliseconds, as long as many
 * calls last, before moving one of them. */
static void avoid_shared_cpu(void)
{
    const int cpu = note_place();
    for (int id = 0; id < self && cpu >= 0; id++)
        if (atomic_load_explicit(&team.place[id], memory_order_relaxed) == cpu) {
            if (allow_cpu(pthread_self(), cpu, 0)) allow_cpu(pthread_self(), cpu, 1);
            return;
        }
}

/* Return once the count is no longer `seen`: spin, yield, then sleep. Sleepers count themselves before they look again
 * under the lock, and notify() looks for sleepers after it has counted, so no wake-up is lost. Returns the ns that it
 * took, after spinning. */
static int64_t wait_past(EventCount *event, unsigned seen)
{
    int64_t since = 0;
    for (int i = 0; i < SPINS + YIELDS; i++) {
        if (atomic_load(&event->count) != seen) return since ? nanoseconds(CLOCK_MONOTONIC) - since : 0;
        if (i == SPINS) {
            since = nanoseconds(CLOCK_MONOTONIC);
            avoid_shared_cpu();
        }
        pause_for(i);
    }
    pthread_mutex_lock(&team.lock);
    atomic_fetch_add(&event->sleepers, 1);
    while (atomic_load(&event->count) == seen) pthread_cond_wait(&event->grown, &team.lock);
    atomic_fetch_sub(&event->sleepers, 1);
    pthread_mutex_unlock(&team.lock);
    avoid_shared_cpu();
    return nanoseconds(CLOCK_MONOTONIC) - since;
}

static void notify(EventCount *event)
{
    atomic_fetch_add(&event->count, 1);
    if (atomic_load(&event->sleepers) == 0) return;
    pthread_mutex_lock(&team.lock);
    pthread_cond_broadcast(&event->grown);
    pthread_mutex_unlock(&team.lock);
}

static void count_wait(int64_t wait)
{
    if (wait < LONG_WAIT) return;
    waited += wait;
    if (++long_waits > 1 && waited > (nanoseconds(CLOCK_MONOTONIC) - team.start) / 5 * 2)
        atomic_store(&team.should_retreat, 1);
}

/* Wait until all threads arrive; return the ns that it took. */
static int64_t meet(int granted)
{
    note_place();
    const unsigned seen = atomic_load(&team.barrier.count);
    if (atomic_fetch_add(&team.arrived, 1) + 1 < granted) return wait_past(&team.barrier, seen);
    const int when = atomic_load(&backs_off);
    atomic_store(&team.arrived, 0);
    team.retreats = when == FRNN_AT_EVERY_BARRIER || (when && atomic_load(&team.should_retreat));
    notify(&team.barrier);
    return 0;
}

int frnn_team_barrier(int granted)
{
    if (granted == 1) return 0;
    count_wait(meet(granted));
    return team.retreats;
}

void frnn_team_reach(frnn_progress *progress, ptrdiff_t steps)
{
    atomic_store_explicit(progress, steps, memory_order_release);
}

void frnn_team_await(const frnn_progress *progress, ptrdiff_t steps)
{
    for (int i = 0; atomic_load_explicit(progress, memory_order_acquire) < steps; i += i < SPINS) {
        if (i == SPINS - 1) avoid_shared_cpu();
        pause_for(i);
    }
}

/* The floating-point mode of a job: denormals flushed to zero (18 to 27 times slower otherwise), round to nearest and
 * no traps. */
#if defined(__x86_64__)
enum { JOB_MODE = 0x8040 | 0x1f80 };
static uint64_t get_mode(void) { return _mm_getcsr(); }
static void set_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
enum { JOB_MODE = 1 << 24 };
static uint64_t get_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
enum { JOB_MODE = 0 };
static uint64_t get_mode(void) { return 0; }
static void set_mode(uint64_t mode) { (void)mode; }
#endif

static _Thread_local uint64_t callers_mode;

/* Run a job in its own floating-point mode, and restore the caller's afterwards. */
static void run_flushing(frnn_job job, void *arg, int id)
{
    const uint64_t mode = callers_mode = get_mode();
    set_mode(JOB_MODE);
    job(arg, id);
    set_mode(mode);
}

int frnn_team_ended(frnn_stop *stop, double flop)
{
    if (atomic_load_explicit(&stop->ended, memory_order_relaxed)) return 1;
    if (self == 0 && (stop->flop += flop) >= LOOK_FLOP) {
        const int64_t now = nanoseconds(CLOCK_MONOTONIC);
        stop->flop = 0;
        if (stop->next && now >= stop->next) {
            const uint64_t mode = callers_mode; /* should_stop may run jobs of its own */
            set_mode(mode);
            if (stop->should_stop()) atomic_store(&stop->ended, 1);
            set_mode(JOB_MODE);
            callers_mode = mode;
        }
        if (!stop->next || now >= stop->next) stop->next = now + ASKING;
    }
    return atomic_load_explicit(&stop->ended, memory_order_relaxed);
}

/* Run one thread's part of a parallel job, and record how long it had no CPU since it was woken. */
static void run_part(void)
{
    long_waits = 0;
    waited = 0;
    const int64_t used = nanoseconds(CLOCK_THREAD_CPUTIME_ID), begun = nanoseconds(CLOCK_MONOTONIC);
    run_flushing(team.job, team.arg, self);
    const int64_t since = begun - team.start > WAKING ? team.start : begun;
    const int64_t taken = nanoseconds(CLOCK_MONOTONIC) - since;
    const int64_t lost = taken - (nanoseconds(CLOCK_THREAD_CPUTIME_ID) - used);
    if (lost > LEAST_LOSS && (lost > taken / 5 * 2 || team.retreats)) atomic_fetch_add(&team.lost, lost);
}

/* After a job: back off if it and the one before it lost much. */
static void update_backoff(void)
{
    const int64_t lost = atomic_exchange(&team.lost, 0);
    if (!lost) {
        team.lost_before = 0;
        team.backoff = team.backoff / 2 < BACKOFF ? BACKOFF : team.backoff / 2;
    } else if (!team.lost_before && team.backoff == BACKOFF)
        team.lost_before = 1;
    else if (atomic_load(&backs_off) == FRNN_WHERE_IT_PAYS) {
        const int64_t length = lost < LONGEST_BACKOFF / team.backoff ? lost * team.backoff : LONGEST_BACKOFF;
        team.backoff_until = nanoseconds(CLOCK_MONOTONIC) + length;
        team.lost_before = 0;
        if (length < LONGEST_BACKOFF) team.backoff *= 2;
    }
}

static void *worker(void *id_as_pointer)
{
    const int id = self = (int)(intptr_t)id_as_pointer;
    for (unsigned seen = 0;; seen++) {
        wait_past(&team.jobs[id], seen);
        const int threads = team.threads;
        if (team.avoided_cpu[id] >= 0) allow_cpu(pthread_self(), team.avoided_cpu[id], 1);
        team.avoided_cpu[id] = -1;
        avoid_shared_cpu();
        run_part();
        meet(threads);
    }
    return 0;
}

static void reset(EventCount *event)
{
    atomic_store(&event->count, 0);
    atomic_store(&event->sleepers, 0);
    pthread_cond_init(&event->grown, 0);
}

static void forget_team(void)
{
    pthread_mutex_init(&team.busy, 0);
    pthread_mutex_init(&team.lock, 0);
    team.workers = 0;
    team.lost_before = 0;
    team.backoff = BACKOFF;
    team.backoff_until = 0;
    atomic_store(&team.last_end, 0);
    atomic_store(&team.lost, 0);
    atomic_store(&team.arrived, 0);
    atomic_store(&team.should_retreat, 0);
    for (int i = 0; i < FRNN_MAX_THREADS; i++) reset(&team.jobs[i]);
    reset(&team.barrier);
}

static void start_team(void)
{
    forget_team();
#if !defined(_WIN32) /* Windows has no fork */
    pthread_atfork(0, 0, forget_team);
#endif
}

static int create_worker(int id)
{
    pthread_attr_t attr;
    if (pthread_attr_init(&attr)) return 0;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int failed = pthread_create(&team.thread[id], &attr, worker, (void *)(intptr_t)id);
    pthread_attr_destroy(&attr);
    return !failed;
}

static int start_worker(int id)
{
#if defined(_WIN32) /* no signals to block */
    if (!create_worker(id)) return 0;
#else /* workers block signals: those are for the main program */
    sigset_t every, before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    int created = create_worker(id);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    if (!created) return 0;
#endif
    const int cpu = current_cpu();
    team.avoided_cpu[id] = allow_cpu(team.thread[id], cpu, 0) ? cpu : -1;
    return 1;
}

void frnn_team_set_backoff(int when) { atomic_store(&backs_off, when); }

static _Thread_local int refused; /* this thread's call wanted more threads and runs alone */

/* Whether the threads sleep and would cost this job more than they gain. The next job, if it follows immediately, will
 * find them awake. */
static int not_worth_waking(int wanted, double flop, int64_t now)
{
    if (flop >= WORTH_WAKING || atomic_load(&backs_off) != FRNN_WHERE_IT_PAYS) return 0;
    if (now - atomic_load(&team.last_end) < IN_A_ROW) return 0;
    int awake = team.workers + 1 >= wanted;
    for (int i = 1; awake && i < wanted; i++) awake = atomic_load(&team.jobs[i].sleepers) == 0;
    return !awake;
}

int frnn_team_acquire(int wanted, double flop)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (wanted <= 1) return 1;
    pthread_once(&once, start_team);
    if (pthread_mutex_trylock(&team.busy)) return 1;
    const int64_t now = nanoseconds(CLOCK_MONOTONIC);
    refused = now < team.backoff_until || not_worth_waking(wanted, flop, now);
    while (!refused && team.workers + 1 < wanted && start_worker(team.workers + 1)) team.workers++;
    if (!refused && team.workers + 1 >= wanted) return wanted;
    pthread_mutex_unlock(&team.busy);
    return 1;
}

void frnn_team_release(int granted)
{
    if (granted > 1 || refused) atomic_store(&team.last_end, nanoseconds(CLOCK_MONOTONIC));
    refused = 0;
    if (granted > 1) pthread_mutex_unlock(&team.busy);
}

void frnn_team_run(int granted, frnn_job job, void *arg)
{
    if (granted == 1) {
        run_flushing(job, arg, 0);
        return;
    }
    const int cpu = note_place();
    team.threads = granted;
    atomic_store(&team.should_retreat, 0);
    team.retreats = 0;
    team.start = nanoseconds(CLOCK_MONOTONIC);
    team.job = job;
    team.arg = arg;
    for (int i = 1; i < granted; i++) {
        const int asleep = atomic_load(&team.jobs[i].sleepers) > 0;
        if (asleep && team.avoided_cpu[i] < 0 && allow_cpu(team.thread[i], cpu, 0)) team.avoided_cpu[i] = cpu;
        notify(&team.jobs[i]);
    }
    run_part();
    meet(granted);
    update_backoff();
}
