#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getcpu */
#endif

#include "threads.h"

#include "cpu.h"
#include "floats.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#endif

typedef struct job {
    struct job *next;
    mfa_job_function function;
    void *argument;
    unsigned max_threads;
    atomic_uint active;          /* written with the mutex held */
    bool taken[MFA_MAX_THREADS]; /* helper indices in use */
    pthread_cond_t left;         /* a helper has returned */
} job;

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t work; /* for helpers: a job or a slot has come free */
    pthread_cond_t slot; /* for callers: a slot has come free */
    job *jobs;
    unsigned budget, busy, helpers;
    pthread_t thread[MFA_MAX_THREADS];
#if defined(__linux__)
    cpu_set_t apart; /* where the first `placed` helpers may run */
    unsigned placed;
#endif
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .slot = PTHREAD_COND_INITIALIZER};

enum { SPIN_NANOSECONDS = 40000 }; /* about what falling asleep and being woken take */

static atomic_uint callers_waiting;
static atomic_uint news; /* how often helpers were told of work */
static atomic_bool stopping; /* written with the mutex held */

bool mfa_pool_contended(void)
{
    return atomic_load_explicit(&callers_waiting, memory_order_relaxed) != 0 ||
           atomic_load_explicit(&stopping, memory_order_relaxed);
}

static job *joinable_job(void)
{
    if (pool.busy >= pool.budget || mfa_pool_contended())
        return NULL;
    for (job *j = pool.jobs; j; j = j->next)
        if (j->active < j->max_threads)
            return j;
    return NULL;
}

static unsigned take_index(job *j)
{
    unsigned index = 1;
    while (j->taken[index])
        index++;
    j->taken[index] = true;
    return index;
}

static void release_slot(void)
{
    pool.busy--;
    pthread_cond_signal(&pool.slot);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/*
 * With the mutex held, which is let go meanwhile: stays awake for the next call. Calls that follow
 * at once are common, and a small one is done before a sleeping helper is there.
 */
static void linger(void)
{
    const unsigned before = atomic_load(&news);
    pthread_mutex_unlock(&pool.mutex);
    const int64_t end = nanoseconds_now() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < 16 && atomic_load_explicit(&news, memory_order_relaxed) == before; i++)
            relax();
    } while (atomic_load_explicit(&news, memory_order_relaxed) == before &&
             !atomic_load_explicit(&stopping, memory_order_relaxed) && nanoseconds_now() < end);
    pthread_mutex_lock(&pool.mutex);
}

static void *helper_main(void *unused)
{
    (void)unused;
    bool worked = false; /* since it last looked for more */
    pthread_mutex_lock(&pool.mutex);
    while (!atomic_load(&stopping)) {
        job *j = joinable_job();
        if (!j) {
            if (worked)
                linger();
            else
                pthread_cond_wait(&pool.work, &pool.mutex);
            worked = false;
            continue;
        }
        unsigned index = take_index(j);
        j->active++;
        pool.busy++;
        pthread_mutex_unlock(&pool.mutex);
        /* Anew for each job: a helper began with the rounding of whoever started it. */
        const mfa_float_state before = mfa_floats_enter();
        j->function(j->argument, index);
        mfa_floats_leave(before);
        pthread_mutex_lock(&pool.mutex);
        j->taken[index] = false;
        j->active--;
        release_slot();
        pthread_cond_signal(&j->left);
        worked = true;
    }
    pthread_mutex_unlock(&pool.mutex);
    return NULL;
}

/* ---- fork and exit ---- */

static void before_fork(void) { pthread_mutex_lock(&pool.mutex); }

static void after_fork_parent(void) { pthread_mutex_unlock(&pool.mutex); }

static void after_fork_child(void) /* only the forking thread exists here */
{
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.slot, NULL);
    pool.jobs = NULL;
    pool.busy = pool.helpers = 0;
#if defined(__linux__)
    pool.placed = 0;
#endif
    atomic_store(&callers_waiting, 0);
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork_parent, after_fork_child); }

/* At exit and before the library is unloaded: no thread may run code that goes away. */
__attribute__((destructor)) static void stop_helpers(void)
{
    pthread_mutex_lock(&pool.mutex);
    unsigned count = pool.helpers;
    atomic_store(&stopping, true);
    pool.helpers = 0;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.mutex);
    for (unsigned i = 0; i < count; i++)
        pthread_join(pool.thread[i], NULL);
}

/* ---- calls ---- */

static void tell_helpers(void)
{
    atomic_fetch_add(&news, 1);
    pthread_cond_broadcast(&pool.work);
}

static void start_helpers(unsigned wanted)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the host's own threads */
    while (pool.helpers < wanted && !atomic_load(&stopping)) {
        if (pthread_create(&pool.thread[pool.helpers], NULL, helper_main, NULL) != 0)
            break; /* fewer threads, the same result */
        pool.helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/*
 * Helpers may run where the caller may, but not on its own CPU. A virtual machine's idle CPUs look
 * preempted to Linux, which then wakes a helper behind its caller and leaves it there for some
 * milliseconds: more than a small call takes.
 */
static void keep_apart(unsigned helpers)
{
#if defined(__linux__)
    cpu_set_t set;
    const int cpu = sched_getcpu();
    if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof set, &set) != 0)
        return;
    CPU_CLR(cpu, &set);
    if (CPU_COUNT(&set) == 0)
        return;
    if (pool.placed && !CPU_EQUAL(&set, &pool.apart))
        pool.placed = 0;
    pool.apart = set;
    for (; pool.placed < helpers; pool.placed++)
        pthread_setaffinity_np(pool.thread[pool.placed], sizeof set, &set);
#else
    (void)helpers;
#endif
}

static void enter(job *j, unsigned budget)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&pool.mutex);
    pool.budget = budget;
    while (pool.busy >= pool.budget) {
        atomic_fetch_add(&callers_waiting, 1);
        pthread_cond_wait(&pool.slot, &pool.mutex);
        atomic_fetch_sub(&callers_waiting, 1);
    }
    pool.busy++;
    j->active = 1;
    j->next = pool.jobs;
    pool.jobs = j;
    if (pool.helpers + 1 < j->max_threads)
        start_helpers(j->max_threads - 1);
    if (j->max_threads > 1)
        keep_apart(j->max_threads - 1 < pool.helpers ? j->max_threads - 1 : pool.helpers);
    pthread_mutex_unlock(&pool.mutex);
    if (j->max_threads > 1)
        tell_helpers(); /* not before: they need the mutex */
}

/* The last helper is nearly done: sleeping and waking up would take longer. */
static void spin_for_helpers(const job *j)
{
    for (int i = 0; i < 2000 && atomic_load_explicit(&j->active, memory_order_relaxed) > 1; i++)
        relax();
}

static void leave(job *j)
{
    pthread_mutex_lock(&pool.mutex);
    job **link = &pool.jobs;
    while (*link != j)
        link = &(*link)->next;
    *link = j->next;
    pthread_mutex_unlock(&pool.mutex);
    spin_for_helpers(j);
    pthread_mutex_lock(&pool.mutex);
    while (j->active > 1)
        pthread_cond_wait(&j->left, &pool.mutex);
    release_slot();
    if (pool.jobs)
        tell_helpers();
    pthread_mutex_unlock(&pool.mutex);
}

void mfa_pool_run(mfa_job_function function, void *argument, unsigned max_threads, unsigned budget)
{
    job j;
    memset(&j, 0, sizeof j);
    j.function = function;
    j.argument = argument;
    j.max_threads = max_threads < budget ? max_threads : budget;
    if (j.max_threads > MFA_MAX_THREADS)
        j.max_threads = MFA_MAX_THREADS;
    pthread_cond_init(&j.left, NULL);
    enter(&j, budget < 1 ? 1 : budget);
    function(argument, 0);
    leave(&j);
    pthread_cond_destroy(&j.left);
}
