/* Query rows of a unit: where they are, what they see, and how their results are written. */
#ifndef MFA_ROWS_H
#define MFA_ROWS_H

#include "plan.h"

/* Rows of a unit are flat over (query head of its group, query). */
typedef struct {
    uint32_t batch, head, query;
} mfa_row_place;

mfa_row_place mfa_place_of(const mfa_plan *plan, size_t unit, size_t row);

/* The place of the next row: without a division. */
static inline void mfa_place_next(const mfa_plan *plan, mfa_row_place *at)
{
    if (++at->query == plan->problem->seq_q) {
        at->query = 0;
        at->head++;
    }
}

/* Keys that causal masking leaves to a query: a prefix. */
uint32_t mfa_causal_keys(const mfa_problem *problem, uint32_t query);

/* A sink is a key of weight but no value: it is where a row's origin and sum begin. */
void mfa_row_start(const mfa_plan *plan, mfa_row_place at, float *origin, float *sum);

/*
 * Writes a row's result, which is scratch->plain; or, when its sum of weights is 0, what an empty
 * row gives.
 */
void mfa_row_write(const mfa_plan *plan, size_t unit, mfa_row_place at, float sum,
                   mfa_scratch *scratch);

#endif
