#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    /* Before a thread sleeps it spins, some 3 us, many times what a barrier between two idle cores takes, and no longer,
     * since the one it waits for may want this very core. Then it offers its core to whoever wants it, for longer than a
     * sleeper takes to wake (50 us on a virtual machine): if one slept, the other would find it waking at the next barrier,
     * sleep in its turn, and so on to the end. */
    SPINS = 100,
    YIELDS = 300,
};

/* A counter that only moves on, and who waits for it to. One for each worker, so that a job wakes nobody else. */
typedef struct {
    atomic_uint count;
    atomic_int sleepers;
    pthread_cond_t moved;
} Bell;

static struct {
    pthread_mutex_t busy; /* held from acquire to release */
    pthread_mutex_t lock; /* guards every sleep */
    int workers;          /* threads started, the callers not counted */
    Bell jobs[FRNN_MAX_THREADS]; /* rung for worker i when there is a job for it */
    int threads;                 /* of that job */
    frnn_job job;
    void *arg;

    atomic_int arrived; /* at the barrier */
    Bell barrier;
} team = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER};

/* The i-th look in vain. */
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

/* Return once the bell's count is no longer `seen`: spin, yield, then sleep. Sleepers count themselves before they look again
 * under the lock, and whoever rings looks for sleepers afterwards, so no wake-up is lost. */
static void wait_past(Bell *bell, unsigned seen)
{
    for (int i = 0; i < SPINS + YIELDS; i++) {
        if (atomic_load(&bell->count) != seen) return;
        pause_for(i);
    }
    pthread_mutex_lock(&team.lock);
    atomic_fetch_add(&bell->sleepers, 1);
    while (atomic_load(&bell->count) == seen) pthread_cond_wait(&bell->moved, &team.lock);
    atomic_fetch_sub(&bell->sleepers, 1);
    pthread_mutex_unlock(&team.lock);
}

static void ring(Bell *bell)
{
    atomic_fetch_add(&bell->count, 1);
    if (atomic_load(&bell->sleepers) == 0) return;
    pthread_mutex_lock(&team.lock);
    pthread_cond_broadcast(&bell->moved);
    pthread_mutex_unlock(&team.lock);
}

void frnn_team_barrier(int granted)
{
    if (granted == 1) return;
    const unsigned seen = atomic_load(&team.barrier.count);
    if (atomic_fetch_add(&team.arrived, 1) + 1 == granted) {
        atomic_store(&team.arrived, 0);
        ring(&team.barrier);
    } else
        wait_past(&team.barrier, seen);
}

void frnn_team_reach(frnn_progress *progress, ptrdiff_t steps)
{
    atomic_store_explicit(progress, steps, memory_order_release);
}

void frnn_team_await(const frnn_progress *progress, ptrdiff_t steps)
{
    for (int i = 0; atomic_load_explicit(progress, memory_order_acquire) < steps; i += i < SPINS) pause_for(i);
}

/* Run a job with denormals flushed to zero (18 to 27 times slower otherwise), round to nearest and no traps, whatever
 * the caller has; and give the caller's mode back afterwards. */
static void run_flushing(frnn_job job, void *arg, int id)
{
#if defined(__x86_64__)
    enum { FLUSH = 0x8040, NO_TRAPS = 0x1f80 };
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(FLUSH | NO_TRAPS);
    job(arg, id);
    _mm_setcsr(mode);
#elif defined(__aarch64__)
    enum { FLUSH = 1 << 24 };
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)FLUSH));
    job(arg, id);
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#else
    job(arg, id);
#endif
}

static void *worker(void *id_as_pointer)
{
    const int id = (int)(intptr_t)id_as_pointer;
    for (unsigned seen = 0;; seen++) {
        wait_past(&team.jobs[id], seen);
        const int threads = team.threads;
        run_flushing(team.job, team.arg, id);
        frnn_team_barrier(threads);
    }
    return 0;
}

static void reset(Bell *bell)
{
    atomic_store(&bell->count, 0);
    atomic_store(&bell->sleepers, 0);
    pthread_cond_init(&bell->moved, 0);
}

static void forget_team(void)
{
    pthread_mutex_init(&team.busy, 0);
    pthread_mutex_init(&team.lock, 0);
    team.workers = 0;
    atomic_store(&team.arrived, 0);
    for (int i = 0; i < FRNN_MAX_THREADS; i++) reset(&team.jobs[i]);
    reset(&team.barrier);
}

static void start_team(void)
{
    forget_team();
    pthread_atfork(0, 0, forget_team);
}

/* Workers take no signals: those are the main program's. */
static int start_worker(int id)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t every, before;
    if (pthread_attr_init(&attr)) return 0;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    int failed = pthread_create(&thread, &attr, worker, (void *)(intptr_t)id);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attr);
    return !failed;
}

int frnn_team_acquire(int wanted)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (wanted <= 1) return 1;
    pthread_once(&once, start_team);
    if (pthread_mutex_trylock(&team.busy)) return 1;
    while (team.workers + 1 < wanted && start_worker(team.workers + 1)) team.workers++;
    if (team.workers + 1 >= wanted) return wanted;
    pthread_mutex_unlock(&team.busy);
    return 1;
}

void frnn_team_release(int granted)
{
    if (granted > 1) pthread_mutex_unlock(&team.busy);
}

void frnn_team_run(int granted, frnn_job job, void *arg)
{
    if (granted > 1) {
        team.threads = granted;
        team.job = job;
        team.arg = arg;
        for (int i = 1; i < granted; i++) ring(&team.jobs[i]);
    }
    run_flushing(job, arg, 0);
    frnn_team_barrier(granted);
}
