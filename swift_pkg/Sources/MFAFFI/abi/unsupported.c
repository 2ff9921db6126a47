/*
 * What the Metal library can and this engine cannot: exported, so that one binding fits both, and
 * answering with an error code. None of the arguments is touched.
 */
#include "../include/mfa_ffi.h"

#include <string.h>

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunused-parameter"
#elif defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif

void mfa_get_quantized_layout(mfa_quantized_kernel_t kernel, mfa_quantized_layout_t *out_layout)
{
    if (out_layout)
        memset(out_layout, 0xff, sizeof *out_layout); /* -1 in every slot */
}

void mfa_get_quantized_capabilities(void *out_capabilities)
{
    const mfa_quantized_capabilities_t none = {false, false, 0, 0};
    if (out_capabilities)
        memcpy(out_capabilities, &none, sizeof none);
}

void mfa_mla_destroy_context(mfa_mla_context_t context) {}

mfa_error_t mfa_buffer_from_mtl_buffer(mfa_context_t context, void *metal_buffer, size_t size_bytes,
                                       mfa_buffer_t *buffer)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_buffer_from_mtl_buffer_with_strides(mfa_context_t context, void *metal_buffer,
                                                    size_t size_bytes, const int64_t *shape,
                                                    const int64_t *strides, uint32_t ndim,
                                                    mfa_buffer_t *buffer)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_attention_encode_mtl(
    mfa_context_t context, void *command_buffer, void *q_buffer, int64_t q_offset,
    const int64_t *q_strides, void *k_buffer, int64_t k_offset, const int64_t *k_strides,
    void *v_buffer, int64_t v_offset, const int64_t *v_strides, void *out_buffer,
    int64_t out_offset, void *mask_buffer, int64_t mask_offset, const int64_t *mask_shape,
    const int64_t *mask_strides, uint32_t mask_ndim, mfa_mask_type_t mask_type,
    mfa_mask_scalar_t mask_scalar_type, uint32_t batch_size, uint32_t seq_len_q,
    uint32_t seq_len_kv, uint32_t num_heads, uint16_t head_dim, float softmax_scale, bool causal,
    const char *input_precision, const char *intermediate_precision)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_attention_forward_quantized(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float softmax_scale, bool causal, float q_scale, int32_t q_zero_point,
    float k_scale, int32_t k_zero_point, float v_scale, int32_t v_zero_point,
    mfa_precision_t q_precision, mfa_precision_t k_precision, mfa_precision_t v_precision,
    mfa_precision_t output_precision, bool transpose_q, bool transpose_k, bool transpose_v,
    bool transpose_o)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_sparse_indexer_scores(mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k,
                                      uint32_t batch_size, uint32_t num_heads, uint32_t seq_len_q,
                                      uint32_t seq_len_k, uint16_t head_dim, float scale,
                                      mfa_buffer_t scores_in, mfa_buffer_t *scores_out)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_attention_backward(mfa_context_t context, mfa_buffer_t dout, mfa_buffer_t q,
                                   mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
                                   mfa_buffer_t softmax_lse, mfa_buffer_t dq, mfa_buffer_t dk,
                                   mfa_buffer_t dv, mfa_buffer_t d_buffer, uint32_t batch_size,
                                   uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
                                   uint16_t head_dim, float softmax_scale, bool causal,
                                   mfa_precision_t input_precision,
                                   mfa_precision_t intermediate_precision, bool transpose_q,
                                   bool transpose_k, bool transpose_v, bool transpose_o)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

int32_t mfa_attention_backward_query_quantized(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t output,
    mfa_buffer_t grad_output, mfa_buffer_t logsumexp, mfa_buffer_t grad_query,
    mfa_buffer_t d_values, uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv,
    uint32_t num_heads, uint16_t head_dim, float q_scale, int32_t q_zero_point, float k_scale,
    int32_t k_zero_point, float v_scale, int32_t v_zero_point, int32_t q_precision,
    int32_t k_precision, int32_t v_precision, bool causal, bool transpose_q, bool transpose_k,
    bool transpose_v, bool transpose_o)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

int32_t mfa_attention_backward_kv_quantized(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t grad_output,
    mfa_buffer_t logsumexp, mfa_buffer_t d_values, mfa_buffer_t grad_key, mfa_buffer_t grad_value,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float q_scale, int32_t q_zero_point, float k_scale, int32_t k_zero_point,
    float v_scale, int32_t v_zero_point, int32_t q_precision, int32_t k_precision,
    int32_t v_precision, bool causal, bool transpose_q, bool transpose_k, bool transpose_v,
    bool transpose_o)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

int32_t mfa_attention_backward_query_quantized_ex(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t output,
    mfa_buffer_t grad_output, mfa_buffer_t logsumexp, mfa_buffer_t grad_query,
    mfa_buffer_t d_values, uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv,
    uint32_t num_heads, uint32_t num_kv_heads, uint16_t head_dim, float q_scale,
    int32_t q_zero_point, float k_scale, int32_t k_zero_point, float v_scale, int32_t v_zero_point,
    int32_t q_precision, int32_t k_precision, int32_t v_precision, bool causal, bool transpose_q,
    bool transpose_k, bool transpose_v, bool transpose_o, mfa_buffer_t q_block_scales,
    mfa_buffer_t q_block_zero_points, mfa_buffer_t k_block_scales, mfa_buffer_t k_block_zero_points,
    mfa_buffer_t v_block_scales, mfa_buffer_t v_block_zero_points, uint32_t q_block_size,
    uint32_t k_block_size, uint32_t v_block_size, uint32_t options)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

int32_t mfa_attention_backward_kv_quantized_ex(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t grad_output,
    mfa_buffer_t logsumexp, mfa_buffer_t d_values, mfa_buffer_t grad_key, mfa_buffer_t grad_value,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint32_t num_kv_heads, uint16_t head_dim, float q_scale, int32_t q_zero_point, float k_scale,
    int32_t k_zero_point, float v_scale, int32_t v_zero_point, int32_t q_precision,
    int32_t k_precision, int32_t v_precision, bool causal, bool transpose_q, bool transpose_k,
    bool transpose_v, bool transpose_o, mfa_buffer_t q_block_scales,
    mfa_buffer_t q_block_zero_points, mfa_buffer_t k_block_scales, mfa_buffer_t k_block_zero_points,
    mfa_buffer_t v_block_scales, mfa_buffer_t v_block_zero_points, uint32_t q_block_size,
    uint32_t k_block_size, uint32_t v_block_size, uint32_t options)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_mla_create_context(mfa_mla_context_t *context)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_mla_init_weights(mfa_mla_context_t context, uint32_t num_heads, uint32_t head_dim,
                                 uint32_t kv_latent_dim)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_mla_load_weights(mfa_mla_context_t context, mfa_buffer_t wk, mfa_buffer_t wv)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}

mfa_error_t mfa_mla_forward(mfa_mla_context_t context, mfa_context_t mfa_context,
                            mfa_buffer_t kv_latent, mfa_buffer_t *decompressed_k,
                            mfa_buffer_t *decompressed_v, uint32_t batch_size, uint32_t num_heads,
                            uint32_t sequence_length, uint32_t head_dim, uint32_t kv_latent_dim)
{
    return MFA_ERROR_DEVICE_NOT_SUPPORTED;
}
