/*
 * The process's pool of helper threads.
 *
 * Threads start on first need and sleep on a condition variable, from a little while after a call
 * on: one that follows at once finds them awake. All calls share one budget: a call takes its first
 * slot (waiting for it if need be), then whatever is free. Helpers of a long call go over to a call
 * that waits. After fork the child starts with no threads.
 */
#ifndef MFA_THREADS_H
#define MFA_THREADS_H

#include <stdbool.h>

/* `index` is unique among the threads inside one job at a time, and below `max_threads`; 0: the
 * caller. */
typedef void (*mfa_job_function)(void *argument, unsigned index);

/*
 * Runs the function in the caller and, as they become free, in up to `max_threads - 1` helpers;
 * returns when all have returned. `budget`: threads that all calls together may use.
 */
void mfa_pool_run(mfa_job_function function, void *argument, unsigned max_threads, unsigned budget);

/*
 * Whether a helper should return from its function early: another call waits, or the process ends
 * and must not wait for the rest of a long one.
 */
bool mfa_pool_contended(void);

#endif
