/* A problem of one head of one batch entry, dense: what most tests start from. */
#ifndef ONE_HEAD_H
#define ONE_HEAD_H

#include "mfa_ffi.h"

#include <string.h>

/* With results in FP32; all pointers, the scale and what is unusual are left to the caller. */
static inline mfa_portable_args_t one_head(uint32_t rows, uint32_t keys, uint32_t dim,
                                           int precision)
{
    const uint64_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    mfa_portable_args_t a;
    memset(&a, 0, sizeof a);
    a.struct_bytes = sizeof a;
    a.batch = a.heads_q = a.heads_kv = 1;
    a.seq_q = rows;
    a.seq_kv = keys;
    a.head_dim = a.value_dim = dim;
    a.q_bytes = (uint64_t)rows * dim * size;
    a.k_bytes = a.v_bytes = (uint64_t)keys * dim * size;
    a.out_bytes = (uint64_t)rows * dim * sizeof(float);
    a.q_strides[2] = a.k_strides[2] = a.v_strides[2] = a.out_strides[2] = dim;
    a.input_precision = precision;
    a.output_precision = MFA_PRECISION_FP32;
    return a;
}

#endif
