#include "plan.h"

#include "../include/mfa_ffi.h"

#include <string.h>

enum {
    ALIGNMENT = 64,
    BLOCK_ROWS = 256,      /* query rows whose outputs stay in the second-level cache */
    BLOCK_FLOATS = 48 << 10, /* keys and values of one key block: 192 KiB */
    CHUNK_TILES = 16,
    SPLIT_KEYS = 256, /* of a part, at least */
    THREAD_WORK = 1 << 20, /* multiply-adds that make one more thread worth waking */
};

static size_t round_up(size_t value, size_t step)
{
    return (value + step - 1) / step * step;
}

static size_t ceil_div(size_t value, size_t by)
{
    return (value + by - 1) / by;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void choose_threads(mfa_plan *plan, const mfa_setup *setup)
{
    const mfa_problem *p = plan->problem;
    double work = (double)plan->units * (double)plan->rows * (double)p->seq_kv *
                  ((double)p->head_dim + (double)p->value_dim);
    double useful = 1.0 + work / THREAD_WORK;
    plan->budget = setup->threads;
    plan->threads = setup->threads;
    if (p->max_threads && p->max_threads < plan->threads)
        plan->threads = p->max_threads;
    if (useful < plan->threads)
        plan->threads = (unsigned)useful;
}

static void choose_blocks(mfa_plan *plan)
{
    const mfa_problem *p = plan->problem;
    const size_t mr = plan->kernels->mr, nr = plan->kernels->nr;
    const size_t dims = (size_t)p->head_dim + plan->padded_value_dim;

    /* Enough blocks for threads to share evenly, few enough to reuse each key block. */
    size_t wanted = ceil_div((size_t)4 * plan->threads, plan->units);
    size_t blocks = larger(ceil_div(plan->rows, BLOCK_ROWS),
                           smaller(wanted, ceil_div(plan->rows, 2 * mr)));
    if (plan->threads == 1)
        blocks = ceil_div(plan->rows, BLOCK_ROWS);
    plan->block_rows = round_up(ceil_div(plan->rows, blocks), mr);
    plan->blocks = ceil_div(plan->rows, plan->block_rows);

    size_t keys = BLOCK_FLOATS / dims / nr * nr;
    plan->key_block = (uint32_t)smaller(larger(keys, nr), MFA_MAX_KEY_BLOCK);
    plan->padded_keys = round_up(p->seq_kv, nr);
    plan->panel_stride = plan->padded_keys * nr;
    plan->tiles = plan->padded_keys / nr;
    plan->chunks = ceil_div(plan->tiles, CHUNK_TILES);
}

/* Units packed ahead of those computed, so that nobody waits for a pack. */
static void choose_tasks(mfa_plan *plan)
{
    plan->lookahead = 1 + plan->threads / plan->blocks;
    plan->slot_count = smaller(plan->lookahead + 2, plan->units);
    plan->head_tasks = smaller(plan->lookahead + 1, plan->units) * plan->chunks;
    plan->tasks = plan->head_tasks + plan->units * plan->blocks;
}

/* Nothing is packed for few rows: a task is a part of a unit's keys. */
static void choose_splits(mfa_plan *plan)
{
    const size_t keys = plan->problem->seq_kv;
    size_t wanted = plan->threads > 1 ? ceil_div((size_t)4 * plan->threads, plan->units) : 1;
    size_t splits = larger(smaller(wanted, keys / SPLIT_KEYS), 1);
    plan->split_keys = larger(ceil_div(keys, splits), 1);
    plan->splits = larger(ceil_div(keys, plan->split_keys), 1);
    plan->block_rows = round_up(plan->rows, plan->kernels->mr);
    plan->tasks = plan->units * plan->splits;
}

/* Hands out aligned pieces of one allocation; with a null base it only adds up. */
typedef struct {
    unsigned char *base;
    size_t used;
    bool overflow;
} arena;

static void *take(arena *a, size_t count, size_t size)
{
    size_t bytes, end;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, (size_t)ALIGNMENT - 1, &bytes) ||
        __builtin_add_overflow(a->used, bytes / ALIGNMENT * ALIGNMENT, &end)) {
        a->overflow = true;
        return NULL;
    }
    void *piece = a->base ? a->base + a->used : NULL;
    a->used = end;
    return piece;
}

static void lay_out(mfa_plan *plan, arena *a)
{
    const mfa_problem *p = plan->problem;
    const mfa_kernels *k = plan->kernels;
    const size_t strip_rows = plan->few ? plan->rows : k->mr;
    mfa_slot *slots = take(a, plan->slot_count, sizeof *slots);
    mfa_scratch *scratch = take(a, plan->threads, sizeof *scratch);
    if (a->base) {
        plan->slots = slots;
        plan->scratch = scratch;
    }
    if (plan->splits > 1) {
        size_t parts = plan->units * plan->splits * plan->rows;
        atomic_size_t *arrived = take(a, plan->units, sizeof *arrived);
        float *results = take(a, parts, (2 + plan->padded_value_dim) * sizeof(float));
        if (a->base) {
            plan->arrived = arrived;
            plan->parts = results;
            for (size_t i = 0; i < plan->units; i++)
                atomic_init(&arrived[i], 0);
        }
    }
    for (size_t i = 0; i < plan->slot_count && !a->overflow; i++) {
        mfa_slot slot = {
            .keys = take(a, plan->padded_keys, p->head_dim * sizeof(float)),
            .values = take(a, plan->padded_keys, plan->padded_value_dim * sizeof(float)),
            .index = plan->selects ? take(a, plan->padded_keys, sizeof(uint32_t)) : NULL,
            .biases = plan->selects ? take(a, plan->padded_keys, sizeof(float)) : NULL,
            .key_count = p->seq_kv,
        };
        if (a->base) {
            slots[i] = slot;
            atomic_init(&slots[i].selected, 0);
            atomic_init(&slots[i].packed, 0);
            atomic_init(&slots[i].computed, 0);
        }
    }
    for (unsigned i = 0; i < plan->threads && !a->overflow; i++) {
        mfa_scratch s = {
            .queries = take(a, plan->block_rows, p->head_dim * sizeof(float)),
            .output = take(a, plan->block_rows, (2 + plan->padded_value_dim) * sizeof(float)),
            .weights = take(a, strip_rows, MFA_MAX_KEY_BLOCK * sizeof(float)),
            .biases = take(a, strip_rows, MFA_MAX_KEY_BLOCK * sizeof(float)),
            .plain = take(a, MFA_MAX_HEAD_DIM + MFA_MAX_LANES, sizeof(float)),
            .states = take(a, plan->block_rows / k->mr, sizeof(mfa_strip_state)),
            .limits = take(a, plan->block_rows, sizeof(uint32_t)),
            .mean = take(a, MFA_MAX_HEAD_DIM, sizeof(double)),
            .mean_unit = (size_t)MFA_NO_UNIT,
        };
        if (a->base)
            scratch[i] = s;
    }
}

static bool few_rows(const mfa_plan *plan)
{
    const mfa_problem *p = plan->problem;
    size_t most = p->k.precision == MFA_PRECISION_FP32 ? MFA_FEW_ROWS : MFA_FEW_ROWS_16_BIT;
    if (p->seq_kv < MFA_SHORT_KEYS)
        most = MFA_FEW_ROWS_SHORT;
    return plan->rows <= most && p->k.stride[3] == 1 && p->v.stride[3] == 1;
}

bool mfa_plan_make(mfa_plan *plan, const mfa_problem *problem, const mfa_setup *setup,
                   mfa_workspace *workspace)
{
    memset(plan, 0, sizeof *plan);
    plan->problem = problem;
    plan->kernels = setup->kernels;
    plan->group = problem->heads_q / problem->heads_kv;
    plan->units = (size_t)problem->batch * problem->heads_kv;
    plan->rows = (size_t)plan->group * problem->seq_q;
    plan->padded_value_dim = mfa_padded_dim(problem->value_dim, plan->kernels->lanes);
    plan->selects = problem->mask.type != MFA_MASK_TYPE_NONE &&
                    (problem->mask.stride[2] == 0 || problem->seq_q == 1) &&
                    (problem->mask.stride[1] == 0 || plan->group == 1);
    plan->few = few_rows(plan);
    plan->paired = plan->kernels->pairs && problem->q.precision == MFA_PRECISION_BF16;
    choose_threads(plan, setup);
    if (plan->few) {
        choose_splits(plan);
    } else {
        choose_blocks(plan);
        choose_tasks(plan);
    }
    atomic_init(&plan->next_task, 0);

    arena measure = {NULL, 0, false};
    lay_out(plan, &measure);
    plan->memory = measure.overflow ? NULL : mfa_workspace_take(workspace, measure.used);
    if (!plan->memory)
        return false;
    arena real = {plan->memory, 0, false};
    lay_out(plan, &real);
    return true;
}
