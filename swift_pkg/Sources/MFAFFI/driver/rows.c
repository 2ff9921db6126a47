#include "rows.h"

#include "../include/mfa_ffi.h"
#include "../simd/scalar.h"

#include <float.h>
#include <math.h>
#include <string.h>

mfa_row_place mfa_place_of(const mfa_plan *plan, size_t unit, size_t row)
{
    mfa_row_place at = {
        mfa_unit_batch(plan, unit),
        mfa_unit_head(plan, unit) * plan->group + (uint32_t)(row / plan->problem->seq_q),
        (uint32_t)(row % plan->problem->seq_q),
    };
    return at;
}

uint32_t mfa_causal_keys(const mfa_problem *p, uint32_t query)
{
    int64_t keys = p->seq_kv;
    if (p->causal == MFA_CAUSAL_TOP_LEFT)
        keys = (int64_t)query + 1;
    else if (p->causal == MFA_CAUSAL_BOTTOM_RIGHT)
        keys = (int64_t)query + 1 + (int64_t)p->seq_kv - (int64_t)p->seq_q;
    return keys<0 ? 0 : keys>(int64_t) p->seq_kv ? p->seq_kv : (uint32_t)keys;
}

void mfa_row_start(const mfa_plan *plan, mfa_row_place at, float *origin, float *sum)
{
    const float *sinks = plan->problem->sinks;
    const float sink = sinks ? mfa_load_float(sinks + at.head) : -INFINITY;
    *origin = isfinite(sink) ? fmaxf(-FLT_MAX, fminf(sink * MFA_LOG2E, FLT_MAX)) : sink;
    *sum = sink == -INFINITY ? 0.0f : plan->shrink;
    if (isnan(sink) || sink == INFINITY)
        *sum = NAN; /* as the softmax over such scores is */
}

static float value_at(const unsigned char *at, int precision)
{
    switch (precision) {
    case MFA_PRECISION_FP16: return mfa_from_fp16(mfa_load_half_bits(at));
    case MFA_PRECISION_BF16: return mfa_from_bf16(mfa_load_half_bits(at));
    default: return mfa_load_float(at);
    }
}

/* Mean of all value rows of the unit, masked ones too. */
static const double *value_mean(const mfa_plan *plan, size_t unit, mfa_scratch *scratch)
{
    const mfa_problem *p = plan->problem;
    if (scratch->mean_unit == unit)
        return scratch->mean;
    const size_t step = (size_t)p->v.stride[3] * mfa_precision_size(p->v.precision);
    const uint32_t batch = mfa_unit_batch(plan, unit), head = mfa_unit_head(plan, unit);
    for (uint32_t d = 0; d < p->value_dim; d++)
        scratch->mean[d] = 0.0;
    for (uint32_t key = 0; key < p->seq_kv; key++) {
        const unsigned char *row = mfa_row_of(&p->v, batch, head, key);
        for (uint32_t d = 0; d < p->value_dim; d++)
            scratch->mean[d] += (double)value_at(row + d * step, p->v.precision);
    }
    for (uint32_t d = 0; d < p->value_dim; d++)
        scratch->mean[d] /= (double)p->seq_kv;
    scratch->mean_unit = unit;
    return scratch->mean;
}

/* A row without any weight: zeros, or the mean of the values where the caller wants that. */
static void fill_empty_row(const mfa_plan *plan, size_t unit, mfa_row_place at,
                           mfa_scratch *scratch)
{
    const mfa_problem *p = plan->problem;
    bool by_additive_mask =
        p->mask.type == MFA_MASK_TYPE_ADDITIVE && mfa_causal_keys(p, at.query) > 0;
    if (p->empty_rows == MFA_EMPTY_ROW_MEAN && p->seq_kv > 0 && !by_additive_mask) {
        const double *mean = value_mean(plan, unit, scratch);
        for (uint32_t d = 0; d < p->value_dim; d++)
            scratch->plain[d] = (float)mean[d];
    } else {
        memset(scratch->plain, 0, p->value_dim * sizeof(float));
    }
}

void mfa_row_write(const mfa_plan *plan, size_t unit, mfa_row_place at, float sum,
                   mfa_scratch *scratch)
{
    const mfa_operand *out = &plan->problem->out;
    const uint32_t count = plan->problem->value_dim;
    const size_t size = mfa_precision_size(out->precision);
    unsigned char *to = mfa_row_of(out, at.batch, at.head, at.query);
    if (sum == 0.0f)
        fill_empty_row(plan, unit, at, scratch);
    if (out->stride[3] == 1) {
        plan->kernels->store(to, scratch->plain, count, out->precision);
        return;
    }
    for (uint32_t d = 0; d < count; d++)
        plan->kernels->store(to + (size_t)d * (size_t)out->stride[3] * size, scratch->plain + d, 1,
                             out->precision);
}
