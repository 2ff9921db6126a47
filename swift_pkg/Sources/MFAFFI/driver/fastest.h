/* Which of several sets of kernels is the fastest on this machine. */
#ifndef MFA_FASTEST_H
#define MFA_FASTEST_H

#include "../kernels/kernels.h"

enum { MFA_MAX_CANDIDATES = 8 };

/*
 * The fastest of `count` usable sets on inputs of this precision, by measurement: some
 * milliseconds. Times jitter, so another than the first has to win clearly: then the choice, and
 * with it the last bits of results, is the same from run to run.
 */
const mfa_kernels *mfa_fastest(const mfa_kernels *const candidates[], unsigned count,
                               int precision);

#endif
