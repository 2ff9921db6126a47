/* Calls with many rows per unit: keys and values are packed, a few units ahead. */
#include "plan.h"

#include "../include/mfa_ffi.h"

enum {
    BLOCK_ROWS = 256,        /* query rows whose outputs stay in the second-level cache */
    BLOCK_FLOATS = 48 << 10, /* keys and values of one key block: 192 KiB */
    CHUNK_TILES = 16,
    ALONE_KEYS = 1024, /* per unit, that are packed anew for each block rather than shared */
};

static void choose_floats(mfa_plan *plan)
{
    plan->packed.key_floats = plan->problem->head_dim;
    plan->packed.value_floats = plan->padded_value_dim;
    if (plan->kernels->tiles) {
        plan->packed.key_floats = mfa_round_up(plan->problem->head_dim, 32) / 2;
        plan->packed.value_floats = plan->padded_value_dim / 2;
    }
}

static void choose_blocks(mfa_plan *plan)
{
    const mfa_problem *p = plan->problem;
    const size_t mr = plan->kernels->mr, nr = plan->kernels->nr;
    mfa_packed_plan *packed = &plan->packed;

    /* Enough blocks for threads to share evenly, few enough to reuse each key block. */
    size_t wanted = mfa_ceil_div((size_t)4 * plan->threads, plan->units);
    size_t blocks = mfa_larger(mfa_ceil_div(plan->rows, BLOCK_ROWS),
                               mfa_smaller(wanted, mfa_ceil_div(plan->rows, 2 * mr)));
    if (plan->threads == 1)
        blocks = mfa_ceil_div(plan->rows, BLOCK_ROWS);
    packed->block_rows = mfa_round_up(mfa_ceil_div(plan->rows, blocks), mr);
    packed->blocks = mfa_ceil_div(plan->rows, packed->block_rows);

    size_t keys = BLOCK_FLOATS / (packed->key_floats + packed->value_floats) / nr * nr;
    packed->key_block = (uint32_t)mfa_smaller(mfa_larger(keys, nr), MFA_MAX_KEY_BLOCK);
    packed->padded_keys = mfa_round_up(p->seq_kv, nr);
    packed->panel_stride = packed->padded_keys * nr / (plan->kernels->tiles ? 2 : 1);
    packed->tiles = packed->padded_keys / nr;
    /* At least one, even of no tiles: it is a chunk that selects the unit's keys. */
    packed->chunks = mfa_larger(mfa_ceil_div(packed->tiles, CHUNK_TILES), 1);
}

/* Units packed ahead of those computed, so that nobody waits for a pack. */
static void choose_tasks(mfa_plan *plan)
{
    mfa_packed_plan *packed = &plan->packed;
    packed->alone = (packed->blocks == 1 && plan->units >= plan->threads) ||
                    packed->padded_keys * packed->blocks <= ALONE_KEYS;
    if (packed->alone) {
        plan->tasks = plan->units * packed->blocks;
        plan->threads = (unsigned)mfa_smaller(plan->threads, plan->tasks);
        packed->slot_count = plan->threads;
        return;
    }
    packed->lookahead = 1 + plan->threads / packed->blocks;
    packed->slot_count = mfa_smaller(packed->lookahead + 2, plan->units);
    packed->head_tasks = mfa_smaller(packed->lookahead + 1, plan->units) * packed->chunks;
    plan->tasks = packed->head_tasks + plan->units * packed->blocks;
}

void mfa_packed_plan_choose(mfa_plan *plan)
{
    const mfa_problem *p = plan->problem;
    plan->packed.selects = p->mask.type != MFA_MASK_TYPE_NONE &&
                           (p->mask.stride[2] == 0 || p->seq_q == 1) &&
                           (p->mask.stride[1] == 0 || plan->group == 1);
    plan->packed.paired = plan->kernels->pairs && p->q.precision == MFA_PRECISION_BF16;
    choose_floats(plan);
    choose_blocks(plan);
    choose_tasks(plan);
}

void mfa_packed_plan_lay_out(mfa_plan *plan, mfa_arena *a)
{
    const mfa_problem *p = plan->problem;
    const size_t keys = plan->packed.padded_keys;
    mfa_slot *slots = mfa_arena_take(a, plan->packed.slot_count, sizeof *slots);
    if (a->base)
        plan->packed.slots = slots;
    for (size_t i = 0; i < plan->packed.slot_count && !a->overflow; i++) {
        const size_t listed = plan->packed.selects ? keys : 0;
        mfa_slot slot = {
            .keys = mfa_arena_take(a, keys, plan->packed.key_floats * sizeof(float)),
            .values = mfa_arena_take(a, keys, plan->packed.value_floats * sizeof(float)),
            .index = mfa_arena_take(a, listed, sizeof(uint32_t)),
            .biases = mfa_arena_take(a, listed, sizeof(float)),
            .key_count = p->seq_kv,
        };
        if (!a->base)
            continue;
        slots[i] = slot;
        atomic_init(&slots[i].selected, 0);
        atomic_init(&slots[i].packed, 0);
        atomic_init(&slots[i].computed, 0);
    }
}
