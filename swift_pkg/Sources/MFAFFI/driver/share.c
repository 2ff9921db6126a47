#include "share.h"

#include "../include/mfa_ffi.h"

#include <sched.h>

static bool reached(atomic_size_t *counter, size_t wanted)
{
    return atomic_load_explicit(counter, memory_order_acquire) >= wanted;
}

static void pause_after(unsigned spins)
{
    if (spins > 256)
        sched_yield();
}

static void add_one(atomic_size_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_release);
}

/* Where causal masking leaves early blocks little to do, they have little to pack, too. */
static size_t tiles_before(const mfa_plan *plan, size_t part, size_t parts)
{
    if (plan->problem->causal == MFA_CAUSAL_NONE)
        return plan->packed.tiles * part / parts;
    double share = (double)part / (double)parts;
    return (size_t)((double)plan->packed.tiles * share * share);
}

mfa_share mfa_share_of(mfa_plan *plan, size_t unit, size_t part, size_t parts)
{
    mfa_share share = {.plan = plan, .unit = unit};
    if (unit >= plan->units)
        return share;
    share.slot = &plan->packed.slots[unit % plan->packed.slot_count];
    share.round = unit / plan->packed.slot_count;
    share.tile = tiles_before(plan, part, parts);
    share.end = tiles_before(plan, part + 1, parts);
    share.chooses = plan->packed.selects && part == 0;
    return share;
}

static bool is_ready(mfa_share *share)
{
    mfa_slot *slot = share->slot;
    if (share->ready)
        return true;
    if (!reached(&slot->computed, share->round * share->plan->packed.blocks))
        return false; /* the slot's last unit is in use */
    if (share->chooses) {
        mfa_unit_select(share->plan, share->unit, slot);
        add_one(&slot->selected);
        share->chooses = false;
    }
    share->ready = !share->plan->packed.selects || reached(&slot->selected, share->round + 1);
    return share->ready;
}

void mfa_share_advance(mfa_share *share, size_t tile)
{
    if (!share->slot || !is_ready(share))
        return;
    for (; share->tile < tile; share->tile++) {
        mfa_unit_pack(share->plan, share->unit, share->tile, share->slot);
        add_one(&share->slot->packed);
    }
}

void mfa_share_finish(mfa_share *share)
{
    if (!share->slot)
        return;
    for (unsigned spins = 0; !is_ready(share); spins++)
        pause_after(spins);
    mfa_share_advance(share, share->end);
}

void mfa_share_await(const mfa_plan *plan, size_t unit)
{
    mfa_slot *slot = &plan->packed.slots[unit % plan->packed.slot_count];
    const size_t wanted = (unit / plan->packed.slot_count + 1) * plan->packed.tiles;
    for (unsigned spins = 0; !reached(&slot->packed, wanted); spins++)
        pause_after(spins);
}

void mfa_share_prefetch(const mfa_share *share, mfa_prefetch *prefetch)
{
    const mfa_plan *plan = share->plan;
    const mfa_problem *p = plan->problem;
    const size_t nr = plan->kernels->nr, first = share->tile * nr;
    if (!share->ready || share->tile == share->end || first >= share->slot->key_count)
        return;
    const size_t left = share->slot->key_count - first;
    const size_t key = plan->packed.selects ? share->slot->index[first] : first;
    const size_t batch = mfa_unit_batch(plan, share->unit), head = mfa_unit_head(plan, share->unit);
    mfa_prefetch_add(prefetch, &p->v, batch, head, key, left < nr ? left : nr, p->value_dim);
    mfa_prefetch_add(prefetch, &p->k, batch, head, key, left < nr ? left : nr, p->head_dim);
}
