/*
 * The C interface of the attention library "MFAFFI".
 *
 * Two libraries export it: the Metal one, built from universal-metal-flash-attention, and the
 * portable CPU engine of this folder. Names, argument order and types are those that the Metal
 * library publishes; the comments describe the portable engine and say where Metal differs.
 * The last section, mfa_portable_*, exists in the portable engine only: look the symbols up.
 *
 * Every function that returns mfa_error_t returns 0 on success and writes nothing on failure.
 * Null handles are always safe. Handles are not: use each one only between its creation and its
 * destruction. Every function may be called from any thread, on shared contexts too.
 */
#ifndef MFA_FFI_H
#define MFA_FFI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* ------------------------------------------------------------------ codes and constants */

typedef int mfa_error_t;
enum {
    MFA_SUCCESS = 0,
    MFA_ERROR_INVALID_ARGS = 1,         /* null, zero, too small, overflowing, unknown code */
    MFA_ERROR_MEMORY_ALLOCATION = 2,    /* work memory could not be had */
    MFA_ERROR_DEVICE_NOT_SUPPORTED = 3, /* needs a Metal device, or is not part of this engine */
    MFA_ERROR_KERNEL_COMPILATION = 4,   /* Metal only */
    MFA_ERROR_EXECUTION_FAILED = 5
};

typedef int mfa_precision_t;
enum {
    MFA_PRECISION_FP16 = 0, /* IEEE binary16 */
    MFA_PRECISION_BF16 = 1, /* bfloat16 */
    MFA_PRECISION_FP32 = 2, /* IEEE binary32 */
    MFA_PRECISION_INT8 = 3, /* quantized calls only: error 1 elsewhere */
    MFA_PRECISION_INT4 = 4  /* quantized calls only: error 1 elsewhere */
};

typedef int mfa_mask_type_t;
enum {
    MFA_MASK_TYPE_NONE = 0,
    MFA_MASK_TYPE_BOOL = 1,    /* nonzero: the query attends to the key */
    MFA_MASK_TYPE_ADDITIVE = 2 /* a bias on the score; -inf removes the key */
};

typedef int mfa_mask_scalar_t;
enum {
    MFA_MASK_SCALAR_BYTE = 0, /* unsigned 8 bit */
    MFA_MASK_SCALAR_FP16 = 1,
    MFA_MASK_SCALAR_BF16 = 2,
    MFA_MASK_SCALAR_FP32 = 3
};

typedef void *mfa_context_t; /* what a call works with; keeps the time of its last call */
typedef void *mfa_buffer_t;  /* host memory, owned or borrowed */

typedef enum {
    MFA_QUANT_KERNEL_FORWARD = 0,
    MFA_QUANT_KERNEL_BACKWARD_QUERY = 1,
    MFA_QUANT_KERNEL_BACKWARD_KEY_VALUE = 2
} mfa_quantized_kernel_t;

/* Metal buffer slots of the quantized kernels; -1: not bound. */
typedef struct {
    int32_t qData;
    int32_t kData;
    int32_t vData;
    int32_t output;
    int32_t gradOutput;
    int32_t logsumexp;
    int32_t gradQuery;
    int32_t dValues;
    int32_t gradKey;
    int32_t gradValue;
    int32_t qScale;
    int32_t qZeroPoint;
    int32_t kScale;
    int32_t kZeroPoint;
    int32_t vScale;
    int32_t vZeroPoint;
    int32_t dims;
    int32_t steClipRange;
    int32_t qBlockScales;
    int32_t qBlockZeroPoints;
    int32_t kBlockScales;
    int32_t kBlockZeroPoints;
    int32_t vBlockScales;
    int32_t vBlockZeroPoints;
    int32_t qPrecomputedSums;
    int32_t kPrecomputedSums;
    int32_t vPrecomputedSums;
    int32_t qStrides;
    int32_t kStrides;
    int32_t vStrides;
    int32_t oStrides;
    int32_t maskBuffer;
    int32_t numHeads;
    int32_t numKeyValueHeads;
    int32_t headDimension;
    int32_t sequenceLength;
    int32_t scratch0;
    int32_t scratch1;
} mfa_quantized_layout_t;

/* Portable engine: has no quantized kernels, so every slot is set to -1. Null is ignored. */
void mfa_get_quantized_layout(mfa_quantized_kernel_t kernel, mfa_quantized_layout_t *out_layout);

typedef struct {
    bool supports_multi_head_backward;
    bool supports_blockwise_backward;
    uint32_t max_heads;
    uint32_t max_block_size;
} mfa_quantized_capabilities_t;

/* Portable engine: writes an all-zero mfa_quantized_capabilities_t. Null is ignored. */
void mfa_get_quantized_capabilities(void *out_capabilities);

/* ------------------------------------------------------------------ contexts */

/*
 * Error 1: context is null, or the environment asks for what this machine cannot do (a bad
 * QWEN_MFA_ISA or QWEN_MFA_NUM_THREADS; mfa_portable_describe has the text).
 * Metal: one context for the whole process, whatever the number of calls.
 */
mfa_error_t mfa_create_context(mfa_context_t *context);

void mfa_destroy_context(mfa_context_t context);

/* ------------------------------------------------------------------ buffers */

/* Zero-filled memory, 64-byte aligned, owned by the buffer. Error 1 for size 0. */
mfa_error_t mfa_create_buffer(mfa_context_t context, size_t size_bytes, mfa_buffer_t *buffer);

/* Borrows memory: the caller keeps it alive as long as the buffer. Any alignment. */
mfa_error_t mfa_buffer_from_ptr(mfa_context_t context, void *data_ptr, size_t size_bytes,
                                mfa_buffer_t *buffer);

/*
 * As mfa_buffer_from_ptr, with a shape and strides in elements, in the order (batch, heads, rows,
 * head_dim). ndim 4, or 3 and 2 with the leading sizes being 1. mfa_attention_forward demands
 * that the shape is that of the call; strides are 0 (broadcast, inputs only) or positive.
 * Metal ignores or mis-binds the strides: there, use mfa_attention_encode_mtl.
 */
mfa_error_t mfa_buffer_from_ptr_with_strides(mfa_context_t context, void *data_ptr,
                                             size_t size_bytes, const int64_t *shape,
                                             const int64_t *strides, uint32_t ndim,
                                             mfa_buffer_t *buffer);

/* Metal only. Portable engine: error 3. */
mfa_error_t mfa_buffer_from_mtl_buffer(mfa_context_t context, void *metal_buffer, size_t size_bytes,
                                       mfa_buffer_t *buffer);

/* Metal only. Portable engine: error 3. */
mfa_error_t mfa_buffer_from_mtl_buffer_with_strides(mfa_context_t context, void *metal_buffer,
                                                    size_t size_bytes, const int64_t *shape,
                                                    const int64_t *strides, uint32_t ndim,
                                                    mfa_buffer_t *buffer);

/* The first byte of the buffer, or null. */
void *mfa_buffer_contents(mfa_buffer_t buffer);

void mfa_destroy_buffer(mfa_buffer_t buffer);

/* ------------------------------------------------------------------ forward attention */

/*
 * out = softmax(softmax_scale * q k^T + mask) v, for every batch and head on its own.
 *
 * Layout: dense [batch, heads, rows, head_dim] (BHSD) for q, k, v and out, unless the buffer was
 * made with strides. transpose_x: that operand is stored [batch, heads, head_dim, rows]; with a
 * strided buffer, shape and strides are those of the stored order. Computation is in FP32,
 * whatever intermediate_precision says; out has output_precision, rounded to nearest even.
 * Metal always writes FP32.
 *
 * causal: key j is visible to query i for j <= i (top-left aligned, as on Metal).
 *
 * mask: up to four sizes, right-aligned to (batch, heads, seq_len_q, seq_len_kv), each equal to
 * the call's or 1 (broadcast); strides in elements, >= 0. mask_ptr, a shape and strides are needed
 * unless mask_type is none; mask_size_bytes must cover every element that is addressed. Bool masks
 * may be of any scalar type (Metal reads bytes). Additive values are added to the scaled score,
 * as the formula says; Metal adds them before it scales, so divide finite biases by the scale
 * there. Additive bytes count as 0..255 (Metal ignores them).
 *
 * A row left without any key gives zeros. NaN stays in the rows that it touches. Additive values
 * beyond +-2.3e38 act like that value, except infinities.
 *
 * Error 1, with nothing written: null or wrong handle, a size of 0, head_dim above 1024, a buffer
 * smaller than its layout, an unknown code, out overlapping an input, a mask that does not fit.
 */
mfa_error_t mfa_attention_forward(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float softmax_scale, bool causal, mfa_precision_t input_precision,
    mfa_precision_t intermediate_precision, mfa_precision_t output_precision, bool transpose_q,
    bool transpose_k, bool transpose_v, bool transpose_o, const void *mask_ptr,
    size_t mask_size_bytes, const int64_t *mask_shape, const int64_t *mask_strides,
    uint32_t mask_ndim, mfa_mask_type_t mask_type, mfa_mask_scalar_t mask_scalar_type);

/*
 * mfa_attention_forward with precisions by name: "fp16" or "float16", "bf16" or "bfloat16",
 * "fp32" or "float32", in any case; null means fp32. Any other name is error 1 (Metal takes it
 * for fp32).
 */
mfa_error_t mfa_attention_forward_str(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float softmax_scale, bool causal, const char *input_precision,
    const char *intermediate_precision, const char *output_precision, bool transpose_q,
    bool transpose_k, bool transpose_v, bool transpose_o, const void *mask_ptr,
    size_t mask_size_bytes, const int64_t *mask_shape, const int64_t *mask_strides,
    uint32_t mask_ndim, int32_t mask_type, int32_t mask_scalar_type);

/*
 * Metal only: encodes into the caller's MTLCommandBuffer; offsets in bytes, strides in elements
 * (BHSD, four values, the last one 1). Portable engine: error 3.
 */
mfa_error_t mfa_attention_encode_mtl(
    mfa_context_t context, void *command_buffer, void *q_buffer, int64_t q_offset,
    const int64_t *q_strides, void *k_buffer, int64_t k_offset, const int64_t *k_strides,
    void *v_buffer, int64_t v_offset, const int64_t *v_strides, void *out_buffer,
    int64_t out_offset, void *mask_buffer, int64_t mask_offset, const int64_t *mask_shape,
    const int64_t *mask_strides, uint32_t mask_ndim, mfa_mask_type_t mask_type,
    mfa_mask_scalar_t mask_scalar_type, uint32_t batch_size, uint32_t seq_len_q,
    uint32_t seq_len_kv, uint32_t num_heads, uint16_t head_dim, float softmax_scale, bool causal,
    const char *input_precision, const char *intermediate_precision);

/* ------------------------------------------------------------------ not in the portable engine:
 * every function of this section returns error 3 and touches none of its arguments. */

mfa_error_t mfa_attention_forward_quantized(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float softmax_scale, bool causal, float q_scale, int32_t q_zero_point,
    float k_scale, int32_t k_zero_point, float v_scale, int32_t v_zero_point,
    mfa_precision_t q_precision, mfa_precision_t k_precision, mfa_precision_t v_precision,
    mfa_precision_t output_precision, bool transpose_q, bool transpose_k, bool transpose_v,
    bool transpose_o);

mfa_error_t mfa_sparse_indexer_scores(mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k,
                                      uint32_t batch_size, uint32_t num_heads, uint32_t seq_len_q,
                                      uint32_t seq_len_k, uint16_t head_dim, float scale,
                                      mfa_buffer_t scores_in, mfa_buffer_t *scores_out);

mfa_error_t mfa_attention_backward(mfa_context_t context, mfa_buffer_t dout, mfa_buffer_t q,
                                   mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t out,
                                   mfa_buffer_t softmax_lse, mfa_buffer_t dq, mfa_buffer_t dk,
                                   mfa_buffer_t dv, mfa_buffer_t d_buffer, uint32_t batch_size,
                                   uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
                                   uint16_t head_dim, float softmax_scale, bool causal,
                                   mfa_precision_t input_precision,
                                   mfa_precision_t intermediate_precision, bool transpose_q,
                                   bool transpose_k, bool transpose_v, bool transpose_o);

int32_t mfa_attention_backward_query_quantized(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t output,
    mfa_buffer_t grad_output, mfa_buffer_t logsumexp, mfa_buffer_t grad_query,
    mfa_buffer_t d_values, uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv,
    uint32_t num_heads, uint16_t head_dim, float q_scale, int32_t q_zero_point, float k_scale,
    int32_t k_zero_point, float v_scale, int32_t v_zero_point, int32_t q_precision,
    int32_t k_precision, int32_t v_precision, bool causal, bool transpose_q, bool transpose_k,
    bool transpose_v, bool transpose_o);

int32_t mfa_attention_backward_kv_quantized(
    mfa_context_t context, mfa_buffer_t q, mfa_buffer_t k, mfa_buffer_t v, mfa_buffer_t grad_output,
    mfa_buffer_t logsumexp, mfa_buffer_t d_values, mfa_buffer_t grad_key, mfa_buffer_t grad_value,
    uint32_t batch_size, uint32_t seq_len_q, uint32_t seq_len_kv, uint32_t num_heads,
    uint16_t head_dim, float q_scale, int32_t q_zero_point, float k_scale, int32_t k_zero_point,
    float v_scale, int32_t v_zero_point, int32_t q_precision, int32_t k_precision,
    int32_t v_precision, bool causal, bool transpose_q, bool transpose_k, bool transpose_v,
    bool transpose_o);

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
    uint32_t k_block_size, uint32_t v_block_size, uint32_t options);

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
    uint32_t k_block_size, uint32_t v_block_size, uint32_t options);

typedef void *mfa_mla_context_t;

mfa_error_t mfa_mla_create_context(mfa_mla_context_t *context);

void mfa_mla_destroy_context(mfa_mla_context_t context);

mfa_error_t mfa_mla_init_weights(mfa_mla_context_t context, uint32_t num_heads, uint32_t head_dim,
                                 uint32_t kv_latent_dim);

mfa_error_t mfa_mla_load_weights(mfa_mla_context_t context, mfa_buffer_t wk, mfa_buffer_t wv);

mfa_error_t mfa_mla_forward(mfa_mla_context_t context, mfa_context_t mfa_context,
                            mfa_buffer_t kv_latent, mfa_buffer_t *decompressed_k,
                            mfa_buffer_t *decompressed_v, uint32_t batch_size, uint32_t num_heads,
                            uint32_t sequence_length, uint32_t head_dim, uint32_t kv_latent_dim);

/* ------------------------------------------------------------------ utilities */

/* A text for any code, allocated with malloc: the caller frees it. Null when memory is out. */
const char *mfa_error_string(mfa_error_t error);

/* Whether this engine can compute here. Portable: true. Metal: whether there is a device. */
bool mfa_is_device_supported(void);

/* Always 1.0.0, in both libraries: not an identity. Null pointers are skipped. */
void mfa_get_version(int *major, int *minor, int *patch);

/*
 * Seconds that the context's last successful attention took; 0.0 before the first, or for null.
 * Portable: wall time of the whole call. Metal: GPU time.
 */
double mfa_get_gpu_latency(mfa_context_t context);

/* ------------------------------------------------------------------ portable engine only */

#define MFA_PORTABLE_ABI 1

enum { MFA_CAUSAL_NONE = 0, MFA_CAUSAL_TOP_LEFT = 1, MFA_CAUSAL_BOTTOM_RIGHT = 2 };
enum { MFA_EMPTY_ROW_ZERO = 0, MFA_EMPTY_ROW_MEAN = 1 };

typedef struct {
    uint32_t struct_bytes; /* sizeof(mfa_portable_args_t); any other size is error 1 */
    uint32_t batch, heads_q, heads_kv, seq_q, seq_kv, head_dim, value_dim;
    const void *q, *k, *v; /* host memory, element (0,0,0,0) */
    void *out;
    uint64_t q_bytes, k_bytes, v_bytes, out_bytes; /* usable bytes from each pointer */
    /* elements: batch, head, row; the last dimension is contiguous; >= 0 (0: broadcast, not out) */
    int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3];
    int32_t input_precision, output_precision; /* mfa_precision_t: FP16, BF16, FP32 */
    const void *mask;
    uint64_t mask_bytes;
    int64_t mask_strides[4]; /* elements over (batch, heads_q, seq_q, seq_kv); 0 broadcasts */
    int32_t mask_type, mask_scalar_type;
    const float *sinks; /* [heads_q] or null: one more logit per head in the denominator */
    float scale;
    int32_t causal; /* MFA_CAUSAL_*; bottom right: key j for j <= i + seq_kv - seq_q */
    int32_t empty_rows; /* MFA_EMPTY_ROW_*: what a row without keys gives, see below */
    uint32_t max_threads; /* 0: all that the process may use */
} mfa_portable_args_t;

/*
 * out = softmax(scale * q k^T + mask, sinks) v with everything that mfa_attention_forward does,
 * and grouped queries (head h reads key/value head h / (heads_q / heads_kv)), a value_dim of its
 * own, strides, sinks, and both causal alignments. head_dim and value_dim: 1 to 1024.
 *
 * Sizes of 0 are fine: without batch, heads or queries nothing is written; without keys, zeros.
 * A row to which a bool mask or causal leaves no key gives zeros, or with MFA_EMPTY_ROW_MEAN the
 * mean of all its head's value rows (zeros if there is a sink above -inf, which takes all weight).
 * A row whose additive mask is -inf throughout gives zeros.
 *
 * Error 1, with nothing written, for whatever does not fit: see mfa_attention_forward. Overlap of
 * out and an input is judged by address ranges. Error 2: no work memory.
 */
mfa_error_t mfa_portable_attention(mfa_context_t context, const mfa_portable_args_t *args);

/*
 * One line of key=value, NUL-terminated: "abi=1 isa=avx512 bf16=amx threads=2 features=…", the
 * kernels of calls with FP32 and FP16 inputs, and of those with BF16. Which are the fastest here is
 * measured once, on first need, in some milliseconds, unless QWEN_MFA_ISA names them. With an
 * environment that cannot be followed, isa=none and a last pair error="cause and remedy".
 * Error 1 if text is null or size is too small (256 always suffices); text is then untouched.
 */
mfa_error_t mfa_portable_describe(char *text, size_t size);

/*
 * Measures the peak of up to max_threads threads (0: all that the process may use) at products of
 * inputs of that precision, summed in single precision: floating-point operations a second, a fused
 * one counted as two. Takes some tens of milliseconds. Error 3 where there is no loop for this CPU;
 * error 1 for another precision, a null pointer, and an environment that cannot be followed.
 */
mfa_error_t mfa_portable_peak_of(int32_t input_precision, uint32_t max_threads,
                                 double *flops_per_second);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
