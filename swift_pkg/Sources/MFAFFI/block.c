/* One block of query rows against all keys of its unit. */
#include "plan.h"

#include "include/mfa_ffi.h"
#include "scalar.h"

#include <math.h>
#include <string.h>

typedef struct {
    const mfa_plan *plan;
    const mfa_slot *slot;
    mfa_scratch *scratch;
    size_t unit, first_row, row_count; /* rows of the unit, flat over (head of group, query) */
    uint32_t most_keys;                /* the largest limit of the block */
} block;

typedef struct {
    uint32_t batch, head, query;
} row_place;

static row_place place_of(const block *b, size_t row)
{
    const mfa_plan *plan = b->plan;
    size_t flat = b->first_row + row;
    row_place at = {
        mfa_unit_batch(plan, b->unit),
        mfa_unit_head(plan, b->unit) * plan->group + (uint32_t)(flat / plan->problem->seq_q),
        (uint32_t)(flat % plan->problem->seq_q),
    };
    return at;
}

/* ---- which keys a row sees ---- */

static uint32_t causal_keys(const mfa_problem *p, uint32_t query)
{
    int64_t keys = p->seq_kv;
    if (p->causal == MFA_CAUSAL_TOP_LEFT)
        keys = (int64_t)query + 1;
    else if (p->causal == MFA_CAUSAL_BOTTOM_RIGHT)
        keys = (int64_t)query + 1 + (int64_t)p->seq_kv - (int64_t)p->seq_q;
    return keys < 0 ? 0 : keys > (int64_t)p->seq_kv ? p->seq_kv : (uint32_t)keys;
}

/* How many of the kept keys lie below position `keys`. */
static uint32_t kept_below(const block *b, uint32_t keys)
{
    uint32_t low = 0, high = b->slot->key_count;
    if (!b->plan->selects)
        return keys;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (b->slot->index[middle] < keys)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void find_limits(block *b)
{
    const mfa_problem *p = b->plan->problem;
    uint32_t *limits = b->scratch->limits;
    b->most_keys = 0;
    for (size_t row = 0; row < b->row_count; row++) {
        limits[row] = p->causal == MFA_CAUSAL_NONE
                          ? b->slot->key_count
                          : kept_below(b, causal_keys(p, place_of(b, row).query));
        if (limits[row] > b->most_keys)
            b->most_keys = limits[row];
    }
    size_t padded = (b->row_count + b->plan->kernels->mr - 1) / b->plan->kernels->mr *
                    b->plan->kernels->mr;
    for (size_t row = b->row_count; row < padded; row++)
        limits[row] = limits[b->row_count - 1]; /* rows of zeros that fill the last strip */
}

/* ---- setting up ---- */

static void pack_queries(const block *b)
{
    const mfa_problem *p = b->plan->problem;
    const unsigned mr = b->plan->kernels->mr;
    const unsigned char *rows[MFA_MAX_MR];
    for (size_t first = 0; first < b->row_count; first += mr) {
        unsigned count = b->row_count - first < mr ? (unsigned)(b->row_count - first) : mr;
        for (unsigned r = 0; r < count; r++) {
            row_place at = place_of(b, first + r);
            rows[r] = mfa_row_of(&p->q, at.batch, at.head, at.query);
        }
        mfa_source from = {rows, count, p->head_dim, p->q.stride[3], p->q.precision};
        b->plan->kernels->pack_columns(b->scratch->queries + first * p->head_dim, mr, &from,
                                       p->scale * MFA_LOG2E);
    }
}

/* A sink is a key of weight but no value: it is where the row's maximum and sum begin. */
static void start_states(const block *b)
{
    const mfa_problem *p = b->plan->problem;
    const unsigned mr = b->plan->kernels->mr, lanes = b->plan->kernels->lanes;
    size_t strips = (b->row_count + mr - 1) / mr;
    memset(b->scratch->output, 0, strips * mr * b->plan->padded_value_dim * sizeof(float));
    for (size_t strip = 0; strip < strips; strip++) {
        mfa_strip_state *state = &b->scratch->states[strip];
        memset(state->sum, 0, sizeof state->sum);
        for (unsigned r = 0; r < MFA_MAX_MR; r++)
            state->maximum[r] = -INFINITY;
        for (unsigned r = 0; p->sinks && r < mr && strip * mr + r < b->row_count; r++) {
            float sink = mfa_load_float(p->sinks + place_of(b, strip * mr + r).head) * MFA_LOG2E;
            state->maximum[r] = sink;
            state->sum[r * lanes] = sink == -INFINITY ? 0.0f : 1.0f;
        }
    }
}

/* ---- the sweep over the keys ---- */

/* Biases of a strip whose rows have mask rows of their own. False: no row sees any key here. */
static bool fill_biases(const block *b, size_t first_row, size_t first_key, uint32_t keys,
                        const float **bias, bool *biased)
{
    const mfa_plan *plan = b->plan;
    const unsigned mr = plan->kernels->mr;
    unsigned flags = 0;
    for (unsigned r = 0; r < mr; r++) {
        float *row = b->scratch->biases + (size_t)r * MFA_MAX_KEY_BLOCK;
        bias[r] = row;
        if (first_row + r >= b->row_count) {
            bias[r] = b->scratch->biases;
            continue;
        }
        row_place at = place_of(b, first_row + r);
        flags |= mfa_mask_biases(&plan->problem->mask, at.batch, at.head, at.query, first_key, keys,
                                 row);
        for (uint32_t i = keys; i % plan->kernels->lanes; i++)
            row[i] = 0.0f; /* beyond the last key: clipped */
    }
    *biased = flags != MFA_BIAS_ZERO;
    return flags != MFA_BIAS_REMOVED;
}

static void attend_strip(const block *b, size_t strip, size_t first_key)
{
    const mfa_plan *plan = b->plan;
    const mfa_problem *p = plan->problem;
    const unsigned mr = plan->kernels->mr;
    const uint32_t *limits = b->scratch->limits + strip * mr;
    uint32_t visible[MFA_MAX_MR], most = 0, least = UINT32_MAX;
    for (unsigned r = 0; r < mr; r++) {
        visible[r] = limits[r] > first_key ? limits[r] - (uint32_t)first_key : 0;
        most = visible[r] > most ? visible[r] : most;
        least = visible[r] < least ? visible[r] : least;
    }
    if (most == 0)
        return;
    uint32_t keys = most < plan->key_block ? most : plan->key_block;
    const float *bias[MFA_MAX_MR];
    bool biased = false;
    if (plan->selects) {
        biased = b->slot->biased;
        for (unsigned r = 0; r < mr; r++)
            bias[r] = b->slot->biases + first_key;
    } else if (p->mask.type != MFA_MASK_TYPE_NONE &&
               !fill_biases(b, strip * mr, first_key, keys, bias, &biased)) {
        return;
    }
    mfa_strip s = {
        .queries = b->scratch->queries + strip * mr * p->head_dim,
        .keys = b->slot->keys + first_key * p->head_dim,
        .values = b->slot->values,
        .first = first_key,
        .weights = b->scratch->weights,
        .output = b->scratch->output + strip * mr * plan->padded_value_dim,
        .state = &b->scratch->states[strip],
        .panel_stride = plan->panel_stride,
        .head_dim = p->head_dim,
        .value_dim = p->value_dim,
        .keys_seen = keys,
        .clipped = least < mfa_padded_dim(keys, plan->kernels->lanes),
        .visible = visible,
        .bias = biased ? bias : NULL,
    };
    plan->kernels->attend(&s);
}

/* ---- results ---- */

/* Mean of all value rows of the unit, masked ones too. */
static const double *value_mean(const block *b)
{
    const mfa_plan *plan = b->plan;
    const mfa_problem *p = plan->problem;
    mfa_scratch *scratch = b->scratch;
    if (scratch->mean_unit == b->unit)
        return scratch->mean;
    const size_t size = mfa_precision_size(p->v.precision);
    const uint32_t batch = mfa_unit_batch(plan, b->unit), head = mfa_unit_head(plan, b->unit);
    for (uint32_t d = 0; d < p->value_dim; d++)
        scratch->mean[d] = 0.0;
    for (uint32_t key = 0; key < p->seq_kv; key++) {
        const unsigned char *row = mfa_row_of(&p->v, batch, head, key);
        for (uint32_t d = 0; d < p->value_dim; d++) {
            const unsigned char *at = row + (size_t)d * (size_t)p->v.stride[3] * size;
            switch (p->v.precision) {
            case MFA_PRECISION_FP16:
                scratch->mean[d] += mfa_from_fp16(mfa_load_half_bits(at));
                break;
            case MFA_PRECISION_BF16:
                scratch->mean[d] += mfa_from_bf16(mfa_load_half_bits(at));
                break;
            default: scratch->mean[d] += mfa_load_float(at); break;
            }
        }
    }
    for (uint32_t d = 0; d < p->value_dim; d++)
        scratch->mean[d] /= (double)p->seq_kv;
    scratch->mean_unit = b->unit;
    return scratch->mean;
}

/* A row without any weight: zeros, or the mean of the values where the caller wants that. */
static void fill_empty_row(const block *b, row_place at)
{
    const mfa_problem *p = b->plan->problem;
    float *plain = b->scratch->plain;
    bool by_additive_mask =
        p->mask.type == MFA_MASK_TYPE_ADDITIVE && causal_keys(p, at.query) > 0;
    if (p->empty_rows == MFA_EMPTY_ROW_MEAN && p->seq_kv > 0 && !by_additive_mask) {
        const double *mean = value_mean(b);
        for (uint32_t d = 0; d < p->value_dim; d++)
            plain[d] = (float)mean[d];
    } else {
        memset(plain, 0, p->value_dim * sizeof(float));
    }
}

static void write_row(const block *b, row_place at)
{
    const mfa_operand *out = &b->plan->problem->out;
    const uint32_t count = b->plan->problem->value_dim;
    const size_t size = mfa_precision_size(out->precision);
    unsigned char *to = mfa_row_of(out, at.batch, at.head, at.query);
    if (out->stride[3] == 1) {
        b->plan->kernels->store(to, b->scratch->plain, count, out->precision);
        return;
    }
    for (uint32_t d = 0; d < count; d++)
        b->plan->kernels->store(to + (size_t)d * (size_t)out->stride[3] * size,
                                b->scratch->plain + d, 1, out->precision);
}

static void finish_row(const block *b, size_t row)
{
    const mfa_kernels *k = b->plan->kernels;
    const size_t strip = row / k->mr;
    const unsigned r = (unsigned)(row % k->mr);
    const float *sums = b->scratch->states[strip].sum + r * k->lanes;
    float sum = 0.0f;
    for (unsigned lane = 0; lane < k->lanes; lane++)
        sum += sums[lane];
    row_place at = place_of(b, row);
    if (sum == 0.0f)
        fill_empty_row(b, at);
    else
        k->gather(b->scratch->plain,
                  b->scratch->output + strip * k->mr * b->plan->padded_value_dim, r,
                  b->plan->problem->value_dim, 1.0f / sum);
    write_row(b, at);
}

void mfa_block_compute(const mfa_plan *plan, size_t unit, size_t number, const mfa_slot *slot,
                       mfa_scratch *scratch)
{
    block b = {.plan = plan, .slot = slot, .scratch = scratch, .unit = unit};
    b.first_row = number * plan->block_rows;
    b.row_count = plan->rows - b.first_row < plan->block_rows ? plan->rows - b.first_row
                                                              : plan->block_rows;
    find_limits(&b);
    pack_queries(&b);
    start_states(&b);
    size_t strips = (b.row_count + plan->kernels->mr - 1) / plan->kernels->mr;
    for (size_t key = 0; key < b.most_keys; key += plan->key_block)
        for (size_t strip = 0; strip < strips; strip++)
            attend_strip(&b, strip, key);
    for (size_t row = 0; row < b.row_count; row++)
        finish_row(&b, row);
}
