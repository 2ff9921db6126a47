/* One block of query rows against all keys of its unit. */
#include "block.h"

#include "../include/mfa_ffi.h"
#include "rows.h"

#include <math.h>
#include <string.h>

typedef struct {
    const mfa_plan *plan;
    const mfa_slot *slot;
    mfa_scratch *scratch;
    size_t unit, first_row, row_count; /* rows of the unit, flat over (head of group, query) */
    uint32_t max_keys;                /* the largest limit of the block */
    mfa_prefetch prefetch;
} block;

static mfa_row_place place_of(const block *b, size_t row)
{
    return mfa_place_of(b->plan, b->unit, b->first_row + row);
}

/* ---- which keys a row sees ---- */

/* How many of the kept keys lie below position `keys`. */
static uint32_t kept_below(const block *b, uint32_t keys)
{
    uint32_t low = 0, high = b->slot->key_count;
    if (!b->plan->packed.selects)
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
    b->max_keys = 0;
    for (size_t row = 0; row < b->row_count; row++) {
        limits[row] = p->causal == MFA_CAUSAL_NONE
                          ? b->slot->key_count
                          : kept_below(b, mfa_causal_keys(p, place_of(b, row).query));
        if (limits[row] > b->max_keys)
            b->max_keys = limits[row];
    }
    size_t padded =
        (b->row_count + b->plan->kernels->mr - 1) / b->plan->kernels->mr * b->plan->kernels->mr;
    for (size_t row = b->row_count; row < padded; row++)
        limits[row] = limits[b->row_count - 1]; /* rows of zeros that fill the last strip */
}

/* ---- strips ---- */

/* Rows of a strip that are rows of the block. */
static unsigned rows_of(const block *b, size_t strip)
{
    const size_t mr = b->plan->kernels->mr;
    return (unsigned)mfa_smaller(b->row_count - strip * mr, mr);
}

static float *queries_of(const block *b, size_t strip)
{
    return b->scratch->queries + strip * b->plan->kernels->mr * b->plan->packed.key_floats;
}

/* With one key block, each strip is finished before the next begins: they use the same memory. */
static float *output_of(const block *b, size_t strip)
{
    if (b->max_keys <= b->plan->packed.key_block)
        return b->scratch->output;
    return b->scratch->output + strip * b->plan->kernels->mr * b->plan->padded_value_dim;
}

static void start_strip(const block *b, size_t strip)
{
    const mfa_problem *p = b->plan->problem;
    const unsigned mr = b->plan->kernels->mr, lanes = b->plan->kernels->lanes;
    const unsigned count = rows_of(b, strip);
    mfa_strip_state *state = &b->scratch->states[strip];
    const unsigned char *rows[MFA_MAX_MR];
    memset(state->sum, 0, mr * lanes * sizeof(float));
    state->measured = false;
    state->fresh = true;
    for (unsigned r = 0; r < MFA_MAX_MR; r++)
        state->origin[r] = -INFINITY;
    mfa_row_place at = place_of(b, strip * mr);
    for (unsigned r = 0; r < count; r++, mfa_place_next(b->plan, &at)) {
        rows[r] = mfa_row_of(&p->q, at.batch, at.head, at.query);
        if (p->sinks)
            mfa_row_start(b->plan, at, &state->origin[r], &state->sum[r * lanes]);
    }
    mfa_source from = {rows, count, p->head_dim, p->q.stride[3], p->q.precision};
    if (b->plan->kernels->tiles)
        b->plan->kernels->pack_queries(queries_of(b, strip), &from);
    else if (b->plan->packed.paired)
        b->plan->kernels->pack_pairs(queries_of(b, strip), mr, &from);
    else
        b->plan->kernels->pack_columns(queries_of(b, strip), mr, &from, p->scale * MFA_LOG2E);
}

static void finish_strip(const block *b, size_t strip)
{
    const mfa_plan *plan = b->plan;
    const mfa_operand *out = &plan->problem->out;
    const unsigned mr = plan->kernels->mr, count = rows_of(b, strip);
    const mfa_strip_state *state = &b->scratch->states[strip];
    float *output = output_of(b, strip);
    if (state->fresh) /* sinks may have weights all the same */
        memset(output, 0, (size_t)mr * plan->padded_value_dim * sizeof(float));
    const bool direct = out->stride[3] == 1;
    const int precision = direct ? out->precision : MFA_PRECISION_FP32;
    mfa_row_place at = place_of(b, strip * mr);
    for (unsigned r = 0; r < count; r++, mfa_place_next(plan, &at)) {
        unsigned char *to = direct ? mfa_row_of(out, at.batch, at.head, at.query)
                                   : (unsigned char *)b->scratch->plain;
        const float sum =
            plan->kernels->gather(to, precision, state, output, r, plan->problem->value_dim);
        if (!direct || sum == 0.0f)
            mfa_row_write(plan, b->unit, at, sum, b->scratch);
    }
}

/* ---- memory wanted soon ---- */

enum { OWN_RUNS = 2 }; /* the block's own: queries and results; a tile's come on top */

/* Rows from flat row `row` of a unit on: as many as lie one after the other, up to a block. */
static void prefetch_rows(block *b, const mfa_operand *x, size_t unit, size_t row, uint32_t columns)
{
    if (unit >= b->plan->units)
        return;
    mfa_row_place at = mfa_place_of(b->plan, unit, row);
    const size_t rows = b->plan->problem->seq_q - at.query;
    mfa_prefetch_add(&b->prefetch, x, at.batch, at.head, at.query,
                     rows < b->plan->packed.block_rows ? rows : b->plan->packed.block_rows,
                     columns);
}

/* Where this block's results go, and the queries that this thread will probably take next. */
static void prefetch_next(block *b, size_t number)
{
    const mfa_plan *plan = b->plan;
    const mfa_problem *p = plan->problem;
    const size_t next = number + plan->threads;
    b->prefetch.runs = 0;
    prefetch_rows(b, &p->q, b->unit + next / plan->packed.blocks,
                  next % plan->packed.blocks * plan->packed.block_rows, p->head_dim);
    prefetch_rows(b, &p->out, b->unit, b->first_row, p->value_dim);
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
        mfa_row_place at = place_of(b, first_row + r);
        flags |= mfa_mask_biases(&plan->problem->mask, at.batch, at.head, at.query, first_key, keys,
                                 row);
        for (uint32_t i = keys; i % plan->kernels->lanes; i++)
            row[i] = 0.0f; /* beyond the last key: clipped */
    }
    *biased = flags != MFA_BIAS_ZERO;
    return flags != MFA_BIAS_REMOVED;
}

static void attend_strip(block *b, size_t strip, size_t first_key)
{
    const mfa_plan *plan = b->plan;
    const mfa_problem *p = plan->problem;
    const unsigned mr = plan->kernels->mr;
    const uint32_t *limits = b->scratch->limits + strip * mr;
    uint32_t visible[MFA_MAX_MR], max = 0, min = UINT32_MAX;
    for (unsigned r = 0; r < mr; r++) {
        visible[r] = limits[r] > first_key ? limits[r] - (uint32_t)first_key : 0;
        max = visible[r] > max ? visible[r] : max;
        min = visible[r] < min ? visible[r] : min;
    }
    if (max == 0)
        return;
    uint32_t keys = max < plan->packed.key_block ? max : plan->packed.key_block;
    const float *bias[MFA_MAX_MR];
    bool biased = false;
    if (plan->packed.selects) {
        biased = b->slot->biased;
        for (unsigned r = 0; r < mr; r++)
            bias[r] = b->slot->biases + first_key;
    } else if (p->mask.type != MFA_MASK_TYPE_NONE &&
               !fill_biases(b, strip * mr, first_key, keys, bias, &biased)) {
        return;
    }
    mfa_strip s = {
        .queries = queries_of(b, strip),
        .keys = b->slot->keys + first_key * plan->packed.key_floats,
        .values = b->slot->values,
        .first = first_key,
        .weights = b->scratch->weights,
        .output = output_of(b, strip),
        .state = &b->scratch->states[strip],
        .panel_stride = plan->packed.panel_stride,
        .head_dim = p->head_dim,
        .value_dim = p->value_dim,
        .paired = plan->packed.paired,
        .scale = p->scale * MFA_LOG2E,
        .shrink = plan->shrink,
        .keys_seen = keys,
        .clipped = min < mfa_padded_dim(keys, plan->kernels->lanes),
        .visible = visible,
        .bias = biased ? bias : NULL,
        .prefetch = &b->prefetch,
    };
    plan->kernels->attend(&s);
    b->scratch->states[strip].fresh = false;
}

static void sweep(block *b, mfa_share *share)
{
    const size_t mr = b->plan->kernels->mr, key_block = b->plan->packed.key_block;
    const size_t strips = mfa_ceil_div(b->row_count, mr);
    const size_t end = mfa_larger(b->max_keys, 1); /* rows that see no key have results, too */
    const size_t steps = mfa_ceil_div(end, key_block) * strips;
    const size_t first = share->tile, tiles = share->end - first;
    size_t step = 0, prefetched = share->end;
    for (size_t key = 0; key < end; key += key_block)
        for (size_t strip = 0; strip < strips; strip++) {
            if (key == 0)
                start_strip(b, strip);
            attend_strip(b, strip, key);
            if (end - key <= key_block)
                finish_strip(b, strip);
            step++;
            mfa_share_advance(share, first + tiles * step / steps);
            if (share->tile != prefetched) {
                prefetched = share->tile;
                if (b->prefetch.runs > OWN_RUNS)
                    b->prefetch.runs = OWN_RUNS; /* what was left of the last tile is packed now */
                mfa_share_prefetch(share, &b->prefetch);
            }
        }
}

void mfa_block_compute(const mfa_plan *plan, size_t unit, size_t number, const mfa_slot *slot,
                       mfa_scratch *scratch, mfa_share *share)
{
    block b = {.plan = plan, .slot = slot, .scratch = scratch, .unit = unit};
    b.first_row = number * plan->packed.block_rows;
    b.row_count = plan->rows - b.first_row < plan->packed.block_rows ? plan->rows - b.first_row
                                                                     : plan->packed.block_rows;
    find_limits(&b);
    prefetch_next(&b, number);
    sweep(&b, share);
}
