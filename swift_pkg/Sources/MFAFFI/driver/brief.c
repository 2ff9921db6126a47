/*
 * Few keys: one task computes a block of a unit's rows from start to end, and nothing is kept for
 * another. What the packed way does ahead and in between would take longer than the products.
 */
#include "plan.h"

#include "../include/mfa_ffi.h"
#include "rows.h"

#include <math.h>

enum {
    MAX_KEYS = MFA_BRIEF_MAX_KEYS,
    FEW_FOR_ALL = 64,   /* keys that are copied anew for each block of however many rows */
    FEW_FOR_TILES = 24, /* keys up to which a tile unit does not pay */
    MAX_ROWS = 256,
    BLOCK_ROWS = 64, /* that share one copy of the keys, where threads have enough to do */
};

bool mfa_brief_plan_fits(const mfa_plan *plan, bool tiles)
{
    const mfa_problem *p = plan->problem;
    const size_t most = tiles ? FEW_FOR_TILES : plan->rows > MAX_ROWS ? FEW_FOR_ALL : MAX_KEYS;
    return p->seq_kv >= 1 && p->seq_kv <= most && p->mask.type == MFA_MASK_TYPE_NONE &&
           p->causal == MFA_CAUSAL_NONE && p->out.stride[3] == 1;
}

void mfa_brief_plan_choose(mfa_plan *plan)
{
    const size_t lanes = plan->kernels->lanes;
    const size_t wanted =
        plan->threads > 1 ? mfa_ceil_div((size_t)2 * plan->threads, plan->units) : 1;
    const size_t blocks = mfa_larger(wanted, mfa_ceil_div(plan->rows, BLOCK_ROWS));
    plan->brief.block_rows = mfa_round_up(mfa_ceil_div(plan->rows, blocks), lanes);
    plan->brief.blocks = mfa_ceil_div(plan->rows, plan->brief.block_rows);
    plan->tasks = plan->units * plan->brief.blocks;
}

/* Values are read in place, if that can be done a vector at a time. */
static bool copies_values(const mfa_plan *plan)
{
    const mfa_problem *p = plan->problem;
    return p->v.precision != MFA_PRECISION_FP32 || p->v.stride[3] != 1 ||
           p->value_dim != plan->padded_value_dim;
}

mfa_scratch mfa_brief_scratch_take(const mfa_plan *plan, mfa_arena *a)
{
    const mfa_problem *p = plan->problem;
    const size_t width = (size_t)MFA_BRIEF_VECTORS * plan->kernels->lanes;
    const size_t keys = mfa_round_up(p->seq_kv, MFA_BRIEF_KEY_STEP);
    const size_t key_floats = mfa_padded_dim(p->head_dim, plan->kernels->lanes);
    mfa_scratch s = {
        .queries = mfa_arena_take(a, width, p->head_dim * sizeof(float)),
        .weights = mfa_arena_take(a, width, keys * sizeof(float)),
        .keys = mfa_arena_take(a, keys, key_floats * sizeof(float)),
        .values = mfa_arena_take(a, copies_values(plan) ? keys : 0,
                                 plan->padded_value_dim * sizeof(float)),
        .plain = mfa_arena_take(a, p->value_dim, sizeof(float)),
        .mean = mfa_arena_take(a, p->value_dim, sizeof(double)),
        .mean_unit = (size_t)MFA_NO_UNIT,
    };
    return s;
}

/* Keys as the kernels want them, and values, unless they are read in place. */
static void copy_unit(const mfa_plan *plan, size_t unit, mfa_scratch *scratch, mfa_brief *f)
{
    const mfa_problem *p = plan->problem;
    const size_t batch = mfa_unit_batch(plan, unit), head = mfa_unit_head(plan, unit);
    const unsigned char *rows[MAX_KEYS];
    for (uint32_t key = 0; key < p->seq_kv; key++)
        rows[key] = mfa_row_of(&p->k, batch, head, key);
    mfa_source keys = {rows, p->seq_kv, p->head_dim, p->k.stride[3], p->k.precision};
    plan->kernels->brief_pack_keys(scratch->keys, &keys);
    f->values = (const float *)(const void *)mfa_row_of(&p->v, batch, head, 0);
    f->value_step = (size_t)p->v.stride[2];
    if (!copies_values(plan))
        return;
    for (uint32_t key = 0; key < p->seq_kv; key++)
        rows[key] = mfa_row_of(&p->v, batch, head, key);
    mfa_source values = {rows, p->seq_kv, p->value_dim, p->v.stride[3], p->v.precision};
    plan->kernels->brief_pack_values(scratch->values, &values);
    f->values = scratch->values;
    f->value_step = plan->padded_value_dim;
}

static void compute_strip(const mfa_plan *plan, size_t unit, size_t first, mfa_scratch *scratch,
                          mfa_brief *f)
{
    enum { WIDTH = MFA_BRIEF_VECTORS * MFA_MAX_LANES };
    const mfa_problem *p = plan->problem;
    const unsigned char *queries[WIDTH];
    unsigned char *out[WIDTH];
    float origin[WIDTH], sum[WIDTH];
    mfa_row_place at = mfa_place_of(plan, unit, first);
    for (unsigned r = 0; r < f->rows; r++) {
        queries[r] = mfa_row_of(&p->q, at.batch, at.head, at.query);
        out[r] = mfa_row_of(&p->out, at.batch, at.head, at.query);
        mfa_row_start(plan, at, &origin[r], &sum[r]);
        mfa_place_next(plan, &at);
    }
    const unsigned lanes = plan->kernels->lanes;
    for (unsigned r = f->rows; r < MFA_BRIEF_VECTORS * lanes; r++) {
        origin[r] = -INFINITY; /* of lanes that nobody reads */
        sum[r] = 0.0f;
    }
    mfa_source from = {queries, f->rows, p->head_dim, p->q.stride[3], p->q.precision};
    plan->kernels->pack_columns(scratch->queries, MFA_BRIEF_VECTORS * lanes, &from,
                                p->scale * MFA_LOG2E);
    f->out = out;
    f->origin = origin;
    f->sum = sum;
    plan->kernels->brief_attend(f);
    for (unsigned r = 0; r < f->rows; r++)
        if (sum[r] == 0.0f)
            mfa_row_write(plan, unit, mfa_place_of(plan, unit, first + r), 0.0f, scratch);
}

void mfa_brief_compute(const mfa_plan *plan, size_t unit, size_t block, mfa_scratch *scratch)
{
    const mfa_problem *p = plan->problem;
    const size_t width = (size_t)MFA_BRIEF_VECTORS * plan->kernels->lanes;
    const size_t end = mfa_smaller((block + 1) * plan->brief.block_rows, plan->rows);
    mfa_brief f = {
        .queries = scratch->queries,
        .keys = scratch->keys,
        .weights = scratch->weights,
        .shrink = plan->shrink,
        .count = p->seq_kv,
        .head_dim = p->head_dim,
        .value_dim = p->value_dim,
        .precision = p->out.precision,
    };
    copy_unit(plan, unit, scratch, &f);
    for (size_t first = block * plan->brief.block_rows; first < end; first += width) {
        f.rows = (unsigned)mfa_smaller(end - first, width);
        compute_strip(plan, unit, first, scratch, &f);
    }
}
