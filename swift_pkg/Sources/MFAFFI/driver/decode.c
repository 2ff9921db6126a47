/*
 * Few query rows per unit, decoding above all: reading keys and values is all the work, so they
 * are read in place, once. Where units are fewer than threads can use, the keys of a unit are
 * split into parts; whoever finishes a unit's last part merges them.
 */
#include "plan.h"

#include "../include/mfa_ffi.h"
#include "rows.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { RUN_KEYS = 64 }; /* keys whose values are still near when their weights are known */

typedef struct {
    const mfa_plan *plan;
    mfa_scratch *scratch;
    size_t unit;
    unsigned rows;
    uint32_t first, end; /* keys of the part */
    float *origin, *sum, *output;
} part;

/* Room of a part's results: maxima, sums, outputs of all rows. */
static float *part_memory(const mfa_plan *plan, size_t unit, size_t number)
{
    size_t floats = plan->rows * (2 + (size_t)plan->padded_value_dim);
    return plan->split.parts + (unit * plan->split.splits + number) * floats;
}

static void bind(part *p, float *memory)
{
    p->origin = memory;
    p->sum = memory + p->rows;
    p->output = memory + 2 * (size_t)p->rows;
}

static void start(const part *p, size_t number)
{
    const mfa_problem *problem = p->plan->problem;
    memset(p->output, 0, p->rows * p->plan->padded_value_dim * sizeof(float));
    for (unsigned r = 0; r < p->rows; r++) {
        mfa_row_place at = mfa_place_of(p->plan, p->unit, r);
        const unsigned char *query = mfa_row_of(&problem->q, at.batch, at.head, at.query);
        mfa_source from = {&query, 1, problem->head_dim, problem->q.stride[3],
                           problem->q.precision};
        p->plan->kernels->scale_row(p->scratch->queries + r * (size_t)problem->head_dim, &from,
                                    problem->scale * MFA_LOG2E);
        p->origin[r] = -INFINITY;
        p->sum[r] = 0.0f;
        if (number == 0)
            mfa_row_start(p->plan, at, &p->origin[r], &p->sum[r]);
    }
}

/* Keys of the run that each row sees, and their biases. False: no row sees any. */
static bool look(const part *p, uint32_t key, unsigned count, unsigned *visible, bool *biased)
{
    const mfa_problem *problem = p->plan->problem;
    bool any = false;
    unsigned flags = 0;
    for (unsigned r = 0; r < p->rows; r++) {
        mfa_row_place at = mfa_place_of(p->plan, p->unit, r);
        uint32_t limit = mfa_causal_keys(problem, at.query);
        visible[r] = limit <= key ? 0 : limit - key < count ? limit - key : count;
        any |= visible[r] > 0;
        if (problem->mask.type != MFA_MASK_TYPE_NONE) {
            float *bias = p->scratch->biases + (size_t)r * MFA_MAX_KEY_BLOCK;
            flags |= mfa_mask_biases(&problem->mask, at.batch, at.head, at.query, key, count, bias);
            memset(bias + count, 0, MFA_MAX_LANES * sizeof(float)); /* clipped, but read */
        }
    }
    *biased = flags != 0 && flags != MFA_BIAS_ZERO;
    return any && flags != MFA_BIAS_REMOVED;
}

static void sweep(const part *p)
{
    const mfa_plan *plan = p->plan;
    const mfa_problem *problem = plan->problem;
    const uint32_t batch = mfa_unit_batch(plan, p->unit), head = mfa_unit_head(plan, p->unit);
    const size_t size = mfa_precision_size(problem->k.precision);
    mfa_decode f = {
        .queries = p->scratch->queries,
        .query_step = problem->head_dim,
        .key_step = (size_t)problem->k.stride[2] * size,
        .value_step = (size_t)problem->v.stride[2] * size,
        .weights = p->scratch->weights,
        .output = p->output,
        .output_step = plan->padded_value_dim,
        .origin = p->origin,
        .shrink = plan->shrink,
        .sum = p->sum,
        .rows = p->rows,
        .head_dim = problem->head_dim,
        .value_dim = problem->value_dim,
        .precision = problem->k.precision,
    };
    for (uint32_t key = p->first; key < p->end; key += f.count) {
        unsigned visible[MFA_MAX_DECODE_ROWS];
        bool biased;
        f.count = p->end - key < RUN_KEYS ? p->end - key : RUN_KEYS;
        if (!look(p, key, f.count, visible, &biased))
            continue;
        f.keys = mfa_row_of(&problem->k, batch, head, key);
        f.values = mfa_row_of(&problem->v, batch, head, key);
        plan->kernels->decode_scores(&f);
        for (unsigned r = 0; r < p->rows; r++)
            plan->kernels->decode_softmax(
                &f, r, visible[r],
                biased ? p->scratch->biases + (size_t)r * MFA_MAX_KEY_BLOCK : NULL);
        plan->kernels->decode_values(&f);
    }
}

/* Adds another part's rows to this one. */
static void absorb(const part *into, const part *other)
{
    const uint32_t dim = into->plan->padded_value_dim;
    for (unsigned r = 0; r < into->rows; r++) {
        float higher = fmaxf(into->origin[r], other->origin[r]);
        float origin = fmaxf(higher, -FLT_MAX); /* so that -inf - -inf does not arise */
        float mine = exp2f(into->origin[r] - origin), its = exp2f(other->origin[r] - origin);
        into->origin[r] = higher;
        into->sum[r] = into->sum[r] * mine + other->sum[r] * its;
        for (uint32_t d = 0; d < dim; d++)
            into->output[r * dim + d] =
                into->output[r * dim + d] * mine + other->output[r * dim + d] * its;
    }
}

static void finish(const part *p)
{
    const uint32_t dim = p->plan->padded_value_dim;
    for (unsigned r = 0; r < p->rows; r++) {
        float factor = 1.0f / p->sum[r];
        for (uint32_t d = 0; d < p->plan->problem->value_dim; d++)
            p->scratch->plain[d] = p->output[r * dim + d] * factor;
        mfa_row_write(p->plan, p->unit, mfa_place_of(p->plan, p->unit, r), p->sum[r], p->scratch);
    }
}

void mfa_decode_compute(const mfa_plan *plan, size_t unit, size_t number, mfa_scratch *scratch)
{
    const uint32_t keys = plan->problem->seq_kv;
    const uint32_t each = (uint32_t)plan->split.split_keys;
    part p = {.plan = plan, .scratch = scratch, .unit = unit, .rows = (unsigned)plan->rows};
    p.first = (uint32_t)(number * each);
    p.end = keys - p.first < each ? keys : p.first + each;
    bind(&p, plan->split.splits == 1 ? scratch->output : part_memory(plan, unit, number));
    start(&p, number);
    sweep(&p);
    if (plan->split.splits > 1) {
        /* The last to arrive sees what all others wrote. */
        if (atomic_fetch_add_explicit(&plan->split.arrived[unit], 1, memory_order_acq_rel) + 1 <
            plan->split.splits)
            return;
        bind(&p, part_memory(plan, unit, 0));
        for (size_t i = 1; i < plan->split.splits; i++) {
            part other = p;
            bind(&other, part_memory(plan, unit, i));
            absorb(&p, &other);
        }
    }
    finish(&p);
}
