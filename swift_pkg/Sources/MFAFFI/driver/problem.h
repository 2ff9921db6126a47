/* One validated attention problem, as every part of the engine sees it. */
#ifndef MFA_PROBLEM_H
#define MFA_PROBLEM_H

#include "../include/mfa_ffi.h"
#include "mask.h"
#include "workspace.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MFA_MAX_HEAD_DIM = 1024 };

/* A [batch, heads, rows, columns] view of host memory; strides in elements, none negative. */
typedef struct {
    unsigned char *data;
    uint64_t bytes;
    int64_t stride[4];
    int precision; /* mfa_precision_t: FP16, BF16 or FP32 */
} mfa_operand;

typedef struct {
    uint32_t batch, heads_q, heads_kv, seq_q, seq_kv, head_dim, value_dim;
    mfa_operand q, k, v, out;
    mfa_mask mask;
    const float *sinks;
    float scale;
    int causal;     /* MFA_CAUSAL_* */
    int empty_rows; /* MFA_EMPTY_ROW_* */
    uint32_t max_threads;
} mfa_problem;

/* Bytes of one element; 0 for an unknown code. */
static inline size_t mfa_precision_size(int precision)
{
    switch (precision) {
    case MFA_PRECISION_FP16:
    case MFA_PRECISION_BF16: return 2;
    case MFA_PRECISION_FP32: return 4;
    default: return 0;
    }
}

/* True when every size, stride, code and byte range holds and out overlaps no input. */
bool mfa_problem_valid(const mfa_problem *problem);

/* Computes a valid problem. Returns an mfa_error_t; only success writes to the output. */
int mfa_engine_run(const mfa_problem *problem, mfa_workspace *workspace);

#endif
