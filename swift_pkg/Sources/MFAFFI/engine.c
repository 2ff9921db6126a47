/* Runs a problem: the order of the tasks, and who waits for what. */
#include "problem.h"

#include "include/mfa_ffi.h"
#include "plan.h"
#include "threads.h"

#include <sched.h>

static void wait_for(atomic_size_t *counter, size_t wanted)
{
    for (unsigned spins = 0; atomic_load_explicit(counter, memory_order_acquire) < wanted; spins++)
        if (spins > 256)
            sched_yield();
}

static void add_one(atomic_size_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_release);
}

static void pack_task(mfa_plan *plan, size_t unit, size_t chunk)
{
    mfa_slot *slot = &plan->slots[unit % plan->slot_count];
    const size_t round = unit / plan->slot_count;
    wait_for(&slot->computed, round * plan->blocks); /* the slot's last unit is done with */
    if (plan->selects) {
        if (chunk == 0) {
            wait_for(&slot->packed, round * plan->chunks);
            mfa_unit_select(plan, unit, slot);
            add_one(&slot->selected);
        } else {
            wait_for(&slot->selected, round + 1);
        }
    }
    mfa_unit_pack(plan, unit, chunk, slot);
    add_one(&slot->packed);
}

static void compute_task(mfa_plan *plan, size_t unit, size_t block, mfa_scratch *scratch)
{
    mfa_slot *slot = &plan->slots[unit % plan->slot_count];
    const size_t round = unit / plan->slot_count;
    wait_for(&slot->packed, (round + 1) * plan->chunks);
    mfa_block_compute(plan, unit, block, slot, scratch);
    add_one(&slot->computed);
}

/*
 * Tasks are handed out in this order: the chunks of the first lookahead + 1 units, then for each
 * unit its blocks, followed by the chunks of the unit that many places further. Whatever a task
 * waits for was handed out before it, to a thread that finishes it: there is no deadlock.
 */
static void run_task(mfa_plan *plan, size_t task, mfa_scratch *scratch)
{
    if (plan->few) {
        mfa_few_compute(plan, task / plan->splits, task % plan->splits, scratch);
        return;
    }
    if (task < plan->head_tasks) {
        pack_task(plan, task / plan->chunks, task % plan->chunks);
        return;
    }
    const size_t each = plan->blocks + plan->chunks;
    const size_t unit = (task - plan->head_tasks) / each, part = (task - plan->head_tasks) % each;
    if (part < plan->blocks)
        compute_task(plan, unit, part, scratch);
    else if (unit + plan->lookahead + 1 < plan->units)
        pack_task(plan, unit + plan->lookahead + 1, part - plan->blocks);
}

static void work(void *argument, unsigned index)
{
    mfa_plan *plan = argument;
    while (index == 0 || !mfa_pool_contended()) {
        size_t task = atomic_fetch_add_explicit(&plan->next_task, 1, memory_order_relaxed);
        if (task >= plan->tasks)
            return;
        run_task(plan, task, &plan->scratch[index]);
    }
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
