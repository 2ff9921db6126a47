/* Runs a problem: the order of the tasks, and who waits for what. */
#include "problem.h"

#include "../include/mfa_ffi.h"
#include "block.h"
#include "engine.h"
#include "plan.h"
#include "share.h"
#include "threads.h"

static void compute_task(mfa_plan *plan, size_t unit, size_t block, mfa_scratch *scratch)
{
    mfa_slot *slot = &plan->packed.slots[unit % plan->packed.slot_count];
    mfa_share share =
        mfa_share_of(plan, unit + plan->packed.lookahead + 1, block, plan->packed.blocks);
    mfa_share_await(plan, unit);
    mfa_block_compute(plan, unit, block, slot, scratch, &share);
    atomic_fetch_add_explicit(&slot->computed, 1, memory_order_release);
    mfa_share_finish(&share);
}

static void compute_alone(mfa_plan *plan, size_t unit, size_t block, mfa_scratch *scratch)
{
    mfa_slot *slot = &plan->packed.slots[scratch - plan->scratch];
    mfa_share none = {.plan = plan};
    if (plan->packed.selects)
        mfa_unit_select(plan, unit, slot);
    for (size_t tile = 0; tile < plan->packed.tiles; tile++)
        mfa_unit_pack(plan, unit, tile, slot);
    mfa_block_compute(plan, unit, block, slot, scratch, &none);
}

/*
 * Tasks are handed out in this order: the chunks of the first lookahead + 1 units, then for each
 * unit its blocks, each with its share of packing the unit that many places further. Whatever a
 * task waits for was handed out before it, to a thread that finishes it: there is no deadlock.
 */
static void run_task(mfa_plan *plan, size_t task, mfa_scratch *scratch)
{
    if (plan->way == MFA_WAY_DECODE) {
        mfa_decode_compute(plan, task / plan->split.splits, task % plan->split.splits, scratch);
    } else if (plan->way == MFA_WAY_BRIEF) {
        mfa_brief_compute(plan, task / plan->brief.blocks, task % plan->brief.blocks, scratch);
    } else if (plan->packed.alone) {
        compute_alone(plan, task / plan->packed.blocks, task % plan->packed.blocks, scratch);
    } else if (task < plan->packed.head_tasks) {
        mfa_share share = mfa_share_of(plan, task / plan->packed.chunks, task % plan->packed.chunks,
                                       plan->packed.chunks);
        mfa_share_finish(&share);
    } else {
        task -= plan->packed.head_tasks;
        compute_task(plan, task / plan->packed.blocks, task % plan->packed.blocks, scratch);
    }
}

static void work(void *argument, unsigned index)
{
    mfa_plan *plan = argument;
    const mfa_kernels *kernels = plan->kernels;
    mfa_tile_state before;
    if (kernels->tiles)
        kernels->enter(&before);
    while (index == 0 || !mfa_pool_contended()) {
        size_t task = atomic_fetch_add_explicit(&plan->next_task, 1, memory_order_relaxed);
        if (task >= plan->tasks)
            break;
        run_task(plan, task, &plan->scratch[index]);
    }
    if (kernels->tiles)
        kernels->leave(&before);
}

int mfa_engine_run_alone(const mfa_problem *problem, const mfa_kernels *kernels,
                         mfa_workspace *workspace)
{
    const mfa_setup setup = {.kernels = kernels, .bf16 = kernels, .threads = 1};
    mfa_plan plan;
    if (!mfa_plan_make(&plan, problem, &setup, workspace))
        return MFA_ERROR_MEMORY_ALLOCATION;
    work(&plan, 0);
    mfa_workspace_return(workspace, plan.memory);
    return MFA_SUCCESS;
}

int mfa_engine_run(const mfa_problem *problem, mfa_workspace *workspace)
{
    mfa_setup setup;
    mfa_plan plan;
    if (!mfa_problem_valid(problem) || !mfa_setup_read(&setup))
        return MFA_ERROR_INVALID_ARGS;
    if (!problem->batch || !problem->heads_q || !problem->seq_q)
        return MFA_SUCCESS;
    if (!mfa_plan_make(&plan, problem, &setup, workspace))
        return MFA_ERROR_MEMORY_ALLOCATION;
    mfa_pool_run(work, &plan, plan.threads, plan.budget);
    mfa_workspace_return(workspace, plan.memory);
    return MFA_SUCCESS;
}
