/*
 * A share of packing a unit: a run of its tiles.
 *
 * Whoever computes a block of one unit packs a share of a later one in between, a tile at a time,
 * so that what a tile is made of can be on its way from memory while the kernels are at work.
 */
#ifndef MFA_SHARE_H
#define MFA_SHARE_H

#include "plan.h"

typedef struct {
    mfa_plan *plan;
    mfa_slot *slot;
    size_t unit, round;
    size_t tile, end; /* what is left */
    bool chooses;     /* this share has to select the unit's keys first */
    bool ready;       /* the slot is free, and its keys are selected */
} mfa_share;

/* Share `part` of `parts` of a unit; nothing when there is no such unit. */
mfa_share mfa_share_of(mfa_plan *plan, size_t unit, size_t part, size_t parts);

/* Packs up to tile `tile`, or nothing while others still need the slot. */
void mfa_share_advance(mfa_share *share, size_t tile);

/* Packs what is left, once nobody needs the slot any more. */
void mfa_share_finish(mfa_share *share);

/* Waits until a unit is packed. */
void mfa_share_await(const mfa_plan *plan, size_t unit);

/* Adds the rows of the next tile to those that are prefetched for, if that is known yet. */
void mfa_share_prefetch(const mfa_share *share, mfa_prefetch *prefetch);

#endif
