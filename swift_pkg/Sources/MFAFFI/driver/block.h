/* One block of query rows against all keys of its unit. */
#ifndef MFA_BLOCK_H
#define MFA_BLOCK_H

#include "share.h"

/*
 * Computes block `number` of a unit's rows and writes its output. In between, as far as that can
 * be done without waiting, it packs the share.
 */
void mfa_block_compute(const mfa_plan *plan, size_t unit, size_t number, const mfa_slot *slot,
                       mfa_scratch *scratch, mfa_share *share);

#endif
