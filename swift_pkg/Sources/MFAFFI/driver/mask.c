#include "mask.h"

#include "../include/mfa_ffi.h"
#include "../simd/scalar.h"

#include <float.h>
#include <math.h>

size_t mfa_mask_scalar_size(int scalar)
{
    switch (scalar) {
    case MFA_MASK_SCALAR_BYTE: return 1;
    case MFA_MASK_SCALAR_FP16:
    case MFA_MASK_SCALAR_BF16: return 2;
    case MFA_MASK_SCALAR_FP32: return 4;
    default: return 0;
    }
}

static float read_scalar(const unsigned char *address, int scalar)
{
    switch (scalar) {
    case MFA_MASK_SCALAR_BYTE: return (float)*address;
    case MFA_MASK_SCALAR_FP16: return mfa_from_fp16(mfa_load_half_bits(address));
    case MFA_MASK_SCALAR_BF16: return mfa_from_bf16(mfa_load_half_bits(address));
    default: return mfa_load_float(address);
    }
}

/* Finite masks stay finite, so that a row of -FLT_MAX means "all alike", as it does in FP32. */
static float additive_bias(float value)
{
    float bias = value * MFA_LOG2E;
    if (isinf(bias) && !isinf(value))
        bias = copysignf(FLT_MAX, value);
    return bias;
}

static unsigned flags_of(const float *biases, size_t count)
{
    unsigned zero = 0, removed = 0, other = 0;
    for (size_t i = 0; i < count; i++) {
        unsigned is_zero = biases[i] == 0.0f;
        unsigned is_removed = biases[i] == -INFINITY;
        zero |= is_zero;
        removed |= is_removed;
        other |= !(is_zero | is_removed);
    }
    return zero * MFA_BIAS_ZERO | removed * MFA_BIAS_REMOVED | other * MFA_BIAS_OTHER;
}

unsigned mfa_mask_biases(const mfa_mask *mask, size_t batch, size_t head, size_t row, size_t first,
                         size_t count, float *biases)
{
    const size_t size = mfa_mask_scalar_size(mask->scalar);
    const size_t step = (size_t)mask->stride[3] * size;
    const size_t offset = batch * (size_t)mask->stride[0] + head * (size_t)mask->stride[1] +
                          row * (size_t)mask->stride[2] + first * (size_t)mask->stride[3];
    const unsigned char *data = mask->data + offset * size;

    if (mask->type == MFA_MASK_TYPE_BOOL) {
        if (size == 1 && step == 1) {
            for (size_t i = 0; i < count; i++)
                biases[i] = data[i] ? 0.0f : -INFINITY;
        } else {
            for (size_t i = 0; i < count; i++)
                biases[i] = read_scalar(data + i * step, mask->scalar) != 0.0f ? 0.0f : -INFINITY;
        }
    } else if (mask->scalar == MFA_MASK_SCALAR_FP32 && step == sizeof(float)) {
        for (size_t i = 0; i < count; i++)
            biases[i] = additive_bias(mfa_load_float(data + i * sizeof(float)));
    } else {
        for (size_t i = 0; i < count; i++)
            biases[i] = additive_bias(read_scalar(data + i * step, mask->scalar));
    }
    return flags_of(biases, count);
}
