/* Keys and values of one unit: which of them count, and packing them for the kernels. */
#include "plan.h"

#include "../include/mfa_ffi.h"

#include <math.h>

/*
 * Keeps the keys that the unit's one mask row does not remove. A key of weight zero is then never
 * touched, and a mask that only removes costs nothing further.
 */
void mfa_unit_select(const mfa_plan *plan, size_t unit, mfa_slot *slot)
{
    const mfa_problem *p = plan->problem;
    const size_t head = (size_t)mfa_unit_head(plan, unit) * plan->group;
    unsigned flags =
        mfa_mask_biases(&p->mask, mfa_unit_batch(plan, unit), head, 0, 0, p->seq_kv, slot->biases);
    uint32_t kept = 0;
    for (uint32_t key = 0; key < p->seq_kv; key++) {
        float bias = slot->biases[key];
        slot->index[kept] = key;
        slot->biases[kept] = bias;
        kept += bias != -INFINITY; /* NaN is kept: it has to reach the output */
    }
    for (size_t i = kept; i < plan->packed.padded_keys; i++)
        slot->biases[i] = 0.0f;
    slot->key_count = kept;
    slot->biased = (flags & MFA_BIAS_OTHER) != 0;
}

void mfa_unit_pack(const mfa_plan *plan, size_t unit, size_t number, mfa_slot *slot)
{
    const mfa_problem *p = plan->problem;
    const unsigned nr = plan->kernels->nr;
    const size_t first = number * nr;
    const size_t batch = mfa_unit_batch(plan, unit), head = mfa_unit_head(plan, unit);
    const unsigned char *key_rows[MFA_MAX_NR], *value_rows[MFA_MAX_NR];
    if (first >= slot->key_count)
        return;
    unsigned count = slot->key_count - first < nr ? (unsigned)(slot->key_count - first) : nr;
    for (unsigned i = 0; i < count; i++) {
        size_t key = plan->packed.selects ? slot->index[first + i] : first + i;
        key_rows[i] = mfa_row_of(&p->k, batch, head, key);
        value_rows[i] = mfa_row_of(&p->v, batch, head, key);
    }
    mfa_source keys = {key_rows, count, p->head_dim, p->k.stride[3], p->k.precision};
    mfa_source values = {value_rows, count, p->value_dim, p->v.stride[3], p->v.precision};
    float *tile = slot->keys + first * plan->packed.key_floats;
    if (plan->packed.paired)
        plan->kernels->pack_pairs(tile, nr, &keys);
    else
        plan->kernels->pack_columns(tile, nr, &keys, 1.0f);
    plan->kernels->pack_panels(slot->values, plan->packed.panel_stride, first, &values);
}

void mfa_prefetch_add(mfa_prefetch *prefetch, const mfa_operand *x, size_t batch, size_t head,
                      size_t first, size_t rows, uint32_t columns)
{
    if (rows == 0 || x->stride[3] != 1 || prefetch->runs == MFA_MAX_PREFETCH_RUNS)
        return;
    const size_t size = mfa_precision_size(x->precision);
    prefetch->run[prefetch->runs++] = (mfa_prefetch_rows){
        .row = mfa_row_of(x, batch, head, first),
        .step = x->stride[2] * (int64_t)size,
        .rows = (uint32_t)rows,
        .bytes = columns * (uint32_t)size,
    };
}
