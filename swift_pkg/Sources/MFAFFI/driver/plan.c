#include "plan.h"

#include "../include/mfa_ffi.h"

#include <string.h>

enum {
    ALIGNMENT = 64,
    THREAD_WORK = 1 << 20, /* multiply-adds that make one more thread worth waking */
};

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

static void choose_kernels(mfa_plan *plan, const mfa_setup *setup)
{
    enum { HALF_A_CHUNK = 16 }; /* of 32 elements: less is mostly zeros */
    const bool bf16 = plan->problem->q.precision == MFA_PRECISION_BF16;
    plan->kernels = bf16 ? setup->bf16 : setup->kernels;
    if (plan->kernels->tiles &&
        (!bf16 || plan->way != MFA_WAY_PACKED || plan->problem->head_dim < HALF_A_CHUNK))
        plan->kernels = plan->kernels->otherwise;
}

void *mfa_arena_take(mfa_arena *a, size_t count, size_t size)
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

mfa_scratch mfa_scratch_take(const mfa_plan *plan, mfa_arena *a, mfa_scratch_rows rows)
{
    const size_t row_floats =
        plan->way == MFA_WAY_DECODE ? plan->problem->head_dim : plan->packed.key_floats;
    mfa_scratch s = {
        .queries = mfa_arena_take(a, rows.block, row_floats * sizeof(float)),
        .output = mfa_arena_take(a, rows.block, (2 + plan->padded_value_dim) * sizeof(float)),
        .weights = mfa_arena_take(a, rows.strip, MFA_MAX_KEY_BLOCK * sizeof(float)),
        .biases = mfa_arena_take(a, rows.strip, MFA_MAX_KEY_BLOCK * sizeof(float)),
        .plain = mfa_arena_take(a, MFA_MAX_HEAD_DIM + MFA_MAX_LANES, sizeof(float)),
        .states = mfa_arena_take(a, rows.block / plan->kernels->mr, sizeof(mfa_strip_state)),
        .limits = mfa_arena_take(a, rows.block, sizeof(uint32_t)),
        .mean = mfa_arena_take(a, MFA_MAX_HEAD_DIM, sizeof(double)),
        .mean_unit = (size_t)MFA_NO_UNIT,
    };
    return s;
}

static void lay_out(mfa_plan *plan, mfa_arena *a)
{
    const mfa_kernels *k = plan->kernels;
    mfa_scratch *scratch = mfa_arena_take(a, plan->threads, sizeof *scratch);
    mfa_scratch_rows rows = {plan->packed.block_rows, k->mr};
    if (plan->way == MFA_WAY_DECODE) {
        rows = (mfa_scratch_rows){mfa_round_up(plan->rows, k->mr), plan->rows};
        mfa_decode_plan_lay_out(plan, a);
    } else if (plan->way == MFA_WAY_PACKED) {
        mfa_packed_plan_lay_out(plan, a);
    }
    if (a->base)
        plan->scratch = scratch;
    for (unsigned i = 0; i < plan->threads && !a->overflow; i++) {
        mfa_scratch s = plan->way == MFA_WAY_BRIEF ? mfa_brief_scratch_take(plan, a)
                                                   : mfa_scratch_take(plan, a, rows);
        if (a->base)
            scratch[i] = s;
    }
}

bool mfa_plan_make(mfa_plan *plan, const mfa_problem *problem, const mfa_setup *setup,
                   mfa_workspace *workspace)
{
    memset(plan, 0, sizeof *plan);
    plan->problem = problem;
    plan->group = problem->heads_q / problem->heads_kv;
    plan->units = (size_t)problem->batch * problem->heads_kv;
    plan->rows = (size_t)plan->group * problem->seq_q;
    const bool tiles = problem->q.precision == MFA_PRECISION_BF16 && setup->bf16->tiles;
    plan->way = mfa_decode_plan_fits(plan)         ? MFA_WAY_DECODE
                : mfa_brief_plan_fits(plan, tiles) ? MFA_WAY_BRIEF
                                                   : MFA_WAY_PACKED;
    choose_kernels(plan, setup);
    plan->padded_value_dim = mfa_padded_dim(problem->value_dim, plan->kernels->lanes);
    plan->shrink = mfa_shrink(problem->seq_kv);
    choose_threads(plan, setup);
    if (plan->way == MFA_WAY_DECODE)
        mfa_decode_plan_choose(plan);
    else if (plan->way == MFA_WAY_BRIEF)
        mfa_brief_plan_choose(plan);
    else
        mfa_packed_plan_choose(plan);
    atomic_init(&plan->next_task, 0);

    mfa_arena measure = {NULL, 0, false};
    lay_out(plan, &measure);
    plan->memory = measure.overflow ? NULL : mfa_workspace_take(workspace, measure.used);
    if (!plan->memory)
        return false;
    mfa_arena real = {plan->memory, 0, false};
    lay_out(plan, &real);
    return true;
}
