/* mfa_attention_forward: the published interface on top of the engine. */
#include "../include/mfa_ffi.h"

#include "handles.h"
#include "../driver/problem.h"

#include <stddef.h>
#include <string.h>

/*
 * The view of a buffer as [batch, heads, rows, columns]. A transposed operand is stored as
 * [batch, heads, columns, rows], so its last two strides change places.
 */
static bool operand_of(mfa_buffer_t handle, const uint32_t size[4], bool transposed,
                       mfa_precision_t precision, mfa_operand *x)
{
    const mfa_buffer_object *buffer = mfa_buffer_of(handle);
    if (!buffer)
        return false;
    const int row = transposed ? 3 : 2, column = transposed ? 2 : 3;
    const uint32_t stored[4] = {size[0], size[1], size[row], size[column]};
    int64_t stride[4] = {0, 0, 0, 1};
    if (buffer->strided) {
        for (int axis = 0; axis < 4; axis++)
            if (buffer->shape[axis] != (int64_t)stored[axis])
                return false;
        memcpy(stride, buffer->stride, sizeof stride);
    } else {
        for (int axis = 2; axis >= 0; axis--)
            if (__builtin_mul_overflow(stride[axis + 1], (int64_t)stored[axis + 1], &stride[axis]))
                return false;
    }
    x->data = buffer->data;
    x->bytes = buffer->bytes;
    x->stride[0] = stride[0];
    x->stride[1] = stride[1];
    x->stride[2] = stride[row];
    x->stride[3] = stride[column];
    x->precision = precision;
    return true;
}

/* Right-aligns the mask's sizes to the call's; sizes of 1 broadcast. */
static bool mask_of(const void *data, size_t bytes, const int64_t *shape, const int64_t *strides,
                    uint32_t ndim, mfa_mask_type_t type, mfa_mask_scalar_t scalar,
                    const uint32_t size[4], mfa_mask *mask)
{
    memset(mask, 0, sizeof *mask);
    if (type == MFA_MASK_TYPE_NONE)
        return true;
    if (!data || !shape || !strides || ndim < 1 || ndim > 4)
        return false;
    for (uint32_t i = 0; i < ndim; i++) {
        uint32_t axis = 4 - ndim + i;
        if (strides[i] < 0 || (shape[i] != 1 && shape[i] != (int64_t)size[axis]))
            return false;
        mask->stride[axis] = shape[i] == 1 ? 0 : strides[i];
    }
    mask->data = data;
    mask->bytes = bytes;
    mask->type = type;
    mask->scalar = scalar;
    return true;
}

static bool intermediate_known(mfa_precision_t precision)
{
    return mfa_precision_size(precision) != 0;
}

mfa_error_t mfa_attention_forward(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float softmax_scale, bool causal, mfa_precision_t input_precision,
    mfa_precision_t intermediate_precision, mfa_precision_t output_precision, bool transpose_q,
    bool transpose_k, bool transpose_v, bool transpose_o, const void *mask_ptr,
    size_t mask_size_bytes, const int64_t *mask_shape, const int64_t *mask_strides,
    uint32_t mask_ndim, mfa_mask_type_t mask_type, mfa_mask_scalar_t mask_scalar_type)
{
    mfa_context_object *object = mfa_context_of(context);
    if (!object || !batch_size || !seq_len_q || !seq_len_kv || !num_heads || !head_dim ||
        !intermediate_known(intermediate_precision))
        return MFA_ERROR_INVALID_ARGS;
    const uint32_t q_size[4] = {batch_size, num_heads, seq_len_q, head_dim};
    const uint32_t kv_size[4] = {batch_size, num_heads, seq_len_kv, head_dim};
    const uint32_t mask_size[4] = {batch_size, num_heads, seq_len_q, seq_len_kv};
    mfa_problem problem = {
        .batch = batch_size,
        .heads_q = num_heads,
        .heads_kv = num_heads,
        .seq_q = seq_len_q,
        .seq_kv = seq_len_kv,
        .head_dim = head_dim,
        .value_dim = head_dim,
        .scale = softmax_scale,
        .causal = causal ? MFA_CAUSAL_TOP_LEFT : MFA_CAUSAL_NONE,
        .empty_rows = MFA_EMPTY_ROW_ZERO,
    };
    if (!operand_of(q, q_size, transpose_q, input_precision, &problem.q) ||
        !operand_of(k, kv_size, transpose_k, input_precision, &problem.k) ||
        !operand_of(v, kv_size, transpose_v, input_precision, &problem.v) ||
        !operand_of(out, q_size, transpose_o, output_precision, &problem.out) ||
        !mask_of(mask_ptr, mask_size_bytes, mask_shape, mask_strides, mask_ndim, mask_type,
                 mask_scalar_type, mask_size, &problem.mask))
        return MFA_ERROR_INVALID_ARGS;
    return mfa_run(object, &problem);
}

static bool same_name(const char *text, const char *name)
{
    for (; *text && *name; text++, name++) {
        char lower = *text >= 'A' && *text <= 'Z' ? (char)(*text - 'A' + 'a') : *text;
        if (lower != *name)
            return false;
    }
    return *text == *name;
}

static mfa_precision_t precision_of(const char *name)
{
    static const struct {
        const char *name;
        mfa_precision_t precision;
    } known[] = {
        {"fp16", MFA_PRECISION_FP16}, {"float16", MFA_PRECISION_FP16},
        {"bf16", MFA_PRECISION_BF16}, {"bfloat16", MFA_PRECISION_BF16},
        {"fp32", MFA_PRECISION_FP32}, {"float32", MFA_PRECISION_FP32},
    };
    if (!name)
        return MFA_PRECISION_FP32;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (same_name(name, known[i].name))
            return known[i].precision;
    return -1;
}

mfa_error_t mfa_attention_forward_str(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float softmax_scale, bool causal, const char *input_precision,
    const char *intermediate_precision, const char *output_precision, bool transpose_q,
    bool transpose_k, bool transpose_v, bool transpose_o, const void *mask_ptr,
    size_t mask_size_bytes, const int64_t *mask_shape, const int64_t *mask_strides,
    uint32_t mask_ndim, int32_t mask_type, int32_t mask_scalar_type)
{
    return mfa_attention_forward(
        context, q, k, v, out, batch_size, seq_len_q, seq_len_kv, num_heads, head_dim,
        softmax_scale, causal, precision_of(input_precision), precision_of(intermediate_precision),
        precision_of(output_precision), transpose_q, transpose_k, transpose_v, transpose_o,
        mask_ptr, mask_size_bytes, mask_shape, mask_strides, mask_ndim, mask_type,
        mask_scalar_type);
}
