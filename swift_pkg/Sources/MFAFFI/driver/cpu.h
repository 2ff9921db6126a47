/* What this process may use of the machine, and what the environment asks for. */
#ifndef MFA_CPU_H
#define MFA_CPU_H

#include "../kernels/kernels.h"

#include <stdbool.h>

enum { MFA_MAX_THREADS = 256 };

typedef struct {
    const mfa_kernels *kernels; /* null when the environment cannot be followed */
    const mfa_kernels *bf16;    /* the same, for inputs of that precision */
    unsigned threads;           /* never more than affinity, cgroup quota and user allow */
    char error[160];            /* cause and remedy, when there is one */
} mfa_setup;

/*
 * What the environment asks for; it is read when the library is loaded. False, with a text, when
 * that cannot be had.
 */
bool mfa_setup_read(mfa_setup *setup);

/*
 * CPUs that a cgroup's quota amounts to (at least 1), or 0 for "no quota".
 * `membership` is a file like /proc/self/cgroup, `root` a folder like /sys/fs/cgroup.
 */
unsigned mfa_cgroup_cpus(const char *membership, const char *root);

/* Comma-separated names of the instruction sets found that the kernels could use. */
const char *mfa_cpu_features(void);

#endif
