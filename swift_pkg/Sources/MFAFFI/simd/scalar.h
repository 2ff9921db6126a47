/* Reading 16-bit and 32-bit floats from memory of any alignment, and rounding back. */
#ifndef MFA_SCALAR_H
#define MFA_SCALAR_H

#include <stdint.h>
#include <string.h>

static inline float mfa_float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t mfa_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float mfa_load_float(const void *address)
{
    float value;
    memcpy(&value, address, sizeof value);
    return value;
}

static inline uint16_t mfa_load_half_bits(const void *address)
{
    uint16_t bits;
    memcpy(&bits, address, sizeof bits);
    return bits;
}

static inline float mfa_from_bf16(uint16_t half) { return mfa_float_of((uint32_t)half << 16); }

static inline float mfa_from_fp16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t rest = (uint32_t)(half & 0x7fffu);
    if (rest >= 0x7c00u) /* infinity and NaN */
        return mfa_float_of(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
    if (rest >= 0x0400u)
        return mfa_float_of(sign | ((rest << 13) + 0x38000000u));
    float tiny = (float)rest * 0x1p-24f; /* zero and subnormals: exact */
    return mfa_float_of(sign | mfa_bits_of(tiny));
}

static inline uint16_t mfa_to_bf16(float value)
{
    uint32_t bits = mfa_bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u); /* quiet the NaN, keep it a NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline uint16_t mfa_to_fp16(float value)
{
    uint32_t bits = mfa_bits_of(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (rest >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (rest < 0x38800000u) { /* below 2^-14: adding 0.5 rounds at the subnormal step 2^-24 */
        uint32_t rounded = mfa_bits_of(mfa_float_of(rest) + 0.5f);
        return (uint16_t)(sign | (rounded - 0x3f000000u));
    }
    uint32_t even = rest + 0x0fffu + ((rest >> 13) & 1u);
    return (uint16_t)(sign | ((even - 0x38000000u) >> 13));
}

#endif
