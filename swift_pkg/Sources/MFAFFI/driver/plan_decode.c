/* Calls with few rows per unit: a task is a part of a unit's keys. */
#include "plan.h"

#include "../include/mfa_ffi.h"

enum {
    SPLIT_KEYS = 256, /* of a part, at least */
    /*
     * Rows of a unit up to which packing does not pay: MFA_MAX_DECODE_ROWS, but 16-bit rows are
     * converted once per row, and few keys stay near whatever is done with them.
     */
    MAX_ROWS_16_BIT = 12,
    MAX_ROWS_SHORT = 8,
    SHORT_KEYS = 512,
};

bool mfa_decode_plan_fits(const mfa_plan *plan)
{
    const mfa_problem *p = plan->problem;
    size_t rows = MFA_MAX_DECODE_ROWS;
    if (p->k.precision != MFA_PRECISION_FP32)
        rows = MAX_ROWS_16_BIT;
    if (p->seq_kv < SHORT_KEYS)
        rows = MAX_ROWS_SHORT;
    return plan->rows <= rows && p->k.stride[3] == 1 && p->v.stride[3] == 1;
}

void mfa_decode_plan_choose(mfa_plan *plan)
{
    const size_t keys = plan->problem->seq_kv;
    size_t wanted = plan->threads > 1 ? mfa_ceil_div((size_t)4 * plan->threads, plan->units) : 1;
    size_t splits = mfa_larger(mfa_smaller(wanted, keys / SPLIT_KEYS), 1);
    plan->split.split_keys = mfa_larger(mfa_ceil_div(keys, splits), 1);
    plan->split.splits = mfa_larger(mfa_ceil_div(keys, plan->split.split_keys), 1);
    plan->tasks = plan->units * plan->split.splits;
}

void mfa_decode_plan_lay_out(mfa_plan *plan, mfa_arena *a)
{
    if (plan->split.splits == 1)
        return;
    const size_t parts = plan->units * plan->split.splits * plan->rows;
    atomic_size_t *arrived = mfa_arena_take(a, plan->units, sizeof *arrived);
    float *results = mfa_arena_take(a, parts, (2 + plan->padded_value_dim) * sizeof(float));
    if (!a->base)
        return;
    plan->split.arrived = arrived;
    plan->split.parts = results;
    for (size_t i = 0; i < plan->units; i++)
        atomic_init(&arrived[i], 0);
}
