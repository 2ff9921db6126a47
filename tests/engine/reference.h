/* Naive attention in double precision, and number formats written independently of the engine. */
#ifndef TEST_REFERENCE_H
#define TEST_REFERENCE_H

#include "mfa_ffi.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 1;

static inline uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static inline uint32_t random_below(uint32_t limit) { return limit ? random_bits() % limit : 0; }

static inline bool chance(uint32_t percent) { return random_below(100) < percent; }

static inline double random_normal(void)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (double)random_below(1u << 20) / (1u << 20);
    return sum - 6;
}

/* The value of a binary format with these field widths. */
static inline double decode_half(uint16_t bits, int exponent_bits)
{
    const int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    int fraction = bits & ((1 << fraction_bits) - 1);
    double value;
    if (exponent == (1 << exponent_bits) - 1)
        value = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        value = ldexp(fraction, 1 - bias - fraction_bits);
    else
        value = ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
    return bits & 0x8000 ? -value : value;
}

/* Every 16-bit value, decoded once: [0] FP16, [1] BF16. */
static double half_values[2][1 << 16];

static inline void fill_half_values(void)
{
    for (uint32_t bits = 0; bits < 1 << 16; bits++) {
        half_values[0][bits] = decode_half((uint16_t)bits, 5);
        half_values[1][bits] = decode_half((uint16_t)bits, 8);
    }
}

/* Nearest value of the format, ties to even. */
static inline uint16_t encode_half(double value, int exponent_bits)
{
    const int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    uint16_t infinity = (uint16_t)(((1 << exponent_bits) - 1) << fraction_bits);
    if (isnan(value))
        return (uint16_t)(sign | infinity | (1 << (fraction_bits - 1)));
    if (value == 0)
        return sign;
    if (isinf(value))
        return (uint16_t)(sign | infinity);
    int exponent;
    frexp(fabs(value), &exponent);
    exponent -= 1;
    if (exponent < 1 - bias)
        exponent = 1 - bias;
    double units = nearbyint(ldexp(fabs(value), fraction_bits - exponent));
    uint32_t bits = (uint32_t)units + ((uint32_t)(exponent + bias - 1) << fraction_bits);
    return (uint16_t)(sign | (bits > infinity ? infinity : bits));
}

static inline size_t element_size(int precision) { return precision == MFA_PRECISION_FP32 ? 4 : 2; }

static inline double read_element(const void *base, int64_t index, int precision)
{
    const unsigned char *at =
        (const unsigned char *)base + index * (int64_t)element_size(precision);
    if (precision == MFA_PRECISION_FP32) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return half_values[precision == MFA_PRECISION_BF16][bits];
}

static inline void write_element(void *base, int64_t index, int precision, double value)
{
    unsigned char *at = (unsigned char *)base + index * (int64_t)element_size(precision);
    if (precision == MFA_PRECISION_FP32) {
        float single = (float)value;
        memcpy(at, &single, sizeof single);
        return;
    }
    uint16_t bits = encode_half(value, precision == MFA_PRECISION_FP16 ? 5 : 8);
    memcpy(at, &bits, sizeof bits);
}

static inline double read_mask(const mfa_portable_args_t *a, uint32_t b, uint32_t h, uint32_t i,
                               uint32_t j)
{
    int64_t index = b * a->mask_strides[0] + h * a->mask_strides[1] + i * a->mask_strides[2] +
                    j * a->mask_strides[3];
    switch (a->mask_scalar_type) {
    case MFA_MASK_SCALAR_BYTE: return ((const unsigned char *)a->mask)[index];
    case MFA_MASK_SCALAR_FP16: return read_element(a->mask, index, MFA_PRECISION_FP16);
    case MFA_MASK_SCALAR_BF16: return read_element(a->mask, index, MFA_PRECISION_BF16);
    default: return read_element(a->mask, index, MFA_PRECISION_FP32);
    }
}

/* One output row, value_dim doubles. `scores` is scratch of seq_kv doubles. */
static inline void reference_row(const mfa_portable_args_t *a, uint32_t b, uint32_t h, uint32_t i,
                                 double *scores, double *row)
{
    const uint32_t kv = h / (a->heads_q / a->heads_kv);
    const int64_t qi = b * a->q_strides[0] + h * a->q_strides[1] + i * a->q_strides[2];
    const int64_t shift =
        a->causal == MFA_CAUSAL_BOTTOM_RIGHT ? (int64_t)a->seq_kv - (int64_t)a->seq_q : 0;
    double largest = a->sinks ? (double)a->sinks[h] : -INFINITY;
    bool kept = false, broken = isnan(largest) || largest == INFINITY;
    for (uint32_t j = 0; j < a->seq_kv; j++) {
        scores[j] = -INFINITY;
        if (a->causal != MFA_CAUSAL_NONE && (int64_t)j > (int64_t)i + shift)
            continue;
        double mask = a->mask_type == MFA_MASK_TYPE_NONE ? 0 : read_mask(a, b, h, i, j);
        if (a->mask_type == MFA_MASK_TYPE_BOOL && mask == 0)
            continue;
        kept = true;
        double dot = 0;
        const int64_t ki = b * a->k_strides[0] + kv * a->k_strides[1] + j * a->k_strides[2];
        for (uint32_t d = 0; d < a->head_dim; d++)
            dot += read_element(a->q, qi + d, a->input_precision) *
                   read_element(a->k, ki + d, a->input_precision);
        scores[j] = dot * (double)a->scale;
        if (a->mask_type == MFA_MASK_TYPE_ADDITIVE)
            scores[j] = mask == -INFINITY ? -INFINITY : scores[j] + mask;
        broken |= isnan(scores[j]) || scores[j] == INFINITY;
        if (scores[j] > largest)
            largest = scores[j];
    }
    double total = a->sinks && largest > -INFINITY ? exp((double)a->sinks[h] - largest) : 0;
    const bool mean = !kept && total == 0 && a->empty_rows == MFA_EMPTY_ROW_MEAN;
    for (uint32_t d = 0; d < a->value_dim; d++)
        row[d] = 0;
    for (uint32_t j = 0; j < a->seq_kv; j++) {
        double weight = mean ? 1 : largest > -INFINITY ? exp(scores[j] - largest) : 0;
        if (weight == 0)
            continue;
        total += weight;
        const int64_t vj = b * a->v_strides[0] + kv * a->v_strides[1] + j * a->v_strides[2];
        for (uint32_t d = 0; d < a->value_dim; d++)
            row[d] += weight * read_element(a->v, vj + d, a->input_precision);
    }
    for (uint32_t d = 0; d < a->value_dim; d++)
        row[d] = broken ? (double)NAN : total > 0 ? row[d] / total : 0;
}

#endif
