/*
 * The kernels, written once over a small vector vocabulary. A simd/<isa>.h defines it, and
 * kernels/<isa>.c includes both:
 *
 *   MFA_ISA            suffix of the table's name       MFA_MR, MFA_NV   rows, vectors of a tile
 *   MFA_LANES          floats per vector                vf               vector of floats
 *   MFA_PREFETCH_STEPS steps of the inner loops between asking for memory and using it
 *   v_load v_store v_set1 v_add v_sub v_mul             as their names say; any alignment
 *   v_fma(a, b, c)     a * b + c
 *   v_max(a, b)        b when either is NaN
 *   v_largest(v), v_total(v)   the largest lane, the sum of the lanes
 *   v_bias(v, bias)    v + bias, and -infinity where the bias is, even for NaN
 *   v_clip(v, first, visible)  lanes at or beyond `visible` become -infinity
 *   v_load_bf16, v_load_fp16, v_store_bf16, v_store_fp16
 * and MFA_FUSES 1 where there are registers enough for a tile and an exponential; with MFA_SCALES 1
 *   v_fraction(v)      v - floor(v); 0 for infinities
 *   v_scale(a, b)      a * 2^floor(b)
 * or else
 *   v_exponent(t)      2^n for t = 1.5 * 2^23 + 127 + n, exactly 0 for n = -127
 * and, with MFA_PAIRS 1,
 *   v_dot_pairs(a, b, c)  c + products of the BF16 pairs in a and b, whose type is vf all the same
 * and, with MFA_TILES 1, what tiles.h takes: see amx.c
 */
#include "../include/mfa_ffi.h"
#include "kernels.h"
#include "../simd/scalar.h"

#include <float.h>
#include <math.h>

#ifndef MFA_SCALES
#define MFA_SCALES 0
#endif
#ifndef MFA_FUSES
#define MFA_FUSES 0
#endif
#ifndef MFA_PAIRS
#define MFA_PAIRS 0
#define v_dot_pairs v_fma /* never reached */
#endif
#ifndef MFA_TILES
#define MFA_TILES 0
#endif
#define MFA_NR (MFA_NV * MFA_LANES)
#define MFA_PASTE_(a, b) a##b
#define MFA_PASTE(a, b) MFA_PASTE_(a, b)
#define MFA_INLINE static inline __attribute__((always_inline))
#if defined(MFA_NO_UNROLL) /* sanitizers make unrolled loops take minutes to compile */
#define MFA_UNROLL_FOR for
#elif defined(__clang__)
#define MFA_UNROLL_FOR _Pragma("clang loop unroll(full)") for
#else
#define MFA_UNROLL_FOR _Pragma("GCC unroll 32") for
#endif

/* Keeps the compiler from loading early what it then has to keep elsewhere. */
#define MFA_IN_ORDER __asm__ volatile("" ::: "memory")

/* ---- what all parts use ---- */

MFA_INLINE float load_element(const unsigned char *at, int precision)
{
    switch (precision) {
    case MFA_PRECISION_FP16: return mfa_from_fp16(mfa_load_half_bits(at));
    case MFA_PRECISION_BF16: return mfa_from_bf16(mfa_load_half_bits(at));
    default: return mfa_load_float(at);
    }
}

MFA_INLINE vf load_vector(const unsigned char *at, int precision)
{
    switch (precision) {
    case MFA_PRECISION_FP16: return v_load_fp16(at);
    case MFA_PRECISION_BF16: return v_load_bf16(at);
    default: return v_load((const float *)(const void *)at);
    }
}

/* 1 + x * (c[4] + x * (c[3] + ...)) */
MFA_INLINE vf polynomial(vf x, const float c[5])
{
    vf p = v_set1(c[0]);
    MFA_UNROLL_FOR (int i = 1; i < 5; i++)
        p = v_fma(p, x, v_set1(c[i]));
    return v_fma(p, x, v_set1(1.0f));
}

/*
 * 2^x for x <= 0, relative error below 2^-22; for -infinity 0; NaN stays NaN. The polynomials are
 * minimax in relative error, exact at 0.
 */
MFA_INLINE vf exp2_vector(vf x)
{
#if MFA_SCALES
    static const float up_to_one[5] = {1.867131619234394e-3f, 9.017025998584186e-3f,
                                       5.579991737572332e-2f, 2.401644484232394e-1f,
                                       6.931513120384988e-1f};
    return v_scale(polynomial(v_fraction(x), up_to_one), x);
#else
    static const float around_zero[5] = {1.326472731307149e-3f, 9.671512991189957e-3f,
                                         5.550733581185341e-2f, 2.4022242426872253e-1f,
                                         6.931470036506653e-1f};
    const vf magic = v_set1(12583039.0f); /* 1.5 * 2^23 + 127: adding it rounds to an integer */
    x = v_max(v_set1(-127.0f), x);
    vf shifted = v_add(x, magic);
    vf p = polynomial(v_sub(x, v_sub(shifted, magic)), around_zero);
    return v_mul(p, v_exponent(shifted)); /* a product, so that NaN survives */
#endif
}

enum { LINE = 64 }; /* bytes of a cache line, nearly everywhere */

/* Operands stream from the second-level cache: ask for what comes a few steps later. */
MFA_INLINE void prefetch_operand(const float *at, const int floats)
{
    enum { STEPS = MFA_PREFETCH_STEPS };
    MFA_UNROLL_FOR (int i = 0; i < floats; i += LINE / (int)sizeof *at)
        __builtin_prefetch(at + (size_t)STEPS * (size_t)floats + i);
}

/*
 * Packing and writing results would wait for memory otherwise. One line at a time: many at once
 * would hold up the operands, which come the same way.
 */
MFA_INLINE void prefetch_line(mfa_prefetch *prefetch)
{
    if (prefetch->runs == 0)
        return;
    mfa_prefetch_rows *run = &prefetch->run[prefetch->runs - 1];
    __builtin_prefetch(run->row + run->prefetched, 0, 2);
    run->prefetched += LINE;
    if (run->prefetched < run->bytes + LINE - 1) /* rows begin anywhere in a line */
        return;
    run->prefetched = 0;
    run->row += run->step;
    if (--run->rows == 0)
        prefetch->runs--;
}

enum { STEPS_A_LINE = 16 };

MFA_INLINE size_t steps_to(size_t left) { return left < STEPS_A_LINE ? left : STEPS_A_LINE; }

#if MFA_TILES
#include "tiles.h"
#else
#include "attend.h"
#include "decode.h"
#endif
#include "pack.h"

/* ---- results ---- */

static void store(unsigned char *to, const float *from, unsigned count, int precision)
{
    unsigned i = 0;
    if (precision == MFA_PRECISION_FP32) {
        memcpy(to, from, count * sizeof(float));
        return;
    }
    for (; i + MFA_LANES <= count; i += MFA_LANES) {
        if (precision == MFA_PRECISION_BF16)
            v_store_bf16(to + 2 * i, v_load(from + i));
        else
            v_store_fp16(to + 2 * i, v_load(from + i));
    }
    for (; i < count; i++) {
        uint16_t half =
            precision == MFA_PRECISION_BF16 ? mfa_to_bf16(from[i]) : mfa_to_fp16(from[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

/* Up to a vector of results. */
MFA_INLINE void store_results(unsigned char *to, vf results, unsigned count, const int precision)
{
    if (count < MFA_LANES) {
        float part[MFA_LANES];
        v_store(part, results);
        store(to, part, count, precision);
    } else if (precision == MFA_PRECISION_FP32) {
        v_store((float *)(void *)to, results);
    } else if (precision == MFA_PRECISION_BF16) {
        v_store_bf16(to, results);
    } else {
        v_store_fp16(to, results);
    }
}

MFA_INLINE void gather_as(unsigned char *to, const float *output, unsigned row, unsigned value_dim,
                          vf factor, const int precision)
{
    const size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    const unsigned padded = mfa_padded_dim(value_dim, MFA_LANES);
    for (unsigned column = 0; column < padded; column += MFA_NR) {
        const unsigned width = padded - column < MFA_NR ? padded - column : MFA_NR;
        const float *from = output + (size_t)MFA_MR * column + (size_t)row * width;
        for (unsigned i = 0; i < width; i += MFA_LANES)
            store_results(to + (column + i) * size, v_mul(v_load(from + i), factor),
                          value_dim - column - i, precision);
    }
}

static float gather(unsigned char *to, int precision, const mfa_strip_state *state,
                    const float *output, unsigned row, unsigned value_dim)
{
    const float sum = v_total(v_load(state->sum + row * MFA_LANES));
    const vf factor = v_set1(1.0f / sum);
    if (sum == 0.0f)
        return sum;
    switch (precision) {
    case MFA_PRECISION_FP16:
        gather_as(to, output, row, value_dim, factor, MFA_PRECISION_FP16);
        break;
    case MFA_PRECISION_BF16:
        gather_as(to, output, row, value_dim, factor, MFA_PRECISION_BF16);
        break;
    default: gather_as(to, output, row, value_dim, factor, MFA_PRECISION_FP32); break;
    }
    return sum;
}

#if !MFA_TILES
#include "brief.h"
#endif

const mfa_kernels MFA_PASTE(mfa_kernels_, MFA_ISA) = {
    .name = MFA_ISA_NAME,
    .usable = usable,
    .mr = MFA_MR,
    .nr = MFA_NR,
    .lanes = MFA_LANES,
#if MFA_PAIRS
    .pairs = true,
    .pack_pairs = pack_pairs,
#endif
#if MFA_TILES
    .tiles = true,
    .otherwise = &mfa_kernels_avx512,
    .enter = enter,
    .leave = leave,
    .pack_queries = pack_queries,
#else
    .pack_columns = pack_columns,
    .scale_row = scale_row,
    .decode_scores = decode_scores,
    .decode_softmax = decode_softmax,
    .decode_values = decode_values,
    .brief_pack_keys = brief_pack_keys,
    .brief_pack_values = brief_pack_values,
    .brief_attend = brief_attend,
#endif
    .pack_panels = pack_panels,
    .attend = attend,
    .gather = gather,
    .store = store,
};
