/*
 * How one call is cut into tasks, and its work memory.
 *
 * A unit is one key/value head of one batch entry; the query heads that share it are its rows.
 * Per unit the keys and values are packed once, in tiles, into one of a few slots (or, if that is
 * little work, anew for each block by the thread that computes it); its rows are computed in
 * blocks. Memory: `slots` packed units plus one scratch per thread, so linear in the
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
    float *keys, *values; /* copies, of few keys */
    mfa_strip_state *states;
    uint32_t *limits; /* per row of the block: keys that it may see */
    double *mean;     /* column means of the values of unit `mean_unit` */
    size_t mean_unit;
} mfa_scratch;

/* Of calls whose keys and values are packed. */
typedef struct {
    size_t block_rows, blocks; /* rows of a unit that are computed together */
    uint32_t key_block;        /* keys visited at a time */
    size_t tiles, chunks; /* of keys: what is packed at a time, what a task of packing packs */
    size_t padded_keys, panel_stride;
    size_t key_floats, value_floats; /* that one key takes */
    size_t slot_count, lookahead, head_tasks;
    bool alone; /* each task packs what it needs, to its thread's own slot */
    bool selects; /* one mask row serves all rows of a unit: drop the keys it removes */
    bool paired; /* queries and keys are packed as BF16 pairs */
    mfa_slot *slots;
} mfa_packed_plan;

/* Of calls with few rows per unit, decoding above all: nothing is packed, keys may be split. */
typedef struct {
    size_t splits, split_keys;
    float *parts; /* results of the parts, when a unit has several */
    atomic_size_t *arrived;
} mfa_decode_plan;

/* Of calls with few keys: a task computes a block of a unit's rows. */
typedef struct {
    size_t block_rows, blocks;
} mfa_brief_plan;

typedef enum { MFA_WAY_PACKED, MFA_WAY_DECODE, MFA_WAY_BRIEF } mfa_way;

typedef struct {
    const mfa_problem *problem;
    const mfa_kernels *kernels;
    unsigned threads, budget;
    uint32_t group; /* query heads per unit */
    size_t units, rows; /* rows: group * seq_q, per unit */
    unsigned padded_value_dim;
    float shrink; /* of rows' weights */
    mfa_way way; /* which of the three it is */
    mfa_packed_plan packed;
    mfa_decode_plan split;
    mfa_brief_plan brief;
    size_t tasks;
    mfa_scratch *scratch;
    void *memory;
    atomic_size_t next_task;
} mfa_plan;

enum { MFA_NO_UNIT = -1, MFA_MAX_DECODE_ROWS = 20 };

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
    size_t element =
        batch * (size_t)x->stride[0] + head * (size_t)x->stride[1] + row * (size_t)x->stride[2];
    return x->data + element * mfa_precision_size(x->precision);
}

/* Hands out aligned pieces of one allocation; with a null base it only adds up. */
typedef struct {
    unsigned char *base;
    size_t used;
    bool overflow;
} mfa_arena;

void *mfa_arena_take(mfa_arena *arena, size_t count, size_t size);

/* plan_packed.c, plan_decode.c, brief.c: how the call is cut, and what memory that takes. */
void mfa_packed_plan_choose(mfa_plan *plan);
void mfa_packed_plan_lay_out(mfa_plan *plan, mfa_arena *arena);
bool mfa_decode_plan_fits(const mfa_plan *plan);
void mfa_decode_plan_choose(mfa_plan *plan);
void mfa_decode_plan_lay_out(mfa_plan *plan, mfa_arena *arena);
bool mfa_brief_plan_fits(const mfa_plan *plan, bool tiles); /* tiles: a tile unit could be used */
void mfa_brief_plan_choose(mfa_plan *plan);
mfa_scratch mfa_brief_scratch_take(const mfa_plan *plan, mfa_arena *arena);

/* Rows that a thread's scratch has room for, and of which weights are kept at a time. */
typedef struct {
    size_t block, strip;
} mfa_scratch_rows;

mfa_scratch mfa_scratch_take(const mfa_plan *plan, mfa_arena *arena, mfa_scratch_rows rows);

static inline size_t mfa_round_up(size_t value, size_t step)
{
    return (value + step - 1) / step * step;
}

static inline size_t mfa_ceil_div(size_t value, size_t by) { return (value + by - 1) / by; }

static inline size_t mfa_smaller(size_t a, size_t b) { return a < b ? a : b; }

static inline size_t mfa_larger(size_t a, size_t b) { return a > b ? a : b; }

/* packing.c: chooses the keys of a unit, and packs tile `tile` of them. */
void mfa_unit_select(const mfa_plan *plan, size_t unit, mfa_slot *slot);
void mfa_unit_pack(const mfa_plan *plan, size_t unit, size_t tile, mfa_slot *slot);

/* Adds rows from `first` on of a head to those that will be wanted soon. */
void mfa_prefetch_add(mfa_prefetch *prefetch, const mfa_operand *x, size_t batch, size_t head,
                      size_t first, size_t rows, uint32_t columns);

/* decode.c: computes part `part` of a unit whose rows are few. */
void mfa_decode_compute(const mfa_plan *plan, size_t unit, size_t part, mfa_scratch *scratch);

/* brief.c: computes block `block` of a unit whose keys are few. */
void mfa_brief_compute(const mfa_plan *plan, size_t unit, size_t block, mfa_scratch *scratch);

#endif
