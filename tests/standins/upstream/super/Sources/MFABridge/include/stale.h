#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* mfa_commented_out(void) is not a declaration. */
int mfa_create_context(void** context);
int mfa_attention_encode_mtl(
    void* context, void* command_buffer,
    void* q, size_t q_offset, const int64_t* q_strides,
    void* k, size_t k_offset, const int64_t* k_strides,
    void* v, size_t v_offset, const int64_t* v_strides,
    void* out, size_t out_offset,
    void* mask, size_t mask_offset, const int64_t* mask_shape, const int64_t* mask_strides,
    uint32_t mask_ndim, int mask_type, int mask_scalar_type,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float softmax_scale, bool causal,
    const char* input_precision, const char* intermediate_precision);
