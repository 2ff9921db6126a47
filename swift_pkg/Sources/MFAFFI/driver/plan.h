/*
 * How one call is cut into tasks, and its work memory.
 *
 * A unit is one key/value head of one batch entry; the query heads that share it are its rows.
 * Per unit the keys and values are packed once, in tiles, into one of a few slots; its rows are
 * computed in blocks. Memory: `slots` packed units plus one scratch per thread, so linear in the
 * sequence length.
 */
#ifndef MFA_PLAN_H
#define MFA_PLAN_H

#include "cpu.h"
#include "../kernels/kernels.h"
#include "problem.h"

#include <stdatomic.h>

/* A packed unit. The counters only grow: one round more for each unit that uses the slot. */
typedef struct {
    float *keys, *values;
    uint32_t *index;   /* positions of the keys kept, when the plan drops masked ones */
    float *biases;     /* per key kept, in log2 units */
    uint32_t key_count;
    bool biased;
    atomic_size_t selected, packed, computed;
} mfa_slot;

/* One thread's own memory. */
typedef struct {
    float *queries, *output, *weights, *biases, *plain;
    mfa_strip_state *states;
    uint32_t *limits; /* per row of the block: keys that it may see */
    double *mean;     /* column means of the values of unit `mean_unit` */
    size_t mean_unit;
} mfa_scratch;

typedef struct {
    const mfa_problem *problem;
    const mfa_kernels *kernels;
    unsigned threads, budget;
    uint32_t group;      /* query heads per unit */
    size_t units, rows;  /* rows: group * seq_q, per unit */
    size_t block_rows, blocks;
    uint32_t key_block;  /* keys visited at a time */
    size_t tiles, chunks; /* of keys: what is packed at a time, what a task of packing packs */
    size_t padded_keys, panel_stride;
    unsigned padded_value_dim;
    bool selects;        /* one mask row serves all rows of a unit: drop the keys it removes */
    size_t slot_count, lookahead, head_tasks, tasks;
    bool paired;         /* queries and keys are packed as BF16 pairs */
    bool few;            /* few rows per unit: see few.c; nothing is packed */
    size_t splits, split_keys;
    float *parts;        /* results of the parts, when a unit has several */
    atomic_size_t *arrived;
    mfa_slot *slots;
    mfa_scratch *scratch;
    void *memory;
    atomic_size_t next_task;
} mfa_plan;

enum {
    MFA_NO_UNIT = -1,
    /*
     * Rows of a unit up to which packing does not pay; 16-bit rows are converted once per row, and
     * few keys stay near whatever is done with them.
     */
    MFA_FEW_ROWS = 20,
    MFA_FEW_ROWS_16_BIT = 12,
    MFA_FEW_ROWS_SHORT = 8,
    MFA_SHORT_KEYS = 512,
};

/* Fills the plan and gets its memory; false when there is none to be had. */
bool mfa_plan_make(mfa_plan *plan, const mfa_problem *problem, const mfa_setup *setup,
                   mfa_workspace *workspace);

static inline uint32_t mfa_unit_batch(const mfa_plan *plan, size_t unit)
{
    return (uint32_t)(unit / plan->problem->heads_kv);
}

static inline uint32_t mfa_unit_head(const mfa_plan *plan, size_t unit)
{
    return (uint32_t)(unit % plan->problem->heads_kv);
}

/* Address of row `row` of a head. */
static inline unsigned char *mfa_row_of(const mfa_operand *x, size_t batch, size_t head, size_t row)
{
    size_t element = batch * (size_t)x->stride[0] + head * (size_t)x->stride[1] +
                     row * (size_t)x->stride[2];
    return x->data + element * mfa_precision_size(x->precision);
}

/* unit.c: chooses the keys of a unit, and packs tile `tile` of them. */
void mfa_unit_select(const mfa_plan *plan, size_t unit, mfa_slot *slot);
void mfa_unit_pack(const mfa_plan *plan, size_t unit, size_t tile, mfa_slot *slot);

/* Adds rows from `first` on of a head to those that will be wanted soon. */
void mfa_ahead_add(mfa_ahead *ahead, const mfa_operand *x, size_t batch, size_t head, size_t first,
                   size_t rows, uint32_t columns);

/* few.c: computes part `part` of a unit whose rows are few. */
void mfa_few_compute(const mfa_plan *plan, size_t unit, size_t part, mfa_scratch *scratch);

#endif
